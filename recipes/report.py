"""`report.py`: measure several runs side by side and compare them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch

from data.config import DataConfig, load_data
from data.loader import validation_loader
from models import Model, load_model
from recipes.prepare import class_names
from utils.comparison import ComparisonRow, Conditions, markdown, plot, write
from utils.config import load_yaml, resolve
from utils.engine.device import device_name, select_device
from utils.errors import UserError, brief
from utils.evaluator import evaluate, warn_of_settings
from utils.log import LOGGER
from utils.options.meta import MOST_PIXELS
from utils.options.report import ReportOptions
from utils.run_lock import run_lock
from utils.rundir import make_run_dir
from utils.timing import alternate, median_ms


@dataclass(frozen=True)
class Candidate:
    """A model of the comparison.

    Args:
        name: Name of its row.
        weights: Checkpoint.
        data: Data YAML that the model was trained with.
        imgsz: Image size in pixels that the model was trained with.
    """

    name: str
    weights: Path
    data: str
    imgsz: int


def report(opt: ReportOptions) -> Path:
    """Measure every run of `opt.runs` on its validation set; print and write the table and a plot.

    Returns:
        The folder of the report.

    Raises:
        UserError: A run has no model or does not say its data and image size, or the runs used
            different data.
    """
    device = select_device(opt.device)
    candidates = [
        found for run in opt.runs for found in find_candidates(Path(run), opt.data, opt.imgsz)
    ]
    candidates = rename(candidates, opt.labels)
    data = {candidate.data for candidate in candidates}
    if len({_data_file(name) for name in data}) > 1:
        raise UserError(
            f"the runs used different data ({', '.join(sorted(data))}): compare like with like, or"
            " name one with --data"
        )
    half = opt.half and device.type != "cpu"
    if opt.half and not half:
        LOGGER.warning("--half has no effect on the CPU: computing in float32")
    rows, images = measure_candidates(candidates, opt, device, half)
    conditions = Conditions(
        data=candidates[0].data,
        images=images,
        batch=opt.batch_size,
        device=device_name(device),
        precision="fp16" if half else "fp32",
        threads=torch.get_num_threads(),
    )
    folder = make_run_dir(opt.project, opt.name, opt.exist_ok)
    with run_lock(folder):
        write(rows, conditions, folder)
        plot(rows, folder / "accuracy.png")
    LOGGER.info("\n" + markdown(rows, conditions))
    LOGGER.info(f"Results saved to {folder} (report.md, report.csv, report.json, accuracy.png)")
    return folder


def _data_file(name: str) -> Path | str:
    """Return the file behind the name of a data set, however it is written; else the name."""
    try:
        return resolve(name, "data").resolve()
    except UserError:
        return name


def find_candidates(run: Path, data: str = "", imgsz: int = 0) -> list[Candidate]:
    """Return the models that one argument of report.py names.

    Args:
        run: A checkpoint, the folder of a training run, or the folder of a pruning run, which has
            two models: after the cut, and finetuned.
        data: Data YAML in place of the one in the run's `opt.yaml`; empty: the latter.
        imgsz: Image size in pixels in place of the one in `opt.yaml`; 0: the latter.

    Raises:
        UserError: There is no model, or nothing says which data and image size it used.
    """
    if run.suffix == ".pt" and run.is_file():
        folder = run.parent.parent if run.parent.name == "weights" else run.parent
        found = [(f"{folder.name}/{run.stem}", run)]
    elif (run / "weights" / "pruned.pt").is_file():
        folder, found = run, [(f"{run.name}, after the cut", run / "weights" / "pruned.pt")]
        finetuned = run / "finetune" / "weights" / "best.pt"
        if finetuned.is_file():
            found.append((f"{run.name}, finetuned", finetuned))
    elif (run / "weights" / "best.pt").is_file():
        folder, found = run, [(run.name, run / "weights" / "best.pt")]
    else:
        raise UserError(f"{run}: neither a checkpoint nor a run folder with weights/best.pt")
    options = folder / "opt.yaml"
    trained = load_yaml(options) if options.is_file() else {}
    stored = trained.get("imgsz") or 0
    if type(stored) is not int or not 0 <= stored <= MOST_PIXELS:
        raise UserError(f"{options}: imgsz: {brief(stored)} is no image size; give --imgsz")
    data = data or str(trained.get("data") or "")
    imgsz = imgsz or stored
    if not data or not imgsz:
        raise UserError(
            f"{run}: no opt.yaml says which data and image size it used; give --data and --imgsz"
        )
    return [Candidate(name, weights, data, imgsz) for name, weights in found]


def rename(candidates: list[Candidate], labels: tuple[str, ...]) -> list[Candidate]:
    """Return the candidates under the user's names, or under their own names made unique.

    A name that several candidates have is followed by the folder that holds the run.

    Raises:
        UserError: The number of labels is not that of the candidates.
    """
    own = [candidate.name for candidate in candidates]
    if labels and len(labels) != len(candidates):
        raise UserError(
            f"--labels: {len(labels)} given for {len(candidates)} models ({', '.join(own)})"
        )
    projects = [candidate.weights.parent.parent.parent.name for candidate in candidates]
    unique = [
        name if own.count(name) == 1 else f"{name} ({project})"
        for name, project in zip(own, projects, strict=True)
    ]
    return [
        replace(candidate, name=name)
        for candidate, name in zip(candidates, labels or unique, strict=True)
    ]


def measure_candidates(
    candidates: list[Candidate], opt: ReportOptions, device: torch.device, half: bool = False
) -> tuple[list[ComparisonRow], int]:
    """Measure accuracy model by model, and the latency of all models in turn.

    Args:
        candidates: Models to compare; all have the same data.
        opt: Batch size, data workers and seconds of report.py.
        device: Device to measure on.
        half: Whether to compute in fp16.

    Returns:
        A row for each candidate, and the number of validation images.
    """
    data = load_data(candidates[0].data)
    found, work = [], {}
    for number, candidate in enumerate(candidates):
        model = load_model(candidate.weights)
        info, at_size = model.info(640), model.info(candidate.imgsz)
        deployed = model.fuse().to(device)
        single = trained_as_one_class(model, data, candidate)
        loader = validation_loader(
            data,
            imgsz=candidate.imgsz,
            batch_size=opt.batch_size,
            workers=opt.workers,
            worker_timeout=opt.worker_timeout,
            stride=model.max_stride,
            single_cls=single,
        )
        note = ", all classes as one" if single else ""
        LOGGER.info(f"{candidate.name}: validating {candidate.weights}{note}")
        names = class_names(data.names, single)
        warn_of_settings(loader.dataset.labels, opt.max_det)
        settings = {"single_cls": single, "half": half, "max_det": opt.max_det}
        result = evaluate(deployed, loader, names=names, **settings)
        found.append((candidate, info, at_size, result))
        work[str(number)] = forward_of(deployed, candidate.imgsz, opt.batch_size, half, device)
    LOGGER.info(f"Measuring latency of {len(work)} models in turn for {opt.seconds:g} s")
    times = alternate(work, seconds=opt.seconds, device=device, warm=True)
    rows = [
        ComparisonRow(
            name=candidate.name,
            parameters=info["fused_parameters"],
            deployed_parameters=info["deployed_parameters"],
            gflops_640=info["gflops_fused"],
            gflops=at_size["gflops_fused"],
            size_mb=candidate.weights.stat().st_size / 1e6,
            map50=float(result.map50),
            map=float(result.map),
            latency_ms=median_ms(times[str(number)]) / opt.batch_size,
            imgsz=candidate.imgsz,
            weights=str(candidate.weights),
        )
        for number, (candidate, info, at_size, result) in enumerate(found)
    ]
    return rows, found[0][3].seen


def trained_as_one_class(model: Model, data: DataConfig, candidate: Candidate) -> bool:
    """Return whether a model was trained with `--single-cls`.

    Raises:
        UserError: The number of classes is neither 1 nor the data's.
    """
    if model.nc not in {1, data.nc}:
        raise UserError(
            f"{candidate.weights}: has {model.nc} classes, {candidate.data} has {data.nc}: the"
            " figures would mean nothing; compare models of the same classes, or name their data"
            " with --data"
        )
    return model.nc < data.nc


@lru_cache(maxsize=4)
def random_images(batch: int, imgsz: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return a batch of random images in 0..1, the same tensor for all models of a comparison.

    With a tensor for each model, fifty models would read a gigabyte of images in turn.
    """
    images = torch.rand(batch, 3, imgsz, imgsz, device=device, dtype=dtype)
    return images.contiguous(memory_format=torch.channels_last)


def forward_of(
    model: torch.nn.Module, imgsz: int, batch: int, half: bool, device: torch.device
) -> Callable[[], None]:
    """Return a function that runs one batch of images through a deployed model.

    Args:
        model: Deployed model on its device; converted to fp16 or float32 in place.
        imgsz: Side of the square images in pixels.
        batch: Number of images.
        half: Whether to compute in fp16.
        device: Device of the images.
    """
    model = model.half() if half else model.float()
    images = random_images(batch, imgsz, next(model.parameters()).dtype, device)

    @torch.inference_mode()
    def run() -> None:
        model(images)

    return run
