"""The short check at the start of a training: what the scans know, and files in both splits."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data.cache import Scan
from data.check.issues import Split
from data.check.label_checks import odd_classes, tiny_boxes
from utils.log import LOGGER

MOST_CANDIDATES = 2000  # files of validation that are read because one of training is as large
HEAD = 65_536  # bytes that are compared first


def warn_of_data(train: Scan, val: Scan, names: Sequence[str], imgsz: int) -> None:
    """Warn of what would make a training or its metrics worthless, at next to no cost.

    Args:
        train, val: Scans of the training and validation images.
        names: Class names.
        imgsz: Image size of the training in pixels.
    """
    splits = [Split("train", train.files, train), Split("val", val.files, val)]
    found = [issue.text for split in splits for issue in tiny_boxes(split, names, imgsz)]
    found += [issue.text for issue in odd_classes(splits, names)]
    found += _leaks(train, val)
    for text in found:
        LOGGER.warning(f"data: {text}")
    if found:
        LOGGER.info("data: python -m data.check with the data YAML shows them and compares images")


def _leaks(train: Scan, val: Scan) -> Iterator[str]:
    """Yield a line on the images of validation that are training images too."""
    known = set(train.files)
    if both := [file for file in val.files if file in known]:
        yield (
            f"{len(both)} of {len(val.files)} validation images are training images, the first:"
            f" {both[0]}; the metrics say how well they are remembered"
        )
        return
    if same := list(same_files(train, val)):
        yield (
            f"at least {len(same)} validation images are copies of training images, the first:"
            f" {same[0][0]} = {same[0][1]}; every mAP is too high"
        )


def same_files(train: Scan, val: Scan) -> Iterator[tuple[Path, Path]]:
    """Yield files of validation with a file of training of the same bytes.

    Only files of one size are read, and at most `MOST_CANDIDATES` of validation.
    """
    candidates = np.flatnonzero(np.isin(val.sizes, train.sizes))[:MOST_CANDIDATES].tolist()
    wanted = {int(val.sizes[i]) for i in candidates}
    by_size: dict[int, list[Path]] = defaultdict(list)
    for number in np.flatnonzero(np.isin(train.sizes, list(wanted))).tolist():
        by_size[int(train.sizes[number])].append(train.files[number])
    heads: dict[Path, bytes] = {}
    for number in candidates:
        file = val.files[number]
        for other in by_size[int(val.sizes[number])]:
            if _head(other, heads) == _head(file, heads) and _same(file, other):
                yield file, other
                break


def _head(file: Path, heads: dict[Path, bytes]) -> bytes:
    """Return the last bytes of the first part of a file, which differ soonest between images."""
    if file not in heads:
        try:
            with file.open("rb") as stream:
                heads[file] = stream.read(HEAD)[-256:]
        except OSError:
            heads[file] = str(file).encode(errors="surrogatepass")
    return heads[file]


def _same(first: Path, second: Path) -> bool:
    """Tell whether two files have the same bytes; one that cannot be read is like no other."""
    try:
        return first.read_bytes() == second.read_bytes()
    except OSError:
        return False
