"""Notice labels that are not found, and say where they lie.

An image without a label file is a background, so that labels in a wrong place or under a wrong name
would train without an error.
"""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote

from data.files import IMAGE_SUFFIXES, label_path, label_paths
from data.labels import FEWEST_COLUMNS
from utils.errors import UserError
from utils.log import LOGGER

LABEL_SUFFIXES = (".txt", ".xml", ".json")  # YOLO, Pascal VOC, COCO and LabelMe
MOST_ENTRIES = 50_000  # files that are looked at to say where labels lie
SHOWN = 3  # places that a message names


def warn_of_unlabelled(images: Sequence[Path], labels: Sequence[str]) -> None:
    """Warn of folders whose images have no text at all, and of texts that belong to no image.

    Args:
        images: Image files of a split.
        labels: Label file of each image, existing or not.
    """
    stray: list[Path] = []
    for folder, wanted, names in _label_folders(images, labels):
        if names.isdisjoint(wanted):
            LOGGER.warning(
                f"{folder}: has no label file for any of the {len(wanted)} images in"
                f" {next(iter(wanted.values())).parent}: all are backgrounds"
            )
        stray += _strays(folder, names.difference(wanted), wanted.values())
    if stray:
        LOGGER.warning(
            f"{len(stray)} label files belong to no image and are not used, the first:"
            f" {stray[0]}{_spelling(stray[0], images)}"
        )


def stray_texts(images: Sequence[Path]) -> list[Path]:
    """Return the label files, in the folders of the images' labels, that belong to no image."""
    found = _label_folders(images, label_paths(map(str, images)))
    return [
        text
        for folder, wanted, names in found
        for text in _strays(folder, names.difference(wanted), wanted.values())
    ]


def _label_folders(
    images: Sequence[Path], labels: Sequence[str]
) -> Iterator[tuple[Path, dict[str, Path], set[str]]]:
    """Yield folders of labels, the images by the names of their texts, and the names of all texts.

    Args:
        images: Image files of a split.
        labels: Label file of each image, existing or not.
    """
    folders: dict[str, dict[str, Path]] = {}
    for image, label in zip(images, labels, strict=True):
        place, _, name = label.rpartition("/")
        folders.setdefault(place, {})[name] = image
    for wanted in folders.values():
        folder = Path(label_path(next(iter(wanted.values()))).parent)
        yield folder, wanted, _names(folder, {".txt"})


def require_objects(
    images: Sequence[Path], split: str, left_out: str = "", strict: bool = True
) -> None:
    """Refuse a split without any object and say where its labels were sought.

    Args:
        images: All image files of the split.
        split: Name of the split.
        left_out: What the scan says of images that it left out; empty where there are none.
        strict: Raise the error; otherwise warn.

    Raises:
        UserError: Where `strict`.
    """
    labels = [label_path(image) for image in images]
    texts = sum(label.is_file() for label in labels)
    folders = [str(folder) for folder in dict.fromkeys(label.parent for label in labels)]
    more = f" and {len(folders) - SHOWN} more folders" if len(folders) > SHOWN else ""
    sought = ", ".join(folders[:SHOWN]) + more
    found = f"{texts} texts of theirs are there" if texts else "no text of theirs is there"
    message = (
        f"{images[0].parent}: none of the {len(images)} images of '{split}' has an object that can"
        f" be used; labels were sought in {sought}: {found}{left_out or _elsewhere(images)}"
    )
    if strict:
        raise UserError(message)
    LOGGER.warning(f"{message}; the metrics mean nothing")


def _names(folder: Path, suffixes: Iterable[str]) -> set[str]:
    """Return the names of files with these endings; none where the folder cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return {e.name for e in entries if e.name.lower().endswith(tuple(suffixes))}
    except OSError:
        return set()


def _strays(folder: Path, names: Iterable[str], images: Iterable[Path]) -> Iterator[Path]:
    """Yield the label files of a folder that no image claims, sorted.

    Images on the disk that the split leaves out claim theirs too. Texts that hold no boxes, such as
    `classes.txt` and lists of images, are passed over.

    Args:
        folder: Folder of the texts.
        names: Names of its texts that belong to no image of the split.
        images: Images whose labels are sought there.
    """
    if not names:
        return
    places = dict.fromkeys(image.parent for image in images)
    others = (name for place in places for name in _names(place, IMAGE_SUFFIXES))
    claimed = {f"{name.rpartition('.')[0]}.txt" for name in others}
    for name in sorted(set(names) - claimed):
        text = folder / name
        if _holds_boxes(text):
            yield text


def _holds_boxes(text: Path) -> bool:
    """Return True where the first line of a file is one of numbers, as many as a box has."""
    try:
        with text.open("rb") as file:
            words = file.read(4096).lstrip(b"\xef\xbb\xbf \r\n").partition(b"\n")[0].split()
        return len([float(word) for word in words]) >= FEWEST_COLUMNS
    except (OSError, ValueError):
        return False


def _plain(stem: str) -> str:
    """Return a file's stem in the form that spellings are compared in.

    Unicode's normal forms (macOS writes another one), `%20` of downloads and upper case are alike.
    """
    return unicodedata.normalize("NFC", unquote(stem)).casefold()


def _spelling(text: Path, images: Sequence[Path]) -> str:
    """Name the image that a stray text seems to be of; empty where there is none."""
    wanted = _plain(text.stem)
    near = next((image for image in images if _plain(image.stem) == wanted), None)
    if near is None:
        return ""
    return (
        f" (the image {near.name} wants {label_path(near).name!a}, not {text.name!a}: rename the"
        " text)"
    )


def _elsewhere(images: Sequence[Path]) -> str:
    """Say where files lie that look like the labels of the images; ask to move or convert them."""
    stems = {_plain(image.stem) for image in images}
    sought = {label_path(image) for image in images}
    found: Counter[tuple[Path, str]] = Counter()
    for file in _files_below(_set_folder(images[0])):
        suffix = file.suffix.lower()
        if suffix not in LABEL_SUFFIXES or file in sought:
            continue
        if _plain(file.stem) in stems:
            found[file.parent, suffix] += 1
        elif suffix == ".json" and "annotation" in file.parent.name.lower():
            found[file.parent, suffix] += 0
    if not found:
        return "; labels of images/a.jpg are in labels/a.txt, a line for each box: class x y w h"
    (folder, suffix), count = found.most_common(1)[0]
    number = f"{count} {suffix} files of these images" if count else f"{suffix} files"
    remedy = "move or rename them" if suffix == ".txt" else "convert them to YOLO's texts"
    return f"; {number} are in {folder}: {remedy}"


def _set_folder(image: Path) -> Path:
    """Return the folder that holds images and labels: above the last one named like `images`."""
    for folder in image.parents:
        if folder.name.lower() == "images":
            return folder.parent
    return image.parent.parent if len(image.parents) > 2 else image.parent


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield files below a folder, at most `MOST_ENTRIES`."""
    seen = 0
    for place, _, names in os.walk(folder):
        for name in names:
            yield Path(place, name)
        seen += len(names) + 1
        if seen > MOST_ENTRIES:
            return
