"""Inputs that some methods need beside weights: gradients or outputs on images, sparse training."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from data.loader import DetectionLoader
from models import Model
from models.checkpoint import load_checkpoint
from models.importer import is_official
from prune_methods import (
    ActivationCriterion,
    ChannelIndex,
    Criterion,
    Evidence,
    EvidenceSource,
    GateCriterion,
    GradientCriterion,
    Losses,
    Masks,
    Prunable,
    activation_evidence,
    gate_evidence,
    gradient_evidence,
)
from prune_methods.sparsity.penalties import SMALL
from prune_methods.surgery.recalibrate import recalibrate_bn
from recipes.prune.context import PruneRun
from utils.config import load_hyp
from utils.images import unit_range
from utils.log import LOGGER
from utils.losses import build_loss
from utils.options.base import changed_options
from utils.options.prune import PruneOptions

SPARSE_SHARE = 0.05  # of all channels are small after sparse training; next to none without it


def evidence_source(
    run: PruneRun, prunable: Prunable, criterion: Criterion
) -> EvidenceSource | None:
    """Return the source of gradients or outputs of the masked model.

    None for a criterion that looks at weights alone.
    """
    if isinstance(criterion, GradientCriterion):
        model = cast(Model, prunable.model)
        losses = detection_losses(model, run.plain_loader, run.opt)
        unit = "image" if criterion.per_image else "batch"
        what = f"Gradients of {{}} training batches, one pass per {unit}"

        def gather(index: ChannelIndex) -> Evidence:
            return gradient_evidence(index, criterion, losses)

    elif isinstance(criterion, GateCriterion):
        losses = detection_losses(cast(Model, prunable.model), run.plain_loader, run.opt)
        what = "Gradients of {} training batches, one pass per image"

        def gather(index: ChannelIndex) -> Evidence:
            return gate_evidence(index, criterion, losses)

    elif isinstance(criterion, ActivationCriterion):
        what = "Outputs on {} training batches"

        def gather(index: ChannelIndex) -> Evidence:
            return activation_evidence(index, criterion, calibration_images(index.model, run))

    else:
        warn_of_idle_calibration(run.opt)
        return None

    def collect(masks: Masks) -> Evidence:
        index = prunable.index.of(masked_model(run, prunable, masks))
        LOGGER.info(what.format(min(run.opt.calib_batches, len(run.plain_loader))))
        return gather(index)

    return EvidenceSource(collect, run.opt.recalib_every)


def masked_model(run: PruneRun, prunable: Prunable, masks: Masks) -> nn.Module:
    """Return a copy whose masked channels are zero and whose batch norm statistics are fresh.

    The pruned model will have fresh statistics too; with the old ones, loss, gradients and outputs
    would be those of a broken model. Where nothing is masked, the statistics do not change.
    """
    masked = prunable.zero_channels(masks)
    if not all(mask.all() for mask in masks.values()):
        batches = min(run.opt.calib_batches, run.opt.recalibrate_batches)
        recalibrate_bn(masked, run.plain_loader, batches)
    return masked


def warn_of_idle_calibration(opt: PruneOptions) -> None:
    """Warn of options that a method without data does not read."""
    given = changed_options(opt)
    idle = [name for name in given if name in ("--recalib-every", "--calib-batches")]
    if idle:
        LOGGER.warning(f"{', '.join(idle)}: no effect, {opt.method} uses no gradients")


def calibration_images(model: nn.Module, run: PruneRun) -> Iterator[Tensor]:
    """Yield the images of the first `--calib-batches` batches, in 0..1, on the model's device."""
    device = next(model.parameters()).device
    for batch in islice(run.plain_loader, run.opt.calib_batches):
        yield unit_range(batch.images.to(device))


def detection_losses(model: Model, loader: DetectionLoader, opt: PruneOptions) -> Losses:
    """Return a function that yields the detection losses of the first `--calib-batches` batches.

    The loss of a batch is multiplied by its size, as in training.
    """
    loss = calibration_loss(model, opt)

    def losses(measured: nn.Module, per_image: bool) -> Iterator[Tensor]:
        device = next(measured.parameters()).device
        for batch in islice(loader, opt.calib_batches):
            images, targets = unit_range(batch.images.to(device)), batch.targets.to(device)
            parts = single_images(images, targets) if per_image else [(images, targets)]
            for part, labels in parts:
                yield loss(measured(part).raw, labels)[0]

    return losses


def calibration_loss(model: Model, opt: PruneOptions) -> nn.Module:
    """Return the loss of the finetune, for any cut of the model.

    Autobalance is off, because its weights would change with every pass.
    """
    hyp = load_hyp(opt.finetune_hyp).scaled(model.head.nl, model.nc, opt.imgsz)
    hyp = hyp.replace(autobalance=False)
    return build_loss(model, hyp, opt.loss)


def single_images(images: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Split a batch into batches of one: images (1, 3, H, W) and targets of image number 0."""
    for number in range(len(images)):
        own = targets[targets[:, 0] == number].clone()
        own[:, 0] = 0
        yield images[number : number + 1], own


def warn_if_dense(model: Model, opt: PruneOptions) -> None:
    """Warn where the method presumes sparse training and the weights had none.

    Sparse training shows in the options in the checkpoint (only those of train_sparse.py have
    `method` and `reg`), or in the batch norms, as an imported checkpoint may be sparse too.
    Otherwise a sparser checkpoint of the same run is suggested, where there is one.
    """
    args: dict[str, Any] = (
        {} if is_official(Path(opt.weights)) else load_checkpoint(opt.weights).get("args", {})
    )
    share = sparse_share(model)
    if not {"method", "reg"} <= set(args) and share < SPARSE_SHARE:
        LOGGER.warning(
            f"{opt.weights}: was not sparse-trained ({share:.0%} of the batch norm scales are below"
            f" {SMALL:g}), which {opt.method} presumes; do this first: python train_sparse.py"
            f" --weights {opt.weights} --data {opt.data} --method {opt.method}"
        )
    else:
        suggest_sparser(model, opt.weights)


def suggest_sparser(model: Model, weights: str) -> str | None:
    """Log the fittest of the sparser checkpoints beside the given one, and return its path.

    The given checkpoint is pruned all the same: how much mAP the sparsity is worth is the user's
    choice. None where sparse training left no sparser checkpoint.
    """
    share = sparse_share(model)
    files = {
        decile: Path(weights).with_name(f"sparse_{decile}.pt")
        for decile in range(10, 101, 10)
        if decile > 100 * share
    }
    fitness = {
        decile: float(load_checkpoint(file)["best_fitness"])
        for decile, file in files.items()
        if file.is_file()
    }
    if not fitness:
        return None
    decile = max(fitness, key=lambda found: (fitness[found], found))
    path = str(files[decile])
    LOGGER.info(
        f"{weights}: {share:.0%} of the batch norm scales are below {SMALL:g}; pruning a sparser"
        f" one may cost less: --weights {path} (at least {decile}%, fitness {fitness[decile]:.3f})"
    )
    return path


def sparse_share(model: nn.Module) -> float:
    """Return the share of |gamma| < 0.01 over all batch norms, 0..1."""
    gammas = [
        m.weight.detach().abs().flatten()
        for m in model.modules()
        if isinstance(m, _BatchNorm) and m.affine
    ]
    return float((torch.cat(gammas) < SMALL).float().mean()) if gammas else 0.0
