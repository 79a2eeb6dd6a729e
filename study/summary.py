"""What the runs of a study say of the truth, each number with how sure it is.

Two things could have been others: the held-out prompts, and the seeds of training. Each has an
interval of its own. Over prompts: bootstrap, the seeds being what they are. Over seeds: Student's
t, the prompts being what they are; with three seeds it is wide, as it must be. Arms are compared
prompt by prompt and seed by seed, since they share prompts and noise. Nothing is called better
unless both intervals lie on one side of zero.

    rows = summarize(lines, prompts, arms, reference="ranks with ties")
    write_rows(rows, lines.head, folder / "five_ways_summary.csv")
"""

import math
from pathlib import Path

import numpy as np
from scipy import stats

from common.bootstrap import mean_interval
from common.files import write_atomic
from figures.pictures import series
from study.runs import Table, write_csv
from unigenbench.tables import markdown_table

TRUTH = "heldout_accuracy"  # of the log
# Measured at the last step, over seeds alone: key of the log -> heading
BESIDE = {
    "vividness": "vividness",
    "heldout_render_error": "render error",
    "win_rate_vs_base": "win rate",
}
# Of the rewards that a step learns from: key of the log -> heading
SPREAD = {"reward_std": "deviation", "tie_rate": "ties", "frac_floor": "groups below the floor"}
AVERAGED = 12  # steps, at the start and at the end


def over_seeds(values) -> tuple[float | None, float | None]:
    """95 % interval of the mean of a few seeds' values, by Student's t; none if all are equal."""
    values, count = np.asarray(values, float), len(values)
    if not np.ptp(values):  # one seed too; no width would look like certainty
        return None, None
    half = stats.t.ppf(0.975, count - 1) * values.std(ddof=1) / math.sqrt(count)
    return float(values.mean() - half), float(values.mean() + half)


def counts(prompts: Table, arm: str, seeds: list[int], key: str) -> np.ndarray:
    """(seeds, prompts): a column of the prompts' table."""
    return np.array([[row[key] for row in prompts.run(arm, seed)] for seed in seeds])


def shares(held: np.ndarray, testpoints: np.ndarray) -> dict:
    """A share of testpoints, or a difference of two, from (seeds, prompts) of testpoints held."""
    of_seeds = held.sum(1) / testpoints.sum()
    low, high = mean_interval(held.mean(0), testpoints) or (None, None)
    return row_of(of_seeds, low, high)


def row_of(of_seeds, prompts_low=None, prompts_high=None) -> dict:
    low, high = over_seeds(of_seeds)
    return {
        "seeds": len(of_seeds),
        "mean": float(np.mean(of_seeds)),
        "prompts_low": prompts_low,
        "prompts_high": prompts_high,
        "seeds_low": low,
        "seeds_high": high,
    }


def summarize(lines: Table, prompts: Table, arms, reference: str, beside=BESIDE) -> list[dict]:
    """For each arm the truth after the last step, less that of the base, less that of `reference`
    over the seeds that both have; how far it is below its best; and what `beside` names."""
    rows = []
    for arm in arms:
        seeds = lines.seeds(arm)
        held, base = (counts(prompts, arm, seeds, key) for key in ("last", "base"))
        testpoints = counts(prompts, arm, seeds, "testpoints")[0]
        found = {
            "truth": shares(held, testpoints),
            "less the base": shares(held - base, testpoints),
        }
        if arm != reference:
            both = [seed for seed in seeds if seed in lines.seeds(reference)]
            one, other = (counts(prompts, name, both, "last") for name in (arm, reference))
            found[f"less {reference}"] = shares(one - other, testpoints)
        runs = [lines.run(arm, seed) for seed in seeds]
        seen = {key: [series(run, key)[1] for run in runs] for key in (TRUTH, *beside)}
        found["below its best"] = row_of([max(values) - values[-1] for values in seen[TRUTH]])
        for key, name in beside.items():
            found[name] = row_of([values[-1] for values in seen[key]])
        rows += [{"arm": arm, "quantity": quantity} | row for quantity, row in found.items()]
    return rows


def spreads(lines: Table, arms: dict[str, float]) -> list[dict]:
    """For each arm, over its first steps and over its last: the mean deviation of rewards within a
    group, as a share of their scale; the share of pairs that tie, and of groups that deviate by
    less than the floor, where these change at all. arms: the scale of each one's rewards."""
    rows = []
    for arm, scale in arms.items():
        runs = [lines.run(arm, seed)[1:] for seed in lines.seeds(arm)]  # the base has no rewards
        for key, name in SPREAD.items():
            unit = scale if key == "reward_std" else 1.0
            if key != "reward_std" and len({row[key] for run in runs for row in run}) == 1:
                continue
            for place, part in (("first", slice(AVERAGED)), ("last", slice(-AVERAGED, None))):
                means = [np.mean([row[key] for row in run[part]]) / unit for run in runs]
                rows.append({"arm": arm, "quantity": f"{name}, {place} steps"} | row_of(means))
    return rows


def markdown(rows: list[dict]) -> str:
    """A row an arm, a column a quantity."""
    names, arms = (list(dict.fromkeys(row[key] for row in rows)) for key in ("quantity", "arm"))
    cells = {(row["arm"], row["quantity"]): cell(row) for row in rows}
    return markdown_table(
        ["", *names], [[a] + [cells.get((a, n), "") for n in names] for a in arms]
    )


def cell(row: dict) -> str:
    """Mean, and below it its intervals over prompts (p) and over seeds (s)."""
    sign = "+" if row["quantity"].startswith("less") else ""
    parts = [f"{row['mean']:{sign}.3f}"]
    for letter, name in (("p", "prompts"), ("s", "seeds")):
        low, high = row[f"{name}_low"], row[f"{name}_high"]
        if low is not None:
            parts.append(f"{letter} {low:{sign}.3f} .. {high:{sign}.3f}")
    return "<br>".join(parts)


def write_rows(rows: list[dict], head: str, path: Path) -> None:
    """path: of the CSV; the table in Markdown lies beside it."""
    write_csv(path, rows, head)
    write_atomic(path.with_suffix(".md"), markdown(rows).encode())
