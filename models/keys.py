"""Check the top level of a model YAML: keys, numbers and anchors."""

from typing import Any

from models.registry import MAX_CHANNELS
from utils.config import MOST_CLASSES
from utils.errors import UserError, brief, suggest

KEYS = ("nc", "depth_multiple", "width_multiple", "anchors", "activation", "ch", "backbone", "head")
CHANNELS = 3  # of the image: red, green, blue
MOST_ANCHORS = 100  # a level
MOST_SIDE = 1e6  # of an anchor, pixels
NUMBERS: dict[str, tuple[tuple[type, ...], int]] = {
    "nc": ((int,), MOST_CLASSES),
    "ch": ((int,), MAX_CHANNELS),
    "depth_multiple": ((int, float), 100),
    "width_multiple": ((int, float), 100),
}
"""Types and largest value of the numbers at the top level."""


def check_keys(cfg: dict[str, Any], where: str) -> None:
    """Check keys and values at the top level of a model YAML.

    Raises:
        UserError: For an unknown or missing key, or a value out of its range.
    """
    for key in cfg:
        if key not in KEYS:
            raise UserError(
                f"{where}: unknown key {brief(key)}{suggest(str(key), KEYS)} (known:"
                f" {', '.join(KEYS)})"
            )
    for key in ("nc", "backbone", "head"):
        if key not in cfg:
            raise UserError(
                f"{where}: '{key}' is missing; a model YAML has nc, anchors, backbone and head"
            )
    for section in ("backbone", "head"):
        if not isinstance(cfg[section], list):
            raise UserError(
                f"{where}: {section}: expected a list of rows [from, repeats, Block, args]"
            )
    _check_numbers(cfg, where)
    if not isinstance(cfg.get("activation") or "", str):
        raise UserError(
            f"{where}: activation: {brief(cfg['activation'])} is no name, as SiLU or nn.ReLU()"
        )
    if "anchors" in cfg:
        _check_anchors(cfg["anchors"], where)


def _check_numbers(cfg: dict[str, Any], where: str) -> None:
    """Check the numbers at the top level; the channels of the image cannot be chosen."""
    for key, (kinds, most) in NUMBERS.items():
        value = cfg.get(key, 1)
        if type(value) not in kinds or not 0 < value <= most:
            raise UserError(
                f"{where}: {key}: {brief(value)} is not"
                f" {'an integer' if kinds == (int,) else 'a number'} above 0, up to {most}"
            )
    if cfg.get("ch", CHANNELS) != CHANNELS:
        raise UserError(
            f"{where}: ch: {brief(cfg['ch'])}: images are read as RGB, grey ones too, so the first"
            f" row gets {CHANNELS} channels; leave ch out"
        )


def _check_anchors(anchors: Any, where: str) -> None:
    """Check anchors: a number for each level, or for each level a list w, h, w, h ... in pixels.

    The lists must be equally long.
    """
    if type(anchors) is int and 0 < anchors <= MOST_ANCHORS:
        return
    if (
        not isinstance(anchors, list)
        or not anchors
        or not all(isinstance(a, list) for a in anchors)
    ):
        raise UserError(
            f"{where}: anchors: expected a number of anchors a level (1 to {MOST_ANCHORS}), or a"
            f" list of w, h, w, h ... for each level, found {brief(anchors)}"
        )
    if not all(
        type(value) in (int, float) and 0 < value < MOST_SIDE
        for level in anchors
        for value in level
    ):
        raise UserError(f"{where}: anchors: widths and heights are pixels, numbers above 0")
    lengths = {len(level) for level in anchors}
    if max(lengths) > 2 * MOST_ANCHORS or len(lengths) != 1 or 0 in lengths or lengths.pop() % 2:
        sizes = ", ".join(str(len(level)) for level in anchors[:10])
        raise UserError(
            f"{where}: anchors: every level needs the same even number of values w, h, w, h ...,"
            f" up to {2 * MOST_ANCHORS};"
            f" found {sizes}"
        )
