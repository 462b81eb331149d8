"""The pruning tables of docs/results.md: every method on real photos (BCCD) and on the demo set, from training to latency.

    python benchmarks/results.py --bccd ../shared/datasets/bccd --weights ../shared/weights/yolov5n.pt     # hours
    python benchmarks/results.py --set demo --jobs 2

Prints its time budget first. A run that is complete is not run again, so an interrupted benchmark goes on where it stopped.
On BCCD a fifth of the training images is set aside for choosing checkpoints; the tables are of its validation part, which no
run sees. Every run's command is in its `done.json`.
"""

import json
import os
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.results_runs import METHODS, SPARSE_METHODS, Recipe, Run, runs_of  # noqa: E402
from benchmarks.results_tables import write_tables  # noqa: E402
from utils.cli import run_script  # noqa: E402
from utils.config import save_yaml  # noqa: E402
from utils.errors import UserError  # noqa: E402
from utils.files import write_atomic  # noqa: E402
from utils.options import option  # noqa: E402
from utils.timing import alternate, median_ms  # noqa: E402

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class ResultsOptions:
    """What to run."""

    set: str = option("all", "which tables", choices=("all", "bccd", "demo"))
    bccd: str = option("../shared/datasets/bccd", "folder of BCCD with images/{train,val} and labels/")
    weights: str = option("../shared/weights/yolov5n.pt", "what BCCD's base starts from")
    jobs: int = option(1, "runs at a time; each gets its share of the CPU cores", least=1)
    only: tuple[str, ...] = option((), "these runs alone, and those they need", multi=True)
    project: str = option("runs/results", "folder of the runs")
    seconds: float = option(60.0, "how long latencies are measured in the end")
    tables: bool = option(True, "measure and write the tables after the runs")


def main(opt: ResultsOptions) -> None:
    """Run what is missing, then measure everything side by side."""
    recipes = [make(opt) for name, make in RECIPES.items() if opt.set in ("all", name)]
    for recipe in recipes:
        todo = chosen(runs_of(recipe), opt.only)
        missing = [run for run in todo if not done(recipe, run)]
        print(f"{recipe.name}: {len(todo)} runs, {len(missing)} to do; {budget(recipe, missing, opt.jobs)}", flush=True)
    for recipe in recipes:
        failed = execute(recipe, chosen(runs_of(recipe), opt.only), opt.jobs)
        if failed:
            raise UserError(f"{recipe.name}: these runs failed, see their log.txt in {recipe.project}: {', '.join(failed)}")
        if opt.tables:
            print(write_tables(recipe, runs_of(recipe), opt.seconds), flush=True)


def bccd(opt: ResultsOptions) -> Recipe:
    """Real photos, from official pretrained weights."""
    project = Path(opt.project).resolve() / "bccd"
    data = carve(Path(opt.bccd).resolve(), project / "data", share=0.2)
    weights = Path(opt.weights).resolve()
    if not weights.is_file():
        raise UserError(f"--weights {opt.weights}: no such file; take the official yolov5n.pt")
    hyp = str(ROOT / "benchmarks" / "hyps" / "bccd.yaml")
    return Recipe(
        name="bccd",
        data=str(data),
        start=("--weights", str(weights)),
        hyp=hyp,
        finetune_hyp=hyp,
        imgsz=224,
        images=164,
        base_epochs=40,
        finetune_epochs=40,
        methods=(*METHODS, *SPARSE_METHODS),
        curve=(1.5, 2.0, 3.0, 4.0),
        seeds=(0, 1, 2),
        project=project,
    )


def demo(opt: ResultsOptions) -> Recipe:
    """The embedded set, from nothing."""
    return Recipe(
        name="demo",
        data="demo",
        start=("--cfg", "yolov5n"),
        hyp="demo",
        finetune_hyp="demo-finetune",
        imgsz=128,
        images=400,
        base_epochs=40,
        finetune_epochs=20,
        methods=("l1", "lamp", "slim", "group_sl"),
        curve=(),
        seeds=(0,),
        project=Path(opt.project).resolve() / "demo",
    )


RECIPES = {"bccd": bccd, "demo": demo}


