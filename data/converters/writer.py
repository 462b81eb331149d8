"""Write a data set that a converter reads: images, texts, lists, YAML, report."""

import errno
import hashlib
import json
import os
import shutil
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from tqdm import tqdm

from data.converters.base import BadRecordError, Converter, Record
from data.converters.lines import Texts, label_texts
from data.images import READ_ERRORS, probe_image
from data.parallel import batches, in_order
from utils.errors import UserError, suggest
from utils.files import write_csv
from utils.options.data.convert import ConvertOptions

DATA_YAML, REPORT, PROBLEMS = "data.yaml", "report.json", "problems.csv"
PART = 64  # images that are worked on at a time
FEW = 500  # images for which no further processes are started
NO_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES}


@dataclass
class SplitReport:
    """What became of a split.

    Args:
        images: Images that were written.
        backgrounds: Those of them without any box.
        boxes: Boxes that were kept.
        clipped: Boxes of them that were cut at the edge of the image.
        dropped: Boxes that were left out, by reason.
        classes: Boxes that were kept, by name of the class.
        left_out: File and reason of each image that was left out.
    """

    images: int = 0
    backgrounds: int = 0
    boxes: int = 0
    clipped: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    classes: Counter[str] = field(default_factory=Counter)
    left_out: list[tuple[str, str]] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """Return the numbers as plain data."""
        fields = {**vars(self), "left_out": len(self.left_out)}
        return {
            k: dict(v.most_common()) if isinstance(v, Counter) else v for k, v in fields.items()
        }


class Image(NamedTuple):
    """An image that can be used, with its annotations."""

    record: Record
    size: tuple[int, int]  # width and height in pixels, upright
    stamp: tuple[int, int]  # size in bytes and time in ns of the file


class Part(NamedTuple):
    """Images that are worked on together.

    Args:
        images: File, and size in bytes and time in ns of it, of each image that can be used.
        texts: Their texts.
        left_out: File and reason of each image that is left out.
    """

    images: list[tuple[str, tuple[int, int]]]
    texts: Texts
    left_out: list[tuple[str, str]]


