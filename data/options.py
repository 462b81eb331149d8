"""Options of a loader, shared by the loader and the data set behind it."""

from dataclasses import dataclass, field

from utils.config import Hyp
from utils.errors import UserError


@dataclass(frozen=True)
class LoaderOptions:
    """How the images of a split become batches.

    Attributes:
        imgsz: long side of the images, pixels.
        batch_size: images of a batch, on one rank.
        hyp: strengths of augmentation.
        augment: augment the images, and shuffle them (not with `rect`).
        rect: put images of like proportions into a batch of the smallest common shape; without
            `augment`, images of the same smallest shape.
        cache: `ram`, `disk` (the user's cache folder) or None.
        single_cls: count all classes as class 0.
        image_weights: draw images of rare classes more often.
        workers: data processes; capped at the number of batches.
        worker_timeout: seconds without a batch after which they count as hung; 0: never.
        seed: of order, augmentation and fraction.
        stride: sides of the batches are multiples of it, pixels.
        pad: strides of grey around the images of `rect` batches.
        rank, world_size: place of this process among all.
        epochs: length of the run; the last `hyp.close_mosaic` epochs go without mosaic and mixup.
            None where the length is unknown.
        unlabelled: accept a split without any object, with a warning.
    """

    imgsz: int
    batch_size: int
    hyp: Hyp = field(default_factory=Hyp)
    augment: bool = False
    rect: bool = False
    cache: str | None = None
    single_cls: bool = False
    image_weights: bool = False
    workers: int = 0
    worker_timeout: float = 600.0
    seed: int = 0
    stride: int = 32
    pad: float = 0.0
    rank: int = 0
    world_size: int = 1
    epochs: int | None = None
    unlabelled: bool = False

    def check(self) -> None:
        """`UserError` for what is unknown or does not go together."""
        if self.cache not in {None, "ram", "disk"}:
            raise UserError(f"--cache {self.cache}: not known (ram or disk)")

    @property
    def rect_batch(self) -> int:
        """Images that are given one shape, over all ranks; 0 without `rect`.

        Without augmentation, as in validation, each image has the shape that it needs, so that
        nothing depends on the size of the batch: see `ShapePlan`.
        """
        if not self.rect:
            return 0
        return self.batch_size * self.world_size if self.augment else 1

    @property
    def mosaic_epochs(self) -> float:
        """Number of epochs with mosaic and mixup, which need square images."""
        if self.rect:
            return 0
        if self.epochs is None or not self.hyp.close_mosaic:
            return float("inf")
        return self.epochs - self.hyp.close_mosaic
