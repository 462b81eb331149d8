"""Who may import whom: docs/architecture.md, held."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = {
    "utils": set(),
    "models": {"utils"},
    "data": {"utils"},
    "prune_methods": {"utils", "models"},
    "distill": {"utils", "models"},
    "recipes": {"utils", "models", "data", "prune_methods", "distill"},
}
SCRIPTS = {path.stem for path in ROOT.glob("*.py")}


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