@dataclass
class SetWriter:
    """Writer of one data set into an empty folder.

    Args:
        converter: Reader of the source.
        opt: Options of convert.py.
        folder: Folder that takes the set.
    """

    converter: Converter
    opt: ConvertOptions
    folder: Path
    reports: dict[str, SplitReport] = field(default_factory=dict)
    digest: Any = field(default_factory=hashlib.sha256)
    linked: int = 0
    copied: int = 0

    def __post_init__(self) -> None:
        known, wanted = self.converter.names, self.opt.classes
        for name in wanted:
            if name not in known:
                raise UserError(
                    f"--classes {name}: is no class of the source{suggest(name, known)} (classes:"
                    f" {', '.join(known[:40])})"
                )
        self.names = list(wanted or known)
        self.ids = np.array([self.names.index(n) if n in self.names else -1 for n in known], int)

    def write(self) -> None:
        """Write all splits, the YAML and the report.

        Raises:
            UserError: A split has no image that can be used.
        """
        self.digest.update(repr(self.names).encode())
        for split, items in self.converter.splits.items():
            self._write_split(split, items)
        header = f"# Converted from {self.opt.format} by convert.py: {REPORT} says what was kept.\n"
        splits = {split: f"images/{split}" for split in self.reports}
        content = {"path": ".", **splits, "names": self.names}
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        (self.folder / DATA_YAML).write_text(header + text, encoding="utf-8")
        (self.folder / REPORT).write_text(
            json.dumps(self.report(), indent=2, ensure_ascii=False), encoding="utf-8"
        )
        rows = [(split, *pair) for split, r in self.reports.items() for pair in r.left_out]
        write_csv(self.folder / PROBLEMS, ("split", "file", "reason"), rows)

    def report(self) -> dict[str, Any]:
        """Return the numbers of all splits, and remarks, as plain data."""
        splits = {split: found.plain() for split, found in self.reports.items()}
        notes = [*self.converter.notes, *self._remarks()]
        return {"format": self.opt.format, "names": self.names, "splits": splits, "notes": notes}

    def _remarks(self) -> Iterator[str]:
        """Yield remarks on classes without objects."""
        counts = sum((found.classes for found in self.reports.values()), Counter())
        if empty := [name for name in self.names if not counts[name]]:
            yield (
                f"{len(empty)} classes have no object: {', '.join(empty[:10])}; --classes chooses"
                " the classes"
            )

    def _write_split(self, split: str, items: Any) -> None:
        """Write images, texts and list of a split.

        Raises:
            UserError: It has no image that can be used.
        """
        found = self.reports[split] = SplitReport()
        for kind in ("images", "labels"):
            (self.folder / kind / split).mkdir(parents=True)
        stems: set[str] = set()
        names: list[str] = []
        few = 1 if len(items) < FEW else 0
        parts = in_order(lambda: batches(items, PART), self._read, few)
        with tqdm(None, f"Converting {split}", len(items), leave=False) as bar:
            for part in parts:
                fresh = [_free_name(Path(image), stems) for image, _ in part.images]
                self._write_part(split, part, fresh)
                names += fresh
                bar.update(len(part.images) + len(part.left_out))
        if not names and not found.left_out:
            raise UserError(f"{self.opt.source}: the split '{split}' has no image at all")
        if not names:
            file, reason = found.left_out[0]
            raise UserError(
                f"{split}: none of the {len(found.left_out)} images can be used; the first:"
                f" {file}: {reason}"
            )
        listing = "".join(f"./images/{split}/{name}\n" for name in sorted(names))
        (self.folder / f"{split}.txt").write_bytes(os.fsencode(listing))

    def _read(self, items: Sequence[Any]) -> Part:
        """Return those of the images that can be used, with their texts, and why not the others.

        This is what several processes do; links and files are made in order by one.
        """
        images: list[Image] = []
        left_out: list[tuple[str, str]] = []
        for item in items:
            try:
                images.append(_look_at(self.converter.read(item)))
            except BadRecordError as error:
                left_out.append((self.converter.place(item), str(error)))
        boxes, sizes = [i.record.boxes for i in images], [i.size for i in images]
        texts = label_texts(boxes, sizes, self.ids)
        for image in images:
            texts.dropped.update(image.record.dropped)
        return Part([(str(i.record.image), i.stamp) for i in images], texts, left_out)

    def _write_part(self, split: str, part: Part, names: Sequence[str]) -> None:
        """Write images of a split and their texts under these names, and count them."""
        folder = f"{self.folder}/images/{split}/"
        for (image, stamp), name, text in zip(part.images, names, part.texts.texts, strict=True):
            kind = self._place(image, folder + name)
            stem, content = name.rpartition(".")[0], text.encode()
            write_new(f"{self.folder}/labels/{split}/{stem}.txt", content)
            self.digest.update(os.fsencode(f"{split}/{name} {stamp} {kind}\n") + content)
        found, texts = self.reports[split], part.texts
        found.images += len(names)
        found.backgrounds += texts.texts.count("")
        found.boxes += texts.classes.total()
        found.clipped += texts.clipped
        found.dropped.update(texts.dropped)
        found.left_out += part.left_out
        for number, count in texts.classes.items():
            found.classes[self.names[number]] += count

    def _place(self, image: str, target: str) -> str:
        """Link an image into the set where that is possible and wanted, otherwise copy it.

        Returns:
            `link` or `copy`: a set of copies is another one than a set of links.

        Raises:
            UserError: The image cannot be linked, and `--link` asks for it.
        """
        if not self.opt.copy:
            try:
                # a link to a link would depend on what the first one leads to
                source = Path(image).resolve() if Path(image).is_symlink() else image
                os.link(source, target)
                self.linked += 1
                return "link"
            except OSError as error:
                if error.errno not in NO_LINK:
                    raise
                if self.opt.link:
                    raise UserError(
                        f"{image}: cannot be linked: {error.strerror}; leave --link out to copy, or"
                        " choose an --out on the same disk"
                    ) from None
        shutil.copy2(image, target)
        self.copied += 1
        return "copy"


def write_new(path: str, content: bytes) -> None:
    """Write a file that is not there yet, in few system calls: sets have many small files."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        while content:
            content = content[os.write(descriptor, content) :]
    finally:
        os.close(descriptor)


def _look_at(record: Record) -> Image:
    """Return annotations with size and stamp of their image, after a look at its file.

    Raises:
        BadRecordError: The file is missing or broken, or of another size than is stated.
    """
    try:
        info = record.image.stat()
        if not stat.S_ISREG(info.st_mode):
            raise BadRecordError(f"image {record.image}: is no file")
        size = probe_image(record.image).size
    except FileNotFoundError:
        raise BadRecordError(f"image {record.image}: no such file") from None
    except BadRecordError:
        raise
    except READ_ERRORS as error:
        what = " ".join(str(error).split()) or type(error).__name__
        raise BadRecordError(f"image {record.image} cannot be read: {what[:200]}") from None
    if record.size is not None and record.size != size:
        stated, turned = record.size, record.size == size[::-1]
        hint = " (turned by its EXIF orientation)" if turned else ""
        raise BadRecordError(
            f"the annotations are for {stated[0]} x {stated[1]} px, the image has"
            f" {size[0]} x {size[1]}{hint}"
        )
    return Image(record, size, (info.st_size, info.st_mtime_ns))


def _free_name(image: Path, stems: set[str]) -> str:
    """Return a name for an image whose stem no other one of the split has, and note the stem.

    Texts are found by the stem: `a.jpg` and `a.png` of one folder would share theirs.
    """
    stem, suffix, number = image.stem, image.suffix, 2
    if stem in stems:
        stem = f"{image.parent.name}_{stem}"
    base = stem
    while stem in stems:
        stem, number = f"{base}_{number}", number + 1
    stems.add(stem)
    return f"{stem}{suffix}"
