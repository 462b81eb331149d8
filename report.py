"""Compare runs: parameters, GFLOPs, size, accuracy and latency, each with its change against the
first.

python report.py runs/train/exp runs/prune/exp
"""

from dataclasses import dataclass

from utils.cli import run_script
from utils.options.base import RunOptions, option


@dataclass(frozen=True)
class ReportOptions(RunOptions):
    """Options of `report.py`."""

    runs: tuple[str, ...] = option(
        (), "run folders or checkpoints to compare; the first is the baseline", positional=True
    )
    labels: tuple[str, ...] = option(
        (), "names for the rows, in the order of the table", multi=True
    )
    data: str = option("", "data YAML; default: what the runs were trained with")
    imgsz: int = option(
        0, "image size; 0: what each run was trained with", "img", "img-size", least=0
    )
    batch_size: int = option(32, "batch of validation and of the latency", "batch", least=1)
    seconds: float = option(20.0, "time spent on measuring latency, all models together", least=0)
    half: bool = option(False, "fp16, for GPUs")
    project: str = option("runs/report", "folder of the reports")


def main(opt: ReportOptions) -> None:
    """Hand over to the recipe; torch is imported only now."""
    from recipes.report import report

    report(opt)


if __name__ == "__main__":
    run_script(ReportOptions, main, __doc__)
