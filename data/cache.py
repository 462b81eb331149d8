"""Scan images and labels, and keep the result for files that do not change.

The cache lies beside the labels, a plain `.npz` without pickle.
"""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from data.cache_file import NO_LABELS, CacheEntry, load_cache, private_file, save_cache
from data.coco_labels import CocoSplit
from data.deep_images import ONE_BYTE
from data.files import NO_FILE, label_path, label_paths, stamp
from data.images import READ_ERRORS, probe_image
from data.label_search import warn_of_unlabelled
from data.labels import CLASS_ID, Finding, class_id_reason, parse_labels, parse_many
from utils.errors import UserError
from utils.files import dispensable, why_not_regular, write_csv
from utils.log import LOGGER

PART = 64  # images that a thread takes at a time
CHUNK = 2**18  # bytes of a label file that are read at a time
FEW = 1000  # images that are looked at without a bar


class Problem(NamedTuple):
    """One line of `dataset_report.csv`."""

    file: Path
    line: int  # from 1; 0 = the whole file
    reason: str


@dataclass
class Scan:
    """Usable images of a split, and the findings on all its images."""

    files: list[Path]
    labels: list[np.ndarray]  # (n, 5) float32: class, xywh normalised
    shapes: np.ndarray  # (images, 2) int: width, height
    whites: np.ndarray  # (images,) value that becomes 255; `ONE_BYTE` for images of 8 bits
    report: list[Problem]
    left_out: str  # how many images are left out and why the first; empty where none is
    without_labels: list[Path]  # usable images that have no label file
    sizes: np.ndarray  # (images,) size of each file in bytes


def scan(images: Sequence[Path], nc: int, coco: CocoSplit | None = None) -> Scan:
    """Read every image and its labels; unchanged files are taken from the cache.

    Args:
        images: Image files of a split.
        nc: Number of classes.
        coco: Where the labels are, if not in texts.

    Raises:
        UserError: Where no image is usable.
    """
    texts = label_path(images[0]).parent.with_suffix(".cache.npz")
    cache_file = coco.cache_file if coco else texts
    known = load_cache(cache_file, nc) or load_cache(private_file(cache_file), nc)
    names = [str(image) for image in images]
    now = _stamps(images, names, coco)
    changed = [
        number
        for number, name in enumerate(names)
        if (entry := known.get(name)) is None or entry.stamps != now[number]
    ]
    if changed:
        seen = [images[number] for number in changed]
        entries = _look_at_all(seen, [now[number] for number in changed], nc, coco)
        known.update(zip((names[number] for number in changed), entries, strict=True))
        wanted = set(names)
        there = {n: entry for n, entry in known.items() if n in wanted or Path(n).exists()}
        save_cache(cache_file, there, nc)
    return _summary(images, [known[name] for name in names], nc)


def _stamps(
    images: Sequence[Path], names: Sequence[str], coco: CocoSplit | None
) -> list[tuple[int, ...]]:
    """Return the stamps of each image and its labels; say what is odd about where labels lie.

    Args:
        images: Image files.
        names: Their paths as text.
        coco: Where the labels are, if not in texts.
    """
    if coco:
        coco.describe()
        return [stamp(name) + coco.stamp for name in names]
    labels = label_paths(names)
    warn_of_unlabelled(images, labels)
    return [stamp(name) + stamp(label) for name, label in zip(names, labels, strict=True)]


def _look_at_all(
    images: Sequence[Path],
    stamps: Sequence[tuple[int, ...]],
    nc: int,
    coco: CocoSplit | None = None,
) -> list[CacheEntry]:
    """Read images and their labels, many at a time; show a bar for more than a few.

    Args:
        images: Images to read.
        stamps: Stamps of each image and its labels.
        nc: Number of classes.
        coco: Where the labels are, if not in texts.
    """
    starts = range(0, len(images), PART)
    few = len(images) < FEW
    found: list[CacheEntry] = []
    with (
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
        tqdm(None, f"Scanning {images[0].parent}", len(images), leave=False, disable=few) as bar,
    ):

        def look(start: int) -> list[CacheEntry]:
            part = slice(start, start + PART)
            return _look_at(images[part], stamps[part], nc, coco)

        for entries in pool.map(look, starts):
            found += entries
            bar.update(len(entries))
    return found


def _look_at(
    images: Sequence[Path],
    stamps: Sequence[tuple[int, ...]],
    nc: int,
    coco: CocoSplit | None = None,
) -> list[CacheEntry]:
    """Read some images and their labels; see `_look_at_all`."""
    entries = [_look_at_image(*pair) for pair in zip(images, stamps, strict=True)]
    if coco:
        read = [coco.labels_of(i, e.shape) for i, e in zip(images, entries, strict=True)]
    else:
        texts = label_paths(str(image) for image in images)
        read = _read_labels(texts, [pair[2:] for pair in stamps], nc)
    for entry, (rows, findings) in zip(entries, read, strict=True):
        entry.labels = rows
        entry.findings += findings
    return entries


def _look_at_image(image: Path, stamps: tuple[int, ...]) -> CacheEntry:
    """Read one image."""
    entry = CacheEntry(stamps)
    try:
        if stamps[0] < 0 and (reason := why_not_regular(image)):
            entry.findings.append(Finding(0, reason.replace("such file", "such image")))
        else:
            entry.shape, entry.white = probe_image(image)
    except READ_ERRORS as error:
        entry.findings.append(Finding(0, f"corrupt image: {_one_line(error)}"))
    return entry


