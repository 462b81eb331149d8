"""Options of convert.py. Standard library only."""

from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError, suggest
from utils.options.base import Options, changed_options, option
from utils.registry import registered_names

CONVERTERS = Path(__file__).resolve().parents[3] / "data" / "converters"
SPLITS = ("train", "val", "test")
BOXES = ("full", "visible", "head")


@dataclass(frozen=True)
class ConvertOptions(Options):
    """Options of `convert.py`."""

    format: str = option(
        "",
        f"format of the annotations: {', '.join(registered_names(CONVERTERS, 'CONVERTERS'))}",
        positional=True,
        group="what",
    )
    source: str = option(
        "", "folder of the data set as it was downloaded", positional=True, group="what"
    )
    out: str = option("", "folder to make; an earlier conversion in it is replaced", group="output")
    split: tuple[str, ...] = option(
        (),
        "splits to make (train, val, test), or train=NAME for a split that the source calls NAME;"
        " default: all that the source has",
        multi=True,
        group="what",
    )
    classes: tuple[str, ...] = option(
        (), "names of the classes to keep, in the order of their ids", multi=True, group="what"
    )
    copy: bool = option(False, "copy the images, do not link them", group="output")
    link: bool = option(
        False,
        "fail where images cannot be linked; default: hard links, copies where there can be none",
        group="output",
    )
    boxes: tuple[str, ...] = option(
        ("head", "full"),
        "crowdhuman: boxes to take; full or visible ones are persons",
        multi=True,
        choices=BOXES,
        group="what",
    )
    max_truncation: int = option(
        1,
        "visdrone: most truncation of an object: 0 none, 1 partial",
        least=0,
        most=1,
        group="what",
    )
    max_occlusion: int = option(
        2,
        "visdrone: most occlusion of an object: 0 none, 1 partial, 2 heavy",
        least=0,
        most=2,
        group="what",
    )
    difficult: bool = option(False, "voc: keep the objects marked difficult", group="what")
    zero_based: bool = option(
        False,
        "voc: pixels count from 0 and the right edge is not part of the box; PASCAL's own files"
        " count from 1 with the edge",
        group="what",
    )

    def check(self) -> None:
        """Raise `UserError` where options are missing, wrong or contradict each other."""
        super().check()
        if not self.out:
            raise UserError("--out: not given; name the folder to make: --out datasets/name")
        if self.copy and self.link:
            raise UserError("--copy and --link contradict each other; leave one of them out")
        if {"full", "visible"} <= set(self.boxes):
            raise UserError(
                "--boxes full visible: are two boxes of the same person; take one of them"
            )
        for words, flag in ((self.boxes, "--boxes"), (self.classes, "--classes")):
            if len(set(words)) < len(words):
                raise UserError(f"{flag} {' '.join(words)}: a word is there twice")
        _ = self.splits

    @property
    def splits(self) -> dict[str, str]:
        """Name in the source of each split that is asked for; empty where all are.

        Raises:
            UserError: A split has an unknown name or is there twice.
        """
        found: dict[str, str] = {}
        for word in self.split:
            ours, _, theirs = word.partition("=")
            if ours not in SPLITS:
                raise UserError(
                    f"--split {word}: '{ours}' is no split{suggest(ours, SPLITS)} (known:"
                    f" {', '.join(SPLITS)}; train=NAME where the source calls it NAME)"
                )
            if ours in found:
                raise UserError(f"--split {word}: '{ours}' is there twice")
            found[ours] = theirs or ours
        return found

    def refuse_options_of_others(self, used: tuple[str, ...]) -> None:
        """Raise `UserError` for an option that the format does not have.

        Args:
            used: Names of the options that belong to the format.
        """
        common = ("format", "source", "out", "split", "classes", "copy", "link")
        if others := changed_options(self, (*common, *used)):
            raise UserError(f"{others[0]}: means nothing for {self.format}; leave it out")
