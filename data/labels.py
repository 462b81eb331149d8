"""Read label text files: one `class xc yc w h` a line, normalised to the image.

A line with more columns is a polygon, whose box is taken.
"""

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np

# values outside 0..1 by up to this much are rounding of the labelling tool: clipped and reported
ROUNDING = 0.01
FEWEST_COLUMNS = 5  # class, x, y, w, h
CLASS_ID = "class id"  # begins the reason of a line with a wrong one


class Finding(NamedTuple):
    """Irregularity in a file; `fatal` where the image is left out because of it."""

    line: int  # from 1; 0 = the whole file
    reason: str
    fatal: bool = True


def parse_many(contents: Sequence[bytes], nc: int) -> list[np.ndarray | None]:
    """Read many label files at once, those that have nothing odd: ten times as quickly.

    Args:
        contents: Bytes of the files.
        nc: Number of classes.

    Returns:
        For each file the rows that `parse_labels` returns, (n, 5) float32; None where that would
        have a finding, or might read the file otherwise.
    """
    tables = [_numbers(content) for content in contents]
    counts = [len(values or ()) // FEWEST_COLUMNS for values in tables]
    flat = np.array(list(chain.from_iterable(values or () for values in tables)), np.float64)
    table = flat.reshape(-1, FEWEST_COLUMNS)
    owners = np.repeat(np.arange(len(contents)), counts)
    classes, places = table[:, 0], table[:, 1:]
    right = (classes >= 0) & (classes < nc) & (classes == np.floor(classes))  # not for NaN
    right &= ((places >= 0) & (places <= 1)).all(1)
    rows = table.astype(np.float32)
    odd = ~right | ~(rows[:, 3:] > 0).all(1) | _repeated(rows, owners)
    odd_files = set(owners[odd].tolist())
    ends = np.cumsum([0, *counts]).tolist()
    return [
        None if values is None or i in odd_files else rows[ends[i] : ends[i + 1]].copy()
        for i, values in enumerate(tables)
    ]


def _numbers(content: bytes) -> list[float] | None:
    """Return the numbers of a text whose lines have none or five each; None for any other text."""
    if b"\v" in content or b"\f" in content:  # they end a line of text, but none of bytes
        return None
    lines = [line.split() for line in content.splitlines()]
    if not {0, FEWEST_COLUMNS}.issuperset(map(len, lines)):
        return None
    try:
        return [float(word) for words in lines for word in words]
    except ValueError:
        return None


def _repeated(rows: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Tell for each row whether its file has it once more before it in the order of values.

    Args:
        rows: (n, 5).
        owners: File of each row.
    """
    order = np.lexsort((*rows.T, owners))
    ranked, files = rows[order], owners[order]
    found = np.zeros(len(rows), bool)
    same = (ranked[1:] == ranked[:-1]).all(1) & (files[1:] == files[:-1])
    found[order[1:]] = same
    return found


def parse_labels(text: str, nc: int) -> tuple[np.ndarray, list[Finding]]:
    """Read the text of a label file.

    BOM, CRLF and blank lines are fine. Repeated and zero-area boxes are dropped and reported. A
    line that cannot be trusted (not numbers, wrong columns, class id that is no integer in 0..nc-1,
    values out of 0..1) is fatal: the image is left out, since training on it would teach its
    objects as background.

    Returns:
        (n, 5) float32 rows `class, xc, yc, w, h` (0..1), and the findings.
    """
    lines = [line.split() for line in text.lstrip("\ufeff").splitlines()]
    rows = _plain_boxes(lines, nc)
    if rows is not None:
        numbers = [number for number, words in enumerate(lines, start=1) if words]
        return _without_useless(rows, numbers, [])
    return _without_useless(*_line_by_line(lines, nc))


def _plain_boxes(lines: list[list[str]], nc: int) -> np.ndarray | None:
    """Return the rows of a text of boxes alone, all of them right; None for any other text."""
    if not {0, FEWEST_COLUMNS}.issuperset(map(len, lines)):
        return None
    try:
        values = [float(word) for words in lines for word in words]
    except ValueError:
        return None
    table = np.array(values).reshape(-1, FEWEST_COLUMNS)
    if not values:
        return table.astype(np.float32)
    classes = values[::FEWEST_COLUMNS]
    in_range = table.min() >= 0 and table[:, 1:].max() <= 1 and max(classes) < nc  # not for NaN
    whole = in_range and all(map(float.is_integer, classes))
    return table.astype(np.float32) if whole else None


def _line_by_line(lines: list[list[str]], nc: int) -> tuple[np.ndarray, list[int], list[Finding]]:
    """Return the rows of the lines that are right, the numbers of these lines, and the findings."""
    rows, numbers, findings = [], [], []
    for number, words in enumerate(lines, start=1):
        row, reason = _parse_line(words, nc) if words else (None, "")
        if reason:
            findings.append(Finding(number, reason, fatal=row is None))
        if row is not None:
            rows.append(row)
            numbers.append(number)
    return np.array(rows, np.float32).reshape(-1, FEWEST_COLUMNS), numbers, findings


def _without_useless(
    rows: np.ndarray, numbers: list[int], findings: list[Finding]
) -> tuple[np.ndarray, list[Finding]]:
    """Drop boxes that have no area or are there twice, and report them.

    Args:
        rows: (n, 5) float32.
        numbers: Line of each row.
        findings: What is known already.

    Returns:
        The rows that stay, and all findings by their lines.
    """
    keys = list(map(tuple, rows.tolist()))
    if len(set(keys)) == len(keys) and (not keys or rows[:, 3:].min() > 0):
        return rows, findings
    empty: list[bool] = (rows[:, 3:].min(1) <= 0).tolist()
    keep, seen = np.zeros(len(rows), bool), set()
    for i, key in enumerate(keys):
        keep[i] = not empty[i] and key not in seen
        seen.add(key)
    reasons = {True: "box has no area: dropped", False: "box is there twice: dropped"}
    dropped = [Finding(numbers[i], reasons[empty[i]], False) for i in np.flatnonzero(~keep)]
    return rows[keep], sorted(findings + dropped, key=lambda finding: finding.line)


def _parse_line(words: list[str], nc: int) -> tuple[np.ndarray | None, str]:
    """Return the row of a line with an empty or harmless finding.

    A bad line gives None and the reason.
    """
    try:
        values = np.array([float(word) for word in words])
    except ValueError:
        return None, "not numbers"
    if len(values) < 5 or (len(values) > 5 and (len(values) % 2 == 0 or len(values) < 7)):
        return None, f"{len(values)} columns (a box has 5, a polygon 7 or more, an odd number)"
    if not np.isfinite(values).all():
        return None, "NaN or infinite value"
    if values[0] != int(values[0]) or not 0 <= values[0] < nc:
        return None, class_id_reason(values[0], nc)
    low, high = values[1:].min(), values[1:].max()
    if low < -ROUNDING or high > 1 + ROUNDING:
        value = low if low < -ROUNDING else high
        return None, f"value {value:g} is out of range (0 to 1: normalised to the image)"
    reason = "" if low >= 0 and high <= 1 else "value slightly out of 0..1: clipped"
    coordinates = values[1:].clip(0, 1)
    box = coordinates if len(values) == 5 else _polygon_box(coordinates.reshape(-1, 2))
    return np.concatenate([values[:1], box]).astype(np.float32), reason


def class_id_reason(value: float, nc: int) -> str:
    """Return the reason of a line whose class id is not one of the data set's."""
    return f"{CLASS_ID} {value:g} is not one of 0 to {nc - 1}"


def _polygon_box(points: np.ndarray) -> np.ndarray:
    """Return the box xywh around points, (n, 2)."""
    low, high = points.min(0), points.max(0)
    return np.concatenate([(low + high) / 2, high - low])
