"""sight.py: a blind judge is found, and none that sees is taken for one."""

import pytest
from fakes import FakeMLLM

from judges.mllm import Answer
from judges.sight import CAPTION, check_sight
from judges.templates import PAIRWISE_TEMPLATE
from shapes.verifier import ShapesMLLM

ONE, TWO = "<answer>Image 1 is better</answer>", "<answer>Image 2 is better</answer>"


def judge(pair, single=None) -> FakeMLLM:
    """Says what two functions make of the colors that it is shown."""

    def answer(query):
        middles = [image.getpixel((128, 128)) for image in query.images]
        red = [middle[0] > middle[2] for middle in middles]
        return (pair if len(red) == 2 else single)(*red)

    made = FakeMLLM(answer)
    made.first_probability = lambda queries: list(map(answer, queries))
    return made


def always(said):
    return lambda *_: said


def sees_pairs(first, second):
    return ONE if first else TWO


def sees_single(red):
    return f"<score>[{int(red)}]</score>"


BLIND = {2: [ONE, "I see no images, so: <answer>Both are equal</answer>"], 1: [sees_single(1), "0"]}
SILENT = Answer(error="empty answer", unfinished="empty answer")
UNREADABLE = ["I cannot see any image.", SILENT, Answer("<answer>", unfinished="cut off")]


@pytest.mark.parametrize("pairs_first", [True, False])
@pytest.mark.parametrize("pair", BLIND[2])
@pytest.mark.parametrize("single", BLIND[1] + UNREADABLE[:1])
def test_a_judge_that_says_the_same_whatever_it_is_shown_is_refused(pair, single, pairs_first):
    blind = judge(always(pair), always(single))
    with pytest.raises(ValueError, match="fake does not see its images: .*pass images on"):
        check_sight(blind, pairs_first=pairs_first)
    assert len(blind.asked) <= 6  # with the repeats of what cannot be read


@pytest.mark.parametrize(
    ("pairs_first", "pair", "single"),
    [
        *((True, always(said), sees_single) for said in BLIND[2] + UNREADABLE),
        *((False, sees_pairs, always(said)) for said in BLIND[1] + UNREADABLE),
        (True, always(ONE), lambda red: f"Testpoint 1: {int(red)}, it is." + "<score>"),
        (True, always(ONE), lambda red: f"Score {int(red)} for testpoint 1."),
        (True, always(ONE), lambda red: Answer(f"</think>{int(red)} and", unfinished="cut off")),
        (True, lambda first, _: TWO if first else ONE, None),  # it takes blue for red
        (False, None, lambda red: str(int(not red))),
        (False, always(Answer(error="HTTP 400: one image only")), always("yes")),
    ],
)
def test_one_that_sees_but_is_biased_wrong_or_unreadable_is_warned_of(pairs_first, pair, single):
    doubt = check_sight(judge(pair, single), pairs_first=pairs_first)
    assert doubt.startswith(("the judge fake", "whether the judge fake"))


def test_probabilities_tell_it_too():
    biased = judge(lambda red, _: 0.99 if red else 0.97)
    assert check_sight(biased, soft=True) == "" and not biased.asked
    blind = judge(lambda red, _: 0.5 if red else 0.5 + 1e-9, always("1"))
    with pytest.raises(ValueError, match="does not see"):
        check_sight(blind, soft=True)


@pytest.mark.parametrize("pairs_first", [True, False])
def test_one_that_does_not_answer_is_refused_with_the_reason(pairs_first):
    failed = always(Answer(error="HTTP 401: no key"))
    with pytest.raises(ValueError, match="the judge fake does not answer: HTTP 401: no key"):
        check_sight(judge(failed, failed), pairs_first=pairs_first)


@pytest.mark.parametrize("template", [PAIRWISE_TEMPLATE, 'By "winner" alone.\nCaption: {prompt}'])
def test_the_verifier_sees_in_every_form(template):
    for pairs_first in (True, False):
        assert check_sight(ShapesMLLM(), template, pairs_first=pairs_first) == ""
    biased = ShapesMLLM(first_bias=1.0)  # as the server's of shapes may be
    assert "it says the same of a red and a blue circle" in check_sight(biased, template)


def test_one_that_sees_passes_in_two_calls_with_the_runs_own_question():
    seeing = judge(sees_pairs, sees_single)
    assert check_sight(seeing, "Which shows '{prompt}'? {x}") == ""
    assert {query.text for query in seeing.asked} == {f"Which shows '{CAPTION}'? {{x}}"}
    one, other = ([image.tobytes() for image in query.images] for query in seeing.asked)
    assert one == other[::-1] and len(set(one)) == 2
    assert check_sight(seeing, pairs_first=False) == "" and len(seeing.asked) == 4
