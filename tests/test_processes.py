"""Two gloo processes against one: the same updated weights, checkpoints that move between them."""

import contextlib
import dataclasses
import json
import math
import os
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from diffusers import FluxPipeline
from torch.utils._python_dispatch import TorchDispatchMode

import train
from models import flux
from models.base import Model
from shapes.server import JudgeServer
from shapes.verifier import ShapesMLLM
from support import processes
from support.build import load_model
from support.config import Config
from support.diagnostics import check_on_policy
from support.footprint import Alive
from support.prompts import Batch

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = {
    "ddp": dict(lora_rank=2),
    "fsdp": dict(shard=True, gradient_checkpointing=True),
    "fsdp_bf16": dict(shard=True, dtype="bfloat16"),
}
ALONE = processes.Processes(0, 1, torch.device("cpu"))
PROMPTS = ["a large red circle", "two small blue squares"]


def config(mode):
    return Config(
        model=str(ROOT / "assets" / "tiny-flux"),
        prompts_per_step=2,
        group_size=2,
        micro_batch=1,
        num_steps=3,
        ema=0.5,
        **SETTINGS[mode],
    )


class Learner(NamedTuple):
    model: Model
    policy: torch.nn.Module
    optimizer: torch.optim.Optimizer
    average: processes.MovingAverage

    @property
    def state(self):
        return self.model.transformer, self.optimizer, self.average


def build(cfg, procs) -> Learner:
    """What support.run.Run makes of these settings, without a judge and held-out prompts."""
    model = load_model(cfg, procs)
    policy = model.transformer if cfg.shard else processes.replicate(model.transformer, procs)
    optimizer = torch.optim.AdamW(model.trainable(), lr=cfg.lr, weight_decay=cfg.weight_decay)
    return Learner(model, policy, optimizer, processes.MovingAverage(model.transformer, cfg.ema))


