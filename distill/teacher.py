"""The teacher: a frozen model in eval mode.

The teacher stays outside of everything that trains, averages or saves the student.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from distill.feature_hooks import FeatureHooks
from models import Model
from utils.errors import UserError
from utils.log import LOGGER

ANCHOR_RTOL = 1e-3  # relative difference up to which two anchors count as equal


class Teacher:
    """A deployed copy of a model, called for its raw maps and for some of its feature maps.

    The class is deliberately no `nn.Module`: a task that holds a teacher has none of the teacher's
    weights among its parameters, its state or its data-parallel copies, and `task.train()` does not
    reach the teacher. The copy has its batch norms folded: it gives the same maps as the model,
    faster.
    """

    def __init__(self, model: Model, layers: Sequence[str] = ()):
        """Make a deployed copy of `model` and find the layers to read in the copy.

        `model` itself stays unchanged. `layers` are names as `distill.feature_hooks.find_layer`
        takes them, looked up in the deployed copy.
        """
        self.model = model.fuse()
        self.feature_hooks = FeatureHooks(self.model, layers, "--teacher-layers")

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the raw maps and the feature maps for images (N, 3, H, W) in 0..1.

        The gradient is switched off by `no_grad`, not by inference mode, whose tensors could not be
        saved for the student's backward pass.

        Returns:
            Raw maps (N, A, H, W, 5 + nc) of each level, and a feature map (N, C, H, W) of each
                layer.
        """
        with self.feature_hooks.reading() as features:
            raw = self.model(images).raw
        return raw, features


def check_size(student: Model, teacher: Model, imgsz: int = 0) -> None:
    """Check that images of the student's size suit the teacher.

    Args:
        student: Model whose largest stride the images are multiples of.
        teacher: Model that sees the same images.
        imgsz: Side of all training images in pixels; 0 where they have several sizes.

    Raises:
        UserError: Where the teacher needs a multiple that neither the student's stride nor the size
            ensures.
    """
    ours, theirs = student.max_stride, teacher.max_stride
    if ours % theirs and (not imgsz or imgsz % theirs):
        both = math.lcm(ours, theirs)
        suitable = max(round(imgsz / both), 1) * both if imgsz else 640 // both * both or both
        raise UserError(
            f"--teacher: has a level of stride {theirs}, the student's largest is {ours}; train on"
            f" squares of a size that suits both, as --imgsz {suitable}, without --rect and"
            " --multi-scale"
        )


def check_heads(student: Model, teacher: Model) -> None:
    """Check that the raw outputs of both models can be compared one by one.

    Raises:
        UserError: Where strides, number of classes, or anchors differ, or a head has no anchors.
    """
    ours, theirs = _anchors("student", student), _anchors("teacher", teacher)
    strides = [[int(s) for s in model.stride] for model in (student, teacher)]
    if strides[0] != strides[1]:
        raise _unlike("strides", f"{strides[1]}", f"{strides[0]}")
    if student.nc != teacher.nc:
        raise _unlike("classes", f"{teacher.nc}", f"{student.nc}")
    if ours.shape[1] != theirs.shape[1]:
        raise _unlike("anchors a level", f"{theirs.shape[1]}", f"{ours.shape[1]}")
    if not torch.allclose(ours, theirs, rtol=ANCHOR_RTOL):
        raise _unlike("anchors", _rounded(theirs), _rounded(ours))
    if student.names != teacher.names:
        LOGGER.warning(
            f"--logit-loss: the teacher calls its classes {teacher.names}, the student"
            f" {student.names}; taken by order"
        )


def take_anchors(student: Model, teacher: Model) -> None:
    """Give a new student the teacher's anchors, in pixels.

    The anchors are taken only where both heads have as many levels and anchors, and equal strides.
    """
    ours, theirs = student.head.anchors_px, teacher.head.anchors_px
    if ours is None or theirs is None or ours.shape != theirs.shape:
        return
    if torch.equal(student.stride.cpu(), teacher.stride.cpu()):
        student.head.set_anchors(theirs)
        LOGGER.info(f"Anchors: the student takes the teacher's, {_rounded(theirs)} px")


def _anchors(role: str, model: Model) -> Tensor:
    """Return the anchors (nl, na, 2) in pixels; `UserError` if the head has none."""
    anchors = model.head.anchors_px
    if anchors is None:
        raise UserError(
            f"--logit-loss: the {role}'s head {type(model.head).__name__} has no anchors; raw"
            " outputs are compared anchor by anchor. Use --feature-loss"
        )
    return anchors.detach().cpu()


def _unlike(what: str, teacher: str, student: str) -> UserError:
    """Return the error for a difference between two heads: `what` differs."""
    return UserError(
        f"--logit-loss: the teacher's {what} are {teacher}, the student's {student}; raw outputs"
        " are compared one by one. Use --feature-loss, or train a student from --cfg that takes"
        " over the teacher's anchors"
    )


def _rounded(anchors: Tensor) -> str:
    """Format anchors (levels, anchors, 2) in whole pixels, one list for each level."""
    return str([[round(v) for v in level.flatten().tolist()] for level in anchors])
