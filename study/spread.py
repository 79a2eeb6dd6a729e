"""How much of an advantage is noise: by formula, by simulation, and in pictures of the base model.

A group of G pictures has true differences d and noise s, Gaussian and independent for each picture:
score = truth + s * noise. Noise is whatever tells pictures apart that are equally good: a judge's
error, or a taste. STUDY.md derives the formulas; here each stands beside simulated groups.

    python -m study.spread                      # a minute
    python -m study.spread --quick              # fewer groups

Writes spread.csv (formula and simulation), spread.png, and spread_pictures.csv and .md (pictures of
the base model, scored twice with noise).
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy import integrate
from scipy.stats import chi2, norm

import grpo
import sampler
import train
from common.files import write_atomic
from figures import pictures
from models import base
from rewards import pair_schedule, win_rates
from shapes.grammar import parse_prompt
from study.five_ways import OUT, RESULTS, WAYS, Score, Way, points_of
from study.runs import size_asked_for, write_csv
from training.config import parse_config
from training.data import make_batch, seed_of
from training.heldout import verify
from unigenbench.tables import markdown_table

TESTPOINT = 1 / 3  # the true difference d: one testpoint of three
NOISES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)  # s
GROUPS = (2, 4, 8, 16, 32)  # G
TYPICAL, LEAK = 8, 0.03  # the G of the runs; the s at which the effect of G is shown
JUDGED = (0.01, 0.03, 0.1)  # noises with which real pictures are scored twice


# ----------------------------------------------------------------------------- formulas


def size_without_truth(way: Way, noise: float, count: int) -> float:
    """Mean square of the advantages of a group of `count` pictures that are equally good.

    Their mean is 0, so that this is their variance, and all of it noise.
    """
    if way.margin is not None:
        return 1 - all_tied(way.margin / noise, count)
    if way.floor == 0:
        return 1.0
    # The population variance of a group is s^2 / G times chi-square with G - 1 degrees of freedom.
    limit = count * way.floor**2 / noise**2
    below = (count - 1) * chi2.cdf(limit, count + 1)  # of the mean, what lies below the limit
    return float(chi2.sf(limit, count - 1) + below / limit)


def all_tied(margin: float, count: int) -> float:
    """Probability that `count` standard normal numbers lie within `margin` of each other."""
    within = lambda x: norm.pdf(x) * (norm.cdf(x + margin) - norm.cdf(x)) ** (count - 1)
    return count * integrate.quad(within, -9, 9)[0]


def mean_win_rates(truth: np.ndarray, noise: float, margin: float) -> np.ndarray:
    """Expected win rate of each picture of a group: for each opponent the probability of a win, and
    half that of a tie."""
    lead = truth[:, None] - truth
    wide = noise * math.sqrt(2)
    points = (norm.cdf((lead - margin) / wide) + norm.cdf((lead + margin) / wide)) / 2
    return (points.sum(1) - 0.5) / (len(truth) - 1)  # less the picture against itself


def expected_advantages(way: Way, truth: np.ndarray, noise: float) -> np.ndarray | None:
    """Mean advantage of each picture of a group: what of it is signal.

    Exact for plain ranks, and for centered scores as long as they deviate by less than 1; for
    z-scores in the limit of large groups. None for ranks with ties, which have no closed form.
    """
    if way.margin == 0:
        return (mean_win_rates(truth, noise, 0.0) - 0.5) / rank_deviation(len(truth))
    if way.margin is not None:
        return None
    return (truth - truth.mean()) / max(way.floor, score_deviation(truth, noise))


def rank_deviation(count: int) -> float:
    """Deviation of win rates within a group that they rank without ties, whatever the order."""
    return math.sqrt((count + 1) / (12 * (count - 1)))


def score_deviation(truth: np.ndarray, noise: float) -> float:
    """Root of the mean variance of scores within a group: that of truth, and that of noise."""
    return math.sqrt(truth.var() + noise**2 * (1 - 1 / len(truth)))


def noise_share(way: Way, truth: np.ndarray, noise: float) -> float | None:
    """Share of the advantages' mean square that is not the square of their means; as above."""
    expected = expected_advantages(way, truth, noise)
    if expected is None:
        return None
    deviation = score_deviation(truth, noise)
    size = 1.0 if way.margin == 0 else (deviation / max(way.floor, deviation)) ** 2
    return 1 - float((expected**2).mean()) / size


