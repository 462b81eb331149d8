"""Tables from names to classes.

One new file that registers its class adds a block, a pruner or a loss.
"""

import ast
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from utils.errors import UserError, suggest


class Registry:
    """A table of named classes or functions.

    >>> PRUNERS = Registry("pruning method")
    >>> @PRUNERS.register("l1")
    ... class L1: ...
    >>> PRUNERS["l1"] is L1
    True
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._items: dict[str, Any] = {}
        # called with a name that is not registered; returns its item or None
        self.fallback: Callable[[str], Any] = lambda name: None

    def register(self, *names: str) -> Callable[[Any], Any]:
        """Return a decorator that registers an item under each name, or under the item's own name.

        A name must be free: a second registration fails an assertion.
        """

        def add(item: Any) -> Any:
            for name in names or (item.__name__,):
                assert name not in self._items, f"{self.kind} '{name}' is registered twice"
                self._items[name] = item
            return item

        return add

    def __getitem__(self, name: str) -> Any:
        """Return the item of a name.

        Raises:
            UserError: Where the name is unknown; suggests a similar one.
        """
        if name in self._items:
            return self._items[name]
        if found := self.fallback(name):
            return found
        raise UserError(
            f"unknown {self.kind} '{name[:80]}'{suggest(name, self._items)} (known:"
            f" {', '.join(self.names())})"
        )

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self._items)

    def names(self) -> list[str]:
        """Return all names in the order of registration."""
        return list(self._items)


def import_files_of(package: ModuleType) -> None:
    """Import every module of a package, so that its registrations run.

    A `__main__` is left out: importing it would run a script. The names of the modules come from
    the package's folder, never from a user.
    """
    for info in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not info.name.endswith(".__main__"):
            importlib.import_module(info.name)


def registered_names(folder: Path, registry: str) -> list[str]:
    """Return the names that the files of a folder register, without importing them.

    The names are read from the decorators in the source, so that `--help` lists every method
    without importing torch.

    Args:
        folder: Folder whose files are searched, subfolders included.
        registry: Name of the registry in the source: `PRUNERS` finds `@PRUNERS.register("l1")`.
    """
    names: list[str] = []
    for file in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                names += _decorator_names(node, f"{registry}.register")
    return names


def _decorator_names(node: ast.ClassDef | ast.FunctionDef, decorator: str) -> list[str]:
    """Return the names that a decorator's calls register a class or function under."""
    names: list[str] = []
    for call in node.decorator_list:
        if isinstance(call, ast.Call) and ast.unparse(call.func) == decorator:
            given = [str(word.value) for word in call.args if isinstance(word, ast.Constant)]
            names += given or [node.name]
    return names
