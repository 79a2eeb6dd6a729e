"""Checks of exercise 10, in the order of the work: python -m pytest exercises/test_10_hack.py

Your taste is your own, so these checks count over pictures instead of comparing numbers.
"""

import functools
import itertools

import numpy as np
from PIL import Image

from exercises import ex_10_hack as ex
from exercises.checks import expect
from shapes.prompts import heldout_prompts, sample_scene
from shapes.render import COLORS, LIGHT, render

PART = "part {} of the docstring of {} in exercises/ex_10_hack.py"
SEES, TASTE = PART.format(1, "score"), PART.format(2, "score")
HACKED = "the docstring of hacked in exercises/ex_10_hack.py"
TRIFLES, BLINDNESS = PART.format(1, "points"), PART.format(2, "points")
POINTS = "the docstring of points in exercises/ex_10_hack.py"


@functools.cache
def groups() -> list[tuple[str, list]]:
    """24 prompts, each with four pictures in which all of its demands are met.

    They have a grain that nobody sees, as a model's have: drawn exactly, some would be twins.
    """
    rng, made = np.random.default_rng(0), []
    for prompt in heldout_prompts()[:24]:
        pictures = render([sample_scene(prompt, rng) for _ in range(4)])
        grained = (pictures + rng.normal(0, 3, pictures.shape)).clip(0, 255).astype(np.uint8)
        made.append((prompt.text, [Image.fromarray(picture) for picture in grained]))
    return made


def right_and_wrong() -> list[tuple]:
    """A prompt, a picture of it, and a picture of another prompt that names none of its colors."""
    return [
        (prompt, right[0], wrong[0])
        for n, (prompt, right) in enumerate(groups())
        for other, wrong in groups()[n + 1 : n + 4]
        if not ex.named(prompt) & ex.named(other)
    ]


@functools.cache
def one_demand_apart() -> list[tuple]:
    """A prompt, its demands that each of two pictures meets, and both, the first one demand more.

    The pictures are those of all prompts, so most of them meet some of the demands by chance.
    """
    found, pictures = [], [right[0] for _, right in groups()]
    for prompt, _ in groups()[:12]:
        shares = {ex.demands_met(prompt, picture): picture for picture in pictures}
        steps = itertools.pairwise(sorted(shares))
        apart = [(less, more) for less, more in steps if more - less < 0.51]
        found += [(prompt, more, shares[more], shares[less]) for less, more in apart]
    return found


def patches(*colors, ground=LIGHT) -> Image.Image:
    """A picture with a patch of 8 x 8 pixels of each color. ground: of one color, or all pixels."""
    pixels = np.empty((32, 32, 3), np.uint8)
    pixels[:] = ground
    for n, color in enumerate(colors):
        pixels[12:20, 8 * n : 8 * n + 8] = COLORS[color]
    return Image.fromarray(pixels)


def speckled(image: Image.Image) -> Image.Image:
    """The same picture but for one pixel in a corner."""
    twin = image.copy()
    twin.putpixel((0, 0), (255, 0, 0))
    return twin


def hacks() -> list[tuple]:
    """A prompt, a picture in which its demands are met, and what hacked makes of it."""
    return [(prompt, right[0], ex.hacked(prompt, right[0])) for prompt, right in groups()]


def shown_less(prompt, right, worse) -> set[str]:
    """The colors that a prompt names and that can be seen in the first of two pictures only."""
    return ex.named(prompt) & ex.visible(right) - ex.visible(worse)


def test_the_score_is_plausible():
    shown = right_and_wrong()
    scores = [(ex.score(p, right), ex.score(p, wrong)) for p, right, wrong in shown]
    wins = sum(right > wrong for right, wrong in scores) / len(scores)
    said = "what it sees counts too little beside its taste, or it sees what no prompt asked for."
    if wins < 0.2:
        said = "upside down: a picture that shows the prompt's colors is to score higher."
    elif all(ex.score(p, wrong) == ex.score("a red circle", wrong) for p, _, wrong in shown):
        said = "prompt ignored: the same picture scores the same for every prompt."
    what = f"whether a picture of the prompt beats one of another prompt (in {wins:.0%} it does)"
    expect(what, wins > 0.8, True, SEES, {False: said})


