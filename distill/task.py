"""Training task that adds distillation losses to the detection loss.

Every script that is given a teacher trains by this task.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn

from distill.adapters import Adapter
from distill.base import FEATURE_LOSSES, LOGIT_LOSSES, LogitSetup
from distill.pairing import Pairing, adapters_for
from distill.schedule import kd_weight
from models import Model
from utils.engine.tasks import DetectionTask
from utils.losses import at_least_float32
from utils.options.distill import WithTeacherOptions

WAIT = 10  # batches that adapters observe before their first use, at most a tenth of the run


@dataclass(frozen=True)
class DistillLosses:
    """Distillation losses of a run with their weights and schedule."""

    features: Mapping[str, Sequence[nn.Module]]
    """Instances of each feature loss by name, one for each pair of layers."""
    adapters: Sequence[Adapter]
    """Adapter of each pair of layers, which all feature losses share."""
    weights: Mapping[str, float]
    """Weight of each loss by name, the logit loss included."""
    logit: tuple[str, nn.Module] | None = None
    """Name and instance of the logit loss, or None."""
    schedule: Callable[[int, int], float] = lambda step, steps: 1.0
    """`schedule(step, steps)` returns the factor of a batch."""
    solve_every: int = 1
    """Batches from one solution of the adapters to the next."""


class DistillTask(DetectionTask):
    """Train a student by the detection loss and by distillation losses.

    The loss of a batch is the detection loss plus factor * sum of weight * distillation loss, times
    batch size and world size.

    Columns that the task reports beside box, obj and cls:

    - `kd_logit` and `kd_feature`: the two kinds as they are added, weighted and scheduled, but
      (like box, obj and cls) not multiplied by the batch size.
    - `raw_<loss>`: a loss without weight and schedule; a feature loss is summed over its pairs.

    Feature losses are left out of the first `waiting` batches of a run, while adapters that are
    solved from the features observe them.

    `adapters` and `features` (generators) are trained and resumed with the task; the teacher is no
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
        self.adapters = nn.ModuleList(losses.adapters)
        self.logit_name, self.logit = losses.logit or ("", None)
        self.weights, self.schedule = dict(losses.weights), losses.schedule
        self.factor = 1.0
        self.solve_every = losses.solve_every
        self.number = self.waiting = 0  # of the present batch; batches to observe first

    def start_batch(self, number: int, total: int) -> None:
        """Take the schedule's factor for batch `number` of `total`."""
        self.factor = self.schedule(number, total)
        self.number = number
        if any(adapter.waits for adapter in self.adapters):
            self.waiting = min(WAIT, total // 10)

    @property
    def ready(self) -> bool:
        """Whether the adapters have observed enough for feature losses."""
        return self.number >= self.waiting

    @property
    def computes(self) -> bool:
        """Whether all losses of distillation are computed for the present batch."""
        return bool(self.factor) and self.ready

    def forward(self, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return the loss and the columns of a batch; see the class.

        With factor 0 the teacher does not run, and the gradients equal those of plain training bit
        for bit.
        """
        if not self.factor:
            parts = super().forward(images, targets)
            columns = self._columns({}, parts["loss"])
            return {**parts, "loss": parts["loss"] + self._zero_for_layers(), **columns}
        with self.feature_hooks.reading() as maps:
            raw = self.model(images)
        loss, parts = self.loss(raw, targets)
        terms = self.distillation(images, raw, maps)
        total = loss + self.weighted(terms) * self.factor * len(images)
        if not self.ready:
            total = total + self._zero_for_layers()
        return {"loss": total * self.world_size, **parts, **self._columns(terms, loss)}

    def distillation(
        self, images: Tensor, raw: Sequence[Tensor], maps: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Return each distillation loss by name, unweighted, without those that wait.

        Args:
            images: Batch (N, 3, H, W) in 0..1, for the teacher.
            raw: Raw maps of the student for these images.
            maps: Feature maps of the student for these images.
        """
        teacher_raw, teacher_maps = self.teacher(images)
        pairs = self.aligned(maps, teacher_maps)
        terms = {} if self.logit is None else {self.logit_name: self.logit(raw, teacher_raw)}
        for name, losses in self.features.items() if self.ready else ():
            assert isinstance(losses, nn.ModuleList)
            values = [loss(*pair) for loss, pair in zip(losses, pairs, strict=True)]
            terms[name] = torch.stack(values).sum()
        return terms

    def aligned(
        self, maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]
    ) -> list[tuple[Tensor, Tensor]]:
        """Return the pairs of maps with the same channels, float32 or float64.

        In training the adapters observe the maps, and are solved anew where that is due.
        """
        if not self.adapters:
            return []
        found = []
        with torch.autocast(maps[0].device.type, enabled=False):
            for module, ours, theirs in zip(self.adapters, maps, teacher_maps, strict=True):
                adapter = cast(Adapter, module)
                s, t = at_least_float32(ours), at_least_float32(theirs.detach())
                if self.training:
                    adapter.observe(s.detach(), t)
                if self.training and self.ready and self._solves():
                    adapter.solve()
                found.append(adapter(s, t))
        return found

    def _solves(self) -> bool:
        """Return whether the adapters are solved anew for the present batch."""
        return (self.number - self.waiting) % self.solve_every == 0

    def weighted(self, terms: Mapping[str, Tensor]) -> Tensor:
        """Return the sum of losses times their weights, before the schedule; 0 for no loss."""
        return sum((self.weights[name] * value for name, value in terms.items()), torch.zeros(()))

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

    def _zero_for_layers(self) -> Tensor | float:
        """Return a zero that gives trained layers a gradient where data-parallel training needs it.

        Data-parallel training waits for a gradient of every parameter, so adapters and generators
        get zeros from a batch that does not use them. A single process gives them no gradient: then
        neither weight decay nor momentum moves them.
        """
        if self.world_size == 1:
            return 0.0
        trained = chain(self.adapters.parameters(), self.features.parameters())
        return 0.0 * sum(p.sum() for p in trained)


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
        adapters = adapters_for(pairing, opt.adapter)
        widths = [adapter.channels for adapter in adapters]
        features = {
            name: [FEATURE_LOSSES[name](width, width, **arguments[name]) for width in widths]
            for name in weights
        }
    logit = None
    if opt.logit:
        logit = (opt.logit, LOGIT_LOSSES[opt.logit](LogitSetup.of(model.head, loss.hyp)))
        weights[opt.logit] = opt.logit_weight
    return DistillLosses(
        features, adapters, weights, logit, partial(_factor, opt), opt.adapter_every
    )


def _factor(opt: WithTeacherOptions, step: int, steps: int) -> float:
    """Return the factor of batch `step` of `steps` by the schedule of the options."""
    warmup = opt.kd_warmup * steps / opt.epochs
    return kd_weight(
        opt.kd_schedule, step, steps, floor=opt.kd_floor, stop=opt.kd_stop, warmup=warmup
    )
