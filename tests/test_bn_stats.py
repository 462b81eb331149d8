"""What a sparse training leaves: TensorBoard histograms, checkpoints by sparsity, a verdict,
pictures that can be read.
"""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from models import build_model, load_model
from models.checkpoint import save_checkpoint
from prune_methods import Prunable
from prune_methods.sparsity.bn_stats import BNStatsLogger, SparsestCheckpoints
from prune_methods.sparsity.hook import Sparsity
from prune_methods.sparsity.penalties import make_penalty
from prune_methods.sparsity.plots import ROWS_NAMED, plot_evolution, plot_heatmap, plot_histogram
from tests.prune_toys import TINY_REP
from tests.test_sparsity_run import HYP, Still, sparse_trainer
from tests.test_trainer import make_trainer

PERCENTILES = (5, 25, 50, 75, 95)


def test_tensorboard_has_the_histograms_of_every_epoch(tmp_path):
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    trainer, hook = sparse_trainer("slim", 0.05, epochs=3)
    trainer.hooks = [hook, BNStatsLogger(hook, tmp_path)]
    trainer.__post_init__()
    trainer.fit()
    read = event_accumulator.EventAccumulator(
        str(tmp_path / "bn"), size_guidance={"histograms": 0}
    ).Reload()
    assert set(read.Tags()["histograms"]) == {"gamma/all", "gamma/net.stem.1", "gamma/net.mid.1"}
    events = read.Histograms("gamma/all")
    assert [event.step for event in events] == [0, 1, 2]
    gammas = torch.cat(
        [trainer.ema.model.net.stem[1].weight, trainer.ema.model.net.mid[1].weight]
    ).detach()
    last = events[-1].histogram_value
    assert last.num == 14 and last.sum == pytest.approx(float(gammas.sum()), rel=1e-5)
    assert (last.min, last.max) == pytest.approx((float(gammas.min()), float(gammas.max())))
    pictures = {path.name for path in (tmp_path / "bn").glob("*.png")}
    assert pictures == {
        "hist_epoch000.png",
        "hist_epoch001.png",
        "hist_epoch002.png",
        "heatmap.png",
        "evolution.png",
    }


def test_a_run_that_gets_sparse_leaves_sparse_checkpoints_and_says_so(tmp_path, caplog):
    """Only the penalty acts; half of the gammas start at a tenth and are below .01 some epochs
    before the others.
    """
    torch.manual_seed(0)
    model = build_model(TINY_REP)
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.weight.data[::2] = 0.1
    hook = Sparsity(model, make_penalty("slim", Prunable.of(model).index), 0.02, decay="constant")
    saved = SparsestCheckpoints(hook, tmp_path, save_checkpoint)
    hyp = HYP.replace(warmup_epochs=0, lr0=0.05, momentum=0.9, lrf=1.0)
    trainer = make_trainer(
        epochs=8,
        hooks=[hook, BNStatsLogger(hook, tmp_path, pictures=False), saved],
        model=model,
        hyp=hyp,
    )
    trainer.task = trainer.net = Still(model)
    with caplog.at_level("INFO"):
        trainer.fit()
    assert [path.name for path in tmp_path.glob("sparse_*.pt")] == ["sparse_50.pt"]
    kept = load_model(tmp_path / "sparse_50.pt")
    gammas = torch.cat(
        [m.weight.detach().abs() for m in kept.modules() if isinstance(m, nn.BatchNorm2d)]
    )
    assert float((gammas < 0.01).float().mean()) == pytest.approx(0.5)
    assert (
        "Verdict: 50% of channels have |gamma| below 0.01; cutting just these gives" in caplog.text
    )
    assert (
        "pruning up to that will cost little" in caplog.text
        and "Prune one of these rather than best.pt" in caplog.text
    )


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """Figures instead of files."""
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **more: figures.append(figure))
    return figures


def test_histogram_counts_channels(drawn, tmp_path):
    now = np.array([0.0, 0.001, 0.5, -0.5, 1.0])
    plot_histogram(np.ones(5), now, 0.01, "epoch 3", tmp_path / "x.png")
    (axis,) = drawn[0].axes
    heights = [patch.get_height() for patch in axis.containers[0]]
    assert (
        sum(heights) == 5
        and heights[0] == 2
        and axis.get_xlabel() == "|gamma|"
        and axis.get_ylabel() == "channels"
    )
    labels = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert (
        "below 0.01: 40.0% of 5 channels" in labels
        and "epoch 3: mean 0.400" in labels
        and "start: mean 1.000" in labels
    )


@pytest.mark.parametrize(("layers", "named"), [(5, 5), (ROWS_NAMED + 1, 36)])
def test_heat_map_has_a_row_a_layer_and_names_that_do_not_overlap(drawn, tmp_path, layers, named):
    values = np.linspace(0, 1, 4 * layers).reshape(4, layers)
    plot_heatmap(values, values, 0.01, [f"model.{i}" for i in range(layers)], tmp_path / "x.png")
    left, right = drawn[0].axes[:2]
    assert left.images[0].get_array().shape == (layers, 4) and np.allclose(
        right.images[0].get_array(), 100 * values.T
    )
    names = [text.get_text() for text in left.get_yticklabels()]
    assert len(names) == named and names[1] == f"model.{-(-layers // ROWS_NAMED)}"
    assert right.get_title() == "% of channels with |gamma| < 0.01" and left.get_xlabel() == "epoch"


def test_evolution_shows_percentiles_share_and_norms(drawn, tmp_path):
    gammas = np.array([[0.9, 0.5, 0.7, 0.9, 1.0, 1.2, 0.0], [0.4, 0.0, 0.1, 0.4, 0.6, 0.9, 0.25]])
    plot_evolution(gammas, np.zeros((2, 0)), PERCENTILES, 0.01, tmp_path / "x.png")
    plot_evolution(gammas, gammas[:, :6], PERCENTILES, 0.01, tmp_path / "x.png")
    alone, both = drawn
    assert [axis.get_ylabel() for axis in alone.axes] == ["|gamma|", "% of channels below 0.01"]
    assert {axis.get_ylabel() for axis in both.axes} == {
        "|gamma|",
        "% of channels below 0.01",
        "norm of coupled slices",
    }
    lines = {
        line.get_label(): line.get_ydata().tolist() for axis in alone.axes for line in axis.lines
    }
    assert lines == {"median": [0.9, 0.4], "mean": [0.9, 0.4], "% below 0.01": [0.0, 25.0]}


def test_the_verdict_compares_the_last_map_with_the_best(tmp_path):
    trainer, hook = sparse_trainer("slim", 0.05, epochs=1)
    record = BNStatsLogger(hook, tmp_path, pictures=False)
    trainer.hooks = [hook, record]
    trainer.__post_init__()
    trainer.fit()
    with torch.no_grad():
        for gamma in hook.gammas.values():
            gamma[: len(gamma) - 4] = 0.0  # something that can be cut for nothing
    trainer.history = [{"metrics/mAP_0.5:0.95": value} for value in (0.5, 0.548, 0.283)]
    assert "took mAP50-95 from 0.548 to 0.283" in record.verdict(trainer)
    trainer.history[-1]["metrics/mAP_0.5:0.95"] = 0.53
    assert record.verdict(trainer).endswith("pruning up to that will cost little")
