"""Pair layers of a student with layers of its teacher, and choose the adapters between them."""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distill.adapters import ADAPTERS, Adapter, LayerPair
from distill.base import FEATURE_LOSSES
from distill.feature_hooks import FeatureHooks, head_inputs
from distill.teacher import Teacher, check_heads, check_size
from models import Model
from models.lineage import fingerprint
from utils.errors import UserError, suggest
from utils.options.distill import AUTO, TeacherOptions


@dataclass(frozen=True)
class Pairing:
    """Layers of a student paired with layers of its teacher."""

    feature_hooks: FeatureHooks
    """The student's layers, in the order of the teacher's."""
    teacher: Teacher
    """The frozen teacher, with the layers that it is read at."""
    pairs: Sequence[LayerPair]
    """The layers with their channels; none where no features are compared."""
    is_ancestor: bool = False
    """True if the student was cut from the teacher, whose weights have not changed since."""


def pair_up(model: Model, teacher: Model, opt: TeacherOptions) -> Pairing:
    """Find the layers of both models and check that student and teacher fit together.

    Raises:
        UserError: Where the models or layers do not fit, or an argument of a loss is wrong.
    """
    varied = getattr(opt, "rect", False) or getattr(opt, "multi_scale", False)
    check_size(model, teacher, 0 if varied else getattr(opt, "imgsz", 0))
    if opt.logit:
        check_heads(model, teacher)
    reads_features = bool(opt.feature_weights)
    student_layers = opt.layers(opt.student_layers) or head_inputs(model)
    teacher_layers = opt.layers(opt.teacher_layers) or head_inputs(teacher)
    hooks = FeatureHooks(model, student_layers if reads_features else [], "--student-layers")
    frozen = Teacher(teacher, teacher_layers if reads_features else [])
    for name, arguments in opt.loss_arguments().items():
        check_arguments(name, arguments)
    if not reads_features:
        return Pairing(hooks, frozen, ())
    channels = paired_channels(hooks, frozen.feature_hooks)
    mark = fingerprint(teacher)
    is_ancestor = any(mark == ancestor.fingerprint for ancestor in model.ancestors)
    pairs = [
        LayerPair(ours, theirs, widths, kept_between(model, mark, paths, widths))
        for ours, theirs, paths, widths in zip(
            hooks.names,
            frozen.feature_hooks.names,
            zip(hooks.paths, frozen.feature_hooks.paths, strict=True),
            channels,
            strict=True,
        )
    ]
    pairing = Pairing(hooks, frozen, pairs, is_ancestor)
    adapters_for(pairing, opt.adapter)
    return pairing


def kept_between(
    model: Model, mark: str, paths: tuple[str, str], widths: tuple[int, int]
) -> Tensor | None:
    """Return the channels of a teacher's layer that a student's layer kept; None if not known.

    A student that was never cut kept all channels.

    Args:
        model: The student.
        mark: Fingerprint of the teacher. Where no ancestor has it, the first ancestor whose layer
            has the teacher's width counts: the teacher may have been trained since.
        paths: Paths of the student's and the teacher's layer; a layer kept channels of itself only.
        widths: Numbers of channels of both layers.
    """
    if paths[0] != paths[1]:
        return None
    exact = [ancestor for ancestor in model.ancestors if ancestor.fingerprint == mark]
    found = [ancestor.channels(paths[0], widths[1]) for ancestor in exact or model.ancestors]
    if not model.ancestors and widths[0] == widths[1]:
        found = [torch.arange(widths[0])]
    return next((channels for channels in found if channels is not None), None)


def adapters_for(pairing: Pairing, policy: str) -> list[Adapter]:
    """Make the adapter of each pair.

    Args:
        pairing: The layers.
        policy: Name in `ADAPTERS`, or `auto`: `kept` where the student was cut from the teacher,
            else `closed-form`.

    Raises:
        UserError: The policy does not suit a pair.
    """

    def name(pair: LayerPair) -> str:
        if policy != AUTO:
            return policy
        return "kept" if pairing.is_ancestor and pair.kept is not None else "closed-form"

    return [ADAPTERS[name(pair)](pair) for pair in pairing.pairs]


def paired_channels(student: FeatureHooks, teacher: FeatureHooks) -> list[tuple[int, int]]:
    """Return the (student, teacher) channels of each pair of layers.

    Raises:
        UserError: Where the numbers of layers or the strides of a pair differ.
    """
    if len(student.names) != len(teacher.names):
        raise UserError(
            f"--student-layers {','.join(student.names)} and --teacher-layers"
            f" {','.join(teacher.names)}: {len(student.names)} and {len(teacher.names)} layers;"
            " name as many of both"
        )
    # images of both models' strides, at least 2 cells of the coarsest level
    size = 2 * math.lcm(*(hooks.model.max_stride for hooks in (student, teacher)))
    channels = []
    for ours, theirs, s, t in zip(
        student.names, teacher.names, student.shapes(size), teacher.shapes(size), strict=True
    ):
        if s[1:] != t[1:]:
            raise UserError(
                f"--student-layers {ours} and --teacher-layers {theirs}: strides {size // s[1]} and"
                f" {size // t[1]} px; pair layers of equal stride"
            )
        channels.append((s[0], t[0]))
    return channels


def check_arguments(name: str, arguments: Mapping[str, Any]) -> None:
    """Check the arguments that the options give a feature loss.

    Raises:
        UserError: For an argument that the loss does not know, or whose type is not that of its
            default.
    """
    parameters = inspect.signature(FEATURE_LOSSES[name]).parameters.values()
    known = {p.name: p.default for p in parameters if p.default is not p.empty}
    for key, value in arguments.items():
        if key not in known:
            raise UserError(
                f"--feature-args {name}.{key}: not known{suggest(key, known)} (known:"
                f" {', '.join(known) or 'none'})"
            )
        default = known[key]  # None stands for a number that depends on the other arguments
        wanted = (int, float) if default is None or type(default) is float else (type(default),)
        if type(value) not in wanted:
            like = "a number" if default is None else f"like its default, {default!r}"
            raise UserError(f"--feature-args {name}.{key}={value}: must be {like}")
