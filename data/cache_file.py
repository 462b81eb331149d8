"""Keep the scan of a data set in a file: plain `.npz` arrays beside the labels, without pickle."""

import itertools
import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data.deep_images import ONE_BYTE
from data.files import short_hash, user_cache_folder
from data.images import READ_ERRORS
from data.labels import Finding
from utils.files import atomic_open, sweep_leftovers, why_not_regular
from utils.log import LOGGER

CACHE_VERSION = 2
NO_LABELS = np.zeros((0, 5), np.float32)
CACHE_ERRORS = (*READ_ERRORS, AttributeError, zipfile.BadZipFile)
"""Errors that a damaged cache raises."""


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
        return not self.findings or not any(finding.fatal for finding in self.findings)


def private_file(cache_file: Path) -> Path:
    """Return the path of the cache in the user's cache folder, for data that are read-only."""
    return user_cache_folder() / "labels" / f"{short_hash(str(cache_file.absolute()))}.npz"


def load_cache(file: Path, nc: int) -> dict[str, CacheEntry]:
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
            rows, ends = stored["labels"], np.cumsum([0, *stored["counts"].tolist()]).tolist()
            labels = [rows[start:stop] for start, stop in itertools.pairwise(ends)]
            columns = zip(
                head["files"],
                stored["stamps"].tolist(),
                stored["shapes"].tolist(),
                labels,
                stored["whites"].tolist(),
                strict=True,
            )
            entries = {
                name: CacheEntry(tuple(s), tuple(wh), mine, white=white)
                for name, s, wh, mine, white in columns
            }
            for name, findings in head["findings"].items():
                entries[name].findings = [Finding(*finding) for finding in findings]
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


def save_cache(cache_file: Path, entries: dict[str, CacheEntry], nc: int) -> None:
    """Write the cache beside the labels, otherwise into the user's cache folder.

    Where neither can be written, a warning is logged and the program goes on.
    """
    if not entries:
        return
    head = {
        "version": CACHE_VERSION,
        "nc": nc,
        "files": list(entries),
        "findings": {image: entry.findings for image, entry in entries.items() if entry.findings},
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
    for target in (*beside, private_file(cache_file)):
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
