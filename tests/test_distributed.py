"""Two gloo processes against one: what they learn, checkpoints that move between them, a recipe."""

import contextlib
import math
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from conftest import ROOT
from diffusers import FluxPipeline
from real_runs import ALONE, few_steps, log_of, shallow, stepped
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import train
from models import base
from shapes.server import served
from training import checkpoint, distributed
from training.config import Config
from training.distributed import StoppedError
from training.footprint import Alive
from training.session import ends_well, start_run

HANG = 480.0  # seconds after which processes that have not ended never will

MODES = {
    "ddp": dict(lora_rank=2),
    "fsdp": dict(shard=True, gradient_checkpointing=True),
    "reduced": dict(shard=True, reduce_each=True, dtype="bfloat16"),
    "lora": dict(shard=True, lora_rank=2, dtype="bfloat16", gradient_checkpointing=True),
}


def config(mode, out, model):
    """On each of two ranks an update adds up 4 passes: 2 micro-batches x 2 steps."""
    shape = dict(prompts_per_step=2, group_size=4, micro_batch=2, num_steps=3)
    kept = dict(heldout=1, checkpoint_every=1, out=str(out), model=model)
    return Config(**shape, **kept, timestep_fraction=1.0, ema=0.5, **MODES[mode])


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors])


def trained_weights(run):
    """Whole, by name; on rank 0 alone."""
    transformer = run.model.transformer
    names = {n for n, p in transformer.named_parameters() if p.requires_grad}
    whole = distributed.full_weights(transformer)
    return {n: whole[n].clone() for n in sorted(names & whole.keys())}


