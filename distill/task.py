"""Training task that adds distillation losses to the detection loss.

Every script that is given a teacher trains by this task.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from distill.base import FEATURE_LOSSES, LOGIT_LOSSES, LogitSetup
from distill.feature_hooks import FeatureHooks, head_inputs
from distill.schedule import kd_weight
from distill.teacher import Teacher, check_heads, check_size
from models import Model
from utils.engine.tasks import DetectionTask
from utils.errors import UserError, suggest
from utils.options.distill import TeacherOptions, WithTeacherOptions


@dataclass(frozen=True)
class Pairing:
    """Layers of a student paired with layers of its teacher."""

    feature_hooks: FeatureHooks
    """The student's layers, in the order of the teacher's."""
    teacher: Teacher
    """The frozen teacher, with the layers that it is read at."""
    channels: list[tuple[int, int]]
    """(student, teacher) channels of each pair."""


@dataclass(frozen=True)
class DistillLosses:
    """Distillation losses of a run with their weights and schedule."""

    features: Mapping[str, Sequence[nn.Module]]
    """Instances of each feature loss by name, one for each pair of layers."""
    weights: Mapping[str, float]
    """Weight of each loss by name, the logit loss included."""
    logit: tuple[str, nn.Module] | None = None
    """Name and instance of the logit loss, or None."""
    schedule: Callable[[int, int], float] = lambda step, steps: 1.0
    """`schedule(step, steps)` returns the factor of a batch."""


class DistillTask(DetectionTask):
    """Train a student by the detection loss and by distillation losses.

    The loss of a batch is the detection loss plus factor * sum of weight * distillation loss, times
    batch size and world size.

    Columns that the task reports beside box, obj and cls:

    - `kd_logit` and `kd_feature`: the two kinds as they are added, weighted and scheduled, but
      (like box, obj and cls) not multiplied by the batch size.
    - `raw_<loss>`: a loss without weight and schedule; a feature loss is summed over its pairs.

    `features` (adapters and generators) are trained and resumed with the task; the teacher is no
    part of the task's state.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[..., Any],
        world_size: int = 1,
        *,
        pairing: Pairing,
        losses: DistillLosses,
    ):
        """Hold the models and losses of a distillation run.

        Args:
            model: The student.
            loss: The detection loss: `loss(raw, targets)` -> (scalar, parts by name).
            world_size: Number of data-parallel processes.
            pairing: The student's layers and the teacher.
            losses: The distillation losses.
        """
        super().__init__(model, loss, world_size)
        self.teacher, self.feature_hooks = pairing.teacher, pairing.feature_hooks
        self.features = nn.ModuleDict(
            {name: nn.ModuleList(pairs) for name, pairs in losses.features.items()}
        )
        self.logit_name, self.logit = losses.logit or ("", None)
        self.weights, self.schedule = dict(losses.weights), losses.schedule
        self.factor = 1.0

    def start_batch(self, number: int, total: int) -> None:
        """Take the schedule's factor for batch `number` of `total`."""
        self.factor = self.schedule(number, total)

    def forward(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return the loss and the columns of a batch; see the class.

        With factor 0 the teacher does not run, and the gradients equal those of plain training bit
        for bit.
        """
        if not self.factor:
            parts = super().forward(images, targets)
            columns = self._columns({}, parts["loss"])
            return {**parts, "loss": parts["loss"] + self._zero_for_adapters(), **columns}
        with self.feature_hooks.reading() as maps:
            raw = self.model(images)
        loss, parts = self.loss(raw, targets)
        terms = self.distillation(images, raw, maps)
        total = loss + self.weighted(terms) * self.factor * len(images)
        return {"loss": total * self.world_size, **parts, **self._columns(terms, loss)}

    def distillation(
        self, images: Tensor, raw: Sequence[Tensor], maps: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Return each distillation loss by name, unweighted.

        Args:
            images: Batch (N, 3, H, W) in 0..1, for the teacher.
            raw: Raw maps of the student for these images.
            maps: Feature maps of the student for these images.
        """
        teacher_raw, teacher_maps = self.teacher(images)
        pairs = list(zip(maps, teacher_maps, strict=True))
        terms = {} if self.logit is None else {self.logit_name: self.logit(raw, teacher_raw)}
        for name, losses in self.features.items():
            assert isinstance(losses, nn.ModuleList)
            values = [loss(*pair) for loss, pair in zip(losses, pairs, strict=True)]
            terms[name] = torch.stack(values).sum()
        return terms

    def weighted(self, terms: Mapping[str, Tensor]) -> Tensor:
        """Return the sum of losses times their weights, before the schedule."""
        return torch.stack([self.weights[name] * value for name, value in terms.items()]).sum()

    def _columns(self, terms: Mapping[str, Tensor], like: Tensor) -> dict[str, Tensor]:
        """Return the columns of a batch, detached.

        A loss that was not computed gives zero, so that every batch has the same columns. `like` is
        a tensor on the device of the columns.
        """
        zero = torch.zeros((), device=like.device)
        logit = [self.logit_name] if self.logit is not None else []
        raw = {
            name: terms[name].detach() if name in terms else zero
            for name in [*logit, *self.features]
        }
        sums = {}
        for column, names in (("kd_logit", logit), ("kd_feature", list(self.features))):
            added = [self.factor * self.weights[name] * raw[name].float() for name in names]
            if added:
                sums[column] = torch.stack(added).sum()
        return sums | {f"raw_{name}": value for name, value in raw.items()}

    def _zero_for_adapters(self) -> Tensor | float:
        """Return a zero that gives the adapters a gradient where data-parallel training needs one.

        Data-parallel training waits for a gradient of every parameter, so adapters of a batch with
        factor 0 get zeros. A single process gives them no gradient: then neither weight decay nor
        momentum moves them.
        """
        if self.world_size == 1:
            return 0.0
        return 0.0 * sum(p.sum() for p in self.features.parameters())


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
    channels = paired_channels(hooks, frozen.feature_hooks) if reads_features else []
    return Pairing(hooks, frozen, channels)


def build_task(
    model: nn.Module, loss: Any, world_size: int, *, pairing: Pairing, opt: WithTeacherOptions
) -> DistillTask:
    """Build the task that the options ask for.

    New adapters are seeded by `opt.seed` and leave all other random numbers as they are.

    Args:
        model: The student that `pair_up` was given, on its device.
        loss: The detection loss with its effective `hyp`.
        world_size: Number of data-parallel processes.
        pairing: The result of `pair_up`.
        opt: The distillation options.
    """
    assert isinstance(model, Model) and model is pairing.feature_hooks.model
    pairing.teacher.model.to(next(model.parameters()).device)
    losses = _build_losses(model, loss, pairing, opt)
    return DistillTask(model, loss, world_size, pairing=pairing, losses=losses)


def _build_losses(
    model: Model, loss: Any, pairing: Pairing, opt: WithTeacherOptions
) -> DistillLosses:
    """Build the losses that the options ask for; the arguments are those of `build_task`."""
    arguments = opt.loss_arguments()
    weights: dict[str, float] = {
        name: FEATURE_LOSSES[name].default_weight if weight is None else weight
        for name, weight in opt.feature_weights.items()
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(opt.seed)
        features = {
            name: [FEATURE_LOSSES[name](*pair, **arguments[name]) for pair in pairing.channels]
            for name in weights
        }
    logit = None
    if opt.logit:
        logit = (opt.logit, LOGIT_LOSSES[opt.logit](LogitSetup.of(model.head, loss.hyp)))
        weights[opt.logit] = opt.logit_weight
    return DistillLosses(features, weights, logit, partial(_factor, opt))


def _factor(opt: WithTeacherOptions, step: int, steps: int) -> float:
    """Return the factor of batch `step` of `steps` by the schedule of the options."""
    warmup = opt.kd_warmup * steps / opt.epochs
    return kd_weight(
        opt.kd_schedule, step, steps, floor=opt.kd_floor, stop=opt.kd_stop, warmup=warmup
    )


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
