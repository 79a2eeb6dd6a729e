"""How well fewer comparisons recover the full round robin's ranking, at what share of the calls.

Prints a Markdown table. Kendall's tau-b of the win rates from k opponents an image, and of a
tournament's ranks, which costs two comparisons less than k = 4, against the win rates of all pairs
by the same judge, and against the truth:
  - simulated: hidden qualities, a judge who is right with the probability in the first column,
    independently in each pair;
  - shapes: groups that assets/tiny-flux samples, compared in both orders by the verifier, whose
    ties count; its truth is the full round robin.

    python -m measure.sparse              # minutes on 2 cores; not a test, since it only reports
"""

import argparse

import numpy as np
from scipy.stats import kendalltau

from measure.step import Step
from rewards import PairwiseReward, pair_schedule, win_rates
from shapes.prompts import heldout_prompts
from shapes.verifier import ShapesMLLM
from training.config import Config
from training.data import Batch
from unigenbench.tables import markdown_table

GROUP_SIZES, OPPONENTS, ACCURACIES = (8, 16, 24), (2, 3, 4), (0.7, 0.8, 0.9, 0.95)


def tau(a, b) -> float:
    """Kendall's tau-b; nan where one of the two ranks nothing."""
    return kendalltau(np.asarray(a), np.asarray(b)).statistic


def sparse_rates(points: dict, size: int, opponents: int, draw: int):
    """Rates (G,) from the pairs of one sparse schedule, out of the points of all pairs.

    Images take their seats of the schedule at random, as samples of one prompt do.
    """
    seats = np.random.default_rng(draw).permutation(size)
    seated = [(int(seats[i]), int(seats[j])) for i, j in pair_schedule(size, opponents)]
    pairs = [tuple(sorted(pair)) for pair in seated]
    return win_rates(pairs, [points[pair] for pair in pairs], size)


def tournament(points: dict, size: int, draw: int) -> np.ndarray:
    """Ranks (G,), higher is better, of a seeded single-elimination tournament, as in ArenaRL (arXiv
    2601.06487): one image meets all others, whose points against it are their seeds; then the best
    meets the worst, and whoever wins goes on, of a tie the better seed. 2 (G - 1) comparisons.

    That one is drawn here (there: a greedy sample). Who leaves in the same round is told apart by
    the seed.
    """
    meet = lambda i, j: points[i, j] if i < j else 1 - points[j, i]
    anchor, *others = np.random.default_rng(draw).permutation(size).tolist()
    seeds = {i: meet(i, anchor) for i in others}
    seeds[anchor] = 1 - sum(seeds.values()) / len(others)
    ranks = np.array([seeds[i] / 2 for i in range(size)])
    left = [anchor, *others]
    while len(left) > 1:
        left.sort(key=seeds.get, reverse=True)
        half = len(left) // 2
        met = zip(left[:half], reversed(left[-half:]))
        left = [i if meet(i, j) >= 0.5 else j for i, j in met] + left[half:-half]  # it has no match
        ranks[left] += 1
    return ranks


def ranked(points: dict, size: int, draw: int) -> list:
    """What each k makes of the points of all pairs, and the tournament."""
    circles = [sparse_rates(points, size, k, draw) for k in OPPONENTS]
    return [*circles, tournament(points, size, draw)]


def simulated(size: int, accuracy: float, trials: int) -> list[tuple[float, float]]:
    """For each schedule, and all pairs, tau to the full round robin and to the truth: means."""
    rng, found = np.random.default_rng(size), []
    for trial in range(trials):
        quality, points = rng.permutation(size), {}
        for i, j in pair_schedule(size):
            points[i, j] = float((quality[i] > quality[j]) == (rng.random() < accuracy))
        full = win_rates(list(points), list(points.values()), size)
        rates = [*ranked(points, size, trial), full]
        found.append([(tau(r, full), tau(r, quality)) for r in rates])
    return np.nanmean(found, 0).tolist()


def sampled_points(step: Step, size: int, prompts: list[str]) -> list[dict]:
    """For each prompt, the points that the verifier gives in every pair of a sampled group."""
    count = size * len(prompts)
    batch = Batch(prompts, list(range(count)), list(range(count, 2 * count)), [])
    groups = step.sample(step.cfg, batch, 64).images
    rewards = PairwiseReward(ShapesMLLM())(prompts, groups)
    tables = [rewards.points(group) for group in range(len(groups))]
    return [{(i, j): float(table[i][j]) for i, j in pair_schedule(size)} for table in tables]


def on_shapes(size: int, groups: list[dict], draws: int) -> list[float]:
    """For each schedule, tau to the full round robin: means over groups and draws."""
    fulls = [win_rates(list(points), list(points.values()), size) for points in groups]
    differ = [(points, full) for points, full in zip(groups, fulls) if full.std() > 0]
    found = [[tau(r, f) for r in ranked(p, size, d)] for p, f in differ for d in range(draws)]
    return np.nanmean(found, 0).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trials", type=int, default=200, help="simulated groups")
    parser.add_argument("--prompts", type=int, default=8, help="sampled groups")
    parser.add_argument("--draws", type=int, default=20, help="schedules for each sampled group")
    args = parser.parse_args()
    step, rows = Step(Config()), []
    prompts = [prompt.text for prompt in heldout_prompts()[: args.prompts]]
    for size in GROUP_SIZES:
        shares = [f"{k / (size - 1):.0%}" for k in OPPONENTS] + [f"{4 / size:.0%}"]
        rows.append(["share of the calls", str(size), *shares, "100%"])
        for accuracy in ACCURACIES:
            pairs = simulated(size, accuracy, args.trials)
            cells = [f"{full:.2f} / {true:.2f}" for full, true in pairs]
            rows.append([f"{accuracy:.0%} right", str(size), *cells])
        groups = sampled_points(step, size, prompts)
        ties = np.mean([v == 0.5 for points in groups for v in points.values()])
        print(f"shapes, G = {size}: {ties:.0%} of the comparisons are ties", flush=True)
        cells = [f"{value:.2f}" for value in on_shapes(size, groups, args.draws)]
        rows.append(["shapes verifier", str(size), *cells, "1.00"])
    heads = ["judge", "G", *(f"k = {k}" for k in OPPONENTS), "tournament", "all"]
    print(markdown_table(heads, rows))
    print("Kendall's tau against the full round robin / against the truth.")


if __name__ == "__main__":
    main()
