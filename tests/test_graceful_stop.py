"""Interrupts inside the process; tests/flow/test_resume.py sends them to whole programs."""

import os
import signal

import pytest

from utils.run_hooks import GracefulStop


class Finalized:
    """A signal arrives while this is thrown away, where Python cannot raise what its handler raises."""

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
