"""mllm.py and answers.py: what of an answer is final, whatever the model; what is asked again."""

import pytest

from judges.answers import final_part, without_echo
from judges.mllm import Query, ask_again

TAGS = [
    ("<think>", "</think>"),
    ("<THINK>", "</Think>"),
    ("<reasoning>", "</reasoning>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
]


@pytest.mark.parametrize(("begins", "ends"), TAGS)
@pytest.mark.parametrize("unfinished", [None, "cut off"])
def test_what_is_said_while_thinking_is_not_final(begins, ends, unfinished):
    for thought in (f"{begins}draft{ends}", f"draft{ends}", f"{begins}one{ends}{begins}two{ends}"):
        assert final_part(thought + "\nfinal\n", unfinished) == "final"
    assert final_part(f"{begins}draft", unfinished) == ""  # cut off, or ended, within a thought
    assert final_part(f"draft{ends}final{begins}draft", unfinished) == "final"


def test_an_unfinished_text_without_the_end_of_a_thought_may_be_one_thought():
    assert final_part("draft", "cut off") == "" and final_part("final") == "final"


def test_a_repeated_question_is_left_out_of_the_answer():
    question = "Which is better?\n  Say <answer>one</answer>\nor <answer>two</answer>."
    reflowed = " ".join(question.split())
    for echo in (question, reflowed, f"{question}\n{reflowed}"):
        kept = final_part(f"Well. {echo} <answer>one</answer>", None, question)
        assert kept.split() == ["Well.", "<answer>one</answer>"]
    assert without_echo("Say <answer>one</answer>", question) == "Say <answer>one</answer>"
    assert without_echo("text", "") == without_echo("text", " \n") == "text"


def test_only_what_is_lost_is_asked_again_and_no_more_often_than_allowed():
    asked = []

    def ask(queries):
        asked.append([query.text for query in queries])
        return [query.text.count("!") for query in queries]

    def again(query, said):
        return None if said >= len(query.text) else query.text + "!"

    outcomes = ask_again(ask, [Query((), ""), Query((), "a"), Query((), "bb")], again)
    assert outcomes == [[0], [0, 1], [0, 1]]
    assert asked == [["", "a", "bb"], ["a!", "bb!"]]
    assert ask_again(ask, [Query((), "")], again) == [[0]] and asked[2:] == [[""]]
    echo = lambda queries: [query.text for query in queries]
    louder = lambda query, said: None if query.text == "a" else query.text + "!"
    outcomes = ask_again(echo, [Query((), text) for text in "abc"], louder)
    assert outcomes == [["a"], ["b", "b!"], ["c", "c!"]]  # each its own
