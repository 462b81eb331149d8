"""What a run of detect.py has found: counts by class, left out files, times."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from data.sources import Feed
from recipes.detect.outputs import Found
from utils.log import LOGGER
from utils.tables import console_table


class Tally:
    """Counts of a run.

    Attributes:
        frames: Number of frames and images.
        objects: Number of boxes by class.
    """

    def __init__(self, names: Sequence[str], feeds: Sequence[Feed]):
        self.names, self.feeds = names, feeds
        self.frames = 0
        self.objects: Counter[int] = Counter()
        self._frames_with: Counter[int] = Counter()
        self._frames_with_any = 0

    def add(self, found: Found) -> None:
        """Count the boxes of a frame."""
        labels = [int(label) for label in found.boxes[:, 5].tolist()]
        self.frames += 1
        self.objects.update(labels)
        self._frames_with.update(set(labels))
        self._frames_with_any += bool(labels)

    def log(self) -> None:
        """Log the table of classes, and what was left out."""
        rows = [("Class", "Objects", "Images")]
        for number in sorted(self.objects):
            counts = str(self.objects[number]), str(self._frames_with[number])
            rows.append((self.names[number], *counts))
        rows.append(("all", str(self.objects.total()), str(self._frames_with_any)))
        LOGGER.info(console_table(rows, right=(1, 2)))
        LOGGER.info(f"{self.frames} images and frames were searched{self._left_out()}")

    def progress(self, folder: Path) -> str:
        """Return what was done, for the line of an interrupted run."""
        return (
            f"stopped after {self.frames} images and frames with {self.objects.total()} objects;"
            f" what was written is whole: {folder}"
        )

    def _left_out(self) -> str:
        """Say how many images and frames could not be read, and why the first could not."""
        bad = [feed for feed in self.feeds if feed.lost]
        if not bad:
            return ""
        return f"; {sum(feed.lost for feed in bad)} were left out, the first: {bad[0].reason}"


def log_live(feeds: Sequence[Feed]) -> None:
    """Log how many frames of each live feed came while earlier ones were worked on."""
    for feed in feeds:
        if passed := getattr(feed, "passed_over", 0):
            LOGGER.info(f"{feed.place}: {passed} frames passed by while earlier ones were searched")
