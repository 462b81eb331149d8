"""Adapters without weights: `none` and `kept`."""

from torch import Tensor

from distill.adapters.base import ADAPTERS, Adapter, LayerPair
from utils.errors import UserError


@ADAPTERS.register("none")
class Unchanged(Adapter):
    """Compare the maps as they are: channel i with channel i."""

    def __init__(self, pair: LayerPair):
        """Check the pair.

        Raises:
            UserError: The numbers of channels differ.
        """
        super().__init__(pair)
        ours, theirs = pair.channels
        if ours != theirs:
            raise UserError(
                f"--adapter none: {pair}: {ours} and {theirs} channels; layers of equal width, or"
                " --adapter closed-form"
            )

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Return both maps unchanged."""
        return student, teacher


@ADAPTERS.register("kept")
class Kept(Adapter):
    """Compare a cut layer with the channels of the uncut layer that were kept.

    Channel i of a cut layer is channel kept[i] of the uncut one, so nothing has to be fitted.
    """

    kept: Tensor

    def __init__(self, pair: LayerPair):
        """Take the kept channels from the pair.

        Raises:
            UserError: The student's layer was not cut from the teacher's.
        """
        super().__init__(pair)
        if pair.kept is None:
            raise UserError(
                f"--adapter kept: {pair}: the student's checkpoint does not say which channels of"
                " that layer it kept; the teacher must be the model that prune.py cut the student"
                " from (or have its widths), both layers the same. Or use --adapter closed-form"
            )
        self.channels = len(pair.kept)
        # not persistent: the student's checkpoint has the channels
        self.register_buffer("kept", pair.kept.clone(), persistent=False)

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Return the student's map and the kept channels of the teacher's."""
        return student, teacher.index_select(1, self.kept)
