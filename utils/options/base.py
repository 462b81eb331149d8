"""Command-line options: one frozen dataclass a script gives parser, help, defaults and `opt.yaml`.

Standard library only, so that `--help` answers before torch is imported. Every option is accepted
with dashes or underscores.
"""

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_args, get_origin

from utils.errors import suggest

T = TypeVar("T")


def option(
    default: Any,
    text: str,
    *aliases: str,
    choices: Sequence[str] | None = None,
    bare: Any = None,
    multi: bool = False,
    positional: bool = False,
    least: int | None = None,
) -> Any:
    """One option of an options dataclass.

    `aliases` are further spellings (`--batch`); `bare` is the value of the option given without one
    (`--cache` alone means `ram`); `multi` takes one or more values into a tuple; `positional` takes
    the words that belong to no option into a tuple; numbers below `least` are refused.
    """
    meta = {
        "help": text,
        "aliases": aliases,
        "choices": choices,
        "bare": bare,
        "multi": multi,
        "positional": positional,
    }
    return field(default=default, metadata=meta | {"least": least})


def parse_options(kind: type[T], argv: Sequence[str] | None = None, description: str = "") -> T:
    """Parse a command line into the dataclass.

    Wrong options end the program with one line and exit code 2.
    """
    parser = _Parser(description=description, allow_abbrev=False, formatter_class=_HelpFormatter)
    items = dataclasses.fields(kind)  # type: ignore[arg-type]
    for item in items:
        if item.init and "help" in item.metadata:
            _add(parser, item)
    given = sys.argv[1:] if argv is None else list(argv)
    values = vars(parser.parse_args([_dashed(word) for word in given]))
    lists = [f.name for f in items if f.metadata.get("multi") or f.metadata.get("positional")]
    for name in lists:
        values[name] = tuple(values[name]) if isinstance(values[name], list) else values[name]
    return kind(**values)


def to_dict(options: Any) -> dict[str, Any]:
    """Plain values of an options dataclass by name, tuples as lists, for `opt.yaml` and the
    checkpoint.
    """
    return {
        k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(options).items()
    }


def changed_options(options: Any, besides: Collection[str] = ()) -> list[str]:
    """`--name` of every option that is not at its default."""
    items = [f for f in dataclasses.fields(options) if f.init and f.name not in besides]
    return [f"--{f.name.replace('_', '-')}" for f in items if getattr(options, f.name) != f.default]


def command_line() -> str:
    """The command as it can be pasted again."""
    return shlex.join(["python", *sys.argv])


def _dashed(word: str) -> str:
    """`--batch_size=4` -> `--batch-size=4`; values stay as they are."""
    name, sep, value = word.partition("=")
    return name.replace("_", "-") + sep + value if name.startswith("--") else word


def _add(parser: argparse.ArgumentParser, item: dataclasses.Field) -> None:
    meta, kind = item.metadata, _base_type(item)
    reader = kind if meta["least"] is None else _at_least(meta["least"], kind)
    flags = [f"--{name.replace('_', '-')}" for name in (item.name, *meta["aliases"])]
    common: dict[str, Any] = {
        "dest": item.name,
        "default": item.default,
        "help": meta["help"].replace("%", "%%"),
    }
    if meta["positional"]:
        parser.add_argument(
            item.name,
            nargs="+",
            type=kind,
            help=common["help"],
            metavar=item.name.upper().removesuffix("S"),
        )
        return
    if kind is bool:
        parser.add_argument(
            *flags,
            action=argparse.BooleanOptionalAction if item.default else "store_true",
            **common,
        )
        return
    if meta["bare"] is not None:
        common |= {"nargs": "?", "const": meta["bare"]}
    if meta["multi"]:
        common |= {"nargs": "+"}
    parser.add_argument(
        *flags,
        type=reader,
        choices=meta["choices"],
        metavar=None if meta["choices"] else item.name.upper(),
        **common,
    )


def _at_least(least: int, kind: type) -> Callable[[str], Any]:
    """Reads a number and refuses one below `least`."""

    def read(text: str) -> Any:
        value = kind(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{text}: must be at least {least}")
        return value

    read.__name__ = kind.__name__  # what argparse says where the text is no number
    return read


def _base_type(item: dataclasses.Field) -> type:
    """The scalar behind `int`, `str | None` or `tuple[int, ...]`."""
    kind = item.type
    assert not isinstance(kind, str), "options modules must not use postponed annotations"
    if get_origin(kind) is not None or get_args(kind):
        kind = next(a for a in get_args(kind) if a not in (type(None), Ellipsis))
        if get_origin(kind) is tuple:
            kind = get_args(kind)[0]
    return kind


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults behind each option, the script's docstring as it was written."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        """One line instead of the whole usage, with a suggestion for a misspelt option."""
        if message.startswith("unrecognized arguments: "):
            word = message.split(": ", 1)[1].split()[0].split("=")[0]
            message = f"unknown option {word}{suggest(word, self._option_string_actions)}"
        self.exit(2, f"{self.prog}: {message} (all options: {self.prog} --help)\n")


@dataclass(frozen=True)
class RunOptions:
    """What every script that makes a run folder has."""

    device: str = option("", "cpu, 0, 0,1 or empty for the first GPU if there is one, else the CPU")
    workers: int = option(
        2, "data loading processes per rank; changes nothing but the speed", least=0
    )
    project: str = option("runs", "folder of the runs")
    name: str = option("exp", "name of this run; exp2, exp3 ... where it exists")
    exist_ok: bool = option(False, "write into the run folder even if it exists")
    seed: int = option(0, "random seed of initialisation, data order and augmentation", least=0)
