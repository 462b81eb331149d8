"""Try every case of `cases.py` in a process of its own, and print the table of docs/reliability.md.

python -m tests.faults.harness
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.conftest import ROOT
from tests.faults.cases import CLEAR, SKIP, WORKS, Case, all_cases, prepare

TIMEOUT = 120  # seconds; a good command takes ten
OUTCOMES = (CLEAR, SKIP, WORKS, "silent", "traceback", "hang")
GOOD = (CLEAR, SKIP, WORKS)


def classify(case: Case, code: int, out: str, err: str) -> str:
    """Return what became of a case: one of `OUTCOMES` but `hang`.

    Args:
        case: The case.
        code: Exit code.
        out: Standard output.
        err: Standard error.
    """
    if "Traceback" in out + err or code not in {0, 2}:
        return "traceback"
    if code == 2:
        lines = [line for line in err.splitlines() if line.strip()]
        return CLEAR if len(lines) == 1 and len(lines[0]) < 2500 else "traceback"
    if case.outcome == SKIP:
        return SKIP if case.said in out + err else "silent"
    return WORKS if case.outcome == WORKS else "silent"


def attempt(case: Case, good: Path) -> str:
    """Run a case in a copy of the good folder; return what became of it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "work"
        shutil.copytree(good, folder)
        before = Path.cwd()
        os.chdir(folder)
        try:
            case.spoil()
        finally:
            os.chdir(before)
        script, *words = case.command
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": name}
        try:
            done = subprocess.run(
                [sys.executable, str(ROOT / script), *words],
                cwd=folder,
                env=environment,
                capture_output=True,
                timeout=TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return "hang"
    out, err = (text.decode(errors="backslashreplace") for text in (done.stdout, done.stderr))
    found = classify(case, done.returncode, out, err)
    if found not in GOOD or found != case.outcome:
        print(f"{case.kind}: {case.name}: {found}\n{err[-1500:]}", file=sys.stderr)
    return found


def table(counts: dict[str, Counter[str]]) -> str:
    """Return the numbers of each kind as a table, with the sums in the last row."""
    total = sum(counts.values(), Counter())
    rows = [*counts.items(), ("**all**", total)]
    lines = ["| kind | cases | " + " | ".join(OUTCOMES) + " |", "|---" * (2 + len(OUTCOMES)) + "|"]
    for kind, found in rows:
        cells = " | ".join(str(found[outcome]) for outcome in OUTCOMES)
        lines.append(f"| {kind} | {sum(found.values())} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """Try all cases and print the table."""
    counts: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name))
        for case in all_cases():
            counts.setdefault(case.kind, Counter())[attempt(case, Path(name))] += 1
    print(table(counts))


if __name__ == "__main__":
    main()
