"""What is installed is pinned and safe enough, and nothing of ours talks to a network."""

import ast
import re
import subprocess
import sys

from packaging.requirements import Requirement
from packaging.version import Version

from tests.conftest import ROOT
from tests.test_house import our_files

NETWORK = {"socket", "ssl", "http", "ftplib", "smtplib", "urllib.request", "xmlrpc", "requests"}
NETWORK |= {"httpx", "aiohttp", "huggingface_hub", "torch.hub", "websockets"}
ALLOWED = {
    "utils/run_lock.py": {"socket"},  # the name of this machine
    # downloads where a YAML row asks for it: `pretrained: True`
    "models/blocks/timm_backbone.py": {"socket", "urllib.request", "huggingface_hub"},
}
FLOORS = {"torch": "2.10", "torchvision": "0.25", "Pillow": "11.3", "tqdm": "4.66.3"}

WATCH = """
import importlib, pkgutil, sys, tempfile
seen = []
def watch(event, arguments):
    if event in {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request"}:
        seen.append((event, arguments))
sys.addaudithook(watch)
import data, deploy, distill, models, prune_methods, recipes, utils
for package in (data, deploy, distill, models, prune_methods, recipes, utils):
    for info in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not info.name.endswith("__main__"):
            importlib.import_module(info.name)
scripts = ("train", "val", "prune", "distill", "train_sparse", "report", "check", "demo", "export")
for script in scripts:
    importlib.import_module(script)
from models import build_model, load_model, save_model
with tempfile.TemporaryDirectory() as folder:
    save_model(build_model("yolov5n"), folder + "/x.pt")
    load_model(folder + "/x.pt")
assert not seen, seen
print("quiet")
"""


def imports(source: str) -> set[str]:
    """Return the modules that a source imports, with all their parents."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found | {name.split(".")[0] for name in found}


def requirements(file: str) -> dict[str, Requirement]:
    lines = (ROOT / file).read_text().splitlines()
    plain = [line.split("#")[0].strip() for line in lines if not line.startswith(("-", "#"))]
    found = [Requirement(line) for line in plain if line]
    return {item.name: item for item in found}


def test_no_module_imports_what_opens_connections() -> None:
    assert imports("from torch import hub\nimport urllib.request") & NETWORK == {
        "torch.hub",
        "urllib.request",
    }
    odd = {
        name: used
        for name, path in our_files().items()
        if (used := (imports(path.read_text()) & NETWORK) - ALLOWED.get(name, set()))
    }
    assert odd == {}


def test_nothing_opens_a_connection() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WATCH], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "quiet", done.stderr[-2000:]


def test_floors_exclude_versions_with_known_holes() -> None:
    found = requirements("requirements.txt")
    for name, floor in FLOORS.items():
        lower = [Version(s.version) for s in found[name].specifier if s.operator == ">="]
        assert lower and lower[0] >= Version(floor), name


def test_the_lock_pins_every_requirement_with_a_hash() -> None:
    text = (ROOT / "requirements.lock").read_text()
    entries = re.findall(r"^([a-z0-9-]+)==(\S+) \\\n    --hash=sha256:[0-9a-f]{64}$", text, re.M)
    pinned = dict(entries)
    assert len(entries) == len(pinned) == text.count("==") == text.count("--hash=")
    wanted = requirements("requirements.txt") | requirements("requirements-dev.txt")
    wanted |= requirements("requirements-export.txt")
    for name, item in wanted.items():
        version = pinned[re.sub(r"[-_.]+", "-", name).lower()]
        assert item.specifier.contains(version), f"{name} {version}"
