"""convert.py as a user runs it: what it makes trains, a killed run leaves nothing done."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.flow.runs import TINY, environment, run, start
from tests.test_convert_formats import visdrone

pytestmark = pytest.mark.flow


def test_a_converted_set_trains(tmp_path: Path) -> None:
    visdrone(tmp_path)
    words = ("visdrone", "VisDrone", "--out", "sets/visdrone")
    done = run(*words, folder=tmp_path, script="convert.py")
    assert done.returncode == 0, done.stderr
    assert "val: 2 boxes left out: ignored region" in done.stdout
    again = run(*words, folder=tmp_path, script="convert.py")
    assert "Unchanged, as it was converted before" in again.stdout
    data = tmp_path / "sets/visdrone/data.yaml"
    trained = run(*TINY, "--data", data, "--epochs", "1", folder=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert run(*words, folder=tmp_path, script="convert.py").returncode == 0, (
        "the cache is no change"
    )


def test_mistakes_are_one_line_with_exit_code_2(tmp_path: Path) -> None:
    visdrone(tmp_path)
    for words, message in (
        (("visdrone", "gone", "--out", "o"), "gone: no such folder"),
        (("visdrone", "VisDrone"), "--out: not given"),
        (("visdrone",), "required: SOURCE"),
        (("voc", "VisDrone", "--out", "o"), "no XMLs of Pascal VOC"),
    ):
        done = run(*words, folder=tmp_path, script="convert.py")
        assert done.returncode == 2 and message in done.stderr, done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "o").exists()


def test_the_check_says_by_its_exit_code_what_it_found(tmp_path: Path) -> None:
    visdrone(tmp_path)  # all its pictures are the same
    run("visdrone", "VisDrone", "--out", tmp_path / "out", folder=tmp_path, script="convert.py")
    command = [sys.executable, "-m", "data.check", str(tmp_path / "out/data.yaml")]
    command += ["--project", str(tmp_path / "runs")]
    for words, code in (
        ([], 2),
        (["--no-compare"], 1),
        (["--no-compare", "--allow", "classes"], 0),
        (["--imgsz", "x"], 2),
    ):
        done = subprocess.run(
            [*command, *words], cwd=ROOT, env=environment(), capture_output=True, text=True
        )
        assert done.returncode == code, done.stdout + done.stderr
    assert (tmp_path / "runs/exp3/check.html").is_file()


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_leaves_nothing_that_looks_done(tmp_path: Path, kind: signal.Signals) -> None:
    source = visdrone(tmp_path) / "VisDrone2019-DET-train"
    for number in range(3000):
        os.link(source / "images/0001.jpg", source / f"images/x{number}.jpg")
        os.link(source / "annotations/0001.txt", source / f"annotations/x{number}.txt")
    words = ("visdrone", "VisDrone", "--out", "out")
    process = start(*words, folder=tmp_path, script="convert.py")
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".out-converting-*/fresh/labels/train/*7.txt")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(kind)
    process.communicate(timeout=60)
    assert not (tmp_path / "out").exists()
    assert len(list(tmp_path.glob(".out-*"))) == (kind == signal.SIGKILL)
    assert process.returncode == (130 if kind == signal.SIGINT else -signal.SIGKILL)
    done = run(*words, folder=tmp_path, script="convert.py")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out/labels/train").iterdir())) == 3002
    assert not list(tmp_path.glob(".out-*")), "what the killed run left is swept"