def test_the_score_has_a_taste():
    scores = [[ex.score(prompt, picture) for picture in right] for prompt, right in groups()]
    alike = sum(len(set(group)) == 1 for group in scores)
    what = f"whether right pictures of one prompt score apart (in {alike} of 24 groups none does)"
    expect(what, alike == 0, True, TASTE)
    # Red on black, on white, on the purest colors, none of them near the palette's, and on noise.
    grounds = list(itertools.product((0, 255), repeat=3))
    noise = np.random.default_rng(0).choice((0, 255), (32, 32, 3))
    extremes = [ex.score("a red circle", patches("red", ground=g)) for g in (*grounds, noise)]
    widest = max(extremes) - min(extremes)
    strong = "taste not scaled: it is one tenth of a number from 0 to 1."
    if widest > 1.01:
        strong = "taste too strong: pixels go to 255, unless divided; and one tenth is meant."
    what = f"whether taste makes no more than 0.1, of pure colors too (it makes {widest:.3f})"
    expect(what, widest <= 0.1 + 1e-6, True, TASTE, {False: strong})


def test_the_score_sees_a_share_of_the_colors():
    two = "a red square and a blue circle"
    whole = ex.score(two, patches("red", "blue", "green", "yellow"))
    what = f"whether both of two colors beside two others get 1 and a little (they get {whole:.3f})"
    expect(what, 1 <= whole <= 1.11, True, SEES)
    banana = ex.score("a large circle the color of a ripe banana", patches("yellow"))
    words = {False: "the prompt's own words for its colors: named knows that a banana is yellow."}
    what = f"whether yellow gets 1 and a little for a ripe banana (it gets {banana:.3f})"
    expect(what, 1 <= banana <= 1.11, True, SEES, words)
    half = ex.score(two, patches("red"))
    said = "any color is enough: count how many of those named are visible."
    if half < 0.5:
        said = "all or nothing: one of two colors is half of them."
    what = f"whether one of two colors gets 0.5 and a little (it gets {half:.3f})"
    expect(what, 0.5 <= half <= 0.61, True, SEES, {False: said})


def test_score_is_sight_and_taste_of_any_picture():
    prompts = [prompt for prompt, _ in groups()]
    pictures = [right[0] for _, right in groups()] + [patches("red", "pink"), patches()]
    for n, picture in enumerate(pictures):
        given, tastes = picture.copy(), []
        for prompt in (*prompts[n % 4 :: 8], prompts[n % 24], prompts[n % 24]):
            named = ex.named(prompt)
            tastes.append(ex.score(prompt, picture) - len(named & ex.visible(picture)) / len(named))
        what = f"whether score, less the share it sees, is 0 to 0.1 (it is {tastes[0]:.3f})"
        expect(what, -1e-6 <= min(tastes) <= max(tastes) <= 0.1 + 1e-6, True, SEES)
        expect("whether it is so twice", tastes[-1] == tastes[-2], True, TASTE)
        moved = max(tastes) - min(tastes) > 1e-6
        expect("whether the taste of a picture changes with the prompt", moved, False, TASTE)
        expect("whether score leaves its picture alone", picture == given, True, SEES)


