"""Parts of the recipe that need no training: recalibration, options, what is written."""

import csv
import logging
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from models import build_model, save_model
from prune_methods import PRUNERS, Limits, Prunable, Step, Target, find_groups, run_preflight
from prune_methods.surgery.recalibrate import recalibrate_bn
from recipes.prune.report import Report, write_channels, write_steps
from recipes.prune.run import check_reachable, matching_data, prune
from recipes.prune.training import Finetune, forget_earlier, interrupted_run
from tests.prune_toys import TINY_REP, Chain, toy
from utils.config import save_yaml
from utils.errors import UserError
from utils.options.base import parse_options, to_dict
from utils.options.prune import METHODS, PruneOptions


def batches(number=3, size=4):
    generator = torch.Generator().manual_seed(1)
    return [
        SimpleNamespace(
            images=torch.randint(0, 256, (size, 3, 16, 16), dtype=torch.uint8, generator=generator)
        )
        for _ in range(number)
    ]


def test_recalibration_is_the_average_of_batch_statistics():
    model, data = toy(Chain).eval(), batches()
    stem = [model.stem[0](b.images.float() / 255) for b in data]
    assert recalibrate_bn(model, data, batches=2) == 2
    mean = torch.stack([x.mean((0, 2, 3)) for x in stem[:2]]).mean(0)
    var = torch.stack([x.var((0, 2, 3)) for x in stem[:2]]).mean(0)
    torch.testing.assert_close(model.stem[1].running_mean, mean)
    torch.testing.assert_close(model.stem[1].running_var, var)


def test_recalibration_leaves_everything_else_alone():
    model = toy(Chain).train()
    model.mid.eval()
    model.stem[1].momentum = 0.03
    weights = {n: p.clone() for n, p in model.named_parameters()}
    recalibrate_bn(model, batches(), 3)
    assert model.training and model.stem[1].training and not model.mid[1].training
    assert model.stem[1].momentum == 0.03 and all(
        torch.equal(weights[n], p) for n, p in model.named_parameters()
    )
    before = model.stem[1].running_mean.clone()
    assert recalibrate_bn(model, batches(), 0) == 0 and torch.equal(
        before, model.stem[1].running_mean
    )


def test_recalibration_repairs_shifted_statistics():
    model = toy(Chain)
    recalibrate_bn(model, batches(), 3)
    model.eval()
    x = batches()[0].images.float() / 255
    right = model(x)
    model.stem[1].running_mean.add_(3.0)
    assert (model(x) - right).abs().max() > 0.1
    recalibrate_bn(model, batches(), 3)
    torch.testing.assert_close(model(x), right)


def options(*words: str) -> PruneOptions:
    return parse_options(PruneOptions, words)


def test_options_take_users_spellings():
    opt = options(
        "--speed-up",
        "1.5",
        "--max_ratio",
        ".8",
        "--img-size",
        "320",
        "--batch",
        "8",
        "--no-finetune",
        "--local",
    )
    assert (
        opt.speed_up,
        opt.max_ratio,
        opt.imgsz,
        opt.batch_size,
        opt.finetune,
        opt.per_layer,
    ) == (
        1.5,
        0.8,
        320,
        8,
        False,
        True,
    )
    assert (
        options("--ignore", "3", "model.*.cv3").ignore == ("3", "model.*.cv3")
        and options("--global").across_layers
    )
    assert sorted(PRUNERS.names()) == sorted(
        METHODS
    )  # read from the files, so that --help needs no torch


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--weights is missing"),
        (["--weights", "x.pt"], "--data is missing"),
        (["--weights", "x.pt", "--data", "demo", "--speed-up", "1"], "above 1"),
        (["--weights", "x.pt", "--data", "demo", "--max-ratio", "0"], "--max-ratio 0"),
        (["--weights", "x.pt", "--data", "demo", "--min-channels", "0"], "--min-channels 0"),
        (["--weights", "x.pt", "--data", "demo", "--global", "--local"], "exclude"),
        (["--weights", "x.pt", "--data", "demo", "--method", "lamb"], "did you mean 'lamp'"),
        (
            [
                "--weights",
                "x.pt",
                "--data",
                "demo",
                "--method",
                "slim",
                "--sparse-epochs",
                "1",
                "--sparse-reg",
                "-1",
            ],
            "--sparse-reg -1",
        ),
        (
            [
                "--weights",
                "x.pt",
                "--data",
                "demo",
                "--method",
                "slim",
                "--sparse-epochs",
                "1",
                "--sparse-reg",
                "x",
            ],
            "--sparse-reg x",
        ),
        (["--resume", "runs/prune/exp", "--dry-run"], "--dry-run: cannot be had with --resume"),
        (["--weights", "x.pt", "--data", "demo"], "no such file"),
    ],
)
def test_bad_options_are_one_line(words, message):
    with pytest.raises(UserError, match=message):
        prune(options(*words))


def test_unreachable_target_names_the_best_reachable():
    model = build_model(TINY_REP)
    found = find_groups(model)
    opt = options("--weights", "x.pt", "--max-ratio", "0.2", "--speed-up", "2")
    with pytest.raises(UserError, match=r"at most.*--allow-less") as error:
        check_reachable(Prunable(model, found), opt)
    best = float(str(error.value).split("allow ")[1].split("x at most")[0])
    plan = Prunable(model, found).search(PRUNERS["l1"](), Target(100.0), limits=Limits(4, 0.2))
    assert plan.speed_up == pytest.approx(best, abs=0.01)
    check_reachable(
        Prunable(model, found), options("--weights", "x.pt", "--max-ratio", "0.2", "--allow-less")
    )


