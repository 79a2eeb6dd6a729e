"""Figures that explain the method on one prompt: a group, and where its advantages come from.

    python -m figures.explain --out runs/explain                       # the weights that ship
    python -m figures.explain --model runs/shapes/final --prompt "two small red squares"

  group.png        one group: each image's denoising, who beat whom, win rates, advantages, and
                   which testpoints (demands of the prompt) hold
  denoising.png    one prompt by the ODE and by two draws of the SDE: each state of the latents,
                   and below it the clean image that the network predicts from it
  advantages.png   the same group's advantages by pointwise scores and by win rates
  noise.png        where on the way the SDE adds its noise, for each kind of SDE

The prompt must be one of shapes, since its verifier is the judge here.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw

import grpo
import models.base
import sampler
from common.seeds import seed_of
from figures.fonts import pillow_fonts
from figures.pictures import (
    CELL,
    GAP,
    INK,
    LOST,
    MUTED,
    PALETTE,
    PAPER,
    WON,
    draw_marks,
    enlarge,
    new_figure,
    save_figure,
    save_image,
    subplots,
)
from judges.scorers import MLLMScorer
from rewards import PairwiseReward, PointwiseReward, std_floors
from shapes import verifier
from shapes.grammar import Caption, parse_prompt
from shapes.read import read

ROOT = Path(__file__).resolve().parent.parent
TIED = "#dddddd"
STEP = CELL + GAP  # pixels from image to image
TEXT, TITLE = 22, 28  # pixels: still 7 points in the widest figure, printed 16 cm wide


class Settings(NamedTuple):
    """The settings of a run that these figures show, by their names and with their defaults."""

    size: int = 32
    guidance: float = 3.5
    group_size: int = 8
    num_steps: int = 6
    shift: float = 1.0
    noise_level: float = 0.7
    sde_kind: str = "flow"
    std_floor: float = -1.0
    adv_clip: float = 5.0


class Group(NamedTuple):
    """G images of one prompt, and all that the method makes of them."""

    sigmas: torch.Tensor  # (K+1,)
    frames: list[list]  # K lists of G images: the clean image predicted from each state
    images: list  # G
    points: list[list[float | None]]  # (G, G): what the image of a row got of that of a column
    rates: torch.Tensor  # (G,)
    scores: torch.Tensor  # (G,) pointwise, by the same judge
    met: list[list[bool]]  # which testpoints hold in each image


@torch.no_grad()
def rollout(model, how: Settings, text, seed: int, noise_of, noise_level: float):
    """As the loop samples, one image a row of text. noise_of: numbers of the noise they begin with;
    how: Settings, or any object that has them."""
    noise = model.noise([seed_of(seed, g, "noise") for g in noise_of])
    steps = [torch.Generator().manual_seed(seed_of(seed, g, "steps")) for g in range(len(noise))]
    shift = how.shift or model.schedule_shift(how.num_steps)
    sigmas = sampler.sigma_schedule(how.num_steps, shift)
    velocity = model.velocity(text)
    return sampler.rollout(velocity, noise, sigmas, noise_level, how.sde_kind, None, steps)


@torch.no_grad()
def predicted(model, text, states, sigmas) -> list[list]:
    """K lists of images: the clean one that the network predicts from the latents of each step."""
    velocity = model.velocity(text)
    return [
        model.decode(latents - sigma * velocity(latents, sigma.expand(len(latents))))
        for latents, sigma in zip(states, sigmas[:-1])
    ]


def draw_group(model, how: Settings, prompt: Caption, seed: int) -> Group:
    """Samples a group as the loop does, and judges it by both rewards."""
    text, size = model.encode([prompt.text], how.group_size), range(how.group_size)
    trajectory = rollout(model, how, text, seed, size, how.noise_level)
    images, judge = model.decode(trajectory.clean), verifier.ShapesMLLM()
    compared = PairwiseReward(judge)([prompt.text], [images])
    scores = PointwiseReward(MLLMScorer(judge))([prompt.text], [images]).values[0]
    met = [verifier.satisfied(prompt, reading) for reading in read(images)]
    sigmas = trajectory.sigmas
    frames, points = predicted(model, text, trajectory.latents, sigmas), compared.points(0)
    return Group(sigmas, frames, images, points, compared.values[0], scores, met)


# ----------------------------------------------------------------------------- the figures


class Sheet:
    """A white canvas with text and images, saved as one PNG."""

    def __init__(self, width: int, height: int):
        self.canvas = Image.new("RGB", (width, height), PAPER)
        self.draw = ImageDraw.Draw(self.canvas)

    def text(self, x, y, text: str, color=INK, size=TEXT, anchor="lm") -> None:
        (font,) = pillow_fonts([text], size)
        self.draw.text((x, y), text, color, font, anchor=anchor)

    def heads(self, left: float, step: float, y: float, texts) -> None:
        """Headings of columns, `step` apart; left: the middle of the first."""
        for k, text in enumerate(texts):
            self.text(left + k * step, y, text, MUTED, anchor="mm")

    def strip(self, left: int, y: int, images) -> None:
        for k, image in enumerate(images):
            self.canvas.paste(enlarge(image), (left + k * STEP, y))

    def outcome(self, x, middle, points: float) -> None:
        """Color and letter of what an image got of a pair."""
        fill, letter, ink = (WON, "W", PAPER) if points > 0.5 else (LOST, "L", PAPER)
        if points == 0.5:
            fill, letter, ink = TIED, "=", INK
        self.draw.rectangle([x, middle - 17, x + 34, middle + 17], fill=fill)
        self.text(x + 17, middle, letter, ink, anchor="mm")


def group_picture(group: Group, prompt: Caption, how: Settings, path) -> None:
    """One row an image: film strip, its comparisons, win rate, advantage, testpoints."""
    floor = std_floors(["pairwise"], how.std_floor)["pairwise"]
    advantages = grpo.group_advantages(group.rates[None], floor, how.adv_clip)[0]
    size, top, strips = len(group.images), 136, [*group.frames, group.images]
    matrix = 2 * GAP + len(strips) * STEP + 36  # where each part begins, from the left
    rates = matrix + size * 40 + 24
    zero, marks = rates + 170, rates + 310  # of the bars; the middle of the testpoints
    foot = top + size * STEP + 24
    sheet = Sheet(marks + 70, foot + 34 * len(prompt.testpoints))
    sheet.text(2 * GAP, 28, prompt.text, size=TITLE)
    sheet.text(2 * GAP, 72, "the clean image predicted at each sigma", MUTED)
    sheet.text(matrix, 72, "against image (W won, = tied, L lost)", MUTED)
    heads = [f"{sigma:.2f}" for sigma in group.sigmas[:-1]] + ["judged"]
    sheet.heads(2 * GAP + CELL / 2, STEP, 112, heads)
    sheet.heads(matrix + 17, 40, 112, [str(j + 1) for j in range(size)])
    sheet.heads(zero, 0, 112, ["advantage"])
    sheet.heads(rates + 40, 0, 112, ["win rate"])
    sheet.heads(marks, 0, 112, ["testpoints"])
    for i, advantage in enumerate(advantages.tolist()):
        y = top + i * STEP
        middle = y + CELL / 2
        sheet.strip(2 * GAP, y, [images[i] for images in strips])
        sheet.text(matrix - 20, middle, str(i + 1), MUTED, anchor="mm")
        for j in range(size):
            if i != j:
                sheet.outcome(matrix + j * 40, middle, group.points[i][j])
        sheet.text(rates + 40, middle, f"{group.rates[i]:.2f}", anchor="mm")
        end = zero + 28 * advantage
        color = WON if advantage > 0 else LOST
        sheet.text(zero, middle - 14, f"{advantage:+.2f}", anchor="mm")
        sheet.draw.rectangle([min(zero, end), middle + 6, max(zero, end), middle + 20], fill=color)
        draw_marks(sheet.draw, marks, middle - 8, group.met[i], 16)
    for n, (sub, description) in enumerate(prompt.testpoints):
        sheet.text(2 * GAP, foot + 34 * n, f"testpoint {n + 1}, {sub}: {description}", MUTED)
    save_image(sheet.canvas, path)


def denoising_picture(model, how: Settings, prompt: str, seed: int, path) -> None:
    """From the same noise three times: by the ODE, and by two draws of the SDE."""
    text = model.encode([prompt], 3)
    ode = rollout(model, how, text.rows([0]), seed, [0], 0.0)
    sde = rollout(model, how, text.rows([1, 2]), seed, [0, 0], how.noise_level)
    states, sigmas = torch.cat([ode.latents, sde.latents], dim=1), ode.sigmas
    seen, clean = [model.decode(state) for state in states], predicted(model, text, states, sigmas)
    left, top, height = 142, 96, 2 * STEP + 14
    sheet = Sheet(left + len(seen) * STEP + GAP, top + 3 * height)
    sheet.text(GAP, 24, prompt, size=TITLE)
    sheet.text(GAP, 74, "sigma", MUTED)
    heads = [f"{sigma:.2f}" for sigma in sigmas[:-1]] + ["image"]
    sheet.heads(left + CELL / 2, STEP, 74, heads)
    for row, name in enumerate(("ODE", "SDE, draw 1", "SDE, draw 2")):
        y = top + row * height
        sheet.text(GAP, y + CELL / 2 - 14, name)
        sheet.text(GAP, y + CELL / 2 + 14, "latents", MUTED)
        sheet.text(GAP, y + STEP + CELL / 2, "predicted", MUTED)
        sheet.strip(left, y, [images[row] for images in seen])
        sheet.strip(left, y + STEP, [images[row] for images in clean])
    save_image(sheet.canvas, path)


def advantages_picture(group: Group, how: Settings, path) -> None:
    """Scores and win rates of the same images, and what normalizing makes of each."""
    numbers = torch.arange(1, len(group.images) + 1)
    figure = new_figure(figsize=(7.2, 4.8))
    rows = (("pointwise scores", group.scores), ("win rates", group.rates))
    grid = subplots(figure, 2, 2)
    grid[1][1].sharey(grid[0][1])  # advantages of zero are not to look like an empty axis
    for (left, right), color, (name, values) in zip(grid, PALETTE, rows):
        # No floor: what it would hide here is what the figure is to show.
        advantages = grpo.group_advantages(values[None], 0.0, how.adv_clip)[0]
        std = values.std(correction=0)
        right.axhline(0, color=MUTED, linewidth=1)
        left.bar(numbers, values, color=color)
        right.bar(numbers, advantages, color=color)
        left.set(title=f"{name}: std {std:.3f}", xlabel="image", xticks=numbers)
        right.set(title=f"advantages by {name}", xlabel="image", xticks=numbers)
    save_figure(figure, path)


def noise_picture(how: Settings, path) -> None:
    """Standard deviation of the noise that each step adds, by kind of SDE."""
    sigmas, zero = sampler.sigma_schedule(how.num_steps, how.shift), torch.zeros(1, 1, 1)
    figure = new_figure(figsize=(6.4, 3.6))
    axes, steps = subplots(figure), range(how.num_steps)
    for kind, color in zip(sampler.DIFFUSIONS, PALETTE):
        added = [sampler.sde_step(zero, zero, sigmas, k, how.noise_level, kind) for k in steps]
        axes.plot(steps, [step.std.item() for step in added], "o-", color=color, label=kind)
    title = f"noise that a step of the SDE adds, noise level {how.noise_level}"
    axes.set(title=title, xlabel="step", ylabel="standard deviation", ylim=(0, None))
    axes.legend(frameon=False)
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=str(ROOT / "assets/tiny-flux"), help="folder")
    parser.add_argument("--prompt", default="a pink square to the left of a blue circle")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="runs/explain", help="folder of the figures")
    args = parser.parse_args()
    prompt = parse_prompt(args.prompt)
    if prompt is None:
        parser.error(f"--prompt '{args.prompt}' is no caption of shapes")
    how, out = Settings(), Path(args.out)
    try:
        model = models.base.load(args.model, how.size, how.guidance)
    except ValueError as error:
        parser.error(f"--model: {error}")
    out.mkdir(parents=True, exist_ok=True)
    group = draw_group(model, how, prompt, args.seed)
    group_picture(group, prompt, how, out / "group.png")
    denoising_picture(model, how, prompt.text, args.seed, out / "denoising.png")
    advantages_picture(group, how, out / "advantages.png")
    noise_picture(how, out / "noise.png")
    print(f"look at group.png, denoising.png, advantages.png and noise.png in {out}")


if __name__ == "__main__":
    main()
