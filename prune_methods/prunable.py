"""One object for a model that is to be pruned: groups, skipped layers, channel index and cost."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor, nn

from models.lineage import Ancestor, descent
from prune_methods.criteria.base import Criterion
from prune_methods.criteria.scoring import Evidence, GroupScores, countable
from prune_methods.groups.channel_index import Array, ChannelIndex, Masks
from prune_methods.groups.graph import ChannelGroup, Skipped
from prune_methods.preflight.check import TIME_LIMIT, run_preflight
from prune_methods.search.cost import Cost
from prune_methods.search.loop import reachable_speed_up, shrink_masks
from prune_methods.search.pagcp import TaskLosses, Watchers, search_by_losses
from prune_methods.search.pagcp_rules import PagcpSettings
from prune_methods.search.plan import (
    COST_SIZE,
    CostFn,
    EvidenceSource,
    Limits,
    OnStep,
    Pace,
    Plan,
    Target,
)
from prune_methods.surgery.calibration import Calibration
from prune_methods.surgery.cut import cut, zero_channels
from prune_methods.surgery.fold import Folded, fold_constants
from prune_methods.surgery.lineage import kept_channels
from prune_methods.surgery.reconstruct import FitSettings, Reconstruction, reconstruct
from prune_methods.surgery.repair import KeptMaps, OutputLoss, RepairSettings, repair
from prune_methods.surgery.verify import verify


@dataclass(frozen=True)
class Prunable:
    """A model with its prunable channels; the model itself is never changed.

    >>> prunable = Prunable.of(model)
    >>> plan = prunable.search(PRUNERS["lamp"](), Target(speed_up=2.0))
    >>> smaller = prunable.prune(plan)

    Attributes:
        model: the training form, with its batch norms.
        groups: channels that can only be removed together, in the order of the layers.
        skipped: layers whose outputs stay whole, and the reasons.
    """

    model: nn.Module
    groups: Sequence[ChannelGroup]
    skipped: Sequence[Skipped] = ()
    _costs: dict[int, Cost] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        model: nn.Module,
        ignore: Sequence[str] = (),
        time_limit: float = TIME_LIMIT,
        progress: bool = False,
    ) -> "Prunable":
        """Find out what can be pruned.

        Args:
            model: the training form.
            ignore: row numbers (`24`), module names or globs (`model.*.cv3`) that stay whole.
            time_limit: seconds for building the graph, and again for following the layers.
            progress: show a bar.

        Raises:
            UserError: where a pattern matches nothing or nothing can be traced at all.
        """
        return cls(model, *run_preflight(model, ignore, time_limit, progress))

    @cached_property
    def index(self) -> ChannelIndex:
        """Numbers of all channels."""
        return ChannelIndex(self.model, self.groups)

    def cost(self, imgsz: int = COST_SIZE) -> Cost:
        """Return MACs and parameters by mask, at `imgsz` pixels; measured once."""
        if imgsz not in self._costs:
            self._costs[imgsz] = Cost(self.index, imgsz)
        return self._costs[imgsz]

    def with_model(self, model: nn.Module) -> "Prunable":
        """Return the same groups for a model of the same structure with other weights."""
        return Prunable(model, self.groups, self.skipped)

    def for_criterion(self, criterion: Criterion) -> "Prunable":
        """Leave out the groups that a method cannot score; their layers join `skipped`."""
        groups, skipped = countable(self.groups, criterion)
        return Prunable(self.model, groups, [*self.skipped, *skipped])

    def scores(
        self, criterion: Criterion, masks: Masks | None = None, evidence: Evidence | None = None
    ) -> dict[str, Array]:
        """Return the score of each channel by group; +inf where `masks` say that one is gone.

        `evidence` are the tables of a criterion that looks at data.
        """
        index = self.index
        keep = index.all_kept() if masks is None else index.flatten(masks)
        flat = GroupScores(index, criterion, evidence).scores(keep)
        return {group.name: flat[index.span(i)] for i, group in enumerate(index.groups)}

    def reachable(
        self, limits: Limits | None = None, cost_fn: CostFn | None = None, imgsz: int = COST_SIZE
    ) -> float:
        """Return the best speed-up within the limits, in MACs or in `cost_fn`; 1 without groups."""
        if not self.groups:
            return 1.0
        return reachable_speed_up(self.cost(imgsz), limits or Limits(), cost_fn)

    def search(
        self,
        criterion: Criterion,
        target: Target,
        limits: Limits | None = None,
        pace: Pace | None = None,
        source: EvidenceSource | None = None,
        on_step: OnStep | None = None,
    ) -> Plan:
        """Find masks that reach the target; see `search.loop.shrink_masks`."""
        bounds, steps = limits or Limits(), pace or Pace()
        cost = self.cost(target.imgsz)
        return shrink_masks(cost, criterion, target, bounds, steps, source, on_step)

    def search_by_losses(
        self,
        criterion: Criterion,
        losses: TaskLosses,
        target: Target,
        settings: PagcpSettings | None = None,
        limits: Limits | None = None,
        watchers: Watchers | None = None,
    ) -> Plan:
        """Find masks by PAGCP; see `search.pagcp.search_by_losses`."""
        how, bounds = settings or PagcpSettings(), limits or Limits()
        cost = self.cost(target.imgsz)
        return search_by_losses(cost, criterion, losses, target, how, bounds, watchers)

    def cut(self, masks: Masks) -> nn.Module:
        """Return a smaller copy of the model without the masked channels, not verified."""
        return cut(self.index, masks)

    def zero_channels(self, masks: Masks) -> nn.Module:
        """Return a copy of full width in which the masked channels are zero."""
        return zero_channels(self.index, masks)

    def prune(self, plan: Plan, imgsz: int = COST_SIZE) -> nn.Module:
        """Return the smaller model of a plan, cut and verified; `imgsz` is where its MACs count.

        `UserError` where a block hid a coupling from the graph.
        """
        smaller = self.cut(plan.masks)
        verify(self.index, plan.masks, plan.macs, smaller, imgsz)
        return smaller

    def lineage(self, masks: Masks, smaller: nn.Module) -> tuple[Ancestor, ...]:
        """Return the ancestors of `smaller`, a cut by `masks` that was not compensated yet."""
        return descent(self.model, *kept_channels(self.index, masks, smaller))

    def fold_constants(self, masks: Masks, smaller: nn.Module) -> Folded:
        """Add the constants of removed channels to the layers of `smaller`, in place."""
        return fold_constants(self.index, masks, smaller)

    def reconstruct(
        self,
        masks: Masks,
        smaller: nn.Module,
        calibration: Calibration,
        settings: FitSettings | None = None,
        progress: bool = False,
    ) -> Reconstruction:
        """Fit the weights of `smaller` to the outputs of the uncut model, in place."""
        return reconstruct(self.index, masks, smaller, calibration, settings, progress)

    def repair(
        self,
        masks: Masks,
        smaller: nn.Module,
        images: Iterable[Tensor],
        output_loss: OutputLoss,
        settings: RepairSettings | None = None,
    ) -> None:
        """Train `smaller` towards the uncut model without labels, in place."""
        repair(KeptMaps(self.index, masks, smaller), images, output_loss, settings)
