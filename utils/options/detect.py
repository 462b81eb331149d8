"""Options of detect.py: the flags of YOLOv5 under their own names.

Standard library only.
"""

from dataclasses import dataclass

from utils.errors import UserError
from utils.options.base import Options, option
from utils.options.meta import MOST_PIXELS


@dataclass(frozen=True)
class DetectOptions(Options):
    """Options of one run of detect.py."""

    weights: str = option(
        "",
        "the model: a .pt of ours or an official one, .torchscript, .onnx, *_openvino_model,"
        " *_ncnn_model",
        group="what",
        path=True,
    )
    source: tuple[str, ...] = option(
        (),
        "images, videos, folders, quoted patterns ('photos/*.jpg'), lists (.txt), camera numbers,"
        " addresses of streams (rtsp://, http://)",
        group="what",
        multi=True,
    )
    data: str = option("", "data YAML whose class names replace the model's", group="what")
    imgsz: int = option(
        0,
        "long side in pixels that images are resized to; 0: what the model was trained or"
        " exported at",
        "img",
        "img-size",
        group="what",
        least=0,
        most=MOST_PIXELS,
    )
    conf_thres: float = option(0.25, "least confidence", "conf", group="detection", least=0, most=1)
    iou_thres: float = option(
        0.45,
        "overlap above which NMS drops the less confident box",
        "iou",
        group="detection",
        least=0,
        most=1,
    )
    max_det: int = option(1000, "most detections of one image", group="detection", least=1)
    classes: tuple[int, ...] = option(
        (), "numbers of the classes to keep: 0 2", group="detection", multi=True, least=0
    )
    agnostic_nms: bool = option(
        False, "boxes of different classes suppress each other too", group="detection"
    )
    augment: bool = option(
        False,
        "detect at three sizes, once mirrored, and put the boxes together",
        group="detection",
    )
    half: bool = option(False, "compute in float16; no effect on the CPU", group="detection")
    vid_stride: int = option(
        1, "take every n-th frame of videos and streams", group="detection", least=1, most=1_000_000
    )
    view_img: bool = option(
        False, "show the results in a window; q ends; needs opencv-python", group="output"
    )
    save_txt: bool = option(
        False,
        "write labels/<image>.txt: class, x, y, w, h (normalised) a line; <video>_<frame>.txt",
        group="output",
    )
    save_conf: bool = option(
        False, "with --save-txt: the confidence as sixth column", group="output"
    )
    save_csv: bool = option(False, "write predictions.csv: one box a line", group="output")
    save_crop: bool = option(
        False, "write crops/<class>/<image>_<number>.jpg: each box cut out", group="output"
    )
    nosave: bool = option(False, "write no annotated images and videos", group="output")
    line_thickness: int = option(
        0,
        "width of the outlines in pixels; 0: by the size of the image",
        group="output",
        least=0,
        most=1000,
    )
    hide_labels: bool = option(False, "draw boxes without names", group="output")
    hide_conf: bool = option(False, "draw names without confidences", group="output")
    device: str = option(
        "",
        "cpu, 0, or empty for the first GPU if there is one, else the CPU",
        group="run",
    )
    project: str = option("runs/detect", "folder of the runs", group="run")
    name: str = option("exp", "name of this run; exp2, exp3 ... where it exists", group="run")
    exist_ok: bool = option(False, "write into the run folder even if it exists", group="run")

    def check(self) -> None:
        """Raise `UserError` where an option is missing or out of range."""
        super().check()
        for name in ("weights", "source"):
            if not getattr(self, name):
                raise UserError(
                    f"--{name} is missing; e.g. python detect.py --weights"
                    " runs/train/exp/weights/best.pt --source photos"
                )
