"""Checks of exercise 5, in the order of work: python -m pytest exercises/test_05_verdicts.py"""

from exercises import ex_05_verdicts as ex
from exercises.checks import expect

PART = "part {} of the docstring of parse_verdict in exercises/ex_05_verdicts.py"
LOST, THINKING, LAST, WHOLE, REST = map(PART.format, range(1, 6))
ONE, TWO = "<answer>Image 1 is better</answer>", "<answer>Image 2 is better</answer>"


def reads(text, wanted, mistakes, read):
    """Verdicts are told by their names; what a mistake makes of this text -> its name and cause."""
    verdict = ex.parse_verdict(text)
    expect(f"the verdict in {text!r}", getattr(verdict, "name", verdict), wanted, mistakes, read)


def test_the_three_phrases():
    said = "what stands between the tags is not found: print what your lines make of it."
    if ex.parse_verdict(ONE.lower()).name == "FIRST":
        said = "capitals: the phrase is compared with one of another case."
    elif ex.parse_verdict(f"</think>{ONE}").name == "FIRST":
        said = "all thrown away where no </think> stands: rpartition keeps it, partition does not."
    missed = {"UNPARSABLE": said}
    reads(ONE, "FIRST", missed | {"SECOND": "images exchanged."}, WHOLE)
    reads(TWO, "SECOND", {"FIRST": "images exchanged."}, WHOLE)
    tie = {"UNPARSABLE": "ties unread: the judge has answered, and no image is better."}
    reads("<answer>Both are equal</answer>", "TIE", tie, WHOLE)


def test_an_answer_that_never_came():
    mistakes = {
        "TIE": "a failed request as half a win: no answer is no verdict.",
        "UNPARSABLE": "a failed request as unparsable: nothing was said that one could read.",
    }
    reads(None, "FAILED", mistakes, LOST)


def test_an_answer_without_a_verdict_is_no_tie():
    mistakes = {
        "TIE": "an unparsable answer as half a win: that is a vote which nobody has cast.",
        "SECOND": "an unparsable answer as the other image: `else` is no verdict.",
        "FIRST": "an unparsable answer as the first image: that is no verdict.",
        "FAILED": "an unparsable answer as a failed request: the judge did answer.",
    }
    reads("I cannot help with that.\nAsk me something else.", "UNPARSABLE", mistakes, REST)
    empty = {"FAILED": "an empty answer as none: only None means that no answer came."}
    reads("", "UNPARSABLE", empty, LOST)


def test_nothing_is_read_from_the_reasons():
    guessed = "guessed from the reasons: only what stands between the tags counts."
    reads(f"Image 2 is better in color. {ONE}", "FIRST", {"SECOND": guessed}, LAST)
    reads(f"Image 1 is better in color. {TWO}", "SECOND", {"FIRST": guessed}, LAST)
    text = "Image 1 is better in color.\nImage 2 is better in shape."
    both = dict.fromkeys(("FIRST", "SECOND"), guessed)
    reads(text, "UNPARSABLE", both | {"TIE": "contradictions as a tie: there is no answer."}, LAST)


def test_the_last_answer_counts():
    mistakes = {
        "FIRST": "the first answer for the last: the judge has changed its mind.",
        "UNPARSABLE": "both answers in one: .*? stops at the next </answer>, .* at the last.",
    }
    reads(f"{ONE} On reflection: {TWO}", "SECOND", mistakes, LAST)
    back = {"FIRST": "the last answer that can be read for the last: the judge has taken it back."}
    reads(f"{ONE} No: <answer>I cannot tell</answer>", "UNPARSABLE", back, LAST)


def test_the_form_may_vary_a_little():
    loud = {"UNPARSABLE": "capitals in the tag: judges write them so, too."}
    reads("<ANSWER>IMAGE 2 IS BETTER</ANSWER>", "SECOND", loud, LAST)
    broken = {"UNPARSABLE": "line breaks: without re.DOTALL a dot matches all but them."}
    reads("<answer>\nImage 2 is better\n</answer>", "SECOND", broken, LAST)
    stop = {"UNPARSABLE": "full stop: it stands between the phrase and the tag."}
    reads("<answer>Image 2 is better.</answer>", "SECOND", stop, WHOLE)
    order = {"UNPARSABLE": "the ends: a blank may stand behind the full stop, and before it."}
    reads("<answer>\n Image 2 is better . \n</answer>", "SECOND", order, WHOLE)


def test_the_phrase_counts_as_a_whole():
    part = {"FIRST": "image number for verdict: not every sentence about Image 1 praises it."}
    reads("<answer>Image 1 is not better</answer>", "UNPARSABLE", part, WHOLE)
    part = "part of a sentence for the whole: compare with ==, not with `in`."
    neither = "<answer>Neither Image 1 nor Image 2 is better</answer>"
    reads(neither, "UNPARSABLE", {"FIRST": part, "SECOND": part, "TIE": part}, WHOLE)
    begun = {"FIRST": "the beginning of a sentence for the whole: compare with ==."}
    reads("<answer>Image 1 is better in parts only</answer>", "UNPARSABLE", begun, WHOLE)
    twelve = {"FIRST": "part of a number: Image 12 is not Image 1."}
    reads("<answer>Image 12 is better</answer>", "UNPARSABLE", twelve, WHOLE)


def test_a_thought_is_no_answer():
    thought = {"FIRST": "a thought for the answer: what stands in <think> is a draft."}
    reads(f"<think>Perhaps {ONE}?</think> Hm.", "UNPARSABLE", thought, THINKING)
    greedy = "the answer thrown away with the thought: what follows </think> counts."
    mistakes = thought | {"UNPARSABLE": greedy}
    reads(f"<think>Perhaps {ONE}?</think>{TWO}", "SECOND", mistakes, THINKING)
    cut = {"FIRST": "a thought that was cut off for the answer: </think> is missing."}
    reads(f"<think>Perhaps {ONE}? Or rather", "UNPARSABLE", cut, THINKING)
    headless = {"FIRST": "a thought whose <think> is missing for the answer: </think> ends it."}
    reads(f"Perhaps {ONE}?</think> Hm.", "UNPARSABLE", headless, THINKING)


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
        "Image 1 is better,": "UNPARSABLE",
        "": "UNPARSABLE",
        " . ": "UNPARSABLE",
    }
    counts = "{answer}|{loud}|{other} {answer}|{tie} {other} {other} {answer}|{answer} So be it."
    counts += "|Both are equal in size. {answer}|<think>{other}</think>{answer}|{answer}<think>"
    counts += "|<THINK>{tie}</THINK>\n{answer}|{tie}</think>{other}</think>{answer}"
    counts += "|<think>{other}</think>{answer}<think>{tie}<think>{other}"
    counts += "|<think>{tie}</think>{other}<think>{tie}</think>{answer}"
    counts += "|<answer>\n. {phrase}.. .</answer>|{tie} <answer> {phrase} .</answer>"
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
            reads(form.format(**named), verdict, {}, WHOLE)
        for form in lost.split("|"):
            if not form.startswith("{phrase}"):
                reads(form.format(**named), "UNPARSABLE", {}, REST)
