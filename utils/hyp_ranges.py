"""Ranges of the hyper-parameters, standard library only."""

from dataclasses import dataclass

from utils.errors import UserError


@dataclass(frozen=True)
class Range:
    """Values that a number may have.

    Args:
        least: Lowest value.
        most: Highest value; None: no limit.
        above: Whether `least` itself is out of range.
        below: Whether `most` itself is out of range.
    """

    least: float = 0
    most: float | None = None
    above: bool = False
    below: bool = False

    def holds(self, value: float) -> bool:
        """Return True for a value in the range; NaN is in none."""
        low = value > self.least if self.above else value >= self.least
        if self.most is None:
            return low
        return low and (value < self.most if self.below else value <= self.most)

    def __str__(self) -> str:
        """Return the range in words: "must be from 0 to 1"."""
        low = f"above {self.least:g}" if self.above else f"at least {self.least:g}"
        if self.most is None:
            return f"must be {low}"
        if not self.above and not self.below:
            return f"must be from {self.least:g} to {self.most:g}"
        return f"must be {low} and {'below' if self.below else 'at most'} {self.most:g}"


SHARE = Range(0, 1)
POSITIVE = Range(above=True)
NOT_NEGATIVE = Range()
MOMENTUM = Range(0, 1, below=True)

RANGES = {
    "lr0": Range(0, 10, above=True),
    "lrf": SHARE,
    "momentum": MOMENTUM,
    "weight_decay": SHARE,
    "nbs": POSITIVE,
    "warmup_epochs": NOT_NEGATIVE,
    "warmup_momentum": MOMENTUM,
    "warmup_bias_lr": Range(0, 10),
    "ema_tau": POSITIVE,
    "box": NOT_NEGATIVE,
    "cls": NOT_NEGATIVE,
    "cls_pw": POSITIVE,
    "obj": NOT_NEGATIVE,
    "obj_pw": POSITIVE,
    "iou_t": SHARE,
    "anchor_t": Range(1, above=True),  # a ratio of the larger side to the smaller one
    "anchors": Range(1, 100),
    "fl_gamma": NOT_NEGATIVE,
    "label_smoothing": SHARE,
    "hsv_h": SHARE,
    "hsv_s": SHARE,
    "hsv_v": SHARE,
    "degrees": Range(0, 360),
    "translate": SHARE,
    "scale": Range(0, 1, below=True),  # 1 would shrink images to a point
    "shear": Range(0, 90, below=True),
    "perspective": Range(0, 0.01),  # per pixel; more turns the image inside out
    "flipud": SHARE,
    "fliplr": SHARE,
    "mosaic": SHARE,
    "mixup": SHARE,
    "copy_paste": SHARE,
    "paste_in": SHARE,
    "close_mosaic": NOT_NEGATIVE,
}
"""Range of each number of `utils.config.Hyp`."""


def check_range(name: str, value: float | None) -> None:
    """Raise `UserError` for a number out of the range of its key; None is not given."""
    if value is not None and not RANGES[name].holds(value):
        raise UserError(f"hyp: {name}: {value:g} is out of range: {RANGES[name]}")
