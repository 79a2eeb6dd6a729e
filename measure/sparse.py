"""How well a few opponents recover the full round robin's ranking, and at what share of the calls.

Prints a Markdown table and writes assets/sparse.png. Kendall's tau-b of the win rates from k
opponents an image, against the win rates of all pairs by the same judge, and against the truth:
  - simulated: hidden qualities, a judge who is right with the probability in the first column,
    independently in each pair;
  - shapes: groups that assets/tiny-flux samples, compared in both orders by the verifier, whose
    ties count; its truth is the full round robin.

    python -m measure.sparse              # minutes on 2 cores; not a test, since it only reports
    python -m measure.sparse --bradley_terry --out runs/fitted.png     # a fit in place of win rates
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from scipy.stats import kendalltau

import sampler
import train
from models import base
from rewards import PairwiseReward, pair_schedule, win_rates
from shapes.prompts import heldout_prompts
from shapes.verifier import ShapesMLLM
from training.data import Batch

matplotlib.use("Agg")
from matplotlib import pyplot

ROOT = Path(__file__).resolve().parent.parent
GROUP_SIZES, OPPONENTS, ACCURACIES = (8, 16, 24), (2, 3, 4), (0.7, 0.8, 0.9, 0.95)


def tau(a, b) -> float:
    """Kendall's tau-b; nan where one of the two ranks nothing."""
    return kendalltau(np.asarray(a), np.asarray(b)).statistic


def bradley_terry(
    pairs: Sequence[tuple[int, int]], points: Sequence[float | None], group_size: int
) -> torch.Tensor:
    """(G,) float32: each image's expected win rate against all others, from any set of comparisons.

    P(i beats j) = sigmoid(s_i - s_j); the strengths s maximize the likelihood (a tie is half a win
    each) times a prior, half a win and half a loss against a player of strength 0, which keeps an
    image that wins all finite. Expected win rates sum to G/2: the scale of `win_rates`.
    """
    wins = torch.zeros(group_size, group_size, dtype=torch.float64)
    for (i, j), point in zip(pairs, points, strict=True):
        if point is not None:
            wins[i, j] += point
            wins[j, i] += 1 - point
    games = wins + wins.T
    strength = torch.zeros(group_size, dtype=torch.float64)
    for _ in range(50):  # Newton on a concave function; 6 to 10 steps in practice
        expected = torch.sigmoid(strength[:, None] - strength)
        prior = torch.sigmoid(strength)
        gradient = (wins - games * expected).sum(1) + 0.5 - prior
        curvature = games * expected * (1 - expected)
        hessian = torch.diag(curvature.sum(1) + prior * (1 - prior)) - curvature
        step = torch.linalg.solve(hessian, gradient)
        strength += step / step.abs().max().clamp(min=1)  # at most 1, so that it cannot overshoot
        if step.abs().max() < 1e-10:
            break
    expected = torch.sigmoid(strength[:, None] - strength)
    return ((expected.sum(1) - 0.5) / (group_size - 1)).float()


def sparse_rates(fit, points: dict, size: int, opponents: int, draw: int) -> torch.Tensor:
    """Rates (G,) from the pairs of one sparse schedule, out of the points of all pairs.

    Images take their seats of the schedule at random, as samples of one prompt do.
    """
    seats = np.random.default_rng(draw).permutation(size)
    pairs = [
        tuple(sorted((int(seats[i]), int(seats[j])))) for i, j in pair_schedule(size, opponents)
    ]
    return fit(pairs, [points[pair] for pair in pairs], size)


def simulated(fit, size: int, accuracy: float, trials: int) -> dict:
    """k -> (tau to the full round robin, tau to the truth), means over trials; k = G-1: all."""
    rng = np.random.default_rng(size)
    found = {k: [] for k in (*OPPONENTS, size - 1)}
    for trial in range(trials):
        quality = rng.permutation(size)
        points = {}
        for i, j in pair_schedule(size):
            first = (quality[i] > quality[j]) == (rng.random() < accuracy)
            points[i, j] = float(first)
        full = win_rates(list(points), list(points.values()), size)
        found[size - 1].append((1.0, tau(full, quality)))
        for k in OPPONENTS:
            rates = sparse_rates(fit, points, size, k, trial)
            found[k].append((tau(rates, full), tau(rates, quality)))
    return {k: np.nanmean(values, 0) for k, values in found.items()}


