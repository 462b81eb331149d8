"""val.py writes the detections of every image, whatever its name."""

from pathlib import Path
from types import SimpleNamespace

import torch

from recipes.val import writers
from utils.options.val import ValOptions


def test_images_of_one_name_in_two_folders_have_a_text_and_an_id_each(tmp_path: Path) -> None:
    opt = ValOptions(weights="a.pt", data="set.yaml", save_txt=True, save_json=True, noplots=True)
    files = ["/set/a/1.jpg", "/set/b/1.jpg", "/set/b/2.jpg"]
    records: list[dict] = []
    write = writers(opt, ["cat", "dog"], tmp_path, records, files)
    boxes = torch.tensor([[0.0, 0, 32, 64, 0.5, 1]])
    undo = ((64, 64), ((1.0, 1.0), (0, 0)))
    batch = SimpleNamespace(images=torch.zeros(3, 3, 64, 64), files=files, shapes=[undo] * 3)
    write(batch, [boxes, boxes * torch.tensor([1, 1, 2, 1, 1, 0]), boxes[:0]])
    texts = {
        path.relative_to(tmp_path).as_posix(): path.read_text() for path in tmp_path.rglob("*.txt")
    }
    assert texts == {
        "labels/a/1.txt": "1 0.25 0.5 0.5 1\n",
        "labels/b/1.txt": "0 0.5 0.5 1 1\n",
        "labels/b/2.txt": "",
    }
    assert [record["image_id"] for record in records] == ["a/1", "b/1"]
