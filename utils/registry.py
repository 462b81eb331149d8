"""Name -> class tables.

A newcomer adds a block, a pruner or a loss by dropping in one file that registers it.
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
        self.fallback: Callable[[str], Any] = lambda name: (
            None
        )  # what a name means that is not registered, or None

    def register(self, *names: str) -> Callable[[Any], Any]:
        """Decorator; registers under every name given, or under the class's own name.

        A name taken twice is our bug.
        """

        def add(item: Any) -> Any:
            for name in names or (item.__name__,):
                assert name not in self._items, f"{self.kind} '{name}' is registered twice"
                self._items[name] = item
            return item

        return add

    def __getitem__(self, name: str) -> Any:
        """The registered item; `UserError` with a suggestion where the name is unknown."""
        if name not in self._items:
            if found := self.fallback(name):
                return found
            raise UserError(
                f"unknown {self.kind} '{name}'{suggest(name, self._items)} (known:"
                f" {', '.join(self.names())})"
            )
        return self._items[name]

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self._items)

    def names(self) -> list[str]:
        """All names in the order of registration."""
        return list(self._items)


def import_files_of(package: ModuleType) -> None:
    """Import every module of a package, so that its registrations run; not its `__main__`, which is
    a script.

    Names come from our folders, never from a user's string.
    """
    for info in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not info.name.endswith(".__main__"):
            importlib.import_module(info.name)


def registered_names(folder: Path, registry: str) -> list[str]:
    """Names that `@<registry>.register("name")` decorators in a folder's files give, read from the
    source without importing it.

    Lets `--help` list every method without paying for torch.
    """
    names: list[str] = []
    for file in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                for call in node.decorator_list:
                    if (
                        isinstance(call, ast.Call)
                        and ast.unparse(call.func) == f"{registry}.register"
                    ):
                        names += [
                            str(a.value) for a in call.args if isinstance(a, ast.Constant)
                        ] or [node.name]
    return names
