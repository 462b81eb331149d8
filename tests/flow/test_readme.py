"""Every command that the README and docs/api.md show runs, in their order, at a tiny size in a copy
of the project.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.flow

TINY = {
    "train.py": ["--epochs", "1"],
    "train_sparse.py": ["--epochs", "1"],
    "distill.py": ["--epochs", "1"],
    "prune.py": ["--finetune-epochs", "1", "--repair-steps", "2", "--reconstruct-images", "16"],
    "report.py": ["--seconds", "1"],
}


def commands(page: str) -> list[str]:
    blocks = re.findall(
        r"```bash\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL
    )
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's tracked files in a folder of their own."""
    target = tmp_path_factory.mktemp("clone") / "project"
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


def run(command: list[str], cwd: Path) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_readme_commands_run_in_their_order(copy: Path):
    scripts = [line.split() for line in commands("README.md") if line.startswith("python ")]
    assert {line[1] for line in scripts} >= {"train.py", "prune.py", "val.py", "report.py"}
    for _, script, *options in scripts:
        if "--resume" in options:
            # a finished run has nothing to resume: tests/flow/test_resume.py interrupts one first
            continue
        short = ["--sparse-epochs", "1"] if "--sparse-epochs" in options else []
        run(
            [
                sys.executable,
                script,
                *options,
                *TINY.get(script, []),
                *short,
                *quick_search(options),
            ],
            copy,
        )
    assert (copy / "runs/report/exp/report.md").read_text().count("\n| ") >= 4


def quick_search(options: list[str]) -> list[str]:
    """The search over all layers on few images; the limits of one-epoch weights are loose."""
    return (
        ["--calib-batches", "1", "--initial-rate", ".2", "--initial-thres", "20"]
        if "pagcp" in options
        else []
    )


def test_make_demo_quick_runs_twice_over_the_same_folder(copy: Path):
    for _ in range(2):
        out = run(["make", "demo", "DEMO_QUICK=1", f"PYTHON={sys.executable}"], copy)
    assert "2x, finetuned" in out and "runs/demo/report/accuracy.png" in out
    listed = [line.strip() for line in out.splitlines() if line.startswith("  runs/demo/")]
    assert listed and all((copy / path).is_file() for path in listed)


def test_make_test_is_what_the_readme_says():
    out = run(["make", "-n", "test", f"PYTHON={sys.executable}"], ROOT)
    assert all(
        word in out for word in ("ruff check", "ruff format --check", "basedpyright", "pytest")
    )


def test_api_page_runs(copy: Path):
    (code,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs/api.md").read_text(encoding="utf-8"), flags=re.DOTALL
    )
    (copy / "api_page.py").write_text(code)
    assert "lamp" in run([sys.executable, "api_page.py"], copy)


def test_every_page_that_the_readme_links_exists():
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert links and not [link for link in links if not (ROOT / link).exists()]