# ----------------------------------------------------------------------------- simulation


def advantages_of(way: Way, scores: torch.Tensor) -> torch.Tensor:
    """(P, G) advantages of scores (P, G), as the loop makes them."""
    if way.margin is not None:
        pairs, size = pair_schedule(scores.shape[1]), scores.shape[1]
        points = ([points_of(g[i] - g[j], way.margin) for i, j in pairs] for g in scores.tolist())
        scores = torch.stack([win_rates(pairs, each, size) for each in points])
    return grpo.group_advantages(scores, way.floor, clip=math.inf)


class Twice(NamedTuple):
    """What groups that are scored twice, with new noise, tell of advantages."""

    size: float  # their mean square
    share: float  # of it that is noise
    better: float  # mean advantage of the pictures that are the best of their group


def judged_twice(way: Way, truth: np.ndarray, noise: float, seed: int) -> Twice:
    """truth: (P, G). The product of a picture's two advantages is, on average, the square of its
    expected one: what is missing to the mean square is noise."""
    rng = np.random.default_rng(seed_of(seed, noise, truth.shape))
    scored = (truth + noise * rng.standard_normal(truth.shape) for _ in range(2))
    one, two = (advantages_of(way, torch.as_tensor(s)).double().numpy() for s in scored)
    size = float((one**2 + two**2).mean()) / 2
    share = 1 - float((one * two).mean()) / size if size else math.nan
    best = truth == truth.max(1, keepdims=True)
    return Twice(size, share, float((one[best] + two[best]).mean()) / 2)


