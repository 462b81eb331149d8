"""Gradients and sparsity as prune.py asks for them: real batches, the detection loss,
checkpoints.
"""

import logging

import pytest
import torch

from data.config import load_data
from data.loader import build_loader
from models import build_model, load_model, save_model
from prune_methods import PRUNERS, ChannelIndex, Prunable, Target, find_groups
from prune_methods.surgery.verify import verify
from recipes.prune.gradients import (
    detection_losses,
    evidence_source,
    sparse_share,
    suggest_sparser,
    warn_if_dense,
)
from tests.data_sets import write_set
from tests.prune_toys import TINY_REP, randomised, run_of
from utils.config import load_hyp
from utils.losses import build_loss
from utils.options.base import parse_options
from utils.options.prune import PruneOptions


def options(*words: str) -> PruneOptions:
    return parse_options(
        PruneOptions,
        ["--weights", "x.pt", "--data", "tiny", "--imgsz", "64", "--batch-size", "2", *words],
    )


@pytest.fixture(scope="module")
def loader(tmp_path_factory):
    content = write_set(tmp_path_factory.mktemp("set"), [(64, 64)] * 5, nc=2)
    return build_loader(
        load_data(content | {"val": content["train"]}), "train", imgsz=64, batch_size=2
    )


def test_losses_are_those_of_training_in_eval_mode(loader):
    model = randomised(build_model(TINY_REP)).eval()
    opt = options("--calib-batches", "2")
    loss = build_loss(model, load_hyp("finetune").scaled(model.head.nl, 2, 64))
    expected = [loss(model(b.images.float() / 255)[1], b.targets)[0] for b in list(loader)[:2]]
    found = list(detection_losses(model, loader, opt)(model, False))
    torch.testing.assert_close(torch.stack(found), torch.stack(expected))
    single = list(detection_losses(model, loader, opt)(model, True))
    assert len(single) == 4 and all(s.requires_grad for s in single)
    image, labels = list(loader)[1].images[1:], list(loader)[1].targets
    own = labels[labels[:, 0] == 1].clone()
    own[:, 0] = 0
    torch.testing.assert_close(single[3], loss(model(image.float() / 255)[1], own)[0])
    assert (
        len(list(detection_losses(model, loader, options())(model, False))) == 3
    )  # no more batches than there are


def collect(run, model, found, criterion, masks):
    source = evidence_source(run, Prunable(model, found), criterion)
    assert source is not None
    return source.collect(masks)


def test_a_masked_model_is_measured_with_fresh_statistics(loader):
    model = randomised(build_model(TINY_REP))
    found, criterion = find_groups(model), PRUNERS["group_taylor"]()
    masks = Prunable(model, found).search(PRUNERS["l1"](), Target(1.5)).masks
    group = next(g for g in found if not masks[g.name].all())
    first, left = group.members[0].name, masks[group.name]
    results = {}
    for batches in ("0", "2"):
        run = run_of(options("--recalibrate-batches", batches), loader)
        results[batches] = collect(run, model, found, criterion, masks)[first][left]
    assert not torch.allclose(*(torch.from_numpy(t) for t in results.values()), rtol=0.05)
    # nothing masked: the statistics stay
    whole = {name: mask | True for name, mask in masks.items()}
    runs = [run_of(options("--recalibrate-batches", b), loader) for b in ("0", "2")]
    tables = [collect(run, model, found, criterion, whole)[first].tolist() for run in runs]
    assert tables[0] == tables[1]


def test_other_methods_need_nothing(loader, caplog):
    model = build_model(TINY_REP)
    with caplog.at_level(logging.WARNING):
        prunable = Prunable.of(model)
        assert evidence_source(run_of(options(), loader), prunable, PRUNERS["lamp"]()) is None
        assert not caplog.records
        opt = options("--method", "lamp", "--recalib-every", "5", "--calib-batches", "3")
        evidence_source(run_of(opt, loader), prunable, PRUNERS["lamp"]())
    assert "--calib-batches, --recalib-every: no effect, lamp uses no gradients" in caplog.text


@pytest.mark.parametrize(
    ("method", "cfg"),
    [("group_taylor", "yolov7-tiny"), ("group_hessian", "yolov5n"), ("slim", "yolov7-tiny")],
)
def test_whole_models_reach_the_target(cfg, method, loader):
    model = randomised(build_model(cfg, nc=2))
    found, criterion = find_groups(model), PRUNERS[method]()
    prunable = Prunable(model, found)
    run = run_of(options("--method", method, "--calib-batches", "1"), loader)
    source = evidence_source(run, prunable, criterion)
    plan = prunable.search(criterion, Target(2.0, imgsz=64), source=source)
    # the last channel to go may be one of the stem: 1.8 % of what is left of a YOLOv5n
    assert 2.0 <= plan.speed_up < 2.04 and min(int(m.sum()) for m in plan.masks.values()) >= 4
    verify(
        ChannelIndex(model, found),
        plan.masks,
        plan.macs,
        Prunable(model, found).cut(plan.masks),
        64,
    )


def checkpoint(path, share=0.0, **args):
    model = build_model(TINY_REP)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data[: round(share * module.num_features)] = 1e-4
    save_model(model, path, args=args)
    return str(path)


@pytest.mark.parametrize(
    ("share", "args", "warned"),
    [
        (0.0, {}, True),
        (0.0, {"method": "lamp", "speed_up": 2.0}, True),  # pruned.pt
        (0.0, {"method": "slim", "reg": 5e-4}, False),
        (0.5, {}, False),  # imported, sparse all the same
    ],
)
def test_a_dense_checkpoint_is_told(tmp_path, caplog, share, args, warned):
    path = checkpoint(tmp_path / "x.pt", share, **args)
    opt = parse_options(PruneOptions, ["--weights", path, "--data", "demo", "--method", "slim"])
    with caplog.at_level(logging.WARNING):
        warn_if_dense(load_model(path), opt)
    command = f"python train_sparse.py --weights {path} --data demo --method slim"
    assert [command in r.message and "\n" not in r.message for r in caplog.records] == [
        True
    ] * warned


def test_a_sparser_checkpoint_beside_the_given_one_is_named(tmp_path, caplog):
    """best.pt has 30 %: the 20 % one is no help, of the sparser ones the fittest is named, whatever
    else lies there.
    """
    given = checkpoint(tmp_path / "best.pt", 0.3)
    model = load_model(given)
    assert 0.25 < sparse_share(model) < 0.35
    assert suggest_sparser(model, given) is None
    for decile, fitness in ((20, 0.9), (50, 0.4), (60, 0.5), (80, 0.1)):
        save_model(model, tmp_path / f"sparse_{decile}.pt", best_fitness=fitness)
    (tmp_path / "sparse_notes.txt").write_text("mine")
    with caplog.at_level(logging.INFO):
        assert suggest_sparser(model, given) == str(tmp_path / "sparse_60.pt")
    (line,) = caplog.messages
    assert (
        f"--weights {tmp_path / 'sparse_60.pt'} (at least 60%, fitness 0.500)" in line
        and "\n" not in line
    )


def test_share_by_hand():
    model = torch.nn.Sequential(
        torch.nn.BatchNorm2d(4), torch.nn.BatchNorm2d(4, affine=False), torch.nn.BatchNorm1d(1)
    )
    model[0].weight.data = torch.tensor([0.0, -0.005, 0.02, -1.0])
    assert sparse_share(model) == pytest.approx(2 / 5)
    assert sparse_share(torch.nn.Conv2d(1, 1, 1)) == 0
