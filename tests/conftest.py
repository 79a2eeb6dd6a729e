"""Makes the flat modules importable, and offers the shipped tiny FLUX."""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start

import pytest  # noqa: E402
import torch  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


@pytest.fixture(autouse=True)
def one_thread():
    """Judge servers, pools and second processes stand beside the test: more threads would wait for
    each other. And log-probs depend on their number in the last bit."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_flux():
    import flux

    return flux.load(str(ROOT / "assets" / "tiny-flux"))
