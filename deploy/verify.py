"""Prove that a file is the model: its outputs on images, and the widths of its convolutions."""

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deploy.exporters.base import Widths
from deploy.nms_check import difference_after_nms
from deploy.runtimes.base import Runtime
from models import Model
from utils.boxes import non_max_suppression
from utils.errors import UserError

LIMITS = {"fp32": 1e-3, "fp16": 3e-2}
"""Largest allowed relative difference by precision; INT8 is judged by its mAP."""
PLACES, SCORES = slice(0, 4), slice(4, None)


@dataclass(frozen=True)
class Agreement:
    """How far a file's outputs are from the model's, and on what that was measured.

    Attributes:
        difference: Largest difference over the largest output; of boxes and scores, the larger.
        images: Number of images.
    """

    difference: float
    images: int


def relative_difference(found: Tensor, wanted: Tensor) -> float:
    """Return the largest difference of decoded outputs over the largest output.

    Boxes in pixels and scores in 0..1 are taken apart, and the larger figure counts: relative to a
    box of 640 pixels, any score would be right.

    Args:
        found: (N, M, 5 + nc) of the file.
        wanted: The same of the model.
    """
    if found.shape != wanted.shape or not found.isfinite().all():
        return float("inf")
    parts = [
        float((found - wanted)[..., part].abs().max() / wanted[..., part].abs().max().clamp(1e-9))
        for part in (PLACES, SCORES)
    ]
    return max(parts)


def compare(runtime: Runtime, model: Model, images: Tensor) -> Agreement:
    """Compare a file with the deployed model on images (N, 3, H, W) in 0..1."""
    with torch.no_grad():
        wanted = model(images).decoded
    found = runtime(images).decoded
    if runtime.end2end:
        facts = runtime.metadata
        kept = non_max_suppression(found, 0.0, iou_thres=1.0, max_det=facts.max_det)
        pairs = zip(kept, wanted, strict=True)
        worst = max(difference_after_nms(boxes, rows, facts) for boxes, rows in pairs)
        return Agreement(worst, len(images))
    return Agreement(relative_difference(found, wanted), len(images))


def require_agreement(agreement: Agreement, runtime: Runtime, name: str) -> None:
    """Refuse a file whose outputs are not the model's.

    Raises:
        UserError: The difference is above the limit of the precision.
    """
    limit = LIMITS.get(runtime.precision)
    if limit is None or agreement.difference <= limit:
        return
    raise UserError(
        f"{name}: the outputs of the exported file differ from the model's by"
        f" {agreement.difference:.1e} of the largest output on {agreement.images} images; at most"
        f" {limit:g} is allowed, so no file is left"
    )


def model_widths(model: Model, images: Tensor) -> Widths:
    """Return the widths of the convolutions that a deployed model runs; see `Exporter.widths`."""
    found: Widths = Counter()
    seen: set[int] = set()

    def note(module: nn.Module, *_: object) -> None:
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and id(module) not in seen:
            seen.add(id(module))
            found[weight.shape[0], weight[0].numel()] += 1

    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, kinds)]
    try:
        with torch.no_grad():
            model(images[:1])
    finally:
        for hook in hooks:
            hook.remove()
    return found


def require_widths(found: Widths, wanted: Widths, name: str) -> None:
    """Refuse a file without the widths of the model's convolutions.

    A file may have more convolutions: a format writes linear layers as such.

    Raises:
        UserError: Names the first width that is missing.
    """
    missing = wanted - found
    if missing:
        (outputs, weights), number = next(iter(missing.items()))
        raise UserError(
            f"{name}: the exported file lacks {sum(missing.values())} of the model's"
            f" {sum(wanted.values())} convolutions, the first has {outputs} outputs of {weights}"
            f" weights ({number} of them); it is not the model that was given, so no file is left"
        )
