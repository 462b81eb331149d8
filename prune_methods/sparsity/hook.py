"""Sparse training as a hook: a penalty on every step, its schedule, and figures of its effect."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from prune_methods.sparsity.estimate import describe_estimate
from prune_methods.sparsity.penalties import SMALL, Forecast, Penalty
from prune_methods.sparsity.step_sizes import decay_factor, step_sizes
from utils.engine.hooks import Hook, TrainerState
from utils.engine.trainer import MAX_GRAD_NORM, READ_EVERY
from utils.errors import UserError
from utils.log import LOGGER


class Sparsity(Hook):
    """Add `penalty` to the gradients once an optimizer step, after unscale and before clip.

    Make the hook before the optimizer is built: weight decay is switched off for the layers that
    the penalty pulls (`decay_free`). Figures are those of the averaged model, which is validated,
    saved and pruned.
    """

    def __init__(
        self,
        model: nn.Module,
        penalty: Penalty,
        reg: float | None,
        *,
        decay: str = "linear",
        end_factor: float = 0.01,
    ):
        """Prepare the run.

        Args:
            model: the model in training.
            penalty: the term.
            reg: its strength; None settles on zero at 70 % of the run.
            decay: fall of reg over the epochs: linear, cosine or constant.
            end_factor: reg of the last epoch over reg.
        """
        self.penalty, self.reg, self.decay, self.end_factor = penalty, reg, decay, end_factor
        self.start: float | None = None  # mean |gamma| before the first step
        self.forecast: Forecast | None = None  # unknown under Adam
        self.strength = 0.0  # of this epoch
        self._clipped = torch.zeros(2)  # sum and number of the clipping factors looked at
        for name in penalty.layers:
            cast(Any, model.get_submodule(name)).decay_free = True

    def on_fit_start(self, trainer: TrainerState) -> None:
        """Bind to the tensors in training and say how far this run can get."""
        self.penalty.bind(trainer.task.model)
        self._clipped = self._clipped.to(trainer.device)
        self._averages = trainer.ema.model
        self._factor = decay_factor(self.decay, self.end_factor, trainer.epochs)
        self.gammas = _gammas(self._averages, self.penalty.norms)
        if self.start is None:
            self.start = float(torch.cat(list(self.gammas.values())).abs().mean())
        self._estimate(trainer)

    def on_epoch_start(self, trainer: TrainerState) -> None:
        """One strength an epoch."""
        assert self.reg is not None
        self.strength = self.reg * self._factor(trainer.epoch)

    def on_grads_ready(self, trainer: TrainerState) -> None:
        """The one place where sparse training differs from training."""
        self.penalty.add(self.strength)
        if trainer.step % READ_EVERY == 0:
            norm = get_total_norm([p.grad for p in trainer.task.parameters() if p.grad is not None])
            factor = (MAX_GRAD_NORM / norm).clamp(max=1)
            self._clipped += torch.stack([factor, torch.ones_like(factor)]).where(
                norm.isfinite(), 0.0
            )

    def on_fit_end(self, trainer: TrainerState) -> None:
        """Whoever trains this model next decides on its weight decay anew."""
        for name in self.penalty.layers:
            del cast(Any, trainer.task.model.get_submodule(name)).decay_free

    @property
    def share(self) -> float:
        """Share of channels with |gamma| below .01 in the averaged model."""
        return float((torch.cat(list(self.gammas.values())).abs() < SMALL).float().mean())

    @property
    def mean(self) -> float:
        """Mean |gamma| of the averaged model."""
        return float(torch.cat(list(self.gammas.values())).abs().mean())

    @property
    def clip(self) -> float:
        """Mean factor of clipping the gradient over the run, 0 to 1: gamma moves that much less
        far.
        """
        total, steps = self._clipped.tolist()
        return total / steps if steps else 1.0

    def group_norms(self) -> dict[str, Tensor]:
        """Norms of the coupled slices by batch norm in the averaged model; nothing for slim and
        group_slim.
        """
        return self.penalty.group_norms(self._averages)

    def metrics(self) -> dict[str, float]:
        """Columns of results.csv and a line on the console."""
        strength = self.penalty.mean_strength(self.strength)
        LOGGER.info(
            f"Sparsity: reg {strength:.3g}, {self.share:.1%} of |gamma| below {SMALL:g}, mean"
            f" |gamma| {self.mean:.3f}"
        )
        return {
            "sparse/reg": strength,
            "sparse/gamma_lt_0.01": self.share,
            "sparse/mean_abs_gamma": self.mean,
        }

    def state_dict(self) -> dict[str, Any]:
        """What was settled at the start, and what the penalty has grown to."""
        penalty = self.penalty.state_dict()
        return {
            "reg": self.reg,
            "start": self.start,
            "clipped": self._clipped.clone(),
            "penalty": penalty,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self.reg, self.start, self._clipped = state["reg"], state["start"], state["clipped"]
        self.penalty.load_state_dict(state["penalty"])

    def _estimate(self, trainer: TrainerState) -> None:
        """Say how far the penalty gets in this run, and settle `--reg auto`."""
        assert self.start is not None
        if "momentum" not in trainer.optimizer.param_groups[0]:
            if self.reg is None:
                raise UserError(
                    "--reg auto: how far Adam moves a weight cannot be told beforehand; give a"
                    " number, or use SGD"
                )
            LOGGER.info(
                "Sparsity: Adam rescales gradients, so how far gamma gets cannot be told beforehand"
            )
            return
        steps = step_sizes(trainer.schedule, trainer.epochs, self._factor)
        self.forecast = self.penalty.forecast(steps, self.start, self.reg)
        self.reg = self.forecast.reg
        LOGGER.info(describe_estimate(self.forecast, trainer.schedule.hyp.nbs))


def _gammas(model: nn.Module, norms: list[str]) -> dict[str, Tensor]:
    """Batch norm -> its gammas, the model's own tensors."""
    return {name: cast(Tensor, model.get_submodule(name).weight).detach() for name in norms}
