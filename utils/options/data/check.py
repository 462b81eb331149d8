"""Options of `python -m data.check`. Standard library only."""

from dataclasses import dataclass

from utils.options.base import Options, option
from utils.options.meta import MOST_PIXELS

KINDS = (
    *("left-out", "leaks", "near-leaks", "unlabelled", "strays", "corrected", "classes"),
    *("tiny", "aspects", "duplicates", "near-duplicates"),
)
"""Kinds of findings, the gravest first."""


@dataclass(frozen=True)
class DataCheckOptions(Options):
    """Options of `python -m data.check`."""

    data: str = option(
        "", "data YAML: a bare name (demo) or a path", positional=True, group="what", path=True
    )
    imgsz: int = option(
        640,
        "image size of the training, at which boxes below 2 px are counted",
        "img",
        "img-size",
        group="what",
        least=32,
        most=MOST_PIXELS,
    )
    allow: tuple[str, ...] = option(
        (),
        "kinds of findings that do not count for the exit code",
        multi=True,
        choices=KINDS,
        group="output",
    )
    compare: bool = option(
        True, "read all images to find duplicates; without, labels alone are checked", group="what"
    )
    project: str = option("runs/check", "folder of the reports", group="run")
    name: str = option("exp", "name of this report; exp2, exp3 ... where it exists", group="run")
    exist_ok: bool = option(False, "write into the folder even if it exists", group="run")
