"""Little shared memory, and workers that end: never a wait for ever, always one line."""

import errno
import os
import signal
from pathlib import Path

import pytest
import torch

from data import dataset as dataset_module
from data import workers as module
from data.config import DataConfig, load_data
from data.dataset import DetectionDataset
from data.loader import build_loader
from data.options import LoaderOptions
from data.workers import batch_bytes, fitting, plan_workers
from tests.data_sets import write_set
from utils.cli import run_script
from utils.errors import UserError
from utils.log import LOGGER
from utils.options.train import TrainOptions
from utils.worker_errors import worker_reason

OPTIONS = LoaderOptions(imgsz=64, batch_size=4, workers=3)
BATCH = 4 * 3 * 64 * 64


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DataConfig:
    return load_data(write_set(tmp_path_factory.mktemp("set"), [(64, 64)] * 12))


@pytest.mark.parametrize(
    ("workers", "most", "found"),
    [
        (2, 100, (2, 4)),
        (2, 8, (2, 4)),
        (2, 7, (2, 3)),
        (2, 2, (2, 1)),
        (2, 1, (1, 1)),
        (2, 0, (0, 0)),
        (2, -2, (0, 0)),
        (0, 100, (0, 0)),
        (8, 5, (5, 1)),
    ],
)
def test_batches_under_way_fit_and_workers_are_kept_as_long_as_each_has_one(workers, most, found):
    assert fitting(workers, most) == found
    assert found[0] * found[1] <= max(most, 0) and found[0] <= workers


def test_the_space_counts_what_the_main_process_holds_and_all_ranks(monkeypatch, caplog):
    monkeypatch.setattr(LOGGER, "propagate", True)
    assert batch_bytes(OPTIONS) == BATCH
    assert batch_bytes(LoaderOptions(imgsz=64, batch_size=1, pad=0.5)) == 3 * 96 * 96
    room = int(BATCH * (3 * 4 + 2) / 0.9) + 2
    monkeypatch.setattr(module, "free_shared_memory", lambda: room)
    assert plan_workers(OPTIONS, batches=100) == (3, 4) and not caplog.text
    monkeypatch.setattr(module, "free_shared_memory", lambda: room - 5)
    assert plan_workers(OPTIONS, batches=100) == (3, 3)
    assert "going on with 3, 3 batches ahead each" in caplog.text and "--shm-size" in caplog.text
    two = LoaderOptions(imgsz=64, batch_size=4, workers=3, world_size=2)
    assert plan_workers(two, batches=100) == (3, 1)
    assert plan_workers(OPTIONS, batches=1) == (1, 4)
    monkeypatch.setattr(module, "free_shared_memory", lambda: 0)
    assert plan_workers(OPTIONS, batches=100) == (0, 0)
    monkeypatch.setattr(module, "free_shared_memory", lambda: None)
    assert plan_workers(OPTIONS, batches=100) == (3, 4)


def test_a_loader_without_room_yields_the_same_batches_without_workers(data, monkeypatch):
    usual = build_loader(data, "train", imgsz=64, batch_size=4, workers=2)
    monkeypatch.setattr(module, "free_shared_memory", lambda: 1000)
    alone = build_loader(data, "train", imgsz=64, batch_size=4, workers=2)
    assert (usual.num_workers, alone.num_workers) == (2, 0)
    for one, other in zip(usual, alone, strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.targets, other.targets)
        assert one.images.is_shared() and not other.images.is_shared()


def end_by(number: int):
    """Return a `__getitem__` that ends its process by a signal."""
    return lambda self, key: os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGKILL, "a data worker was killed, most likely because the memory ran out"),
        (signal.SIGBUS, r"a data worker was ended: the shared memory \(/dev/shm\) is full"),
        (signal.SIGSEGV, r"a data worker was ended by a signal \(Segmentation fault\)"),
    ],
)
def test_a_worker_that_a_signal_ends_is_one_line(data, monkeypatch, number, said):
    loader = build_loader(data, "train", imgsz=64, batch_size=4, workers=1)
    monkeypatch.setattr(DetectionDataset, "__getitem__", end_by(number))
    with pytest.raises(UserError, match=said):
        list(loader)


def test_shared_memory_that_fills_while_batches_are_made_is_one_line(data, monkeypatch):
    def refuse(tensor: torch.Tensor) -> torch.Tensor:
        raise RuntimeError(
            "unable to allocate shared memory(shm) for file </torch_1_2_3>: No space left on"
            " device (28)\nmore lines"
        )

    monkeypatch.setattr(torch.Tensor, "share_memory_", refuse)
    loader = build_loader(data, "train", imgsz=64, batch_size=4, workers=1)
    with pytest.raises(UserError) as error:
        list(loader)
    assert "cannot hand over its batch: the shared memory (/dev/shm) is full" in str(error.value)
    assert "\n" not in str(error.value) and "Traceback" not in str(error.value)


class Stuck:
    """A part of a batch that cannot be handed over."""

    def __reduce__(self):
        raise OSError(errno.EMFILE, "Too many open files")


def test_a_worker_that_cannot_hand_its_batch_over_ends_and_says_why(data, monkeypatch, capfd):
    """The batch was lost and the main process waited for it for ever."""
    made = dataset_module.collate
    monkeypatch.setattr("data.loader.collate", lambda s: made(s)._replace(files=[Stuck()]))
    loader = build_loader(data, "train", imgsz=64, batch_size=4, workers=1)
    with pytest.raises(UserError, match="a data worker ended before its batch was done"):
        list(loader)
    printed = capfd.readouterr().err
    assert "data worker: a batch cannot be handed over: [Errno 24] Too many open" in printed
    assert "Traceback" not in printed


def test_workers_that_cannot_be_started_are_one_line(data, monkeypatch):
    def refuse() -> int:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refuse)
    loader = build_loader(data, "train", imgsz=64, batch_size=4, workers=1)
    with pytest.raises(UserError, match="no more data workers can be started.*fewer --workers"):
        list(loader)


KILLED = "DataLoader worker (pid 123) is killed by signal: Killed. "


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (KILLED, "memory ran out"),
        ("DataLoader worker (pid(s) 1, 2) exited unexpectedly", "ended before its batch was done"),
        ("DataLoader worker (pid 7) exited unexpectedly with exit code 1. Details", "ended before"),
        ("Too many open files. Communication with the workers is no longer possible", "ulimit"),
        ("mat1 and mat2 shapes cannot be multiplied", None),
    ],
)
def test_words_of_torch_become_ours(text, said):
    found = worker_reason(RuntimeError(text))
    assert found == "" if said is None else said in found


def test_a_worker_that_ends_while_the_main_process_computes_is_one_line(monkeypatch, capsys):
    """Torch raises its error anywhere in the program, not only where a batch is waited for."""

    def work(options: TrainOptions) -> None:
        raise RuntimeError(KILLED)

    monkeypatch.setattr("sys.argv", ["train.py"])
    with pytest.raises(SystemExit) as ended:
        run_script(TrainOptions, work, "")
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.startswith("error: a data worker was killed")
    assert error.count("\n") == 1


def test_free_space_is_that_of_the_system(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "SHARED_MEMORY", str(tmp_path))
    found = module.free_shared_memory()
    assert found is not None and found > 0
    monkeypatch.setattr(module, "SHARED_MEMORY", str(Path(tmp_path) / "none"))
    assert module.free_shared_memory() is None
