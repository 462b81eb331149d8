"""Differences of raw outputs where the teacher sees objects (Mehta & Ozturk 2018, "Object detection
at 200 frames per second").

A level's value, with w the teacher's objectness and d the distance of two raw outputs, before any
decoding:

    box * mean(w d(xywh)) + obj * mean(w d(objectness)) + cls * mean(w d(classes))

summed over levels; no class term where there is one class, as in the detection loss.
"""

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor

from distill.base import LOGIT_LOSSES, LogitLoss


class RawOutputs(LogitLoss):
    """The formula above; a subclass gives the distance."""

    @abstractmethod
    def distance(self, difference: Tensor) -> Tensor:
        """Of each raw output, from student minus teacher; any shape -> the same shape."""

    def compare(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """See LogitLoss."""
        setup, total = self.setup, student[0].new_zeros(())
        for s, t in zip(student, teacher, strict=True):
            distances = self.distance(s - t) * t[..., 4:5].sigmoid()
            total = (
                total + setup.box * distances[..., :4].mean() + setup.obj * distances[..., 4].mean()
            )
            if setup.nc > 1:
                total = total + setup.cls * distances[..., 5:].mean()
        return total


@LOGIT_LOSSES.register("l1")
class L1(RawOutputs):
    """The absolute difference: the pull does not depend on how far apart the two are."""

    def distance(self, difference: Tensor) -> Tensor:
        """See RawOutputs."""
        return difference.abs()


@LOGIT_LOSSES.register("l2")
class L2(RawOutputs):
    """The squared difference: far outputs are pulled hardest."""

    def distance(self, difference: Tensor) -> Tensor:
        """See RawOutputs."""
        return difference.square()
