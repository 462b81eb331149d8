"""Options of export.py: the flags of YOLOv5 and YOLOv7 under their own names.

Standard library only.
"""

from dataclasses import dataclass
from pathlib import Path

from utils.config import ROOT
from utils.errors import UserError
from utils.options.base import Options, changed_options, option
from utils.options.meta import MOST_PIXELS
from utils.registry import registered_names

FORMATS = tuple(registered_names(ROOT / "deploy" / "exporters", "EXPORTERS"))
METHODS = ("minmax", "entropy", "percentile")
MOST_BATCH = 1024
INT8_OPTIONS = ("calib_images", "calib_method", "keep_float", "max_drop", "seed")
NMS_OPTIONS = ("conf_thres", "iou_thres", "max_det")


@dataclass(frozen=True)
class ExportOptions(Options):
    """Options of one export."""

    weights: str = option(
        "",
        "checkpoint: ours (trained, pruned, distilled) or an official YOLOv5 / YOLOv7 .pt",
        group="what",
    )
    include: tuple[str, ...] = option(
        ("onnx",), f"formats: {', '.join(FORMATS)}", multi=True, group="what"
    )
    imgsz: tuple[int, ...] = option(
        (),
        "side of the images, or height and width, in pixels; without it what the weights were"
        " trained at",
        "img",
        "img-size",
        multi=True,
        group="what",
        least=1,
        most=MOST_PIXELS,
    )
    batch_size: int = option(1, "images of a call", "batch", group="what", least=1, most=MOST_BATCH)
    dynamic: bool = option(False, "take images of any size and any number of them", group="what")
    half: bool = option(
        False, "float16 weights; boxes and scores are decoded in float32", group="what"
    )
    int8: bool = option(
        False,
        "INT8 weights and activations (onnx, openvino), calibrated on training images of --data",
        group="int8",
    )
    calib_images: int = option(
        128, "with --int8: training images to measure ranges on", group="int8", least=1, most=10_000
    )
    calib_method: str = option(
        "minmax",
        "with --int8: how the range of an activation is chosen; openvino: minmax only",
        group="int8",
        choices=METHODS,
    )
    keep_float: tuple[str, ...] = option(
        (),
        "with --int8: layers that stay in float, as model.0 or model.2.cv1",
        multi=True,
        group="int8",
    )
    max_drop: float | None = option(
        None,
        "with --int8: keep the most costly rows in float until mAP50-95 falls by no more than this",
        group="int8",
        least=0,
        most=1,
    )
    seed: int = option(0, "with --int8: seed of the choice of images", group="int8", least=0)
    data: str = option(
        "",
        "data YAML: images to verify on (val) and to calibrate --int8 on (train); without it what"
        " the weights were trained with",
        group="what",
        path=True,
    )
    output_dir: str = option("", "folder of the files; without it that of the weights", group="run")
    device: str = option("cpu", "cpu; files are written and verified on it", group="run")
    opset: int = option(17, "version of ONNX's operators", group="output", least=13, most=20)
    simplify: bool = option(True, "fold constants of the ONNX graph by onnxslim", group="output")
    end2end: bool = option(
        False,
        "put NMS into the graph (onnx, openvino): rows of image, x1, y1, x2, y2, class, confidence",
        "nms",
        group="detection",
    )
    conf_thres: float = option(
        0.25,
        "with --end2end: least confidence",
        "conf",
        group="detection",
        least=0,
        most=1,
    )
    iou_thres: float = option(
        0.45,
        "with --end2end: overlap above which NMS drops the less confident box",
        "iou",
        group="detection",
        least=0,
        most=1,
    )
    max_det: int = option(
        300,
        "with --end2end: most detections of one image",
        "topk-all",
        group="detection",
        least=1,
        most=10_000,
    )

    def check(self) -> None:
        """Raise `UserError` where an option is missing or out of range."""
        super().check()
        example = "e.g. python export.py --weights runs/train/exp/weights/best.pt --include onnx"
        if not self.weights:
            raise UserError(f"--weights is missing; {example}")
        if not self.weights.endswith(".pt"):
            raise UserError(
                f"--weights {self.weights}: export.py reads checkpoints (.pt); {example}"
            )
        odd = [name for name in self.include if name not in FORMATS]
        if odd or not self.include:
            raise UserError(
                f"--include {' '.join(odd)}: no such format; {', '.join(FORMATS)} would be right"
                + _others(odd)
            )
        if len(self.imgsz) > 2:
            raise UserError(
                f"--imgsz {' '.join(map(str, self.imgsz))}: one side, or height and width"
            )
        self._refuse_idle("int8", INT8_OPTIONS)
        self._refuse_idle("end2end", NMS_OPTIONS)
        self._check_int8()
        if self.device not in {"", "cpu"}:
            raise UserError(f"--device {self.device}: files are written on the CPU; --device cpu")

    def _refuse_idle(self, master: str, names: tuple[str, ...]) -> None:
        """Raise `UserError` for an option that another one, which is not given, gives its effect.

        Args:
            master: The other option.
            names: Options that do nothing without it.
        """
        if not getattr(self, master) and (given := changed_options(self, among=names)):
            raise UserError(f"{given[0]}: has no effect without --{master}; leave it out or add it")

    def _check_int8(self) -> None:
        """Raise `UserError` for options of INT8 that do not go together."""
        if not self.int8:
            return
        if not self.data:
            raise UserError(
                "--int8: needs --data, whose training images it is calibrated on; e.g. python"
                " export.py --weights best.pt --include openvino --int8 --data bccd.yaml"
            )
        for name in ("half", "dynamic", "end2end"):
            if getattr(self, name):
                raise UserError(f"--int8: cannot go with --{name}; export them one by one")

    @property
    def folder(self) -> Path:
        """Folder of the exported files."""
        return Path(self.output_dir) if self.output_dir else Path(self.weights).parent


def _others(names: list[str]) -> str:
    """Return where to read about formats that other tools make from our ONNX."""
    foreign = {"engine", "tensorrt", "coreml", "rknn", "tflite", "saved_model", "pb", "paddle"}
    return "; docs/deploy.md has the way from our ONNX" if foreign & set(names) else ""
