"""The fault harness: a sample in this process for CI; as slow tests all, one process each."""

import contextlib
import io
import runpy
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.faults.cases import CLEAR, SKIP, WORKS, Case, all_cases, prepare
from tests.faults.harness import attempt, classify, table

CASES = all_cases()
EVERY = 2  # of the cases, CI tries one in so many


def title(case: Case) -> str:
    return f"{case.kind}: {case.name}"


@pytest.fixture(scope="module")
def good() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name))
        yield Path(name)


@pytest.mark.parametrize("case", CASES[::EVERY], ids=title)
def test_a_sample(case: Case, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(good, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    case.spoil()
    script, *words = case.command
    monkeypatch.setattr(sys, "argv", [script, *words])
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as stop:
            code = int(str(stop.code or 0))
    found = classify(case, code, out.getvalue(), err.getvalue())
    assert found == case.outcome, err.getvalue()[-1500:]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=title)
def test_every_case_in_a_process_of_its_own(case: Case, good: Path) -> None:
    assert attempt(case, good) == case.outcome


def test_outcomes_are_told_apart() -> None:
    case = Case("k", "n", lambda: None, ())
    assert classify(case, 2, "", "error: a\n") == CLEAR
    assert classify(case, 2, "", "error: a\nand b\n") == "traceback"
    assert classify(case, 0, "fine", "") == "silent" and classify(case, -11, "", "") == "traceback"
    assert classify(case, 1, "", "Traceback (most") == "traceback"
    skip = Case("k", "n", lambda: None, (), SKIP, "left out")
    assert classify(skip, 0, "2 left out", "") == SKIP and classify(skip, 0, "", "") == "silent"
    assert classify(Case("k", "n", lambda: None, (), WORKS), 0, "", "") == WORKS


def test_the_table_of_the_docs_counts_all_cases() -> None:
    from collections import Counter

    counts = Counter(case.kind for case in CASES)
    text = (ROOT / "docs" / "reliability.md").read_text()
    for kind, number in counts.items():
        assert f"| {kind} | {number} | " in text, f"run python -m tests.faults.harness: {kind}"
    found = table({"a": Counter({CLEAR: 2, "hang": 1})})
    assert "| a | 3 | 2 | 0 | 0 | 0 | 0 | 1 |" in found and "| **all** | 3 |" in found
