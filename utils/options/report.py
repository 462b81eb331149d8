"""Options of report.py. Standard library only."""

from dataclasses import dataclass

from utils.options.base import RunOptions, option
from utils.options.meta import MOST_PIXELS


@dataclass(frozen=True)
class ReportOptions(RunOptions):
    """Options of `report.py`."""

    runs: tuple[str, ...] = option(
        (),
        "run folders or checkpoints to compare; the first is the baseline",
        positional=True,
        group="what",
    )
    labels: tuple[str, ...] = option(
        (), "names for the rows, in the order of the table", multi=True, group="what"
    )
    data: str = option("", "data YAML; default: what the runs were trained with", group="what")
    imgsz: int = option(
        0,
        "image size; 0: what each run was trained with",
        "img",
        "img-size",
        group="what",
        least=0,
        most=MOST_PIXELS,
    )
    batch_size: int = option(
        32, "batch of validation and of the latency", "batch", group="what", least=1
    )
    max_det: int = option(300, "most detections of one image in validation", group="what", least=1)
    seconds: float = option(
        20.0, "time spent on measuring latency, all models together", group="what", least=0
    )
    half: bool = option(False, "fp16, for GPUs", group="what")
    project: str = option("runs/report", "folder of the reports", group="run")
