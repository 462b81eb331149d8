"""Mixed precision on GPUs, and the guard against numbers that are not finite."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Precision:
    """Autocast and loss scaling for the modes fp16, bf16 and off.

    On the CPU the mode is always off (float32). Only fp16 needs its loss scaled: gradients below
    6e-8 would vanish. In other modes the scaler does nothing.
    """

    def __init__(self, mode: str, device: torch.device):
        self.mode = "off" if device.type == "cpu" else mode
        self.device = device
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.mode == "fp16")

    def autocast(self) -> torch.autocast:
        """Return the context of a forward pass."""
        return torch.autocast(
            self.device.type,
            dtype=DTYPES.get(self.mode, torch.bfloat16),
            enabled=self.mode != "off",
        )


class FiniteGuard:
    """Counter of optimizer steps whose gradient is not finite.

    The counters live on the device, so that no step waits for it. The optimizer skips a bad step by
    the flag that `flag` returns. Batch-norm statistics that a bad batch has spoilt are restored
    when the counters are read. `limit` bad steps in a row are too many; fp16 is allowed 16 more,
    because its scaler finds a scale by halving 65536.
    """

    def __init__(self, modules: Iterable[nn.Module], precision: Precision, limit: int = 10):
        self.limit = limit + 16 * (precision.mode == "fp16")
        buffers = [buffer for module in modules for buffer in module.buffers()]
        self._buffers = [buffer for buffer in buffers if buffer.is_floating_point()]
        self._good = [buffer.clone() for buffer in self._buffers]
        self._streak = torch.zeros((), device=precision.device)
        self._bad = torch.zeros((), device=precision.device)

    def flag(self, grad_norm: Tensor) -> Tensor:
        """Count a step; return 1.0 on the device for a norm that is not finite, else 0.0."""
        bad = 1 - grad_norm.isfinite().float()
        self._streak.add_(bad).mul_(bad)
        self._bad.add_(bad)
        return bad

    def read(self) -> tuple[int, int]:
        """Return the bad steps in a row up to now, and the bad steps since the last reading.

        Waits for the device; call this method every few steps only.
        """
        streak, bad = (int(count) for count in torch.stack([self._streak, self._bad]).tolist())
        self._bad.zero_()
        if bad:
            for buffer, good in zip(self._buffers, self._good, strict=True):
                if not buffer.isfinite().all():
                    buffer.copy_(good)
        elif self._buffers:
            torch._foreach_copy_(self._good, self._buffers)  # pyright: ignore[reportPrivateImportUsage]
        return streak, bad


def all_finite(module: nn.Module) -> bool:
    """Return whether every weight and buffer is finite. Waits for the device once."""
    flags = [
        tensor.isfinite().all()
        for tensor in module.state_dict().values()
        if tensor.is_floating_point()
    ]
    return not flags or bool(torch.stack(flags).all())
