"""Read the widths of the layers of a model, and set those that pruning changed."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

LAYER_WIDTHS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Conv1d: ("in_channels", "out_channels", "groups"),
    nn.Conv2d: ("in_channels", "out_channels", "groups"),
    nn.Conv3d: ("in_channels", "out_channels", "groups"),
    nn.ConvTranspose2d: ("in_channels", "out_channels", "groups"),
    nn.Linear: ("in_features", "out_features"),
    _BatchNorm: ("num_features",),
    nn.GroupNorm: ("num_channels", "num_groups"),
    nn.LayerNorm: ("normalized_shape",),
    nn.PReLU: ("num_parameters",),
}

Widths = dict[str, dict[str, Any]]


def widths_of(model: nn.Module) -> Widths:
    """Return {module name: {attribute: value, "shapes": {tensor name: shape}}} of a model.

    Only modules with widths are listed. Attributes are those of a known layer and those that a
    class lists in `width_attributes`. Shapes are those of the parameters and saved buffers that the
    module itself holds, so that layers with raw parameters, as ImplicitA, need nothing more.
    """
    found: Widths = {}
    for name, module in model.named_modules():
        widths: dict[str, Any] = {a: getattr(module, a) for a in width_attributes(module)}
        widths = {a: list(v) if isinstance(v, tuple) else v for a, v in widths.items()}
        shapes = {n: list(t.shape) for n, t in _own_tensors(module).items()}
        if widths or shapes:
            found[name] = widths | {"shapes": shapes}
    return found


def width_attributes(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the attributes that hold a width of this module."""
    known = next((names for kind, names in LAYER_WIDTHS.items() if isinstance(module, kind)), ())
    return (*known, *getattr(module, "width_attributes", ()))


def channels_of(layer: nn.Module) -> tuple[int, int]:
    """Return the numbers of output and input channels of a layer.

    Both are the same for a norm or another layer that works channel by channel, whose first
    parameter has an entry for each channel.
    """
    if isinstance(layer, _ConvNd):
        return layer.out_channels, layer.in_channels
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    if isinstance(layer, _BatchNorm):
        return layer.num_features, layer.num_features
    if isinstance(layer, nn.GroupNorm):
        return layer.num_channels, layer.num_channels
    channels = len(next(layer.parameters(recurse=False)))
    return channels, channels


def channel_dim(parameter: Tensor) -> int:
    """Return the dimension of the channels of a bare parameter: 1 of (1, C, 1, 1), 0 of (C,)."""
    return 1 if parameter.dim() > 1 else 0


def set_widths(model: nn.Module, structure: Mapping[str, Mapping[str, Any]]) -> None:
    """Give the named modules their widths.

    Tensors whose shape changes are empty afterwards; `load_state_dict` fills them.

    Raises:
        KeyError, AttributeError: The structure names something that the model does not have.
    """
    for name, widths in structure.items():
        module = model.get_submodule(name)
        for attribute in width_attributes(module):
            value = widths[attribute]
            setattr(module, attribute, tuple(value) if isinstance(value, list) else value)
        for tensor_name, old in _own_tensors(module).items():
            shape = widths["shapes"][tensor_name]
            if list(old.shape) != list(shape):
                _replace(module, tensor_name, old, old.new_empty(shape))


def _replace(module: nn.Module, name: str, old: Tensor, new: Tensor) -> None:
    if isinstance(old, nn.Parameter):
        setattr(module, name, nn.Parameter(new, requires_grad=old.requires_grad))
    else:
        module.register_buffer(name, new)


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and saved buffers that the module itself holds, by name."""
    buffers = {
        n: b
        for n, b in module.named_buffers(recurse=False)
        if n not in module._non_persistent_buffers_set
    }
    return {**dict(module.named_parameters(recurse=False)), **buffers}
