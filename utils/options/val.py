"""Options of val.py: YOLOv5's and YOLOv7's flags under their own names. Standard library only."""

from dataclasses import dataclass

from utils.errors import UserError
from utils.options.base import RunOptions, option


@dataclass(frozen=True)
class ValOptions(RunOptions):
    """What one validation is told."""

    weights: str = option(
        "", "checkpoint: ours (trained, pruned, distilled) or an official YOLOv5 / YOLOv7 .pt"
    )
    data: str = option("", "data YAML: bare name (demo) or path")
    batch_size: int = option(32, "images at a time", "batch")
    imgsz: int = option(
        0,
        "long side of the images in pixels; 0: what the weights were trained at",
        "img",
        "img-size",
    )
    conf_thres: float = option(
        0.001, "least confidence; low, because the metrics look at the whole curve", "conf"
    )
    iou_thres: float = option(0.6, "overlap above which NMS drops the less confident box", "iou")
    max_det: int = option(300, "most detections of one image")
    task: str = option(
        "val",
        "split to validate on, or speed: times only",
        choices=("val", "train", "test", "speed"),
    )
    single_cls: bool = option(False, "count all classes as one")
    augment: bool = option(
        False, "detect at three sizes, once mirrored, and put the boxes together"
    )
    verbose: bool = option(False, "a row of metrics for every class")
    save_txt: bool = option(
        False, "write labels/<image>.txt: class, x, y, w, h (normalised) a line"
    )
    save_conf: bool = option(False, "with --save-txt: the confidence as sixth column")
    save_json: bool = option(False, "write predictions.json in COCO's format")
    half: bool = option(False, "compute in float16; no effect on the CPU")
    noplots: bool = option(False, "no pictures")
    project: str = option("runs/val", "folder of the runs")

    def check(self) -> None:
        """`UserError` where an option is missing or out of range."""
        for name in ("weights", "data"):
            if not getattr(self, name):
                raise UserError(
                    f"--{name} is missing; e.g. python val.py --weights"
                    " runs/train/exp/weights/best.pt --data demo"
                )
        for name, least in (("batch_size", 1), ("max_det", 1), ("imgsz", 0)):
            if getattr(self, name) < least:
                raise UserError(
                    f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least {least}"
                )
        for name in ("conf_thres", "iou_thres"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(
                    f"--{name.replace('_', '-')} {getattr(self, name)}: must be between 0 and 1"
                )
