"""Random channels: the control that every method has to beat."""

from prune_methods.criteria.base import PRUNERS, Array, Criterion


@PRUNERS.register("random")
class Random(Criterion):
    """Draw scores that do not depend on the weights, anew at every step."""

    def score(self, slices: Array) -> Array:
        """Return a uniform random number in 0..1 for each channel."""
        return self.generator.random(slices.shape[1])
