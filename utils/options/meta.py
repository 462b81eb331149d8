"""What an option may declare besides its default and its help text, and the groups of the help."""

from collections.abc import Sequence
from typing import Any, TypedDict

# Groups in the order of use, as `--help` prints them; a script shows those that it has options of.
GROUPS = {
    "what": "the model and its data",
    "target": "how small, and by which criterion",
    "sparse": "a penalty that drives channels towards zero before the cut",
    "search": "which channels may go, and how they are chosen",
    "compensation": "what makes up for the removed channels without training",
    "finetune": "training after the cut",
    "training": "length, hyper-parameters and learning rate",
    "data": "how images are loaded and augmented",
    "teacher": "distillation, which needs --teacher",
    "detection": "from outputs to boxes",
    "int8": "INT8 after training",
    "output": "what is printed and written",
    "run": "device, run folder, interruptions",
}


MOST_PIXELS = 8192  # a side of an image; one image of twice that fills 3 GB before any layer
MOST_WORKERS = 256


class Meta(TypedDict, total=False):
    """Keyword arguments of `option`.

    group: heading in `--help`, one of `GROUPS`.
    choices: the values that are allowed.
    bare: value of the option given without one (`--cache` alone means `ram`).
    multi: one or more values, stored as a tuple.
    positional: a word that belongs to no option, or all of them where the type is a tuple.
    path: the value may be the path of a file, which is recorded as an absolute one.
    second: name of the option that a second value goes to (`--img-size 640 320`).
    least, most: smallest and largest allowed number.
    above, below: bounds that are not allowed themselves.
    negative: False refuses negative numbers, with a message that says so.
    hint: addition to the message about a number out of range.
    """

    group: str
    choices: Sequence[str]
    bare: Any
    multi: bool
    positional: bool
    path: bool
    second: str
    least: float
    most: float
    above: float
    below: float
    negative: bool
    hint: str
