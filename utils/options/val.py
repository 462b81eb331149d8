"""Options of val.py: the flags of YOLOv5 and YOLOv7 under their own names.

Standard library only.
"""

from dataclasses import dataclass

from utils.errors import UserError
from utils.options.base import RunOptions, option
from utils.options.meta import MOST_PIXELS


@dataclass(frozen=True)
class ValOptions(RunOptions):
    """Options of one validation."""

    weights: str = option(
        "",
        "checkpoint: ours (trained, pruned, distilled) or an official YOLOv5 / YOLOv7 .pt; or a"
        " file of export.py: .torchscript, .onnx, *_openvino_model, *_ncnn_model",
        group="what",
    )
    data: str = option("", "data YAML: bare name (demo) or path", group="what", path=True)
    batch_size: int = option(32, "images at a time", "batch", group="what", least=1)
    imgsz: int = option(
        0,
        "long side of the images in pixels; 0: what the weights were trained at",
        "img",
        "img-size",
        group="what",
        least=0,
        most=MOST_PIXELS,
    )
    conf_thres: float = option(
        0.001,
        "least confidence; low, because the metrics look at the whole curve",
        "conf",
        group="detection",
        least=0,
        most=1,
    )
    iou_thres: float = option(
        0.6,
        "overlap above which NMS drops the less confident box",
        "iou",
        group="detection",
        least=0,
        most=1,
    )
    max_det: int = option(300, "most detections of one image", group="detection", least=1)
    task: str = option(
        "val",
        "split to validate on, or speed: times only",
        group="what",
        choices=("val", "train", "test", "speed"),
    )
    single_cls: bool = option(False, "count all classes as one", group="what")
    augment: bool = option(
        False,
        "detect at three sizes, once mirrored, and put the boxes together",
        group="detection",
    )
    verbose: bool = option(False, "a row of metrics for every class", group="output")
    save_txt: bool = option(
        False,
        "write labels/<image>.txt: class, x, y, w, h (normalised) a line; images of"
        " one name keep their folders",
        group="output",
    )
    save_conf: bool = option(
        False, "with --save-txt: the confidence as sixth column", group="output"
    )
    save_json: bool = option(False, "write predictions.json in COCO's format", group="output")
    half: bool = option(False, "compute in float16; no effect on the CPU", group="detection")
    noplots: bool = option(False, "no pictures", group="output")
    project: str = option("runs/val", "folder of the runs", group="run")

    def check(self) -> None:
        """Raise `UserError` where an option is missing or out of range."""
        super().check()
        for name in ("weights", "data"):
            if not getattr(self, name):
                raise UserError(
                    f"--{name} is missing; e.g. python val.py --weights"
                    " runs/train/exp/weights/best.pt --data demo"
                )