def _read_labels(
    files: Sequence[str], stamps: Sequence[tuple[int, ...]], nc: int
) -> list[tuple[np.ndarray, list[Finding]]]:
    """Return the rows of label files and the findings on each; those without a file have none.

    Plain files are read all at once, the others one by one.

    Args:
        files: Label files, existing or not.
        stamps: Stamp of each.
        nc: Number of classes.
    """
    contents = [_content(f) if s[0] >= 0 else None for f, s in zip(files, stamps, strict=True)]
    rows = parse_many([content or b"" for content in contents], nc)
    found: list[tuple[np.ndarray, list[Finding]]] = []
    for number, content in enumerate(contents):
        plain = rows[number]
        if stamps[number] == NO_FILE:
            found.append((NO_LABELS, []))
        elif content is not None and plain is not None:
            found.append((plain, []))
        else:
            found.append(_labels_of(Path(files[number]), nc))
    return found


def _content(file: str) -> bytes | None:
    """Return the bytes of a file in few system calls; None where it cannot be read."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        content = os.read(descriptor, CHUNK)
        while len(content) % CHUNK == 0 and (more := os.read(descriptor, CHUNK)):
            content += more
        return content
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _labels_of(label: Path, nc: int) -> tuple[np.ndarray, list[Finding]]:
    """Return the rows of a label file and the findings on it.

    What lies under its name but cannot be read, such as a folder or a link to nothing, is a fatal
    finding: its image is no background.
    """
    try:
        if not label.is_file():
            what = "a link to nothing" if label.is_symlink() else "no file"
            raise OSError(f"{label} is {what}")
        return parse_labels(label.read_bytes().decode("utf-8-sig"), nc)
    except (OSError, UnicodeDecodeError) as error:
        return NO_LABELS, [Finding(0, f"labels cannot be read: {_one_line(error)}")]


def _one_line(error: Exception) -> str:
    """Return the text of an error in one line, or its type where the text is empty."""
    return " ".join(str(error).split()) or type(error).__name__


def _summary(images: Sequence[Path], entries: list[CacheEntry], nc: int) -> Scan:
    """Log the numbers of a scan and return its usable images; see `scan`."""
    usable = [(image, entry) for image, entry in zip(images, entries, strict=True) if entry.usable]
    report = [
        _problem(image, finding)
        for image, entry in zip(images, entries, strict=True)
        for finding in entry.findings
    ]
    backgrounds = sum(not len(entry.labels) for _, entry in usable)
    corrupt = len(images) - len(usable)
    missing = [image for image, entry in usable if entry.stamps[2:] == NO_FILE]
    without = f" ({len(missing)} without a label file)" if missing else ""
    LOGGER.info(
        f"Scanning {images[0].parent}... {len(images)} images, {backgrounds} backgrounds{without},"
        f" {corrupt} corrupt"
    )
    left_out = _left_out(images, entries, nc)
    if not usable:
        raise UserError(
            f"{images[0].parent}: none of the {len(images)} images is usable; the first: {left_out}"
        )
    if corrupt:
        LOGGER.warning(
            f"{corrupt} images are left out, all are listed in dataset_report.csv; the first:"
            f" {left_out}"
        )
    files, kept = [image for image, _ in usable], [entry for _, entry in usable]
    return Scan(
        files,
        [entry.labels for entry in kept],
        np.array([entry.shape for entry in kept]),
        _common_white(np.array([entry.white for entry in kept])),
        report,
        f"; {corrupt} images are left out, the first: {left_out}" if corrupt else "",
        missing,
        np.array([entry.stamps[0] for entry in kept]),
    )


def _common_white(whites: np.ndarray) -> np.ndarray:
    """Return the white level of each image; all of whole numbers get the highest one.

    So a dark image of a camera is not made brighter than its others. A line says what is done.
    """
    whole = whites > 1
    common = whites.max(initial=ONE_BYTE)
    if whole.any():
        LOGGER.info(
            f"{whole.sum()} images of more than 8 bits hold values of {int(common).bit_length()}"
            f" bits: {common:g} becomes 255"
        )
    return np.where(whole, common, whites)


def _left_out(images: Sequence[Path], entries: Sequence[CacheEntry], nc: int) -> str:
    """Return why the first unusable image is left out, and what its like have in common."""
    for image, entry in zip(images, entries, strict=True):
        for finding in entry.findings:
            if finding.fatal:
                return _worded(_problem(image, finding)) + _counted_from_one(entries, nc)
    return ""


def _counted_from_one(entries: Sequence[CacheEntry], nc: int) -> str:
    """Say that class ids seem to start at 1: id `nc` is there, id 0 and higher ones are not."""
    beyond = {
        finding.reason
        for entry in entries
        for finding in entry.findings
        if finding.reason.startswith(CLASS_ID)
    }
    if beyond != {class_id_reason(nc, nc)} or any(
        (entry.labels[:, 0] == 0).any() for entry in entries
    ):
        return ""
    return f"; the ids run from 1 to {nc}: subtract 1 from each, they start at 0"


def _problem(image: Path, finding: Finding) -> Problem:
    """Return a finding with its file: the text for a finding on a line, otherwise the image."""
    return Problem(label_path(image) if finding.line else image, finding.line, finding.reason)


def _worded(problem: Problem) -> str:
    """Return a problem as text: file, line, reason."""
    return f"{problem.file}{f':{problem.line}' if problem.line else ''}: {problem.reason}"


def write_report(path: Path, report: Iterable[Problem]) -> None:
    """Write `dataset_report.csv`: file, line (0 = the whole file), reason."""
    with dispensable(path):
        write_csv(path, Problem._fields, report)
