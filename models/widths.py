"""Widths of the layers of a model: read them, and set those that pruning changed."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

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
    """{module name: {attribute: value, "shapes": {tensor name: shape}}} of every module that has
    widths.

    Attributes are a known layer's own and those that a class lists in `width_attributes`; shapes
    are those of the parameters and saved buffers that the module itself holds, so that layers with
    raw parameters, as ImplicitA, need nothing more.
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
    """Names of the attributes that hold a width of this module."""
    known = next((names for kind, names in LAYER_WIDTHS.items() if isinstance(module, kind)), ())
    return (*known, *getattr(module, "width_attributes", ()))


def set_widths(model: nn.Module, structure: Mapping[str, Mapping[str, Any]]) -> None:
    """Give the named modules their widths; tensors whose shape changes are empty, for
    `load_state_dict` to fill.

    KeyError or AttributeError where the structure names something that the model does not have.
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
    """Parameters and saved buffers that the module itself holds."""
    buffers = {
        n: b
        for n, b in module.named_buffers(recurse=False)
        if n not in module._non_persistent_buffers_set
    }
    return {**dict(module.named_parameters(recurse=False)), **buffers}
