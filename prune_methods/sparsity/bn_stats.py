"""Records of sparse training: `bn/stats.csv`, pictures, TensorBoard histograms, sparse checkpoints.

At the end a verdict says what the training has brought.
"""

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
from utils.event_file import EventFile
from utils.files import dispensable, write_csv
from utils.log import LOGGER

PERCENTILES = (5, 25, 50, 75, 95)
GAMMA_COLUMNS = ("mean_abs", *(f"p{p:02}" for p in PERCENTILES), "lt_0.01")
NORM_COLUMNS = ("norm_mean", *(f"norm_p{p:02}" for p in PERCENTILES))


class BNStatsLogger(Hook):
    """Record statistics of |gamma| of the averaged (EMA) model by layer and epoch.

    Quadratic penalties have statistics of their group norms recorded as well. The hook comes after
    its `Sparsity` in the list of hooks.
    """

    main_only = True

    def __init__(
        self, sparsity: Sparsity, folder: Path, *, hist_every: int = 0, pictures: bool = True
    ):
        """Prepare the records.

        Args:
            sparsity: the hook to observe.
            folder: folder of the run; files go to `bn/` inside.
            hist_every: epochs from one histogram picture to the next, 0 = about ten in a run.
            pictures: write pictures and TensorBoard histograms too.
        """
        self.sparsity, self.folder = sparsity, folder / "bn"
        self.hist_every, self.pictures = hist_every, pictures
        self.layers: list[np.ndarray] = []  # float32 (layers, columns) for each epoch
        self.pooled: list[np.ndarray] = []  # (1, columns) over all channels for each epoch
        self.before: Tensor | None = None  # all gammas before the first step
        self._file: EventFile | None = None

    def on_fit_start(self, trainer: TrainerState) -> None:
        """Keep the gammas of the start and open the event file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.before is None:
            self.before = torch.cat(list(self.sparsity.gammas.values())).cpu()
        if self.pictures:
            self._file = _event_file(self.folder, trainer.epoch)

    def on_epoch_end(self, trainer: TrainerState) -> None:
        """Record a row for each layer, and draw a histogram where one is due."""
        gammas = {name: gamma.cpu() for name, gamma in self.sparsity.gammas.items()}
        norms = {name: norm.cpu() for name, norm in self.sparsity.group_norms().items()}
        rows = [_statistics(gammas[n], norms.get(n)) for n in gammas]
        self.layers.append(np.stack(rows).astype(np.float32))
        every = torch.cat(list(gammas.values()))
        every_norm = torch.cat(list(norms.values())) if norms else None
        self.pooled.append(_statistics(every, every_norm)[None].astype(np.float32))
        self._write_csv({name: len(gamma) for name, gamma in gammas.items()})
        if self._file is not None:
            histograms = {"gamma/all": every}
            for name, gamma in gammas.items():
                histograms[f"gamma/{name}"] = gamma
            self._file.add(trainer.epoch, {}, histograms)
        period = self.hist_every or -(-trainer.epochs // 10)
        if self.pictures and (trainer.epoch % period == 0 or trainer.epoch + 1 == trainer.epochs):
            assert self.before is not None
            path = self.folder / f"hist_epoch{trainer.epoch:03}.png"
            plot_histogram(
                self.before.numpy(), every.numpy(), SMALL, f"epoch {trainer.epoch}", path
            )

    def on_fit_end(self, trainer: TrainerState) -> None:
        """Draw the two pictures of the whole run and log the verdict."""
        if self._file is not None:
            self._file.close()
        if not self.layers:
            return
        if self.pictures:
            self._plot_run()
        LOGGER.info(self.verdict(trainer))

    def _plot_run(self) -> None:
        """Draw `heatmap.png` and `evolution.png`."""
        layers, pooled = np.stack(self.layers), np.concatenate(self.pooled)
        median, share = (layers[:, :, GAMMA_COLUMNS.index(column)] for column in ("p50", "lt_0.01"))
        plot_heatmap(median, share, SMALL, list(self.sparsity.gammas), self.folder / "heatmap.png")
        split = len(GAMMA_COLUMNS)
        plot_evolution(
            pooled[:, :split], pooled[:, split:], PERCENTILES, SMALL, self.folder / "evolution.png"
        )

    def verdict(self, trainer: TrainerState) -> str:
        """Return the verdict, with the speed-up of cutting all channels with |gamma| below .01."""
        found, penalty = self.sparsity, self.sparsity.penalty
        assert found.start is not None and found.reg is not None
        strength, forecast = penalty.strength(found.reg), found.forecast
        # A clipped quadratic penalty may itself be what makes the gradient long: clipping would
        # undo any increase of its strength.
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
        """Return all statistics so far."""
        return {
            "layers": [torch.from_numpy(table) for table in self.layers],
            "pooled": [torch.from_numpy(table) for table in self.pooled],
            "before": self.before,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.layers = [table.numpy() for table in state["layers"]]
        self.pooled = [table.numpy() for table in state["pooled"]]
        self.before = state["before"]

    def _write_csv(self, widths: dict[str, int]) -> None:
        """Write the rows of all epochs, so that the file of a resumed run has no gap.

        `widths` are the channels of each layer.
        """
        has_norms = self.layers[0].shape[1] > len(GAMMA_COLUMNS)
        columns = GAMMA_COLUMNS + (NORM_COLUMNS if has_norms else ())
        rows = [
            [epoch, name, width, *(f"{value:.6g}" for value in row)]
            for epoch, table in enumerate(self.layers)
            for (name, width), row in zip(widths.items(), table, strict=True)
        ]
        file = self.folder / "stats.csv"
        with dispensable(file):  # the checkpoint holds the figures too
            write_csv(file, ["epoch", "layer", "channels", *columns], rows)


class SparsestCheckpoints(Hook):
    """Keep the best checkpoint of each decile of sparsity.

    `weights/sparse_30.pt` is the best with 30 to 40 % of |gamma| below .01, and so on. Pruning
    needs a sparse checkpoint, and the best of the whole run often dates from before gamma fell.
    Without validation the latest checkpoint of each decile is kept.
    """

    main_only = True

    def __init__(self, sparsity: Sparsity, folder: Path, save: Callable[..., None]):
        """Prepare the hook.

        Args:
            sparsity: the hook that knows the share of small gammas.
            folder: where the checkpoints go.
            save: writes a checkpoint: `save(path, model, **fields)`.
        """
        self.sparsity, self.folder, self.save = sparsity, folder, save
        self.best: dict[int, float] = {}  # decile in percent -> fitness

    def on_epoch_end(self, trainer: TrainerState) -> None:
        """Save the averaged model if it is the best of its decile.

        Below 10 % nothing is saved: best.pt serves.
        """
        decile = int(self.sparsity.share * 10) * 10
        result = trainer.result
        fitness = float("-inf") if result is None else float(result.fitness)
        beaten = result is not None and fitness <= self.best.get(decile, float("-inf"))
        if decile == 0 or beaten:
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
        """Log which checkpoints were kept, with their fitness."""
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
        """Return the best fitness of each decile."""
        return {"best": dict(self.best)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.best = dict(state["best"])


def free_speed_up(model: nn.Module, penalty: Penalty) -> float:
    """Return MACs before over after a cut of the channels whose coupled |gamma| are all below .01.

    Each group keeps the channel with the largest |gamma|. Channels without a gamma are kept.
    """
    index = penalty.index
    largest = np.full(index.total + 1, -1.0)  # -1: the channel has no gamma
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
    """Return `GAMMA_COLUMNS`, and `NORM_COLUMNS` where `norm` is given, of one layer or of all."""
    size = gamma.abs().double().numpy()
    row = [size.mean(), *np.percentile(size, PERCENTILES), (size < SMALL).mean()]
    if norm is not None:
        row += [float(norm.double().mean()), *np.percentile(norm.double().numpy(), PERCENTILES)]
    return np.array(row)


def _event_file(folder: Path, epoch: int) -> EventFile | None:
    """Return a TensorBoard file for the histograms, or None without TensorBoard installed.

    The histograms are a TensorBoard run of their own, beside the run of the scalars.
    """
    try:
        return EventFile(folder, epoch)
    except ImportError:
        return None