def moment_of(run):
    """AdamW's first moment: after one step 0.1 times the averaged gradient."""
    return flat(state["exp_avg"] for state in run.optimizer.state.values())


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens at."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class Sent(TorchDispatchMode):
    """Counts the weights and gradients that an update sends to other ranks, by the name of the
    operation. Not those of a whole step: to look at each operation takes longer than to do it."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d" and tree_leaves(args)[0].is_floating_point():
            self.counts[func.__name__.split(".")[0]] += 1
        return func(*args, **(kwargs or {}))

    def update(self, *args, update=train.update):
        with self:
            return update(*args)


def a_lora_is_whole_and_its_base_is_not(run) -> None:
    kinds = Counter()
    for weight in run.model.transformer.parameters():
        kinds[type(weight).__name__, weight.dtype, weight.requires_grad] += 1
    sharded, trained = ("DTensor", torch.bfloat16, False), ("Parameter", torch.float32, True)
    assert kinds.keys() == {sharded, trained} and kinds[trained] == len(run.model.trainable())


def ends_of_one_rank_end_all(procs) -> None:
    """An error of rank 1 alone is raised by both, and of rank 0 what it found is told to both."""

    def odd():
        if procs.rank == 1:
            raise FloatingPointError("NaN on one")

    with pytest.raises(FloatingPointError, match="^NaN on one$"):
        procs.on_all_ranks(odd)
    assert procs.broadcast(lambda: procs.rank) == 0


def a_signal_to_one_rank_ends_both(procs, cfg) -> None:
    """Before one and the same pass, though the weights have moved; the last whole step is saved."""
    procs = replace(procs, stop=distributed.Stop())
    run = start_run(cfg, procs)
    whole, passes, boundary = {}, [], run.boundary
    run.observers.append(lambda done: whole.update(trained_weights(run)))

    def before_pass():
        passes.append(run.at == 2 and run.moved)
        if procs.rank == 1 and sum(passes) == 2:
            procs.stop(signal.SIGTERM)
        boundary()

    run.boundary = before_pass
    saved = pytest.raises(StoppedError, match="by SIGTERM: the state after step 1 is")
    with saved, ends_well(run):
        few_steps(run, 2)
    assert procs.gather([len(passes)]) == [len(passes)] * 2 and sum(passes) == 2
    last = procs.broadcast(checkpoint.newest_checkpoint, Path(cfg.out) / "checkpoint")
    assert last.name == "step_000001"
    checkpoint.load_checkpoint(last, *run.state)
    kept = trained_weights(run)
    assert all(torch.equal(kept[name], whole[name]) for name in whole)


def groups_end_after_their_wrappers(ports: list[int]) -> None:
    """Ends a group right after a collective of Python objects, and then what wrapped a network for
    it, time and again: unless start_processes holds the group, one of the first ten never ends."""
    for port in ports:
        os.environ["MASTER_PORT"] = str(port)
        procs = distributed.start_processes("cpu")
        wrapped = DistributedDataParallel(torch.nn.Linear(2, 2))
        assert procs.gather([procs.rank, "x"]) == [0, "x", 1, "x"]
        torch.distributed.destroy_process_group()
        del wrapped


def as_rank(rank: int, port: int, said: Path, function, *args) -> None:
    """function(*args) in a process of two, with what torchrun sets; its standard error in a
    file."""
    torch.set_num_threads(1)
    os.environ |= dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    os.environ |= dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    function(*args)


def in_two_processes(said: Path, function, *args) -> None:
    """Each of two ranks calls function(*args); what they say is left in a file."""
    forks = multiprocessing.get_context("forkserver")  # which loads the libraries once for both
    more = ("distributed.fsdp", "distributed.checkpoint", "nn.parallel.distributed")
    forks.set_forkserver_preload(["training.session", "peft", *(f"torch.{m}" for m in more)])
    (port,) = free_ports(1)
    ranks = [
        forks.Process(target=as_rank, args=(rank, port, said, function, *args)) for rank in (0, 1)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(HANG)
        rank.kill()  # one that waits for ever
    assert [rank.exitcode for rank in ranks] == [0, 0], said.read_text()[-3000:]


def steps_of_each_mode(folder: Path, model: str, ports: list[int]) -> None:
    """A step of each mode, whose checkpoint both take up again. Rank 0 writes what the tests
    compare."""
    procs = distributed.start_processes("cpu")
    for mode in MODES:
        sent = Sent()
        with mock.patch("train.update", sent.update):
            run = stepped(config(mode, folder / mode, model), procs=procs)
        weights = trained_weights(run)
        with torch.no_grad():
            for parameter in run.model.trainable():
                parameter.zero_()
        last = procs.broadcast(checkpoint.newest_checkpoint, folder / mode / "checkpoint")
        checkpoint.load_checkpoint(last, *run.state)
        again = trained_weights(run)
        with run.average.swapped_in():
            average = trained_weights(run)
        whole = distributed.full_weights(run.model.transformer)
        if procs.is_main:
            assert all(torch.equal(weights[name], again[name]) for name in weights)
            torch.save((weights, average, sent.counts, run.metrics[1]), folder / f"{mode}.pt")
            if mode == "fsdp":
                run.model.save(folder / "final", whole)
        if mode == "lora":
            a_lora_is_whole_and_its_base_is_not(run)
    ends_of_one_rank_end_all(procs)
    stopped = config("ddp", folder / "stopped", model)
    a_signal_to_one_rank_ends_both(procs, replace(stopped, updates=2, checkpoint_every=9))
    torch.distributed.destroy_process_group()
    groups_end_after_their_wrappers(ports)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder that two processes left, and what rank 0 wrote of each mode."""
    folder = tmp_path_factory.mktemp("two")
    in_two_processes(folder / "said.txt", steps_of_each_mode, folder, shallow(), free_ports(12))
    return folder, {mode: torch.load(folder / f"{mode}.pt") for mode in MODES}


@pytest.mark.parametrize("mode", ["ddp", "fsdp", "lora"])
def test_two_processes_learn_what_one_learns_and_one_resumes_them(mode, two, tmp_path):
    folder, written = two
    weights, average, _, row = written[mode]
    cfg = replace(config(mode, tmp_path, shallow()), shard=False)
    alone = stepped(cfg)
    for key in ("comparisons", "reward_std", "grad_norm"):
        assert row[key] == pytest.approx(alone.metrics[1][key], rel=1e-4), key
    resumed = start_run(replace(cfg, out=str(folder / mode), resume=True), ALONE)
    optimizer = torch.optim.AdamW(resumed.model.trainable())
    next(resumed.batches(optimizer, distributed.EMA(resumed.model.transformer, cfg.ema)), None)
    moment = moment_of(alone)
    assert moment.norm() > 0 and (moment - moment_of(resumed)).norm() <= 1e-4 * moment.norm()
    present = lambda: flat(trained_weights(resumed).values())
    assert torch.equal(present(), flat(weights.values()))
    with resumed.average.swapped_in():
        assert torch.equal(present(), flat(average.values()))
    assert not torch.equal(present(), flat(average.values()))
    if mode == "fsdp":  # what plain diffusers loads holds the gathered weights
        final = base.load(str(folder / "final")).transformer.state_dict()
        assert all(torch.equal(final[name], value) for name, value in weights.items())


