"""Options of check.py. Standard library only."""

from dataclasses import dataclass

from utils.options.base import Options, option
from utils.options.meta import MOST_PIXELS


@dataclass(frozen=True)
class CheckOptions(Options):
    """Options of `python -m models.check`."""

    cfg: tuple[str, ...] = option(
        (), "model YAMLs: bare names (yolov5n) or paths", positional=True, group="what"
    )
    nc: int | None = option(None, "number of classes; without it the YAML's", group="what", least=1)
    imgsz: int = option(
        640,
        "image size in pixels at which shapes and GFLOPs are stated",
        "img",
        "img-size",
        group="what",
        least=32,
        most=MOST_PIXELS,
    )
    prune: bool = option(
        True, "find out what pruning can cut; without, shapes and counts only", group="search"
    )
    graph_time_limit: float = option(
        120.0,
        "seconds for finding out which channels are coupled",
        group="search",
        least=1,
    )
