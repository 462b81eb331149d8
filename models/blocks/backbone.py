"""Shared parts of the backbones that stand in one row.

Such a row gives five maps of strides 2, 4, 8, 16 and 32, so that the row has outputs 0 to 4 and the
next row is 5. Where a backbone has no map of the first strides, the outputs of these strides are
None; a row that reads one of them is an error.

    backbone:
      - [-1, 1, FasterNet, [t0]]         # outputs 0 to 4
      - [-1, 1, SPPF, [1024, 5]]         # output 5

A size has a name of its own as well, as published files write it:

      - [-1, 1, fasternet_t0, [False]]   # the same as [-1, 1, FasterNet, [t0]]
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from models.registry import BLOCKS, BuildContext
from utils.errors import UserError

LEVELS = 5


def five_maps(maps: Sequence[Tensor]) -> list[Tensor | None]:
    """Return the maps of the coarsest strides, preceded by None for each missing stride."""
    return [None] * (LEVELS - len(maps)) + list(maps)


class _Named:
    """A backbone of one size under a name of its own: `[-1, 1, fasternet_t0, [False]]`."""

    def __init__(self, backbone: Any, size: str):
        self.backbone, self.size = backbone, size

    def from_yaml(self, context: BuildContext, pretrained: bool = False) -> nn.Module:
        """Build the backbone from the row arguments `[pretrained]`, which must be False."""
        if pretrained is not False:
            raise UserError(
                f"there are no pretrained weights for this backbone: {pretrained!r} should be False"
            )
        return self.backbone.from_yaml(context, self.size)


def register_sizes(backbone: Any, sizes: dict[str, str]) -> None:
    """Register names for the sizes of a backbone.

    `sizes` maps each name to the first row argument that the backbone's `from_yaml` takes.
    """
    for name, size in sizes.items():
        BLOCKS.register(name)(_Named(backbone, size))


def size_of(table: dict[str, Any], size: str, backbone: str) -> Any:
    """Return an entry of a table of sizes; `UserError` with the known sizes where it is missing."""
    if size not in table:
        raise UserError(f"{backbone} has no size {size!r}; there are {', '.join(table)}")
    return table[size]
