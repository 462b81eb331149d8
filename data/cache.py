"""Scan images and labels, and keep the result for files that do not change.

The cache lies beside the labels, a plain `.npz` without pickle.
"""

import json
import os
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from data.coco_labels import CocoSplit
from data.deep_images import ONE_BYTE
from data.files import NO_FILE, label_path, short_hash, stamp, user_cache_folder
from data.images import READ_ERRORS, probe_image
from data.label_search import warn_of_unlabelled
from data.labels import CLASS_ID, Finding, class_id_reason, parse_labels
from utils.errors import UserError
from utils.files import (
    atomic_open,
    dispensable,
    sweep_leftovers,
    why_not_regular,
    write_csv,
)
from utils.log import LOGGER

CACHE_VERSION = 2
PART = 64  # images that a thread takes at a time
FEW = 1000  # images that are looked at without a bar
CACHE_ERRORS = (*READ_ERRORS, AttributeError, zipfile.BadZipFile)
"""Errors that a damaged cache raises."""


class Problem(NamedTuple):
    """One line of `dataset_report.csv`."""

    file: Path
    line: int  # from 1; 0 = the whole file
    reason: str


@dataclass
class CacheEntry:
    """Result of the scan of one image."""

    stamps: tuple[int, ...]  # size and time of the image, then of its labels
    shape: tuple[int, int] = (0, 0)  # width, height
    labels: np.ndarray = field(default_factory=lambda: np.zeros((0, 5), np.float32))
    findings: list[Finding] = field(default_factory=list)
    white: float = ONE_BYTE  # value that becomes 255, see `data.deep_images.white_level`

    @property
    def usable(self) -> bool:
        """Return False for an image that is left out."""
        return not any(finding.fatal for finding in self.findings)


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
    known = _load(cache_file, nc) or _load(_private(cache_file), nc)
    now = _stamps(images, coco)
    changed = [image for image in images if image not in known or known[image].stamps != now[image]]
    if changed:
        known |= _look_at_all(changed, now, nc, coco)
        there = {image: entry for image, entry in known.items() if image in now or image.exists()}
        _save(cache_file, there, nc)
    return _summary(images, [known[image] for image in images], nc)


def _stamps(images: Sequence[Path], coco: CocoSplit | None) -> dict[Path, tuple[int, ...]]:
    """Return the stamps of each image and its labels; say what is odd about where labels lie."""
    if coco:
        coco.describe()
        return {image: stamp(image) + coco.stamp for image in images}
    labels = [label_path(image) for image in images]
    warn_of_unlabelled(images, labels)
    return {image: stamp(image) + stamp(label) for image, label in zip(images, labels, strict=True)}


def _look_at_all(
    images: Sequence[Path],
    stamps: Mapping[Path, tuple[int, ...]],
    nc: int,
    coco: CocoSplit | None = None,
) -> dict[Path, CacheEntry]:
    """Read images and their labels, many at a time; show a bar for more than a few.

    Args:
        images: Images to read.
        stamps: Stamps of each image and its labels.
        nc: Number of classes.
        coco: Where the labels are, if not in texts.
    """
    parts = [images[start : start + PART] for start in range(0, len(images), PART)]
    few = len(images) < FEW
    found: dict[Path, CacheEntry] = {}
    with (
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
        tqdm(None, f"Scanning {images[0].parent}", len(images), leave=False, disable=few) as bar,
    ):

        def look(part: Sequence[Path]) -> list[CacheEntry]:
            return [_look_at(image, stamps[image], nc, coco) for image in part]

        for part, entries in zip(parts, pool.map(look, parts), strict=True):
            found |= zip(part, entries, strict=True)
            bar.update(len(part))
    return found


def _look_at(
    image: Path, stamps: tuple[int, ...], nc: int, coco: CocoSplit | None = None
) -> CacheEntry:
    """Read one image and its labels."""
    entry = CacheEntry(stamps)
    try:
        if reason := why_not_regular(image):
            entry.findings.append(Finding(0, reason.replace("such file", "such image")))
        else:
            entry.shape, entry.white = probe_image(image)
    except READ_ERRORS as error:
        entry.findings.append(Finding(0, f"corrupt image: {_one_line(error)}"))
    if coco or stamps[2:] != NO_FILE:
        read = coco.labels_of(image, entry.shape) if coco else _labels_of(label_path(image), nc)
        entry.labels, findings = read
        entry.findings += findings
    return entry


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
        nothing = np.zeros((0, 5), np.float32)
        return nothing, [Finding(0, f"labels cannot be read: {_one_line(error)}")]


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


def _private(cache_file: Path) -> Path:
    """Return the path of the cache in the user's cache folder, for data that are read-only."""
    return user_cache_folder() / "labels" / f"{short_hash(str(cache_file.absolute()))}.npz"


def _load(file: Path, nc: int) -> dict[Path, CacheEntry]:
    """Return the entries of a cache by image.

    A cache that is missing, broken, of another version or of another number of classes has no
    entries: every file is then scanned.
    """
    if why_not_regular(file):
        return {}
    try:
        with np.load(file, allow_pickle=False) as stored:
            head = json.loads(bytes(stored["head"]))
            if (head["version"], head["nc"]) != (CACHE_VERSION, nc):
                return {}
            labels = np.split(stored["labels"], np.cumsum(stored["counts"])[:-1])
            columns = zip(
                head["files"],
                stored["stamps"].tolist(),
                stored["shapes"].tolist(),
                labels,
                stored["whites"].tolist(),
                strict=True,
            )
            entries = {
                Path(name): CacheEntry(tuple(s), tuple(wh), rows, white=white)
                for name, s, wh, rows, white in columns
            }
            for name, findings in head["findings"].items():
                entries[Path(name)].findings = [Finding(*finding) for finding in findings]
            return entries
    except CACHE_ERRORS:
        return {}


def _is_ours(file: Path) -> bool:
    """Return True where a cache may be written: the file is missing, or a cache of any version."""
    if not file.exists():
        return True
    if why_not_regular(file):
        return False
    try:
        with np.load(file, allow_pickle=False) as stored:
            return "version" in json.loads(bytes(stored["head"]))
    except CACHE_ERRORS:
        return False


def _save(cache_file: Path, entries: dict[Path, CacheEntry], nc: int) -> None:
    """Write the cache beside the labels, otherwise into the user's cache folder.

    Where neither can be written, a warning is logged and the program goes on.
    """
    if not entries:
        return
    head = {
        "version": CACHE_VERSION,
        "nc": nc,
        "files": [str(image) for image in entries],
        "findings": {
            str(image): entry.findings for image, entry in entries.items() if entry.findings
        },
    }
    arrays = {
        "head": np.frombuffer(json.dumps(head).encode(), np.uint8),
        "stamps": np.array([entry.stamps for entry in entries.values()], np.int64),
        "shapes": np.array([entry.shape for entry in entries.values()], np.int64),
        "whites": np.array([entry.white for entry in entries.values()]),
        "labels": np.concatenate([entry.labels for entry in entries.values()]),
        "counts": np.array([len(entry.labels) for entry in entries.values()]),
    }
    # a file of that name which is no cache belongs to the user and stays
    beside = [cache_file] if _is_ours(cache_file) else []
    for target in (*beside, _private(cache_file)):
        try:
            if target != cache_file:
                target.parent.mkdir(parents=True, exist_ok=True)
            sweep_leftovers(target.parent, target.name)
            with atomic_open(target) as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]
            return
        except OSError:
            continue
    LOGGER.warning(
        f"{cache_file}: cannot be written, nor can {user_cache_folder()}: the data are scanned"
        " again next time"
    )