def sampled_points(size: int, prompts: list[str], model, judge: ShapesMLLM) -> list[dict]:
    """For each prompt, the points that the verifier gives in every pair of a sampled group."""
    count = size * len(prompts)
    batch = Batch(prompts, list(range(count)), list(range(count, 2 * count)), [])
    sigmas = sampler.sigma_schedule(6)
    groups = train.sample(model, batch, sigmas, noise_level=0.7, kind="flow", micro_batch=64).images
    pairs, result = pair_schedule(size), []
    reward = PairwiseReward(judge)
    for prompt, group in zip(prompts, groups):
        # A group of two is one comparison in both orders: win rates 1, 0.5 or 0 of its first image.
        twos = [[group[i], group[j]] for i, j in pairs]
        rates = reward([prompt] * len(pairs), twos).values[:, 0]
        result.append(dict(zip(pairs, rates.tolist())))
    return result


def on_shapes(fit, size: int, groups: list[dict], draws: int) -> dict:
    """k -> (tau to the full round robin, the same), means over groups and schedules."""
    found = {k: [] for k in OPPONENTS}
    for points in groups:
        full = win_rates(list(points), list(points.values()), size)
        if full.std() == 0:  # all alike: nothing to rank
            continue
        for k in OPPONENTS:
            found[k] += [
                tau(sparse_rates(fit, points, size, k, draw), full) for draw in range(draws)
            ]
    return {k: (np.nanmean(values), float("nan")) for k, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trials", type=int, default=200, help="simulated groups")
    parser.add_argument("--prompts", type=int, default=8, help="sampled groups")
    parser.add_argument("--draws", type=int, default=20, help="schedules for each sampled group")
    parser.add_argument("--model", default=str(ROOT / "assets" / "tiny-flux"))
    parser.add_argument("--out", default=str(ROOT / "assets" / "sparse.png"))
    parser.add_argument(
        "--bradley_terry", action="store_true", help="rank by a fit to the same pairs"
    )
    args = parser.parse_args()

    fit = bradley_terry if args.bradley_terry else win_rates
    model, judge = base.load(args.model, size=32), ShapesMLLM()
    prompts = [p.text for p in heldout_prompts()[: args.prompts]]
    found = {}  # (judge, G) -> {k: (tau to full, tau to truth)}
    for size in GROUP_SIZES:
        for accuracy in ACCURACIES:
            found[f"simulated {accuracy:.0%}", size] = simulated(fit, size, accuracy, args.trials)
        groups = sampled_points(size, prompts, model, judge)
        ties = np.mean([v == 0.5 for points in groups for v in points.values()])
        print(f"shapes, G = {size}: {ties:.0%} of the comparisons are ties", flush=True)
        found["shapes verifier", size] = on_shapes(fit, size, groups, args.draws)
    print_table(found)
    plot(found, Path(args.out))


def print_table(found: dict) -> None:
    columns = [f"k = {k}" for k in OPPONENTS] + ["all"]
    print(f"\n| judge | G | {' | '.join(columns)} |\n|---|---|{'---|' * len(columns)}")
    shares = {size: " | ".join(f"{k / (size - 1):.0%}" for k in OPPONENTS) for size in GROUP_SIZES}
    for size in GROUP_SIZES:
        print(f"| share of the calls | {size} | {shares[size]} | 100% |")
    for (judge, size), by_k in found.items():
        cells = [
            f"{full:.2f}" if np.isnan(truth) else f"{full:.2f} / {truth:.2f}"
            for full, truth in by_k.values()
        ]
        cells += ["1.00"] * (len(columns) - len(cells))  # all pairs are their own yardstick
        print(f"| {judge} | {size} | {' | '.join(cells)} |")
    print("\nKendall's tau against the full round robin / against the truth.")


def plot(found: dict, out: Path) -> None:
    """One panel a judge: tau to the full round robin over the share of the calls, one line a G."""
    judges = list(dict.fromkeys(judge for judge, _ in found))
    figure, axes = pyplot.subplots(1, len(judges), figsize=(3 * len(judges), 3.2), sharey=True)
    for axis, judge in zip(axes, judges):
        for color, size in zip(("#1f77b4", "#d95f02", "#2a7f3f"), GROUP_SIZES):
            by_k = found[judge, size]
            ks = [k for k in by_k if k in OPPONENTS]
            axis.plot(
                [k / (size - 1) for k in ks],
                [by_k[k][0] for k in ks],
                "o-",
                color=color,
                label=f"G = {size}",
            )
            if not np.isnan(by_k[ks[0]][1]):
                axis.plot(
                    [k / (size - 1) for k in by_k],
                    [of[1] for of in by_k.values()],
                    "x:",
                    color=color,
                )
        axis.set(title=judge, xlabel="share of the calls", xlim=(0, 1.03), ylim=(0, 1.03))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("Kendall's tau")
    axes[0].plot([], [], "o-", color="gray", label="to all pairs")
    axes[0].plot([], [], "x:", color="gray", label="to the truth")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(out, dpi=90)


if __name__ == "__main__":
    main()
