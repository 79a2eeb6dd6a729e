"""sight.py: a blind judge is found, and none that sees is taken for one."""

import pytest
from PIL import Image

from judges.mllm import Answer
from judges.sight import CAPTION, check_sight, circle
from judges.templates import PAIRWISE_TEMPLATE
from shapes.verifier import ShapesMLLM

ONE, TWO = "<answer>Image 1 is better</answer>", "<answer>Image 2 is better</answer>"
EQUAL = "<answer>Both are equal</answer>"


class Judge:
    """Says what two functions make of the colors that it is shown."""

    name = "fake"

    def __init__(self, pair, single):
        self.says, self.asked = {2: pair, 1: single}, []

    def ask(self, queries):
        self.asked += queries
        answers = []
        for query in queries:
            middles = [image.getpixel((128, 128)) for image in query.images]
            red = [middle[0] > middle[2] for middle in middles]
            said = self.says[len(query.images)](*red)
            answers.append(said if isinstance(said, Answer) else Answer(said))
        return answers

    def first_probability(self, queries):
        self.asked += queries
        reds = [query.images[0].getpixel((128, 128)) for query in queries]
        return [self.says[2](p[0] > p[2], None) for p in reds]


def sees_pairs(first, second):
    return ONE if first else TWO


def sees_single(red):
    return f"<score>[{int(red)}]</score>"


BLIND = {2: [ONE, "I see no images, so: " + EQUAL], 1: ["<score>[1]</score>", "0"]}
SILENT = Answer(error="empty answer", unfinished="empty answer")
UNREADABLE = ["I cannot see any image.", SILENT, Answer("<answer>", unfinished="cut off")]
CUT = "cut off"


@pytest.mark.parametrize("pairs_first", [True, False])
@pytest.mark.parametrize("pair", BLIND[2])
@pytest.mark.parametrize("single", BLIND[1] + UNREADABLE[:1])
def test_a_judge_that_says_the_same_whatever_it_is_shown_is_refused(pair, single, pairs_first):
    judge = Judge(lambda *_: pair, lambda _: single)
    with pytest.raises(ValueError, match="fake does not see its pictures: .*pass images on"):
        check_sight(judge, pairs_first=pairs_first)
    assert len(judge.asked) <= 6  # with the repeats of what cannot be read


@pytest.mark.parametrize("pairs_first", [True, False])
def test_one_that_sees_passes_in_two_calls_without_a_word(pairs_first):
    judge = Judge(sees_pairs, sees_single)
    assert check_sight(judge, pairs_first=pairs_first) == ""
    assert len(judge.asked) == 2


@pytest.mark.parametrize(
    ("pairs_first", "pair", "single"),
    [
        *((True, lambda *_, said=said: said, sees_single) for said in BLIND[2] + UNREADABLE),
        *((False, sees_pairs, lambda _, said=said: said) for said in BLIND[1] + UNREADABLE),
        (True, lambda *_: ONE, lambda red: f"Testpoint 1: {int(red)}, it is." + "<score>"),
        (True, lambda *_: ONE, lambda red: Answer(f"</think>{int(red)} and", unfinished=CUT)),
        (True, lambda first, _: TWO if first else ONE, None),  # it takes blue for red
        (False, None, lambda red: str(int(not red))),
        (False, lambda *_: Answer(error="HTTP 400: one image only"), lambda red: "yes"),
    ],
)
def test_one_that_sees_but_is_biased_wrong_or_unreadable_is_warned_of(pairs_first, pair, single):
    doubt = check_sight(Judge(pair, single), pairs_first=pairs_first)
    assert doubt.startswith(("the judge fake", "whether the judge fake"))


@pytest.mark.parametrize(
    ("pair", "blind"),
    [
        (lambda red, _: 0.99 if red else 0.97, False),  # biased, and still it sees
        (lambda red, _: 0.5 if red else 0.5 + 1e-9, True),
    ],
)
def test_probabilities_tell_it_too(pair, blind):
    judge = Judge(pair, lambda _: "1")
    if blind:
        with pytest.raises(ValueError, match="does not see"):
            check_sight(judge, soft=True)
    else:
        check_sight(judge, soft=True)
        assert len(judge.asked) == 2


@pytest.mark.parametrize("pairs_first", [True, False])
def test_one_that_does_not_answer_is_refused_with_the_reason(pairs_first):
    failed = lambda *_: Answer(error="HTTP 401: no key")
    with pytest.raises(ValueError, match="the judge fake does not answer: HTTP 401: no key"):
        check_sight(Judge(failed, failed), pairs_first=pairs_first)


@pytest.mark.parametrize("template", [PAIRWISE_TEMPLATE, 'By "winner" alone.\nCaption: {prompt}'])
def test_the_verifier_sees_in_every_form(template):
    for pairs_first in (True, False):
        assert check_sight(ShapesMLLM(), template, pairs_first=pairs_first) == ""
    biased = ShapesMLLM(first_bias=1.0)  # as the classroom's may be
    assert "it says the same of a red and a blue circle" in check_sight(biased, template)


def test_the_question_is_the_runs_own():
    judge = Judge(sees_pairs, sees_single)
    check_sight(judge, "Which shows '{prompt}'? {x}")
    assert {query.text for query in judge.asked} == {f"Which shows '{CAPTION}'? {{x}}"}
    one, other = (query.images for query in judge.asked)
    pixels = [[image.tobytes() for image in images] for images in (one, other)]
    assert pixels[0] == pixels[1][::-1] and len(set(pixels[0])) == 2
    assert isinstance(circle("red"), Image.Image)
