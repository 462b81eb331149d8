"""Check the values of an options dataclass against what its options declare."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from utils.errors import UserError


def check_values(options: Any) -> None:
    """Raise `UserError` for the first value out of its range, not finite or not among its choices.

    None and an empty tuple stand for "not given" and are not checked.
    """
    for item in dataclasses.fields(options):
        if "help" in item.metadata:
            _check(item.name, getattr(options, item.name), item.metadata)


def _check(name: str, value: Any, meta: Mapping[str, Any]) -> None:
    flag = f"--{name.replace('_', '-')}"
    values = value if isinstance(value, tuple) else (value,)
    if any(isinstance(v, int | float) and not _within(v, meta) for v in values):
        raise UserError(f"{flag} {' '.join(map(_number, values))}: {_demand(meta)}")
    for word in values:
        if isinstance(word, str) and word not in meta.get("choices", (word,)):
            known = ", ".join(filter(None, meta["choices"]))
            raise UserError(f"{flag} '{word}': is not known ({known})")


def _within(value: float, meta: Mapping[str, Any]) -> bool:
    """Whether a number is finite and inside the declared range."""
    return (
        _finite(value)
        and value >= meta.get("least", value)
        and value <= meta.get("most", value)
        and value > meta.get("above", -math.inf)
        and value < meta.get("below", math.inf)
        and (value >= 0 or meta.get("negative", True))
    )


def _demand(meta: Mapping[str, Any]) -> str:
    """Return what the range asks for: "must be above 1 (2 halves the GFLOPs)"."""
    if "least" in meta and "most" in meta:
        text = f"must be from {meta['least']:g} to {meta['most']:g}"
    elif bounds := [f"{word} {meta[key]:g}" for key, word in _WORDS.items() if key in meta]:
        text = f"must be {' and '.join(bounds)}"
    elif not meta.get("negative", True):
        text = "must not be negative"
    else:
        text = "must be a finite number"
    return f"{text} ({meta['hint']})" if "hint" in meta else text


def _finite(value: float) -> bool:
    """Whether a number is finite and, if whole, fits into 64 bits."""
    return abs(value) < 2**63 if isinstance(value, int) else math.isfinite(value)


_WORDS = {"above": "above", "least": "at least", "below": "below", "most": "at most"}


def _number(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
