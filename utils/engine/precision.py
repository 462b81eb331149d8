"""Numbers that training computes with: mixed precision on GPUs, and what happens when they stop
being finite.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Precision:
    """Autocast and loss scaling for `mode` fp16, bf16 or off.

    On the CPU it is always off (float32).

    Only fp16 needs its loss scaled: gradients below 6e-8 would vanish. The scaler does nothing
    otherwise.
    """

    def __init__(self, mode: str, device: torch.device):
        self.mode = "off" if device.type == "cpu" else mode
        self.device = device
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.mode == "fp16")

    def autocast(self) -> torch.autocast:
        """Context of the forward pass."""
        return torch.autocast(
            self.device.type,
            dtype=DTYPES.get(self.mode, torch.bfloat16),
            enabled=self.mode != "off",
        )


class FiniteGuard:
    """Counts optimizer steps with a non-finite gradient on the device, so that no step waits for
    it.

    Such a step is skipped by the optimizer itself through the flag that `flag` returns. Batch-norm
    statistics that the bad batch has spoilt are put back when the counters are read. `limit` bad
    steps in a row are too many; fp16 gets 16 more, because its scaler looks for a scale by halving
    65536.
    """

    def __init__(self, modules: Iterable[nn.Module], precision: Precision, limit: int = 10):
        self.limit = limit + 16 * (precision.mode == "fp16")
        self._buffers = [b for m in modules for b in m.buffers() if b.is_floating_point()]
        self._good = [b.clone() for b in self._buffers]
        self._streak = torch.zeros((), device=precision.device)
        self._bad = torch.zeros((), device=precision.device)

    def flag(self, grad_norm: Tensor) -> Tensor:
        """1.0 on the device where the norm is not finite, else 0.0; the counters take it in."""
        bad = 1 - grad_norm.isfinite().float()
        self._streak.add_(bad).mul_(bad)
        self._bad.add_(bad)
        return bad

    def read(self) -> tuple[int, int]:
        """(bad steps in a row up to now, bad steps since the last reading).

        Waits for the device; call it every few steps.
        """
        streak, bad = (int(n) for n in torch.stack([self._streak, self._bad]).tolist())
        self._bad.zero_()
        if bad:
            for buffer, good in zip(self._buffers, self._good, strict=True):
                if not buffer.isfinite().all():
                    buffer.copy_(good)
        elif self._buffers:
            torch._foreach_copy_(self._good, self._buffers)  # pyright: ignore[reportPrivateImportUsage]
        return streak, bad


def all_finite(module: nn.Module) -> bool:
    """Whether every weight and buffer is finite. Waits for the device once."""
    flags = [
        tensor.isfinite().all()
        for tensor in module.state_dict().values()
        if tensor.is_floating_point()
    ]
    return not flags or bool(torch.stack(flags).all())
