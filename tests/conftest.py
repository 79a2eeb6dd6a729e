"""One thread for all, and the models that ship or are made once."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036, so that an older one ends in a sentence
    raise SystemExit(f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}")

import contextlib
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a background job of a shell
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what tests start inherits it

import pytest

ROOT = Path(__file__).resolve().parent.parent


def pytest_xdist_auto_num_workers(config) -> int:
    """One process a core: what tests start takes the core of the one that waits for it."""
    return os.cpu_count() or 1


# The files that take longest, in order: what begins last should not be long.
LONGEST = "distributed train exercises plan served pretrain gallery klein study guide study_arms"


def pytest_collection_modifyitems(items) -> None:
    order = [f"test_{name}" for name in LONGEST.split()]
    rank = {name: n for n, name in enumerate(order)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(order)))


@pytest.fixture(autouse=True)
def one_thread():
    """Judge servers, pools and second processes stand beside the test: more threads would wait for
    each other. And log-probs depend on their number in the last bit."""
    import torch  # not above: the process that hands out the tests needs none

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_flux():
    """For tests that change nothing in it."""
    from models import base

    return base.load(str(ROOT / "assets" / "tiny-flux"))


@pytest.fixture(scope="session")
def sd3_folders(tmp_path_factory):
    """Stable Diffusion 3 of random weights, with T5 (True) and without (False)."""
    from tiny_models import sd3_pipeline

    both = {t5: str(tmp_path_factory.mktemp("sd3") / f"t5-{t5}") for t5 in (True, False)}
    for t5, folder in both.items():
        sd3_pipeline(t5).save_pretrained(folder)
    return both


@pytest.fixture(scope="session")
def klein_folder(tmp_path_factory):
    """FLUX.2-klein of random weights."""
    from tiny_models import klein_pipeline

    folder = str(tmp_path_factory.mktemp("klein"))
    klein_pipeline().save_pretrained(folder)
    return folder


TEXTS = {}  # of one prompt, by all that its shape depends on


@pytest.fixture
def uncounted(monkeypatch):
    """Plans of memory whose passes are not counted, and fake weights made once for each kind of
    text: both take seconds."""
    from training import footprint

    passes, faked = ("activations", "forward", "decode", "encode", "evaluation"), footprint.faked

    @contextlib.contextmanager
    def once(model):
        parts = model.pipe.components.items()
        encoders = [part for name, part in parts if part and "text_enc" in name]
        configs = (str(part.config) for part in encoders)
        key = type(model), model.guidance, model.transformer.dtype, *configs
        if key not in TEXTS:  # no other part says what the text's shape is
            alone = dict(enumerate(encoders))
            alone = mock.patch.object(footprint, "networks_of", return_value=alone)
            with alone, faked(model) as TEXTS[key]:
                pass
        yield TEXTS[key]

    monkeypatch.setattr(footprint, "faked", once)
    monkeypatch.setattr("training.plan.counted_bytes", lambda *_: dict.fromkeys(passes, 0))


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """Runs draw neither curves nor a group, and of the held-out prompts' images for people one
    alone, unless a file of tests is of what people look at: it takes as long as the steps."""
    if "training.run" in sys.modules:
        monkeypatch.setattr("training.heldout.GRID_ROWS", 1)
        monkeypatch.setattr("training.run.explain", SimpleNamespace(draw_group=lambda *_: None))
        silent = SimpleNamespace(training_curves=lambda *_: None)
        monkeypatch.setattr("training.run.pictures", silent)
