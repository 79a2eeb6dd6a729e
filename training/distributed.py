"""One process or many: what torchrun started, signals that end it, and who holds which weights.

Small trained sets (LoRA, the tiny model) are replicated: DistributedDataParallel averages
gradients. Weights too large for one GPU are sharded: FSDP2 (`fully_shard`, one unit a transformer
block) keeps float32 master weights in pieces and computes in --dtype; of a LoRA it shards the
frozen base alone. A group of images never spans ranks, so win rates and advantages need no
collective: only gradients, logged means and checkpoints (checkpoint.py) do.

    torchrun --nproc_per_node=8 train.py --recipe flux-full --prompts prompts.txt
    torchrun --nnodes=8 --nproc_per_node=8 --rdzv_backend=c10d --rdzv_endpoint=HOST:29500 train.py

With several nodes the run directory must be on a file system that all of them see.
"""

import atexit
import contextlib
import inspect
import logging
import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parameters_to_vector, vector_to_parameters

log = logging.getLogger("train")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

# Ctrl-C; the end of a job or a node; a closed terminal; what a scheduler sends before time is up
# (Slurm's --signal; LSF and SGE send SIGUSR2).
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")


class StoppedError(BaseException):
    """A signal asked for the end, where no whole step is lost. No Exception: one that is raised
    while a judge is asked must not pass for a failure of the judge."""


# Errors that a rank tells the others: what was given cannot work, a number is not finite, ...
SHARED_ERRORS = (FloatingPointError, ValueError, OSError, SystemExit, StoppedError)

# FSDP2 warns once a block that outputs must not be changed in place; we never do.
warnings.filterwarnings("ignore", "FSDP2-wrapped module", UserWarning)
warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable", UserWarning)


class Stop:
    """What signals ask for. Before and after the loop KeyboardInterrupt is raised at once. Within
    it, a patient one remembers the first, which the run heeds at its next boundary, or at once
    while it waits for a judge; a second Ctrl-C or SIGTERM raises KeyboardInterrupt all the same."""

    def __init__(self):
        self.asked, self.since = "", -math.inf  # by which signal; when
        self.urged = False  # by Ctrl-C or SIGTERM: others come in twos (SIGHUP), or as a warning
        self.patient, self.waiting = False, False

    def __call__(self, number: int, _frame=None) -> None:
        now, urgent = time.monotonic(), number in (signal.SIGINT, signal.SIGTERM)
        if self.asked and "TORCHELASTIC_RUN_ID" in os.environ and now - self.since < 1:
            return  # torchrun passes on what the terminal had told its workers already
        if not self.patient or (self.urged and urgent):
            raise KeyboardInterrupt
        self.urged |= urgent
        if not self.asked:
            self.asked, self.since = signal.Signals(number).name, now
            log.warning(
                "%s: the run ends before the next pass through the network and keeps its last "
                "whole step; a second Ctrl-C or SIGTERM ends it at once",
                self.asked,
            )
            if self.waiting:
                raise StoppedError(self.asked)

    def unless_asked(self, function: Callable, *args):
        """function(*args), such as to wait for a judge; a signal breaks it off: StoppedError."""
        self.waiting = True  # first: a signal before the next line is seen by it
        try:
            if self.asked:
                raise StoppedError(self.asked)
            return function(*args)
        finally:
            self.waiting = False


