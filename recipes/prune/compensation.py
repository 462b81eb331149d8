"""Make up for the removed channels: try what applies, keep what a held-out loss finds best."""

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from distill.base import LOGIT_LOSSES, LogitSetup
from models import Model
from prune_methods import Masks, Prunable
from prune_methods.surgery.recalibrate import recalibrate_bn, renew_bn
from prune_methods.surgery.reconstruct import LayerFit, Reconstruction
from prune_methods.surgery.repair import RepairSettings, map_distance
from recipes.prune.calibration import CalibrationSets, UnjudgedBatches, held_out_loss
from recipes.prune.context import PruneRun
from utils.config import load_hyp
from utils.images import unit_range
from utils.log import LOGGER

AfterStep = Callable[[str, Model], None]
"""Called with the name of a compensation and the model after it."""

AS_CUT = "after the cut"
FOLDED = "after folding constants"
RECALIBRATED = "after BN recalibration"
RECONSTRUCTED = "after reconstruction"
REPAIRED = "after repair"
FRESH_BASE = "base, BN recalibrated"
CLEAR = 0.02  # share of the loss by which fresh statistics must be better to be mentioned
MOST_PASSES = 15  # over the training images, in a repair


@dataclass(frozen=True)
class Candidate:
    """A compensated model, and its mean loss on training images that nothing was fitted to."""

    stage: str
    model: Model
    loss: float


class Compensator:
    """Compensates cuts of one model as the options of the run ask for."""

    def __init__(self, run: PruneRun, prunable: Prunable):
        self.run, self.prunable, self.opt = run, prunable, run.opt
        self.fits: tuple[LayerFit, ...] = ()
        """Of the last reconstruction."""

    @cached_property
    def sets(self) -> CalibrationSets:
        """Images to fit on and images to judge by, read once."""
        return CalibrationSets.of(self.run, cast(Model, self.prunable.model))

    def __call__(self, masks: Masks, smaller: Model, after: AfterStep | None = None) -> Candidate:
        """Return the best model of those that `--compensate` allows.

        Args:
            masks: channels that were kept.
            smaller: the model cut by the masks; it does not change.
            after: called after each compensation that was tried, the cut itself first.
        """
        best = self._judged(AS_CUT, smaller, after)
        forced = self.opt.compensate != "auto"
        for found in self._attempts(masks, smaller):
            tried = self._judged(*found, after)
            best = tried if forced or tried.loss < best.loss else best
        return best

    def check_base(self, after: AfterStep) -> None:
        """Give the uncut model fresh statistics too; call `after` where its loss falls by them.

        After a short training the running statistics lag behind the weights. A cut that is
        recalibrated would then seem to gain.
        """
        if self.opt.compensate not in ("auto", "recalibrate"):
            return
        base = cast(Model, self.prunable.model)
        fresh = copy.deepcopy(base)
        recalibrate_bn(fresh, self.batches, self.opt.recalibrate_batches)
        before, now = (held_out_loss(model, self.sets.judge) for model in (base, fresh))
        if now < (1 - CLEAR) * before:
            LOGGER.warning(
                f"the statistics of the uncut model lag behind its weights: loss {before:.3f},"
                f" {now:.3f} with fresh ones; compare the cut with the row '{FRESH_BASE}'"
            )
            after(FRESH_BASE, fresh)

    def repaired(self, masks: Masks, found: Candidate, after: AfterStep | None = None) -> Candidate:
        """Return the better one of a compensated model and its repair."""
        if not self.opt.repairs:
            return found
        model = copy.deepcopy(found.model)
        steps = min(self.opt.repair_steps, MOST_PASSES * len(self.run.plain_loader))
        settings = RepairSettings(steps)
        device = next(model.parameters()).device
        images = UnitImages(self.batches, device)
        self.prunable.repair(masks, model, images, self.output_loss, settings)
        renew_bn(model, self.sets.fit.part(slice(None), device))
        repaired = self._judged(REPAIRED, model, after)
        return repaired if repaired.loss < found.loss else found

    def _judged(self, stage: str, model: Model, after: AfterStep | None) -> Candidate:
        """Measure the held-out loss of a model."""
        found = Candidate(stage, model, held_out_loss(model, self.sets.judge))
        LOGGER.info(f"{stage}: loss {found.loss:.3f} on {len(self.sets.judge)} held-out images")
        if after:
            after(stage, model)
        return found

    def _attempts(self, masks: Masks, smaller: Model) -> Iterator[tuple[str, Model]]:
        """Yield the name and the model of each compensation that applies."""
        wanted, start = self.opt.compensate, smaller
        if wanted in ("auto", "fold"):
            folded = copy.deepcopy(smaller)
            if self._fold(masks, folded):
                start = folded
                yield FOLDED, folded
        if wanted in ("auto", "recalibrate"):
            fresh = copy.deepcopy(start)
            if recalibrate_bn(fresh, self.batches, self.opt.recalibrate_batches):
                yield RECALIBRATED, fresh
        if wanted in ("auto", "reconstruct"):
            fitted = copy.deepcopy(start)
            found = self.prunable.reconstruct(masks, fitted, self.sets.fit, progress=True)
            self.fits = found.fits
            report(found)
            yield RECONSTRUCTED, fitted

    def _fold(self, masks: Masks, smaller: Model) -> int:
        """Fold the constants of removed channels; return the number of reads that were folded."""
        result = self.prunable.fold_constants(masks, smaller)
        LOGGER.info(
            f"{result.folded} reads of removed channels folded as constants, {result.left} are not"
            " constant"
        )
        return result.folded

    @cached_property
    def batches(self) -> UnjudgedBatches:
        """Training images without augmentation, but for those that judge."""
        return UnjudgedBatches(self.run.plain_loader, self.sets.judged)

    @cached_property
    def output_loss(self) -> Callable[..., Tensor]:
        """The distance of raw outputs: AlignSoftTarget, with the gains of the finetune's hyp.

        A head without anchors has maps of a form of its own; they are compared as they are.
        """
        model, opt = cast(Model, self.prunable.model), self.opt
        if getattr(model.head, "anchors", None) is None:
            return lambda ours, theirs: map_distance(list(zip(ours.raw, theirs.raw, strict=True)))
        hyp = load_hyp(opt.finetune_hyp).scaled(model.head.nl, model.nc, opt.imgsz)
        loss = LOGIT_LOSSES["ast"](LogitSetup.of(model.head, hyp))
        return lambda ours, theirs: loss(ours.raw, theirs.raw)


@dataclass(frozen=True)
class UnitImages:
    """The images of batches in 0..1, (N, 3, H, W), on a device; each walk is an epoch."""

    batches: Iterable[Any]
    device: torch.device

    def __iter__(self) -> Iterator[Tensor]:
        for batch in self.batches:
            yield unit_range(batch.images.to(self.device))


def report(found: Reconstruction) -> None:
    """Log how far a reconstruction got."""
    if not found.fits:
        return
    before = sum(fit.before for fit in found.fits) / len(found.fits)
    after = sum(fit.after for fit in found.fits) / len(found.fits)
    LOGGER.info(
        f"{len(found.fits)} layers fitted to the uncut model's outputs: {before:.1%} of their"
        f" variance was lost by the cut, {after:.1%} after it (mean of the layers)"
    )
    for name, reason in found.left.items():
        LOGGER.info(f"{name}: weights left as cut, {reason}")
