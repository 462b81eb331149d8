"""The main job from nothing: train -> prune to 2x -> finetune -> validate -> report, on the
embedded demo set.

Each stage is the command that a user would type; it is printed before it runs. `make demo` calls
this file.
"""

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from utils.cli import run_script
from utils.options.base import Options, option

ROOT = Path(__file__).resolve().parent


@dataclass(frozen=True)
class DemoOptions(Options):
    """Options of the demo."""

    quick: bool = option(
        False,
        "a two-minute size that shows the steps, too short for good accuracy",
        group="run",
    )
    project: str = option(
        "runs/demo",
        "folder of the demo's runs; runs of the same names in it are overwritten",
        group="run",
    )


@dataclass(frozen=True)
class Size:
    """Size of the demo.

    Args:
        base_epochs: Epochs of the base model.
        finetune_epochs: Epochs of a finetune.
        latency_seconds: Seconds spent on measuring latency.
        repair_steps: Steps of the repair after the cut.
    """

    base_epochs: int
    finetune_epochs: int
    latency_seconds: int
    repair_steps: int


FULL = Size(base_epochs=40, finetune_epochs=20, latency_seconds=20, repair_steps=300)
QUICK = Size(base_epochs=3, finetune_epochs=1, latency_seconds=3, repair_steps=5)


def stages(size: Size, project: str) -> list[tuple[str, list[str]]]:
    """Return title and command of every stage; `project` is the folder of the runs."""
    data = ["--data", "demo", "--imgsz", "128", "--batch-size", "16"]
    where = ["--project", project, "--exist-ok"]
    base = f"{project}/base/weights/best.pt"
    epochs = str(size.finetune_epochs)
    train = f"train.py --cfg yolov5n --hyp demo --epochs {size.base_epochs} --name base".split()
    cut = ["--speed-up", "2.0", "--name", "pruned-2x"]
    cut += ["--repair-steps", str(size.repair_steps)]
    finetune = ["--finetune-epochs", epochs, "--finetune-hyp", "demo-finetune"]
    control = f"--hyp demo-finetune --epochs {epochs} --name base-finetuned".split()
    return [
        (f"train the base model, {size.base_epochs} epochs", [*train, *data, *where]),
        (
            f"cut it to half its GFLOPs and finetune, {epochs} epochs",
            ["prune.py", "--weights", base, *cut, *finetune, *data, *where],
        ),
        (
            f"the fair control: the same {epochs} epochs for the uncut base model",
            ["train.py", "--weights", base, *control, *data, *where],
        ),
        ("compare them", [*_comparison(size, project), *where]),
    ]


def _comparison(size: Size, project: str) -> list[str]:
    """Return the command that compares the models of the demo."""
    runs = [f"{project}/{name}" for name in ("base", "base-finetuned", "pruned-2x")]
    labels = ["base", "base + finetune, uncut", "2x, before the finetune", "2x, finetuned"]
    seconds = str(size.latency_seconds)
    return ["report.py", *runs, "--labels", *labels, "--seconds", seconds, "--name", "report"]


def main(opt: DemoOptions) -> None:
    """Run the stages one after the other; the first that fails ends the demo with its exit code."""
    start = time.monotonic()
    todo = stages(QUICK if opt.quick else FULL, opt.project)
    for number, (title, command) in enumerate(todo, 1):
        print(
            f"\n==> {number}/{len(todo)} {title}\n    python {' '.join(map(_quoted, command))}\n",
            flush=True,
        )
        code = subprocess.run([sys.executable, *command], cwd=ROOT).returncode
        if code:
            raise SystemExit(code if code > 0 else 128 - code)
    print(
        f"\nDone in {(time.monotonic() - start) / 60:.1f} minutes. Pictures and tables to look at:"
    )
    for path in (
        "report/report.md",
        "report/accuracy.png",
        "base/results.png",
        "base/val_batch0_pred.jpg",
        "pruned-2x/channels.png",
        "pruned-2x/prune_report.md",
        "pruned-2x/finetune/results.png",
    ):
        print(f"  {opt.project}/{path}")
    print(f"The pruned and finetuned model: {opt.project}/pruned-2x/weights/best.pt")


def _quoted(word: str) -> str:
    return f'"{word}"' if " " in word else word


if __name__ == "__main__":
    run_script(DemoOptions, main, __doc__)
