"""What sparse training leaves to look at: `bn/stats.csv`, pictures, TensorBoard histograms, sparse
checkpoints, a verdict.
"""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prune_methods.search.cost import Cost
from prune_methods.sparsity.estimate import Outcome
from prune_methods.sparsity.hook import Sparsity
from prune_methods.sparsity.penalties import SMALL, Penalty
from prune_methods.sparsity.plots import plot_evolution, plot_heatmap, plot_histogram
from utils.engine.hooks import Hook, TrainerState
from utils.engine.precision import all_finite
from utils.engine.run_hooks import users_columns
from utils.files import atomic_open
from utils.log import LOGGER

PERCENTILES = (5, 25, 50, 75, 95)
GAMMA_COLUMNS = ("mean_abs", *(f"p{p:02}" for p in PERCENTILES), "lt_0.01")
NORM_COLUMNS = ("norm_mean", *(f"norm_p{p:02}" for p in PERCENTILES))


class BNStatsLogger(Hook):
    """Statistics of |gamma| of the averaged model by layer and epoch; for quadratic penalties of
    the group norms too.

    Give it after its `Sparsity`. `hist_every` epochs lie between two histogram pictures, 0 = about
    ten in a run.
    """

    main_only = True

    def __init__(
        self, sparsity: Sparsity, folder: Path, *, hist_every: int = 0, pictures: bool = True
    ):
        self.sparsity, self.folder = sparsity, folder / "bn"
        self.hist_every, self.pictures = hist_every, pictures
        self.layers: list[np.ndarray] = []  # an epoch: (layers, columns), float32
        self.pooled: list[np.ndarray] = []  # an epoch: (1, columns), over all channels
        self.before: Tensor | None = None  # all gammas before the first step
        self._writer: Any = None

    def on_fit_start(self, trainer: TrainerState) -> None:
        """Keep the gammas of the start, open the event file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.before is None:
            self.before = torch.cat(list(self.sparsity.gammas.values())).cpu()
        if self.pictures:
            self._writer = _event_writer(self.folder, trainer.epoch)

    def on_epoch_end(self, trainer: TrainerState) -> None:
        """A row a layer, and where it is time a picture."""
        gammas = {name: gamma.cpu() for name, gamma in self.sparsity.gammas.items()}
        norms = {name: norm.cpu() for name, norm in self.sparsity.group_norms().items()}
        self.layers.append(
            np.stack([_statistics(gammas[n], norms.get(n)) for n in gammas]).astype(np.float32)
        )
        every = torch.cat(list(gammas.values()))
        every_norm = torch.cat(list(norms.values())) if norms else None
        self.pooled.append(_statistics(every, every_norm)[None].astype(np.float32))
        self._write_csv({name: len(gamma) for name, gamma in gammas.items()})
        if self._writer is not None:
            self._writer.add_histogram("gamma/all", every, trainer.epoch)
            for name, gamma in gammas.items():
                self._writer.add_histogram(f"gamma/{name}", gamma, trainer.epoch)
            self._writer.flush()
        period = self.hist_every or -(-trainer.epochs // 10)
        if self.pictures and (trainer.epoch % period == 0 or trainer.epoch + 1 == trainer.epochs):
            assert self.before is not None
            path = self.folder / f"hist_epoch{trainer.epoch:03}.png"
            plot_histogram(
                self.before.numpy(), every.numpy(), SMALL, f"epoch {trainer.epoch}", path
            )

    def on_fit_end(self, trainer: TrainerState) -> None:
        """The two pictures of the whole run and the verdict."""
        if self._writer is not None:
            self._writer.close()
        if not self.layers:
            return
        if self.pictures:
            self._plot_run()
        LOGGER.info(self.verdict(trainer))

    def _plot_run(self) -> None:
        layers, pooled = np.stack(self.layers), np.concatenate(self.pooled)
        median, share = (layers[:, :, GAMMA_COLUMNS.index(column)] for column in ("p50", "lt_0.01"))
        plot_heatmap(median, share, SMALL, list(self.sparsity.gammas), self.folder / "heatmap.png")
        split = len(GAMMA_COLUMNS)
        plot_evolution(
            pooled[:, :split], pooled[:, split:], PERCENTILES, SMALL, self.folder / "evolution.png"
        )

    def verdict(self, trainer: TrainerState) -> str:
        """Return the verdict, with the speed-up that cutting the channels below .01 gives."""
        found, penalty = self.sparsity, self.sparsity.penalty
        assert found.start is not None and found.reg is not None
        strength, forecast = penalty.strength(found.reg), found.forecast
        # A clipped quadratic penalty may well be what makes the gradient so long: more of it would
        # not get through.
        held_back = penalty.quadratic and found.clip < 0.9
        column = "metrics/mAP_0.5:0.95"
        maps = [float(row[column]) for row in trainer.history if column in row]
        return Outcome(
            share=found.share,
            speed_up=free_speed_up(trainer.ema.model, penalty),
            start=found.start,
            mean=found.mean,
            expected=forecast.expected[0] if forecast else found.start,
            reg=strength,
            wanted=forecast.wanted if forecast else None,
            clip=found.clip,
            cap=strength if held_back else penalty.cap,
            option=penalty.option,
            grows=penalty.grows,
            best_map=max(maps, default=0.0),
            last_map=maps[-1] if maps else 0.0,
        ).verdict()

    def state_dict(self) -> dict[str, Any]:
        """All statistics up to now."""
        return {
            "layers": [torch.from_numpy(table) for table in self.layers],
            "pooled": [torch.from_numpy(table) for table in self.pooled],
            "before": self.before,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self.layers = [table.numpy() for table in state["layers"]]
        self.pooled = [table.numpy() for table in state["pooled"]]
        self.before = state["before"]

    def _write_csv(self, widths: dict[str, int]) -> None:
        """All epochs anew, so that a resumed run's file has no gap; `widths` are the channels of
        each layer.
        """
        columns = GAMMA_COLUMNS + (
            NORM_COLUMNS if self.layers[0].shape[1] > len(GAMMA_COLUMNS) else ()
        )
        with atomic_open(self.folder / "stats.csv", "w") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["epoch", "layer", "channels", *columns])
            for epoch, table in enumerate(self.layers):
                for (name, width), row in zip(widths.items(), table, strict=True):
                    writer.writerow([epoch, name, width, *(f"{value:.6g}" for value in row)])


class SparsestCheckpoints(Hook):
    """`weights/sparse_30.pt`: the best checkpoint of those with 30 to 40 % of |gamma| below .01,
    and so on for each decile.

    Pruning wants a sparse one, and the overall best is often from before gamma fell. `save(path,
    model, **fields)`. Without validation the latest of each decile is kept.
    """

    main_only = True

    def __init__(self, sparsity: Sparsity, folder: Path, save: Callable[..., None]):
        self.sparsity, self.folder, self.save = sparsity, folder, save
        self.best: dict[int, float] = {}  # decile in percent -> fitness

    def on_epoch_end(self, trainer: TrainerState) -> None:
        """Keep the averaged model if it is the best of its decile; below 10 % best.pt will do."""
        decile = int(self.sparsity.share * 10) * 10
        fitness = float("-inf") if trainer.result is None else float(trainer.result.fitness)
        if decile == 0 or (
            trainer.result is not None and fitness <= self.best.get(decile, float("-inf"))
        ):
            return
        if not (all_finite(trainer.ema.model) and all_finite(trainer.task)):
            return
        self.best[decile] = fitness
        history = [users_columns(row) for row in trainer.history]
        path = self.folder / f"sparse_{decile}.pt"
        self.save(
            path, trainer.ema.model, epoch=trainer.epoch, best_fitness=fitness, history=history
        )

    def on_fit_end(self, trainer: TrainerState) -> None:
        """Say which there are."""
        if self.best:
            names = ", ".join(
                f"sparse_{decile}.pt ({fitness:.3f})"
                for decile, fitness in sorted(self.best.items())
            )
            LOGGER.info(
                "Prune one of these rather than best.pt, which may be from before gamma fell:"
                f" {names} (fitness)"
            )

    def state_dict(self) -> dict[str, Any]:
        """The fitness to beat in each decile."""
        return {"best": dict(self.best)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self.best = dict(state["best"])


def free_speed_up(model: nn.Module, penalty: Penalty) -> float:
    """MACs before over after cutting only channels with every coupled |gamma| below .01; each group
    keeps its largest.
    """
    index = penalty.index
    largest = np.full(index.total + 1, -1.0)  # -1: no gamma to judge by
    for name in penalty.norms:
        gamma = model.get_submodule(name).weight
        assert isinstance(gamma, Tensor)
        np.maximum.at(largest, index.outs[name], gamma.detach().abs().cpu().double().numpy())
    keep = (largest < 0) | (largest >= SMALL)
    keep[-1] = True
    for start, size in zip(index.starts, index.sizes, strict=True):
        keep[start + int(largest[start : start + size].argmax())] = True
    cost = Cost(index.of(model))
    return cost.base / cost.macs(keep)


def _statistics(gamma: Tensor, norm: Tensor | None) -> np.ndarray:
    """`GAMMA_COLUMNS`, and `NORM_COLUMNS` where there are norms, of one layer or of all."""
    size = gamma.abs().double().numpy()
    found = [size.mean(), *np.percentile(size, PERCENTILES), (size < SMALL).mean()]
    if norm is not None:
        found += [float(norm.double().mean()), *np.percentile(norm.double().numpy(), PERCENTILES)]
    return np.array(found)


def _event_writer(folder: Path, epoch: int) -> Any:
    """A TensorBoard run of its own beside the scalars', None where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=epoch)
