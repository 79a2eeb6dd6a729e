"""A judge in its own words: the released questions, read and never run; Flex's reward, by hand."""

import base64
import io
import json

import pytest
import torch
from fake_server import choice, picture, serving
from fakes import in_turn

from judges.answers import parse_categories
from judges.released import FUNCTIONS, constants
from rewards import PairwiseReward
from shapes.verifier import ShapesMLLM
from training.config import Config
from training.flex import FlexReward
from training.log import contents
from training.start import comparison_of, judge_of

SOURCE = """
'A module that must not run.'
import no_such_package
PLAIN = "a" "b"
TYPED: dict = {"k": "v"}
BOTH = PLAIN + "c"
LATER = "was known"
LATER += " and is no more"
TURNED = "was known"
TURNED = PLAIN.upper()
def returned(anything) -> str:
    'Says so.'
    return ("c"
            "d")
def works():
    print("first")
    return "e"
raise SystemExit("it was executed")
"""
THINK = "「{prompt}」\n    Which?\n    <answer>Image 1 is better</answer>\n    "
FLEX = '**Prompt:** [{prompt}]\n{{"categories": [{{"cat_winner": "Image 1/2"}}], "winner": ""}}\n'


def test_constants_are_read_without_running_anything(tmp_path):
    file = tmp_path / "some.py"
    file.write_text(SOURCE, encoding="utf-8")
    found = dict(PLAIN="ab", TYPED={"k": "v"}, BOTH="abc", returned="cd")
    assert constants(file) == found
    for text in ("def (", "x = '\0'"):
        file.write_text(text)
        with pytest.raises(ValueError, match="^--template '.*some.py' is no Python file"):
            constants(file, "--template")


def own_copy(folder, **texts) -> str:
    """A file of the kind that the released code has; its path."""
    texts = {"think": THINK, "flex": FLEX} | texts
    parts = [f"def {FUNCTIONS[k]}() -> str:\n    return {text!r}\n" for k, text in texts.items()]
    (folder / "templates.py").write_text("\n\n".join(parts), encoding="utf-8")
    return str(folder / "templates.py")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no place", "lacks {prompt}"),
        ("{prompt} {caption}", "a placeholder other than {prompt}: {caption}"),
        ("{prompt} {", "a brace that is opened or closed alone"),
        ("{prompt} {{prompt}}", "it has {{prompt}}"),
        (None, "no function get_unifiedreward_flex_image_template returns a text"),
    ],
)
def test_what_is_no_released_question_gets_one_sentence(text, said, tmp_path):
    path = own_copy(tmp_path, flex=text)
    with pytest.raises(ValueError, match=f"--judge_prompt 'flex:{path}'") as told:
        comparison_of(Config(judge_prompt=f"flex:{path}"), ShapesMLLM())
    assert said in str(told.value) and "\n" not in str(told.value)


REPLIES = {"think": "<think>2</think><answer>Image 1 is better</answer>"}
REPLIES["flex"] = '{"categories": [{"cat_winner": "Image 2"}], "winner": "Image 1"}'
ASKED = {"think": THINK, "flex": FLEX.replace("{{", "{").replace("}}", "}")}


@pytest.mark.parametrize("kind", ["think", "flex"])
def test_a_server_is_asked_as_the_released_client_asks(kind, tmp_path):
    """By its question, JPEGs of quality 95 and 4096 tokens; and what --judge_extra adds."""
    with serving(*[choice(REPLIES[kind])] * 2) as server:
        extra = '{"temperature": 0.7, "chat_template_kwargs": {"enable_thinking": false}}'
        usual = dict(judge="openai", base_url=server.url, judge_model="judge", judge_extra=extra)
        cfg = Config(judge_prompt=f"{kind}:{own_copy(tmp_path)}", **usual)
        judge = judge_of(cfg)
        reward = comparison_of(cfg, judge)
        result = reward(["a {cat}"], [[picture("red"), picture("blue")]])
        assert judge_of(Config(judge_tokens=9, **usual)).max_tokens == 9
        assert judge_of(Config(**usual)).max_tokens == 2048
    assert result.counts["unparsable"] == 0 and "enable_thinking" in judge.name
    assert isinstance(reward, FlexReward) is (kind == "flex")
    (body, _), _ = server.requests
    (*images, text) = body.pop("messages")[0]["content"]
    assert text["text"] == ASKED[kind].replace("{prompt}", "a {cat}")
    kwargs = {"chat_template_kwargs": {"enable_thinking": False}}
    assert body == dict(model="judge", temperature=0.7, seed=0, max_tokens=4096) | kwargs
    buffer = io.BytesIO()
    picture("red").save(buffer, "JPEG", quality=95)
    sent = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    assert sent in [image["image_url"]["url"] for image in images]


