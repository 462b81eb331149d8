"""Read YAML files of strangers: bounded in size, depth, aliases and numbers, and never run.

PyYAML itself raises other errors than `YAMLError` for some scalars, recurses into nested
collections and expands merged aliases without a bound.
"""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import yaml

from utils.errors import UserError, brief
from utils.files import read_text

MOST_BYTES = 8 * 2**20
MOST_DEPTH = 50
MOST_NODES = 1_000_000  # with every alias counted as what it stands for
MOST_DIGITS = 18  # of an integer: more fit neither into a tensor nor into a message

NOT_TEXT = {f"tag:yaml.org,2002:{kind}" for kind in ("bool", "int", "float", "timestamp")}
"""Types that YAML 1.1 gives to plain words such as yes, off, 007, 1e3 and 2024-01-31."""
NO_VALUE = {f"tag:yaml.org,2002:{kind}" for kind in ("null", "merge", "value")}
"""Types that it gives to null, ~, << and =."""
TEXT = "tag:yaml.org,2002:str"

SCALAR_ERRORS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""Errors that PyYAML's constructors let through for scalars of a wrong form."""


class BoundedLoader(yaml.SafeLoader):
    """Safe loader whose errors are all `YAMLError`, with the line of the value."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Return the value of a node; see SafeLoader."""
        try:
            value = super().construct_object(node, deep=deep)
        except SCALAR_ERRORS:
            kind = str(node.tag).rpartition(":")[2][:40]
            raise _problem(f"this value is no valid {kind}", node.start_mark) from None
        if type(value) is int and abs(value) >= 10**MOST_DIGITS:
            problem = f"a number of more than {MOST_DIGITS} digits"
            raise _problem(problem, node.start_mark)
        if isinstance(value, str) and not is_text(value):
            raise _problem("a NUL or half a surrogate pair in a text", node.start_mark)
        return value


def read_yaml(path: Path, names: Collection[str] = (), texts: Collection[str] = ()) -> Any:
    """Return the content of a YAML file.

    Args:
        path: File to read.
        names: Keys under which every word is text, as it is written: yes, off, 007 and null too.
        texts: Keys under which every word is text, but null means that there is none.

    Raises:
        UserError: The file is missing, no regular file, too large, too deep or broken; names the
            file and the line.
    """
    text = read_text(path, MOST_BYTES)
    try:
        _check_bounds(yaml.parse(text, Loader=yaml.SafeLoader))
        return _parse(text, names, texts)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        what = getattr(error, "problem", None) or "not valid YAML"
        raise UserError(f"{path}{where}: broken YAML: {what[:200]}") from None
    except RecursionError:
        raise UserError(f"{path}: broken YAML: nested too deep") from None


def _parse(text: str, names: Collection[str], texts: Collection[str]) -> Any:
    """Return the content of a YAML text; see `read_yaml`."""
    loader = BoundedLoader(text)
    try:
        root = loader.get_single_node()
        _refuse_repeated_keys(root)
        for key, value in root.value if isinstance(root, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in names:
                _read_as_text(value, NOT_TEXT | NO_VALUE)
            elif key.value in texts:
                _read_as_text(value, NOT_TEXT)
        return None if root is None else loader.construct_document(root)
    finally:
        loader.dispose()


def _refuse_repeated_keys(root: yaml.Node | None) -> None:
    """Raise a YAML error for a key that a mapping, or a mapping right below it, has twice.

    The YAML library would silently take the last one.
    """
    if not isinstance(root, yaml.MappingNode):
        return
    for mapping in (root, *(value for _, value in root.value)):
        seen = set()
        for key, _ in mapping.value if isinstance(mapping, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise _problem(f"the key {brief(key.value)} is there twice", key.start_mark)
            seen.add(key.value)


def _read_as_text(node: yaml.Node, kinds: Collection[str]) -> None:
    """Make text of a word, or of the words of a list or a mapping, where it has one of the types.

    An empty place stays one.
    """
    members = [node] if isinstance(node, yaml.ScalarNode) else node.value
    for member in members:
        for word in member if isinstance(member, tuple) else (member,):
            if isinstance(word, yaml.ScalarNode) and word.tag in kinds and word.value:
                word.tag = TEXT


def _check_bounds(events: Iterator[yaml.Event]) -> None:
    """Read the events of a YAML, which needs no recursion, and refuse what would grow too large.

    Raises:
        yaml.MarkedYAMLError: Collections are nested too deep, an alias stands for a collection that
            holds it, or the aliases stand for too many values.
    """
    sizes: dict[str, int] = {}
    open_collections: list[tuple[str | None, int]] = []
    total = 0
    for event in events:
        if isinstance(event, yaml.CollectionStartEvent):
            open_collections.append((event.anchor, total))
            if len(open_collections) > MOST_DEPTH:
                raise _problem(f"nested deeper than {MOST_DEPTH} levels", event.start_mark)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_collections.pop()
            _note(sizes, anchor, total - before)
        elif isinstance(event, yaml.ScalarEvent):
            _note(sizes, event.anchor, 1)
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor in [anchor for anchor, _ in open_collections]:
                raise _problem(f"*{event.anchor} stands for what holds it", event.start_mark)
            total += sizes.get(str(event.anchor), 0)
        total += 1
        if total > MOST_NODES:
            raise _problem(f"more than {MOST_NODES} values", event.start_mark)


def _note(sizes: dict[str, int], anchor: str | None, size: int) -> None:
    """Note how many values an anchor stands for."""
    if anchor is not None:
        sizes[anchor] = size


def _problem(text: str, mark: Any) -> yaml.MarkedYAMLError:
    """Return an error about the place of a mark."""
    return yaml.MarkedYAMLError(problem=text, problem_mark=mark)


def is_text(value: str) -> bool:
    """Tell whether file names and UTF-8 files can hold the characters of a value."""
    return "\0" not in value and not any("\ud800" <= letter <= "\udfff" for letter in value)
