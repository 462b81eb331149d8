"""What a resumed run needs: its checkpoint, its folder and its data, each checked before use."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from data.config import DataConfig, load_data
from models.checkpoint import load_checkpoint
from recipes.prepare import class_names
from utils.config import load_yaml, save_yaml
from utils.errors import UserError, brief
from utils.log import LOGGER
from utils.options.base import recorded
from utils.options.train import MOVABLE, Progress, TrainOptions

MAY_DIFFER = {*MOVABLE, "device", "local_rank"}
"""Options that may have changed since a run began."""


def require_train_state(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that holds nothing to resume.

    Raises:
        UserError: Says whether the training has finished, or which file resumes it.
    """
    if "train_state" in checkpoint:
        return
    last = path.with_name("last.pt")
    if path.name == last.name:
        raise UserError(
            f"{path}: this training has finished, nothing to resume; start a new one from it:"
            f" --weights {path}"
        )
    if _is_resumable(last):
        raise UserError(
            f"{path}: holds a model only; the state of its interrupted training is in last.pt:"
            f" --resume {last}"
        )
    raise UserError(
        f"{path}: holds a model only, nothing to resume; start a new training from it: --weights"
        f" {path}"
    )


def _is_resumable(path: Path) -> bool:
    """Return whether a file is a checkpoint that a training can be resumed from."""
    try:
        return "train_state" in load_checkpoint(path)
    except UserError:
        return False


def run_folder(path: Path, args: Mapping[str, Any]) -> Path:
    """Return the folder of the run that a checkpoint belongs to, `<run>/weights/last.pt`.

    A copy elsewhere would make the resumed run write where nobody asked it to.

    Args:
        path: Checkpoint, or a link to it.
        args: Options in the checkpoint.

    Raises:
        UserError: The checkpoint lies outside of a run folder, or in that of another run.
    """
    for place in (path.absolute(), path.resolve()):
        folder = place.parent.parent
        if place.parent.name == "weights" and (folder / "opt.yaml").is_file():
            _require_own_folder(path, folder, args)
            return folder
    raise UserError(
        f"{path}: is not in the folder of its run, so the run would go on in"
        f" {path.absolute().parent.parent}; resume <run>/weights/last.pt, with the run's opt.yaml,"
        f" or start a new run from this file: --weights {path}"
    )


def _require_own_folder(path: Path, folder: Path, args: Mapping[str, Any]) -> None:
    """Refuse a checkpoint whose options are not those of the run folder that it lies in."""
    ours, theirs = TrainOptions.sizes(args), TrainOptions.sizes(load_yaml(folder / "opt.yaml"))
    known = {item.name for item in fields(TrainOptions)} - MAY_DIFFER
    for name in sorted(known & ours.keys() & theirs.keys()):
        if ours[name] != theirs[name]:
            raise UserError(
                f"{path}: is the checkpoint of another run than {folder / 'opt.yaml'} ({name} is"
                f" {brief(ours[name])} in the one, {brief(theirs[name])} in the other); put it"
                f" into the folder of its run, or start a new run from it: --weights {path}"
            )


def require_same_classes(old: list[str], new: list[str], run: Path, data: str) -> None:
    """Refuse data whose classes are not those that a run began with.

    Args:
        old: Class names of the run.
        new: Class names of the data.
        run: Folder or checkpoint of the run, for the message.
        data: Name of the data, for the message.

    Raises:
        UserError: Names the first class that differs.
    """
    if old == new:
        return
    if len(old) != len(new):
        what = f"{len(old)} when the run began, {len(new)} now"
    else:
        number = next(i for i in range(len(old)) if old[i] != new[i])
        what = f"class {number} was {brief(old[number])}, it is {brief(new[number])} now"
    raise UserError(
        f"{run}: the classes of {data} have changed: {what}; resume with the data of the run"
        " (--data), or start a new run from its weights (--weights)"
    )


def found_data(name: str) -> DataConfig:
    """Return the data of a resumed run, with its files looked up.

    Raises:
        UserError: They are not where they were; says how to name their new place.
    """
    try:
        data = load_data(name)
        assert data.identity
        return data
    except UserError as error:
        raise UserError(
            f"{error}; if the data of the run are elsewhere now, name their YAML: --data"
        ) from None


def data_of(path: Path, checkpoint: Mapping[str, Any], opt: TrainOptions) -> DataConfig:
    """Return the data to go on with, compared with those that the run began with.

    Args:
        path: Checkpoint, for messages.
        checkpoint: Its content; files of older versions say nothing about data.
        opt: Options of the run.

    Raises:
        UserError: The data are missing, or their classes differ.
    """
    data = found_data(opt.data)
    old = checkpoint.get("data")
    if not old:
        names = class_names(data.names, opt.single_cls)
        require_same_classes(list(checkpoint["names"]), names, path, opt.data)
        return data
    require_same_classes(list(old["names"]), data.names, path, opt.data)
    warn_if_changed(old, data)
    return data


def warn_if_changed(old: Mapping[str, Any], data: DataConfig) -> None:
    """Warn of data that are not those that a run began with; say what has changed."""
    now = data.identity
    if old["hash"] == now["hash"]:
        return
    before = old.get("images", now["images"])
    changes = [
        f"{before.get(split, 0)} {split} images before, {count} now"
        for split, count in now["images"].items()
        if before.get(split, 0) != count
    ]
    what = "; ".join(changes) or "files or labels have other names or sizes"
    LOGGER.warning(
        f"WARNING: {data.file or 'the data'}: not the data that this run began with ({what}): it"
        " goes on with them, its figures before and after cannot be compared"
    )


def note_moves(options: Any, folder: Path) -> None:
    """Write into a run's `opt.yaml` where its data and its teacher are now."""
    file, now = folder / "opt.yaml", recorded(options)
    saved = load_yaml(file)
    moved = {name: now[name] for name in MOVABLE if name in now and now[name] != saved.get(name)}
    if moved:
        save_yaml(saved | moved, file)


def written(path: Path) -> int:
    """Return when a file was written (ns), 0 where there is none."""
    return path.stat().st_mtime_ns if path.is_file() else 0


def progress(last: Path, earlier: int) -> Progress:
    """Return how far a run has come.

    Args:
        last: Its `last.pt`, which may be missing.
        earlier: Time of a `last.pt` of an earlier run in the folder, by `written`; 0: none.
    """
    if written(last) == earlier:
        return "nothing"
    return "epoch" if _is_resumable(last) else "all"
