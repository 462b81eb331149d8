"""Read data YAMLs: the folders of a set's images and the names of its classes.

A YAML never runs code.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from data.coco_labels import CocoSplit, names_of
from data.files import label_paths, list_images, short_hash, stamp
from utils.config import CONFIG_FOLDERS, MOST_CLASSES, load_yaml, resolve
from utils.errors import UserError, brief, suggest
from utils.files import check_path
from utils.log import LOGGER

SPLITS = ("train", "val", "test")
IGNORED_KEYS = ("download", "roboflow")  # keys of other tools, whose files can be used unchanged
KNOWN_KEYS = ("path", *SPLITS, "names", "nc", "fraction", "seed", "generator", *IGNORED_KEYS)


@dataclass(frozen=True)
class DataConfig:
    """One data set, with absolute paths; `images` reads the folders and lists behind them."""

    file: Path | None  # the YAML it came from, None for a mapping
    root: Path
    train: list[Path]
    val: list[Path]
    test: list[Path]
    names: list[str]
    fraction: float = 1.0  # share of the training images that is used
    seed: int | None = None  # which images the share has; None: the seed of the run says so
    coco: Mapping[str, CocoSplit] = field(default_factory=dict)  # the splits that are COCO's JSON

    @property
    def nc(self) -> int:
        """Number of classes."""
        return len(self.names)

    def images(self, split: str) -> list[Path]:
        """Return the sorted image files of `train`, `val` or `test`.

        Raises:
            UserError: Where the set does not have the split, or the split no image.
        """
        assert split in SPLITS
        entries = getattr(self, split)
        if not entries:
            raise UserError(
                f"{self.file or 'data'}: has no '{split}' split; add a '{split}:' line (a folder or"
                " a list of images)"
            )
        return self.coco[split].files() if split in self.coco else list_images(entries)

    @property
    def identity(self) -> dict[str, Any]:
        """Plain data that tell this set from another one, for the checkpoint of a run.

        The hash, the class names, and the number of images of each split.
        """
        return {"hash": self.hash, "names": list(self.names), "images": dict(self._counts)}

    @cached_property
    def _counts(self) -> dict[str, int]:
        """Number of images of each split that the set has."""
        return {split: len(self.images(split)) for split in SPLITS if getattr(self, split)}

    @cached_property
    def hash(self) -> str:
        """Ten hex digits over class names, file names and file sizes of all splits.

        A run records them to tell which data were used.
        """
        lines = [str(self.names)]
        for split in SPLITS:
            images = self.images(split) if getattr(self, split) else []
            coco = self.coco.get(split)
            labels = [] if coco else map(stamp, label_paths(map(str, images)))
            stamps = [coco.stamp] * len(images) if coco else labels
            for image, found in zip(images, stamps, strict=True):
                lines.append(f"{split} {image.name} {stamp(image)[0]} {found[0]}")
        return short_hash("\n".join(lines))


def load_data(source: "DataConfig | Mapping[str, Any] | Path | str") -> DataConfig:
    """Return the data set of a bare name (`demo`), a YAML's path or a mapping.

    A `DataConfig` is returned unchanged. `path` is relative to the YAML's folder first, then to the
    working directory; without `path` see `_without_path`. A set with a `generator` is composed on
    first use.

    Raises:
        UserError: For an unknown key or a wrong value; names the file and the key.
    """
    if isinstance(source, DataConfig):
        return source
    file, content = (None, source) if isinstance(source, Mapping) else _read(source)
    where = str(file or "data")
    for key in content:
        if key not in KNOWN_KEYS:
            raise UserError(
                f"{where}: unknown key {brief(key)}{suggest(str(key), KNOWN_KEYS)} (known:"
                f" {', '.join(KNOWN_KEYS)})"
            )
    if content.get("download"):
        LOGGER.warning(
            f"{where}: 'download' is never run; fetch the data yourself and let 'path' point to"
            " them"
        )
    check_path(content.get("path") or ".", f"{where}: path")
    folder = file.parent if file else Path.cwd()
    if content.get("generator") is not None:
        _generate(where, content["generator"], folder / str(content.get("path", ".")))
    root = _root(where, str(content.get("path") or "."), folder)
    place = Path.joinpath if content.get("path") else _without_path
    coco = {
        split: _coco_split(f"{where}: {split}", content[split], lambda entry: place(root, entry))
        for split in SPLITS
        if isinstance(content.get(split), Mapping)
    }
    given = {
        split: [coco[split].images] if split in coco else _entries(where, split, content.get(split))
        for split in SPLITS
    }
    splits = {split: [place(root, entry) for entry in entries] for split, entries in given.items()}
    if not any(splits.values()):
        raise UserError(
            f"{where}: has neither 'train' nor 'val'; add 'train: images/train' and 'val:"
            " images/val'"
        )
    names = _names(where, content, [found.annotations for found in coco.values()])
    coco = {split: replace(found, names=tuple(names)) for split, found in coco.items()}
    fraction = _fraction(where, content.get("fraction", 1.0))
    seed = _seed(where, content.get("seed"))
    return DataConfig(file, root, **splits, names=names, fraction=fraction, seed=seed, coco=coco)


def load_names(source: Path | str) -> list[str]:
    """Return the class names of a data YAML; its images need not be there.

    Raises:
        UserError: Where the YAML cannot be read or has no valid names.
    """
    file, content = _read(source)
    return _names(str(file), content)


def _read(source: Path | str) -> tuple[Path, dict[str, Any]]:
    """Return the absolute path of a data YAML and its mapping."""
    file = resolve(source, "data").absolute()
    return file, load_yaml(file, names=("names",), texts=("path", *SPLITS, "generator"))


def _names(where: str, content: Mapping[str, Any], coco: Sequence[Path] = ()) -> list[str]:
    """Return the class names by id.

    Without `names` they are those of the categories in COCO's JSON; from `nc` alone `class0`,
    `class1`, ...

    Args:
        where: File that a message names.
        content: The data YAML.
        coco: JSON files of the splits that have one.
    """
    names, nc = content.get("names"), content.get("nc")
    if nc is not None and (type(nc) is not int or not 1 <= nc <= MOST_CLASSES):
        raise UserError(
            f"{where}: nc: {brief(nc)} is not a number of classes (1 to {MOST_CLASSES})"
        )
    if names is None and coco:
        names = names_of(coco)
    if names is None and nc is None:
        raise UserError(f"{where}: has no 'names'; add 'names: [cat, dog]'")
    if names is None:
        return [f"class{i}" for i in range(nc or 0)]
    if isinstance(names, dict):
        names = _by_id(where, names)
    if (
        not isinstance(names, list)
        or not 1 <= len(names) <= MOST_CLASSES
        or not all(isinstance(n, str | int | float) for n in names)
    ):
        raise UserError(
            f"{where}: names: expected a list or 'id: name' lines, 1 to {MOST_CLASSES} of them,"
            f" found {brief(names)}"
        )
    if nc is not None and nc != len(names):
        raise UserError(
            f"{where}: nc is {nc}, but there are {len(names)} names; correct one of them or leave"
            " nc out"
        )
    return [str(name) for name in names]


def _by_id(where: str, names: dict[Any, Any]) -> list[Any]:
    """Return the names of `id: name` lines in the order of the ids, which may be words (`007`)."""
    by_id = {_as_id(key): name for key, name in names.items()}
    if by_id.keys() != set(range(len(names))):
        raise UserError(
            f"{where}: names: the ids must be 0 to {len(names) - 1}, each once; found"
            f" {brief(list(names))}"
        )
    return [by_id[i] for i in range(len(names))]


def _as_id(key: Any) -> Any:
    """Return the number that a key of `names` stands for, or the key itself."""
    return int(key) if str(key).isdecimal() and len(str(key)) < 10 else key


def _root(where: str, path: str, folder: Path) -> Path:
    """Return the folder of a set, looked up in `folder` and then in the working directory."""
    tried = list(dict.fromkeys([(folder / path).resolve(), Path(path).resolve()]))
    for root in tried:
        if root.is_dir():
            return root
    ours = Path(where).parent == CONFIG_FOLDERS["data"]
    hint = "; the first lines of the YAML say how to get the data" if ours else ""
    raise UserError(
        f"{where}: path: '{path}' not found; looked for {' and '.join(map(str, tried))}{hint}"
    )


def _coco_split(where: str, value: Mapping[str, Any], place: Callable[[str], Path]) -> CocoSplit:
    """Return the split of a mapping of `annotations` and `images`, names still empty.

    Args:
        where: File and key that a message names.
        value: The mapping.
        place: Returns the path of an entry.
    """
    if set(value) != {"annotations", "images"}:
        raise UserError(
            f"{where}: expected a folder, a list file, a list of them, or COCO's JSON as"
            f" 'annotations: x.json' and 'images: folder', found {brief(dict(value))}"
        )
    for entry in value.values():
        check_path(entry, where)
    annotations, images = place(value["annotations"]), place(value["images"])
    if not images.is_dir():
        raise UserError(f"{where}: images: {images}: no such folder")
    return CocoSplit(annotations, images)


def _entries(where: str, split: str, value: Any) -> list[str | Path]:
    """Return the value of a split as a list of folders and list files."""
    entries = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(entry, str | Path) for entry in entries):
        raise UserError(
            f"{where}: {split}: expected a folder, a list file or a list of them, found"
            f" {brief(value)}"
        )
    for entry in entries:
        check_path(entry, f"{where}: {split}")
        if str(entry).endswith(".json"):
            raise UserError(
                f"{where}: {split}: {entry} is no list of images; COCO's JSON is written as"
                f" '{split}: {{annotations: {entry}, images: FOLDER}}'"
            )
    return entries


def _without_path(folder: Path, entry: str | Path) -> Path:
    """Return the path of an entry in a YAML without `path`.

    The first existing one is taken: relative to the YAML; inside the YAML's folder for the
    `../train/images` of Roboflow's exports; relative to the working directory as in YOLOv7's files.
    """
    tried = [folder / entry, folder / str(entry).removeprefix("../"), Path.cwd() / entry]
    return next((path for path in tried if path.exists()), tried[0])


def _fraction(where: str, value: Any) -> float:
    """Return the share of the training images, checked."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise UserError(f"{where}: fraction: {brief(value)} is out of range (above 0, up to 1)")
    return float(value)


def _seed(where: str, value: Any) -> int | None:
    """Return the seed of the share of the training images, checked; None where there is none."""
    if value is not None and (type(value) is not int or value < 0):
        raise UserError(f"{where}: seed: {brief(value)} is no whole number from 0")
    return value


def _generate(where: str, name: Any, folder: Path) -> None:
    """Compose the set of a generator in `folder`."""
    from data.demo import RECIPES, compose

    if not isinstance(name, str) or name not in RECIPES:
        raise UserError(
            f"{where}: generator: {brief(name)} is not known{suggest(str(name), RECIPES)} (known:"
            f" {', '.join(RECIPES)})"
        )
    compose(RECIPES[name], folder.resolve())
