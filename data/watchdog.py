"""Notice data workers that live and give nothing: stopped, or hung in a read that never ends."""

import multiprocessing.process
import os
import signal
import threading
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

from data.files import IMAGE_SUFFIXES
from utils.errors import UserError
from utils.log import LOGGER

TICK = 5.0  # seconds between two looks, and at most a quarter of the limit
WARN_AFTER = 60.0  # seconds, and at most half of the limit
DYING = 2.0  # seconds that a killed worker is given to end
SHOWN = 4  # workers that a message names
STATES = {
    "R": "is computing",
    "S": "is asleep",
    "D": "waits for a disk or a network drive that does not answer",
    "T": "is stopped by a signal (SIGSTOP, Ctrl-Z)",
    "t": "is stopped by a debugger",
    "Z": "has ended",
    "X": "has ended",
}
"""What a state of Linux's /proc means for a user."""


class Watchdog:
    """A context in which the main process waits for a batch of its workers.

    A timer interrupts the waiting: torch has a timeout of its own, but it does not hold while the
    main process is handed a batch by a worker that is stopped. Only the time in which this process
    runs counts: after Ctrl-Z the workers have their time again.

    Args:
        workers: The data workers; without any, nothing is watched.
        limit: Seconds without a batch that end the waiting; 0: none do.
    """

    def __init__(self, workers: Sequence[BaseProcess], limit: float):
        self.workers, self.limit = workers, limit
        self.tick = min(TICK, limit / 4)
        self.warn_after = min(WARN_AFTER, limit / 2)
        self._waited, self._verdict = 0.0, ""
        in_main_thread = threading.current_thread() is threading.main_thread()
        can = hasattr(signal, "setitimer") and in_main_thread
        self._on = bool(workers) and limit > 0 and can

    def __enter__(self) -> "Watchdog":
        self._waited = 0.0
        if self._on:
            self._before = signal.signal(signal.SIGALRM, lambda *_: self.look())
            signal.setitimer(signal.ITIMER_REAL, self.tick, self.tick)
        return self

    def __exit__(self, *_: object) -> None:
        if self._on:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self._before)
        if self._verdict:  # whatever torch has made of the error on its way
            self._end_workers()
            raise UserError(self._verdict) from None

    def look(self) -> None:
        """Count one tick; warn, and in the end give up.

        Raises:
            UserError: No batch has come within the limit; names the state of each worker.
        """
        before, self._waited = self._waited, self._waited + self.tick
        if self._waited >= self.limit:
            self._verdict = self._verdict or (
                f"no batch has come from the data workers for {self.limit:g} s:"
                f" {describe(self.workers)}; --workers 0 needs none, --worker-timeout 0 waits for"
                " ever"
            )
            raise UserError(self._verdict)
        if before < self.warn_after <= self._waited:
            LOGGER.warning(
                f"no batch has come from the data workers for {self._waited:g} s:"
                f" {describe(self.workers)}; the run ends after {self.limit:g} s"
                " (--worker-timeout)"
            )

    def _end_workers(self) -> None:
        """Kill the workers: the exit of this process would wait for those that are stopped."""
        # torch's handler would raise an error of its own
        before = signal.signal(signal.SIGCHLD, lambda *_: None)
        for worker in self.workers:
            if worker.pid is not None and worker.is_alive():
                os.kill(worker.pid, signal.SIGKILL)
        for worker in self.workers:
            worker.join(DYING)
            if worker.is_alive():  # hung in the kernel: nothing can end it, so nobody waits for it
                getattr(multiprocessing.process, "_children", set()).discard(worker)
        signal.signal(signal.SIGCHLD, before)


def describe(workers: Sequence[BaseProcess]) -> str:
    """Return the state of the first workers, in words."""
    texts = [
        f"worker {number} (process {worker.pid}) {state_of(worker.pid or 0)}"
        for number, worker in enumerate(workers[:SHOWN], 1)
    ]
    more = len(workers) - SHOWN
    return ", ".join(texts) + (f" and {more} more" if more > 0 else "")


def state_of(process: int, proc: Path = Path("/proc")) -> str:
    """Return the state of a process, and the image that it reads, in words.

    Args:
        process: Its number.
        proc: Where the system keeps its processes.
    """
    try:
        letter = (proc / str(process) / "stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "has ended" if proc.is_dir() else "is in an unknown state"
    image = _open_image(proc / str(process) / "fd")
    state = STATES.get(letter, f"is in the state {letter}")
    return f"{state}, reading {image}" if image else state


def _open_image(folder: Path) -> str:
    """Return an image or cached array that a process has open, by its descriptors; "" without."""
    try:
        targets = [os.readlink(entry) for entry in folder.iterdir()]  # noqa: PTH115  as text
    except OSError:
        return ""
    kinds = IMAGE_SUFFIXES | {".npy"}
    return next((name for name in targets if Path(name).suffix.lower() in kinds), "")
