"""Checks that need nothing but what the scan of the labels knows."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from data.check.issues import MOST_EXAMPLES, NO_BOXES, Example, Issue, Level, Picture, Split
from data.files import label_path
from data.label_search import stray_texts

TINY = 2.0  # pixels, of the shorter side at the image size of the training
ODD_ASPECT = 6.0  # deviations from the median of the class, of the logarithm of width / height
LEAST_ASPECT = np.log(4.0)  # a box that is up to 4 times as long as usual is no outlier
SPREAD = 1.4826  # standard deviation of a normal distribution over its median absolute deviation


def check_labels(splits: Sequence[Split], names: Sequence[str], imgsz: int) -> Iterator[Issue]:
    """Yield the issues of labels.

    Args:
        splits: The splits of a data set.
        names: Class names.
        imgsz: Image size of the training in pixels.
    """
    for split in splits:
        yield from _left_out(split)
        yield from _unlabelled(split)
        yield from tiny_boxes(split, names, imgsz)
    yield from _strays(splits)
    yield from odd_aspects(splits, names)
    yield from odd_classes(splits, names)


def class_counts(splits: Sequence[Split], classes: int) -> dict[str, np.ndarray]:
    """Return the number of boxes of each class, (classes,), for each split."""
    return {
        split.name: sum(
            (np.bincount(rows[:, 0].astype(int), minlength=classes) for rows in split.scan.labels),
            np.zeros(classes, int),
        )
        for split in splits
    }


def _left_out(split: Split) -> Iterator[Issue]:
    """Yield images that are left out, and labels that were corrected, from the scan's report."""
    usable = dict(zip(split.scan.files, split.scan.labels, strict=True))
    by_text = {label_path(image): image for image in split.images}
    found: dict[bool, list[Example]] = {True: [], False: []}
    left_out: set[Path] = set()
    for problem in split.scan.report:
        image = by_text.get(problem.file, problem.file)
        line = f":{problem.line}" if problem.line else ""
        text = f"{problem.file}{line}: {problem.reason}"
        lost = image not in usable
        if lost and image in left_out:
            continue
        left_out.update([image] if lost else [])
        pictures = (Picture(image, usable.get(image, NO_BOXES)),)
        found[lost].append(Example(text, () if "corrupt" in problem.reason else pictures))
    for lost, kind, level, text in (
        (True, "left-out", Level.ERROR, "images cannot be used"),
        (False, "corrected", Level.WARNING, "label lines are clipped or dropped"),
    ):
        if cases := found[lost]:
            line = f"{split.name}: {len(cases)} {text}; the first: {cases[0].text}"
            yield Issue(kind, level, line, cases[:MOST_EXAMPLES], len(cases))


def _unlabelled(split: Split) -> Iterator[Issue]:
    """Yield images without a label file: backgrounds, or labels that were lost."""
    texts = split.scan.without_labels
    if not texts:
        return
    pictures = [Picture(image, NO_BOXES) for image in texts[:MOST_EXAMPLES]]
    cases = [Example(f"{label_path(p.file)} is missing", (p,)) for p in pictures]
    line = (
        f"{split.name}: {len(texts)} of {len(split.images)} images have no label file; the first:"
        f" {texts[0]}; backgrounds have an empty one"
    )
    yield Issue("unlabelled", Level.WARNING, line, cases, len(texts))


def _strays(splits: Sequence[Split]) -> Iterator[Issue]:
    """Yield label files that belong to no image of any split."""
    claimed = {label_path(image) for split in splits for image in split.images}
    found = {text for split in splits for text in stray_texts(split.images)} - claimed
    if found:
        texts = sorted(found)
        line = f"{len(texts)} label files belong to no image; the first: {texts[0]}"
        cases = [Example(str(text)) for text in texts[:MOST_EXAMPLES]]
        yield Issue("strays", Level.WARNING, line, cases, len(texts))


def short_sides(split: Split, imgsz: int) -> np.ndarray:
    """Return the shorter side of every box in pixels, images resized to a long side of `imgsz`."""
    sizes = split.scan.shapes * (imgsz / split.scan.shapes.max(1, keepdims=True))
    counts = [len(rows) for rows in split.scan.labels]
    boxes = np.concatenate([NO_BOXES, *split.scan.labels])
    return (boxes[:, 3:] * np.repeat(sizes, counts, 0)).min(1)


