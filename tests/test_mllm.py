"""mllm.py and answers.py: what of an answer is final, whatever the model; what is asked again."""

import pytest

from judges.answers import final_part, without_echo
from judges.mllm import Query, ask_again

TAGS = ["<think> </think>", "<THINK> </Think>", "<reasoning> </reasoning>"]
TAGS += ["[THINK] [/THINK]", "◁think▷ ◁/think▷"]


@pytest.mark.parametrize("tags", TAGS)
@pytest.mark.parametrize("unfinished", [None, "cut off"])
def test_what_is_said_while_thinking_is_not_final(tags, unfinished):
    begins, ends = tags.split()
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


def test_only_what_is_lost_is_asked_again_and_once():
    asked = []

    def ask(queries):
        asked.append([query.text for query in queries])
        return asked[-1]

    louder = lambda query, said: None if said == "a" else query.text + "!"
    outcomes = ask_again(ask, [Query((), text) for text in "bac"], louder)
    assert outcomes == [["b", "b!"], ["a"], ["c", "c!"]]  # each its own
    assert ask_again(ask, [Query((), "a")], louder) == [["a"]]
    assert asked == [["b", "a", "c"], ["b!", "c!"], ["a"]]  # then there is nothing to ask
    assert ask_again(ask, [Query((), "d")], louder, times=3) == [["d", "d!", "d!", "d!"]]