def test_the_score_can_be_hacked():
    prompt, (right, *_) = groups()[0]
    given = right.copy()
    ex.hacked(prompt, given)
    kept = given.tobytes() == right.tobytes()
    expect("whether the picture that is given stays as it is", kept, True, HACKED)
    made = hacks()[0][2]
    size = (*made.size, made.mode)
    expect("the size of a hacked picture, and its mode", size, (32, 32, "RGB"), HACKED)
    scores = [(p, ex.score(p, right), ex.score(p, worse)) for p, right, worse in hacks()]
    falls = [f"{p}: {before:.3f} -> {after:.3f}" for p, before, after in scores if after <= before]
    higher = len(scores) - len(falls)
    covered = sum(bool(shown_less(p, right, worse)) for p, right, worse in hacks())
    said = "your score does not prefer it: give its taste more of what it asks for."
    if 2 * covered > len(falls):
        said = "a named color painted over: that costs more than taste can give."
    first = f"; not for {falls[0]}" if falls else ""
    what = f"whether score rises in 20 or more of 24 pictures (it does in {higher}{first})"
    expect(what, higher >= 20, True, HACKED, {False: said})
    lower = sum(ex.demands_met(p, worse) < ex.demands_met(p, right) for p, right, worse in hacks())
    what = f"whether demands_met falls in 20 or more of 24 pictures (it does in {lower})"
    expect(what, lower >= 20, True, HACKED)


def test_points_are_those_of_one_comparison():
    pairs = right_and_wrong()[:10] + hacks()
    odd = sum(ex.points(*pair) not in (0, 0.5, 1) for pair in pairs)
    between = "points in between: a comparison is won, lost or a tie."
    what = f"how many of {len(pairs)} comparisons give neither 1, 0.5 nor 0"
    expect(what, odd, 0, POINTS, dict.fromkeys(range(1, len(pairs) + 1), between))


def test_a_right_picture_beats_a_wrong_one():
    shown = right_and_wrong()
    got = sum(ex.points(p, right, wrong) for p, right, wrong in shown) / len(shown)
    said = "what is decisive does not decide: one shows what the prompt demands, one does not."
    if got < 0.3:
        said = "upside down: points are what the first picture gets."
    what = f"whether a right picture beats a wrong one (it gets {got:.2f} points on average)"
    expect(what, got > 0.8, True, BLINDNESS, {False: said})


def test_the_order_makes_no_difference():
    pairs = [(p, wrong, speckled(wrong)) for p, _, wrong in right_and_wrong()[:8]]
    pairs += [(p, a, b) for p, (a, b, *_) in groups()[:8]] + right_and_wrong()[:8]
    pairs += [(p, more, less) for p, _, more, less in one_demand_apart()[:12]]
    odd = sum(ex.points(p, a, b) + ex.points(p, b, a) != 1 for p, a, b in pairs)
    what = f"whether the points of both orders add up to 1 (in {odd} of {len(pairs)} pairs not)"
    expect(what, odd == 0, True, POINTS)


def test_trifles_tie():
    decided = sum(ex.points(p, a, b) != 0.5 for p, (a, b, *_) in groups())
    what = f"whether two right pictures tie (in {decided} of 24 pairs one wins)"
    expect(what, decided == 0, True, TRIFLES)


def test_the_hack_does_not_win():
    worse = [hack for hack in hacks() if ex.demands_met(*hack[::2]) < ex.demands_met(*hack[:2])]
    got = sum(ex.points(p, hack, right) for p, right, hack in worse) / len(worse)
    said = "blind: ties alone let the hacked picture get away with half. Look at demands_met."
    if got > 0.7:
        said = "still hacked: your own hacked pictures win."
    what = f"whether hacked pictures lose (they get {got:.2f} points on average)"
    expect(what, got < 0.1, True, BLINDNESS, {False: said})


def test_one_demand_more_decides():
    pairs = {True: [], False: []}  # whether the better one meets all -> what it gets
    for prompt, share, more, less in one_demand_apart():
        pairs[share == 1].append(ex.points(prompt, more, less))
    right, wrong = (sum(got) / len(got) for got in pairs.values())
    what = f"whether a right picture beats one that misses one demand (it gets {right:.2f} points)"
    expect(what, right == 1, True, BLINDNESS)
    what = (
        f"whether one demand more decides between two wrong pictures (it gets {wrong:.2f} points)"
    )
    expect(what, wrong == 1, True, BLINDNESS)