def _places(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Return image and number in its image of every box."""
    counts = [len(rows) for rows in split.scan.labels]
    images = np.repeat(np.arange(len(counts)), counts)
    return images, np.arange(len(images)) - np.repeat(np.cumsum([0, *counts[:-1]]), counts)


def tiny_boxes(split: Split, names: Sequence[str], imgsz: int) -> Iterator[Issue]:
    """Yield boxes that are too small to be learnt at the image size of the training."""
    sides = short_sides(split, imgsz)
    tiny = np.flatnonzero(sides < TINY)
    if not len(tiny):
        return
    images, places = _places(split)
    worst = tiny[np.argsort(sides[tiny], kind="stable")][:MOST_EXAMPLES]
    cases = []
    for box in worst.tolist():
        picture = split.picture(int(images[box]), int(places[box]))
        name = names[int(picture.boxes[places[box], 0])]
        cases.append(Example(f"{picture.file}: {name} of {sides[box]:.2f} px", (picture,)))
    line = (
        f"{split.name}: {len(tiny)} of {len(sides)} boxes are below {TINY:g} px at --imgsz {imgsz};"
        f" the smallest: {cases[0].text}"
    )
    yield Issue("tiny", Level.WARNING, line, cases, len(tiny))


def odd_aspects(splits: Sequence[Split], names: Sequence[str]) -> Iterator[Issue]:
    """Yield boxes whose proportions are far from those of their class."""
    logs, kinds = _aspects(splits)
    deviation = np.zeros(len(logs))
    medians = np.zeros(len(names))
    for kind in np.unique(kinds).tolist():
        mine = kinds == kind
        medians[kind] = np.median(logs[mine])
        far = np.abs(logs[mine] - medians[kind])
        scale = SPREAD * np.median(far)
        deviation[mine] = np.where(far > np.maximum(LEAST_ASPECT, ODD_ASPECT * scale), far, 0)
    odd = np.flatnonzero(deviation)
    if not len(odd):
        return
    owners = [(split, *place) for split in splits for place in zip(*_places(split), strict=True)]
    cases = []
    for box in odd[np.argsort(-deviation[odd], kind="stable")][:MOST_EXAMPLES].tolist():
        split, image, place = owners[box]
        picture = split.picture(int(image), int(place))
        usual, own = np.exp(medians[kinds[box]]), np.exp(logs[box])
        name = names[int(kinds[box])]
        text = f"{picture.file}: {name}: width / height {own:.2f}, usually {usual:.2f}"
        cases.append(Example(text, (picture,)))
    line = f"{len(odd)} boxes have odd proportions for their class; the oddest: {cases[0].text}"
    yield Issue("aspects", Level.NOTE, line, cases, len(odd))


def _aspects(splits: Sequence[Split]) -> tuple[np.ndarray, np.ndarray]:
    """Return the logarithm of width / height in pixels, and the class, of every box."""
    logs, kinds = [np.zeros(0)], [np.zeros(0, int)]
    for split in splits:
        boxes = np.concatenate([NO_BOXES, *split.scan.labels])
        counts = [len(rows) for rows in split.scan.labels]
        pixels = boxes[:, 3:] * np.repeat(split.scan.shapes, counts, 0)
        logs.append(np.log(pixels[:, 0] / pixels[:, 1]))
        kinds.append(boxes[:, 0].astype(int))
    return np.concatenate(logs), np.concatenate(kinds)


def odd_classes(splits: Sequence[Split], names: Sequence[str]) -> Iterator[Issue]:
    """Yield classes that have no box to learn from, or none to validate on."""
    counts: Mapping[str, np.ndarray] = defaultdict(lambda: np.zeros(len(names), int))
    counts = counts | class_counts(splits, len(names))
    present = {split.name for split in splits}
    cases = []
    for number, name in enumerate(names):
        train, val = int(counts["train"][number]), int(counts["val"][number])
        if "train" in present and not train:
            cases.append(f"{name}: no box in train, {val} in val")
        elif "val" in present and not val:
            cases.append(f"{name}: {train} boxes in train, none in val")
    if cases:
        more = f" and {len(cases) - 1} more" if len(cases) > 1 else ""
        line = f"classes that cannot be learnt or judged: {cases[0]}{more}"
        examples = [Example(case) for case in cases[:MOST_EXAMPLES]]
        yield Issue("classes", Level.WARNING, line, examples, len(cases))
