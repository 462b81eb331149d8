"""ncnn: a folder for phones and small boards, made by pnnx from a trace."""

import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch

from deploy.exporters.base import EXPORTERS, Exporter, Widths
from deploy.graph import DeployGraph
from deploy.libraries import require
from deploy.metadata_file import write_metadata
from deploy.runtimes.ncnn import PARAM, WEIGHTS
from deploy.settings import ExportSettings
from models import Model
from utils.errors import UserError

LIMIT_SECONDS = 600
CONVOLUTIONS = {"Convolution", "ConvolutionDepthWise", "Deconvolution", "DeconvolutionDepthWise"}
OUTPUTS, WEIGHTS_KEY = "0", "6"


@EXPORTERS.register("ncnn")
class NcnnExporter(Exporter):
    """A network of ncnn for one size and one image a call; `half` stores float16 weights."""

    name, suffix = "ncnn", "_ncnn_model"
    libraries = ("ncnn", "pnnx")
    takes = frozenset({"half"})

    def write(self, model: Model, path: Path, settings: ExportSettings) -> None:
        """See Exporter."""
        path.mkdir()
        images = torch.zeros(1, 3, *settings.imgsz)
        with torch.no_grad():
            traced = torch.jit.trace(DeployGraph(model).eval(), images, check_trace=False)
            torch.jit.save(traced, str(path / "trace.pt"))
        _convert(path, settings)
        for file in path.iterdir():
            if file.name not in (PARAM, WEIGHTS):
                file.unlink()
        write_metadata(replace(settings.metadata(model), batch=1), path)

    def widths(self, path: Path) -> Widths:
        """See Exporter."""
        found: Widths = Counter()
        for line in (path / PARAM).read_text().splitlines():
            kind, *words = line.split() or [""]
            if kind in CONVOLUTIONS:
                values = dict(word.split("=", 1) for word in words if "=" in word)
                outputs = int(values[OUTPUTS])
                found[outputs, int(values[WEIGHTS_KEY]) // outputs] += 1
        return found


def _convert(folder: Path, settings: ExportSettings) -> None:
    """Run pnnx on the trace in a folder.

    Raises:
        UserError: pnnx fails, or knows an operator of the model only by name.
    """
    program = require("pnnx", "--include ncnn").EXEC_PATH
    height, width = settings.imgsz
    words = [f"inputshape=[1,3,{height},{width}]", f"fp16={int(settings.half)}"]
    names = [f"ncnnparam={PARAM}", f"ncnnbin={WEIGHTS}"]
    done = subprocess.run(
        [str(program), "trace.pt", *words, *names],
        cwd=folder,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=LIMIT_SECONDS,
        check=False,
    )
    lines = (done.stdout + done.stderr).splitlines()
    if done.returncode or not (folder / PARAM).is_file():
        reason = next((line for line in reversed(lines) if line.strip()), "no message")
        raise UserError(f"pnnx cannot convert the model (code {done.returncode}): {reason[:200]}")
    if require("ncnn", "--include ncnn").Net().load_param(str(folder / PARAM)):
        raise UserError(
            "ncnn lacks an operator that the model needs (its own line above names the layer);"
            " onnx and openvino have them all"
        )
