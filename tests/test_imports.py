"""Who may import whom: docs/architecture.md, held."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = {
    "utils": set(),
    "models": {"utils"},
    "data": {"utils"},
    "prune_methods": {"utils", "models"},
    "distill": {"utils", "models"},
    "deploy": {"utils", "models"},
    "recipes": {"utils", "models", "data", "prune_methods", "distill", "deploy"},
}
SCRIPTS = {path.stem for path in ROOT.glob("*.py")}


def module_name(path: Path) -> str:
    """Dotted name of a module from its path below the root."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def our_modules() -> dict[str, Path]:
    """Path of each module of ours by its dotted name."""
    packages = [path for name in ALLOWED for path in (ROOT / name).rglob("*.py")]
    return {module_name(path): path for path in [*ROOT.glob("*.py"), *packages]}


def imported(source: str) -> set[str]:
    """Top-level names that a file imports anywhere, in functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            found.add((node.module or "").split(".")[0])
    return found


def test_the_walk_sees_every_form_of_import() -> None:
    assert imported("import a.b, c as d\ndef f():\n    from e.f import g") == {"a", "c", "e"}


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_import_downwards_only(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    forbidden = (set(ALLOWED) | SCRIPTS) - ALLOWED[package] - {package}
    wrong = {
        str(f.relative_to(ROOT)): imported(f.read_text(encoding="utf-8")) & forbidden for f in files
    }
    assert {file: names for file, names in wrong.items() if names} == {}


def test_scripts_import_recipes_and_utils_only() -> None:
    for path in ROOT.glob("*.py"):
        assert imported(path.read_text(encoding="utf-8")) & (set(ALLOWED) | SCRIPTS) <= {
            "recipes",
            "utils",
        }, path.name


def outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    """Nodes below `node` that run on import or for a type checker; bodies of functions do not."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from outside_functions(child)


def modules_imported(source: str, known: set[str]) -> set[str]:
    """Modules of `known` that a file imports at its top, `if TYPE_CHECKING` blocks included."""
    found: set[str] = set()
    for node in outside_functions(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                found.add(submodule if submodule in known else str(node.module))
    return found & known


def import_loop(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a loop, first and last the same; empty where none do."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_the_search_for_loops_sees_modules_and_type_checking_blocks() -> None:
    source = "from a import b, c\nif TYPE_CHECKING:\n    import d.e\ndef f():\n    import g"
    assert modules_imported(source, {"a", "a.b", "d.e", "g"}) == {"a", "a.b", "d.e"}
    assert sorted(set(import_loop({"a": {"b"}, "b": {"c"}, "c": {"b"}}))) == ["b", "c"]
    assert import_loop({"a": {"b", "c"}, "b": {"c"}}) == []


def test_no_modules_import_each_other_in_a_loop() -> None:
    modules = our_modules()
    graph = {
        name: modules_imported(path.read_text(encoding="utf-8"), set(modules))
        for name, path in modules.items()
    }
    assert "utils.engine.hooks" in graph["utils.engine.trainer"]
    assert import_loop(graph) == []


ROOMS = ("groups", "criteria", "surgery", "search", "preflight", "sparsity", "prunable")
"""Rooms of prune_methods from the ground up: one imports only those before it."""


def test_the_rooms_of_pruning_import_downwards_only() -> None:
    wrong: list[str] = []
    for place, room in enumerate(ROOMS):
        path = ROOT / "prune_methods" / room
        files = sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
        assert files, room
        for file in files:
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                module = getattr(node, "module", None) or ""
                if not isinstance(node, ast.ImportFrom) or not module.startswith("prune_methods."):
                    continue
                other = module.split(".")[1]
                if ROOMS.index(other) > place:
                    wrong.append(f"{file.name} imports {module}")
    assert wrong == []
