"""Blocks that keep channels understand the width that public YAMLs put in front."""

import pytest

from models import build_model
from models.registry import BLOCKS, BuildContext
from tests.block_checks import small
from utils.errors import UserError

KEEP_CHANNELS = {
    "SE": [8],
    "ECA": [3],
    "CBAM": [8, 5],
    "LSKBlock": [],
    "PConv": [2],
    "CARAFE": [2, 3],
    "DySample": [2],
    "MP": [2],
    "SP": [5],
    "BiFPN_Add": [],
    "DyHead": [],
}


def text_of(args: list, name: str, width: float = 1.0) -> str:
    """Return the text of a model with the block on a map of 64 x width channels."""
    source = {"BiFPN_Add": [3, 3], "DyHead": [3, 4]}.get(name, 3)
    rows = [[-1, 1, "Conv", [64, 1]], [3, 1, "Conv", [64, 3, 2]], [source, 1, name, args]]
    return str(build_model(small(*rows) | {"width_multiple": width}))


def test_every_block_that_keeps_channels_is_tried() -> None:
    found = {name for name in BLOCKS if getattr(BLOCKS[name], "keeps_channels", False)}
    assert found == set(KEEP_CHANNELS)


@pytest.mark.parametrize("name", KEEP_CHANNELS)
@pytest.mark.parametrize("width", [1.0, 0.25, 0.5])
def test_the_width_in_front_is_no_other_argument(name: str, width: float) -> None:
    own = KEEP_CHANNELS[name]
    plain = text_of(own, name, width)
    assert text_of([64, *own], name, width) == plain
    assert text_of([64, 64, *own], name, width) == plain, "input and output width"
    assert text_of([64], name, width) == text_of([], name, width)


@pytest.mark.parametrize("name", KEEP_CHANNELS)
def test_another_width_is_an_error(name: str) -> None:
    with pytest.raises(
        UserError, match=f"{name} keeps the channels of its input, which has 64; 128"
    ):
        text_of([128], name)


@pytest.mark.parametrize(
    ("args", "hidden", "k"),
    [
        ([1024], 16, 7),
        ([1024, 7], 16, 7),
        ([1024, 3], 16, 3),
        ([1024, 8], 32, 7),
        ([1024, 8, 3], 32, 3),
        ([256, 7], 16, 7),
        ([16, 3], 16, 3),
        ([8], 32, 7),
    ],
)
def test_cbam_as_public_files_write_it(args: list[int], hidden: int, k: int) -> None:
    rows = [[-1, 1, "Conv", [1024, 1]], [-1, 1, "CBAM", args]]
    block = build_model(small(*rows) | {"width_multiple": 0.25}).model[4]
    assert block.m[0].out_channels == hidden and block.place.kernel_size == (k, k)


def test_small_numbers_are_no_widths() -> None:
    context = BuildContext(in_channels=(8,), in_strides=(8.0,))
    assert [n for n in (1, 2, 3, 4, 7, 8) if context.names_width(n)] == []
    assert BuildContext((64, 64), (8.0, 8.0), width=0.5).names_width(128)
    assert not BuildContext((64, 32), (8.0, 8.0), width=0.5).names_width(128)
