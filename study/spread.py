"""How much of an advantage is noise: by formula, by simulation, and in images of the base model.

A group of G images has true differences d and noise s, Gaussian and independent for each image:
score = truth + s * noise. Noise is whatever tells images apart that are equally good: a judge's
error, or a bias. docs/study.md states the formulas; here each stands beside simulated groups.

    python -m study.spread                      # a minute
    python -m study.spread --quick              # fewer groups

Writes spread.csv and .png (formula and simulation) and spread_images (images of the base model).
"""

import math

import numpy as np
import torch
from scipy import integrate
from scipy.stats import chi2, norm

import grpo
import sampler
import train
from common.seeds import seed_of
from figures import pictures
from models import base
from rewards import pair_schedule, win_rates
from shapes.grammar import parse_prompt
from study.estimators import ESTIMATORS, Estimator, Score, points_of
from study.runs import folder_of, size_asked_for, write_csv
from study.summary import write_rows
from training.config import parse_config
from training.data import make_batch
from training.heldout import verify

TESTPOINT = 1 / 3  # the true difference d: one testpoint of three
NOISES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)  # s
GROUPS = (2, 4, 8, 16, 32)  # G
TYPICAL, LEAK = 8, 0.03  # the G of the runs; the s at which the effect of G is shown
JUDGED = (0.01, 0.03, 0.1)  # noises with which real images are scored twice
SIZES = {"full": (4000, 64), "quick": (400, 16), "smallest": (20, 2)}  # simulated and real groups


# ----------------------------------------------------------------------------- formulas


def size_without_truth(estimator: Estimator, noise: float, count: int) -> float:
    """Mean square of the advantages of a group of `count` images that are equally good.

    Their mean is 0, so that this is their variance, and all of it noise.
    """
    if estimator.margin is not None:
        return 1 - all_tied(estimator.margin / noise, count)
    if estimator.floor == 0:
        return 1.0
    # The population variance of a group is s^2 / G times chi-square with G - 1 degrees of freedom.
    limit = count * estimator.floor**2 / noise**2
    below = (count - 1) * chi2.cdf(limit, count + 1)  # of the mean, what lies below the limit
    return float(chi2.sf(limit, count - 1) + below / limit)


def all_tied(margin: float, count: int) -> float:
    """Probability that `count` standard normal numbers lie within `margin` of each other."""
    within = lambda x: norm.pdf(x) * (norm.cdf(x + margin) - norm.cdf(x)) ** (count - 1)
    return count * integrate.quad(within, -9, 9)[0]


def mean_win_rates(truth: np.ndarray, noise: float) -> np.ndarray:
    """Expected win rate of each image of a group: the mean probability of a win."""
    points = norm.cdf((truth[:, None] - truth) / (noise * math.sqrt(2)))
    return (points.sum(1) - 0.5) / (len(truth) - 1)  # less the image against itself


def noise_share(estimator: Estimator, truth: np.ndarray, noise: float) -> float | None:
    """Share of the advantages' mean square that is not the square of their means.

    Exact for plain ranks, and for centered scores as long as their std is below 1; for z-scores in
    the limit of large groups. None for ranks with ties, which have no closed form.
    """
    if estimator.margin == 0:  # the std of ranks is the same whatever their order
        spread = math.sqrt((len(truth) + 1) / (12 * (len(truth) - 1)))
        return 1 - float(((mean_win_rates(truth, noise) - 0.5) ** 2).mean()) / spread**2
    if estimator.margin is not None:
        return None
    # Of the mean variance of scores within a group, what is not that of truth.
    return 1 - float(truth.var()) / (truth.var() + noise**2 * (1 - 1 / len(truth)))


# ----------------------------------------------------------------------------- simulation


def advantages_of(estimator: Estimator, scores: torch.Tensor) -> torch.Tensor:
    """(P, G) advantages of scores (P, G), as the loop makes them."""
    if estimator.margin is not None:
        size, margin = scores.shape[1], estimator.margin
        pairs = pair_schedule(size)
        points = ([points_of(g[i] - g[j], margin) for i, j in pairs] for g in scores.tolist())
        scores = torch.stack([win_rates(pairs, each, size) for each in points])
    return grpo.group_advantages(scores, estimator.floor, clip=math.inf)


def judged_twice(estimator: Estimator, truth: np.ndarray, noise: float, seed: int):
    """Groups scored twice, with new noise: the advantages' mean square, and which share of it is
    noise. truth: (P, G). The product of an image's two advantages is, on average, the square of its
    expected one: what is missing to the mean square is noise."""
    rng = np.random.default_rng(seed_of(seed, noise, truth.shape))
    scored = (truth + noise * rng.standard_normal(truth.shape) for _ in range(2))
    one, two = (advantages_of(estimator, torch.as_tensor(s)).double().numpy() for s in scored)
    size = float((one**2 + two**2).mean()) / 2
    return size, 1 - float((one * two).mean()) / size if size else math.nan


