"""Two gloo processes against one: the same updated weights, checkpoints that move between them."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline
from support.learner import build
from torch.profiler import ProfilerActivity, profile

import train
from shapes.server import JudgeServer
from shapes.verifier import ShapesMLLM
from support import processes
from support.footprint import Alive

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = {
    "ddp": dict(lora_rank=2),
    "fsdp": dict(shard=True, gradient_checkpointing=True),
    "fsdp_bf16": dict(shard=True, dtype="bfloat16"),
}
PROMPTS = ["a large red circle", "two small blue squares"]


def config(mode):
    return train.Config(
        model=str(ROOT / "assets" / "tiny-flux"),
        prompts_per_step=2,
        group_size=2,
        micro_batch=1,
        num_steps=3,
        ema=0.5,
        **SETTINGS[mode],
    )


def learn(cfg, procs, watched=False):
    """One rollout, two updates: (learner, weights after descent, after AdamW, what was sent).

    watched: only then is it told what was sent; a profiler takes seconds.
    """
    learner = build(cfg, procs, None)
    mine = list(range(procs.rank, len(PROMPTS), procs.world))
    rollout = train.roll_out(
        learner.pipe, cfg, [PROMPTS[p] for p in mine], [[4 * p, 4 * p + 2] for p in mine]
    )
    floors = train.check_on_policy(learner.pipe, cfg, rollout)
    assert max(floors) <= 0.1 * cfg.clip_range, floors
    # Descent itself, since AdamW's first step turns a gradient's rounding near 0 into its sign.
    descent = torch.optim.SGD(train.flux.trainable(learner.pipe), lr=1.0)
    advantages = torch.tensor([[1.0, -0.5], [-2.0, 1.5]])[mine].flatten()
    weights = []
    for optimizer in (descent, learner.optimizer):
        last = watched and optimizer is learner.optimizer
        record = profile(activities=[ProfilerActivity.CPU]) if last else None
        with record or contextlib.nullcontext():
            train.update(
                learner.pipe,
                cfg,
                learner.policy,
                optimizer,
                rollout,
                advantages,
                learner.frozen,
                (0, 1),
            )
        learner.average.update()
        weights.append(trained_weights(learner))
    return learner, *weights, sent(record) if watched else (0, 0)


def trained_weights(learner):
    names = {n for n, p in learner.pipe.transformer.named_parameters() if p.requires_grad}
    whole = processes.full_weights(learner.pipe.transformer)
    return {n: w.clone() for n, w in whole.items() if n in names}


def sent(record: profile) -> tuple[int, int]:
    """How often gradients went to other ranks: (all-reduces, reduce-scatters)."""
    names = [event.name for event in record.events() if event.name.startswith("c10d::")]
    return (
        sum("allreduce" in name for name in names),
        sum("reduce_scatter" in name for name in names),
    )


def state_of(learner):
    return learner.pipe.transformer, learner.optimizer, learner.average


def as_one_of_two(folder: Path) -> None:
    """What each of the two processes does, under torchrun; rank 0 writes what the test compares."""
    procs = processes.start_processes("cpu")
    for mode in SETTINGS:
        learner, plain, adam, reductions = learn(config(mode), procs, watched=True)
        (folder / mode).mkdir(exist_ok=True)
        processes.save_checkpoint(folder / mode, procs, *state_of(learner), step=7)
        with torch.no_grad():
            for parameter in train.flux.trainable(learner.pipe):
                parameter.zero_()
        step = processes.load_checkpoint(folder / mode, *state_of(learner))
        again = trained_weights(learner)
        with learner.average.in_place():
            average = trained_weights(learner)
        whole = processes.full_weights(learner.pipe.transformer)
        if procs.first:
            assert step == 7 and all(torch.equal(adam[n], again[n]) for n in adam)
            torch.save((plain, adam, average, reductions), folder / f"{mode}.pt")
            if mode == "fsdp":
                train.flux.save(learner.pipe, folder / "final", whole)
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder that two processes left."""
    folder = tmp_path_factory.mktemp("two")
    env = os.environ | {
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29541",
    }  # what torchrun sets, without its third process
    command = [sys.executable, "-m", "tests.test_processes", str(folder)]
    ranks = [
        subprocess.Popen(
            command, stderr=subprocess.PIPE, env=env | {"RANK": str(rank)}, cwd=ROOT, text=True
        )
        for rank in range(2)
    ]
    errors = [rank.communicate()[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], errors[0][-2000:] + errors[1][-2000:]
    return folder


def test_offloaded_blocks_learn_the_same_and_are_fetched_one_at_a_time():
    torch.set_num_threads(1)
    cfg = dataclasses.replace(config("ddp"), gradient_checkpointing=True)
    alone, weights, peaks = processes.Processes(0, 1, torch.device("cpu")), [], []
    for offload in (False, True):
        learner, _, adam, _ = learn(dataclasses.replace(cfg, offload=offload), alone)
        weights.append(flat(adam))
        transformer = learner.pipe.transformer
        if not offload:
            frozen = [
                sum(p.nbytes for p in block.parameters() if not p.requires_grad)
                for block in processes.blocks(transformer)
            ]
        text, noise = train.flux.encode(learner.pipe, PROMPTS[:1]), torch.randn(1, 16, 32)
        with Alive() as alive:
            velocity = train.flux.velocity_fn(learner.pipe, text, 32, 32)
            velocity(noise, torch.ones(1)).sum().backward()
        peaks.append(alive.peak)
        weight = transformer.transformer_blocks[0].ff.net[2].base_layer.weight
        assert (weight.numel() == 0) == offload
    assert torch.equal(*weights)
    assert 0.8 * max(frozen) < peaks[1] - peaks[0] <= 1.1 * max(frozen) < sum(frozen) / 2


def flat(weights):
    return torch.cat([weights[name].flatten() for name in sorted(weights)])


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_two_processes_learn_what_one_learns_and_one_resumes_them(mode, two):
    torch.set_num_threads(1)
    cfg = dataclasses.replace(config(mode), shard=False)
    procs = processes.Processes(0, 1, torch.device("cpu"))
    before = flat(trained_weights(build(cfg, procs, None)))
    learner, plain, _, _ = learn(cfg, procs)
    theirs, adam, average, _ = torch.load(two / f"{mode}.pt", weights_only=True)
    change = (flat(plain) - before).norm()
    assert change > 1e-3
    assert (flat(plain) - flat(theirs)).norm() <= 1e-5 * change + 1e-7 * before.norm()

    moment = torch.cat([s["exp_avg"].flatten() for s in learner.optimizer.state.values()])
    with torch.no_grad():
        for parameter in train.flux.trainable(learner.pipe):
            parameter.zero_()
        for state in learner.optimizer.state.values():
            state["exp_avg"].zero_()
    assert processes.load_checkpoint(two / mode, *state_of(learner)) == 7
    assert torch.equal(flat(trained_weights(learner)), flat(adam))
    with learner.average.in_place():
        assert torch.equal(flat(trained_weights(learner)), flat(average))
    assert not torch.equal(flat(average), flat(adam))
    assert torch.equal(flat(trained_weights(learner)), flat(adam))
    loaded = torch.cat([s["exp_avg"].flatten() for s in learner.optimizer.state.values()])
    assert (loaded - moment).norm() <= 1e-2 * moment.norm()
    if mode == "fsdp":  # what plain diffusers loads holds the gathered weights
        final = train.flux.load(str(two / "final")).transformer.state_dict()
        assert all(torch.equal(final[name], value) for name, value in adam.items())


def test_bfloat16_shards_keep_float32_masters(two):
    masters = torch.load(two / "fsdp_bf16.pt", weights_only=True)[0]
    exact = torch.load(two / "fsdp.pt", weights_only=True)[0]
    assert all(value.dtype == torch.float32 for value in masters.values())
    rounded = flat(masters).bfloat16().float()
    assert not torch.equal(flat(masters), rounded)  # small updates survive
    assert (flat(masters) - flat(exact)).norm() <= 0.05 * flat(exact).norm()


def test_gradients_are_sent_once_an_update_not_once_a_pass(two):
    """An update adds up 4 passes: 2 micro-batches x 2 steps."""
    all_reduces, _ = torch.load(two / "ddp.pt", weights_only=True)[3]
    assert 1 <= all_reduces <= 2  # buckets; each pass would send them
    _, reduce_scatters = torch.load(two / "fsdp.pt", weights_only=True)[3]
    assert reduce_scatters == 6 + 1  # blocks of the tiny FLUX, and what lies outside of them


@contextlib.contextmanager
def judge_server():
    """The base URL of the classroom's judge server."""
    server = JudgeServer(ShapesMLLM())
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


def test_the_lora_recipe_at_small_size_with_a_judge_server_and_resumed_by_one(tmp_path):
    """bfloat16, LoRA, checkpointing, text cache, mixed rewards, 2 ranks; then 1 goes on."""
    (tmp_path / "prompts.txt").write_text(
        "\n".join(
            f"a large {color} {shape}"
            for color in ("red", "blue")
            for shape in ("circle", "square", "triangle")
        )
    )
    out, tiny, scorer = tmp_path / "run", ROOT / "assets/tiny-flux", ROOT / "assets/tiny-clip"
    small = dict(
        model=tiny,
        size=32,
        num_steps=3,
        prompts_per_step=2,
        group_size=4,
        micro_batch=2,
        lr=1e-3,
        rewards=f"pairwise:0.4,clip={scorer}:0.6",
        heldout=2,
        checkpoint_every=1,
        prompts=tmp_path / "prompts.txt",
        text_cache=tmp_path / "texts",
        out=out,
    )

    def train_with(launcher, steps, *more):
        settings = small | {"base_url": url, "steps": steps}
        flags = [text for key, value in settings.items() for text in (f"--{key}", str(value))]
        done = subprocess.run(
            [
                sys.executable,
                *launcher,
                str(ROOT / "train.py"),
                "--recipe",
                "flux-lora",
                *flags,
                *more,
            ],
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENAI_API_KEY": "none"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == list(range(steps + 1))
        return rows, done.stderr

    with judge_server() as url:
        two = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29547"]
        rows, said = train_with(two, 2)
        assert "on-policy check, largest |ratio - 1| by step" in said
        assert rows[1]["comparisons"] == 2 * (6 * 2 + 4)  # pairs in both orders, and scores
        assert rows[1]["failed"] == rows[1]["unparsable"] == 0
        assert rows[1]["clip_std"] > 0 and all(row["grad_norm"] > 0 for row in rows[1:])
        assert rows[2]["kl_to_base"] > rows[1]["kl_to_base"]  # the first update moved the policy
        assert len(list((tmp_path / "texts").glob("*.safetensors"))) == 6  # 2 of them held out
        rows, _ = train_with([], 3, "--resume")
    assert rows[3]["grad_norm"] > 0 and "win_rate_vs_base" in rows[3]
    pipe = FluxPipeline.from_pretrained(tiny)
    pipe.load_lora_weights(out / "final")
    assert "--recipe flux-lora" in (out / "final" / "README.md").read_text()


def test_every_rank_has_as_many_shares():
    ranks = [processes.Processes(rank, 3, torch.device("cpu")) for rank in range(3)]
    shares = [procs.share(7) for procs in ranks]
    assert {len(share) for share in shares} == {3} and set().union(*shares) == set(range(7))


def test_a_half_written_checkpoint_is_not_the_newest(tmp_path):
    assert processes.newest_checkpoint(tmp_path) is None
    for step in (9, 10, 11):
        (tmp_path / f"step_{step:06d}").mkdir()
    for step in (9, 10):
        (tmp_path / f"step_{step:06d}" / ".metadata").write_text("")
    assert processes.newest_checkpoint(tmp_path).name == "step_000010"


if __name__ == "__main__":
    torch.set_num_threads(1)
    as_one_of_two(Path(sys.argv[1]))
