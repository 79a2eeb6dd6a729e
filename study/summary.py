"""What the runs of a study say of held-out accuracy, each number with how sure it is.

Two things could have been others: the held-out prompts, and the seeds of training. Each has an
interval of its own. Over prompts: bootstrap, the seeds being what they are. Over seeds: Student's
t, the prompts being what they are; with three seeds it is wide, as it must be. Arms are compared
prompt by prompt and seed by seed, since they share prompts and noise. Nothing is called better
unless both intervals lie on one side of zero.

    rows = summarize(study, arms, reference="ranks with ties")
    write_tables(study, {"_summary": rows})
"""

import math
from pathlib import Path

import numpy as np
from scipy import stats

from common.bootstrap import mean_interval
from common.files import write_atomic
from figures.pictures import series
from study.runs import Study, Table, write_csv
from unigenbench.tables import markdown_table

ACCURACY = "heldout_accuracy"  # of the log
# Measured at the last step, over seeds alone: key of the log -> heading
BESIDE = {"heldout_render_error": "render error", "win_rate_vs_base": "win rate"}


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
    seeds_low, seeds_high = over_seeds(of_seeds)
    row = dict(seeds=len(of_seeds), mean=float(np.mean(of_seeds)))
    row |= dict(prompts_low=prompts_low, prompts_high=prompts_high)
    return row | dict(seeds_low=seeds_low, seeds_high=seeds_high)


def less(study: Study, arm: str, other: str) -> dict:
    """Last accuracy of an arm less that of another, over the seeds that both have."""
    both = [seed for seed in study.lines.seeds(arm) if seed in study.lines.seeds(other)]
    one, two = (counts(study.prompts, name, both, "last") for name in (arm, other))
    return shares(one - two, counts(study.prompts, arm, both, "testpoints")[0])


def summarize(study: Study, arms, reference: str | None = None, beside=BESIDE) -> list[dict]:
    """The base, which is the same in all runs; and of each arm the accuracy after the last step,
    less that of the base, less that of `reference`; how far it is below its best, where there are
    evaluations between; and what `beside` names."""
    rows = []
    for arm in filter(study.lines.seeds, arms):
        seeds, runs = study.lines.seeds(arm), study.lines.runs(arm)
        held, base = (counts(study.prompts, arm, seeds, key) for key in ("last", "base"))
        testpoints = counts(study.prompts, arm, seeds, "testpoints")[0]
        if not rows:
            found = {"accuracy": shares(base[:1], testpoints)}
            found |= {name: row_of([runs[0][0][key]]) for key, name in beside.items()}
            rows += [{"arm": "base", "quantity": name} | row for name, row in found.items()]
        seen = {key: [series(run, key)[1] for run in runs] for key in (ACCURACY, *beside)}
        found = {"accuracy": shares(held, testpoints)}
        found |= {name: row_of([v[-1] for v in seen[key]]) for key, name in beside.items()}
        found["less the base"] = shares(held - base, testpoints)
        if reference and arm != reference:
            found[f"less {reference}"] = less(study, arm, reference)
        if len(seen[ACCURACY][0]) > 2:
            found["below its best"] = row_of([max(v) - v[-1] for v in seen[ACCURACY]])
        rows += [{"arm": arm, "quantity": name} | row for name, row in found.items()]
    return rows


def markdown(rows: list[dict]) -> str:
    """Rows with a quantity: a row per arm, a column per quantity. Others as they are."""
    if "quantity" not in rows[0]:
        number = lambda v: "" if v is None else f"{v:.3f}" if isinstance(v, float) else str(v)
        heads = ["", *(key.replace("_", " ") for key in list(rows[0])[1:])]
        return markdown_table(heads, [list(map(number, row.values())) for row in rows])
    names, arms = (list(dict.fromkeys(row[key] for row in rows)) for key in ("quantity", "arm"))
    cells = {(row["arm"], row["quantity"]): cell(row) for row in rows}
    lines = [[arm] + [cells.get((arm, name), "") for name in names] for arm in arms]
    return markdown_table(["", *names], lines)


def cell(row: dict) -> str:
    """Mean, and below it its intervals over prompts (p) and over seeds (s)."""
    sign = "+" if row["quantity"].startswith(("less", "gain")) else ""
    parts = [f"{row['mean']:{sign}.3f}"]
    for letter, name in (("p", "prompts"), ("s", "seeds")):
        low, high = row[f"{name}_low"], row[f"{name}_high"]
        if low is not None:
            parts.append(f"{letter} {low:{sign}.3f} .. {high:{sign}.3f}")
    return "<br>".join(parts)


def write_rows(rows: list[dict], head: str, path: Path) -> None:
    """path: without its ending; writes the CSV, and beside it the table in Markdown."""
    write_csv(path.with_name(f"{path.name}.csv"), rows, head)
    write_atomic(path.with_name(f"{path.name}.md"), markdown(rows).encode())


def write_tables(study: Study, tables: dict[str, list[dict]]) -> None:
    """tables: rows by the end of the file's name."""
    for end, rows in tables.items():
        write_rows(rows, study.lines.head, study.file(end))
