"""Pictures that explain the method on one prompt: a group, and where its advantages come from.

    python -m figures.explain --out runs/explain                       # the weights that ship
    python -m figures.explain --model runs/shapes/final --prompt "two small red squares"

  group.png        one group: each image's denoising, who beat whom, win rates, advantages, and
                   which testpoints (demands of the prompt) hold
  denoising.png    one prompt by the ODE and by two draws of the SDE: each state of the latents,
                   and below it the clean picture that the network predicts from it
  advantages.png   the same group's advantages by pointwise scores and by win rates
  noise.png        where on the way the SDE adds its noise, for each kind of SDE

The prompt must be one of the shapes world, since its verifier is the judge here.
"""

import argparse
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw

import grpo
import models.base
import sampler
from common.files import write_atomic
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
)
from judges.scorers import MLLMScorer
from rewards import PairwiseReward, PointwiseReward, std_floors
from shapes import verifier
from shapes.grammar import Caption, parse_prompt
from shapes.read import read
from training.config import Config
from training.data import seed_of

ROOT = Path(__file__).resolve().parent.parent
TIED = "#dddddd"
TEXT, TITLE = 22, 28  # pixels: still 7 points in the widest picture, printed 16 cm wide


class Group(NamedTuple):
    """G images of one prompt, and all that the method makes of them."""

    sigmas: torch.Tensor  # (K+1,)
    frames: list[list]  # K lists of G images: the clean picture predicted from each state
    images: list  # G
    points: list[list[float | None]]  # (G, G): what the image of a row got of that of a column
    rates: torch.Tensor  # (G,)
    scores: torch.Tensor  # (G,) pointwise, by the same judge
    met: list[list[bool]]  # which testpoints hold in each image


def schedule_of(cfg: Config) -> torch.Tensor:
    return sampler.sigma_schedule(cfg.num_steps, cfg.shift)


@torch.no_grad()
def states(model, text, trajectory) -> tuple[list[list], list[list]]:
    """K lists of images each: the latents of every step, and the clean picture predicted there."""
    velocity, seen, predicted = model.velocity(text), [], []
    for latents, sigma in zip(trajectory.latents, trajectory.sigmas[:-1]):
        clean = latents - sigma * velocity(latents, sigma.expand(len(latents)))
        seen.append(model.decode(latents))
        predicted.append(model.decode(clean))
    return seen, predicted


def draw_group(model, cfg: Config, prompt: Caption, seed: int) -> Group:
    """Samples a group as the loop does, and judges it by both rewards."""
    size = cfg.group_size
    noise = model.noise([seed_of(seed, g, "noise") for g in range(size)])
    generators = [torch.Generator().manual_seed(seed_of(seed, g, "steps")) for g in range(size)]
    text, sigmas = model.encode([prompt.text], size), schedule_of(cfg)
    trajectory = sampler.rollout(
        model.velocity(text), noise, sigmas, cfg.noise_level, cfg.sde_kind, None, generators
    )
    images = model.decode(trajectory.clean)
    judge = verifier.ShapesMLLM()
    compared = PairwiseReward(judge)([prompt.text], [images])
    scores = PointwiseReward(MLLMScorer(judge))([prompt.text], [images]).values[0]
    met = [verifier.satisfied(prompt, reading) for reading in read(images)]
    frames = states(model, text, trajectory)[1]
    return Group(sigmas, frames, images, compared.points(0), compared.values[0], scores, met)


# ----------------------------------------------------------------------------- the pictures


class Sheet:
    """A white canvas with text and images, saved as one PNG."""

    def __init__(self, width: float, height: float):
        self.canvas = Image.new("RGB", (int(width), int(height)), PAPER)
        self.draw = ImageDraw.Draw(self.canvas)

    def text(self, x, y, text: str, color=INK, size=TEXT, anchor="lm") -> None:
        (font,) = pillow_fonts([text], size)
        self.draw.text((x, y), text, color, font, anchor=anchor)

    def paste(self, x, y, image) -> None:
        self.canvas.paste(enlarge(image), (int(x), int(y)))

    def save(self, path) -> None:
        data = BytesIO()
        self.canvas.save(data, "PNG")
        write_atomic(path, data.getvalue())


