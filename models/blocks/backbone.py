"""What backbones that stand in one row share.

Such a row gives five maps, strides 2, 4, 8, 16 and 32, so that it is outputs 0 to 4 and the next
row is 5. Where a backbone has no map of the first strides, these outputs are None; a row that reads
one is an error.

    backbone:
      - [-1, 1, FasterNet, [t0]]  # 0 to 4; or, as it is often pasted: [-1, 1, fasternet_t0,
        [False]]
      - [-1, 1, SPPF, [1024, 5]]  # 5
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from models.registry import BLOCKS, BuildContext
from utils.errors import UserError

LEVELS = 5


def five_maps(maps: Sequence[Tensor]) -> list[Tensor | None]:
    """The maps of the coarsest strides, None before them for those that are missing."""
    return [None] * (LEVELS - len(maps)) + list(maps)


class _Named:
    """A backbone of one size under a name of its own: `[-1, 1, fasternet_t0, [False]]`."""

    def __init__(self, backbone: Any, size: str):
        self.backbone, self.size = backbone, size

    def from_yaml(self, context: BuildContext, pretrained: bool = False) -> nn.Module:
        """`[pretrained]`, which is False here."""
        if pretrained is not False:
            raise UserError(
                f"there are no pretrained weights for this backbone: {pretrained!r} should be False"
            )
        return self.backbone.from_yaml(context, self.size)


def register_sizes(backbone: Any, sizes: dict[str, str]) -> None:
    """Register names for sizes of a backbone: {name: what its `from_yaml` takes as
    first argument}.
    """
    for name, size in sizes.items():
        BLOCKS.register(name)(_Named(backbone, size))


def size_of(table: dict[str, Any], size: str, backbone: str) -> Any:
    """The entry of a table of sizes; `UserError` with what there is."""
    if size not in table:
        raise UserError(f"{backbone} has no size {size!r}; there are {', '.join(table)}")
    return table[size]
