"""Differences of raw outputs, weighted by where the teacher sees objects.

Paper: Mehta & Ozturk, "Object detection at 200 frames per second", 2018.

The value of a level, with w the teacher's objectness and d the distance of two raw outputs before
any decoding, is

    box * mean(w d(xywh)) + obj * mean(w d(objectness)) + cls * mean(w d(classes))

The values of all levels are added. With a single class there is no class term, as in the detection
loss.
"""

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor

from distill.base import LOGIT_LOSSES, LogitLoss


class RawOutputs(LogitLoss):
    """Base class of the losses of this file; a subclass gives the distance d."""

    @abstractmethod
    def distance(self, difference: Tensor) -> Tensor:
        """Return d for each raw output, given student minus teacher; the shape stays the same."""

    def compare(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Return the formula of this file summed over levels; see `LogitLoss.compare`."""
        setup, total = self.setup, student[0].new_zeros(())
        for s, t in zip(student, teacher, strict=True):
            distances = self.distance(s - t) * t[..., 4:5].sigmoid()
            total = total + setup.box * distances[..., :4].mean()
            total = total + setup.obj * distances[..., 4].mean()
            if setup.nc > 1:
                total = total + setup.cls * distances[..., 5:].mean()
        return total


@LOGIT_LOSSES.register("l1")
class L1(RawOutputs):
    """Absolute difference: the gradient does not depend on how far apart two outputs are."""

    def distance(self, difference: Tensor) -> Tensor:
        """Return the absolute value of the difference."""
        return difference.abs()


@LOGIT_LOSSES.register("l2")
class L2(RawOutputs):
    """Squared difference: the gradient grows with the distance of two outputs."""

    def distance(self, difference: Tensor) -> Tensor:
        """Return the square of the difference."""
        return difference.square()
