"""Sparse training as a hook: add a penalty at every step, schedule it, and report its effect."""

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
    the penalty pulls (`decay_free`). Figures describe the averaged (EMA) model, which is validated,
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
            reg: strength of the penalty; None lets `Penalty.auto_reg` choose, so that gamma is at
                zero after 70 % of the run.
            decay: how reg falls over the epochs: linear, cosine or constant.
            end_factor: reg of the last epoch over reg.
        """
        self.penalty, self.reg, self.decay, self.end_factor = penalty, reg, decay, end_factor
        self.start: float | None = None  # mean |gamma| before the first step
        self.forecast: Forecast | None = None  # unknown under Adam
        self.strength = 0.0  # of this epoch
        self._clipped = torch.zeros(2)  # sum and number of the clipping factors sampled so far
        for name in penalty.layers:
            cast(Any, model.get_submodule(name)).decay_free = True

    def on_fit_start(self, trainer: TrainerState) -> None:
        """Bind the penalty to the tensors in training and log how far gamma can fall."""
        self.penalty.bind(trainer.task.model)
        self._clipped = self._clipped.to(trainer.device)
        self._averages = trainer.ema.model
        self._factor = decay_factor(self.decay, self.end_factor, trainer.epochs)
        self.gammas = _gammas(self._averages, self.penalty.norms)
        if self.start is None:
            self.start = float(torch.cat(list(self.gammas.values())).abs().mean())
        self._estimate(trainer)

    def on_epoch_start(self, trainer: TrainerState) -> None:
        """Set the strength of the epoch."""
        assert self.reg is not None
        self.strength = self.reg * self._factor(trainer.epoch)

    def on_grads_ready(self, trainer: TrainerState) -> None:
        """Add the penalty; only here does sparse training differ from training.

        Every `READ_EVERY` steps the factor by which clipping will shorten the gradient is sampled.
        """
        self.penalty.add(self.strength)
        if trainer.step % READ_EVERY == 0:
            norm = get_total_norm([p.grad for p in trainer.task.parameters() if p.grad is not None])
            factor = (MAX_GRAD_NORM / norm).clamp(max=1)
            sample = torch.stack([factor, torch.ones_like(factor)])
            self._clipped += sample.where(norm.isfinite(), 0.0)

    def on_fit_end(self, trainer: TrainerState) -> None:
        """Remove the marks that switched weight decay off, for a later training of the model."""
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
        """Mean factor by which clipping shortened the gradient, and so the pull on gamma, 0..1."""
        total, steps = self._clipped.tolist()
        return total / steps if steps else 1.0

    def group_norms(self) -> dict[str, Tensor]:
        """Return the norms of the coupled slices by batch norm, in the averaged model.

        The dict is empty for slim and group_slim.
        """
        return self.penalty.group_norms(self._averages)

    def metrics(self) -> dict[str, float]:
        """Log strength and sparsity, and return them as columns of results.csv."""
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
        """Return the settings of the run, the clipping factors and the penalty's own state."""
        penalty = self.penalty.state_dict()
        return {
            "reg": self.reg,
            "start": self.start,
            "clipped": self._clipped.clone(),
            "penalty": penalty,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.reg, self.start, self._clipped = state["reg"], state["start"], state["clipped"]
        self.penalty.load_state_dict(state["penalty"])

    def _estimate(self, trainer: TrainerState) -> None:
        """Log how far gamma can fall in this run, and choose the strength for `--reg auto`."""
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
    """Return the gammas of each batch norm; the tensors share memory with the model."""
    return {name: cast(Tensor, model.get_submodule(name).weight).detach() for name in norms}
