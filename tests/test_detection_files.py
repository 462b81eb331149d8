import torch

from utils.detection_files import COCO_IDS, coco_category_ids, coco_records, yolo_text

BOXES = torch.tensor([[10.0, 20.0, 30.0, 60.0, 0.875, 2.0], [0.0, 0.0, 200.0, 100.0, 0.5, 0.0]])


def test_yolo_text_is_normalised_by_the_original_image():
    assert yolo_text(BOXES, height=100, width=200) == "2 0.1 0.4 0.1 0.4\n0 0.5 0.5 1 1\n"
    assert yolo_text(BOXES[:1], 100, 200, with_confidence=True) == "2 0.1 0.4 0.1 0.4 0.875\n"
    assert yolo_text(BOXES[:0], 100, 200) == ""


def test_coco_records_give_the_top_left_corner_and_the_size():
    record = {"image_id": 139, "category_id": 2, "bbox": [10.0, 20.0, 20.0, 40.0], "score": 0.875}
    assert coco_records(BOXES[:1], "/a/000000000139.jpg") == [record]
    assert coco_records(BOXES, "b/photo.png")[1]["image_id"] == "photo"


def test_coco_ids_have_the_gaps_of_the_official_list():
    assert len(COCO_IDS) == 80 and COCO_IDS[0] == 1 and COCO_IDS[-1] == 90
    assert (COCO_IDS[10], COCO_IDS[11], COCO_IDS[79]) == (
        11,
        13,
        90,
    )  # fire hydrant, stop sign, toothbrush
    assert coco_records(BOXES[:1], "1.jpg", COCO_IDS)[0]["category_id"] == 3
    assert coco_category_ids(["person", *map(str, range(78)), "toothbrush"]) == COCO_IDS
    assert coco_category_ids(["a", "b"]) is None