def group_picture(group: Group, prompt: Caption, cfg: Config, path) -> None:
    """One row an image: film strip, its comparisons, win rate, advantage, testpoints."""
    floor = std_floors(["pairwise"], cfg.std_floor)["pairwise"]
    advantages = grpo.group_advantages(group.rates[None], floor, cfg.adv_clip)[0]
    size, step, top = len(group.images), CELL + GAP, 136
    strips = [*group.frames, group.images]
    matrix = 2 * GAP + len(strips) * step + 36  # where each part begins, from the left
    rates = matrix + size * 40 + 24
    zero = rates + 170  # of the bars
    marks = zero + 140
    foot = top + size * step + 24
    sheet = Sheet(marks + 70, foot + 34 * len(prompt.testpoints))
    sheet.text(2 * GAP, 28, prompt.text, size=TITLE)
    sheet.text(2 * GAP, 72, "the clean picture predicted at each noise level sigma", MUTED)
    sheet.text(matrix, 72, "against image (W won, = tied, L lost)", MUTED)
    heads = [f"{sigma:.2f}" for sigma in group.sigmas[:-1]] + ["judged"]
    for k, head in enumerate(heads):
        sheet.text(2 * GAP + k * step + CELL / 2, 112, head, MUTED, anchor="mm")
    for j in range(size):
        sheet.text(matrix + j * 40 + 17, 112, str(j + 1), MUTED, anchor="mm")
    for x, head in ((rates + 40, "win rate"), (zero, "advantage"), (marks, "testpoints")):
        sheet.text(x, 112, head, MUTED, anchor="mm")
    for i in range(size):
        y = top + i * step
        middle, advantage = y + CELL / 2, advantages[i].item()
        for k, strip in enumerate(strips):
            sheet.paste(2 * GAP + k * step, y, strip[i])
        sheet.text(matrix - 20, middle, str(i + 1), MUTED, anchor="mm")
        for j in range(size):
            if i != j:
                fill, word = outcome(group.points[i][j])
                x = matrix + j * 40
                sheet.draw.rectangle([x, middle - 17, x + 34, middle + 17], fill=fill)
                ink = INK if fill == TIED else PAPER
                sheet.text(x + 17, middle, word, ink, anchor="mm")
        sheet.text(rates + 40, middle, f"{group.rates[i]:.2f}", anchor="mm")
        end = zero + 28 * advantage
        color = WON if advantage > 0 else LOST
        sheet.text(zero, middle - 14, f"{advantage:+.2f}", anchor="mm")
        sheet.draw.rectangle([min(zero, end), middle + 6, max(zero, end), middle + 20], fill=color)
        draw_marks(sheet.draw, marks, middle - 8, group.met[i], 16)
    for n, (sub, description) in enumerate(prompt.testpoints):
        sheet.text(2 * GAP, foot + 34 * n, f"testpoint {n + 1}, {sub}: {description}", MUTED)
    sheet.save(path)


def outcome(points: float) -> tuple[str, str]:
    """Color and letter of what an image got of a pair."""
    return (TIED, "=") if points == 0.5 else (WON, "W") if points > 0.5 else (LOST, "L")


