"""Checks of exercise 5, in the order of work: python -m pytest exercises/test_05_verdicts.py"""

from exercises import ex_05_verdicts as ex
from exercises.checks import expect

PART = "part {} of the docstring of parse_verdict in exercises/ex_05_verdicts.py"
LOST, THINKING, LAST, WHOLE, REST = map(PART.format, range(1, 6))
ONE, TWO = "<answer>Image 1 is better</answer>", "<answer>Image 2 is better</answer>"


def reads(text, wanted, read, mistakes=None):
    """Verdicts are told by their names."""
    verdict = ex.parse_verdict(text)
    expect(f"the verdict in {text!r}", getattr(verdict, "name", verdict), wanted, read, mistakes)


def test_the_three_phrases():
    said = "what stands between the tags is not found: print what your lines make of it."
    if ex.parse_verdict(ONE.lower()).name == "FIRST":
        said = "capitals: the phrase is compared with one of another case."
    elif ex.parse_verdict(f"</think>{ONE}").name == "FIRST":
        said = "all thrown away where no </think> stands: rpartition keeps it, partition does not."
    reads(ONE, "FIRST", WHOLE, {"UNPARSABLE": said})
    reads(TWO, "SECOND", WHOLE)
    reads("<answer>Both are equal</answer>", "TIE", WHOLE)


def test_an_answer_that_never_came():
    reads(None, "FAILED", LOST)


def test_an_answer_without_a_verdict_is_no_tie():
    reads("I cannot help with that.\nAsk me something else.", "UNPARSABLE", REST)
    reads("", "UNPARSABLE", LOST)


def test_nothing_is_read_from_the_reasons():
    reads(f"Image 2 is better in color. {ONE}", "FIRST", LAST)
    reads(f"Image 1 is better in color. {TWO}", "SECOND", LAST)
    text = "Image 1 is better in color.\nImage 2 is better in shape."
    reads(text, "UNPARSABLE", LAST)
    said = {"FIRST": "the last line without tags: what stands between the tags counts."}
    reads("Let me see.\nImage 1 is better", "UNPARSABLE", LAST, said)


def test_the_last_answer_counts():
    reads(f"{ONE} On reflection: {TWO}", "SECOND", LAST)
    reads(f"{ONE} No: <answer>I cannot tell</answer>", "UNPARSABLE", LAST)


def test_the_form_may_vary_a_little():
    reads("<ANSWER>IMAGE 2 IS BETTER</ANSWER>", "SECOND", LAST)
    reads("<answer>\nImage 2 is better\n</answer>", "SECOND", LAST)
    reads("<answer>Image 2 is better.</answer>", "SECOND", WHOLE)
    reads("<answer>\n Image 2 is better . \n</answer>", "SECOND", WHOLE)


def test_the_phrase_counts_as_a_whole():
    reads("<answer>Image 1 is not better</answer>", "UNPARSABLE", WHOLE)
    neither = "<answer>Neither Image 1 nor Image 2 is better</answer>"
    reads(neither, "UNPARSABLE", WHOLE)
    reads("<answer>Image 1 is better in parts only</answer>", "UNPARSABLE", WHOLE)
    reads("<answer>Image 12 is better</answer>", "UNPARSABLE", WHOLE)
    lines = {"SECOND": "the first line alone: the phrase is all that stands between the tags."}
    reads("<answer>Image 2 is better\nin color alone</answer>", "UNPARSABLE", WHOLE, lines)
    ends = {"FIRST": "changed within the phrase: blanks and full stops go at its two ends only."}
    reads("<answer>Image 1 is ... better</answer>", "UNPARSABLE", WHOLE, ends)
    said = {"FIRST": "no opening tag: rpartition keeps all where it finds none."}
    reads("Image 1 is better </answer> Hm.", "UNPARSABLE", LAST, said)


def test_a_thought_is_no_answer():
    reads(f"<think>Perhaps {ONE}?</think> Hm.", "UNPARSABLE", THINKING)
    reads(f"<think>Perhaps {ONE}?</think>{TWO}", "SECOND", THINKING)
    reads(f"<think>Perhaps {ONE}? Or rather", "UNPARSABLE", THINKING)
    reads(f"Perhaps {ONE}?</think> Hm.", "UNPARSABLE", THINKING)
    said = {"FIRST": "the thought in capitals: text.lower() comes before all else."}
    reads(f"<THINK>Perhaps {ONE}?</THINK> Hm.", "UNPARSABLE", THINKING, said)


def test_any_answer():
    """Each phrase, and what is nearly one, alone and among other answers and thoughts."""
    phrases = {
        "Image 1 is better": "FIRST",
        "Image 2 is better": "SECOND",
        "Both are equal": "TIE",
        "Both are equal in color": "UNPARSABLE",
        "Not both are equal": "UNPARSABLE",
        "Not equal": "UNPARSABLE",
        "I doubt that Image 2 is better": "UNPARSABLE",
        "Image 2 is better, I think": "UNPARSABLE",
        "Image 3 is better": "UNPARSABLE",
        "Image 1 is worse": "UNPARSABLE",
        "Image 2 is better?": "UNPARSABLE",
        "Image 1 is better <i>in parts</i>": "UNPARSABLE",
        "Image 1 is better,": "UNPARSABLE",
        "Image 2. Is better": "UNPARSABLE",
        "Image 1 is bet ter": "UNPARSABLE",
        "": "UNPARSABLE",
        " . ": "UNPARSABLE",
    }
    counts = "{answer}|{loud}|{other} {answer}|{tie} {other} {other} {answer}|{answer} So be it."
    counts += "|Both are equal in size. {answer}|<think>{other}</think>{answer}|{answer}<think>"
    counts += "|<THINK>{tie}</THINK>\n{answer}|{tie}</think>{other}</think>{answer}"
    counts += "|<think>{other}</think>{answer}<think>{tie}<think>{other}"
    counts += "|<think>{tie}</think>{other}<think>{tie}</think>{answer}"
    counts += "|<answer> .\n. {phrase}.. .</answer>|{tie} <answer> {phrase} .</answer>"
    lost = "{phrase}|Answer, {phrase}, I think|<think>{answer}|{answer}</think>"
    lost += "|<think>{answer}</think><think>{other}|{answer} <answer></answer>|({answer}</think>)"
    lost += "|<think>{other}</think>{answer}<think>{tie}</think>Hm.|{other} <answer>?</answer>"
    for phrase, verdict in phrases.items():
        answer = f"<answer>{phrase}</answer>"
        named = dict(phrase=phrase, answer=answer, loud=answer.upper(), other=TWO)
        named["tie"] = "<answer>Both are equal</answer>"
        if verdict == "SECOND":
            named["other"] = ONE
        for form in counts.split("|"):
            reads(form.format(**named), verdict, WHOLE)
        for form in lost.split("|"):
            if not form.startswith("{phrase}"):
                reads(form.format(**named), "UNPARSABLE", REST)
