"""Checkpoints: pruned structures come back bit for bit, broken files are one line, an earlier file
survives.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_pruning as tp
from torch import nn

from models import Model, build_model, load_model, save_model
from models.checkpoint import (
    load_checkpoint,
    model_from_checkpoint,
    save_checkpoint,
    transfer_weights,
)
from models.heads.detect import ImplicitA
from utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


def shrink_by_hand(model: Model) -> None:
    """Drop the last 5 output channels of yolov5n's first convolution."""
    first, second = model.model[0], model.model[1]
    keep = first.conv.out_channels - 5
    first.conv.weight = nn.Parameter(first.conv.weight[:keep].detach().clone())
    first.conv.out_channels = keep
    for name in ("weight", "bias"):
        setattr(first.bn, name, nn.Parameter(getattr(first.bn, name)[:keep].detach().clone()))
    first.bn.running_mean, first.bn.running_var = (
        first.bn.running_mean[:keep].clone(),
        first.bn.running_var[:keep].clone(),
    )
    first.bn.num_features = keep
    second.conv.weight = nn.Parameter(second.conv.weight[:, :keep].detach().clone())
    second.conv.in_channels = keep


class ImplicitPruner(tp.pruner.function.BasePruningFunc):
    """What torch-pruning needs to know about ImplicitA: its vector follows the channels."""

    def prune_out_channels(self, layer: ImplicitA, idxs: list[int]) -> nn.Module:
        keep = sorted(set(range(layer.implicit.shape[1])) - set(idxs))
        layer.implicit = nn.Parameter(layer.implicit[:, keep].detach().clone())
        return layer

    prune_in_channels = prune_out_channels

    def get_out_channels(self, layer: ImplicitA) -> int:
        return layer.implicit.shape[1]

    get_in_channels = get_out_channels


def shrink_by_library(model: Model) -> None:
    """Half of every width the library finds, but for the final predictions."""
    head = model.head
    implicits = [*getattr(head, "ia", []), *getattr(head, "im", [])]
    pruner = tp.pruner.BasePruner(
        model.eval(),
        torch.rand(1, 3, 64, 64),
        tp.importance.MagnitudeImportance(p=1),
        pruning_ratio=0.5,
        ignored_layers=[*head.m, *getattr(head, "im", [])],
        root_module_types=[nn.Conv2d],
        customized_pruners={type(m): ImplicitPruner() for m in implicits},
        forward_fn=lambda net, x: net(x)[0].sum(),
    )
    pruner.step()
    model.train()


def fresh(name: str = "yolov5n", nc: int = 2) -> Model:
    torch.manual_seed(0)
    return build_model(name, nc=nc)


