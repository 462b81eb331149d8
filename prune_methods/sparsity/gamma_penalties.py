"""Penalties on the gammas of batch norms: `slim` and `group_slim`."""

import numpy as np
import torch
from torch import nn

from prune_methods.sparsity.penalties import PENALTIES, Penalty, trainable

TINY = 1e-12  # stands for a norm of zero


@PENALTIES.register("slim")
class SlimPenalty(Penalty):
    """reg * sign(gamma) on every batch norm, 0 at 0: the subgradient of L1.

    Source: Network Slimming, Liu et al., ICCV 2017.
    """

    def bind(self, model: nn.Module) -> None:
        """See Penalty."""
        self._gammas = list(trainable(model, self.norms).values())

    @torch.no_grad()
    def add(self, reg: float) -> None:
        """See Penalty."""
        ready = [(gamma, gamma.grad) for gamma in self._gammas if gamma.grad is not None]
        signs = torch._foreach_sign([gamma for gamma, _ in ready])  # pyright: ignore[reportPrivateImportUsage]
        torch._foreach_add_([grad for _, grad in ready], signs, alpha=reg)  # pyright: ignore[reportPrivateImportUsage]


@PENALTIES.register("group_slim")
class GroupSlimPenalty(Penalty):
    """reg * gamma_i / n_i, n_i the root mean square of all gammas that are coupled at channel i.

    The term is the gradient of group lasso with its usual factor sqrt(size) (Yuan & Lin 2006), so
    that channels that can only be cut together go to zero together. With the mean in the root,
    equal gammas move as far as under `slim`, however many are coupled: reg means the same for
    both, and on a lone batch norm both penalties are the same.
    """

    def bind(self, model: nn.Module) -> None:
        """See Penalty; a channel that is in no group is a group of its own."""
        found = trainable(model, self.norms)
        self._gammas, places, own = list(found.values()), [], self.index.total
        for name in found:
            place = self.index.outs[name].copy()
            alone = place == self.index.total
            place[alone] = own + np.arange(alone.sum())
            own += int(alone.sum())
            places.append(place)
        device = self._gammas[0].device
        self._places = torch.from_numpy(np.concatenate(places)).to(device)
        self._sizes = [len(place) for place in places]
        self._counts = torch.bincount(self._places, minlength=own).clamp(min=1)

    @torch.no_grad()
    def add(self, reg: float) -> None:
        """See Penalty."""
        flat = torch.cat(self._gammas)
        squares = flat.new_zeros(len(self._counts)).index_add_(0, self._places, flat.square())
        norms = (squares / self._counts).sqrt_().clamp_(min=TINY)
        terms = (flat / norms[self._places]).split(self._sizes)
        for gamma, term in zip(self._gammas, terms, strict=True):
            if gamma.grad is not None:
                gamma.grad.add_(term, alpha=reg)
