"""Runtimes by name, one file each, and the function that opens any file."""

import sys
from pathlib import Path

import torch

from deploy.runtimes.base import RUNTIMES, Runtime
from utils.errors import UserError
from utils.log import LOGGER
from utils.registry import import_files_of

import_files_of(sys.modules[__name__])

INNER_FILES = {".xml", ".bin", ".param"}
"""Ends of the files inside a folder of OpenVINO or ncnn, which stand for the folder."""


def load_runtime(
    path: Path | str,
    *,
    device: torch.device | str = "cpu",
    threads: int | None = None,
    imgsz: int | tuple[int, int] | None = None,
) -> Runtime:
    """Open a detector of any format, to be called as a model in eval mode.

    Args:
        path: `.pt`, `.torchscript`, `.onnx`, `*_openvino_model/` or `*_ncnn_model/`.
        device: Device to compute on; where a runtime has none but the CPU, images are moved there.
        threads: Threads of a call; None: as many as torch uses.
        imgsz: Side, or height and width, of the images in pixels; None or 0: the file's.

    Raises:
        UserError: The file is missing, damaged or no detector, or takes no such images.
    """
    path, device = Path(path), torch.device(device)
    kind = runtime_of(path)
    if kind.only_cpu and device.type != "cpu":
        LOGGER.warning(f"{path}: {kind.name} computes on the CPU here, not on {device}")
    runtime = kind.open(_whole(path), device, threads)
    runtime.set_imgsz(imgsz)
    return runtime


def runtime_of(path: Path) -> type[Runtime]:
    """Return the runtime class for a file, by the end of its name.

    Raises:
        UserError: No runtime takes such a file.
    """
    name = _whole(path).name
    for kind in (RUNTIMES[key] for key in RUNTIMES):
        if name.endswith(kind.suffix):
            return kind
    known = ", ".join(
        f"*{RUNTIMES[key].suffix}{'/' if RUNTIMES[key].suffix[0] == '_' else ''}"
        for key in RUNTIMES
    )
    raise UserError(f"{path}: no format that is known; {known} would be right")


def _whole(path: Path) -> Path:
    """Return the folder for a file inside an exported folder, else the path itself."""
    inside = path.suffix in INNER_FILES and path.parent.name.endswith("_model")
    return path.parent if inside else path


__all__ = ["RUNTIMES", "Runtime", "load_runtime", "runtime_of"]
