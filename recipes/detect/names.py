"""Names of the outputs of each image, video and stream: no two alike, and never a source's own."""

import os
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from data.sources import Feed
from utils.detection_files import output_names
from utils.errors import UserError

OWN_FOLDERS = ("labels", "crops")  # of the run: no picture may lie there
LONGEST = 80  # characters of a stream's name


def feed_names(feeds: Sequence[Feed]) -> dict[Feed, str]:
    """Return a name without suffix for the outputs of each feed, as a path in the run folder.

    The name is the file's stem, or its path where two files have one stem. The outputs of the
    frames of a video are `<name>_<number>`, which no other name equals.
    """
    files = {feed: os.path.abspath(feed.file) for feed in feeds if feed.file}  # noqa: PTH100
    by_file = output_names(list(files.values()))
    names: dict[Feed, str] = {}
    taken: set[str] = set()
    for feed in feeds:
        name = by_file[files[feed]] if feed in files else plain_name(feed.place)
        if name.split("/")[0] in OWN_FOLDERS and "/" in name:
            name = f"_{name}"
        names[feed] = _free(name, taken)
        taken.add(names[feed])
    begun = {name[: at.start()] for name in taken for at in re.finditer(r"_(?=\d)", name)}
    for feed in feeds:
        if feed.moving and names[feed] in begun:
            names[feed] = _free(f"{names[feed]}-video", taken | begun)
            taken.add(names[feed])
    return names


def plain_name(text: str) -> str:
    """Return a text with `_` for all that has a meaning in paths, shortened."""
    return re.sub(r"[^\w.-]+", "_", text).strip("._")[:LONGEST] or "stream"


def _free(name: str, taken: Collection[str]) -> str:
    """Return the name, or one like it that is not taken."""
    free, number = name, 1
    while free in taken:
        number += 1
        free = f"{name}-{number}"
    return free


def class_folders(names: Sequence[str]) -> list[str]:
    """Return the name of a folder for each class: its own where a folder can be called so."""
    plain = [re.sub(r"[^\w .+-]+", "_", name).strip(" .")[:LONGEST] for name in names]
    lowered = [name.lower() for name in plain]
    return [
        name if name and lowered.count(name.lower()) == 1 else f"{number}_{name}"
        for number, name in enumerate(plain)
    ]


def protect_sources(feeds: Iterable[Feed], folder: Path) -> None:
    """Refuse a run folder that holds a source: an output could replace the user's own file.

    Raises:
        UserError: Names the first such source.
    """
    here = folder.resolve()
    for feed in feeds:
        if feed.file and here in Path(feed.file).resolve().parents:
            raise UserError(
                f"{folder}: holds the source {feed.file}, which the results could overwrite; give"
                " the run a folder of its own with --project and --name"
            )
