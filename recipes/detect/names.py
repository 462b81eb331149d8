"""Names of the outputs of each image, video and stream: no two alike, and never a source's own."""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from data.sources import Feed
from utils.config import load_yaml
from utils.detection_files import output_names
from utils.errors import UserError
from utils.files import why_not_regular
from utils.run_lock import LOCK_FILE

RECORD = "opt.yaml"
RECORDED = {"source", "vid_stride", "save_crop"}  # options that detect.py alone records
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
    counts = Counter(name.lower() for name in plain)
    own = {name for name, count in counts.items() if name and count == 1}
    return [
        name if name.lower() in own else _numbered(number, name, own)
        for number, name in enumerate(plain)
    ]


def _numbered(number: int, name: str, taken: Collection[str]) -> str:
    """Return the name behind the number of its class, which is no lower-case name of `taken`."""
    folder = f"{number}_{name}"
    while folder.lower() in taken:
        folder = f"{number}_{folder}"
    return folder


def protect_user_files(feeds: Iterable[Feed], folder: Path) -> None:
    """Refuse an existing run folder in which an output could replace a file of the user.

    Raises:
        UserError: The folder holds a source, or was not made by detect.py.
    """
    here = folder.resolve()
    files = [feed.file for feed in feeds if feed.file]
    above = {place: place.resolve() for file in files for place in _folders_above(file)}
    for file in files:
        reached = {*file.resolve().parents, *(above[place] for place in _folders_above(file))}
        if here in reached:
            raise UserError(
                f"{folder}: holds the source {file}, which the results could overwrite; give"
                " the run a folder of its own with --project and --name"
            )
    if folder.is_dir() and not _is_run(folder):
        raise UserError(
            f"{folder}: holds files that no run of detect.py has made, which the results could"
            " overwrite; leave --exist-ok out, or give the run another --name"
        )


def _folders_above(file: Path) -> Sequence[Path]:
    """Return the folders that the path of a file names, though the file is a link elsewhere."""
    return Path(os.path.abspath(file)).parents  # noqa: PTH100  without `..`


def _is_run(folder: Path) -> bool:
    """Return whether a folder is empty, or has the record of the options of detect.py."""
    if not {path.name for path in folder.iterdir()} - {LOCK_FILE}:
        return True
    record = folder / RECORD
    if why_not_regular(record):
        return False
    try:
        return load_yaml(record).keys() >= RECORDED
    except UserError:
        return False
