"""Runs of a long benchmark: each one a command of a script, in a folder of its own, run once and
never again.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError
from utils.files import write_atomic
from utils.timing import alternate, median_ms

ROOT = Path(__file__).resolve().parent.parent
_speaking = threading.Lock()


@dataclass(frozen=True)
class Run:
    """One command.

    `epochs`: how long it trains; `total`: with those of the runs it starts from, back to the given
    weights.
    """

    name: str
    words: tuple[str, ...]
    epochs: int
    total: int
    needs: tuple[str, ...] = ()
    load: float = 1.0  # of one of its epochs, in epochs of the uncut YOLOv5n


def chosen(runs: Sequence[Run], only: Sequence[str]) -> list[Run]:
    """The runs of these names with all that they need; all of them where none is named.

    Needed ones come earlier in `runs`.
    """
    if unknown := [name for name in only if name not in {run.name for run in runs}]:
        raise UserError(
            f"--only {' '.join(unknown)}: no such run; there are"
            f" {', '.join(run.name for run in runs)}"
        )
    wanted = set(only) or {run.name for run in runs}
    for run in reversed(runs):
        if run.name in wanted:
            wanted |= set(run.needs)
    return [run for run in runs if run.name in wanted]


def done(project: Path, run: Run) -> bool:
    """Whether this very command has been run to its end."""
    file = project / run.name / "done.json"
    return file.is_file() and json.loads(file.read_text(encoding="utf-8"))["command"] == list(
        run.words
    )


def budget(runs: Sequence[Run], images: int, imgsz: int, jobs: int) -> str:
    """How long the runs will take, told from a few training steps of YOLOv5n on this machine."""
    if not runs:
        return "nothing to train"
    seconds = sum(run.epochs * run.load for run in runs) * images * seconds_per_image(imgsz)
    return (
        f"about {seconds / 60:.0f} minutes of one core, {seconds / 60 / jobs:.0f} with {jobs} at a"
        " time, if nothing else runs"
    )


def seconds_per_image(imgsz: int, batch: int = 16, steps: int = 3) -> float:
    """Of forward and backward on one thread, a fifth added for loader, loss and validation."""
    import torch

    from models import build_model

    torch.set_num_threads(1)
    model = build_model("yolov5n").train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.rand(batch, 3, imgsz, imgsz).contiguous(memory_format=torch.channels_last)

    def step() -> None:
        torch.stack([level.square().mean() for level in model(images)]).sum().backward()

    [times] = alternate({"step": step}, seconds=0, min_rounds=steps).values()
    return 1.2 * median_ms(times) / 1000 / batch


def execute(project: Path, runs: Sequence[Run], jobs: int) -> list[str]:
    """Run what is not done, `jobs` at a time, each after those it needs.

    Names of those that failed or could not start.
    """
    futures: dict[str, Future[bool]] = {}
    with ThreadPoolExecutor(jobs) as pool:
        for (
            run
        ) in runs:  # needed ones come earlier, so whoever waits waits for a run that has its worker
            futures[run.name] = pool.submit(
                _one, project, run, [futures[name] for name in run.needs], jobs
            )
    return [name for name, future in futures.items() if not future.result()]


def _one(project: Path, run: Run, needed: list["Future[bool]"], jobs: int) -> bool:
    if not all(future.result() for future in needed):
        return False
    if done(project, run):
        return True
    folder = project / run.name
    folder.mkdir(parents=True, exist_ok=True)
    threads = max((os.cpu_count() or 1) // jobs, 1)
    start = time.monotonic()
    _say(f"{project.name}/{run.name}: python {' '.join(run.words)}")
    with (folder / "console.txt").open("w", encoding="utf-8") as console:
        command = [sys.executable, *run.words, "--noplots"]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        code = subprocess.run(
            command, cwd=ROOT, stdout=console, stderr=subprocess.STDOUT, env=environment
        ).returncode
    minutes = (time.monotonic() - start) / 60
    _say(
        f"{project.name}/{run.name}: {'done' if code == 0 else f'FAILED ({code})'} after"
        f" {minutes:.1f} minutes"
    )
    if code == 0:
        write_atomic(
            folder / "done.json",
            json.dumps({"command": list(run.words), "minutes": round(minutes, 2)}, indent=2) + "\n",
        )
    return code == 0


def _say(text: str) -> None:
    with _speaking:
        print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)
