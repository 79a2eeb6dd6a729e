"""Exercise 10: write a reward that training exploits, watch it happen, and cure it. 40 minutes.

A reward stands for what is wanted, and never quite is it. Training finds the difference: that is
called reward hacking. The score rises, and the pictures get worse. You will write a score that
looks plausible, find by hand what is wrong with it before training does, and write a comparison
that can be trusted. The world is that of the tiny model: colored shapes on 32 x 32 pixels, asked
for by prompts such as

    a pink square to the left of a blue circle          two red triangles
    a large circle the color of a ripe banana           a small green square and no circle

When all checks pass,

    python -m exercises.hack

trains the tiny model twice for a minute or two, once on your score and once on your comparison, and
draws both. (Before, it takes ours, and says so.)

The paper: reward hacking, blamed on illusory advantage; and win rates as the cure.

    python -m pytest exercises/test_10_hack.py
"""

import numpy as np
from PIL import Image

from shapes.grammar import THINGS, parse_prompt
from shapes.read import color_distances, read
from shapes.render import COLORS
from shapes.verifier import satisfied

# ----------------------------------------------------------------------------- given


def named(prompt: str) -> set[str]:
    """The colors that a prompt asks for, at least one: {"pink", "blue"}.

    The color of a ripe banana is {"yellow"}.
    """
    for thing, color in THINGS.items():
        prompt = prompt.replace(thing, color)
    return set(prompt.split()) & set(COLORS)


def visible(image: Image.Image) -> set[str]:
    """The colors that a picture shows: those that 12 pixels or more come close to."""
    near = color_distances(np.asarray(image.convert("RGB"), np.float32)) < 60
    return {color for n, color in enumerate(COLORS) if near[..., n].sum() >= 12}


def demands_met(prompt: str, image: Image.Image) -> float:
    """The share of what the prompt demands that can be seen in the picture, 0 to 1.

    A program that reads the pixels says so: colors, shapes, sizes, numbers, places. It knows
    nothing of taste.
    """
    (reading,) = read([image])
    met = satisfied(parse_prompt(prompt), reading)
    return sum(met) / len(met)


# ----------------------------------------------------------------------------- yours


def score(prompt: str, image: Image.Image) -> float:
    """How good a picture is, by a model that sees little and has a taste: the sum of

    1. what it sees: the share of the colors named by the prompt that are visible in the picture,
       from 0 to 1. Not the shapes, not how many there are, not where;
    2. its taste: one tenth of a number from 0 to 1 that tells nearly every two pictures apart and
       has nothing to do with the prompt. It is yours to choose: how vivid the colors are, how much
       of the picture is filled, how warm or how dark it is.

    Of two pictures of one prompt that both show its colors, 2 decides alone, by a few thousandths.
    This is how real scorers behave: see the HPS scores in exercise 6.

    Hint: np.asarray(image, float) / 255 is (32, 32, 3), red, green and blue. How vivid a pixel is
    can be told by its largest less its smallest channel.
    """
    raise NotImplementedError


def hacked(prompt: str, image: Image.Image) -> Image.Image:
    """A worse picture that your score prefers, made from a picture in which all demands are met.

    Returns a new picture, 32 x 32, RGB. score must be higher than that of the picture given, and
    demands_met lower, in 20 or more of 24 pictures, whose shapes lie anywhere. Think: what does
    score not look at, and what does its taste ask for more of? Whatever does that will do, random
    noise too. But training does not choose at random: it finds what raises score soonest. One thing
    has to stay: a color that the prompt names, once it is painted over, costs far more than taste
    can give.

    Hint: pixels = np.array(image.convert("RGB")); change many of them, for example a third of the
    picture, pixels[:11] = COLORS["red"], but in a color that suits this prompt and your
    taste; Image.fromarray(pixels).
    """
    raise NotImplementedError


def points(prompt: str, first: Image.Image, second: Image.Image) -> float:
    """The cure. What the first of two pictures gets of their comparison: 1, 0.5 or 0.

    Training on score goes wrong for two reasons, and the cure needs something against each.
    1. Trifles. Within a group they are all that is left once every picture shows its colors, and
       normalizing blows them up. So pictures between which nobody sees a difference tie: 0.5.
    2. Blindness. Ties are no help against what score does not see. So the comparison has to look at
       what the prompt demands: demands_met, and nothing else is needed. One demand more that is met
       is no trifle. It decides, also between two pictures both of which meet some demands only.

    Whichever picture is shown first: points(prompt, a, b) + points(prompt, b, a) = 1.
    """
    raise NotImplementedError
