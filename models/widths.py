"""Widths of the layers of a model: read them, and set those that pruning changed."""

from collections.abc import Mapping
from typing import Any

import torch
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
    """{module name: {attribute: value}} of every module that has widths.

    Attributes are a known layer's own and those that a class lists in `width_attributes`. Other modules with parameters or
    buffers of their own, as ImplicitA, have `shapes` instead: {tensor name: shape}.
    """
    found: Widths = {}
    for name, module in model.named_modules():
        widths: dict[str, Any] = {a: getattr(module, a) for a in width_attributes(module)}
        widths = {a: list(v) if isinstance(v, tuple) else v for a, v in widths.items()}
        if not _known(module) and (tensors := _own_tensors(module)):
            widths["shapes"] = {n: list(t.shape) for n, t in tensors.items()}
        if widths:
            found[name] = widths
    return found


def width_attributes(module: nn.Module) -> tuple[str, ...]:
    """Names of the attributes that hold a width of this module."""
    return (*_known(module), *getattr(module, "width_attributes", ()))


def set_widths(model: nn.Module, structure: Mapping[str, Mapping[str, Any]], state_dict: Mapping[str, Tensor]) -> None:
    """Give the named modules their widths, and empty tensors of the state dict's shapes for `load_state_dict` to fill.

    KeyError or AttributeError where the structure names something that the model does not have.
    """
    for name, widths in structure.items():
        module = model.get_submodule(name)
        allowed = (*width_attributes(module), "shapes")
        for attribute, value in widths.items():
            if attribute not in allowed:
                raise KeyError(f"{name}.{attribute} is no width")
            if attribute != "shapes":
                setattr(module, attribute, tuple(value) if isinstance(value, list) else value)
        for tensor_name, old in _own_tensors(module).items():
            _resize(module, tensor_name, old, state_dict[f"{name}.{tensor_name}"].shape)


def _resize(module: nn.Module, name: str, old: Tensor, shape: torch.Size) -> None:
    if old.shape == shape:
        return
    new = torch.empty(shape, dtype=old.dtype)
    if isinstance(old, nn.Parameter):
        setattr(module, name, nn.Parameter(new, requires_grad=old.requires_grad))
    else:
        module.register_buffer(name, new)


def _known(module: nn.Module) -> tuple[str, ...]:
    return next((names for kind, names in LAYER_WIDTHS.items() if isinstance(module, kind)), ())


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers that the module itself holds."""
    buffers = {n: b for n, b in module.named_buffers(recurse=False) if n not in module._non_persistent_buffers_set}
    return {**dict(module.named_parameters(recurse=False)), **buffers}