def descend(cfg, learner, optimizer, rollout, advantages) -> None:
    """One update as the loop makes it: two steps of each micro-batch, averaged over the ranks."""
    parts = [(k, rows) for rows in train.micro_batches(len(advantages), 1) for k in (0, 1)]
    for i, (k, rows) in enumerate(parts, 1):
        with processes.gradients(learner.policy, average=i == len(parts)):
            loss = train.objective(
                learner.model,
                learner.policy,
                rollout,
                advantages[rows],
                k,
                rows,
                cfg.clip_range,
                cfg.guard,
                cfg.kl_coef,
            )
            (loss.loss / len(parts)).backward()
    processes.clip_gradients(learner.model.trainable(), cfg.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def learn(cfg, procs, watched=False):
    """One rollout, two updates: (learner, weights after descent, after AdamW, what was sent).

    watched: only then is it told what was sent.
    """
    learner = build(cfg, procs)
    mine = list(range(procs.rank, len(PROMPTS), procs.world))
    noise = [4 * p + g for p in mine for g in range(2)]
    batch = Batch([PROMPTS[p] for p in mine], noise, [100 + seed for seed in noise], [0, 1])
    sigmas = train.sampler.sigma_schedule(cfg.num_steps)
    rollout = train.sample(learner.model, batch, sigmas, cfg.noise_level, "flow", 1)
    floors = check_on_policy(
        learner.model, rollout, slice(0, 1), cfg.dtype, cfg.guard, cfg.clip_range
    )
    assert max(floors) <= 0.1 * cfg.clip_range, floors
    # Descent itself, since AdamW's first step turns a gradient's rounding near 0 into its sign.
    descent = torch.optim.SGD(learner.model.trainable(), lr=1.0)
    advantages = torch.tensor([[1.0, -0.5], [-2.0, 1.5]])[mine].flatten()
    weights = []
    for optimizer in (descent, learner.optimizer):
        last = watched and optimizer is learner.optimizer
        record = Sent() if last else None
        with record or contextlib.nullcontext():
            descend(cfg, learner, optimizer, rollout, advantages)
        learner.average.update()
        weights.append(trained_weights(learner))
    return learner, *weights, record and record.counts


def trained_weights(learner):
    transformer = learner.model.transformer
    names = {n for n, p in transformer.named_parameters() if p.requires_grad}
    whole = processes.full_weights(transformer)
    return {n: w.clone() for n, w in whole.items() if n in names}


class Sent(TorchDispatchMode):
    """Counts what went to other ranks, by the name of its operation."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            self.counts[func.__name__.split(".")[0]] += 1
        return func(*args, **(kwargs or {}))


def ends_of_one_rank_end_all(procs) -> None:
    """An error of rank 1 alone is raised by both, and of rank 0 what it found is told to both."""

    def odd():
        if procs.rank == 1:
            raise FloatingPointError("NaN on one")

    with pytest.raises(FloatingPointError, match="^NaN on one$"):
        procs.alike(odd)
    assert procs.alike(lambda: procs.rank) == procs.rank
    assert procs.from_first(lambda: procs.rank) == 0


def as_one_of_two(folder: Path) -> None:
    """What each of the two processes does, under torchrun; rank 0 writes what the test compares."""
    procs = processes.start_processes("cpu")
    for mode in SETTINGS:
        learner, plain, adam, reductions = learn(config(mode), procs, watched=mode != "fsdp_bf16")
        (folder / mode).mkdir(exist_ok=True)
        processes.save_checkpoint(folder / mode, procs, *learner.state, step=7)
        with torch.no_grad():
            for parameter in learner.model.trainable():
                parameter.zero_()
        last = procs.from_first(processes.newest_checkpoint, folder / mode)
        processes.load_checkpoint(last, *learner.state)
        ends_of_one_rank_end_all(procs)
        again = trained_weights(learner)
        with learner.average.in_place():
            average = trained_weights(learner)
        whole = processes.full_weights(learner.model.transformer)
        if procs.first:
            assert last.name == "step_000007" and all(torch.equal(adam[n], again[n]) for n in adam)
            torch.save((plain, adam, average, reductions), folder / f"{mode}.pt")
            if mode == "fsdp":
                learner.model.save(folder / "final", whole)
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
        transformer = learner.model.transformer
        if not offload:
            frozen = [
                sum(p.nbytes for p in block.parameters() if not p.requires_grad)
                for block in processes.blocks(transformer)
            ]
        text, noise = learner.model.encode(PROMPTS[:1]), torch.randn(1, 16, 32)
        with Alive() as alive:
            velocity = learner.model.velocity(text)
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
    before = flat(trained_weights(build(cfg, procs)))
    learner, plain, _, _ = learn(cfg, procs)
    theirs, adam, average, _ = torch.load(two / f"{mode}.pt", weights_only=True)
    change = (flat(plain) - before).norm()
    assert change > 1e-3
    assert (flat(plain) - flat(theirs)).norm() <= 1e-5 * change + 1e-7 * before.norm()

    moment = torch.cat([s["exp_avg"].flatten() for s in learner.optimizer.state.values()])
    with torch.no_grad():
        for parameter in learner.model.trainable():
            parameter.zero_()
        for state in learner.optimizer.state.values():
            state["exp_avg"].zero_()
    processes.load_checkpoint(two / mode / "step_000007", *learner.state)
    assert torch.equal(flat(trained_weights(learner)), flat(adam))
    with learner.average.in_place():
        assert torch.equal(flat(trained_weights(learner)), flat(average))
    assert not torch.equal(flat(average), flat(adam))
    assert torch.equal(flat(trained_weights(learner)), flat(adam))
    loaded = torch.cat([s["exp_avg"].flatten() for s in learner.optimizer.state.values()])
    assert (loaded - moment).norm() <= 1e-2 * moment.norm()
    if mode == "fsdp":  # what plain diffusers loads holds the gathered weights
        final = flux.load(str(two / "final")).transformer.state_dict()
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
    replicas = torch.load(two / "ddp.pt", weights_only=True)[3]
    assert 1 <= replicas["allreduce_"] <= 2  # buckets; each pass would send them
    shards = torch.load(two / "fsdp.pt", weights_only=True)[3]
    assert shards["_reduce_scatter_base_"] == 6 + 1  # the tiny FLUX's blocks, and what is outside


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
        reward=f"pairwise:0.4,clip={scorer}:0.6",
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


def test_what_happens_in_the_background_is_waited_for_and_its_errors_are_raised():
    gate = threading.Event()
    wait = processes.in_background(lambda a, b: gate.wait(20) and a + b, 1, 2)
    gate.set()
    assert wait() == 3
    with pytest.raises(KeyError):
        processes.in_background({}.__getitem__, "x")()


def test_every_rank_has_as_many_shares():
    ranks = [processes.Processes(rank, 3, torch.device("cpu")) for rank in range(3)]
    shares = [procs.share(7) for procs in ranks]
    assert {len(share) for share in shares} == {3} and set().union(*shares) == set(range(7))


def test_the_last_two_checkpoints_stay_and_those_that_are_named(tmp_path):
    learner = build(config("ddp"), ALONE)
    for step in range(1, 6):
        processes.save_checkpoint(tmp_path, ALONE, *learner.state, step, [2])
    assert processes.checkpoint_steps(tmp_path) == [2, 4, 5]


def test_a_damaged_checkpoint_is_told_in_one_sentence(tmp_path):
    learner = build(config("ddp"), ALONE)
    processes.save_checkpoint(tmp_path, ALONE, *learner.state, 3)
    newest = processes.newest_checkpoint(tmp_path)
    for file in newest.glob("*.distcp"):
        file.write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(ValueError, match="step_000003' cannot be read .*: remove it") as told:
        processes.load_checkpoint(newest, *learner.state)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_told_before_any_step(odd):
    weight = torch.nn.Parameter(torch.zeros(3))
    weight.grad = torch.tensor([1.0, odd, 0.0])
    for max_norm in (0.0, 1.0):
        with pytest.raises(FloatingPointError, match="the gradient's norm is"):
            processes.clip_gradients([weight], max_norm)


def test_a_norm_of_0_leaves_the_gradient_as_it_is():
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([3.0, 4.0])
    assert processes.clip_gradients([weight], 0.0) == 5.0 and weight.grad.tolist() == [3.0, 4.0]
    assert processes.clip_gradients([weight], 1.0) == 5.0
    assert weight.grad.norm().item() == pytest.approx(1.0, rel=1e-5)


def test_a_half_written_checkpoint_is_not_the_newest(tmp_path):
    assert processes.newest_checkpoint(tmp_path) is None
    for step in (9, 10, 11):
        (tmp_path / f"step_{step:06d}").mkdir()
    for step in (9, 10):
        (tmp_path / f"step_{step:06d}" / ".metadata").write_text("")
    assert processes.newest_checkpoint(tmp_path).name == "step_000010"
    assert processes.checkpoint_steps(tmp_path) == [9, 10]


if __name__ == "__main__":
    torch.set_num_threads(1)
    as_one_of_two(Path(sys.argv[1]))
