"""`export.py`: write a deployed model in other formats and verify every file."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from deploy.cpu import int8_note
from deploy.exporters import EXPORTERS, Exporter
from deploy.exporters.base import able
from deploy.libraries import require
from deploy.metadata import check_predictions
from deploy.quiet import quiet
from deploy.runtimes import Runtime, load_runtime
from deploy.settings import EndToEnd, ExportSettings
from deploy.staging import check_place, size_of, staged
from deploy.verify import (
    compare,
    model_widths,
    relative_difference,
    require_agreement,
    require_widths,
)
from models import Model, load_model
from recipes.int8 import check_int8, check_int8_data, int8_file
from recipes.photos import Photos, verification_photos
from utils.errors import UserError
from utils.images import whole_strides
from utils.log import LOGGER
from utils.options.base import changed_options
from utils.options.export import ExportOptions
from utils.timing import alternate, median_ms

PHOTOS = 8
SECONDS = 1.0  # of measuring a file


@dataclass(frozen=True)
class Exported:
    """A verified file.

    Attributes:
        name: Format.
        path: File or folder.
        size: Bytes.
        difference: Largest difference from the model's outputs, relative; 0 for the model itself.
        ms: Milliseconds an image.
    """

    name: str
    path: Path
    size: int
    difference: float
    ms: float

    def line(self) -> str:
        """Return the row of the table that export.py prints."""
        apart = f"{self.difference:.1e}" if self.difference else "-"
        return f"{self.name:<14}{self.size / 1e6:>8.1f}{apart:>12}{self.ms:>10.2f}  {self.path}"


HEADER = f"{'format':<14}{'MB':>8}{'difference':>12}{'ms/image':>10}  file"


def export(opt: ExportOptions) -> list[Exported]:
    """Export `opt.weights` in every format of `opt.include`.

    A format that fails leaves no file and does not keep the others from being written.

    Returns:
        The verified files.

    Raises:
        UserError: A format failed; its reason is logged.
    """
    opt.check()
    exporters: list[Exporter] = [EXPORTERS[name]() for name in dict.fromkeys(opt.include)]
    check_request(opt, exporters)
    model = load_model(opt.weights).fuse()
    settings = settings_of(opt, model)
    for exporter in exporters:
        exporter.check(settings)
    if opt.int8:
        check_int8_data(opt, model.nc, settings.imgsz)
        LOGGER.info(int8_note())
    photos = verification_photos(opt.data, opt.weights, settings.imgsz, max(PHOTOS, opt.batch_size))
    LOGGER.info(_what(opt, model, settings))
    LOGGER.info(HEADER)
    base = _Torch(model)
    ms = milliseconds(base, photos.images[: settings.batch])
    LOGGER.info(Exported("torch", Path(opt.weights), size_of(Path(opt.weights)), 0.0, ms).line())
    done: list[Exported] = []
    failed: dict[str, str] = {}
    for exporter in exporters:
        try:
            done.append(export_one(exporter, model, settings, photos, target_of(opt, exporter)))
            LOGGER.info(done[-1].line())
            if opt.int8:
                done.append(int8_of(opt, done[-1], photos))
        except UserError as error:
            failed[exporter.name] = str(error)
            LOGGER.error(f"{exporter.name:<14}failed: {error}")
    _conclude(done, failed, photos)
    return done


def check_request(opt: ExportOptions, exporters: list[Exporter]) -> None:
    """Refuse what can be seen to fail, or to have no effect, before the weights are read.

    Raises:
        UserError: A library is missing, a name is taken, or an option does nothing.
    """
    for exporter in exporters:
        for library in exporter.libraries:
            require(library, f"--include {exporter.name}")
        for target in targets_of(opt, exporter):
            check_place(target, exporter.makes_folder())
    if opt.int8:
        check_int8(opt)
    for name, flag in (("opset", "--opset"), ("simplify", "--no-simplify")):
        changed = changed_options(opt, among=(name,))
        if changed and not any(name in exporter.takes for exporter in exporters):
            raise UserError(
                f"{flag}: has no effect on {' and '.join(opt.include)}; {able(name)} take it"
            )


def settings_of(opt: ExportOptions, model: Model) -> ExportSettings:
    """Return the settings of an export; the size is rounded up to the stride, with a warning.

    Raises:
        UserError: `--max-det` is too large for the classes of the model.
    """
    if opt.end2end:
        check_predictions(opt.max_det, model.nc, "--max-det")
    sides = opt.imgsz or (model.imgsz,)
    height, width = (whole_strides(sides[i], model.max_stride) for i in (0, len(sides) - 1))
    return ExportSettings(
        imgsz=(height, width),
        batch=opt.batch_size,
        dynamic=opt.dynamic,
        half=opt.half,
        opset=opt.opset,
        simplify=opt.simplify,
        end2end=EndToEnd(opt.conf_thres, opt.iou_thres, opt.max_det) if opt.end2end else None,
    )


def target_of(opt: ExportOptions, exporter: Exporter) -> Path:
    """Return the file of a format: `best_fp16_end2end.onnx`, `best_openvino_model`."""
    kind = ("_fp16" if opt.half else "") + ("_end2end" if opt.end2end else "")
    return opt.folder / f"{Path(opt.weights).stem}{kind}{exporter.suffix}"


def targets_of(opt: ExportOptions, exporter: Exporter) -> list[Path]:
    """Return all files of a format that an export writes."""
    target = target_of(opt, exporter)
    return [target, int8_target(target, exporter.suffix)] if opt.int8 else [target]


def int8_target(source: Path, suffix: str) -> Path:
    """Return the INT8 form of a file, beside it: `best_int8.onnx` of `best.onnx`."""
    return source.with_name(f"{source.name.removesuffix(suffix)}_int8{suffix}")


def export_one(
    exporter: Exporter, model: Model, settings: ExportSettings, photos: Photos, target: Path
) -> Exported:
    """Write, verify and measure one file; only then the file takes its name.

    Args:
        exporter: Format.
        model: Deployed model.
        settings: Sizes, precision, NMS.
        photos: Images to verify on, of the settings' size.
        target: File or folder.

    Raises:
        UserError: The format cannot express the model, or the file is not the model.
    """
    with staged(target) as path, _under_its_name(path, target):
        with quiet():
            exporter.write(model, path, settings)
        runtime = load_runtime(path)
        require_widths(exporter.widths(path), model_widths(model, photos.images), target.name)
        worst = verify_outputs(runtime, model, photos.images, target.name)
        ms = milliseconds(runtime, photos.images[: settings.batch])
        size = size_of(path)
        del runtime  # some map the file
    return Exported(exporter.name, target, size, worst, ms)


def int8_of(opt: ExportOptions, source: Exported, photos: Photos) -> Exported:
    """Write and measure the INT8 form of a file beside it; log its row and what it costs."""
    target = int8_target(source.path, EXPORTERS[source.name].suffix)
    text = int8_file(opt, source.path, target, source.name)
    runtime = load_runtime(target)
    apart = relative_difference(
        runtime(photos.images).decoded, load_runtime(source.path)(photos.images).decoded
    )
    ms = milliseconds(runtime, photos.images[: runtime.batch])
    found = Exported(f"{source.name} int8", target, size_of(target), apart, ms)
    LOGGER.info(found.line())
    LOGGER.info(f"{source.name} int8: {text}")
    return found


@contextmanager
def _under_its_name(path: Path, target: Path) -> Iterator[None]:
    """Let errors name the file that was asked for, not the temporary one."""
    try:
        yield
    except UserError as error:
        raise type(error)(str(error).replace(str(path), str(target))) from error


def verify_outputs(runtime: Runtime, model: Model, images: Tensor, name: str) -> float:
    """Return the largest difference between a file and its model; refuse one that is too large.

    A dynamic file is compared at another size and number of images too: sizes that were traced as
    constants show there.
    """
    tried = [images]
    if runtime.dynamic:
        stride = runtime.max_stride
        height, width = images.shape[2] + stride, images.shape[3] + 2 * stride
        tried.append(torch.nn.functional.interpolate(images[:3], (height, width)))
    worst = 0.0
    for batch in tried:
        agreement = compare(runtime, model, batch)
        where = f"{name} at {batch.shape[2]}x{batch.shape[3]} px"
        require_agreement(agreement, runtime, where)
        worst = max(worst, agreement.difference)
    return worst


def milliseconds(model: Callable[[Tensor], object], images: Tensor) -> float:
    """Return the median time of a batch in milliseconds an image."""
    times = alternate({"file": lambda: model(images)}, seconds=SECONDS)
    return median_ms(times["file"]) / len(images)


class _Torch:
    """The deployed model as it stands in memory, without gradients."""

    def __init__(self, model: Model):
        self.model = model

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> object:
        return self.model(images)


def _what(opt: ExportOptions, model: Model, settings: ExportSettings) -> str:
    """Return the line on what is exported."""
    height, width = settings.imgsz
    sizes = "any size and batch" if settings.dynamic else f"batch {settings.batch}"
    return (
        f"Exporting {opt.weights}: {model.nc} classes, {height}x{width} px, {sizes},"
        f" {torch.get_num_threads()} threads"
    )


def _conclude(done: list[Exported], failed: dict[str, str], photos: Photos) -> None:
    """Log what the files were verified on; raise `UserError` where a format failed."""
    if done:
        LOGGER.info(
            f"Verified on {len(photos.images)} images {photos.source}: outputs, and the widths of"
            " all convolutions. val.py and detect.py take the files by --weights"
        )
    if failed:
        (name, reason), *others = failed.items()
        more = f" (and {', '.join(name for name, _ in others)}: see above)" if others else ""
        raise UserError(f"--include {name}: {reason}{more}")
