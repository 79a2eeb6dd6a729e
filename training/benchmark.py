"""UniGenBench during a run: one image of each of its prompts, judged and scored as bench.py does.

bench = Benchmark(cfg, procs, heldout)     # --bench_every, --bench_prompts, --bench_judge
row |= bench.measure(step, transformer)    # bench_overall, bench_low, bench_high, bench/Style, ...

runs/NAME/bench/ has of each step what `bench.py generate` and `judge` would leave: the images in a
folder, results, their journal and settings. So `bench.py score` and `report` read them, and `judge
--official` can ask about the same images again.
"""

import logging
from pathlib import Path

from common.bootstrap import interval_text
from common.files import journal_of, write_atomic
from training.config import Config, parse_judge
from training.distributed import Processes
from training.heldout import Heldout
from unigenbench.asking import judge_images, pace_of
from unigenbench.generate import seeds_of
from unigenbench.images import Layout, png_of
from unigenbench.questions import question_record
from unigenbench.results import Result, write_results, write_settings
from unigenbench.scores import OVERALL, Scores, accuracies, count_by_prompt, scores_of
from unigenbench.testpoints import Prompt

log = logging.getLogger("train")
LAYOUT = Layout(per_prompt=1)


class Benchmark:
    """The same prompts and noise at each measurement, and a judge that nothing is trained on."""

    def __init__(
        self, cfg: Config, procs: Processes, heldout: Heldout, prompts: list[Prompt], judge
    ):
        """heldout: draws the images, as it draws its own; judge: on rank 0, an MLLM."""
        self.procs, self.heldout, self.prompts, self.judge = procs, heldout, prompts, judge
        self.folder, self.every = Path(cfg.out) / "bench", cfg.bench_every
        kind = parse_judge(cfg.bench_judge, "bench_judge")[0]
        self.pace = pace_of(kind, cfg.concurrency, cfg.patience, official=False)

    @property
    def texts(self) -> list[str]:
        return [p.text for p in self.prompts]

    def measure(self, step: int, transformer) -> dict[str, float | None]:
        """For the log: the overall score with its 95 % interval over prompts, each primary
        dimension's, and the share of testpoints that was judged. None where nothing was."""
        images = self.heldout.sample(self.texts, seeds_of(1) * len(self.prompts), transformer)
        judged = self.procs.stop.unless_asked, self.judged, step, images
        return metrics_of(self.procs.broadcast(*judged))

    def judged(self, step: int, images: list) -> Scores | None:
        """None where the judge seems dead, which ends no run: what it answered is kept."""
        out = self.folder / f"step_{step:05d}.csv"
        folder = out.with_suffix("")
        folder.mkdir(parents=True, exist_ok=True)
        for prompt, image in zip(self.prompts, images, strict=True):
            (name,) = LAYOUT.names(prompt.index)
            write_atomic(folder / name, png_of(image, prompt.text))
        try:
            how = dict(self.pace, layout=LAYOUT)
            results = judge_images(self.judge, self.prompts, folder, journal_of(out), **how)
        except ValueError as error:
            log.warning("step %d, --bench_judge: %s; the run goes on without a score", step, error)
            return None
        asked = question_record(self.prompts) | {"images_per_prompt": LAYOUT.per_prompt}
        write_results(results, out)
        write_settings(out, self.judge.name, asked, folder, results)
        return scored(results)


def scored(results: list[Result]) -> Scores:
    correct, judged, expected = count_by_prompt(results).sum(1)
    overall, strict = (float(accuracies(correct, of)[OVERALL]) for of in (judged, expected))
    return scores_of(results, overall, strict)


def metrics_of(scores: Scores | None) -> dict[str, float | None]:
    """The log's keys, the same ones whatever was judged."""
    if scores is None or not scores.coverage.judged:
        return {"bench_overall": None, "bench_judged": 0.0}
    low, high = scores.interval or (None, None)
    primary = {f"bench/{name}": tally.accuracy for name, tally in scores.primary.items()}
    share = scores.coverage.judged / scores.coverage.expected
    overall = {"bench_overall": scores.overall, "bench_low": low, "bench_high": high}
    return overall | {"bench_judged": share} | primary


def in_words(metrics: list[dict], prompts: int) -> str:
    """The score of the base and of the last step, for the last sentence of a run."""
    before, now = (row.get("bench_overall") for row in (metrics[0], metrics[-1]))
    if before is None or now is None:
        return "; UniGenBench not measured: its judge could not be read"
    low, high = metrics[-1]["bench_low"], metrics[-1]["bench_high"]
    bounds = interval_text(None if low is None else (low, high), "{:.3f}".format)
    return (
        f"; UniGenBench {before:.3f} -> {now:.3f} ({bounds}) on {prompts} prompts, one image each"
    )