def simulated(groups: int) -> list[dict]:
    """Each formula beside simulated groups: a row an estimator, group size and noise.

    size: mean square of advantages in groups without any true difference; share: how much of the
    mean square is noise, in groups of which half the images are better by a testpoint.
    """
    cases = [(TYPICAL, noise) for noise in NOISES] + [(count, LEAK) for count in GROUPS]
    rows = []
    for name, estimator in ESTIMATORS.items():
        for count, noise in dict.fromkeys(cases):
            half = TESTPOINT * (np.arange(count) < count // 2)
            none, better = np.zeros((groups, count)), np.tile(half, (groups, 1))
            row = {"estimator": name, "group": count, "noise": noise}
            row["size"] = size_without_truth(estimator, noise, count)
            row["size_simulated"], _ = judged_twice(estimator, none, noise, seed=0)
            row["share"] = noise_share(estimator, half, noise)
            _, row["share_simulated"] = judged_twice(estimator, better, noise, seed=1)
            rows.append(row)
    return rows


# ----------------------------------------------------------------------------- images


def images_of_base(groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy and score of the base model's images, drawn as the loop draws them: (P, G) each."""
    cfg = parse_config([f"--prompts_per_step={groups}", f"--group_size={TYPICAL}"])
    model = base.load(cfg.model, cfg.size, cfg.guidance)
    sigmas, batch = sampler.sigma_schedule(cfg.num_steps, cfg.shift), make_batch(cfg, None, 0)
    how = dict(noise_level=cfg.noise_level, kind=cfg.sde_kind, micro_batch=8 * TYPICAL)
    images = train.sample(model, batch, sigmas, **how).images
    asked = [text for text in batch.prompts for _ in range(TYPICAL)]
    shown = [image for group in images for image in group]
    met, _ = verify(list(map(parse_prompt, asked)), shown)
    truth, score = [sum(m) / len(m) for m in met], Score().score(asked, shown)
    return np.reshape(truth, (groups, TYPICAL)), np.reshape(score, (groups, TYPICAL))


def bias_share(advantages: np.ndarray, truth: np.ndarray) -> float:
    """Share of the advantages' sum of squares that lies between images of one group that are
    equally good; both (P, G)."""
    level = truth[:, :, None] == truth[:, None]  # (P, G, G): which images are as good as this one
    expected = (level * advantages[:, None]).sum(2) / level.sum(2)
    return float(((advantages - expected) ** 2).sum() / (advantages**2).sum())


def of_images(truth: np.ndarray, score: np.ndarray) -> list[dict]:
    """What each estimator makes of real scores: how much is bias, and how much would be noise."""
    rows, alike = [], float((np.ptp(truth, axis=1) == 0).mean())
    bias_std = float((score - truth).std(1).mean())
    for name, estimator in ESTIMATORS.items():
        advantages = advantages_of(estimator, torch.as_tensor(score)).double().numpy()
        row = {"estimator": name, "groups_alike": alike, "bias_std": bias_std}
        row["bias"] = bias_share(advantages, truth)
        rows.append(row)
        row |= {f"noise_{s}": judged_twice(estimator, score, s, seed=2)[1] for s in JUDGED}
    return rows


# ----------------------------------------------------------------------------- what is drawn


def draw(rows: list[dict], path) -> None:
    """Lines are formulas, marks are simulated."""
    figure, styles = pictures.new_figure(figsize=(9, 3.8)), ("o-", "s--", "^-", "D:", "v-.")
    panels = (
        ("equally good images", "noise", "size", "mean square of advantages"),
        ("half better by a testpoint", "noise", "share", "share of it that is noise"),
        (f"equally good, noise {LEAK}", "group", "size", "mean square of advantages"),
    )
    for axes, (title, x, y, label) in zip(pictures.subplots(figure, 1, 3), panels):
        fixed = {"group": TYPICAL} if x == "noise" else {"noise": LEAK}
        for name, style, color in zip(ESTIMATORS, styles, pictures.PALETTE):
            wanted = {"estimator": name} | fixed
            mine = [row for row in rows if wanted.items() <= row.items()]
            mine.sort(key=lambda row: row[x])
            at = [row[x] for row in mine]
            marks = dict(color=color, ms=9, mfc="none") if name == "z-scores" else dict(color=color)
            axes.plot(at, [row[f"{y}_simulated"] for row in mine], style[0], **marks)
            if mine[0][y] is not None:
                axes.plot(at, [row[y] for row in mine], style[1:], color=color)
            axes.plot([], [], style, label=name, **marks)
        axes.set(title=title, ylabel=label, ylim=(-0.04, 1.08), xscale="log")
        axes.set_xlabel("noise s" if x == "noise" else "images in a group, G")
    axes.set_xticks(GROUPS, map(str, GROUPS))
    axes.minorticks_off()
    entries = axes.get_legend_handles_labels()
    figure.legend(*entries, loc="outside lower center", ncols=len(ESTIMATORS), frameon=False)
    pictures.save_figure(figure, path)


def main(arguments: list[str] | None = None) -> None:
    size = size_asked_for(__doc__, arguments)
    (groups, drawn), folder = SIZES[size], folder_of(size)
    rows = simulated(groups)
    write_csv(folder / "spread.csv", rows, f"# {groups} simulated groups")
    draw(rows, folder / "spread.png")
    head = f"# {drawn} groups of the base model's images"
    write_rows(of_images(*images_of_base(drawn)), head, folder / "spread_images")


if __name__ == "__main__":
    main()
