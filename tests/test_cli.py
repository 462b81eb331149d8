"""The door of every script: what a user can mend is one line, what no user can mend a traceback."""

import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ROOT
from utils.cli import LONGEST_MESSAGE, PIPE_CLOSED, run_script
from utils.errors import UserError
from utils.options.base import Options, option


@dataclass(frozen=True)
class SomeOptions(Options):
    count: int = option(1, "a number")
    name: str = option("", "a word")


def outcome(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture, work: Callable, *words: str
) -> tuple[int, str]:
    """Exit code and standard error of a script that does `work`."""
    monkeypatch.setattr(sys, "argv", ["some.py", *words])
    with pytest.raises(SystemExit) as stop:
        run_script(SomeOptions, work, None)
    return int(str(stop.value.code)), capfd.readouterr().err


def raising(error: BaseException) -> Callable:
    def work(opt: SomeOptions) -> None:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("a:\n  wrong"), "error: a: wrong\n"),
        (OSError(36, "File name too long", "x" * 10), "error: xxxxxxxxxx: File name too long\n"),
        (PermissionError(13, "Permission denied", "/a"), "error: /a: Permission denied\n"),
        (OSError("odd"), "error: the operating system refuses: odd\n"),
        (MemoryError(), "error: out of memory: a smaller --imgsz"),
        (RuntimeError("[enforce fail] can't allocate memory: you"), "error: out of memory: [enfor"),
    ],
)
def test_an_error_that_can_be_mended_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture, error: Exception, line: str
) -> None:
    code, said = outcome(monkeypatch, capfd, raising(error))
    assert code == 2 and said.startswith(line) and said.count("\n") == 1


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["some.py"])
    for bug in (AssertionError("ours"), RuntimeError("ours"), KeyError("ours")):
        with pytest.raises(type(bug)):
            run_script(SomeOptions, raising(bug), None)


def test_the_line_is_bounded(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> None:
    _, said = outcome(monkeypatch, capfd, raising(UserError("a " * 10**6)))
    assert len(said) < LONGEST_MESSAGE + 20 and said.endswith("...\n")
    code, said = outcome(monkeypatch, capfd, print, "--count", "9" * 10**5)
    assert code == 2 and len(said) < 1100 and said.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("",), "unknown option ''"),
        (("--name", "a", ""), "unknown option ''"),
        (("--count", ""), "invalid int value: ''"),
        (("--count", "9" * 400), "--count 999"),
        (("--name", os.fsdecode(b"caf\xe9")), "is not UTF-8"),
    ],
)
def test_odd_arguments(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture, words: tuple, said: str
) -> None:
    code, line = outcome(monkeypatch, capfd, print, *words)
    assert code == 2 and said in line and line.count("\n") == 1


def test_another_rank_says_which_it_is_and_a_lost_peer_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    lost = RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [::1]:3")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, said = outcome(monkeypatch, capfd, raising(lost))
    assert code == 2 and said == (
        "error on rank 1: another process of this run has ended; its own line says why\n"
    )


def test_standard_output_takes_every_text_and_may_be_closed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["some.py"])
    run_script(SomeOptions, lambda opt: print(os.fsdecode(b"caf\xe9")), None)
    monkeypatch.setattr(sys, "stdout", None)
    run_script(SomeOptions, lambda opt: print("nobody reads this"), None)


def test_a_reader_that_has_gone_ends_the_script_silently(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "--help"],
        stdout=write,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        timeout=120,
        check=False,
    )
    os.close(write)
    assert done.stderr == b"" and done.returncode in {0, PIPE_CLOSED}


def test_a_package_calls_itself_as_it_is_run(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    for words in ([], ["--help"]):
        monkeypatch.setattr(sys, "argv", ["-m", *words])
        with pytest.raises(SystemExit):
            runpy.run_module("data.check", run_name="__main__", alter_sys=True)
    out, err = capfd.readouterr()
    assert out.startswith("usage: python -m data.check [-h]")
    assert err.startswith("python -m data.check: the following arguments are required: DATA")
    assert err.endswith("(all options: python -m data.check --help)\n")
