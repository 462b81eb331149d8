"""`prune.py --method pagcp`: losses on training images, progress, and a state for resuming."""

import hashlib
import json
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from models import Model
from prune_methods import Criterion, Masks, PagcpSettings, Plan, Prunable, Target, Watchers
from prune_methods.criteria.base import Array
from prune_methods.search.pagcp import TaskLosses, Visit
from prune_methods.search.plan import OnStep
from recipes.prune.context import PruneRun
from recipes.prune.gradients import calibration_loss
from utils.errors import UserError
from utils.files import write_atomic
from utils.images import unit_range
from utils.log import LOGGER
from utils.losses import DetectionLoss
from utils.options.prune import PruneOptions

TASKS = ("box", "obj", "cls")
STATE = "pagcp_state.json"
DECIDES = (
    "initial_rate",
    "initial_thres",
    "exp",
    "min_channels",
    "max_ratio",
    "round_to",
    "ignore",
)
"""Options that decide which cuts are tried; all others only decide when the search ends."""


def pagcp_plan(run: PruneRun, prunable: Prunable, criterion: Criterion, on_step: OnStep) -> Plan:
    """Search on the first `--calib-batches` batches of plain training images.

    The state of the search goes to the run folder, so that an interrupted search can go on.

    Args:
        run: options, images and folder of the run.
        prunable: the model and its channels; a unit is a group.
        criterion: ranks the channels within a unit.
        on_step: called after every step.

    Raises:
        UserError: where even the smallest cut of any unit raises a loss too much.
    """
    opt, model = run.opt, cast(Model, prunable.model)
    batches = list(islice(run.plain_loader, opt.calib_batches))
    loss = calibration_loss(model, opt)
    if not isinstance(loss, DetectionLoss):
        raise UserError(
            f"--method pagcp: needs the losses {', '.join(TASKS)}, the head"
            f" {type(model.head).__name__} has others; choose another method"
        )
    losses = CalibrationLosses(prunable, batches, loss)
    units = len(prunable.groups)
    LOGGER.info(
        f"{units} units, tried on {losses.images} training images; if stopped, go on with"
        f" --resume {run.folder}"
    )
    key = state_key(model, batches, loss, opt)
    remembered = Remembered(losses, run.folder / STATE, key)
    with Progress(units) as progress:
        plan = prunable.search_by_losses(
            criterion,
            remembered,
            Target(opt.speed_up),
            settings_of(opt),
            run.limits,
            Watchers(on_step, progress),
        )
    if not plan.steps:
        raise UserError(
            f"--initial-rate {opt.initial_rate:g}: the smallest cut of any unit raises a loss by"
            " more than that; allow more"
        )
    return plan


def settings_of(opt: PruneOptions) -> PagcpSettings:
    """Return the tolerances that the options state."""
    rate, threshold = opt.initial_rate, opt.initial_thres
    return PagcpSettings(rate, threshold, opt.topk, opt.exp, opt.pagcp_rounds)


class CalibrationLosses:
    """`TaskLosses` of the cut and deployed model: box, obj and cls, as means over the images.

    The losses of a batch are never negative. A pass therefore ends early, with None, as soon as the
    sum so far of any task is above its ceiling.
    """

    def __init__(self, prunable: Prunable, batches: Sequence[Any], loss: DetectionLoss):
        """Keep the images.

        Args:
            prunable: the model and its channels.
            batches: training images with targets.
            loss: loss of the finetune.
        """
        self.prunable, self.batches, self.loss = prunable, batches, loss
        self.images = sum(len(batch.images) for batch in batches)

    @torch.no_grad()
    def __call__(self, masks: Masks, ceilings: Array | None) -> Array | None:
        """See TaskLosses."""
        smaller = cast(Model, self.prunable.cut(masks)).fuse()
        device = next(smaller.parameters()).device
        most = None if ceilings is None else torch.from_numpy(ceilings * self.images).to(device)
        sums = torch.zeros(len(TASKS), dtype=torch.float64, device=device)
        for batch in self.batches:
            raw_maps = smaller(unit_range(batch.images.to(device))).raw
            parts = self.loss(raw_maps, batch.targets.to(device))[1]
            sums += torch.stack([parts[task] for task in TASKS]).double() * len(batch.images)
            # The comparison waits for the device, once a batch. NaN ends the pass too.
            if most is not None and not (sums <= most).all():
                return None
        return (sums / self.images).cpu().numpy()


