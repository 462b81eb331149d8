"""It learns: both families with both losses overfit eight demo images."""

import pytest

from data.config import load_data
from models import build_model
from recipes.session import TrainingRun
from recipes.train import fit
from utils.config import Hyp
from utils.engine.seed import seed_everything
from utils.options.train import TrainOptions

PLAIN = {
    "hsv_h": 0,
    "hsv_s": 0,
    "hsv_v": 0,
    "translate": 0,
    "scale": 0,
    "fliplr": 0,
    "mosaic": 0,
}  # the same eight images always
HYP = Hyp(
    lr0=0.004, lrf=0.05, nbs=8, warmup_epochs=10, warmup_bias_lr=0.004, obj=12.0, **PLAIN
)  # obj: x 0.04 at 128 px


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["yolo", "ota"])
@pytest.mark.parametrize(("cfg", "epochs"), [("yolov5n", 200), ("yolov7-tiny", 320)])
def test_overfits_eight_demo_images(cfg, epochs, loss, tmp_path):
    demo = load_data("demo")
    eight = [str(path) for path in demo.images("train")[:8]]
    (tmp_path / "eight.txt").write_text("\n".join(eight))
    data = load_data(
        {"path": str(tmp_path), "train": "eight.txt", "val": "eight.txt", "names": demo.names}
    )
    seed_everything(0)
    model = build_model(cfg, nc=data.nc)
    model.names = data.names
    opt = TrainOptions(
        epochs=epochs,
        batch_size=8,
        imgsz=128,
        optimizer="Adam",
        workers=0,
        cache="ram",
        device="cpu",
        noval=True,
        nosave=True,
        noplots=True,
    )
    result = fit(TrainingRun(model, data, HYP.replace(loss=loss), opt, tmp_path)).result
    assert result.map50 > 0.9
