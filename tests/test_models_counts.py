"""Parameter and GFLOPs figures of the published tables, exactly."""

import pytest

from models import build_model

# unfused and fused parameters, GFLOPs at 640 px of the deployed form
TABLE = {
    "yolov5n": (1_872_157, 1_867_405, 4.5),
    "yolov5s": (7_235_389, 7_225_885, 16.4),
    "yolov5m": (21_190_557, 21_172_173, 48.9),
    "yolov5l": (46_563_709, 46_533_693, 109.0),
    "yolov5x": (86_749_405, 86_705_005, 205.4),
    "yolov7-tiny": (6_228_762, 6_221_370, 13.7),
    "yolov7": (37_622_682, 36_907_898, 104.5),
    "yolov7x": (71_347_394, 71_314_746, 189.7),
}


@pytest.mark.parametrize("name", TABLE)
def test_80_classes_as_published(name: str) -> None:
    info = build_model(name).info()
    assert (info["parameters"], info["fused_parameters"], round(info["gflops_fused"], 1)) == TABLE[
        name
    ]


@pytest.mark.parametrize(
    ("name", "nc", "fused", "gflops"),
    [
        ("yolov5n", 2, 1_761_871, 4.1),
        ("yolov5n", 10, 1_772_695, 4.2),
        ("yolov7-tiny", 2, 6_010_302, 13.0),
        ("yolov7-tiny", 10, 6_031_950, 13.1),
    ],
)
def test_other_class_numbers_as_published(name: str, nc: int, fused: int, gflops: float) -> None:
    info = build_model(name, nc=nc).info()
    assert (info["fused_parameters"], round(info["gflops_fused"], 1)) == (fused, gflops)


def test_summary_line_is_the_one_people_grep() -> None:
    assert (
        build_model("yolov5s").summary()
        == "Model summary: 214 layers, 7235389 parameters, 16.4 GFLOPs"
    )


def test_published_convention_counts_batch_norms() -> None:
    info = build_model("yolov5s").info()
    assert round(info["gflops_published"], 1) == 16.6
    assert info["macs"] * 2 / 1e9 == info["gflops_fused"]


def test_implicit_vectors_are_counted_as_fused_but_not_deployed() -> None:
    model = build_model("yolov7-tiny")
    inputs, outputs = sum(conv.in_channels for conv in model.head.m), 3 * 255
    info = model.info(64)
    assert info["fused_parameters"] - info["deployed_parameters"] == inputs + outputs
    assert (
        info["deployed_parameters"]
        == build_model("yolov7-tiny-deploy").info(64)["deployed_parameters"]
    )
