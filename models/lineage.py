"""What a pruned model knows of the models that it was cut from."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

MOST = 8  # ancestors that a model remembers, the latest first


@dataclass(frozen=True, eq=False)
class Ancestor:
    """A model that a pruned model was cut from, by one cut or by several.

    Attributes:
        fingerprint: `fingerprint` of the uncut model.
        kept: Module name -> channels of the uncut module's map that the pruned module has, in its
            order, int32 (channels of the pruned module,).
        widths: Module name -> number of channels of the uncut module's map.
    """

    fingerprint: str
    kept: Mapping[str, Tensor]
    widths: Mapping[str, int]

    def through(self, kept: Mapping[str, Tensor]) -> "Ancestor":
        """Return the same ancestor for a model that one more cut left with channels `kept`."""
        both = {name: self.kept[name][kept[name].long()] for name in kept if name in self.kept}
        return Ancestor(self.fingerprint, both, {name: self.widths[name] for name in both})

    def channels(self, name: str, width: int) -> Tensor | None:
        """Return the kept channels of a module, int64; None where they are not known.

        Args:
            name: Name of the module.
            width: Number of channels that the uncut module has; must be the ancestor's.
        """
        if self.widths.get(name) != width:
            return None
        return self.kept[name].long()

    def stored(self) -> dict[str, Any]:
        """Return the ancestor as plain data and tensors."""
        return {k: v if isinstance(v, str) else dict(v) for k, v in vars(self).items()}


def fingerprint(model: nn.Module) -> str:
    """Return a hash of all weights and statistics; equal for models of equal weights."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.is_floating_point():
            found.update(name.encode())
            found.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def descent(
    parent: nn.Module, kept: Mapping[str, Tensor], widths: Mapping[str, int]
) -> tuple[Ancestor, ...]:
    """Return the ancestors of a model that was cut from `parent`.

    Args:
        parent: The uncut model; its own ancestors are taken over.
        kept: See `Ancestor`.
        widths: See `Ancestor`.
    """
    older: Iterable[Ancestor] = getattr(parent, "ancestors", ())
    found = [Ancestor(fingerprint(parent), kept, widths), *(a.through(kept) for a in older)]
    return tuple(found[:MOST])


def ancestors_from(stored: Sequence[Mapping[str, Any]]) -> tuple[Ancestor, ...]:
    """Return the ancestors that a checkpoint holds, as `models.schema` has checked them."""
    return tuple(Ancestor(**item) for item in stored)


def check_ancestors(stored: Sequence[Any]) -> str:
    """Return the name of the first part of stored ancestors that is wrong; empty where none is."""
    for item in stored:
        if not isinstance(item, dict) or set(item) != {"fingerprint", "kept", "widths"}:
            return "fingerprint, kept, widths"
        kept, widths = item["kept"], item["widths"]
        if not isinstance(item["fingerprint"], str):
            return "fingerprint"
        if not (isinstance(kept, dict) and isinstance(widths, dict) and set(kept) == set(widths)):
            return "kept"
        for name, chosen in kept.items():
            if not _are_channels(chosen, widths[name]):
                return f"kept: {str(name)[:80]}"
    return ""


def _are_channels(chosen: Any, width: Any) -> bool:
    """Return whether `chosen` holds different channels of a map of `width`."""
    if not isinstance(chosen, Tensor) or chosen.dtype != torch.int32 or chosen.dim() != 1:
        return False
    if type(width) is not int or not 0 < len(chosen) <= width:
        return False
    numbers = chosen.unique()
    return len(numbers) == len(chosen) and int(numbers[0]) >= 0 and int(numbers[-1]) < width