def simulated(groups: int) -> list[dict]:
    """Each formula beside simulated groups: a row a way, group size and noise.

    size: mean square of advantages in groups without any true difference. In groups of which half
    the pictures are better by a testpoint: better, the mean advantage of these, and share, how much
    of the mean square is noise.
    """
    cases = [(TYPICAL, noise) for noise in NOISES] + [(count, LEAK) for count in GROUPS]
    rows = []
    for name, way in WAYS.items():
        for count, noise in dict.fromkeys(cases):
            half = TESTPOINT * (np.arange(count) < count // 2)
            alike = judged_twice(way, np.zeros((groups, count)), noise, seed=0)
            differ = judged_twice(way, np.tile(half, (groups, 1)), noise, seed=1)
            expected = expected_advantages(way, half, noise)
            rows.append(
                {
                    "way": name,
                    "group": count,
                    "noise": noise,
                    "size": size_without_truth(way, noise, count),
                    "size_simulated": alike.size,
                    "better": None if expected is None else float(expected[0]),
                    "better_simulated": differ.better,
                    "share": noise_share(way, half, noise),
                    "share_simulated": differ.share,
                }
            )
    return rows


# ----------------------------------------------------------------------------- pictures


def pictures_of_base(groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Truth and score of the base model's pictures, drawn as the loop draws them: (P, G) each."""
    cfg = parse_config([f"--prompts_per_step={groups}", f"--group_size={TYPICAL}"])
    model = base.load(cfg.model, cfg.size, cfg.guidance)
    sigmas, batch = sampler.sigma_schedule(cfg.num_steps, cfg.shift), make_batch(cfg, None, 0)
    drawn = train.sample(
        model,
        batch,
        sigmas,
        noise_level=cfg.noise_level,
        kind=cfg.sde_kind,
        micro_batch=8 * TYPICAL,
    )
    asked = [text for text in batch.prompts for _ in range(TYPICAL)]
    shown = [image for group in drawn.images for image in group]
    met, _ = verify(list(map(parse_prompt, asked)), shown)
    truth, score = [sum(m) / len(m) for m in met], Score().score(asked, shown)
    return np.reshape(truth, (groups, TYPICAL)), np.reshape(score, (groups, TYPICAL))


def taste_share(advantages: np.ndarray, truth: np.ndarray) -> float:
    """Share of the advantages' sum of squares that lies between pictures of one group that are
    equally good; both (P, G)."""
    level = truth[:, :, None] == truth[:, None]  # (P, G, G): which pictures are as good as this one
    expected = (level * advantages[:, None]).sum(2) / level.sum(2)
    return float(((advantages - expected) ** 2).sum() / (advantages**2).sum())


def of_pictures(truth: np.ndarray, score: np.ndarray) -> list[dict]:
    """What each way makes of real scores: how much of it is taste, and how much would be noise."""
    alike, rows = float((np.ptp(truth, axis=1) == 0).mean()), []
    known = {"groups_alike": alike, "taste_deviation": float((score - truth).std(1).mean())}
    for name, way in WAYS.items():
        advantages = advantages_of(way, torch.as_tensor(score)).double().numpy()
        noise = {f"noise_{s}": judged_twice(way, score, s, seed=2).share for s in JUDGED}
        taste = taste_share(advantages, truth)
        rows.append({"way": name, **known, "taste": taste} | noise)
    return rows


PICTURES_HEADER = ["", "taste", *(f"noise, s = {s}" for s in JUDGED)]


def pictures_cells(row: dict) -> list[str]:
    shares = [row["taste"], *(row[f"noise_{s}"] for s in JUDGED)]
    return [row["way"], *(f"{share:.3f}" for share in shares)]


# ----------------------------------------------------------------------------- what is drawn


def draw(rows: list[dict], path) -> None:
    """Lines are formulas, marks are simulated."""
    figure = pictures.new_figure(figsize=(9, 3.8))
    panels = (
        ("equally good pictures", "noise", "size", "mean square of advantages"),
        ("half better by a testpoint", "noise", "share", "share of it that is noise"),
        (f"equally good, noise {LEAK}", "group", "size", "mean square of advantages"),
    )
    for axes, (title, x, y, label) in zip(figure.subplots(1, 3), panels):
        fixed = {"group": TYPICAL} if x == "noise" else {"noise": LEAK}
        for name, style, color in zip(WAYS, ("o-", "s--", "^-", "D:", "v-."), pictures.PALETTE):
            mine = [row for row in rows if row["way"] == name and fixed.items() <= row.items()]
            mine.sort(key=lambda row: row[x])
            at = [row[x] for row in mine]
            marks = dict(color=color, ms=9, mfc="none") if name == "z-scores" else dict(color=color)
            axes.plot(at, [row[f"{y}_simulated"] for row in mine], style[0], **marks)
            if mine[0][y] is not None:
                axes.plot(at, [row[y] for row in mine], style[1:], color=color)
            axes.plot([], [], style, label=name, **marks)
        axes.set(title=title, ylabel=label, ylim=(-0.04, 1.08), xscale="log")
        axes.set_xlabel("noise s" if x == "noise" else "pictures in a group, G")
        axes.spines[["top", "right"]].set_visible(False)
    axes.set_xticks(GROUPS, map(str, GROUPS))
    axes.minorticks_off()
    entries = axes.get_legend_handles_labels()
    figure.legend(*entries, loc="outside lower center", ncols=len(WAYS), frameon=False)
    pictures.save_figure(figure, path)


SIZES = {  # simulated groups, groups of pictures, folder
    "full": (4000, 64, RESULTS),
    "quick": (400, 16, OUT / "quick"),
    "smallest": (20, 2, OUT / "smallest"),
}


def main(arguments: list[str] | None = None) -> None:
    groups, drawn, folder = SIZES[size_asked_for(__doc__, arguments)]
    rows = simulated(groups)
    write_csv(folder / "spread.csv", rows, f"# {groups} simulated groups")
    draw(rows, folder / "spread.png")
    path, seen = folder / "spread_pictures.csv", of_pictures(*pictures_of_base(drawn))
    write_csv(path, seen, f"# {drawn} groups of the base model's pictures")
    table = markdown_table(PICTURES_HEADER, [pictures_cells(row) for row in seen])
    write_atomic(path.with_suffix(".md"), table.encode())


if __name__ == "__main__":
    main()
