"""Makes the flat modules importable, and offers the shipped tiny FLUX."""

import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


@pytest.fixture(autouse=True)
def two_threads():
    """As many threads as the machines this was measured on; log-probs depend on it in the last
    bit."""
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def tiny_flux():
    import flux

    return flux.load(str(ROOT / "assets" / "tiny-flux"))
