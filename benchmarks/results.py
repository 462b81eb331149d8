"""Make the pruning tables of docs/results.md: every method on real photos and the demo set.

    python benchmarks/results.py --sets FOLDER --weights yolov5n.pt    # hours
    python benchmarks/results.py --set demo --jobs 2

The tables cover training, pruning, finetuning and latency. The time budget is printed first. A
complete run is not run again, so an interrupted benchmark goes on where it stopped. On the real
sets a fifth of the training images is set aside for choosing checkpoints; the tables are of the
validation part, which no run sees. Every run's command is in its `done.json`.
"""

import random
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.results_runs import (  # noqa: E402
    METHODS,
    SPARSE_METHODS,
    Recipe,
    demo_recipe,
    runs_of,
)  # noqa: E402
from benchmarks.results_tables import write_tables  # noqa: E402
from benchmarks.runner import budget, chosen, done, execute  # noqa: E402
from utils.cli import run_script  # noqa: E402
from utils.config import load_yaml, save_yaml  # noqa: E402
from utils.errors import UserError  # noqa: E402
from utils.files import write_atomic  # noqa: E402
from utils.options.base import option  # noqa: E402

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class ResultsOptions:
    """Options of the benchmark."""

    set: str = option(
        "all", "which tables", choices=("all", "bccd", "aquarium", "vehicles", "demo")
    )
    sets: str = option(
        "../shared/datasets", "folder of the real sets, each with NAME.yaml, images/ and labels/"
    )
    weights: str = option("../shared/weights/yolov5n.pt", "what the real sets' bases start from")
    jobs: int = option(1, "runs at a time; each gets its share of the CPU cores", least=1)
    only: tuple[str, ...] = option((), "these runs alone, and those they need", multi=True)
    project: str = option("runs/results", "folder of the runs")
    seconds: float = option(60.0, "how long latencies are measured in the end")
    tables: bool = option(True, "measure and write the tables after the runs")


def main(opt: ResultsOptions) -> None:
    """Run the missing runs, then measure all models side by side."""
    recipes = [make(opt) for name, make in RECIPES.items() if opt.set in ("all", name)]
    for recipe in recipes:
        todo = chosen(runs_of(recipe), opt.only)
        missing = [run for run in todo if not done(recipe.project, run)]
        needed = budget(missing, recipe.images, recipe.imgsz, opt.jobs)
        print(f"{recipe.name}: {len(todo)} runs, {len(missing)} to do; {needed}", flush=True)
    for recipe in recipes:
        failed = execute(recipe.project, chosen(runs_of(recipe), opt.only), opt.jobs)
        if failed:
            raise UserError(
                f"{recipe.name}: these runs failed, see their log.txt in {recipe.project}:"
                f" {', '.join(failed)}"
            )
        if opt.tables:
            print(write_tables(recipe, runs_of(recipe), opt.seconds), flush=True)


def photos(name: str, images: int, hyp: str, opt: ResultsOptions) -> Recipe:
    """Return the settings of a set of real photos, from official pretrained weights.

    Args:
        name: Name of the set and of its folder.
        images: Number of images that are left for training.
        hyp: Name of a hyp file of the benchmarks.
        opt: Options of the benchmark.

    Raises:
        UserError: There are no weights or no images.
    """
    project = Path(opt.project).resolve() / name
    data = carve(Path(opt.sets).resolve() / name, project / "data", share=0.2)
    weights = Path(opt.weights).resolve()
    if not weights.is_file():
        raise UserError(f"--weights {opt.weights}: no such file; take the official yolov5n.pt")
    file = f"benchmarks/hyps/{hyp}.yaml"  # commands run in the project folder
    return Recipe(
        name=name,
        data=str(data),
        start=("--weights", str(weights)),
        hyp=file,
        finetune_hyp=file,
        imgsz=224,
        images=images,
        base_epochs=40,
        finetune_epochs=40,
        methods=(*METHODS, *SPARSE_METHODS),
        curve=(1.5, 2.0, 3.0, 4.0),
        longer=("slim",),
        seeds=(0, 1, 2),
        project=project,
    )


def demo(opt: ResultsOptions) -> Recipe:
    """Return the settings of the embedded set, from new weights."""
    return demo_recipe(
        Path(opt.project).resolve() / "demo", methods=("l1", "lamp", "slim", "group_sl")
    )


RECIPES = {
    "bccd": partial(photos, "bccd", 164, "bccd"),
    "aquarium": partial(photos, "aquarium", 358, "photos"),
    "vehicles": partial(photos, "vehicles", 351, "photos"),
    "demo": demo,
}


def carve(source: Path, folder: Path, share: float) -> Path:
    """Split a set into images to train on, to choose checkpoints by and to report on.

    Args:
        source: Folder of the set, with a data YAML of its name.
        folder: Folder that gets the data YAMLs: `choose.yaml` validates on the training images set
            aside, `report.yaml` on the validation part.
        share: Share of the training images to set aside.

    Returns:
        The path of `choose.yaml`.

    Raises:
        UserError: There are no training images.
    """
    found = (source / "images" / "train").glob("*")
    files = sorted(file for file in found if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise UserError(
            f"--sets: {source} has no images/train; fetch the set first, as for BCCD"
            " data/configs/bccd.yaml says"
        )
    aside = set(random.Random(0).sample(files, round(share * len(files))))
    folder.mkdir(parents=True, exist_ok=True)
    parts = {"train": [file for file in files if file not in aside], "choose": sorted(aside)}
    for name, part in parts.items():
        write_atomic(folder / f"{name}.txt", "".join(f"{file}\n" for file in part))
    names = {"names": load_yaml(source / f"{source.name}.yaml")["names"]}
    common = {"path": str(folder), "train": "train.txt"}
    save_yaml({**common, "val": "choose.txt", **names}, folder / "choose.yaml")
    save_yaml({**common, "val": str(source / "images" / "val"), **names}, folder / "report.yaml")
    return folder / "choose.yaml"


if __name__ == "__main__":
    run_script(ResultsOptions, main, __doc__)
