"""Backbones of the package timm in one row that gives a map for each level.

The package is optional: `pip install timm`.

    - [-1, 1, Timm, [mobilenetv3_small_100]]     # outputs 0 to 4 are strides 2 to 32, next row: 5
    - [-1, 1, mobilenetv3_small_100, [False]]    # the same

A lower-case name stands for a model of timm where no block has the name and timm knows it.

Shapes: image (N, 3, H, W) -> [(N, C1, H/2, W/2) ... (N, C5, H/32, W/32)]. A level that the model
does not give (stride 2 of RepViT and most others) is None, so that outputs 0 to 4 always are the
strides 2 to 32.

What differs: no classifier. Weights start at random; with `pretrained` True they are downloaded
once, when the model is built from its YAML, and never when a checkpoint is loaded. Batch norms get
the model's eps and momentum like all others. In the deployed model every batch norm that follows a
convolution is folded, timm's own re-parameterisable blocks too; published tables count such a
backbone unfolded.

Pruning: through the graph, as any model; MobileNetV3 and RepViT prune well. ReXNet and FasterNet of
timm do not (residuals and convolutions over a part of the channels); the blocks ReXNet and
FasterNet of this project do.
"""

import copy
import socket
from collections.abc import Callable
from functools import partial
from typing import Any, cast
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.blocks.backbone import five_maps
from models.blocks.conv import fold_bn
from models.registry import BLOCKS, BuildContext, weights_follow
from utils.errors import UserError, suggest

# the end of messages that start with a block
NEEDED = "needs the package timm, which is not installed; install it with: pip install timm"


def timm_package() -> Any:
    """Return the package timm; `UserError` with the install command where it is missing."""
    try:
        import timm  # noqa: PLC0415  # optional, and slow to import
    except ImportError:
        raise UserError(NEEDED) from None
    return timm


@BLOCKS.register()
class Timm(nn.Module):
    """Classifier of timm without its last layers."""

    def __init__(self, body: nn.Module):
        super().__init__()
        self.body = body

    @classmethod
    def from_yaml(cls, context: BuildContext, name: str, pretrained: bool = False) -> "Timm":
        """Build the block from the row arguments `[name, pretrained]`."""
        timm = timm_package()
        if not timm.is_model(name):
            raise UserError(
                f"timm {timm.__version__} has no model '{name}'{suggest(name, timm.list_models())}"
            )
        make = partial(timm.create_model, name, features_only=True, in_chans=context.c1)
        if pretrained and not weights_follow():
            return cls(_downloaded(make, name))
        return cls(make(pretrained=False))

    def forward(self, x: Tensor) -> list[Tensor | None]:
        """Map (N, C1, H, W) to five maps, None for each missing stride; see the module."""
        return five_maps(self.body(x))

    def fuse(self) -> nn.Module:
        """Return a copy with each batch norm folded into the convolution before it.

        Where folding would change the outputs, the training form itself is returned.
        """
        tensor = next(self.parameters())
        channels = next(m.in_channels for m in self.modules() if isinstance(m, nn.Conv2d))
        generator = torch.Generator().manual_seed(0)
        image = torch.rand(1, channels, 64, 64, generator=generator).to(tensor)
        folded = fold_norms(copy.deepcopy(self).eval(), image)
        pairs = zip(folded.body(image), self.body(image), strict=True)
        same = all((a - b).abs().max() <= 1e-3 * b.abs().max().clamp(min=1e-6) for a, b in pairs)
        return folded if same else self


def _downloaded(make: Callable[..., nn.Module], name: str) -> nn.Module:
    """Return a model with its pretrained weights, from timm's cache or downloaded now.

    Without a network the library would try again for a minute, so a look at the host comes first.

    Raises:
        UserError: The weights are neither in the cache nor can they be downloaded.
    """
    from huggingface_hub import constants  # noqa: PLC0415  # comes with timm

    offline, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        return make(pretrained=True)  # from the cache
    except (OSError, RuntimeError, ValueError):
        pass
    finally:
        constants.HF_HUB_OFFLINE = offline
    host = urlsplit(constants.ENDPOINT).hostname or ""
    try:
        if not getproxies():
            socket.create_connection((host, 443), timeout=5).close()
        return make(pretrained=True)
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"pretrained: the weights of '{name}' cannot be downloaded from {host} ({reason});"
            " write False to start from new ones, or build it once where there is a network"
        ) from None


def fold_norms(module: Any, image: Tensor) -> Any:
    """Fold, in place, every batch norm whose input is the output of a convolution.

    Args:
        module: A model in eval mode.
        image: Image (1, C, H, W); one run with it shows which norm reads which convolution.

    Returns:
        The module itself.
    """
    # by the id of the map; the map is kept as well, so that no other object gets the same id
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}
    pairs: list[tuple[nn.Conv2d, _BatchNorm]] = []

    def note(conv: nn.Module, inputs: Any, output: Tensor) -> None:
        """Note which convolution made a map; a forward hook."""
        made[id(output)] = cast(nn.Conv2d, conv), output

    def find(norm: nn.Module, inputs: Any) -> None:
        """Pair a batch norm with the convolution that made its input; a forward pre-hook."""
        if id(inputs[0]) in made:
            pairs.append((made[id(inputs[0])][0], cast(_BatchNorm, norm)))

    layers = list(module.modules())
    handles = [m.register_forward_hook(note) for m in layers if type(m) is nn.Conv2d]
    handles += [m.register_forward_pre_hook(find) for m in layers if isinstance(m, nn.BatchNorm2d)]
    module(image)
    for handle in handles:
        handle.remove()
    names = {m: n for n, m in module.named_modules()}
    for conv, norm in pairs:
        _replace(module, names[conv], fold_bn(conv, cast(nn.BatchNorm2d, norm)))
        # batch norms of timm have their dropout and activation inside
        parts = [getattr(norm, part, None) for part in ("drop", "act")]
        rest = [part for part in parts if isinstance(part, nn.Module)]
        _replace(module, names[norm], nn.Sequential(*rest) if rest else nn.Identity())
    return module


def _replace(module: nn.Module, name: str, new: nn.Module) -> None:
    """Put a new module in the place of the one called `name`."""
    parent, _, child = name.rpartition(".")
    setattr(module.get_submodule(parent), child, new)


class _Named:
    """A model of timm under its own name, with the row arguments `[pretrained]`."""

    def __init__(self, name: str):
        self.name = name

    def from_yaml(self, context: BuildContext, pretrained: bool = False) -> Timm:
        """Build the backbone from the row arguments `[pretrained]`; see `Timm`."""
        return Timm.from_yaml(context, self.name, pretrained)


def _named(name: str) -> _Named | None:
    """Return the model of timm that an unknown block name stands for, or None.

    Names of timm are lower case and have a digit or `_`.

    Raises:
        UserError: Where the name could be one of timm, but timm is not installed.
    """
    if not name.islower() or name.isalpha():
        return None
    try:
        return _Named(name) if timm_package().is_model(name) else None
    except UserError:
        raise UserError(f"unknown block '{name}'; as a model of timm it {NEEDED}") from None


BLOCKS.fallback = _named
