"""Every command that a page shows has a script, options that exist and values that are allowed."""

import re
import shlex

import pytest

from demo import DemoOptions
from tests.conftest import ROOT
from utils.options.base import Options, parse_options
from utils.options.check import CheckOptions
from utils.options.data.check import DataCheckOptions
from utils.options.data.convert import ConvertOptions
from utils.options.detect import DetectOptions
from utils.options.distill import DistillOptions
from utils.options.export import ExportOptions
from utils.options.prune import PruneOptions
from utils.options.report import ReportOptions
from utils.options.sparse import SparseOptions
from utils.options.train import TrainOptions
from utils.options.val import ValOptions

KINDS: dict[str, type[Options]] = {
    "check.py": CheckOptions,
    "convert.py": ConvertOptions,
    "data.check": DataCheckOptions,
    "demo.py": DemoOptions,
    "detect.py": DetectOptions,
    "distill.py": DistillOptions,
    "export.py": ExportOptions,
    "models.check": CheckOptions,
    "prune.py": PruneOptions,
    "report.py": ReportOptions,
    "train.py": TrainOptions,
    "train_sparse.py": SparseOptions,
    "val.py": ValOptions,
}
MODULES = ("models.check", "data.check")
BASE = "--weights runs/train/exp/weights/best.pt --data demo"  # what pages call $B
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
TARGETS = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8")))


def commands_of(text: str) -> list[str]:
    """Return the commands in fenced blocks, lines continued by a backslash joined, and inline."""
    fences = re.findall(r"(?ms)^ *```(\w*)\n(.*?)^ *```", text)
    blocks = [block for language, block in fences if language in {"", "bash", "sh"}]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    inline = re.findall(r"`([^`]+)`", re.sub(r"(?ms)^ *```.*?^ *```", "", text))
    known = re.compile(r"(python (-m (models|data)\.check|[\w/]+\.py)|make|torchrun)( |$)")
    found = [" ".join(line.split("  #")[0].split()) for line in [*lines, *inline]]
    return [command for command in found if known.match(command)]


# a data YAML says how to convert its set, in a comment
CONFIGS = sorted((ROOT / "data" / "configs").glob("*.yaml"))
CONVERSIONS = [
    (file.name, line.removeprefix("# "))
    for file in CONFIGS
    for line in file.read_text(encoding="utf-8").splitlines()
    if line.startswith("# python ")
]
COMMANDS = [(page.name, c) for page in PAGES for c in commands_of(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(("page", "command"), COMMANDS + CONVERSIONS)
def test_a_command_of_a_page_is_right(page: str, command: str):
    words = shlex.split(command.replace("$B", BASE).replace("...", ""), comments=True)
    if words[0] == "make":
        assert all(word in TARGETS or "=" in word for word in words[1:]), command
        return
    place = next(i for i, w in enumerate(words) if w.endswith(".py") or w in MODULES)
    script, options = words[place], words[place + 1 :]
    if script.startswith("benchmarks/"):
        source = (ROOT / script).read_text(encoding="utf-8")
        flags = [w[2:].replace("-", "_") for w in options if w.startswith("--")]
        missing = [f for f in flags if f"{f}:" not in source and f'--{f}"' not in source]
        assert missing == [], command
        return
    shortened = "..." in command or "--help" in options or not options
    parsed = (
        parse_options(KINDS[script], [w for w in options if w != "--help"]) if options else None
    )
    if parsed is None or shortened:
        return
    if isinstance(parsed, PruneOptions) and parsed.resume:
        parsed.check_resume()
    else:
        parsed.check()


def test_commands_are_found_at_all():
    assert len(COMMANDS) > 40 and {"README.md", "custom_block.md"} <= {page for page, _ in COMMANDS}
    assert commands_of("```bash\npython a.py \\\n  --x 1  # why\n```\n`make demo` `make it`") == [
        "python a.py --x 1",
        "make demo",
        "make it",
    ]
