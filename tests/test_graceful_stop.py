"""Interrupts inside the process; tests/flow/test_resume.py sends them to whole programs."""

import os
import signal

import pytest

from utils.engine.run_hooks import GracefulStop


class Finalized:
    """A signal arrives while this is thrown away, where Python cannot raise what its handler
    raises.
    """

    def __init__(self, act):
        self.act = act

    def __del__(self):
        self.act()


def fail():
    raise ValueError("of its own")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_in_a_finalizer_is_no_traceback_and_stops_at_the_next_batch(monkeypatch):
    printed = []
    monkeypatch.setattr("sys.unraisablehook", lambda found: printed.append(found.exc_type))
    with pytest.raises(SystemExit) as ended, GracefulStop(lambda: "go on so") as stop:
        Finalized(fail)  # thrown away at once
        Finalized(lambda: os.kill(os.getpid(), signal.SIGINT))
        assert printed == [ValueError]
        stop.on_batch_end(None)  # type: ignore[arg-type]
    assert ended.value.code == 130 and printed == [ValueError]


def test_a_data_worker_that_ends_in_the_same_moment_is_no_traceback(monkeypatch):
    """Both signals wait; SIGINT's handler runs first, and the one of SIGCHLD, as torch sets it,
    would report a dead worker.
    """
    printed, both = [], {signal.SIGINT, signal.SIGCHLD}
    monkeypatch.setattr("sys.unraisablehook", lambda found: printed.append(found.exc_value))
    before = signal.signal(signal.SIGCHLD, lambda *_: fail())
    try:
        with pytest.raises(SystemExit) as ended, GracefulStop(lambda: "go on so"):
            signal.pthread_sigmask(signal.SIG_BLOCK, both)
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGCHLD)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, both)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, both)
        signal.signal(signal.SIGCHLD, before)
    assert ended.value.code == 130 and not printed
