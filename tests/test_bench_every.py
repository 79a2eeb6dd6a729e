"""UniGenBench while training: the log's scores are those of bench.py on files of the same run."""

import re
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT
from fakes import FakeMLLM
from PIL import Image
from real_runs import log_of, stepped, whole_run

import bench
from judges.mllm import Answer
from shapes.server import served
from shapes.verifier import ShapesMLLM
from training.benchmark import metrics_of, scored
from training.checks import check_config
from training.config import Config
from training.start import bench_prompts_of, call_budget
from unigenbench.generate import generate
from unigenbench.results import Result, read_results, settings_of

MODEL = str(ROOT / "assets" / "tiny-flux")
USUAL = dict(model=MODEL, prompts_per_step=2, group_size=3, num_steps=3, heldout=1, steps=3)
USUAL |= dict(eval_every=2, checkpoint_every=2)
BENCH = dict(bench_every=2, bench_prompts="shapes:4", bench_judge="shapes")


def benched(row: dict) -> dict:
    return {key: value for key, value in row.items() if key.startswith("bench")}


def test_the_logs_scores_are_those_of_bench_and_change_nothing_else(tmp_path, capsys):
    whole, cut, plain = (tmp_path / name for name in ("whole", "cut", "plain"))
    cfg = Config(**USUAL, **BENCH, out=str(whole))
    check_config(cfg, 1)
    whole_run(cfg)
    rows, said = log_of(whole), capsys.readouterr().out
    assert [row["step"] for row in rows if benched(row)] == [0, 2, 3]  # and after the last
    for row in filter(benched, rows):
        csv = whole / "bench" / f"step_{row['step']:05}.csv"
        scores, settings = bench.score(read_results(csv)), settings_of(csv)
        found = dict(bench_overall=scores.overall, bench_judged=1.0)
        found |= dict(zip(("bench_low", "bench_high"), scores.interval))
        found |= {f"bench/{name}": tally.accuracy for name, tally in scores.primary.items()}
        assert benched(row) == pytest.approx(found) and len(scores.primary) > 1
        assert settings["images_per_prompt"] == 1 and settings["judge"] == ShapesMLLM().name
    first, last = rows[0]["bench_overall"], rows[-1]["bench_overall"]
    assert f"; UniGenBench {first:.3f} -> {last:.3f} (95 % interval " in said
    assert "on 4 prompts" in said

    stepped(replace(cfg, out=str(cut)), 2).held.close()
    base = (cut / "bench" / "step_00000.csv").stat()
    whole_run(replace(cfg, out=str(cut), resume=True))
    assert log_of(cut) == rows and (cut / "bench" / "step_00000.csv").stat() == base  # once
    assert len([*(cut / "bench").glob("step_0000[0-3].journal.jsonl")]) == 3
    whole_run(Config(**USUAL, out=str(plain)))
    without = [{k: v for k, v in row.items() if k not in benched(row)} for row in rows]
    assert without == log_of(plain)

    prompts, drawn = bench_prompts_of(cfg), tmp_path / "drawn"
    generate(prompts, drawn, MODEL, steps=3, guidance=cfg.guidance, images=1)
    for path in (whole / "bench" / "step_00000").iterdir():  # of the base, as `generate` draws it
        one, two = (np.asarray(Image.open(p), int) for p in (path, drawn / path.name))
        assert abs(one - two).max() <= 1
    assert (whole / "bench" / "step_00003" / path.name).read_bytes() != path.read_bytes()


@pytest.mark.parametrize("count, said", [(40, "goes on without a score"), (4, "were not judged")])
def test_a_judge_that_dies_ends_no_run_and_makes_no_zeros(
    count, said, tmp_path, caplog, capsys, monkeypatch
):
    """Whether it counts as dead or loses all its answers. Those of the base it had given."""
    monkeypatch.setattr("judges.openai_client.retry_delay", lambda *_: 0.0)
    answered, verifier = [], ShapesMLLM()

    def answer(query):
        answered.append(query)
        alive = len(answered) <= 2 + count  # the two circles of its trial, and the base's images
        return verifier.ask([query])[0] if alive else Answer(error="gone")

    with served(FakeMLLM(answer, verifier.name)) as server:
        more = BENCH | dict(bench_judge=f"openai={server.url}", bench_prompts=f"shapes:{count}")
        whole_run(Config(**USUAL | more | dict(steps=1, out=str(tmp_path / "r"))))
    rows = log_of(tmp_path / "r")
    assert rows[0]["bench_overall"] is not None and rows[0]["bench_judged"] == 1
    assert benched(rows[1]) == {"bench_overall": None, "bench_judged": 0.0}
    assert said in caplog.text and "UniGenBench not measured" in capsys.readouterr().out


def test_what_is_judged_of_the_testpoints_stands_beside_the_score():
    results = [Result(n, f"p{n}", ["Style"], "", scores) for n, scores in enumerate(([1], None))]
    row = metrics_of(scored(results))
    assert (row["bench_overall"], row["bench_judged"]) == (1.0, 0.5)


def test_a_share_of_the_prompts_is_spread_over_the_set(tmp_path):
    some = bench_prompts_of(Config(**BENCH | dict(bench_prompts="shapes:11")))
    every = bench_prompts_of(Config(**BENCH | dict(bench_prompts="shapes")))
    assert len(some) == 11 and len({p.subtheme for p in some}) > 5
    assert [every[p.index] for p in some] == some and some[-1].index > 0.9 * len(every)
    budget = call_budget(Config(**BENCH, steps=5), 7, 11)
    assert budget.endswith("44 more to --bench_judge")  # the base, steps 2, 4 and the last


@pytest.mark.parametrize(
    "settings, named",
    [
        (dict(bench_prompts="own"), ("the verifier", "--bench_prompts 'own'", "--bench_judge op")),
        (dict(bench_prompts="shapes:0"), ("--bench_prompts shapes:0", "1 to ")),
        (dict(bench_prompts="shapes:9999"), ("--bench_prompts shapes:9999", "1 to ")),
        (dict(bench_prompts="none.csv:3"), ("no prompt file 'none.csv'",)),
        (dict(bench_prompts="none.csv:3a"), ("no prompt file 'none.csv:3a'",)),
    ],
)
def test_prompts_that_cannot_be_judged_are_refused(settings, named):
    with pytest.raises(ValueError, match=".*".join(map(re.escape, named))):
        bench_prompts_of(Config(**BENCH | settings))
