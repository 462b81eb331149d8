"""Order samples into batches, and hand the batches out by worker processes.

Neither order nor content depends on the number of workers.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from data.config import DataConfig
from data.dataset import Batch, DetectionDataset, SampleKey, collate
from data.label_search import require_objects
from data.options import LoaderOptions
from data.watchdog import Watchdog
from data.workers import plan_workers, prepare_worker
from utils.errors import UserError
from utils.log import LOGGER
from utils.worker_errors import worker_reason

FRACTION_STREAM = 1_000_003  # keeps the draw of the fraction apart from the order of epoch 0, 1 ...


class BatchPlan(Sampler[list[SampleKey]]):
    """Yield batches of (epoch, index) for one rank.

    Every rank gets equally many samples; the last ones are repeated where needed.

    Args:
        count: number of samples of the split.
        batch_size: samples of a batch, on one rank.
        shuffle: draw a new order each epoch.
        weights: probability of each sample, (count,); samples are drawn with replacement.
        seed: of the order.
        rank, world_size: place of this process among all.
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
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.shuffle, self.weights = shuffle, weights
        self.rank, self.world_size = rank, world_size
        self.epoch = 0

    def __len__(self) -> int:
        per_rank = -(-self.count // self.world_size)
        return -(-per_rank // self.batch_size)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        order = np.pad(self._order(), (0, -self.count % self.world_size), mode="edge")
        own = order[self.rank :: self.world_size].tolist()
        mine = [SampleKey(self.epoch, index) for index in own]
        for start in range(0, len(mine), self.batch_size):
            yield mine[start : start + self.batch_size]

    def _order(self) -> np.ndarray:
        rng = np.random.default_rng([self.seed, self.epoch])
        if self.weights is not None:
            return rng.choice(self.count, self.count, p=self.weights)
        return rng.permutation(self.count) if self.shuffle else np.arange(self.count)


class ShapePlan(BatchPlan):
    """Yield batches of at most `batch_size` images that have one shape, in order, on one rank.

    Args:
        shapes: (height, width) of each image; equal ones are neighbours.
        batch_size: most samples of a batch.
    """

    def __init__(self, shapes: Sequence[tuple[int, int]], batch_size: int):
        super().__init__(len(shapes), batch_size)
        ends = [i for i in range(1, len(shapes)) if shapes[i] != shapes[i - 1]]
        runs = itertools.pairwise([0, *ends, len(shapes)])
        self._ranges = [
            range(start, min(start + batch_size, end))
            for first, end in runs
            for start in range(first, end, batch_size)
        ]

    def __len__(self) -> int:
        return len(self._ranges)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for numbers in self._ranges:
            yield [SampleKey(self.epoch, index) for index in numbers]


class DetectionLoader(DataLoader):
    """A `DataLoader` whose order and augmentation depend on the epoch: see `set_epoch`."""

    dataset: DetectionDataset  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, dataset: DetectionDataset, plan: BatchPlan, workers: int, ahead: int):
        """Make a loader; each of its workers makes `ahead` batches before they are asked for."""
        self.plan = plan
        self.worker_timeout = dataset.options.worker_timeout
        options: dict[str, Any] = {}
        if workers:
            options = {"persistent_workers": True, "prefetch_factor": ahead}
        super().__init__(
            dataset,  # type: ignore[arg-type]
            batch_sampler=plan,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=prepare_worker,
            **options,
        )

    def __iter__(self) -> Iterator[Batch]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Yield the batches of the epoch.

        A `UserError` of a worker arrives at the end of a traceback's text, and is taken from there.

        Raises:
            UserError: A worker failed, ended, hung, or could not be started.
        """
        try:
            yield from self._watched(super().__iter__())
        except UserError as error:
            raise UserError(str(error).strip().rpartition("UserError: ")[2]) from None
        except RuntimeError as error:
            if reason := worker_reason(error):
                raise UserError(reason) from None
            raise
        except BlockingIOError as error:
            raise UserError(
                f"no more data workers can be started: {error.strerror}; use fewer --workers"
            ) from None

    def _watched(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the batches; give up on workers that live and give none."""
        watchdog = Watchdog(getattr(batches, "_workers", ()), self.worker_timeout)
        while True:
            with watchdog:
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def set_epoch(self, epoch: int) -> None:
        """Set the number of the epoch, before iterating."""
        self.plan.epoch = epoch
        self.dataset.set_epoch(epoch)


def build_loader(data: DataConfig, split: str, **options: Any) -> DetectionLoader:
    """Return the loader of one split, which yields `Batch`.

    Args:
        data: the data set; its `fraction` holds for the training split.
        split: `train`, `val` or `test`.
        **options: fields of `LoaderOptions`; `imgsz` and `batch_size` are needed.

    Raises:
        UserError: where the split is missing, no image is usable, there is no object, or options
            do not go together.
    """
    opt = LoaderOptions(**options)
    opt.check()
    images = data.images(split)
    if split == "train" and data.fraction < 1:
        seed = opt.seed if data.seed is None else data.seed
        images = _fraction(images, data.fraction, seed)
    coco = data.coco.get(split)
    dataset = DetectionDataset(images, data.nc, opt, coco)
    if not any(len(rows) for rows in dataset.labels):
        if coco:
            coco.require_objects(split, dataset.left_out, strict=not opt.unlabelled)
        else:
            require_objects(images, split, dataset.left_out, strict=not opt.unlabelled)
    weights = image_sampling_weights(dataset.labels, data.nc) if opt.image_weights else None
    if opt.rect and weights is not None:
        raise UserError(
            "--image-weights: cannot go with --rect, whose batches are made of images of like"
            " proportions"
        )
    plan = _plan(dataset, opt, weights)
    return DetectionLoader(dataset, plan, *plan_workers(opt, len(plan)))


def _plan(dataset: DetectionDataset, opt: LoaderOptions, weights: np.ndarray | None) -> BatchPlan:
    """Return the plan of the batches; `weights` are the probabilities of the images or None."""
    if opt.rect and not opt.augment:
        assert opt.world_size == 1, "images are validated by one process"
        return ShapePlan(dataset.batch_shapes, opt.batch_size)
    return BatchPlan(
        len(dataset),
        opt.batch_size,
        shuffle=opt.augment and not opt.rect,
        weights=weights,
        seed=opt.seed,
        rank=opt.rank,
        world_size=opt.world_size,
    )


def validation_loader(
    data: DataConfig, split: str = "val", *, rect: bool = True, **options: Any
) -> DetectionLoader:
    """Return a loader of the images of one split to validate on.

    Args:
        data: Data set with the split.
        split: `val`, `train` or `test`.
        rect: Make batches of rectangles with half a stride of grey around each image, as YOLOv5
            validates; otherwise squares without a border. Only images of one shape share a batch,
            so that the metrics do not depend on the size of the batch.
        **options: Further options of `build_loader`: `imgsz`, `batch_size`, `stride` and others.
    """
    return build_loader(data, split, rect=rect, pad=0.5 if rect else 0.0, **options)


def _fraction(images: list, fraction: float, seed: int) -> list:
    """Return a share of the images, drawn by the seed, in their order."""
    count = max(1, round(len(images) * fraction))
    chosen = np.random.default_rng([seed, FRACTION_STREAM]).permutation(len(images))[:count]
    LOGGER.info(
        f"fraction: {fraction:g}: {count} of {len(images)} training images are used (seed {seed})"
    )
    return [images[i] for i in sorted(chosen)]


def image_sampling_weights(labels: list[np.ndarray], nc: int) -> np.ndarray:
    """Return the probability of each image: the sum over its objects of 1 / (objects of the class).

    Backgrounds are not drawn.
    """
    counts = np.stack([np.bincount(rows[:, 0].astype(int), minlength=nc) for rows in labels])
    totals = counts.sum(0)
    if not totals.any():
        raise UserError("--image-weights: there is no object in the training set")
    weights = (counts / np.maximum(totals, 1)).sum(1)
    return weights / weights.sum()
