"""`convert.py`: a data set in another format becomes one of YOLO's."""

from pathlib import Path
from typing import Any

import data.converters
from data.converters.base import CONVERTERS
from data.converters.publish import publish, refuse_what_is_not_ours, seal, workshop
from data.converters.writer import DATA_YAML, PROBLEMS, SetWriter
from utils.errors import UserError
from utils.files import check_path
from utils.log import LOGGER
from utils.options.data.convert import ConvertOptions
from utils.registry import import_files_of
from utils.tables import console_table


def convert(opt: ConvertOptions) -> Path:
    """Convert `opt.source` into the folder `opt.out`; return the data YAML in it.

    Raises:
        UserError: The source has not the layout of the format, or the folder is not ours.
    """
    import_files_of(data.converters)
    source, out = _folders(opt)
    kind = CONVERTERS[opt.format]
    opt.refuse_options_of_others(kind.options)
    refuse_what_is_not_ours(out)
    converter = kind(source, opt)
    with workshop(out) as place:
        fresh = place / "fresh"
        fresh.mkdir()
        writer = SetWriter(converter, opt, fresh)
        writer.write()
        seal(fresh, writer.digest.hexdigest(), {"format": opt.format, "source": str(source)})
        new = publish(fresh, out)
    _log(writer, out, new)
    return out / DATA_YAML


def _folders(opt: ConvertOptions) -> tuple[Path, Path]:
    """Return source and destination as absolute paths, links of the source followed.

    Raises:
        UserError: The source is no folder, or one of them lies in the other.
    """
    check_path(opt.source, "source")
    check_path(opt.out, "--out")
    source, out = Path(opt.source), Path(opt.out).absolute()
    if not source.is_dir():
        raise UserError(f"{source}: no such folder; give the folder of the downloaded data set")
    source, place = source.resolve(), out.resolve()
    if place.is_relative_to(source) or source.is_relative_to(place):
        raise UserError(
            f"--out {out}: lies in {source} or holds it; the source is never written to, choose a"
            " folder elsewhere"
        )
    return source, out


def _log(writer: SetWriter, out: Path, new: bool) -> None:
    """Log what was kept and what was left out, and how to train on it."""
    report = writer.report()
    LOGGER.info(_table(report["splits"]))
    for split, found in writer.reports.items():
        for reason, count in found.dropped.most_common():
            LOGGER.info(f"{split}: {count} boxes left out: {reason}")
        if found.left_out:
            file, reason = found.left_out[0]
            LOGGER.warning(
                f"{split}: {len(found.left_out)} images left out, all are listed in {PROBLEMS}; the"
                f" first: {file}: {reason}"
            )
    for note in report["notes"]:
        LOGGER.warning(note)
    if writer.copied and not writer.opt.copy:
        LOGGER.info(f"{writer.copied} images could not be linked and were copied")
    done = "Converted to" if new else "Unchanged, as it was converted before:"
    LOGGER.info(f"{done} {out}\nCheck it:  python -m data.check {out / DATA_YAML}")


def _table(splits: dict[str, Any]) -> str:
    """Return the numbers of the splits as a table for a terminal."""
    keys = ("images", "backgrounds", "left_out", "boxes", "clipped")
    head = ("split", "images", "backgrounds", "images left out", "boxes", "clipped", "left out")
    rows = [
        (split, *(str(found[key]) for key in keys), str(sum(found["dropped"].values())))
        for split, found in splits.items()
    ]
    return console_table([head, *rows], right=range(1, len(head)))
