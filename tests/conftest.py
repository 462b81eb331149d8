"""Shared fixtures. One torch thread: the default pools stall on small shared machines."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import matplotlib
import pytest
import torch

matplotlib.use("Agg")
torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


@pytest.fixture(autouse=True)
def seeded() -> None:
    """New models have the same weights whichever tests ran before."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data and weights beside the project; tests that need it are skipped
    where it is missing.
    """
    if not SHARED.is_dir():
        pytest.skip("no ../shared folder")
    return SHARED
