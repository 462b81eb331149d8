"""Make the table of docs/structures.md: count, train, prune to 2x, time and export every structure.

    python benchmarks/structures.py
    python benchmarks/structures.py --only yolov7-tiny-dcn-afpn --imgsz 64 --latency-seconds 1

A row that was measured before is not measured again: the results of a row are a file of
`--project`, written when the row is done. Delete the file to measure the row anew.
"""

import importlib
import importlib.util
import json
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import nn

from benchmarks.published import NC, PUBLISHED, count_as_published
from benchmarks.runner import Run, execute
from models import Model, build_model, load_model, save_model
from prune_methods import PRUNERS, Prunable, Skipped, Target
from prune_methods.groups.inexact import inexact_blocks
from utils.cli import run_script
from utils.config import resolve
from utils.errors import UserError
from utils.files import write_atomic
from utils.log import LOGGER
from utils.options.base import option
from utils.profiling import count_parameters
from utils.timing import alternate, median_ms

OPSET = 17


@dataclass(frozen=True)
class StructureOptions:
    """Options of the benchmark."""

    only: tuple[str, ...] = option(
        (), "rows to measure: names of YAMLs; all where none is named", multi=True
    )
    project: str = option("runs/structures", "folder of the results")
    imgsz: int = option(640, "image size in pixels for the latency and the export", least=32)
    train_imgsz: int = option(128, "image size in pixels of the epoch of training", least=32)
    train: bool = option(True, "train an epoch on the demo set")
    speed_up: float = option(2.0, "MACs of the deployed model, before over after")
    batch: int = option(32, "images of a batch when time is measured", least=1)
    latency_seconds: float = option(20.0, "time spent on measuring a row; 0: do not")
    threads: int = option(2, "threads of the measurements", least=1)
    table: str = option(
        "docs/structures.md", "page that the table goes into, between its two markers"
    )


@dataclass(frozen=True)
class Measured:
    """A row of the table.

    Latencies are in ms a batch; `seconds` is the time of pruning. `trained` is `ok` or says where
    to look; `onnx` is the largest difference, or says why there is none.
    """

    name: str
    parameters: int
    gflops: float
    deployed_parameters: int
    deployed_gflops: float
    trained: str
    speed_up: float
    parameters_left: float
    seconds: float
    skipped: dict[str, list[str]]
    inexact: list[str]
    before_ms: float
    after_ms: float
    onnx: str
    conditions: str


def main(opt: StructureOptions) -> None:
    """Measure the missing rows, then write the table of all rows that are measured."""
    if unknown := [name for name in opt.only if name not in PUBLISHED]:
        raise UserError(
            f"--only {' '.join(unknown)}: no such row; there are {', '.join(PUBLISHED)}"
        )
    torch.set_num_threads(opt.threads)
    project = Path(opt.project)
    for name in PUBLISHED:
        file = project / f"{name}.json"
        if file.is_file() or name not in (opt.only or PUBLISHED):
            continue
        LOGGER.info(f"{name} ...")
        row = measure(name, opt, project)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, json.dumps(asdict(row), indent=1) + "\n")
    write_table(project, Path(opt.table))


def measure(name: str, opt: StructureOptions, project: Path) -> Measured:
    """Measure one row, from its YAML to its exported pruned model."""
    torch.manual_seed(0)
    line, trained, weights = count_as_published(name), "not tried", None
    if opt.train:
        trained, weights = train_an_epoch(name, opt, project)
    model = load_model(weights) if weights else build_model(name, nc=NC)
    start = time.perf_counter()
    smaller, skipped, reached = pruned(model, opt.speed_up)
    seconds = time.perf_counter() - start
    info = build_model(name, nc=NC).info()
    before, after = latencies(model, smaller, opt)
    save_model(smaller, project / f"{name}.pt")
    reasons: dict[str, list[str]] = {}
    for item in skipped:
        reasons.setdefault(item.reason, []).append(item.layer)
    return Measured(
        name=name,
        parameters=line.parameters,
        gflops=line.gflops,
        deployed_parameters=int(info["deployed_parameters"]),
        deployed_gflops=info["gflops_fused"],
        trained=trained,
        speed_up=reached,
        parameters_left=count_parameters(smaller.fuse()) / count_parameters(model.fuse()),
        seconds=seconds,
        skipped=reasons,
        inexact=sorted(set(inexact_blocks(model).values())),
        before_ms=before,
        after_ms=after,
        onnx=export_parity(
            load_model(project / f"{name}.pt").fuse(), project / f"{name}.onnx", opt.imgsz
        ),
        conditions=(
            f"{opt.imgsz} px, batch {opt.batch}, {opt.threads} threads, torch {torch.__version__}"
        ),
    )


def train_an_epoch(name: str, opt: StructureOptions, project: Path) -> tuple[str, Path | None]:
    """Train one epoch of the demo set by train.py.

    Returns:
        `ok` or where to look, and the trained weights, None where the training failed.
    """
    sizes = f"--epochs 1 --imgsz {opt.train_imgsz} --batch-size 16"
    words = (
        f"train.py --cfg {resolve(name, 'model')} --data demo --hyp demo {sizes} --name"
        f" {name}-train --exist-ok"
    )
    run = Run(f"{name}-train", (*words.split(), "--project", str(project.resolve())), 1, 1)
    if execute(project, [run], 1):
        return f"failed, see {project / run.name}", None
    weights = project / run.name / "weights" / "best.pt"
    return "ok", weights


