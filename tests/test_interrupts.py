"""Ctrl-C while a script imports its libraries: one line and exit code 130, never a traceback."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from utils.interrupts import is_importing, quiet_interrupts

LINE = "interrupted while the program was starting; nothing was changed\n"
SCRIPT = """
import sys
sys.path[:0] = [{root!r}, {folder!r}]
from utils.cli import run_script
from utils.options.base import Options

def work(opt):
    {work}

run_script(Options, work, "")
"""
SWALLOWING = """
import time
print("importing", flush=True)
try:
    time.sleep(60)
except BaseException as error:
    raise ImportError("a C extension could not be loaded") from error
"""


def interrupted(folder: Path, work: str, *numbers: int) -> tuple[int, str]:
    """Exit code and standard error of a script that is sent signals once it prints a line."""
    (folder / "swallowing.py").write_text(SWALLOWING)
    code = SCRIPT.format(root=str(ROOT), folder=str(folder), work=work)
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    for number in numbers:
        process.send_signal(number)
    _, said = process.communicate(timeout=60)
    return process.returncode, said


def test_an_import_that_swallows_everything_is_ended(tmp_path: Path):
    assert interrupted(tmp_path, "import swallowing", signal.SIGINT) == (130, LINE)
    twice = interrupted(tmp_path, "import swallowing", signal.SIGINT, signal.SIGINT)
    assert twice == (130, LINE)


def test_an_interrupt_of_the_work_itself_is_one_line_too(tmp_path: Path):
    work = "import time; print('working', flush=True); time.sleep(60)"
    assert interrupted(tmp_path, work, signal.SIGINT) == (130, "interrupted\n")


def test_the_usual_handler_comes_back_and_one_of_the_script_stays():
    before = signal.getsignal(signal.SIGINT)
    with quiet_interrupts(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before

    def own(*_) -> None:
        return

    try:
        with quiet_interrupts():
            signal.signal(signal.SIGINT, own)
        assert signal.getsignal(signal.SIGINT) is own
    finally:
        signal.signal(signal.SIGINT, before)


def test_frames_tell_an_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(tmp_path)
    text = "import sys\nfrom utils.interrupts import is_importing\n"
    (tmp_path / "asks_while_imported.py").write_text(
        text + "WHILE = is_importing(sys._getframe())\ndef later():\n"
        "    return is_importing(sys._getframe())\n"
    )
    import asks_while_imported  # type: ignore[import-not-found]

    assert asks_while_imported.WHILE and not asks_while_imported.later()
    assert not is_importing(None)


def test_another_thread_changes_no_handler():
    before, seen = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with quiet_interrupts():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.mark.flow
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc")
@pytest.mark.parametrize("script", ["train.py", "val.py"])
def test_ctrl_c_while_torch_is_imported(script: str, tmp_path: Path):
    words = ["--weights", "none.pt", "--data", "demo", "--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / script), *words],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    maps = Path(f"/proc/{process.pid}/maps")
    deadline = time.monotonic() + 120
    while process.poll() is None and "libtorch" not in maps.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert (process.returncode, said) == (130, LINE)
