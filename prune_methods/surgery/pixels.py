"""Sampled output pixels of a layer, and the rows of a regression at these pixels."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Layer = nn.Conv2d | nn.Linear


@dataclass
class PixelSample:
    """Draws output pixels of every layer, the same ones for the uncut and the cut model.

    Attributes:
        images: number of calibration images.
        rows: least number of rows of a layer.
        rows_per_column: rows of a layer for each of its weights' columns.
        seed: of the draw.
    """

    images: int
    rows: int = 8192
    rows_per_column: int = 16
    seed: int = 0
    _drawn: dict[str, Tensor] = field(default_factory=dict)

    def of(self, name: str, pixels: int, columns: int) -> Tensor:
        """Return int64 (images, P): numbers of the pixels to use of each image of a layer.

        Args:
            name: of the layer; the first call with a name decides.
            pixels: height times width of the layer's output.
            columns: weights that an output of the uncut layer sums over.
        """
        if name not in self._drawn:
            self._drawn[name] = self._draw(pixels, columns)
        return self._drawn[name]

    def _draw(self, pixels: int, columns: int) -> Tensor:
        wanted = -(-max(self.rows, self.rows_per_column * columns) // self.images)
        generator = torch.Generator().manual_seed(1000 * self.seed + len(self._drawn))
        if wanted >= pixels:
            return torch.arange(pixels).repeat(self.images, 1)
        if 4 * wanted < pixels:  # a pixel drawn twice is rare
            return torch.randint(pixels, (self.images, wanted), generator=generator)
        order = torch.rand(self.images, pixels, generator=generator).argsort(1)
        return order[:, :wanted]


def supported(layer: nn.Module) -> str:
    """Return why the rows of a layer cannot be formed; empty where they can."""
    if isinstance(layer, nn.Conv2d) and isinstance(layer.padding, str):
        return f"its padding is '{layer.padding}'"
    if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
        return f"its padding mode is {layer.padding_mode}"
    return ""


def output_pixels(layer: Layer, x: Tensor) -> tuple[int, int]:
    """Return height and width of a layer's output; a linear layer's tokens are a column."""
    if isinstance(layer, nn.Linear):
        return x[0, ..., 0].numel(), 1
    sides = zip(
        x.shape[2:], layer.padding, layer.dilation, layer.kernel_size, layer.stride, strict=True
    )
    height, width = [
        (size + 2 * int(pad) - dilation * (kernel - 1) - 1) // stride + 1
        for size, pad, dilation, kernel, stride in sides
    ]
    return height, width


def input_rows(layer: Layer, x: Tensor, at: Tensor) -> Tensor:
    """Return the inputs that a layer sums over at its output pixels.

    Args:
        layer: convolution (N, C, H, W) or linear layer (N, ..., C).
        x: the input.
        at: pixel numbers, int64 (N, P).

    Returns:
        (groups, N x P, columns), the columns in the order of `weight.flatten(1)`.
    """
    if isinstance(layer, nn.Linear):
        return _at(x.flatten(1, -2), at)[None]
    taps = torch.stack(_taps(layer, x, at.to(x.device)), 2)  # (N x P, C, kernel positions)
    rows = taps.flatten(1).unflatten(1, (layer.groups, -1))
    return rows.transpose(0, 1)


def output_rows(layer: Layer, y: Tensor, at: Tensor) -> Tensor:
    """Return the outputs of a layer at pixels: (groups, N x P, outputs of a group)."""
    if isinstance(layer, nn.Linear):
        return _at(y.flatten(1, -2), at)[None]
    rows = _at(y.flatten(2).transpose(1, 2), at)
    return rows.unflatten(1, (layer.groups, -1)).transpose(0, 1)


def _at(values: Tensor, at: Tensor) -> Tensor:
    """Choose pixels: (N, pixels, C) at (N, P) give (N x P, C)."""
    chosen = at.to(values.device)[:, :, None].expand(-1, -1, values.shape[2])
    return values.gather(1, chosen).flatten(0, 1)


def _taps(layer: nn.Conv2d, x: Tensor, at: Tensor) -> list[Tensor]:
    """Return the input (N x P, C) under each kernel position of a convolution."""
    (kernel_h, kernel_w), (step_y, step_x) = layer.kernel_size, layer.stride
    pad_y, pad_x = (int(pad) for pad in layer.padding)
    width = output_pixels(layer, x)[1]
    padded = F.pad(x, (pad_x, pad_x, pad_y, pad_y)).permute(0, 2, 3, 1).contiguous()
    images, height_in, width_in, channels = padded.shape
    flat = padded.view(-1, channels)
    first = torch.arange(images, device=x.device)[:, None] * (height_in * width_in)
    corner = first + at // width * step_y * width_in + at % width * step_x
    dilation_y, dilation_x = layer.dilation
    return [
        flat[(corner + i * dilation_y * width_in + j * dilation_x).flatten()]
        for i in range(kernel_h)
        for j in range(kernel_w)
    ]