def test_bfloat16_shards_keep_float32_masters(two):
    masters, exact = (two[1][mode][0] for mode in ("reduced", "fsdp"))
    assert all(value.dtype == torch.float32 for value in masters.values())
    masters, exact = flat(masters.values()), flat(exact.values())
    assert not torch.equal(masters, masters.bfloat16().float())  # small updates survive
    assert (masters - exact).norm() <= 0.05 * exact.norm()


def test_gradients_are_sent_once_an_update_not_once_a_pass(two):
    sent = {mode: two[1][mode][2] for mode in MODES}
    assert 1 <= sent["ddp"]["allreduce_"] <= 2  # buckets; each pass would send them
    assert sent["lora"]["allreduce_"] == 1 and not sent["lora"]["_reduce_scatter_base_"]
    units = 2 + 1  # the model's blocks, and what is outside
    assert sent["fsdp"]["_reduce_scatter_base_"] == units
    assert sent["reduced"]["_reduce_scatter_base_"] == 4 * units  # after each of its passes
    once, often = (two[1][mode][3]["grad_norm"] for mode in ("fsdp", "reduced"))
    assert often == pytest.approx(once, rel=0.02)  # in bfloat16


def test_offloaded_blocks_learn_the_same_and_are_fetched_one_at_a_time(tmp_path):
    weights, peaks = [], []
    for offload in (False, True):
        cfg = config("ddp", tmp_path / str(offload), Config().model)
        run = stepped(replace(cfg, gradient_checkpointing=True, offload=offload))
        weights.append(flat(trained_weights(run).values()))
        transformer = run.model.transformer
        if not offload:
            frozen = [
                sum(p.nbytes for p in block.parameters() if not p.requires_grad)
                for block in distributed.blocks(transformer)
            ]
        text, noise = run.model.encode(["a large red circle"]), torch.randn(1, 16, 32)
        with Alive() as alive:
            run.model.velocity(text)(noise, torch.ones(1)).sum().backward()
        peaks.append(alive.peak)
        weight = transformer.transformer_blocks[0].ff.net[2].base_layer.weight
        assert (weight.numel() == 0) == offload
    assert torch.equal(*weights)
    assert 0.8 * max(frozen) < peaks[1] - peaks[0] <= 1.1 * max(frozen) < sum(frozen) / 2


# ----------------------------------------------------------------------------- a recipe


def recipe_at_small_size(folder: Path, url: str) -> list[str]:
    """The command of the LoRA recipe for the tiny models: bfloat16, LoRA, checkpointing, text
    cache, mixed rewards, a judge server."""
    colors, shapes = ("red", "blue"), ("circle", "square", "triangle")
    prompts = [f"a large {color} {shape}" for color in colors for shape in shapes]
    (folder / "prompts.txt").write_text("\n".join(prompts))
    shape = dict(size=32, num_steps=3, prompts_per_step=2, group_size=4, micro_batch=2, lr=1e-3)
    reward = f"pairwise:0.4,clip={ROOT / 'assets/tiny-clip'}:0.6"
    files = dict(prompts=folder / "prompts.txt", text_cache=folder / "texts", out=folder / "run")
    kept = dict(heldout=2, checkpoint_every=1, base_url=url, reward=reward)
    settings = dict(recipe="flux-lora", model=ROOT / "assets/tiny-flux") | shape | files | kept
    flags = [text for key, value in settings.items() for text in (f"--{key}", str(value))]
    return [str(ROOT / "train.py"), *flags]


def by_torchrun(command: list[str]) -> str:
    """What two ranks say that torchrun starts."""
    port = f"--master_port={free_ports(1)[0]}"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", port]
    ranks = subprocess.Popen([*torchrun, *command], stderr=subprocess.PIPE, text=True)
    overdue = threading.Timer(HANG, ranks.terminate)  # torchrun ends its ranks with itself
    overdue.start()
    _, said = ranks.communicate()
    overdue.cancel()
    assert ranks.returncode == 0, said[-3000:]
    return said


