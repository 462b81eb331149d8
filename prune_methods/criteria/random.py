"""Random channels: the control that every method has to beat."""

from prune_methods.criteria.base import PRUNERS, Array, Criterion


@PRUNERS.register("random")
class Random(Criterion):
    """Uniform in 0..1, drawn anew at every step; the weights do not matter."""

    def score(self, slices: Array) -> Array:
        """See Criterion."""
        return self.generator.random(slices.shape[1])
