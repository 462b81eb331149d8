"""`prune.py --method pagcp`: losses on training images for the search, its progress, and a state
that it can go on from.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from data.loader import DetectionLoader
from models import Model
from prune_methods import ChannelGroup, Criterion, Limits, Masks, Plan, Step, apply
from prune_methods.criteria.base import Array
from prune_methods.search.pagcp import TaskLosses, Visit, search_masks
from prune_methods.search.pagcp_rules import PagcpSettings
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
"""Options that decide which cuts are tried.

The images and the loss are compared as they are; the rest only says when to end.
"""


def pagcp_plan(
    model: Model,
    groups: list[ChannelGroup],
    criterion: Criterion,
    loader: DetectionLoader,
    limits: Limits,
    imgsz: int,
    on_step: Callable[[Step, Masks], None],
    opt: PruneOptions,
    folder: Path,
) -> Plan:
    """The search on the first `--calib-batches` batches of `loader`; its state goes to `folder`.

    `imgsz` is where MACs count.

    `UserError` where no unit bears the smallest cut.
    """
    batches = list(islice(loader, opt.calib_batches))
    loss = calibration_loss(model, opt)
    losses = CalibrationLosses(model, groups, batches, loss)
    LOGGER.info(
        f"{len(groups)} units, tried on {losses.images} training images; if stopped, go on with"
        f" --resume {folder}"
    )
    remembered = Remembered(losses, folder / STATE, state_key(model, batches, loss, opt))
    settings = PagcpSettings(
        opt.initial_rate, opt.initial_thres, opt.topk, opt.exp, opt.pagcp_rounds
    )
    with Progress(len(groups)) as progress:
        plan = search_masks(
            model,
            groups,
            criterion,
            remembered,
            opt.speed_up,
            settings=settings,
            limits=limits,
            imgsz=imgsz,
            on_step=on_step,
            on_unit=progress,
        )
    if not plan.steps:
        raise UserError(
            f"--initial-rate {opt.initial_rate:g}: the smallest cut of any unit raises a loss by"
            " more than that; allow more"
        )
    return plan


class CalibrationLosses:
    """`TaskLosses` of the cut and folded model in eval mode: box, obj and cls, mean over the images
    of the batches.

    The losses of a batch are not negative, so their sum so far tells early that a task will end
    above its ceiling.
    """

    def __init__(
        self,
        model: Model,
        groups: Sequence[ChannelGroup],
        batches: Sequence[Any],
        loss: DetectionLoss,
    ):
        self.model, self.groups, self.batches, self.loss = model, groups, batches, loss
        self.images = sum(len(batch.images) for batch in batches)

    @torch.no_grad()
    def __call__(self, masks: Masks, ceilings: Array | None) -> Array | None:
        """See TaskLosses."""
        smaller = cast(Model, apply(self.model, self.groups, masks)).fuse()
        device = next(smaller.parameters()).device
        most = None if ceilings is None else torch.from_numpy(ceilings * self.images).to(device)
        sums = torch.zeros(len(TASKS), dtype=torch.float64, device=device)
        for batch in self.batches:
            raw_maps = smaller(unit_range(batch.images.to(device)))[1]
            parts = self.loss(raw_maps, batch.targets.to(device))[1]
            sums += torch.stack([parts[task] for task in TASKS]).double() * len(batch.images)
            if (
                most is not None and not (sums <= most).all()
            ):  # the one wait for the device, once a batch; NaN ends it too
                return None
        return (sums / self.images).cpu().numpy()


class Remembered:
    """Losses that are asked for once only: every answer is written to a JSON file, which a later
    run of the same key reads.

    The search is deterministic, so one that was interrupted asks the same again and goes on where
    it was.
    """

    def __init__(self, losses: TaskLosses, path: Path, key: str):
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
        if not self.path.exists():
            return {}
        try:
            state = json.loads(self.path.read_text(encoding="utf-8"))
            key, known = state["key"], state["losses"]
        except (ValueError, KeyError, TypeError):
            key, known = None, {}
        if key != self.key:
            LOGGER.info(
                f"{self.path}: is of other weights, data or options, or damaged; the search begins"
                " anew"
            )
            return {}
        LOGGER.info(f"{self.path}: the search goes on, {len(known)} cuts were tried before")
        return known


def state_key(
    model: nn.Module, batches: Sequence[Any], loss: DetectionLoss, opt: PruneOptions
) -> str:
    """Of everything that the losses and the cuts that are tried depend on."""
    digest = hashlib.sha256(
        repr((loss.hyp, loss.ota, [getattr(opt, name) for name in DECIDES])).encode()
    )
    tensors = [
        *model.state_dict().values(),
        *(part for batch in batches for part in (batch.images, batch.targets)),
    ]
    for tensor in tensors:
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class Progress:
    """A bar a round with losses, speed-up and time left, and a line in the log for each unit that
    is cut.
    """

    def __init__(self, units: int):
        self.bar = tqdm(total=units, file=sys.stdout, leave=False, dynamic_ncols=True)
        self.round = 1

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def __call__(self, visit: Visit) -> None:
        """After every unit."""
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