def test_what_stands_in_a_copy_counts_and_which_of_the_two_is_asked(tmp_path):
    (tmp_path / "moved").mkdir()
    paths = f"think:{own_copy(tmp_path)}", f"think:{own_copy(tmp_path / 'moved')}"
    one, two, other = [
        contents(Config(judge_prompt=spec))["judge_prompt"]
        for spec in (*paths, paths[0].replace("think:", "flex:"))
    ]
    assert one == two != other


# ---- Flex's reward ----


def flex(winner, *categories) -> str:
    listed = [{"name": f"{n}", "cat_winner": said} for n, said in enumerate(categories)]
    return json.dumps({"categories": listed, "winner": winner})


ONE, TWO, ODD = "Image 1", "Image 2", "Image 1/2"


def compared(*said, images=3, reward=FlexReward, both_orders=False):
    return reward(in_turn(*said), both_orders=both_orders)(["p"], [[*range(images)]])


def test_flex_rewards_by_hand():
    """Pairs 01, 02, 12 in one order; of the second category one winner is malformed, of the third
    one is missing; a fourth does not count.

    overall 1, 0, 1/2; first category 1, 0, 1/2; second 1/4, 1, 1/2; third 1, 1/2, 0
    """
    said = flex(ONE, ONE, TWO, ONE, TWO), flex(ONE, ONE, "tie"), flex(TWO, TWO, ODD, ONE)
    rewards, plain = compared(*said), compared(*said, reward=PairwiseReward)
    by_hand = [0.3 + 0.7 * (1 + 0.7 / 4 + 0.7) / 2.4, 0.7 * (0.7 + 0.35) / 2.4]
    by_hand += [0.15 + 0.7 * (0.5 + 0.35) / 2.4]
    torch.testing.assert_close(rewards.values, torch.tensor([by_hand]))
    assert rewards.counts["categories_lost"] == 2
    assert plain.values.tolist() == [[1, 0, 0.5]] and "categories_lost" not in plain.counts


def test_a_category_that_one_order_lost_is_lost_and_nothing_is_guessed():
    """Both orders prefer the first image; the second category contradicts itself, the third is
    named once. Where no category is known the overall win rate stands alone."""
    both = dict(images=2, both_orders=True)
    rewards = compared(flex(ONE, ONE, ONE, ONE), flex(TWO, TWO, ONE), **both)
    first = 0.3 + 0.7 * (1 + 0.7 * 0.5) / 1.7
    torch.testing.assert_close(rewards.values, torch.tensor([[first, 1 - first]]))
    assert rewards.counts["categories_lost"] == 1
    bare = compared('{"winner": "1"}', flex(TWO), **both)
    assert bare.values.tolist() == [[1, 0]] and bare.counts["categories_lost"] == 6
    lost = compared("?", "?", images=2)  # asked again; of a lost comparison nothing else is lost
    assert lost.counts["unparsable"] == 1 and lost.counts["categories_lost"] == 0


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ("Here:\n```json\n" + flex(ONE, TWO, ONE, "tie", ONE) + "\n```", (0, 1, 0.5)),
        ("<think>" + flex(TWO, TWO) + "</think>" + flex(ONE, ONE, "", None), (1, None, None)),
        ('{"winner": "1", "categories": ["Image 1", {}, {"cat_winner": 2}]}', (None, None, 0)),
        ('{"winner": "Image 1", "categories": {"cat_winner": "Image 1"}}', ()),
        ('{"categories": [{"cat_winner": "Image 1"}]}', ()),  # no winner: no answer
    ],
)
def test_categories_of_an_answer(text, points):
    assert parse_categories(text) == points
