"""Measure models in each runtime, in float32 and INT8, and print the table of docs/deploy.md.

    python benchmarks/deploy.py base.pt pruned.pt --labels base 2x --data bccd.yaml --imgsz 320

Every file is exported and verified as export.py does it. The files of a runtime take turns in a
process of their own, so that a drifting machine hits all alike and no runtime's threads disturb
another's. Ratios are to the first model in float32 in the same runtime at the same batch.
"""

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data.config import load_data  # noqa: E402
from data.loader import validation_loader  # noqa: E402
from deploy import RUNTIMES, load_runtime  # noqa: E402
from deploy.cpu import cpu_facts, int8_note  # noqa: E402
from deploy.exporters import EXPORTERS  # noqa: E402
from deploy.int8 import QUANTIZERS  # noqa: E402
from recipes.export import export  # noqa: E402
from utils.cli import run_script  # noqa: E402
from utils.errors import UserError  # noqa: E402
from utils.evaluator import evaluate  # noqa: E402
from utils.files import write_atomic  # noqa: E402
from utils.log import LOGGER  # noqa: E402
from utils.options.base import option  # noqa: E402
from utils.options.export import ExportOptions  # noqa: E402
from utils.tables import markdown_table  # noqa: E402
from utils.timing import alternate, median_ms  # noqa: E402

MEASURED = "measured.json"


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    weights: tuple[str, ...] = option((), "checkpoints; the first is the base", positional=True)
    labels: tuple[str, ...] = option((), "names of the models", multi=True)
    data: str = option("demo", "data YAML: calibration (train) and mAP (val)")
    imgsz: int = option(320, "image size", least=32)
    batch: tuple[int, ...] = option((1, 32), "images of a call", multi=True)
    runtimes: tuple[str, ...] = option(
        ("torch", "onnxruntime", "openvino"), "runtimes to measure", multi=True
    )
    int8: bool = option(True, "INT8 too, of all models but the base")
    calib_images: int = option(128, "training images of the calibration", least=1)
    seconds: float = option(30.0, "time to measure a runtime at a batch", above=0)
    threads: int = option(2, "threads of every runtime", least=1)
    folder: str = option("runs/deploy", "place of the files")
    measure: str = option("", "measure the files of a list; the benchmark calls itself so")


@dataclass(frozen=True)
class File:
    """A file to measure."""

    label: str
    runtime: str
    batch: int
    path: str


def files_of(opt: Options) -> list[File]:
    """Export every model for every runtime and batch; return the files."""
    found: list[File] = []
    labels = opt.labels or tuple(Path(path).stem for path in opt.weights)
    if len(labels) != len(opt.weights):
        raise UserError(f"--labels: {len(labels)} for {len(opt.weights)} models")
    formats = {RUNTIMES[name].suffix: name for name in opt.runtimes}
    for number, (label, weights) in enumerate(zip(labels, opt.weights, strict=True)):
        for batch in opt.batch:
            for name in EXPORTERS:
                runtime = formats.get(EXPORTERS[name].suffix)
                if runtime is None:
                    continue
                small = opt.int8 and number > 0 and name in QUANTIZERS
                exported = export(
                    ExportOptions(
                        weights=weights,
                        include=(name,),
                        imgsz=(opt.imgsz,),
                        batch_size=batch,
                        data=opt.data,
                        int8=small,
                        calib_images=opt.calib_images if small else ExportOptions.calib_images,
                        output_dir=str(Path(opt.folder) / f"{label}-batch{batch}"),
                    )
                )
                names = [label, f"{label} INT8"]
                found += [
                    File(title, runtime, batch, str(one.path))
                    for title, one in zip(names, exported, strict=False)
                ]
            if "torch" in opt.runtimes:
                found.append(File(label, "torch", batch, weights))
    return found


def measure(opt: Options) -> None:
    """Let the files of a list take turns; write the milliseconds an image of each."""
    listing = Path(opt.measure)
    files = [File(**item) for item in json.loads(listing.read_text())]
    torch.set_num_threads(opt.threads)
    work = {}
    for file in files:
        runtime = load_runtime(file.path, threads=opt.threads)
        images = torch.rand(file.batch, 3, opt.imgsz, opt.imgsz)
        work[file.path] = lambda runtime=runtime, images=images: runtime(images)
    times = alternate(work, seconds=opt.seconds, warm=True)
    found = {file.path: median_ms(times[file.path]) / file.batch for file in files}
    write_atomic(listing.with_name(MEASURED), json.dumps(found))


def milliseconds(files: list[File], opt: Options) -> dict[File, float]:
    """Return the milliseconds an image of each file; a process for each runtime and batch."""
    found: dict[File, float] = {}
    folder = Path(opt.folder)
    for runtime in opt.runtimes:
        for batch in opt.batch:
            mine = [file for file in files if (file.runtime, file.batch) == (runtime, batch)]
            listing = folder / "files.json"
            write_atomic(listing, json.dumps([asdict(file) for file in mine]))
            words = [*opt.weights, "--measure", str(listing), "--imgsz", str(opt.imgsz)]
            words += ["--seconds", str(opt.seconds), "--threads", str(opt.threads)]
            LOGGER.info(f"{runtime}, batch {batch}: {len(mine)} files in turn")
            subprocess.run([sys.executable, __file__, *words], check=True)
            times = json.loads((folder / MEASURED).read_text())
            found |= {file: times[file.path] for file in mine}
    return found


def accuracies(files: list[File], opt: Options) -> dict[tuple[str, str], float]:
    """Return the mAP50-95 of each file of the largest batch, by label and runtime."""
    data = load_data(opt.data)
    found = {}
    for file in files:
        if file.batch != max(opt.batch):
            continue
        runtime = load_runtime(file.path, imgsz=opt.imgsz, threads=opt.threads)
        loader = validation_loader(
            data, rect=False, imgsz=opt.imgsz, batch_size=file.batch, stride=runtime.max_stride
        )
        found[file.label, file.runtime] = float(evaluate(runtime, loader, names=data.names).map)
    return found


def table(files: list[File], opt: Options) -> str:
    """Return the table: a row for each model and precision, a column for each runtime and batch."""
    times, maps = milliseconds(files, opt), accuracies(files, opt)
    labels = list(dict.fromkeys(file.label for file in files))
    columns = [(runtime, batch) for runtime in opt.runtimes for batch in opt.batch]
    by_place = {(file.label, file.runtime, file.batch): times[file] for file in files}
    rows = [["Model", *(f"{name}, batch {batch}" for name, batch in columns), "mAP50-95"]]
    for label in labels:
        cells = [label]
        for name, batch in columns:
            ms, base = by_place.get((label, name, batch)), by_place[labels[0], name, batch]
            cells.append("-" if ms is None else f"{ms:.2f} ms ({base / ms:.2f}x)")
        figures = dict.fromkeys(
            f"{maps[label, name]:.3f}" for name in opt.runtimes if (label, name) in maps
        )
        rows.append([*cells, " / ".join(figures)])
    return markdown_table(rows)


def main(opt: Options) -> None:
    """Export, measure, print the table."""
    if opt.measure:
        measure(opt)
        return
    torch.set_num_threads(opt.threads)
    text = table(files_of(opt), opt)
    head = f"{cpu_facts()['name']}, {opt.threads} threads, {opt.imgsz} px, {opt.data}"
    LOGGER.info(f"\n{text}\n\n{head}. {int8_note()}")
    write_atomic(Path(opt.folder) / "table.md", f"{text}\n\n{head}.\n")


if __name__ == "__main__":
    run_script(Options, main, __doc__)
