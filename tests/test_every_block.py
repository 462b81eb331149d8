"""What is promised of every block that a YAML can name; its row is in tests/every_block.py."""

import importlib
import importlib.util
import inspect
import re
import sys
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from models import Model, build_model, load_model, save_model
from models.registry import BLOCKS, BuildContext
from prune_methods import Prunable, run_preflight
from prune_methods.groups.channel_index import ChannelIndex
from prune_methods.groups.graph import PRODUCERS
from prune_methods.groups.inexact import inexact_blocks
from prune_methods.search.cost import Cost
from prune_methods.surgery.cut import largest_difference
from prune_methods.surgery.verify import deployed_macs
from tests.conftest import ROOT
from tests.every_block import CASES, FIRST, blocks_to_test, model_of, must_have_a_row
from tests.prune_toys import randomised

STRUCTURES = sorted(path.stem for path in (ROOT / "models/configs/custom").glob("*.yaml"))
NAMES = [name for name in blocks_to_test() if name in CASES]
MEASURED = ("a cut copy", "its channels cannot be followed", "cannot be traced", "not followed")
"""How reasons begin that no block and no user has asked for."""
ONNX = all(importlib.util.find_spec(package) for package in ("onnx", "onnxruntime"))


def inside(name: str, case_row: str) -> bool:
    return name == case_row or name.startswith(f"{case_row}.")


class Prepared:
    """A block's model with statistics as after training, what preflight says, and a cut by half."""

    def __init__(self, name: str):
        self.case = CASES[name]
        torch.manual_seed(0)
        self.model = randomised(build_model(model_of(self.case)))
        self.row = f"model.{len(self.case.rows) - 1 + (0 if self.case.backbone else FIRST)}"
        self.found, self.skipped = run_preflight(self.model)
        rng = np.random.default_rng(0)
        self.masks = {g.name: rng.random(g.size) < 0.6 for g in self.found}
        for mask in self.masks.values():
            mask[0] = True
        self.smaller = Prunable(self.model, self.found).cut(self.masks)


@cache
def prepared(name: str) -> Prepared:
    if CASES[name].needs and importlib.util.find_spec(CASES[name].needs) is None:
        pytest.skip(f"{CASES[name].needs} is not installed")
    return Prepared(name)


def image(seed: int = 0, n: int = 1) -> torch.Tensor:
    return torch.rand(n, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def assert_trains(model: Model, row: str, shut: str = "") -> None:
    """Finite maps, and a finite gradient at every parameter of the block, which is not zero but in
    the layer `shut`.
    """
    model.train().requires_grad_(True).zero_grad()
    maps = model(image(n=2))
    assert all(y.isfinite().all() for y in maps)
    sum(y.square().mean() for y in maps).backward()
    own = {n: p for n, p in model.named_parameters() if inside(n, row)}
    missing = [n for n, p in own.items() if p.grad is None or not p.grad.isfinite().all()]
    missing += [
        n
        for n, p in own.items()
        if p.grad is not None and not p.grad.any() and not (shut and shut in n)
    ]
    assert not missing, f"no gradient: {missing}"


def assert_fuses(model: Model) -> None:
    """The deployed form gives the same boxes."""
    model = model.eval()
    with torch.no_grad():
        ours, theirs = model(image())[1], model.fuse()(image())[1]
    scale = max(float(y.abs().max()) for y in ours)
    assert (
        max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)) <= 1e-4 * scale
    )


def test_every_block_has_a_row():
    missing = [name for name in blocks_to_test() if name not in CASES and must_have_a_row(name)]
    assert not missing, (
        f"{missing}: add a row for each to CASES in tests/every_block.py (docs/custom_block.md says"
        " how)"
    )


@pytest.mark.parametrize("name", [name for name in NAMES if must_have_a_row(name)])
def test_its_file_says_what_it_is(name: str):
    """What differs from the paper, shapes, pruning, and a row to copy whose arguments the block
    takes.
    """
    page = sys.modules[BLOCKS[name].__module__].__doc__ or ""
    missing = [word for word in ("What differs", "(N, ", "Pruning: ") if word not in page]
    assert not missing, f"the docstring of its file says nothing of: {missing}"
    examples = [
        yaml.safe_load(row)
        for row in re.findall(r"^ +- (\[.*?\])(?= {2,}|$)", page, flags=re.MULTILINE)
    ]
    rows = [row for row in examples if row[2] == name]
    assert rows or name.startswith("nn."), f"no row of {name} in its file's docstring"
    for _, _, _, args in rows:
        inspect.signature(BLOCKS[name].from_yaml).bind(BuildContext, *args)


@pytest.mark.parametrize("name", NAMES)
def test_trains_and_deploys(name: str):
    block = prepared(name)
    model, statistics = block.model, {k: v.clone() for k, v in block.model.state_dict().items()}
    assert_trains(model, block.row, block.case.shut)
    model.load_state_dict(statistics)
    assert_fuses(model)


