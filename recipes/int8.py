"""`export.py --int8`: calibrate on training images, validate, keep costly layers in float."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from tqdm import tqdm

from data.config import DataConfig, load_data
from data.loader import DetectionLoader, validation_loader
from deploy.int8 import QUANTIZERS, Quantizer
from deploy.int8.base import Calibration, Images, matching
from deploy.int8.search import Accuracy, Found, costs_of_rows, float_outputs, search
from deploy.libraries import require
from deploy.runtimes import Runtime, load_runtime
from deploy.staging import staged
from recipes.photos import letterboxed
from utils.errors import UserError
from utils.evaluator import evaluate
from utils.log import LOGGER
from utils.options.export import ExportOptions

COST_IMAGES = 8
"""Training images on which the cost of each row is measured."""


def check_int8(opt: ExportOptions) -> None:
    """Refuse formats, methods and missing libraries before anything is written.

    Raises:
        UserError: Names the option.
    """
    for name in opt.include:
        if name not in QUANTIZERS:
            raise UserError(f"--int8: not for {name}; {' and '.join(QUANTIZERS.names())} can")
        kind: type[Quantizer] = QUANTIZERS[name]
        if opt.calib_method not in kind.methods:
            raise UserError(
                f"--calib-method {opt.calib_method}: {name} measures ranges by its library's own"
                f" method; {', '.join(kind.methods)} would be right"
            )
        for library in kind.libraries:
            require(library, f"--int8 --include {name}")


def check_int8_data(opt: ExportOptions, nc: int, imgsz: tuple[int, int]) -> None:
    """Refuse data and sizes that INT8 cannot be measured on, before anything is written.

    Args:
        opt: Options of export.py.
        nc: Number of classes of the model.
        imgsz: Height and width of the exported file in pixels.

    Raises:
        UserError: The classes differ, a split is missing, or the size is no square.
    """
    height, width = imgsz
    if height != width:
        raise UserError(
            f"--int8 --imgsz {height} {width}: its mAP is measured on squares; give one side"
        )
    data = load_data(opt.data)
    if data.nc != nc:
        raise UserError(
            f"--int8 --data {opt.data}: has {data.nc} classes, {opt.weights} has {nc}:"
            " calibrate on the data that the model was trained with"
        )
    for split in ("train", "val"):
        data.images(split)


def int8_file(opt: ExportOptions, source: Path, target: Path, name: str) -> str:
    """Write the INT8 form of an exported file.

    Args:
        opt: Options of export.py.
        source: float32 file.
        target: File or folder of the result.
        name: Format.

    Returns:
        What INT8 costs in mAP50-95 and which layers stayed in float, in one line.

    Raises:
        UserError: A layer to keep is unknown, or `--max-drop` cannot be met.
    """
    data = load_data(opt.data)
    baseline = load_runtime(source)
    facts = replace(baseline.metadata, precision="int8")
    calibration = Calibration(
        _images(data, opt, baseline.imgsz),
        opt.calib_images,
        opt.calib_method,
        baseline.batch or 1,
    )
    quantizer: Quantizer = QUANTIZERS[name](source, calibration, facts)
    keep = frozenset(matching(quantizer.layers, opt.keep_float))
    accuracy = _accuracy(data, opt, baseline)
    before = accuracy(baseline)
    needed = -1.0 if opt.max_drop is None else before - opt.max_drop
    photos = letterboxed(data.images("train"), baseline.imgsz, COST_IMAGES)

    with TemporaryDirectory(prefix="int8-") as folder:

        def ranked() -> list[str]:
            wanted = float_outputs(baseline, photos)
            return costs_of_rows(quantizer, Path(folder), photos, wanted, keep)

        found = search(quantizer, Path(folder), accuracy, needed, ranked, keep)
    if found.accuracy < needed:
        raise UserError(
            f"--max-drop {opt.max_drop}: not met by {name} even with all rows in float:"
            f" mAP50-95 {before:.4f} -> {found.accuracy:.4f}; no file is left"
        )
    with staged(target) as path:
        quantizer.write(path, found.kept)
    return _summary(before, found, quantizer, keep)


def _images(data: DataConfig, opt: ExportOptions, size: tuple[int, int]) -> Images:
    """Return the source of calibration images: training images drawn by the seed."""
    files = data.images("train")
    order = np.random.default_rng(opt.seed).permutation(len(files))
    chosen = [files[i] for i in order]

    def images(count: int) -> Iterator[np.ndarray]:
        some = chosen[:count]
        if len(some) < count:
            LOGGER.warning(f"--calib-images {count}: the training set has {len(some)} images")
        for file in tqdm(some, desc="INT8: calibration", leave=False, dynamic_ncols=True):
            try:
                yield letterboxed([file], size, 1).numpy()
            except UserError:
                LOGGER.warning(f"{file}: cannot be read; left out of the calibration")

    return images


def _accuracy(data: DataConfig, opt: ExportOptions, baseline: Runtime) -> Accuracy:
    """Return the function that validates a file on the validation images, all alike."""
    loader: DetectionLoader = validation_loader(
        data,
        rect=False,
        imgsz=baseline.imgsz[0],
        batch_size=baseline.batch or 16,
        workers=0,
        stride=baseline.max_stride,
    )
    return lambda runtime: float(evaluate(runtime, loader, names=data.names).map)


def _summary(before: float, found: Found, quantizer: Quantizer, keep: frozenset[str]) -> str:
    """Return the line on the cost in accuracy and on the layers in float."""
    kept = [layer for layer in quantizer.layers if layer in found.kept]
    text = (
        f"mAP50-95 {before:.4f} -> {found.accuracy:.4f} ({found.accuracy - before:+.4f}) on the"
        f" validation images; {len(quantizer.layers) - len(kept)} of {len(quantizer.layers)} layers"
        " in INT8, predictions and decoding in float"
    )
    if found.rows:
        text += f"; most costly, kept in float: {', '.join(found.rows)}"
    if keep:
        text += f"; by --keep-float: {', '.join(sorted(keep))}"
    return text
