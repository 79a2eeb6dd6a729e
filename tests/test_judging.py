"""What a person can read of a judge, and that it stays bounded."""

import json

import pytest
from fakes import FakeMLLM
from PIL import Image
from real_runs import ALONE, together

from judges.mllm import Answer
from judges.scorers import MLLMScorer
from rewards import PairwiseReward, PointwiseReward
from training import judging

PAIR = [Image.new("RGB", (16, 8), color) for color in ("red", "blue")]
FIRST = "<answer>Image 1 is better</answer>"
ASKED = "Which for {prompt}?"
RATED = "\n".join(f"{kind} Score (1-5): 3" for kind in ("Alignment", "Coherence", "Style"))


def judge_of(*answers) -> FakeMLLM:
    """Says these things, one after the other; a probability, where it is asked for one."""
    said = iter(answers)
    judge = FakeMLLM(lambda query: next(said))
    judge.first_probability = lambda queries: [next(said) for _ in queries]
    return judge


def compared(question, *said, **settings):
    answers = said or [Answer(FIRST)] * 2
    return PairwiseReward(judge_of(*answers), template=question, **settings)(["p"], [PAIR])


def lines(folder, name="verdicts.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_each_answer_stands_there_with_its_question_and_how_it_was_read(tmp_path):
    """What was lost and asked again too; of ratings and of probabilities as of verdicts."""
    record = judging.Record(tmp_path)
    one, unsure, down = Answer(FIRST, None, "m"), Answer("Nice, \u718a.\n"), Answer(error="down")
    record.write(compared(ASKED, one, unsure, down).comparisons)
    record.write(compared(ASKED, 0.25, None, 0.75, soft=True).comparisons)
    rated = PointwiseReward(MLLMScorer(judge_of(Answer(RATED), down)))
    record.write(rated(["p"], [PAIR]).comparisons)
    record.write(())  # of a scorer
    found = lines(tmp_path)
    read = ["first", "unparsable", "failed", 0.25, None, 0.75, 3.0, "failed"]
    assert [line["read_as"] for line in found] == read
    assert found[0]["text"] == FIRST and found[0]["model"] == "m"
    assert found[2]["error"] == "down" and found[2]["text"] is None
    assert found[0]["pictures"] == "pair_00.png"  # of the first question of the call
    assert (tmp_path / "pair_00.png").exists() and not found[1]["pictures"]


def test_it_stays_bounded_and_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(judging, "SIZE", 5000)
    monkeypatch.setattr(judging, "PICTURES", 3)
    for _ in range(2):  # a run, and one that goes on
        record = judging.Record(tmp_path)
        for n in range(50):
            record.write(compared(f"{n} {50 * 'x'} {{prompt}}").comparisons)
    sizes = [file.stat().st_size for file in tmp_path.glob("*.jsonl")]
    assert len(sizes) == 2 and sum(sizes) < 2 * 5500
    assert len(list(tmp_path.glob("*.png"))) == 3
    kept = [name for name in ("verdicts.old.jsonl", "verdicts.jsonl") if (tmp_path / name).exists()]
    newest = [line for name in kept for line in lines(tmp_path, name)][-20:]
    asked = [int(line["question"].split()[0]) for line in newest]
    assert asked == [n for n in range(40, 50) for _ in range(2)]


def collected(judging_of_run, *models):
    """A step in which these models answer, one a pair of questions."""
    answers = [Answer(FIRST, None, model) for model in models for _ in range(2)]
    judge = judge_of(*answers)
    reward = PairwiseReward(judge, template=ASKED)
    judging_of_run.rewards = {"pairwise": reward}
    judging_of_run.submit(["p"] * len(models), [PAIR] * len(models))
    return judging_of_run.collect()


def test_another_model_behind_the_same_name_ends_the_run_until_it_is_accepted():
    run = judging.Judging({}, ALONE, 0.05)
    for model in ("gemini-2025-01", None, "gemini-2025-01"):  # a server may not say
        collected(run, model)
    with pytest.raises(judging.JudgeError, match="2 models: gemini-2025-01, gemini-3;.*--accept"):
        collected(run, "gemini-2025-01", "gemini-3")
    with pytest.raises(judging.JudgeError, match="2 models: a, b;"):  # in the first step already
        collected(judging.Judging({}, ALONE, 0.05), "a", "b")

    again = judging.Judging({}, ALONE, 0.05, accepted="gemini-3")
    again.known = {"gemini-2025-01"}  # as a resumed run's log has it
    for model in ("gemini-3", "gemini-2025-01", "gemini-3"):
        collected(again, model)
    assert again.known == {"gemini-2025-01", "gemini-3"}
    with pytest.raises(judging.JudgeError, match="2 models: gemini-2025-01, gemini-4;"):
        collected(again, "gemini-4")
    several = judging.Judging({}, ALONE, 0.05, accepted="b, c")
    for models in ("ab", "ca"):
        collected(several, *models)


def test_all_ranks_end_where_one_is_answered_by_another():
    def of_rank(procs):
        run = judging.Judging({}, procs, 0.05)
        collected(run, "a")
        with pytest.raises(judging.JudgeError, match="2 models: a, b;"):
            collected(run, "b" if procs.rank else "a")

    together(of_rank)
