"""What some pruning methods need beside the weights: gradients on training images, or weights that
were trained sparse.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from data.loader import DetectionLoader
from models import Model
from models.checkpoint import load_checkpoint
from models.importer import is_official
from prune_methods import (
    ChannelGroup,
    Criterion,
    Evidence,
    GradientCriterion,
    Losses,
    Masks,
    gradient_evidence,
    zeroed,
)
from prune_methods.sparsity.estimate import SMALL
from prune_methods.surgery.recalibrate import recalibrate_bn
from utils.config import load_hyp
from utils.images import unit_range
from utils.log import LOGGER
from utils.losses import DetectionLoss, build_loss
from utils.options.base import changed_options
from utils.options.prune import PruneOptions

SPARSE_SHARE = 0.05  # of all channels; ordinary training leaves next to none


def measured(
    model: Model,
    groups: list[ChannelGroup],
    criterion: Criterion,
    loader: DetectionLoader,
    opt: PruneOptions,
) -> Callable[[Masks], Evidence] | None:
    """What `keep_masks` calls for the gradients of the model as masked, or None for a method that
    needs none.

    A masked model first gets batch norm statistics of its own, as the pruned one will: with the old
    ones its loss, and the gradients with it, would be those of a broken model.
    """
    if not isinstance(criterion, GradientCriterion):
        if idle := [
            name for name in changed_options(opt) if name in ("--recalib-every", "--calib-batches")
        ]:
            LOGGER.warning(f"{', '.join(idle)}: no effect, {opt.method} uses no gradients")
        return None
    losses = detection_losses(model, loader, opt)

    def measure(masks: Masks) -> Evidence:
        masked = zeroed(model, groups, masks)
        if not all(mask.all() for mask in masks.values()):
            recalibrate_bn(masked, loader, min(opt.calib_batches, opt.recalibrate_batches))
        unit = "image" if criterion.per_image else "batch"
        LOGGER.info(
            f"Gradients of {min(opt.calib_batches, len(loader))} training batches, one pass per"
            f" {unit}"
        )
        return gradient_evidence(masked, groups, criterion, losses)

    return measure


def detection_losses(model: Model, loader: DetectionLoader, opt: PruneOptions) -> Losses:
    """The detection loss of the first `--calib-batches` batches, a batch's multiplied by its size,
    as in training.
    """
    loss = calibration_loss(model, opt)

    def losses(measured: nn.Module, per_image: bool) -> Iterator[Tensor]:
        device = next(measured.parameters()).device
        for batch in islice(loader, opt.calib_batches):
            images, targets = unit_range(batch.images.to(device)), batch.targets.to(device)
            for part, labels in (
                single_images(images, targets) if per_image else [(images, targets)]
            ):
                yield loss(measured(part)[1], labels)[0]

    return losses


def calibration_loss(model: Model, opt: PruneOptions) -> DetectionLoss:
    """The loss of the finetune, for any cut of the model; without autobalance, which would move
    with every pass.
    """
    hyp = (
        load_hyp(opt.finetune_hyp)
        .scaled(model.head.nl, model.nc, opt.imgsz)
        .replace(autobalance=False)
    )
    return build_loss(model, hyp, opt.loss)


def single_images(images: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """A batch as batches of one: images (1, 3, H, W) and their targets, whose image number becomes
    0.
    """
    for number in range(len(images)):
        own = targets[targets[:, 0] == number].clone()
        own[:, 0] = 0
        yield images[number : number + 1], own


def warn_if_dense(model: Model, opt: PruneOptions) -> None:
    """One line where a method that presumes sparse training meets weights that had none, or less
    than others of the same run.

    Told by the options in the checkpoint (only train_sparse.py has `method` and `reg`), else by the
    batch norms: an imported checkpoint may be sparse.
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
    """One line where sparse training left a sparser checkpoint beside the given one, and its path:
    of those the fittest.

    The given one is pruned all the same: how much mAP the sparsity is worth is the user's choice.
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
    """Share of |gamma| < 0.01 over all batch norms, 0..1."""
    gammas = [
        m.weight.detach().abs().flatten()
        for m in model.modules()
        if isinstance(m, _BatchNorm) and m.affine
    ]
    return float((torch.cat(gammas) < SMALL).float().mean()) if gammas else 0.0
