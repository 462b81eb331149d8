"""Checks that compare images with each other, within a split and between splits."""

from collections.abc import Iterator, Sequence

import numpy as np

from data.check.issues import MOST_EXAMPLES, Example, Issue, Level, Split
from data.check.looks import read_looks
from data.check.twins import Twins, exact_twins, near_twins

ORIENTATION_WORDS = (
    *("", ", mirrored", ", upside down", ", turned by 180 degrees"),
    *(", mirrored and turned", ", turned by 90 degrees", ", turned by 270 degrees"),
    ", mirrored and turned",
)
KINDS = {
    (True, True): ("leaks", Level.ERROR, "the same file as one of"),
    (True, False): ("near-leaks", Level.WARNING, "nearly the same picture as one of"),
    (False, True): ("duplicates", Level.WARNING, "the same file as another one of"),
    (False, False): ("near-duplicates", Level.NOTE, "nearly the same picture as another one of"),
}
"""Kind, level and words by whether two splits are concerned, and whether the files are the same."""


def check_images(splits: Sequence[Split]) -> Iterator[Issue]:
    """Read all images and yield those that are there twice, between splits first."""
    files = [file for split in splits for file in split.scan.files]
    looks = read_looks(files, np.concatenate([split.scan.shapes for split in splits]))
    everyone = [(split, i) for split in splits for i in range(len(split.scan.files))]
    owners = [everyone[number] for number in looks.numbers.tolist()]
    grouped: dict[tuple[str, str, bool], list[Twins]] = {}
    for pair in (*exact_twins(looks), *near_twins(looks)):
        first, second = owners[pair.first][0].name, owners[pair.second][0].name
        grouped.setdefault((first, second, pair.exact), []).append(pair)
    for key in sorted(grouped, key=lambda key: (key[0] == key[1], not key[2])):
        yield _issue(key, sorted(grouped[key], key=lambda pair: -pair.likeness), owners)


def _issue(
    key: tuple[str, str, bool], pairs: Sequence[Twins], owners: Sequence[tuple[Split, int]]
) -> Issue:
    """Return the issue of the pairs of two splits.

    Args:
        key: Names of the splits, and whether the files are the same.
        pairs: The pairs, the most alike first.
        owners: Split, and number in it, of every image.
    """
    first, second, exact = key
    kind, level, words = KINDS[first != second, exact]
    cases = []
    for pair in pairs[:MOST_EXAMPLES]:
        (a, i), (b, j) = owners[pair.first], owners[pair.second]
        how = "" if exact else f" ({pair.likeness:.3f}{ORIENTATION_WORDS[pair.orientation]})"
        text = f"{b.scan.files[j]} = {a.scan.files[i]}{how}"
        cases.append(Example(text, (b.picture(j), a.picture(i))))
    images = len({pair.second for pair in pairs})
    line = f"{second}: {images} images are {words} {first}; the first: {cases[0].text}"
    return Issue(kind, level, line, cases, len(pairs))
