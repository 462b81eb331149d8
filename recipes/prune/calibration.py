"""Images that a cut is compensated with, and others that judge the result."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data.dataset import Batch
from data.loader import DetectionLoader
from models import Model
from prune_methods.surgery.calibration import Calibration
from prune_methods.surgery.reconstruct import FEW_IMAGES
from recipes.prune.context import PruneRun
from recipes.prune.gradients import calibration_loss
from utils.engine.modes import evaluating
from utils.images import unit_range
from utils.log import LOGGER

HELD_OUT = 0.25  # share of the images that judge where the training set is small
MOST_HELD_OUT = 128
PASS_PIXELS = 16 * 320**2  # of a pass with gradients: 4 images of 640 px


@dataclass(frozen=True)
class CalibrationSets:
    """Training images without augmentation, in two parts that share none.

    Attributes:
        fit: to fit weights and statistics on.
        judge: to compare compensations by.
        judged: files of the second part, which no compensation may see.
    """

    fit: Calibration
    judge: Calibration
    judged: frozenset[str] = frozenset()

    @classmethod
    def of(cls, run: PruneRun, model: Model) -> "CalibrationSets":
        """Read the images of a run; warn where they are few."""
        total = len(run.plain_loader.dataset)  # type: ignore[arg-type]
        judging = max(min(MOST_HELD_OUT, int(HELD_OUT * total)), 1)
        fitting = min(run.opt.reconstruct_images, max(total - judging, 1))
        if fitting < FEW_IMAGES and run.opt.compensate in ("auto", "reconstruct"):
            LOGGER.warning(
                f"compensation: {fitting} images to fit weights on; {FEW_IMAGES} or more would"
                " keep more accuracy (--reconstruct-images, or a larger training set)"
            )
        images, targets, files = read_images(run, fitting + judging)
        loss = calibration_loss(model, run.opt)
        parts = (slice(0, fitting), slice(fitting, fitting + judging))
        fit, judge = (_calibration(images, targets, part, loss, run) for part in parts)
        judged = files[fitting:] if len(files) > fitting else []
        return cls(fit, judge, frozenset(judged) - frozenset(files[:fitting]))


@dataclass(frozen=True)
class UnjudgedBatches:
    """The batches of a loader without the images that judge; each walk is an epoch.

    A set of one image has no other to fit on, so that nothing is left out of it.
    """

    loader: DetectionLoader
    judged: frozenset[str]

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.loader:
            kept = [number for number, file in enumerate(batch.files) if file not in self.judged]
            if kept:
                yield batch._replace(images=batch.images[kept])


def read_images(run: PruneRun, number: int) -> tuple[Tensor, Tensor, list[str]]:
    """Return the first training images, uint8 (N, 3, H, W), their targets (M, 6) and files."""
    images, targets, files, seen = [], [], [], 0
    for batch in run.plain_loader:
        labels = batch.targets.clone()
        labels[:, 0] += seen
        images.append(batch.images)
        files += batch.files
        targets.append(labels)
        seen += len(batch.images)
        if seen >= number:
            break
    return torch.cat(images)[:number], torch.cat(targets), files[:number]


def _calibration(
    images: Tensor, targets: Tensor, part: slice, loss: nn.Module, run: PruneRun
) -> Calibration:
    """Return a part of the images with a loss of their own labels."""
    own = images[part] if len(images) > part.start else images
    labels = _renumbered(targets, part)

    def loss_of(model: nn.Module, which: slice) -> Tensor:
        device = next(model.parameters()).device
        found = model(unit_range(own[which].to(device)))
        return loss(found.raw, _renumbered(labels, which).to(device))[0]

    return Calibration(own, loss_of, _batch(run))


def _batch(run: PruneRun) -> int:
    """Return the images of a pass: fewer than in training where they are large, to save memory."""
    affordable = PASS_PIXELS // run.opt.imgsz**2
    return max(min(run.opt.batch_size, affordable), 1)


def _renumbered(targets: Tensor, part: slice) -> Tensor:
    """Return the targets of some images, the first of which becomes number 0."""
    number = targets[:, 0]
    chosen = targets[(number >= part.start) & (number < part.stop)].clone()
    chosen[:, 0] -= part.start
    return chosen


@torch.no_grad()
def held_out_loss(model: Model, judge: Calibration) -> float:
    """Return the mean detection loss of an image; infinite where the loss is not a number."""
    with evaluating(model):
        total = sum(float(judge.loss(model, which)) for which in judge.slices())
    return math.inf if math.isnan(total) else total / len(judge)