@contextlib.contextmanager
def signals():
    """A Stop that hears SIGNALS for a while, which only the main thread can. One that whoever
    started the process has it ignore, as nohup does, stays ignored."""
    stop, old = Stop(), {}
    if threading.current_thread() is threading.main_thread():
        numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
        heard = [n for n in numbers if signal.getsignal(n) not in (signal.SIG_IGN, None)]
        old = {n: signal.signal(n, stop) for n in heard}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class Processes:
    """Where this process stands among those that torchrun started; alone without torchrun."""

    rank: int
    world_size: int
    device: torch.device
    stop: Stop = field(default_factory=Stop)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def gather(self, items: list) -> list:
        """The ranks' lists, one after another, on every rank."""
        if self.world_size == 1:
            return items
        parts = [None] * self.world_size
        dist.all_gather_object(parts, items)
        return [item for part in parts for item in part]

    def anywhere(self, here: bool) -> bool:
        """Whether something is so on any rank."""
        if self.world_size == 1:
            return here
        found = torch.tensor(int(here))
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return bool(found)

    def on_all_ranks(self, function: Callable, *args, **settings):
        """function(*args, **settings) of this rank. One of SHARED_ERRORS on any rank is raised
        on all of them, which would else wait for the one that stopped."""
        if self.world_size == 1:
            return function(*args, **settings)
        result, error = None, None
        try:
            result = function(*args, **settings)
        except SHARED_ERRORS as caught:
            if hasattr(caught, "shared"):  # at a boundary within the function
                raise
            error = caught
        self.meet(error)
        return result

    def meet(self, error: BaseException | None = None) -> None:
        """The ranks wait for each other. Raises on all of them what one has met with."""
        if not self.anywhere(error is not None):
            return
        own = error and next(kind for kind in SHARED_ERRORS if isinstance(error, kind))
        for kind, text in filter(None, self.gather([error and (own, str(error))])):
            raised = kind(text)
            raised.shared = True
            raise raised

    def boundary(self) -> None:
        """Where a run may end: StoppedError on all ranks, if one of them heard a signal.

        They come here equally often, before each pass through the network, so that no gradient and
        no gathered weight is left half way. A rank with an error waits for them in `on_all_ranks`.
        """
        self.meet(StoppedError(self.stop.asked) if self.stop.asked else None)

    def broadcast(self, function: Callable, *args):
        """What function(*args) gives on rank 0 alone, or its error, on every rank."""
        found = self.on_all_ranks(lambda: function(*args) if self.is_main else None)
        return self.gather([found])[0]

    def my_share(self, count: int) -> list[int]:
        """This rank's indices out of `count`, as many on every rank: with sharded weights each
        forward pass is a collective, so the last ones are done twice, not by some ranks."""
        rounds = -(-count // self.world_size)
        return [i % count for i in range(self.rank, rounds * self.world_size, self.world_size)]


def check_device(name: str) -> None:
    """Raises ValueError unless a network can run there; empty: cuda if there is one, else cpu."""
    try:
        torch.empty(1, device=name or "cpu")
    # How PyTorch says it: no such name or device, a build without CUDA, one without XPU.
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ValueError(
            f"--device '{name}': this machine, or its PyTorch, has none; there may be cpu, cuda, "
            "cuda:1, mps or xpu"
        ) from None


def idle_gpus() -> str:
    """A sentence where this machine has more GPUs than the run has processes on it, else none."""
    gpus, local = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if gpus <= local:
        return ""
    return (
        f"this machine has {gpus} GPUs and the run {local} of them: torchrun "
        f"--nproc_per_node={gpus} train.py uses all"
    )


def start_processes(device: str, shard: bool = False, stop: Stop | None = None) -> Processes:
    """Joins torchrun's ranks. shard: a group is made even of one process, for FSDP2.

    Raises ValueError for a device that is not there.
    """
    check_device(device)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if not device:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        torch.cuda.set_device(device)
        if rank == 0 and (sentence := idle_gpus()):
            log.info(sentence)
    # On Hopper GPUs, since torch 2.11, cuDNN's attention gives NaN gradients or an illegal memory
    # access (pytorch issue 196678): at FLUX's size we had both, and neither without it.
    torch.backends.cuda.enable_cudnn_sdp(False)
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    if world > 1:
        dist.init_process_group(backend)
        # Held until the process ends: else DistributedDataParallel holds the last reference, and
        # frees it with Python's lock in hand. That waits for ever for a thread of the group that is
        # about to take the lock. The group's own Python object lets go of the lock first.
        atexit.register(lambda _: None, dist.group.WORLD)
    elif shard and not dist.is_initialized():
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    return Processes(rank, world, torch.device(device), stop or Stop())


# ----------------------------------------------------------------------- who holds the weights


def blocks(transformer: torch.nn.Module) -> list[torch.nn.Module]:
    """The repeated blocks: what is compiled, checkpointed and gathered one at a time."""
    lists = (part for part in transformer.children() if isinstance(part, torch.nn.ModuleList))
    return [block for part in lists for block in part]


def shard(
    transformer: torch.nn.Module,
    procs: Processes,
    dtype: torch.dtype,
    master: torch.dtype | None = torch.float32,
    whole: Sequence[torch.nn.Parameter] = (),
) -> None:
    """Spreads the weights over all ranks, in place: stored as `master` (None: as they are),
    computed with as `dtype`. Those in `whole`, a LoRA's, stay whole on every rank.

    A block is gathered when it runs and freed after it, forward and backward alike, and goes to the
    device alone, so that it never holds the whole model. Gradients are averaged in float32. Inputs
    are not cast: rotary embeddings stay float32, as in the unsharded model. Raises ValueError where
    this PyTorch cannot leave weights whole.
    """
    if whole and "ignored_params" not in inspect.signature(fully_shard).parameters:
        raise ValueError(
            f"--shard with --lora_rank needs PyTorch 2.7 or newer, this is {torch.__version__}: "
            "install a newer one, or leave --shard out"
        )
    units = dict(
        mesh=init_device_mesh(procs.device.type, (procs.world_size,)),
        mp_policy=MixedPrecisionPolicy(
            param_dtype=dtype if master not in (dtype, None) else None,
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,
        ),
        **(dict(ignored_params=set(whole)) if whole else {}),
    )
    for block in blocks(transformer):
        fully_shard(block.to(procs.device, master), **units)
    # What is left is small: a second move would undo nothing, sharded blocks are there already.
    for child in transformer.children():
        if not isinstance(child, torch.nn.ModuleList):
            child.to(procs.device, master)
    # FSDP2 would leave the root gathered after a forward pass: an optimizer, average or checkpoint
    # that then takes the module's parameters holds copies; the next pass misses a changed shard.
    fully_shard(transformer, reshard_after_forward=True, **units)


def offload(transformer: torch.nn.Module, device: torch.device) -> None:
    """Frozen weights of the blocks wait in main memory: each block fetches its own when it runs.

    For a LoRA over a base that the GPU does not hold. Autograd keeps the fetched copies that a
    backward pass needs: with gradient checkpointing one block's at a time, without it all of them.
    """
    for block in blocks(transformer):
        frozen = [
            (module, name, weight)
            for module in block.modules()
            for name, weight in module._parameters.items()
            if weight is not None and not weight.requires_grad
        ]
        pinned = device.type == "cuda"
        waiting = [w.data.pin_memory() if pinned else w.data for _, _, w in frozen]
        for _, _, weight in frozen:
            weight.data = torch.empty(0, dtype=weight.dtype)

        def fetch(*_, frozen=frozen, waiting=waiting):
            for (module, name, _), weight in zip(frozen, waiting):
                module._parameters[name] = weight.to(device, non_blocking=True, copy=True)

        def leave(*_, frozen=frozen):
            for module, name, weight in frozen:
                module._parameters[name] = weight

        block.register_forward_pre_hook(fetch)
        block.register_forward_hook(leave, always_call=True)  # recomputation may end by an error
    transformer.to(device)


@contextlib.contextmanager
def gradients(policy: torch.nn.Module, average: bool):
    """Backward passes inside add up locally; with `average` the sum is averaged over the ranks."""
    if isinstance(policy, FSDPModule):
        policy.set_requires_gradient_sync(average)
        yield
        if average:
            average_gradients(policy)
    elif isinstance(policy, DistributedDataParallel) and not average:
        with policy.no_sync():
            yield
    else:
        yield


def average_gradients(policy: FSDPModule) -> None:
    """Of the weights that `shard` left whole, over all ranks, as one message."""
    trained = [p for p in policy.parameters() if p.requires_grad]
    gradients = [p.grad for p in trained if not isinstance(p, DTensor)]
    if gradients:
        joined = parameters_to_vector(gradients)
        dist.all_reduce(joined)
        vector_to_parameters(joined.div_(dist.get_world_size()), gradients)


def clip_gradients(parameters: list[torch.nn.Parameter], max_norm: float) -> float:
    """Scales gradients down to a joint norm of max_norm (0: leaves them); the norm before that.

    Raises FloatingPointError if it is not finite: on all ranks alike, whose gradients are averaged.
    """
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm or math.inf)
    norm = (norm.full_tensor() if hasattr(norm, "full_tensor") else norm).item()
    if not math.isfinite(norm):
        raise FloatingPointError(f"the gradient's norm is {norm}")
    return norm


class EMA:
    """Exponential moving average of the trainable weights, in float32, sharded as they are."""

    def __init__(self, transformer: torch.nn.Module, decay: float):
        self.decay = decay
        self.live = {n: p for n, p in transformer.named_parameters() if p.requires_grad}
        self.mean = {n: p.detach().float().clone() for n, p in self.live.items()} if decay else {}

    @torch.no_grad()
    def update(self) -> None:
        for name, mean in self.mean.items():
            mean.lerp_(self.live[name].float(), 1 - self.decay)

    @contextlib.contextmanager
    def swapped_in(self):
        """The average stands in for the live weights; without a decay nothing is exchanged."""
        kept = {n: self.live[n].detach().clone() for n in self.mean}
        try:
            self._put(self.mean)
            yield
        finally:
            self._put(kept)

    @torch.no_grad()
    def _put(self, values: dict[str, torch.Tensor]) -> None:
        for name, value in values.items():
            self.live[name].copy_(value)


def full_weights(transformer: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The whole state dict on the CPU of rank 0, nothing elsewhere; every rank must call it."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_model_state_dict(transformer, options=options)
