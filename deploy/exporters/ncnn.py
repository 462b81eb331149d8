"""ncnn: a folder for phones and small boards, made by pnnx from a trace."""

import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from deploy.blame import rows_to_blame
from deploy.exporters.base import EXPORTERS, Exporter, Widths
from deploy.graph import DeployGraph
from deploy.libraries import require
from deploy.metadata_file import write_metadata
from deploy.quiet import quiet
from deploy.runtimes.ncnn import PARAM, WEIGHTS
from deploy.settings import ExportSettings
from models import Model
from utils.errors import UserError

LIMIT_SECONDS = 600
TRACE = "trace.pt"
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
        try:
            _convert(DeployGraph(model).eval(), [images], path, settings.half)
        except UserError as error:
            rows = rows_to_blame(model, images, lambda row, maps: _convert(row, maps, path, False))
            raise UserError(f"{error}{rows}") from None
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


def _convert(graph: nn.Module, maps: list[Tensor], folder: Path, half: bool) -> None:
    """Trace a module and convert the trace by pnnx, in a folder.

    Args:
        graph: Module to convert.
        maps: Its inputs.
        folder: Place of the files.
        half: Whether to store float16 weights.

    Raises:
        UserError: pnnx fails, or ncnn lacks an operator.
    """
    (folder / PARAM).unlink(missing_ok=True)
    with quiet(), torch.no_grad():
        traced = torch.jit.trace(graph, tuple(maps), check_trace=False)
        torch.jit.save(traced, str(folder / TRACE))
    shapes = ",".join(str(list(one.shape)).replace(" ", "") for one in maps)
    words = [f"inputshape={shapes}", f"fp16={int(half)}"]
    names = [f"ncnnparam={PARAM}", f"ncnnbin={WEIGHTS}"]
    done = subprocess.run(
        [str(require("pnnx", "--include ncnn").EXEC_PATH), TRACE, *words, *names],
        cwd=folder,
        capture_output=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    if done.returncode or not (folder / PARAM).is_file():
        raise UserError(f"ncnn: pnnx {_ending(done.returncode)} on this model")
    if require("ncnn", "--include ncnn").Net().load_param(str(folder / PARAM)):
        raise UserError("ncnn lacks an operator that this model needs")


def _ending(code: int) -> str:
    """Return how a program ended, in words."""
    return f"was ended by signal {-code}" if code < 0 else f"fails with code {code}"