@pytest.mark.parametrize("name", NAMES)
def test_prunes_or_says_why_not(name: str):
    block = prepared(name)
    cut = {m.name for g in block.found for m in g.members if m.kind in PRODUCERS}
    own = [
        n
        for n, m in block.model.named_modules()
        if inside(n, block.row) and isinstance(m, nn.Conv2d | nn.Linear)
    ]
    own_cut = [n for n in own if n in cut]
    reasons = {s.layer: s.reason for s in block.skipped}
    if block.case.whole:
        assert not own_cut, f"declared whole ({block.case.whole}), but {own_cut} can be cut"
        return
    assert own_cut or not own or getattr(BLOCKS[block.case.rows[-1][2]], "is_head", False), reasons
    if not block.case.unprovable:
        bad = {n: r for n, r in reasons.items() if r.startswith(MEASURED) or "cannot be cut" in r}
        assert not bad, "a rule of the block should say what stays whole"
    assert "model.0.conv" in cut or block.case.backbone


@pytest.mark.parametrize("name", NAMES)
def test_cut_equals_zeroed_channels_and_costs_what_was_predicted(name: str):
    block = prepared(name)
    assert (
        largest_difference(
            block.smaller, Prunable(block.model, block.found).zero_channels(block.masks)
        )
        < 1e-4
    )
    index = ChannelIndex(block.model, block.found)
    predicted = Cost(index, 64).macs(index.flatten(block.masks))
    assert predicted == deployed_macs(block.smaller, 64) < deployed_macs(block.model, 64)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_left_trains_deploys_and_is_loaded_again(name: str, tmp_path: Path):
    block = prepared(name)
    save_model(block.smaller, tmp_path / "small.pt")
    loaded = load_model(tmp_path / "small.pt")
    with torch.no_grad():
        pairs = zip(loaded.eval()(image())[1], block.smaller.eval()(image())[1], strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert_fuses(loaded)
    assert_trains(loaded, block.row, block.case.shut)


@pytest.mark.parametrize("name", NAMES)
def test_exports_to_onnx_or_says_why_not(name: str, tmp_path: Path):
    """The exporter knows every operator.

    It converts the whole graph before it misses the package onnx.
    """
    block = prepared(name)
    if block.case.export:
        with pytest.raises((RuntimeError, torch.onnx.errors.OnnxExporterError)):
            to_onnx(block.smaller.fuse(), tmp_path / "x.onnx")
    else:
        to_onnx(block.smaller.fuse(), tmp_path / "x.onnx")


@pytest.mark.skipif(not ONNX, reason="needs the packages onnx and onnxruntime")
@pytest.mark.parametrize("name", [name for name in NAMES if not CASES[name].export])
def test_onnx_runtime_gives_the_same_maps(name: str, tmp_path: Path):
    deployed = prepared(name).smaller.fuse()
    to_onnx(deployed, tmp_path / "x.onnx")
    assert_same_maps(deployed, tmp_path / "x.onnx")


@pytest.mark.parametrize("name", STRUCTURES)
def test_structures_export_to_onnx(name: str, tmp_path: Path):
    """Blocks also stand behind maps whose size the exporter has lost, as after an upsampling to the
    size of another map.
    """
    torch.manual_seed(0)
    deployed = build_model(name, nc=2).fuse()
    to_onnx(deployed, tmp_path / "x.onnx")
    if ONNX:
        assert_same_maps(deployed, tmp_path / "x.onnx")


def to_onnx(deployed: nn.Module, path: Path) -> None:
    """By the older exporter; the file is missing where the package onnx is."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(deployed, (image(),), str(path), dynamo=False, opset_version=17)
    except torch.onnx.errors.OnnxExporterError as error:
        if "onnx is not installed" not in str(error):
            raise


def assert_same_maps(deployed: nn.Module, path: Path) -> None:
    """ONNX Runtime's boxes and raw maps are PyTorch's, on an image that the exporter
    has not seen.
    """
    onnxruntime = importlib.import_module("onnxruntime")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    theirs = session.run(None, {session.get_inputs()[0].name: image(1).numpy()})
    with torch.no_grad():
        boxes, maps = deployed(image(1))
    for ours, found in zip([boxes, *maps], theirs, strict=True):
        assert np.abs(ours.numpy() - found).max() <= 1e-4 * max(1.0, float(ours.abs().max()))


def test_inexact_blocks_are_known():
    """A block that is not proved in full is an exception with a reason."""
    named = {
        name: BLOCKS[name].inexact
        for name in blocks_to_test()
        if getattr(BLOCKS[name], "inexact", "")
    }
    assert all(isinstance(reason, str) and len(reason) > 20 for reason in named.values())
    assert {name for name in NAMES if name in ("ECA", "CBAM")} <= set(named)
    assert not inexact_blocks(build_model(model_of(CASES["C3"])))