@pytest.mark.slow
def test_two_ranks_follow_the_lora_recipe_and_one_goes_on_and_saves(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    run = tmp_path / "run"
    with served() as server:
        command = recipe_at_small_size(tmp_path, server.url)
        said = by_torchrun([*command, "--steps", "2"])
        rows = log_of(run)
        monkeypatch.setattr(sys, "argv", [*command, "--steps", "3", "--resume"])
        train.main()
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert set(rows[0]) == {"step", "win_rate_vs_base"}  # nothing to verify in a file's prompts
    assert "on-policy check, largest |ratio - 1| by step" in said
    assert rows[1]["comparisons"] == 2 * (6 * 2 + 4)  # pairs in both orders, and scores
    assert all(row["failed"] == row["unparsable"] == row["groups_lost"] == 0 for row in rows[1:])
    assert rows[1]["clip_std"] > 0 and all(row["grad_norm"] > 0 for row in rows[1:])
    assert rows[2]["kl_to_base"] > rows[1]["kl_to_base"]  # the first update moved the policy
    assert len(list((tmp_path / "texts").glob("*.safetensors"))) == 6  # 2 of them held out
    *first, last = log_of(run)
    assert first == rows and last["step"] == 3
    assert last["grad_norm"] > 0 and "win_rate_vs_base" in last
    FluxPipeline.from_pretrained(ROOT / "assets/tiny-flux").load_lora_weights(run / "final")
    card = (run / "final" / "README.md").read_text()
    assert "--recipe flux-lora" in card and "| win_rate_vs_base | 0.500 |" in card
    assert "load_lora_weights" in card and "on 2 held-out prompts" in card


# ----------------------------------------------------------------------------- one process


@pytest.fixture
def state():
    """Weights, optimizer and average of a small network, as a checkpoint holds them."""
    layer = torch.nn.Linear(30, 30)
    return layer, torch.optim.AdamW(layer.parameters()), distributed.EMA(layer, 0.5)


def test_every_rank_has_as_many_shares():
    ranks = [distributed.Processes(rank, 3, torch.device("cpu")) for rank in range(3)]
    shares = [procs.my_share(7) for procs in ranks]
    assert {len(share) for share in shares} == {3} and set().union(*shares) == set(range(7))


def test_the_last_two_whole_checkpoints_stay_and_those_that_are_named(state, tmp_path):
    assert checkpoint.newest_checkpoint(tmp_path) is None
    for step in range(1, 6):
        checkpoint.save_checkpoint(tmp_path, ALONE, checkpoint.training_state(*state), step, [2])
    (tmp_path / "step_000011").mkdir()
    (tmp_path / "step_000011" / "half").write_text("")
    assert checkpoint.checkpoint_steps(tmp_path) == [2, 4, 5]
    assert checkpoint.newest_checkpoint(tmp_path).name == "step_000005"
    checkpoint.save_checkpoint(tmp_path, ALONE, checkpoint.training_state(*state), 11)
    assert not (tmp_path / "step_000011" / "half").exists()  # of a run that was killed there


def test_a_damaged_checkpoint_is_told_in_one_sentence(state, tmp_path):
    checkpoint.save_checkpoint(tmp_path, ALONE, checkpoint.training_state(*state), 3)
    newest = checkpoint.newest_checkpoint(tmp_path)
    for file in newest.glob("*.distcp"):
        file.write_bytes(file.read_bytes()[:-500])
    with pytest.raises(ValueError, match="step_000003' cannot be read .*: remove it") as told:
        checkpoint.load_checkpoint(newest, *state)
    assert "\n" not in str(told.value)


def test_a_norm_of_0_leaves_the_gradient_as_it_is_and_one_that_is_not_finite_ends_the_step():
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.grad = torch.tensor([3.0, 4.0])
    assert distributed.clip_gradients([weight], 0.0) == 5.0 and weight.grad.tolist() == [3.0, 4.0]
    assert distributed.clip_gradients([weight], 1.0) == 5.0
    assert weight.grad.norm().item() == pytest.approx(1.0, rel=1e-5)
    for odd in (math.nan, math.inf):
        weight.grad = torch.tensor([odd, 4.0])
        with pytest.raises(FloatingPointError, match="the gradient's norm is"):
            distributed.clip_gradients([weight], 1.0)


@pytest.mark.parametrize("decay, seen", [(0.9, 0.9 * 1 + 0.1 * 2), (0.0, 2.0)])
def test_the_average_keeps_as_much_of_itself_as_the_decay_says_and_0_is_none(decay, seen):
    layer = torch.nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(1.0)
    average = distributed.EMA(layer, decay)
    layer.weight.data.fill_(2.0)
    average.update()
    with average.swapped_in():
        assert layer.weight.item() == pytest.approx(seen)
    assert layer.weight.item() == 2.0  # training goes on from its own weights


@pytest.mark.parametrize(("gpus", "local", "said"), [(8, None, "=8"), (8, 2, "=8"), (2, 2, "")])
def test_gpus_that_no_process_uses_are_named(gpus, local, said, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    if local:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local))
    sentence = distributed.idle_gpus()
    assert f"--nproc_per_node{said} " in sentence if said else not sentence
