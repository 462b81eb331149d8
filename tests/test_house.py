"""Sizes that keep code readable: parameters, lines of functions and files, files of a folder."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    "utils",
    "models",
    "data",
    "prune_methods",
    "distill",
    "deploy",
    "recipes",
    "benchmarks",
)
MOST_PARAMETERS = 7
LONGEST_FUNCTION = 60
LONGEST_FILE = 400
MOST_FILES = 12
SMALL_FOLDERS = (
    "utils/options/*",
    "prune_methods/*",
    "deploy",
    "deploy/*",
    "recipes/*",
    "utils/engine",
    "utils/options",
    "utils/plots",
)
MIRRORS_YAML = {"__init__", "from_yaml"}  # in models/: their parameters are the arguments of a row

Function = ast.FunctionDef | ast.AsyncFunctionDef


def our_files() -> dict[str, Path]:
    """Return the path of each Python file of ours by its name from the root."""
    packages = [path for name in PACKAGES for path in (ROOT / name).rglob("*.py")]
    return {path.relative_to(ROOT).as_posix(): path for path in [*ROOT.glob("*.py"), *packages]}


def our_functions() -> Iterator[tuple[str, Function]]:
    """Yield every function and method with its file, nested ones too."""
    for name, path in our_files().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, Function):
                yield name, node


def parameters(function: Function) -> int:
    """Count positional and keyword-only parameters without self and cls."""
    given = function.args
    names = [argument.arg for argument in given.posonlyargs + given.args]
    bound = names[:1] in (["self"], ["cls"])
    return len(names) - bound + len(given.kwonlyargs)


def lines(function: Function) -> int:
    """Count the lines of a function with its decorators and docstring."""
    first = min(node.lineno for node in [function, *function.decorator_list])
    assert function.end_lineno is not None
    return function.end_lineno - first + 1


def test_parameters_and_lines_are_counted() -> None:
    source = "class A:\n    @d\n    def f(self, a, /, b, *rest, c=1, **more):\n        pass\n"
    method = next(node for node in ast.walk(ast.parse(source)) if isinstance(node, Function))
    assert (parameters(method), lines(method)) == (3, 3)


def test_the_walk_sees_all_packages() -> None:
    assert {name.split("/")[0] for name in our_files() if "/" in name} == set(PACKAGES)
    assert {"train.py", "prune.py"} < set(our_files())


def test_functions_take_few_parameters() -> None:
    many = {
        f"{file}:{function.name}": parameters(function)
        for file, function in our_functions()
        if parameters(function) > MOST_PARAMETERS
        and not (file.startswith("models/") and function.name in MIRRORS_YAML)
    }
    assert many == {}


def test_functions_are_short() -> None:
    sizes = {f"{file}:{node.name}:{node.lineno}": lines(node) for file, node in our_functions()}
    assert {name: size for name, size in sizes.items() if size > LONGEST_FUNCTION} == {}


def test_files_are_short() -> None:
    sizes = {
        name: len(path.read_text(encoding="utf-8").splitlines())
        for name, path in our_files().items()
    }
    assert {name: size for name, size in sizes.items() if size > LONGEST_FILE} == {}


def test_folders_hold_few_files() -> None:
    folders = [path for pattern in SMALL_FOLDERS for path in ROOT.glob(pattern) if path.is_dir()]
    sizes = {
        folder.relative_to(ROOT).as_posix(): sum(
            path.name != "__init__.py" for path in folder.glob("*.py")
        )
        for folder in folders
    }
    assert sizes.keys() >= {"prune_methods/criteria", "recipes/prune", "utils/engine"}
    assert {name: size for name, size in sizes.items() if size > MOST_FILES} == {}
