"""Build the argparse parser of an options dataclass: spellings, groups and one-line errors.

Standard library only.
"""

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from utils.errors import UserError, suggest
from utils.options.meta import GROUPS

LONGEST_MESSAGE = 1000  # characters


def build_parser(kind: type, description: str) -> argparse.ArgumentParser:
    """Return the parser of the options dataclass `kind`, with the options in their groups."""
    parser = _Parser(
        _program(), description=description, allow_abbrev=False, formatter_class=_HelpFormatter
    )
    items = [item for item in dataclasses.fields(kind) if "help" in item.metadata]
    for group in dict.fromkeys(item.metadata.get("group", "") for item in items):
        assert group in {"", *GROUPS}, f"{kind.__name__}: no group of options is called '{group}'"
    for item in items:
        if "group" not in item.metadata:
            _add(parser, item)
    for title, text in GROUPS.items():
        members = [item for item in items if item.metadata.get("group") == title]
        group = parser.add_argument_group(title, text) if members else parser
        for item in members:
            _add(group, item)
    return parser


def _program() -> str | None:
    """Return `python -m package` where a package is run; None, for argparse's own, for a script."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    is_package = bool(sys.argv) and Path(sys.argv[0]).name == "__main__.py"
    return f"python -m {spec.parent}" if is_package and spec else None


def dashed(word: str) -> str:
    """Return `--batch-size=4` for `--batch_size=4`; values stay as they are."""
    name, sep, value = word.partition("=")
    return name.replace("_", "-") + sep + value if name.startswith("--") else word


def _add(group: argparse._ActionsContainer, item: dataclasses.Field) -> None:
    """Add one option to the parser, or to a group of it."""
    meta, kind = item.metadata, base_type(item)
    text = meta["help"].replace("%", "%%")
    if meta.get("positional"):
        form: dict[str, Any] = {"nargs": "+"} if get_origin(item.type) is tuple else {}
        metavar = item.name.upper().removesuffix("S")
        group.add_argument(item.name, type=kind, help=text, metavar=metavar, **form)
        return
    flags = [f"--{name.replace('_', '-')}" for name in (item.name, *meta["aliases"])]
    form = _switch(item) if kind is bool else _valued(item, kind)
    group.add_argument(*flags, dest=item.name, default=item.default, help=text, **form)


def _switch(item: dataclasses.Field) -> dict[str, Any]:
    """Return the action of a yes-or-no option: `--exp` and `--no-exp` where the default is yes."""
    return {"action": argparse.BooleanOptionalAction if item.default else "store_true"}


def _valued(item: dataclasses.Field, kind: type) -> dict[str, Any]:
    """Return argparse's arguments for an option that takes values."""
    meta: Mapping[str, Any] = item.metadata
    choices = meta.get("choices")
    form: dict[str, Any] = {
        "type": kind,
        "choices": choices,
        "metavar": None if choices else item.name.upper(),
    }
    if "bare" in meta:
        form |= {"nargs": "?", "const": meta["bare"]}
    if meta.get("multi"):
        form |= {"nargs": "+"}
    if "second" in meta:
        form |= {"nargs": "+", "action": _SizeOrTwo, "second": meta["second"]}
    return form


def base_type(item: dataclasses.Field) -> type:
    """Return the scalar type behind `int`, `str | None` or `tuple[int, ...]`."""
    kind = item.type
    assert not isinstance(kind, str), "options modules must not use postponed annotations"
    if get_origin(kind) is not None or get_args(kind):
        kind = next(a for a in get_args(kind) if a not in (type(None), Ellipsis))
        if get_origin(kind) is tuple:
            kind = get_args(kind)[0]
    return kind


class _SizeOrTwo(argparse.Action):
    """Store one image size, or two: YOLOv7's `--img-size 640 320`, of training and validation."""

    def __init__(self, *args: Any, second: str, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.second = second

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Store the first value as the option, the second one as the option `second`."""
        sizes = list(values or ())
        if len(sizes) > 2:
            raise UserError(
                f"--{self.dest} {' '.join(map(str, sizes))}: one size, or one for training and one"
                " for validation"
            )
        for name, size in zip((self.dest, self.second), sizes, strict=False):
            setattr(namespace, name, size)


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Print defaults behind each option, and the docstring of the script as it was written."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        """Return the help text; a default that says "not given" is not printed."""
        if action.default in ("", (), None) or action.default is False:
            return action.help
        return super()._get_help_string(action)


ABSENT = {
    "--evolve": "hyper-parameters are not evolved here; give a file of your own with --hyp, and"
    " compare runs with report.py",
    "--bucket": "files are not fetched here; give paths with --data and --weights",
    "--upload-dataset": "nothing is uploaded here; leave it out",
    "--bbox-interval": "nothing is uploaded here; pictures of batches lie in the run folder",
    "--artifact-alias": "nothing is uploaded here; leave it out",
    "--quad": "the quad collate function does not exist; use --multi-scale or --imgsz",
    "--v5-metric": "the metrics are YOLOv5's already; leave it out",
}
"""Options of YOLOv5 and YOLOv7 that do not exist here, and what to do instead."""


class _Parser(argparse.ArgumentParser):
    """Parser whose errors are one line."""

    def error(self, message: str) -> Any:
        """Print one line instead of the usage, with a suggestion for a misspelt option; exit 2."""
        if message.startswith("unrecognized arguments: "):
            words = message.split(": ", 1)[1].split()
            word = words[0].split("=")[0] if words else "''"  # an empty argument, as of "$UNSET"
            hint = f"; {ABSENT[word]}" if word in ABSENT else ""
            message = f"unknown option {word}{hint or suggest(word, self._option_string_actions)}"
        if len(message) > LONGEST_MESSAGE:
            message = message[: LONGEST_MESSAGE - 3] + "..."
        self.exit(2, f"{self.prog}: {message} (all options: {self.prog} --help)\n")
