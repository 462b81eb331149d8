"""Images with boxes, one sample at a time.

The randomness of a sample is f(seed, epoch, index), in any process.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from data.augment import blend, jitter_colours, letterbox, mosaic, random_matrix, warp
from data.cache import scan
from data.coco_labels import CocoSplit
from data.files import short_hash, stamp, user_cache_folder
from data.images import read_image, resize_long_side
from data.options import LoaderOptions
from data.workers import shared
from utils.files import atomic_open, sweep_leftovers
from utils.log import LOGGER


class SampleKey(NamedTuple):
    """A sample that is asked for: number of the epoch and of the image.

    The epoch travels with the index, so that workers that live on always know it.
    """

    epoch: int
    image: int


class Sample(NamedTuple):
    """One image ready for batching."""

    image: np.ndarray  # (3, H, W) uint8 RGB
    boxes: np.ndarray  # (n, 5) float32: class, xywh normalised to W, H
    file: str
    shape: tuple  # ((h0, w0), ((ratio_h, ratio_w), (pad_w, pad_h))): what undoes the letterbox


class Batch(NamedTuple):
    """A batch as a loader yields it."""

    images: torch.Tensor  # (N, 3, H, W) uint8 RGB
    targets: torch.Tensor  # (M, 6) float32: image, class, xywh normalised
    files: list[str]
    shapes: list[tuple]


class DetectionDataset(Dataset):
    """Samples of one split.

    Attributes:
        files: usable images.
        labels: of each image (n, 5) float32: class, xywh normalised.
        shapes: (images, 2): width, height.
        report: everything odd that the scan found.
        whites: (images,): value that becomes 255, 0 for images of 8 bits.
        batch_shapes: (height, width) of each `options.rect_batch` images; empty without `rect`.
        left_out: how many images are left out and why; empty where none is.
        scan: what the scan found, in the order of the images, whatever the order of `files`.
    """

    def __init__(
        self,
        images: Sequence[Path],
        nc: int,
        options: LoaderOptions,
        coco: CocoSplit | None = None,
    ):
        """Scan the images.

        Args:
            images: Image files.
            nc: Number of classes.
            options: How the images become batches.
            coco: Where the labels are, if not in texts.

        Raises:
            UserError: No image is usable.
        """
        self.scan = found = scan(images, nc, coco)
        self.files, self.labels = found.files, found.labels
        self.shapes, self.report = found.shapes, found.report
        self.whites, self.left_out = found.whites, found.left_out
        self.options, self.hyp = options, options.hyp
        self.imgsz, self.augment = options.imgsz, options.augment
        self.epoch = 0
        if options.single_cls:
            for labels in self.labels:
                labels[:, 0] = 0
        self.batch_shapes: list[tuple[int, int]] = []
        if options.rect:
            self._sort_by_aspect()
            self.batch_shapes = rect_shapes(self.shapes, options)
        self._corners = [corners_of(labels) for labels in self.labels]
        self._disk = user_cache_folder() / f"images-{self.imgsz}"
        self._use_disk = options.cache == "disk"
        if self._use_disk:
            sweep_leftovers(self._disk)
        in_memory = options.cache == "ram" and self._fits_ram()
        self._ram: list[np.ndarray] = self._read_all() if in_memory else []

    def __len__(self) -> int:
        return len(self.files)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of samples that are asked for by a bare index."""
        self.epoch = epoch

    def __getitem__(self, key: SampleKey | int) -> Sample:
        epoch, index = key if isinstance(key, tuple) else (self.epoch, key)
        return self._augmented(epoch, index) if self.augment else self._plain(index)

    def _plain(self, index: int) -> Sample:
        image, boxes = self._pixels(index)
        width, height = self.shapes[index].tolist()
        ratio = image.shape[0] / height, image.shape[1] / width
        image, _, pad = letterbox(image, *self._out_shape(index), enlarge=False)
        boxes[:, 1:] += np.array([*pad, *pad], np.float32)
        return self._sample(index, image, boxes, (ratio, pad))

    def _augmented(self, epoch: int, index: int) -> Sample:
        rng = np.random.default_rng([self.options.seed, epoch, index])
        out, hyp = self._out_shape(index), self.hyp
        image, boxes = self._warped(index, epoch, rng, out)
        if epoch < self.options.mosaic_epochs and rng.random() < hyp.mixup:
            other = int(rng.integers(len(self)))
            image, boxes = blend((image, boxes), self._warped(other, epoch, rng, out), rng)
        return self._sample(index, jitter_colours(image, hyp, rng), boxes, ((1.0, 1.0), (0, 0)))

    def _warped(
        self, index: int, epoch: int, rng: np.random.Generator, out: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return an image or mosaic, turned, scaled and moved at random, of shape `out`."""
        image, boxes = self._composed(index, epoch, rng)
        height, width = image.shape[:2]
        return warp(image, boxes, random_matrix(height, width, out, self.hyp, rng), out)

    def _composed(
        self, index: int, epoch: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the image or, with the probability of the hyp file, a mosaic with three others."""
        if epoch >= self.options.mosaic_epochs or rng.random() >= self.hyp.mosaic:
            return self._pixels(index)
        members = rng.permutation([index, *rng.integers(len(self), size=3)])
        return mosaic([self._pixels(int(i)) for i in members], self.imgsz, rng)

    def _sample(self, index: int, image: np.ndarray, boxes: np.ndarray, undo: tuple) -> Sample:
        height, width = image.shape[:2]
        low, high = boxes[:, 1:3], boxes[:, 3:5]
        size = np.array([width, height], np.float32)
        normalised = np.concatenate(
            [boxes[:, :1], (low + high) / (2 * size), (high - low) / size], 1
        )
        w0, h0 = self.shapes[index].tolist()
        return Sample(to_planes(image), normalised, str(self.files[index]), ((h0, w0), undo))

    def _pixels(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the image with its long side at imgsz, and its boxes in its pixels.

        A box is class, x1, y1, x2, y2.
        """
        if self._ram:
            image = self._ram[index]
        else:
            image = self._from_disk(index) if self._use_disk else self._read(index)
        height, width = image.shape[:2]
        return image, self._corners[index] * np.array([1, width, height, width, height], np.float32)

    def _out_shape(self, index: int) -> tuple[int, int]:
        """Return (height, width) of the sample of an image."""
        if self.options.rect:
            return self.batch_shapes[index // self.options.rect_batch]
        return self.imgsz, self.imgsz

    def _sort_by_aspect(self) -> None:
        order = np.argsort(self.shapes[:, 1] / self.shapes[:, 0], kind="stable")
        self.files = [self.files[i] for i in order]
        self.labels = [self.labels[i] for i in order]
        self.shapes, self.whites = self.shapes[order], self.whites[order]

    def _read(self, index: int) -> np.ndarray:
        image = read_image(self.files[index], float(self.whites[index]))
        return resize_long_side(image, self.imgsz, smooth=not self.augment)

    def _read_all(self) -> list[np.ndarray]:
        few = len(self) < 1000
        bar = tqdm(range(len(self)), "Caching images in memory", leave=False, disable=few)
        images = [self._read(i) for i in bar]
        size = sum(image.nbytes for image in images)
        LOGGER.info(f"Cached {len(images)} images in memory ({size / 1e6:.0f} MB)")
        return images

    def _fits_ram(self) -> bool:
        """Tell whether all images take at most half of the machine's memory; warn where not."""
        need = float((3 * self.imgsz**2 * self.shapes.min(1) / self.shapes.max(1)).sum())
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if need > memory / 2:
            LOGGER.warning(
                f"--cache ram: needs {need / 1e9:.1f} GB of {memory / 1e9:.1f} GB: images are not"
                " cached; try --cache disk"
            )
        return need <= memory / 2

    def _from_disk(self, index: int) -> np.ndarray:
        """Return the resized image from the user's cache folder, written there the first time."""
        source = self.files[index]
        white = f" {self.whites[index]:g}" if self.whites[index] else ""
        file = self._disk / f"{short_hash(f'{source} {stamp(source)} {self.augment}{white}')}.npy"
        try:
            return np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            image = self._read(index)
        try:
            with atomic_open(file, sync=False) as stream:
                np.save(stream, image)
        except OSError as error:
            LOGGER.warning(f"--cache disk: {error}; reading the images as they are from now on")
            self._use_disk = False
        return image


def rect_shapes(shapes: np.ndarray, options: LoaderOptions) -> list[tuple[int, int]]:
    """Return (height, width) of each batch of images that are sorted by height / width.

    The shape is the smallest that holds the images with the long side at imgsz, rounded up to the
    stride after adding `pad` strides (YOLOv5's rule). `shapes` are (images, 2): width, height.
    """
    imgsz, stride, pad = options.imgsz, options.stride, options.pad
    batch_size = options.rect_batch
    aspect = shapes[:, 1] / shapes[:, 0]
    result = []
    for start in range(0, len(aspect), batch_size):
        group = aspect[start : start + batch_size]
        sides = np.array([min(group.max(), 1.0), min(1 / group.min(), 1.0)])
        height, width = (np.ceil(sides * imgsz / stride + pad).astype(int) * stride).tolist()
        result.append((height, width))
    return result


def corners_of(labels: np.ndarray) -> np.ndarray:
    """Turn boxes (n, 5) of class, x, y, w, h into class, x1, y1, x2, y2."""
    half = labels[:, 3:5] / 2
    return np.concatenate([labels[:, :1], labels[:, 1:3] - half, labels[:, 1:3] + half], 1)


def to_planes(image: np.ndarray) -> np.ndarray:
    """(h, w, 3) -> (3, h, w), a view."""
    return image.transpose(2, 0, 1)


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples of one size -> a batch.

    Images are stored channels last, as they come: convolutions are quicker so.
    """
    images = torch.from_numpy(
        np.stack([sample.image.transpose(1, 2, 0) for sample in samples])
    ).permute(0, 3, 1, 2)
    rows = [np.insert(sample.boxes, 0, i, axis=1) for i, sample in enumerate(samples)]
    targets = torch.from_numpy(np.concatenate(rows).astype(np.float32, copy=False))
    names, shapes = [sample.file for sample in samples], [sample.shape for sample in samples]
    return Batch(shared(images), shared(targets), names, shapes)
