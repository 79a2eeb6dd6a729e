"""Judge errors and cost: every setup has the same budget of calls, and judges err as they claim."""

import numpy as np
import pytest
from PIL import Image

from judges.templates import PAIRWISE_TEMPLATE
from shapes.prompts import heldout_prompts, sample_scene
from shapes.render import render
from study import judging


def test_every_setup_spends_the_budget_and_no_more():
    for size, budget in judging.BUDGETS.items():
        for name, setup in judging.SETUPS.items():
            if size != "smallest":
                a_step = budget.groups * setup.reward().calls(budget.group_size)
                assert 0 <= budget.calls - budget.steps(setup) * a_step < a_step, name
        one, both = (
            judging.SETUPS[f"100 % right, {order}"] for order in ("one order", "both orders")
        )
        assert budget.steps(one) == 2 * budget.steps(both)


def test_each_contrast_is_of_setups_that_differ_in_one_thing():
    for name, other in judging.CONTRASTS.items():
        one, two = judging.SETUPS[name], judging.SETUPS[other]
        assert sum(a != b for a, b in zip(one, two)) == 1


@pytest.fixture(scope="module")
def pairs():
    """400 times an image of the prompt and one of another, each with a grain of its own."""
    prompt, other = heldout_prompts()[:2]
    rng = np.random.default_rng(0)
    drawn = render([sample_scene(p, rng) for p in (prompt, other)])
    grained = (drawn + rng.normal(0, 2, (400, *drawn.shape))).clip(0, 255).astype(np.uint8)
    text = PAIRWISE_TEMPLATE.replace("{prompt}", prompt.text)
    return [(tuple(map(Image.fromarray, two)), text) for two in grained]


@pytest.mark.parametrize(
    "setup, right, tied",
    [
        (judging.Setup(0.8, both_orders=False), 0.8, 0),
        (judging.Setup(0.6), 0.36, 0.48),  # the two orders err independently
        (judging.Setup(first_bias=0.5, both_orders=False), 1, 0),  # the right one is shown first
        (judging.Setup(first_bias=0.5), 0.5, 0.5),
    ],
)
def test_a_judge_errs_as_often_as_it_claims(pairs, setup, right, tied):
    points = [judging.first_points(setup.reward(), pair, text) for pair, text in pairs]
    spread = 4 * 0.5 / len(points) ** 0.5
    assert np.mean([p == 1 for p in points]) == pytest.approx(right, abs=spread)
    assert np.mean([p == 0.5 for p in points]) == pytest.approx(tied, abs=spread)
