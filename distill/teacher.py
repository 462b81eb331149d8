"""The model that is learned from: frozen, in eval mode, and outside of everything that trains,
averages or saves.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from distill.feature_hooks import FeatureHooks
from models import Model
from utils.errors import UserError
from utils.log import LOGGER

ANCHOR_RTOL = 1e-3


class Teacher:
    """A deployed copy of a model, called for its raw maps and some of its feature maps.

    Not an `nn.Module`, on purpose: a task that holds one has none of its weights among its
    parameters, its state or its data-parallel copies, and `task.train()` does not reach it. The
    folded copy gives the same maps as the model, sooner.
    """

    def __init__(self, model: Model, layers: Sequence[str] = ()):
        """`model` stays as it is; `layers` as `distill.feature_hooks.find_layer` takes them, in the
        deployed form.
        """
        self.model = model.fuse()
        self.feature_hooks = FeatureHooks(self.model, layers, "--teacher-layers")

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Images (N, 3, H, W) in 0..1 -> raw maps (N, A, H, W, 5 + nc) a level, and the map (N, C,
        H, W) of each layer.

        Plain `no_grad`: tensors of inference mode could not be saved for the student's backward
        pass.
        """
        with self.feature_hooks.reading() as features:
            _, raw = self.model(images)
        return raw, features


def check_size(student: Model, teacher: Model) -> None:
    """Images are multiples of the student's stride; `UserError` where the teacher needs others."""
    ours, theirs = (int(model.stride.max()) for model in (student, teacher))
    if ours % theirs:
        raise UserError(
            f"--teacher: has a level of stride {theirs}, the student's largest is {ours}: no image"
            f" would suit both; choose a teacher of stride {ours}"
        )


def check_heads(student: Model, teacher: Model) -> None:
    """`UserError` where raw outputs cannot be compared one by one: other strides, classes or
    anchors.
    """
    strides = [[int(s) for s in model.stride] for model in (student, teacher)]
    if strides[0] != strides[1]:
        raise _unlike("strides", f"{strides[1]}", f"{strides[0]}")
    if student.nc != teacher.nc:
        raise _unlike("classes", f"{teacher.nc}", f"{student.nc}")
    if student.head.na != teacher.head.na:
        raise _unlike("anchors a level", f"{teacher.head.na}", f"{student.head.na}")
    ours, theirs = (model.head.anchors_px.detach().cpu() for model in (student, teacher))
    if not torch.allclose(ours, theirs, rtol=ANCHOR_RTOL):
        raise _unlike("anchors", _rounded(theirs), _rounded(ours))
    if student.names != teacher.names:
        LOGGER.warning(
            f"--logit-loss: the teacher calls its classes {teacher.names}, the student"
            f" {student.names}; taken by order"
        )


def take_anchors(student: Model, teacher: Model) -> None:
    """Give a new student the teacher's anchors (pixels), where both have as many levels and anchors
    of equal strides.
    """
    alike = student.head.anchors.shape == teacher.head.anchors.shape
    if alike and torch.equal(student.stride.cpu(), teacher.stride.cpu()):
        student.head.set_anchors(teacher.head.anchors_px)
        LOGGER.info(
            f"Anchors: the student takes the teacher's, {_rounded(teacher.head.anchors_px)} px"
        )


def _unlike(what: str, teacher: str, student: str) -> UserError:
    return UserError(
        f"--logit-loss: the teacher's {what} are {teacher}, the student's {student}; raw outputs"
        " are compared one by one. Use --feature-loss, or train a student from --cfg that takes"
        " over the teacher's anchors"
    )


def _rounded(anchors: Tensor) -> str:
    return str([[round(v) for v in level.flatten().tolist()] for level in anchors])
