"""Bound what building a model from a stranger's YAML may take: values, layers and sizes.

A typing error such as `depth_multiple: 300` or a kernel of 100000 would otherwise fill the memory
or seem to hang.
"""

import math
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from utils.errors import UserError, brief

MOST_VALUES = 2**30  # of all new tensors of a model: 4 GB of float32, seven times YOLOv5x6
MOST_LAYERS = 2000  # rows, each counted as often as it is repeated
BUILD_ERRORS = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, NameError),
    *(RuntimeError, StopIteration, TypeError, ValueError),
)
"""Errors that arguments of a wrong type or size raise inside a block."""


class BoundedTensors(TorchDispatchMode):
    """Context in which all new tensors together may have `MOST_VALUES` values.

    Operators that are given a size are stopped before they reserve anything.
    """

    def __init__(self) -> None:
        super().__init__()
        self.left = MOST_VALUES

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Check the size that an operator is asked for, run it, and check its result."""
        if func._schema.arguments and func._schema.arguments[0].name == "size":
            asked = math.prod(max(int(side), 0) for side in args[0])
            self.left -= asked
            if self.left < 0:
                raise UserError(
                    f"the layers up to here have more than {MOST_VALUES} values; smaller channels,"
                    " kernels or multiples would fit"
                )
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.numel() > MOST_VALUES:
            raise UserError(f"a map of shape {brief(list(result.shape))} is too large")
        return result
