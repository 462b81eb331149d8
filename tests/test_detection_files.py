import torch

from utils.detection_files import (
    COCO_IDS,
    coco_category_ids,
    coco_records,
    image_ids,
    output_names,
    yolo_text,
)

BOXES = torch.tensor([[10.0, 20.0, 30.0, 60.0, 0.875, 2.0], [0.0, 0.0, 200.0, 100.0, 0.5, 0.0]])


def test_yolo_text_is_normalised_by_the_original_image():
    assert yolo_text(BOXES, height=100, width=200) == "2 0.1 0.4 0.1 0.4\n0 0.5 0.5 1 1\n"
    assert yolo_text(BOXES[:1], 100, 200, with_confidence=True) == "2 0.1 0.4 0.1 0.4 0.875\n"
    assert yolo_text(BOXES[:0], 100, 200) == ""


def test_coco_records_give_the_top_left_corner_and_the_size():
    record = {"image_id": 139, "category_id": 2, "bbox": [10.0, 20.0, 20.0, 40.0], "score": 0.875}
    assert coco_records(BOXES[:1], 139) == [record]
    assert coco_records(BOXES, "photo")[1]["image_id"] == "photo"


def test_names_and_ids_are_the_stems_where_these_differ():
    names = output_names(["/a/images/000000000139.jpg", "/b/images/photo.png"])
    assert list(names.values()) == ["000000000139", "photo"]
    assert list(image_ids(names).values()) == [139, "photo"]


def test_images_of_one_name_keep_their_folders_and_suffixes():
    files = ["/s/cam1/001.jpg", "/s/cam2/001.jpg", "/s/cam2/deep/001.jpg", "/s/cam2/002.png"]
    files += ["/s/cam2/002.jpg", "/s/3.jpg"]
    names = output_names(files)
    expected = ["cam1/001", "cam2/001", "cam2/deep/001", "cam2/002.png", "cam2/002.jpg", "3"]
    assert list(names.values()) == expected
    assert list(image_ids(names).values()) == [*expected[:5], 3]


def test_a_name_that_looks_like_another_one_with_its_suffix_differs_too():
    names = output_names(["/s/a.jpg", "/s/a.png", "/s/a.jpg.png"])
    assert list(names.values()) == ["a.jpg", "a.png", "a.jpg.png"]


def test_ids_stay_texts_where_their_numbers_are_alike():
    names = output_names(["/s/1.jpg", "/s/01.jpg", "/s/2.jpg"])
    assert list(image_ids(names).values()) == ["1", "01", "2"]


def test_coco_ids_have_the_gaps_of_the_official_list():
    assert len(COCO_IDS) == 80 and COCO_IDS[0] == 1 and COCO_IDS[-1] == 90
    assert (COCO_IDS[10], COCO_IDS[11], COCO_IDS[79]) == (
        11,
        13,
        90,
    )  # fire hydrant, stop sign, toothbrush
    assert coco_records(BOXES[:1], 1, COCO_IDS)[0]["category_id"] == 3
    assert coco_category_ids(["person", *map(str, range(78)), "toothbrush"]) == COCO_IDS
    assert coco_category_ids(["a", "b"]) is None