class Remembered:
    """`TaskLosses` that keep every answer in a JSON file, so that each is computed only once.

    The search is deterministic: when an interrupted search is started again, it asks for the same
    losses, and quickly gets to where it stopped.
    """

    def __init__(self, losses: TaskLosses, path: Path, key: str):
        """Read the answers of an earlier search.

        Args:
            losses: computes the answers that are not known.
            path: the JSON file.
            key: digest of what the answers depend on; a file with another key is ignored.
        """
        self.losses, self.path, self.key = losses, path, key
        self.known: dict[str, list[float] | None] = self._read()

    def __call__(self, masks: Masks, ceilings: Array | None) -> Array | None:
        """See TaskLosses."""
        digest = hashlib.sha256(np.packbits(np.concatenate(list(masks.values()))).tobytes())
        digest.update(b"" if ceilings is None else ceilings.tobytes())
        question = digest.hexdigest()[:32]
        if question not in self.known:
            found = self.losses(masks, ceilings)
            self.known[question] = None if found is None else found.tolist()
            write_atomic(self.path, json.dumps({"key": self.key, "losses": self.known}, indent=0))
        answer = self.known[question]
        return None if answer is None else np.array(answer)

    def _read(self) -> dict[str, list[float] | None]:
        """Return the answers in the file; none where it is damaged or has another key."""
        if not self.path.exists():
            return {}
        try:
            state = json.loads(self.path.read_text(encoding="utf-8"))
            key, known = state["key"], state["losses"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            key, known = None, {}
        if key != self.key or not _are_answers(known):
            LOGGER.info(
                f"{self.path}: is of other weights, data or options, or damaged; the search begins"
                " anew"
            )
            return {}
        LOGGER.info(f"{self.path}: the search goes on, {len(known)} cuts were tried before")
        return known


def _are_answers(known: Any) -> bool:
    """Return whether stored answers are what `TaskLosses` gives: numbers by task, or None."""
    rows = known.values() if isinstance(known, dict) else [0]
    return all(
        row is None or (isinstance(row, list) and all(isinstance(loss, float) for loss in row))
        for row in rows
    )


def state_key(
    model: nn.Module, batches: Sequence[Any], loss: DetectionLoss, opt: PruneOptions
) -> str:
    """Return a digest of everything that the losses and the tried cuts depend on."""
    settings = (loss.hyp, loss.ota, [getattr(opt, name) for name in DECIDES])
    digest = hashlib.sha256(repr(settings).encode())
    data = (part for batch in batches for part in (batch.images, batch.targets))
    tensors = [*model.state_dict().values(), *data]
    for tensor in tensors:
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class Progress:
    """Show a bar a round with losses, speed-up and time left; log each unit that is cut."""

    def __init__(self, units: int):
        """Open the bar; `units` is the number of units in a round."""
        self.bar = tqdm(total=units, file=sys.stdout, leave=False, dynamic_ncols=True)
        self.round = 1

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def __call__(self, visit: Visit) -> None:
        """Show a unit that the search has visited."""
        if visit.round != self.round:
            self.round = visit.round
            self.bar.reset()
        losses = " ".join(
            f"{task} {value:.4f}" for task, value in zip(TASKS, visit.losses, strict=True)
        )
        if visit.after < visit.before:
            LOGGER.info(
                f"{visit.name}: {visit.before} -> {visit.after} channels, tolerance"
                f" {visit.tolerance:.2%}, {losses}, {visit.speed_up:.2f}x"
            )
        self.bar.set_description(f"Round {visit.round}", refresh=False)
        self.bar.set_postfix_str(f"{losses}, {visit.speed_up:.2f}x", refresh=False)
        self.bar.update()
