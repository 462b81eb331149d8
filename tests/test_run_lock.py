"""A run folder belongs to one living process; leftovers of killed ones go, other files stay."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import ROOT
from utils import run_lock as module
from utils.errors import UserError
from utils.files import atomic_open, sweep_leftovers
from utils.run_lock import LOCK_FILE, run_lock

HOLDER = """
import os, sys
from pathlib import Path
from utils.run_lock import run_lock
with run_lock(Path(sys.argv[1])):
    child = os.fork()  # as a data worker: it outlives the process that took the lock
    if child == 0:
        os.close(1)
        sys.stdin.read()
        os._exit(0)
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Let another process, which has a forked child, hold the lock of a folder."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", HOLDER, str(folder)]
    process = subprocess.Popen(command, cwd=ROOT, **pipes)  # type: ignore[call-overload]
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()  # closes the pipe, which ends the child too


def test_a_folder_is_refused_while_another_process_has_it_and_free_once_that_is_killed(tmp_path):
    (tmp_path / "results.csv").write_text("of the other run")
    with held(tmp_path) as process:
        with pytest.raises(UserError) as refused, run_lock(tmp_path):
            raise AssertionError("two runs in one folder")
        assert f"process {process.pid} on " in str(refused.value)
        assert "--name" in str(refused.value)
        process.send_signal(signal.SIGKILL)
        process.wait()
        with run_lock(tmp_path):  # though the child of the killed process lives
            assert (tmp_path / LOCK_FILE).read_text().startswith(f"process {os.getpid()} on ")
    assert (tmp_path / "results.csv").read_text() == "of the other run"


def test_the_lock_is_free_after_the_block_and_after_a_failure_in_it(tmp_path):
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), run_lock(tmp_path):
            raise error
    with held(tmp_path):
        pass


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, caplog):
    def unknown(descriptor: int, kind: int) -> None:
        raise OSError(module.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(module.fcntl, "lockf", unknown)
    monkeypatch.setattr(module.LOGGER, "propagate", True)
    with run_lock(tmp_path):
        pass
    assert "has no locks" in caplog.text


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    no_file = pytest.raises(UserError, match=r"gone: cannot be written: No such file")
    with no_file, run_lock(tmp_path / "gone"):
        pass


def test_leftovers_of_killed_runs_are_swept_and_the_files_of_others_stay(tmp_path):
    weights = tmp_path / "weights"
    weights.mkdir()
    stale = [weights / ".last.pt.ab3_9zzz.tmp", tmp_path / ".results.csv.aaaaaaaa.tmp"]
    own = [
        weights / ".last.pt.old.tmp",  # eight characters are drawn, never three
        weights / "last.pt.ab3_9zzz.tmp",
        weights / ".notes.ab3_9zzz.tmp",
        weights / ".last.pt.ab3_9zzz.tmp.keep",
        tmp_path / "mine" / ".last.pt.ab3_9zzz.tmp",
    ]
    for file in [*stale, *own]:
        file.parent.mkdir(exist_ok=True)
        file.write_text("x")
    link = weights / ".best.pt.ab3_9zzz.tmp"
    link.symlink_to(own[0])
    with run_lock(tmp_path):
        assert not any(file.exists() for file in stale)
        assert all(file.exists() for file in [*own, link])


def test_a_file_that_is_being_written_is_no_leftover(tmp_path):
    with atomic_open(tmp_path / "last.pt") as file:
        file.write(b"half")
        assert sweep_leftovers(tmp_path, seconds=0) == 0
        file.write(b" and half")
    assert (tmp_path / "last.pt").read_bytes() == b"half and half"
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_where_others_may_write_only_old_files_of_that_name_are_swept(tmp_path):
    names = [".a.npz.aaaaaaaa.tmp", ".a.npz.bbbbbbbb.tmp", ".b.npz.aaaaaaaa.tmp"]
    for name in names:
        (tmp_path / name).write_text("")
    for name in names[1:]:
        os.utime(tmp_path / name, (0, 0))
    assert sweep_leftovers(tmp_path, "a.npz") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [names[0], names[2]]
