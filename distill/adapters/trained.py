"""Adapters that are trained by gradient: a 1x1 convolution each."""

from torch import Tensor, nn

from distill.adapters.base import ADAPTERS, Adapter, LayerPair


class Trained(Adapter):
    """A 1x1 convolution from the student's channels to the teacher's."""

    def __init__(self, pair: LayerPair):
        super().__init__(pair)
        self.conv = nn.Conv2d(*pair.channels, 1)

    @property
    def kernel(self) -> Tensor:
        """Weight of the convolution, (Ct, Cs, 1, 1)."""
        return self.conv.weight

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Return the student's map through the convolution, and the teacher's map."""
        return self.conv(student), teacher


@ADAPTERS.register("sgd")
class WithStudent(Trained):
    """Train the convolution by the student's optimizer, at the weight of the loss.

    At the usual weights the convolution stays close to the random one that it begins as, and the
    student is bent towards that: every such loss cost accuracy where it was measured.
    """


@ADAPTERS.register("adamw")
class Apart(Trained):
    """Train the convolution by AdamW, whatever the weight of the loss."""

    trained_apart = True