@pytest.mark.parametrize(
    ("name", "shrink"),
    [
        ("yolov5n", shrink_by_hand),
        ("yolov5n", shrink_by_library),
        ("yolov7-tiny", shrink_by_library),
    ],
)
def test_pruned_model_comes_back_bit_identical(name: str, shrink: Any, tmp_path: Path) -> None:
    model = fresh(name)
    full = sum(p.numel() for p in model.parameters())
    shrink(model)
    assert sum(p.numel() for p in model.parameters()) < full
    x = torch.rand(1, 3, 64, 64)
    model(torch.rand(2, 3, 64, 64))  # moves the statistics
    save_model(model, tmp_path / "pruned.pt")
    again = load_model(tmp_path / "pruned.pt")
    assert again.training
    assert torch.equal(model.eval()(x)[0], again.eval()(x)[0])
    layers = [m for m in again.modules() if isinstance(m, nn.Conv2d)]
    assert all(m.weight.shape[:2] == (m.out_channels, m.in_channels // m.groups) for m in layers)
    assert again.info(64)["macs"] == model.info(64)["macs"]
    shrink(again)  # prunes again, and saves again
    save_model(again, tmp_path / "twice.pt")
    assert torch.equal(load_model(tmp_path / "twice.pt").eval()(x)[0], again.eval()(x)[0])


def test_a_new_process_gives_the_same_bits(tmp_path: Path) -> None:
    model = fresh()
    shrink_by_hand(model)
    save_model(model, tmp_path / "pruned.pt")
    x = torch.linspace(0, 1, 3 * 64 * 64).view(1, 3, 64, 64)
    torch.save(model.eval()(x)[0], tmp_path / "expected.pt")
    code = (
        "import torch; torch.set_num_threads(1); from models import load_model\n"
        "x = torch.linspace(0, 1, 3 * 64 * 64).view(1, 3, 64, 64)\n"
        f"y = load_model({str(tmp_path / 'pruned.pt')!r}).eval()(x)[0]\n"
        f"assert torch.equal(y, torch.load({str(tmp_path / 'expected.pt')!r}, weights_only=True))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_content_is_plain_and_complete(tmp_path: Path) -> None:
    model = fresh(nc=3)
    model.names = ["a", "b", "c"]
    save_checkpoint(
        tmp_path / "x.pt",
        model,
        epoch=4,
        best_fitness=0.5,
        hyp={"lr0": 0.1},
        train_state={"step": torch.tensor(7)},
    )
    content = torch.load(tmp_path / "x.pt", weights_only=True)
    assert set(content) == {
        *("format", "model_cfg", "structure", "state_dict", "names", "stride", "anchors"),
        *("hyp", "args", "epoch", "best_fitness", "history", "train_state"),
    }
    assert (content["epoch"], content["names"], content["stride"], content["structure"]) == (
        4,
        ["a", "b", "c"],
        [8, 16, 32],
        {},
    )
    assert content["anchors"][0] == pytest.approx([10, 13, 16, 30, 33, 23])
    assert model_from_checkpoint(content).names == ["a", "b", "c"]


def test_structure_names_only_what_changed(tmp_path: Path) -> None:
    model = fresh()
    shrink_by_hand(model)
    save_model(model, tmp_path / "x.pt")
    structure = load_checkpoint(tmp_path / "x.pt")["structure"]
    assert list(structure) == ["model.0.conv", "model.0.bn", "model.1.conv"]
    assert structure["model.0.conv"] == {
        "in_channels": 3,
        "out_channels": 11,
        "groups": 1,
        "shapes": {"weight": [11, 3, 6, 6]},
    }
    assert structure["model.1.conv"]["in_channels"] == 11


def test_anchors_of_the_file_win_over_its_yaml(tmp_path: Path) -> None:
    model = fresh("yolov7-tiny")
    model.head.set_anchors(torch.arange(1.0, 19.0).view(3, 3, 2))
    save_model(model, tmp_path / "x.pt")
    assert torch.equal(
        load_model(tmp_path / "x.pt").head.anchors_px.flatten(), torch.arange(1.0, 19.0)
    )


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"fields\['args'\]\['path'\] is a PosixPath"):
        save_checkpoint(tmp_path / "x.pt", fresh(), args={"path": Path("x")})
    assert not list(tmp_path.iterdir())


def test_words_in_the_options_do_not_make_a_file_official(tmp_path: Path) -> None:
    save_model(fresh(), tmp_path / "x.pt", args={"note": "models.yolo"})
    assert load_model(tmp_path / "x.pt").nc == 2


def test_a_fused_model_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="save the model that fuse"):
        save_model(fresh().fuse(), tmp_path / "x.pt")


def test_broken_files_are_one_line_each(tmp_path: Path) -> None:
    good = tmp_path / "good.pt"
    save_model(fresh(), good)
    data = good.read_bytes()

    def written(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    def saved(name: str, content: Any) -> Path:
        torch.save(content, tmp_path / name)
        return tmp_path / name

    checkpoint = load_checkpoint(good)
    cases = [
        (tmp_path / "missing.pt", "no such file"),
        (written("empty.pt", b""), "damaged or no checkpoint"),
        (written("text.pt", b"hello, I am no checkpoint" * 20), "no checkpoint"),
        (written("truncated.pt", data[: len(data) // 2]), "damaged or no checkpoint"),
        (saved("list.pt", [1, 2]), "it has no 'format'"),
        (saved("other.pt", {"weights": torch.zeros(3)}), "it has no 'format'"),
        (
            saved("version.pt", checkpoint | {"format": 99}),
            "checkpoint format 99; this version reads format 1",
        ),
        (saved("partial.pt", {"format": 1, "model_cfg": {}}), "it has no 'structure'"),
        (
            saved("state.pt", checkpoint | {"state_dict": {"model.0.conv.weight": torch.zeros(1)}}),
            "do not fit its own structure",
        ),
        (
            saved("where.pt", checkpoint | {"structure": {"model.99": {}}}),
            "structure: 'model.99' is not widths and shapes",
        ),
    ]
    for path, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            load_model(path)
        assert "\n" not in str(caught.value), path


def test_a_pickled_object_is_refused(tmp_path: Path) -> None:
    torch.save({"format": 1, "model": fresh()}, tmp_path / "module.pt")
    with pytest.raises(UserError, match="whole model"):
        load_model(tmp_path / "module.pt")


def test_failed_write_keeps_the_earlier_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.pt"
    save_model(fresh(), path, epoch=1)
    before = path.read_bytes()

    def fail(content: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(
        UserError, match=r"last\.pt: cannot be written: No space left on device; an earlier file is"
    ):
        save_model(fresh(), path, epoch=2)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_full_disk_in_a_real_process(tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands in for a full disk: the process's writes fail beyond 1 MB."""
    save_model(fresh(), tmp_path / "last.pt", epoch=1)
    code = (
        "import resource, signal, torch; from models import build_model,"
        " save_model\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        " resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\nfrom utils.errors import"
        f" UserError\ntry:\n    save_model(build_model('yolov5n'), {str(tmp_path / 'last.pt')!r},"
        " epoch=2)\nexcept UserError as error:\n    print(error)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "last.pt: cannot be written: File too large; an earlier file is" in result.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]
    assert load_checkpoint(tmp_path / "last.pt")["epoch"] == 1


def test_file_is_readable_like_any_other(tmp_path: Path) -> None:
    save_model(fresh(), tmp_path / "x.pt")
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "x.pt").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_transfer_takes_what_fits_but_not_the_anchors() -> None:
    source, target = fresh(nc=2), fresh(nc=5)
    target.head.set_anchors(torch.ones(3, 3, 2))
    with torch.no_grad():
        for p in source.parameters():
            p.add_(1)
    copied, total = transfer_weights(target, source.state_dict())
    assert (copied, total) == (
        349 - 1 - 6,
        349,
    )  # without anchors and the three predictions' weights and biases
    assert torch.equal(target.model[0].conv.weight, source.model[0].conv.weight)
    assert target.head.anchors_px.unique().tolist() == [1.0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    model = fresh()
    with torch.no_grad():
        next(model.parameters())[0, 0, 0, 0] = value
    model.model[0].bn.running_var[3] = value
    save_model(model, tmp_path / "bad.pt")
    with pytest.raises(UserError, match=r"bad\.pt: 2 of its \d+ tensors are not finite .*model\.0"):
        load_model(tmp_path / "bad.pt")


def test_a_whole_pickled_model_is_called_so(tmp_path):
    model = build_model("yolov5n", nc=2)
    for name, content in (("whole", model), ("dict", {"model": model}), ("conv", model.model[0])):
        torch.save(content, tmp_path / f"{name}.pt")
        with pytest.raises(UserError, match=r"torch.save\(model\).*models.save_model\(model"):
            load_model(tmp_path / f"{name}.pt")
