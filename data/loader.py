"""Batches: which samples in which order, on which rank.

Neither order nor content depends on the number of workers.
"""

import sys
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from data.config import DataConfig
from data.dataset import Batch, DetectionDataset, SampleKey, collate
from utils.config import Hyp
from utils.errors import UserError
from utils.log import LOGGER

FRACTION_STREAM = (
    1_000_003  # keeps the draw of the fraction apart from the order of epoch 0, 1, ...
)


class BatchPlan(Sampler[list[SampleKey]]):
    """Batches of (epoch, index) for one rank; every rank gets equally many, the last samples are
    repeated where needed.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        shuffle: bool = False,
        weights: np.ndarray | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.count, self.batch_size, self.shuffle, self.weights, self.seed = (
            count,
            batch_size,
            shuffle,
            weights,
            seed,
        )
        self.rank, self.world_size, self.epoch = rank, world_size, 0

    def __len__(self) -> int:
        per_rank = -(-self.count // self.world_size)
        return -(-per_rank // self.batch_size)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        order = np.pad(self._order(), (0, -self.count % self.world_size), mode="edge")
        mine = [
            SampleKey(self.epoch, index) for index in order[self.rank :: self.world_size].tolist()
        ]
        for start in range(0, len(mine), self.batch_size):
            yield mine[start : start + self.batch_size]

    def _order(self) -> np.ndarray:
        rng = np.random.default_rng([self.seed, self.epoch])
        if self.weights is not None:
            return rng.choice(self.count, self.count, p=self.weights)
        return rng.permutation(self.count) if self.shuffle else np.arange(self.count)


class DetectionLoader(DataLoader):
    """A `DataLoader` that is told the epoch; it reseeds order and augmentation."""

    dataset: DetectionDataset  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, dataset: DetectionDataset, plan: BatchPlan, workers: int):
        self.plan = plan
        options: dict[str, Any] = (
            {"persistent_workers": True, "prefetch_factor": 4} if workers else {}
        )
        super().__init__(
            dataset,  # type: ignore[arg-type]
            batch_sampler=plan,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=expect_hang_ups,
            **options,
        )

    def __iter__(self) -> Iterator[Batch]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The batches of the epoch.

        A `UserError` of a worker comes wrapped into a traceback, at whose end it is.
        """
        try:
            yield from super().__iter__()
        except UserError as error:
            raise UserError(str(error).strip().rpartition("UserError: ")[2]) from None

    def set_epoch(self, epoch: int) -> None:
        """Call before iterating."""
        self.plan.epoch = epoch
        self.dataset.set_epoch(epoch)


def expect_hang_ups(worker: int) -> None:
    """In a data worker: say nothing where the main process ends while it is being handed a batch.

    A thread of `multiprocessing` hands it over and prints a traceback then. The interrupted program
    has said all there is to say; what fails in making a batch takes another way, with the batch.
    Other exceptions are printed as before.
    """

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, (ConnectionError, EOFError)):
            sys.__excepthook__(kind, error, trace)

    sys.excepthook = hook


def build_loader(
    data: DataConfig,
    split: str,
    *,
    imgsz: int,
    batch_size: int,
    hyp: Hyp | None = None,
    augment: bool = False,
    rect: bool = False,
    cache: str | None = None,
    single_cls: bool = False,
    image_weights: bool = False,
    workers: int = 0,
    seed: int = 0,
    stride: int = 32,
    pad: float = 0.0,
    rank: int = 0,
    world_size: int = 1,
    epochs: int | None = None,
) -> DetectionLoader:
    """Loader of one split; yields `Batch`.

    `augment` also shuffles (not with `rect`). `cache` is `ram`, `disk` (the user's cache folder) or
    None. With `epochs`, the last `hyp.close_mosaic` of them go without mosaic and mixup.
    `data.fraction` holds for the training split. `workers` is capped at the number of batches.
    `UserError` where the split is missing or no image is usable.
    """
    if cache not in {None, "ram", "disk"}:
        raise UserError(f"--cache {cache}: not known (ram or disk)")
    images = data.images(split)
    if split == "train" and data.fraction < 1:
        images = _fraction(images, data.fraction, seed)
    hyp = hyp or Hyp()
    dataset = DetectionDataset(
        images,
        data.nc,
        imgsz=imgsz,
        hyp=hyp,
        augment=augment,
        rect_batch=batch_size * world_size if rect else 0,
        cache=cache,
        single_cls=single_cls,
        seed=seed,
        stride=stride,
        pad=pad,
        mosaic_epochs=(
            float("inf") if epochs is None or not hyp.close_mosaic else epochs - hyp.close_mosaic
        ),
    )
    weights = image_sampling_weights(dataset.labels, data.nc) if image_weights else None
    if rect and weights is not None:
        raise UserError(
            "--image-weights: cannot go with --rect, whose batches are made of images of like"
            " proportions"
        )
    shuffle = augment and not rect
    plan = BatchPlan(
        len(dataset),
        batch_size,
        shuffle=shuffle,
        weights=weights,
        seed=seed,
        rank=rank,
        world_size=world_size,
    )
    return DetectionLoader(dataset, plan, min(workers, len(plan)))


def validation_loader(
    data: DataConfig, split: str = "val", *, rect: bool = True, **options: Any
) -> DetectionLoader:
    """Return a loader of the images of one split to validate on.

    Args:
        data: Data set with the split.
        split: `val`, `train` or `test`.
        rect: Make batches of rectangles with half a stride of grey around each image, as YOLOv5
            validates; otherwise squares without a border.
        **options: Further options of `build_loader`: `imgsz`, `batch_size`, `stride` and others.
    """
    return build_loader(data, split, rect=rect, pad=0.5 if rect else 0.0, **options)


def _fraction(images: list, fraction: float, seed: int) -> list:
    count = max(1, round(len(images) * fraction))
    chosen = np.random.default_rng([seed, FRACTION_STREAM]).permutation(len(images))[:count]
    LOGGER.info(
        f"fraction: {fraction:g}: {count} of {len(images)} training images are used (seed {seed})"
    )
    return [images[i] for i in sorted(chosen)]


def image_sampling_weights(labels: list[np.ndarray], nc: int) -> np.ndarray:
    """Probability of each image: the sum over its objects of 1 / (objects of that class).

    Backgrounds are not drawn.
    """
    counts = np.stack([np.bincount(rows[:, 0].astype(int), minlength=nc) for rows in labels])
    totals = counts.sum(0)
    if not totals.any():
        raise UserError("--image-weights: there is no object in the training set")
    weights = (counts / np.maximum(totals, 1)).sum(1)
    return weights / weights.sum()