def carve(source: Path, folder: Path, share: float) -> Path:
    """Data YAMLs in `folder`: `choose.yaml` (train on the rest, validate on `share` of the training images) and `report.yaml`."""
    files = sorted(p for p in (source / "images" / "train").glob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise UserError(f"--bccd {source}: has no images/train; fetch BCCD as data/configs/bccd.yaml says")
    aside = set(random.Random(0).sample(files, round(share * len(files))))
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", [f for f in files if f not in aside]), ("choose", sorted(aside))):
        write_atomic(folder / f"{name}.txt", "".join(f"{file}\n" for file in part))
    names = {"names": ["RBC", "WBC", "Platelets"]}
    common = {"path": str(folder), "train": "train.txt"}
    save_yaml({**common, "val": "choose.txt", **names}, folder / "choose.yaml")
    save_yaml({**common, "val": str(source / "images" / "val"), **names}, folder / "report.yaml")
    return folder / "choose.yaml"


def chosen(runs: list[Run], only: tuple[str, ...]) -> list[Run]:
    """The runs of these names with all that they need; all of them where none is named."""
    if unknown := [name for name in only if name not in {run.name for run in runs}]:
        raise UserError(f"--only {' '.join(unknown)}: no such run; there are {', '.join(run.name for run in runs)}")
    wanted = set(only) or {run.name for run in runs}
    for run in reversed(runs):
        if run.name in wanted:
            wanted |= set(run.needs)
    return [run for run in runs if run.name in wanted]


def done(recipe: Recipe, run: Run) -> bool:
    """Whether this very command has been run to its end."""
    file = recipe.project / run.name / "done.json"
    return file.is_file() and json.loads(file.read_text(encoding="utf-8"))["command"] == list(run.words)


def budget(recipe: Recipe, runs: list[Run], jobs: int) -> str:
    """How long the runs will take, told from a few training steps of YOLOv5n on this machine."""
    if not runs:
        return "nothing to train"
    images = sum(run.epochs * run.load for run in runs) * recipe.images
    minutes = images * seconds_per_image(recipe.imgsz) / 60
    return f"about {minutes:.0f} minutes of one core and {minutes / jobs:.0f} of {jobs} at a time, if nothing else runs"


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


def execute(recipe: Recipe, runs: list[Run], jobs: int) -> list[str]:
    """Run what is not done, `jobs` at a time, each after those it needs. Names of those that failed or could not start."""
    futures: dict[str, Future[bool]] = {}
    with ThreadPoolExecutor(jobs) as pool:
        for run in runs:  # needed ones come earlier, so whoever waits waits for a run that has its worker
            futures[run.name] = pool.submit(_one, recipe, run, [futures[name] for name in run.needs], jobs)
    return [name for name, future in futures.items() if not future.result()]


def _one(recipe: Recipe, run: Run, needed: list["Future[bool]"], jobs: int) -> bool:
    if not all(future.result() for future in needed):
        return False
    if done(recipe, run):
        return True
    folder = recipe.project / run.name
    folder.mkdir(parents=True, exist_ok=True)
    threads = max((os.cpu_count() or 1) // jobs, 1)
    start = time.monotonic()
    _say(f"{recipe.name}/{run.name}: python {' '.join(run.words)}")
    with (folder / "console.txt").open("w", encoding="utf-8") as console:
        command = [sys.executable, *run.words, "--noplots"]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        code = subprocess.run(command, cwd=ROOT, stdout=console, stderr=subprocess.STDOUT, env=environment).returncode
    minutes = (time.monotonic() - start) / 60
    _say(f"{recipe.name}/{run.name}: {'done' if code == 0 else f'FAILED ({code})'} after {minutes:.1f} minutes")
    if code == 0:
        write_atomic(
            folder / "done.json", json.dumps({"command": list(run.words), "minutes": round(minutes, 2)}, indent=2) + "\n"
        )
    return code == 0


_speaking = threading.Lock()


def _say(text: str) -> None:
    with _speaking:
        print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


if __name__ == "__main__":
    run_script(ResultsOptions, main, __doc__)
