"""Create run folders (`runs/train/exp`, `exp2`, ...) and record how a run was made."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from utils.config import ROOT, save_yaml
from utils.errors import UserError
from utils.files import refusal
from utils.options.base import command_line, recorded

RECORDED_PACKAGES = (
    "torch",
    "torchvision",
    "torch-pruning",
    "numpy",
    "opencv-python-headless",
    "opencv-python",
)


def make_run_dir(project: Path | str, name: str, exist_ok: bool = False) -> Path:
    """Create a run folder and return its path; no two processes get the same folder.

    Args:
        project: Folder of the runs.
        name: Name of the run; `name2`, `name3`, ... where the folder exists already.
        exist_ok: Take `project/name` also where it exists.

    Raises:
        UserError: Where the folder cannot be created.
    """
    number = 1
    while True:
        folder = Path(project) / (name if number == 1 else f"{name}{number}")
        try:
            folder.mkdir(parents=True, exist_ok=exist_ok)
            return folder
        except FileExistsError:
            if exist_ok:
                raise UserError(
                    f"{folder}: is a file; --project and --name must give a folder"
                ) from None
            number += 1
        except OSError as error:
            raise UserError(
                f"{folder}: cannot be created: {refusal(error)}; --project names the folder of the"
                " runs"
            ) from None


def latest_checkpoint(project: Path | str) -> Path:
    """Return the latest `last.pt` below a folder of runs.

    Raises:
        UserError: Where there is none.
    """
    found = sorted(Path(project).rglob("weights/last.pt"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UserError(
            f"--resume: no weights/last.pt below {project}; give its path: --resume"
            " runs/train/exp/weights/last.pt"
        )
    return found[-1]


def environment(device: torch.device) -> dict[str, Any]:
    """Return what decides a result beside the options: versions, commit, device, threads."""
    return {
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "packages": {name: found for name in RECORDED_PACKAGES if (found := _version(name))},
        "device": str(device),
        "threads": torch.get_num_threads(),
    }


def git_commit() -> str | None:
    """Return the commit of this checkout, with `-dirty` where files differ; None without git."""
    words = ["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    command = ["git", "-C", str(ROOT), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def save_options(options: Any, path: Path, **more: Any) -> None:
    """Write `opt.yaml`: the options, the command to paste again, and `more`."""
    save_yaml({**recorded(options), "command": command_line(), **more}, path)


def _version(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