def denoising_picture(model, cfg: Config, prompt: str, seed: int, path) -> None:
    """Three ways from the same noise: the ODE's and two of the SDE's."""
    text, sigmas = model.encode([prompt], 3), schedule_of(cfg)
    noise = model.noise([seed_of(seed, 0, "noise")] * 3)
    generators = [torch.Generator().manual_seed(seed_of(seed, g, "steps")) for g in range(2)]
    velocity = model.velocity(text.rows([0])), model.velocity(text.rows([1, 2]))
    ways = [
        sampler.rollout(velocity[0], noise[:1], sigmas, 0.0),
        sampler.rollout(
            velocity[1], noise[1:], sigmas, cfg.noise_level, cfg.sde_kind, None, generators
        ),
    ]
    latents = torch.cat([way.latents for way in ways], dim=1)
    seen, predicted = states(model, text, ways[0]._replace(latents=latents))
    names, step, left, top = ("ODE", "SDE, draw 1", "SDE, draw 2"), CELL + GAP, 142, 96
    sheet = Sheet(left + (len(seen) + 1) * step + GAP, top + 3 * (2 * step + 14))
    sheet.text(GAP, 24, prompt, size=TITLE)
    sheet.text(GAP, 74, "sigma", MUTED)
    for k, sigma in enumerate(sigmas):
        head = f"{sigma:.2f}" if sigma else "picture"
        sheet.text(left + k * step + CELL / 2, 74, head, MUTED, anchor="mm")
    final = model.decode(latents[-1])
    for row, name in enumerate(names):
        y = top + row * (2 * step + 14)
        sheet.text(GAP, y + CELL / 2 - 14, name)
        sheet.text(GAP, y + CELL / 2 + 14, "latents", MUTED)
        sheet.text(GAP, y + step + CELL / 2, "predicted", MUTED)
        for k in range(len(seen)):
            sheet.paste(left + k * step, y, seen[k][row])
            sheet.paste(left + k * step, y + step, predicted[k][row])
        sheet.paste(left + len(seen) * step, y, final[row])
    sheet.save(path)


def advantages_picture(group: Group, cfg: Config, path) -> None:
    """Scores and win rates of the same images, and what normalizing makes of each."""
    numbers = torch.arange(1, len(group.images) + 1)
    figure = new_figure(figsize=(7.2, 4.8))
    rows = (("pointwise scores", group.scores), ("win rates", group.rates))
    for (left, right), color, (name, values) in zip(figure.subplots(2, 2), PALETTE, rows):
        # No floor: what it would hide here is what the picture is to show.
        advantages = grpo.group_advantages(values[None], 0.0, cfg.adv_clip)[0]
        left.bar(numbers, values, color=color)
        left.set(title=f"{name}: deviation {values.std(correction=0):.3f}", xlabel="image")
        right.bar(numbers, advantages, color=color)
        right.axhline(0, color=MUTED, linewidth=1)
        right.set(title=f"advantages by {name}", xlabel="image")
        for axes in (left, right):
            axes.set_xticks(numbers)
            axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


def noise_picture(cfg: Config, path) -> None:
    """Standard deviation of the noise that each step adds, by kind of SDE."""
    sigmas, zero = schedule_of(cfg), torch.zeros(1, 1, 1)
    figure = new_figure(figsize=(6.4, 3.6))
    axes = figure.subplots()
    for kind, color in zip(sampler.DIFFUSIONS, PALETTE):
        stds = [
            sampler.sde_step(zero, zero, sigmas, k, cfg.noise_level, kind).std.item()
            for k in range(cfg.num_steps)
        ]
        axes.plot(range(cfg.num_steps), stds, "o-", color=color, label=kind)
    axes.set(
        title=f"noise that a step of the SDE adds, noise level {cfg.noise_level}",
        xlabel="step",
        ylabel="standard deviation",
        ylim=(0, None),
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=str(ROOT / "assets/tiny-flux"), help="folder")
    parser.add_argument("--prompt", default="a pink square to the left of a blue circle")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="runs/explain", help="folder of the pictures")
    args = parser.parse_args()
    prompt = parse_prompt(args.prompt)
    if prompt is None:
        parser.error(f"--prompt '{args.prompt}' is no sentence of the shapes world")
    cfg, out = Config(), Path(args.out)
    try:
        model = models.base.load(args.model, cfg.size, cfg.guidance)
    except ValueError as error:
        parser.error(f"--model: {error}")
    out.mkdir(parents=True, exist_ok=True)
    group = draw_group(model, cfg, prompt, args.seed)
    group_picture(group, prompt, cfg, out / "group.png")
    denoising_picture(model, cfg, prompt.text, args.seed, out / "denoising.png")
    advantages_picture(group, cfg, out / "advantages.png")
    noise_picture(cfg, out / "noise.png")
    print(f"look at group.png, denoising.png, advantages.png and noise.png in {out}")


if __name__ == "__main__":
    main()
