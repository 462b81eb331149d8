import multiprocessing
import time
from multiprocessing import resource_sharer
from multiprocessing.connection import Client

import cv2
import numpy as np
import pytest
import torch

import data.dataset as dataset_module
from data.config import load_data
from data.dataset import SampleKey, rect_shapes
from data.loader import (
    BatchPlan,
    ShapePlan,
    build_loader,
    image_sampling_weights,
    validation_loader,
)
from data.options import LoaderOptions
from tests.data_sets import write_set
from utils.config import Hyp
from utils.errors import UserError

SHAPES = [(64, 48), (48, 64), (64, 64), (90, 30), (40, 40), (64, 50), (30, 90)]
STRONG = Hyp(mosaic=0.5, mixup=0.5, degrees=10, flipud=0.5)


@pytest.fixture
def data(tmp_path):
    return load_data(write_set(tmp_path, SHAPES))


def epoch_of(loader, epoch: int) -> list:
    loader.set_epoch(epoch)
    return list(loader)


def same(first: list, second: list) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a.images, b.images)
        and torch.equal(a.targets, b.targets)
        and (a.files, a.shapes) == (b.files, b.shapes)
        for a, b in zip(first, second, strict=True)
    )


def test_batch_contract(data):
    loader = build_loader(data, "train", imgsz=64, batch_size=4)
    batches = list(loader)
    assert [len(b.files) for b in batches] == [4, 3]
    batch = batches[0]
    assert (
        batch.images.dtype == torch.uint8
        and batch.images.shape == (4, 3, 64, 64)
        and batch.images.is_contiguous(memory_format=torch.channels_last)
    )
    assert batch.targets.dtype == torch.float32 and batch.targets.shape == (8, 6)
    assert batch.targets[:, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert batch.shapes[0] == ((48, 64), ((1.0, 1.0), (0, 8)))
    assert batch.shapes[3] == ((30, 90), ((21 / 30, 64 / 90), (0, 21)))


def test_shapes_undo_the_letterbox(data):
    """Targets of a batch, mapped back, are the labels as written."""
    loader = build_loader(data, "train", imgsz=64, batch_size=7)
    batch = next(iter(loader))
    for i, ((h0, w0), ((ratio_h, ratio_w), (pad_w, pad_h))) in enumerate(batch.shapes):
        xywh = batch.targets[batch.targets[:, 0] == i][:, 2:].numpy() * 64
        x, y = (xywh[:, 0] - pad_w) / ratio_w / w0, (xywh[:, 1] - pad_h) / ratio_h / h0
        w, h = xywh[:, 2] / ratio_w / w0, xywh[:, 3] / ratio_h / h0
        np.testing.assert_allclose(
            np.stack([x, y, w, h], 1), loader.dataset.labels[i][:, 1:], atol=1e-5
        )


@pytest.mark.parametrize("rect", [False, True])
def test_number_of_workers_changes_nothing_and_epochs_differ(data, rect):
    alone, helped = (
        build_loader(
            data,
            "train",
            imgsz=64,
            batch_size=3,
            augment=True,
            hyp=STRONG,
            rect=rect,
            seed=5,
            workers=workers,
        )
        for workers in (0, 2)
    )
    first = epoch_of(alone, 0)
    assert same(first, epoch_of(helped, 0))
    later = epoch_of(alone, 3)
    assert same(later, epoch_of(helped, 3)), "workers that live on see the epoch"
    assert not same(first, later)
    assert same(first, epoch_of(alone, 0)), "an epoch can be repeated"
    other_seed = build_loader(
        data, "train", imgsz=64, batch_size=3, augment=True, hyp=STRONG, rect=rect, seed=6
    )
    assert not same(first, epoch_of(other_seed, 0))


def test_global_generators_are_left_alone(data):
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    expected = np.random.random(), torch.rand(1).item()  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    loader = build_loader(data, "train", imgsz=64, batch_size=3, augment=True, hyp=STRONG)
    for key in [SampleKey(0, i) for i in range(7)]:
        loader.dataset[key]
    assert (np.random.random(), torch.rand(1).item()) == expected  # noqa: NPY002


@pytest.mark.parametrize("augment", [False, True])
def test_caches_give_the_same_batches(data, tmp_path, monkeypatch, augment):
    monkeypatch.setattr(dataset_module, "user_cache_folder", lambda: tmp_path / "user")
    options = {"imgsz": 48, "batch_size": 3, "augment": augment, "hyp": STRONG}
    plain, ram, disk = (
        epoch_of(build_loader(data, "train", cache=c, **options), 1) for c in (None, "ram", "disk")
    )
    assert same(plain, ram)
    assert same(plain, disk)
    written = list((tmp_path / "user/images-48").glob("*.npy"))
    assert len(written) == 7
    monkeypatch.setattr(dataset_module, "read_image", None)
    assert same(plain, epoch_of(build_loader(data, "train", cache="disk", **options), 1)), (
        "read from the cache"
    )


def test_mosaic_and_mixup_stop_for_the_last_epochs(data):
    hyp = Hyp(
        mosaic=1, mixup=1, close_mosaic=2, translate=0, scale=0, fliplr=0, hsv_h=0, hsv_s=0, hsv_v=0
    )
    loader = build_loader(data, "train", imgsz=64, batch_size=7, augment=True, hyp=hyp, epochs=5)
    plain = {
        b.files[i]: b.images[i]
        for b in build_loader(data, "train", imgsz=64, batch_size=7)
        for i in range(7)
    }
    for epoch, mixed in ((2, True), (3, False), (4, False)):
        batch = epoch_of(loader, epoch)[0]
        square = [i for i, shape in enumerate(batch.shapes) if shape[0] == (64, 64)]
        assert len(square) == 1
        assert torch.equal(batch.images[square[0]], plain[batch.files[square[0]]]) != mixed


def rect(batch_size, pad=0.0):
    options = {"rect": True, "augment": True, "stride": 32, "pad": pad}
    return LoaderOptions(imgsz=64, batch_size=batch_size, **options)


def test_rect_shapes_by_hand():
    shapes = np.array(
        [[100, 40], [100, 50], [100, 100], [50, 100]]
    )  # width, height; sorted by height / width
    assert rect_shapes(shapes, rect(2)) == [(32, 64), (64, 64)]
    assert rect_shapes(shapes, rect(2, pad=0.5)) == [(64, 96), (96, 96)]
    assert rect_shapes(shapes, rect(1)) == [(32, 64), (32, 64), (64, 64), (64, 32)]


def test_rect_batches_hold_their_images(data):
    loader = build_loader(data, "train", imgsz=96, batch_size=2, rect=True, pad=0.5)
    aspects = [h / w for b in loader for (h, w), _ in b.shapes]
    assert aspects == sorted(aspects)
    assert loader.dataset.shapes[0].tolist() == [90, 30]
    for batch in loader:
        height, width = batch.images.shape[2:]
        for (h0, w0), ((ratio_h, ratio_w), (pad_w, pad_h)) in batch.shapes:
            assert max(h0 * ratio_h, w0 * ratio_w) == pytest.approx(96)
            assert pad_w >= 0 and pad_h >= 0
            assert (
                2 * pad_w + w0 * ratio_w <= width + 1e-6
                and 2 * pad_h + h0 * ratio_h <= height + 1e-6
            )
    assert len({tuple(b.images.shape[2:]) for b in loader}) > 1


def test_validation_rectangles_have_half_a_stride_of_grey_and_squares_have_none(data):
    options = {"imgsz": 64, "batch_size": 1, "stride": 32}
    padded = build_loader(data, "train", rect=True, pad=0.5, **options)
    assert same(list(validation_loader(data, "train", **options)), list(padded))
    assert tuple(next(iter(padded)).images.shape[2:]) == (64, 96)
    squares = list(validation_loader(data, "train", rect=False, **options))
    assert same(squares, list(build_loader(data, "train", **options)))
    assert {tuple(batch.images.shape[2:]) for batch in squares} == {(64, 64)}


def test_validation_does_not_depend_on_the_size_of_the_batch(data):
    """Each image is padded to the shape that it needs alone."""

    def samples(batch_size):
        loader = validation_loader(data, "train", imgsz=64, batch_size=batch_size, stride=32)
        batches = list(loader)
        assert [len(b.files) for b in batches] == [len(indices) for indices in loader.plan]
        assert len(loader) == len(batches) and max(len(b.files) for b in batches) <= batch_size
        return {
            file: (image, batch.targets[batch.targets[:, 0] == i, 1:], shape)
            for batch in batches
            for i, (file, image, shape) in enumerate(
                zip(batch.files, batch.images, batch.shapes, strict=True)
            )
        }

    alone = samples(1)
    assert len(alone) == len(SHAPES)
    for batch_size in (2, 3, 7, 32):
        together = samples(batch_size)
        assert list(together) == list(alone)
        for file, (image, targets, shape) in alone.items():
            assert torch.equal(together[file][0], image), "the same pixels and the same padding"
            assert torch.equal(together[file][1], targets) and together[file][2] == shape


def test_images_of_one_shape_share_a_batch():
    shapes = [(32, 64)] * 3 + [(64, 64)] * 5 + [(64, 32)]
    batches = [[key.image for key in batch] for batch in ShapePlan(shapes, 2)]
    assert batches == [[0, 1], [2], [3, 4], [5, 6], [7], [8]]
    assert len(ShapePlan(shapes, 2)) == 6 and len(ShapePlan(shapes, 99)) == 3


@pytest.mark.parametrize(("count", "batch", "world"), [(10, 2, 2), (7, 3, 2), (5, 2, 4), (1, 4, 3)])
def test_ranks_share_all_samples_and_have_equally_many_batches(count, batch, world):
    plans = [BatchPlan(count, batch, shuffle=True, rank=r, world_size=world) for r in range(world)]
    per_rank = [list(plan) for plan in plans]
    assert {len(b) for b in per_rank} == {len(plans[0])}
    sizes = [[len(b) for b in batches] for batches in per_rank]
    assert all(s == sizes[0] for s in sizes)
    drawn = [key.image for batches in per_rank for b in batches for key in b]
    assert set(drawn) == set(range(count))
    assert len(drawn) == -(-count // world) * world


def test_the_last_samples_fill_up_so_that_rect_batches_keep_their_shape():
    batches = [list(BatchPlan(7, 2, rank=rank, world_size=2)) for rank in range(2)]
    assert [[key.image for key in batch] for batch in batches[0]] == [[0, 2], [4, 6]]
    assert [[key.image for key in batch] for batch in batches[1]] == [[1, 3], [5, 6]]


def test_rect_batches_of_all_ranks_fit_their_shape(data):
    for rank in range(2):
        loader = build_loader(
            data,
            "train",
            imgsz=64,
            batch_size=2,
            rect=True,
            augment=True,
            stride=8,
            rank=rank,
            world_size=2,
        )
        assert [b.images.shape[0] for b in loader] == [2, 2]


def test_shrinking_averages_areas_for_evaluation_only(data):
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[:, ::4] = 255
    cv2.imwrite(str(data.root / "images/train/000.png"), picture)
    hyp = Hyp(mosaic=0, translate=0, scale=0, fliplr=0, hsv_h=0, hsv_s=0, hsv_v=0)
    plain, training = (
        build_loader(data, "train", imgsz=2, batch_size=1, augment=a, hyp=hyp).dataset[0].image
        for a in (False, True)
    )
    assert (abs(plain.astype(int) - 64) <= 1).all(), "a quarter of the pixels is white"
    assert (training == 0).all(), "bilinear reads only the black ones in the middle"


def test_single_cls_and_missing_labels(data):
    (data.root / "labels/train/000.txt").unlink()
    batch = next(iter(build_loader(data, "train", imgsz=64, batch_size=7, single_cls=True)))
    assert set(batch.targets[:, 1].tolist()) == {0.0}
    assert set(batch.targets[:, 0].tolist()) == {1.0, 2.0, 3.0, 4.0, 5.0, 6.0}
    for label in (data.root / "labels/train").glob("*.txt"):
        label.unlink()
    loader = build_loader(data, "train", imgsz=64, batch_size=7, unlabelled=True)
    assert next(iter(loader)).targets.shape == (0, 6)


def test_fraction_draws_a_subset_by_seed(tmp_path):
    content = write_set(tmp_path, [(16, 16)] * 20) | {"fraction": 0.2, "val": "images/train"}
    data = load_data(content)
    files = {
        seed: build_loader(data, "train", imgsz=32, batch_size=4, seed=seed).dataset.files
        for seed in (0, 0, 1)
    }
    assert len(files[0]) == len(files[1]) == 4
    assert files[0] == build_loader(data, "train", imgsz=32, batch_size=4, seed=0).dataset.files
    assert files[0] != files[1]
    assert len(build_loader(data, "val", imgsz=32, batch_size=4).dataset) == 20
    held = load_data(content | {"seed": 1})
    for seed in (0, 7):
        loader = build_loader(held, "train", imgsz=32, batch_size=4, seed=seed)
        assert loader.dataset.files == files[1], "the seed of the YAML goes before that of the run"


def test_image_weights_favour_rare_classes():
    labels = [
        np.array([[0.0, 0, 0, 0, 0]] * 3),
        np.array([[0.0] * 5, [1.0, 0, 0, 0, 0]]),
        np.zeros((0, 5)),
    ]
    weights = image_sampling_weights(labels, nc=2)  # class 0: 4 objects, class 1: 1
    np.testing.assert_allclose(weights, np.array([3 / 4, 1 / 4 + 1, 0]) / 2)
    plan = BatchPlan(3, 3, weights=weights, seed=1)
    drawn = []
    for epoch in range(2000):
        plan.epoch = epoch
        drawn += [key.image for batch in plan for key in batch]
    share = np.bincount(drawn, minlength=3) / len(drawn)
    np.testing.assert_allclose(share, weights, atol=0.02)
    assert share[2] == 0
    with pytest.raises(UserError, match="no object"):
        image_sampling_weights(labels[2:], nc=2)


def test_wrong_options(data):
    with pytest.raises(UserError, match="--cache disc"):
        build_loader(data, "train", imgsz=64, batch_size=2, cache="disc")
    with pytest.raises(UserError, match="--image-weights"):
        build_loader(data, "train", imgsz=64, batch_size=2, rect=True, image_weights=True)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_went_away_is_one_line_from_a_worker_too(data, workers):
    loader = build_loader(data, "train", imgsz=64, batch_size=4, workers=workers)
    loader.dataset.files[5].unlink()
    with pytest.raises(UserError) as error:
        list(loader)
    assert str(error.value) == f"{loader.dataset.files[5]}: cannot be read as an image"


@pytest.mark.parametrize(("failure", "told"), [("hang up", False), ("nonsense", True)])
def test_a_worker_says_nothing_of_a_main_process_that_hung_up(
    data, monkeypatch, capfd, failure, told
):
    """Interrupted while a batch is handed over. Whatever else goes wrong there is still printed."""

    class Interrupted(Exception):
        pass

    def connect(ident):
        with Client(ident[0], authkey=multiprocessing.current_process().authkey) as connection:
            if failure == "nonsense":
                connection.send("neither key nor process")
                with pytest.raises((EOFError, ConnectionError)):
                    connection.recv()
        raise Interrupted

    monkeypatch.setattr(resource_sharer._resource_sharer, "get_connection", connect)
    loader = build_loader(data, "train", imgsz=64, batch_size=4, workers=1)
    with pytest.raises(Interrupted):
        next(iter(loader))
    printed, end = (
        "",
        time.time() + (20 if told else 0.5),
    )  # the worker prints on its own, after the connection is closed
    while "Traceback" not in printed and time.time() < end:
        time.sleep(0.02)
        printed += capfd.readouterr().err
    assert ("Traceback" in printed) == told
