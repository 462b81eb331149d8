"""Name the row of a model that a format cannot express: each row is converted alone."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from models import Model
from utils.errors import UserError

Attempt = Callable[[nn.Module, list[Tensor]], None]
"""Converts a module that takes some tensors; raises `UserError` where it cannot."""


class RowGraph(nn.Module):
    """A row that takes its maps one by one, and gives its tensors as a tuple."""

    def __init__(self, row: nn.Module, listed: bool):
        super().__init__()
        self.row, self.listed = row, listed

    def forward(self, *maps: Tensor) -> tuple[Tensor, ...]:
        """Map the inputs of the row to its outputs."""
        return tuple(_tensors(self.row(list(maps) if self.listed else maps[0])))


def _tensors(value: Any) -> list[Tensor]:
    """Return the tensors of an output in their order."""
    if isinstance(value, Tensor):
        return [value]
    if value is None:  # a stage of a backbone that gives no map
        return []
    return [tensor for item in value for tensor in _tensors(item)]


def rows_to_blame(model: Model, images: Tensor, attempt: Attempt) -> str:
    """Return the rows that a format cannot express, in words: `: row 12 (DCNv2)`.

    Args:
        model: Deployed model.
        images: (1, 3, H, W).
        attempt: Converts one row.

    Returns:
        The rows with their blocks; "" where each row alone can be converted.
    """
    inputs = _inputs_of_rows(model, images)
    found: list[str] = []
    for row in model.rows:
        try:
            attempt(RowGraph(row.module, row.listed).eval(), inputs[row.index])
        except UserError:
            found.append(f"{row.index} ({row.block})")
    if not found:
        return ""
    return f": row{'s' if len(found) > 1 else ''} {', '.join(found)}"


def _inputs_of_rows(model: Model, images: Tensor) -> dict[int, list[Tensor]]:
    """Return the maps that each row reads, by its index."""
    found: dict[int, list[Tensor]] = {}

    def recorder(index: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def record(module: nn.Module, given: tuple[Any, ...]) -> None:
            found[index] = _tensors(given)

        return record

    hooks = [row.module.register_forward_pre_hook(recorder(row.index)) for row in model.rows]
    try:
        with torch.no_grad():
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found