def pruned(model: Model, speed_up: float) -> tuple[Model, list[Skipped], float]:
    """The model cut by LAMP and verified, the layers that stay whole, and the speed-up."""
    criterion = PRUNERS["lamp"]()
    prunable = Prunable.of(model).for_criterion(criterion)
    plan = prunable.search(criterion, Target(speed_up))
    smaller: Any = prunable.prune(plan)
    return smaller, list(prunable.skipped), plan.speed_up


def latencies(model: Model, smaller: Model, opt: StructureOptions) -> tuple[float, float]:
    """Return the median ms of a batch, before and after, in turns; zeros where not measured."""
    if not opt.latency_seconds:
        return 0.0, 0.0
    x = torch.rand(opt.batch, 3, opt.imgsz, opt.imgsz).contiguous(memory_format=torch.channels_last)
    forms = {"before": model.fuse(), "after": smaller.fuse()}
    with torch.inference_mode():
        times = alternate(
            {name: lambda net=net: net(x) for name, net in forms.items()},
            seconds=opt.latency_seconds,
        )
    return median_ms(times["before"]), median_ms(times["after"])


def export_parity(model: nn.Module, path: Path, imgsz: int) -> str:
    """Export a deployed model to ONNX and compare the outputs with those of ONNX Runtime.

    Returns:
        The largest difference as a share of the largest output, as `1.2e-06`; or why there is none.
    """
    missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        return f"not tried: {' and '.join(missing)} not installed"
    # The package is optional; imported by name, type checkers do not look for it.
    onnxruntime = importlib.import_module("onnxruntime")
    x = torch.rand(1, 3, imgsz, imgsz, generator=torch.Generator().manual_seed(0))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(model, (x,), str(path), dynamo=False, opset_version=OPSET)
    except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
        return f"no: {str(error).splitlines()[0][:120]}"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    theirs = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        boxes, maps = model(x)
    shares = []
    for ours, found in zip([boxes, *maps], theirs, strict=True):
        difference = (ours - torch.from_numpy(found)).abs().max()
        shares.append(float(difference / ours.abs().max()))
    return f"{max(shares):.1e}"


HEAD = (
    "YAML", "published", "counted so", "deployed", "1 epoch", "LAMP", "parameters left", "seconds",
    "ms before", "after", "ONNX"
)  # fmt: skip
MARKERS = ("<!-- structures: begin -->", "<!-- structures: end -->")


def table(rows: Sequence[Measured]) -> str:
    """Return Markdown: the table, the conditions, and the layers that stay whole in each row."""
    lines = [f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD)]
    for row in rows:
        line = PUBLISHED[row.name]
        ratio = row.before_ms / row.after_ms if row.after_ms else 0.0
        timed = (
            (f"{row.before_ms:.0f}", f"{row.after_ms:.0f} ({ratio:.2f}x)") if ratio else ("-", "-")
        )
        cells = (
            row.name,
            f"{line.parameters:,} / {line.gflops:g}",
            f"{row.parameters:,} / {row.gflops:.2f}",
            f"{row.deployed_parameters:,} / {row.deployed_gflops:.2f}",
            row.trained,
            f"{row.speed_up:.3f}x",
            f"{100 * row.parameters_left:.0f} %",
            f"{row.seconds:.0f}",
            *timed,
            row.onnx,
        )
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"Measured at {'; '.join(sorted({row.conditions for row in rows}))}.",
        "",
        "What stays whole, and why:",
        "",
    ]
    for row in rows:
        parts = [f"{reason} ({_layers(layers)})" for reason, layers in row.skipped.items()]
        exceptions = f" Cut without full proof: {'; '.join(row.inexact)}." if row.inexact else ""
        lines.append(f"- **{row.name}**: {'; '.join(parts) or 'nothing'}.{exceptions}")
    return "\n".join(lines)


def _layers(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} layers, as {names[0]}"


def write_table(project: Path, page: Path) -> None:
    """Print the table of all measured rows and put it between the markers of a page.

    Raises:
        UserError: The page has no markers.
    """
    files = [project / f"{name}.json" for name in PUBLISHED]
    rows = [
        Measured(**json.loads(file.read_text(encoding="utf-8"))) for file in files if file.is_file()
    ]
    text = table(rows)
    LOGGER.info(text)
    begin, end = MARKERS
    content = (
        page.read_text(encoding="utf-8")
        if page.is_file()
        else f"# Custom structures\n\n{begin}\n{end}\n"
    )
    if begin not in content or end not in content:
        raise UserError(f"{page}: has no lines {begin} and {end}, between which the table goes")
    before, after = content.split(begin)[0], content.split(end)[1]
    write_atomic(page, f"{before}{begin}\n{text}\n{end}{after}")


if __name__ == "__main__":
    run_script(StructureOptions, main, __doc__)
