"""How a model is exported: sizes, precision, NMS in the graph."""

from dataclasses import dataclass

from deploy.metadata import Metadata
from models import Model


@dataclass(frozen=True)
class EndToEnd:
    """NMS inside the graph, as `utils.boxes.non_max_suppression` with these settings does it."""

    conf_thres: float = 0.25
    iou_thres: float = 0.45
    max_det: int = 300


@dataclass(frozen=True)
class ExportSettings:
    """What an exporter is asked for.

    Attributes:
        imgsz: Height and width in pixels, multiples of the model's largest stride.
        batch: Images of a call; a dynamic file takes any number.
        dynamic: Take any size and number of images.
        half: Store the weights in float16.
        opset: Version of ONNX's operators.
        simplify: Fold constants and drop what is not needed by onnxslim.
        end2end: Put NMS into the graph; None leaves it out.
    """

    imgsz: tuple[int, int] = (640, 640)
    batch: int = 1
    dynamic: bool = False
    half: bool = False
    opset: int = 17
    simplify: bool = True
    end2end: EndToEnd | None = None

    def metadata(self, model: Model) -> Metadata:
        """Return what the exported file of a model says of itself."""
        nms = self.end2end
        return Metadata(
            names=tuple(model.names),
            stride=tuple(model.stride.tolist()),
            max_stride=model.max_stride,
            imgsz=self.imgsz,
            batch=0 if self.dynamic else self.batch,
            dynamic=self.dynamic,
            precision="fp16" if self.half else "fp32",
            max_det=nms.max_det if nms else 0,
            conf_thres=nms.conf_thres if nms else 0.0,
            iou_thres=nms.iou_thres if nms else 0.0,
        )
