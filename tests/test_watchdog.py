"""Data workers that live and give nothing: a warning, then one line, and never a wait for ever."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import data.watchdog as watchdog_module
from data.config import DataConfig, load_data
from data.dataset import DetectionDataset
from data.loader import build_loader
from data.watchdog import Watchdog, describe, state_of
from tests.conftest import ROOT
from tests.data_sets import write_set
from utils.errors import UserError
from utils.log import LOGGER

LINUX = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DataConfig:
    return load_data(write_set(tmp_path_factory.mktemp("set"), [(64, 64)] * 12))


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(LOGGER, "warning", said.append)
    return said


def loader_of(data: DataConfig, limit: float, workers: int = 2):
    return build_loader(
        data, "train", imgsz=64, batch_size=1, workers=workers, worker_timeout=limit
    )


@LINUX
def test_stopped_workers_are_named_and_end_the_waiting(data: DataConfig, warnings: list[str]):
    batches = iter(loader_of(data, limit=4))
    next(batches)
    workers = batches.gi_yieldfrom.gi_frame.f_locals["watchdog"].workers  # type: ignore[attr-defined]
    for worker in workers:
        os.kill(worker.pid, signal.SIGSTOP)
    start = time.monotonic()
    with pytest.raises(UserError) as error:
        list(batches)  # what was made ahead is in the queue, but its memory is the workers'
    assert time.monotonic() - start < 60
    text = str(error.value)
    assert text.startswith("no batch has come from the data workers for 4 s: worker 1 (process ")
    assert text.count("is stopped by a signal") == 2 and "\n" not in text
    assert len(warnings) == 1 and "the run ends after 4 s" in warnings[0]
    assert not any(worker.is_alive() for worker in workers)
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL


@LINUX
def test_workers_that_hang_in_reading_are_named(data: DataConfig, monkeypatch, warnings):
    def hang(self, key):
        with self.files[0].open("rb"):
            time.sleep(100)

    monkeypatch.setattr(DetectionDataset, "__getitem__", hang)
    with pytest.raises(UserError, match=r"is asleep, reading .*/000\.png.*--workers 0 needs none"):
        list(loader_of(data, limit=2, workers=1))


def test_slow_workers_are_waited_for_after_a_warning(data: DataConfig, monkeypatch, warnings):
    usual = DetectionDataset.__getitem__

    def slow(self, key):
        if key[1] == 3:
            time.sleep(2.5)
        return usual(self, key)

    monkeypatch.setattr(watchdog_module, "TICK", 0.5)
    monkeypatch.setattr(watchdog_module, "WARN_AFTER", 1.0)
    monkeypatch.setattr(DetectionDataset, "__getitem__", slow)
    assert len(list(loader_of(data, limit=60, workers=1))) == 12
    assert any("for 1 s" in line and "the run ends after 60 s" in line for line in warnings)


@pytest.mark.parametrize(("limit", "workers"), [(0, 2), (600, 0)])
def test_nothing_is_watched_without_a_limit_or_workers(data, limit: float, workers: int):
    loader = loader_of(data, limit, workers)
    assert len(list(loader)) == 12
    with Watchdog((), 1):
        assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_time_counts_by_ticks_so_that_a_pause_of_the_whole_program_does_not(warnings):
    dog = Watchdog((), 600)
    assert (dog.tick, dog.warn_after) == (5, 60)
    for _ in range(11):
        dog.look()
    assert warnings == []
    dog.look()
    assert len(warnings) == 1 and "for 60 s" in warnings[0]
    for _ in range(107):
        dog.look()
    assert len(warnings) == 1
    with pytest.raises(UserError, match="for 600 s"):
        dog.look()


def test_states_are_words(tmp_path: Path):
    for letter, words in (("D", "network drive"), ("R", "computing"), ("T", "SIGSTOP"), ("?", "?")):
        (tmp_path / "7").mkdir(exist_ok=True)
        (tmp_path / "7" / "stat").write_text(f"7 (a) b (c) {letter} 1 2 3")
        assert words in state_of(7, tmp_path)
    assert state_of(8, tmp_path) == "has ended"
    assert state_of(8, tmp_path / "nowhere") == "is in an unknown state"


def test_a_message_names_four_workers_at_most():
    class Worker:
        pid = os.getpid()

    text = describe([Worker()] * 6)  # type: ignore[list-item]
    assert text.count("worker ") == 4 and text.endswith("and 2 more")


UNKILLABLE = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import data.watchdog as module
from data.config import load_data
from data.loader import build_loader
from pathlib import Path
from tests.data_sets import write_set
from utils.errors import UserError

module.DYING = 0.2

def work():
    loader = build_loader(load_data(write_set(Path(sys.argv[2]), [(64, 64)] * 12)), "train",
                          imgsz=64, batch_size=1, workers=1, worker_timeout=1)
    batches = iter(loader)
    next(batches)
    (worker,) = batches.gi_yieldfrom.gi_frame.f_locals["watchdog"].workers
    os.kill(worker.pid, signal.SIGSTOP)
    print("worker", worker.pid, flush=True)
    os.kill = lambda pid, number: None  # as where a process hangs in the kernel
    list(batches)

try:
    work()
except UserError as error:
    print("said:", error, flush=True)
    raise SystemExit(2)
"""


@LINUX
def test_a_worker_that_cannot_be_killed_does_not_keep_the_program(tmp_path: Path):
    said = tmp_path / "said.txt"  # no pipe: the worker would keep it open
    with said.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", UNKILLABLE, str(ROOT), str(tmp_path)],
            stdout=file,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    try:
        assert process.wait(timeout=120) == 2
        assert "said: no batch has come" in said.read_text()
    finally:
        process.kill()
        for worker in re.findall(r"(?m)^worker (\d+)$", said.read_text()):
            os.kill(int(worker), signal.SIGKILL)
