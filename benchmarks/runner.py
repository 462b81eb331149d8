"""Runs of a long benchmark: each is a command in a folder of its own, and is run once."""

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
    """A command and what is known of it.

    Args:
        name: Name of the run and of its folder.
        words: Script and options.
        epochs: Epochs that the run trains.
        total: Epochs with those of the runs it starts from, back to the given weights.
        needs: Names of the runs that must be complete before.
        load: Time of one of its epochs, in epochs of the uncut YOLOv5n.
    """

    name: str
    words: tuple[str, ...]
    epochs: int
    total: int
    needs: tuple[str, ...] = ()
    load: float = 1.0


def chosen(runs: Sequence[Run], only: Sequence[str]) -> list[Run]:
    """Return the named runs with all runs that they need; all runs where `only` is empty.

    In `runs` each run comes after the runs that it needs.

    Raises:
        UserError: There is no run of a name.
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
    """Return whether the run's command, word for word, has been run to its end."""
    file = project / run.name / "done.json"
    if not file.is_file():
        return False
    return json.loads(file.read_text(encoding="utf-8"))["command"] == list(run.words)


def budget(runs: Sequence[Run], images: int, imgsz: int, jobs: int) -> str:
    """Return how long runs will take, from a few training steps of YOLOv5n on this machine.

    Args:
        runs: Runs to do.
        images: Number of training images.
        imgsz: Image size in pixels.
        jobs: Runs at a time.
    """
    if not runs:
        return "nothing to train"
    seconds = sum(run.epochs * run.load for run in runs) * images * seconds_per_image(imgsz)
    return (
        f"about {seconds / 60:.0f} minutes of one core, {seconds / 60 / jobs:.0f} with {jobs} at a"
        " time, if nothing else runs"
    )


def seconds_per_image(imgsz: int, batch: int = 16, steps: int = 3) -> float:
    """Return the seconds that a training image takes YOLOv5n on one thread.

    Forward and backward are timed; a fifth is added for loader, loss and validation.
    """
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
    """Run the runs that are not done, `jobs` at a time, each after the runs that it needs.

    Returns:
        Names of the runs that failed or could not start.
    """
    futures: dict[str, Future[bool]] = {}
    with ThreadPoolExecutor(jobs) as pool:
        # Needed runs come earlier, so a run only ever waits for a run that has its worker.
        for run in runs:
            needed = [futures[name] for name in run.needs]
            futures[run.name] = pool.submit(_one, project, run, needed, jobs)
    return [name for name, future in futures.items() if not future.result()]


def _one(project: Path, run: Run, needed: list["Future[bool]"], jobs: int) -> bool:
    """Run one run after the needed ones; return whether it is complete."""
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
    ending = "done" if code == 0 else f"FAILED ({code})"
    _say(f"{project.name}/{run.name}: {ending} after {minutes:.1f} minutes")
    if code == 0:
        record = {"command": list(run.words), "minutes": round(minutes, 2)}
        write_atomic(folder / "done.json", json.dumps(record, indent=2) + "\n")
    return code == 0


def _say(text: str) -> None:
    with _speaking:
        print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)