def test_a_target_in_time_is_not_judged_by_macs():
    model = build_model(TINY_REP)
    words = ("--weights", "x.pt", "--max-ratio", "0.2", "--speed-up", "2", "--target", "latency")
    check_reachable(Prunable.of(model), options(*words))


def test_resume_takes_its_own_options_and_says_so(tmp_path, caplog):
    save_yaml(
        to_dict(options("--weights", "x.pt", "--speed-up", "3", "--ignore", "2", "--device", "0")),
        tmp_path / "opt.yaml",
    )
    opt, folder = interrupted_run(options("--resume", str(tmp_path)))
    assert (opt.weights, opt.speed_up, opt.ignore, opt.device, folder) == (
        "x.pt",
        3.0,
        ("2",),
        "0",
        tmp_path,
    )
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        opt, _ = interrupted_run(
            options(
                "--resume", str(tmp_path), "--speed-up", "2.5", "--method", "l1", "--device", "cpu"
            )
        )
    assert (opt.speed_up, opt.method, opt.device) == (3.0, "group_fisher", "cpu")
    assert [r.getMessage() for r in caplog.records] == [
        "--method, --speed-up: no effect with --resume, the run goes on with its own options"
    ]


def test_a_teacher_counts_where_anything_is_trained(caplog):
    words = (
        "--weights",
        "x.pt",
        "--data",
        "demo",
        "--teacher",
        "t.pt",
        "--feature-loss",
        "cwd",
        "--no-finetune",
    )
    with caplog.at_level(logging.WARNING):
        options(*words, "--method", "slim", "--sparse-epochs", "1").check()
        assert not caplog.records
        options(*words).check()
    assert "--teacher has no effect" in caplog.text


def test_what_an_earlier_run_of_the_name_left_is_not_gone_on_with(tmp_path):
    left = ["sparse/weights/last.pt", "finetune/weights/last.pt", "prune_report.json"]
    for name in (*left, "pagcp_state.json", "weights/best.pt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    forget_earlier(tmp_path)
    assert not any((tmp_path / name).exists() for name in left)
    assert (tmp_path / "pagcp_state.json").exists() and (
        tmp_path / "weights/best.pt"
    ).exists()  # the state has a key of its own
    assert (
        Finetune().resume_hint(tmp_path / "finetune")
        == f"go on with: python prune.py --resume {tmp_path}"
    )


def test_nothing_to_prune_is_an_error():
    model = build_model(TINY_REP)
    found, _ = run_preflight(model, ["model.*"])
    with pytest.raises(UserError, match="nothing can be pruned"):
        check_reachable(Prunable(model, found), options("--weights", "x.pt", "--allow-less"))


def test_other_classes_are_refused(tmp_path):
    (tmp_path / "images").mkdir()
    data = tmp_path / "d.yaml"
    data.write_text("path: .\ntrain: images\nval: images\nnames: [a, b, c]\n")
    with pytest.raises(UserError, match="has 2 classes, .* has 3"):
        matching_data(build_model(TINY_REP), options("--weights", "x.pt", "--data", str(data)))


def test_dry_run_lists_everything_and_needs_no_data(tmp_path, capsys):
    save_model(build_model("yolov5n", nc=2), tmp_path / "x.pt")
    for _ in range(2):  # the second writes over the first
        assert (
            prune(
                options(
                    "--weights",
                    str(tmp_path / "x.pt"),
                    "--dry-run",
                    "--project",
                    str(tmp_path / "runs"),
                )
            )
            is None
        )
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["dry-run"]
    with (tmp_path / "runs" / "dry-run" / "skipped.csv").open() as file:
        assert [row["layer"] for row in csv.DictReader(file)] == [
            f"model.24.m.{i}" for i in range(3)
        ]
    out = capsys.readouterr().out
    assert (
        "model.24.m.0" in out
        and "makes the output of the model" in out
        and "Reachable speed-up" in out
    )


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_written_files(tmp_path):
    model = build_model("yolov5n", nc=2)
    found = find_groups(model, ["3"])
    plan = Prunable(model, found).search(PRUNERS["lamp"](), Target(2.0))
    smaller = Prunable(model, found).cut(plan.masks)
    write_channels(model, smaller, tmp_path)
    rows = {r["layer"]: r for r in read(tmp_path / "channels.csv")}
    assert len(rows) == sum(isinstance(m, nn.Conv2d) for m in model.modules())
    for name, row in rows.items():
        assert int(row["after"]) == smaller.get_submodule(name).out_channels
    assert rows["model.3.conv"]["before"] == rows["model.3.conv"]["after"] == "64"
    assert (tmp_path / "channels.png").stat().st_size > 30_000
    result = SimpleNamespace(map50=0.5, map=0.25)
    steps = [Step(1, 10, 20, 10**9, 1.5), Step(2, 9, 18, 9 * 10**8, 1.6)]
    others = {
        replace(steps[0], macs=10**9 - 1): SimpleNamespace(map50=0.1, map=0.1)
    }  # step 1 of a search for another goal
    write_steps(steps, {steps[1]: result, **others}, tmp_path / "prune.csv")
    first, second = read(tmp_path / "prune.csv")
    assert (first["gflops"], first["mAP_0.5"], second["mAP_0.5:0.95"]) == ("2.0000", "", "0.25000")
    report = Report(640)
    report.add("base", model, result)
    report.add("after the cut", smaller, result)
    report.conclude(plan)
    report.write(tmp_path)
    lines = report.markdown().splitlines()
    assert [c.strip() for c in lines[2].split("|")[1:6]] == [
        "base",
        "1,761,871",
        "4.13",
        "1.00x",
        "0.500",
    ]
    assert f"{plan.speed_up:.2f}x" in lines[3] and "met" in "\n".join(lines)
