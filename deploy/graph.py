"""The module that exporters trace: images to decoded boxes, or to the boxes that NMS keeps."""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms

from deploy.settings import EndToEnd
from models import Model


class DeployGraph(nn.Module):
    """A deployed model whose only output is what a user of the file needs.

    Without NMS the output is `decoded` (N, M, 5 + nc) of `Detections`. With NMS it is (K, 7):
    image, x1, y1, x2, y2, class, confidence; images in order, the most confident box first.
    """

    def __init__(self, model: Model, end2end: EndToEnd | None = None):
        super().__init__()
        # under the model's own name, so that nodes are called model.N... in every format
        self.model = model.model
        self.rows = [model]  # in a list: no submodule twice
        self.end2end = end2end

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, 3, H, W) in 0..1 to the output; see the class."""
        decoded = self.rows[0](images).decoded
        return decoded if self.end2end is None else suppress(decoded, self.end2end)


def suppress(decoded: Tensor, settings: EndToEnd) -> Tensor:
    """Return the boxes that NMS keeps, by operators that ONNX has.

    Each box counts for its best class, boxes of different classes do not suppress each other, and
    an image keeps its `max_det` most confident boxes.

    Args:
        decoded: (N, M, 5 + nc) of a head.
        settings: Thresholds.

    Returns:
        (K, 7); see `DeployGraph`.
    """
    centre, size = decoded[..., :2], decoded[..., 2:4]
    boxes = torch.cat((centre - size / 2, centre + size / 2), -1)
    confidence, label = (decoded[..., 5:] * decoded[..., 4:5]).max(-1)
    classes = torch.arange(decoded.shape[-1] - 5, device=decoded.device)
    own = (label.unsqueeze(1) == classes.view(1, -1, 1)).to(decoded.dtype)
    chosen = _SelectBoxes.apply(boxes, confidence.unsqueeze(1) * own, settings)
    image, label, box = chosen.unbind(1)
    score = confidence[image, box]
    order = torch.sort(score, descending=True)[1]
    image, label, box, score = image[order], label[order], box[order], score[order]
    numbers = torch.arange(decoded.shape[0], device=decoded.device)
    mine = (image.unsqueeze(1) == numbers.unsqueeze(0)).to(torch.int64)
    place = (mine.cumsum(0) * mine).sum(1)  # 1 for the most confident box of an image
    kept = (place <= settings.max_det).nonzero().flatten()
    image, label, box, score, place = (
        values.index_select(0, kept) for values in (image, label, box, score, place)
    )
    by_image = (image * (settings.max_det + 1) + place).to(torch.float32)
    order = torch.sort(by_image)[1]
    image, label, box, score = image[order], label[order], box[order], score[order]
    columns = (image.unsqueeze(1), boxes[image, box], label.unsqueeze(1), score.unsqueeze(1))
    return torch.cat([column.to(decoded.dtype) for column in columns], 1)


class _SelectBoxes(torch.autograd.Function):
    """NMS as ONNX's `NonMaxSuppression`: (boxes, scores (N, nc, M)) -> (K, 3) image, class, box."""

    @staticmethod
    def forward(ctx: Any, boxes: Tensor, scores: Tensor, settings: EndToEnd) -> Tensor:
        """Return what the operator would; used while tracing, and by the tests."""
        rows = []
        for number, (mine, confidences) in enumerate(zip(boxes, scores, strict=True)):
            label, box = (confidences > settings.conf_thres).nonzero(as_tuple=True)
            if not len(box):
                continue
            score = confidences[label, box]
            corners = mine[box] - mine[box].min()
            kept = batched_nms(corners, score, label, settings.iou_thres)
            image = torch.full_like(kept, number)
            rows.append(torch.stack((image, label[kept], box[kept]), 1))
        return torch.cat(rows) if rows else torch.zeros(0, 3, dtype=torch.int64)

    @staticmethod
    def symbolic(g: Any, boxes: Any, scores: Any, settings: EndToEnd) -> Any:
        """Return the node of the operator."""
        constants = (
            torch.tensor([settings.max_det], dtype=torch.int64),
            torch.tensor([settings.iou_thres], dtype=torch.float32),
            torch.tensor([settings.conf_thres], dtype=torch.float32),
        )
        more = [g.op("Constant", value_t=value) for value in constants]
        return g.op("NonMaxSuppression", boxes, scores, *more, center_point_box_i=0)
