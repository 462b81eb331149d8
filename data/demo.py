"""Compose the demo set from the pictures in `data/demo/`, on first use and always the same.

Clothes from Fashion-MNIST lie tinted, turned and scaled on photographs, among clutter and partly
hidden by each other. Train and val share neither garments nor photographs. Boxes are tight around
the visible part of a garment.
"""

import hashlib
import json
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from data.images import read_image
from utils.errors import UserError
from utils.log import LOGGER

ASSETS = Path(__file__).resolve().parent / "demo"
VERSION = 2  # raise it when a scene would look different: sets of another version are composed anew
STAMP = "version.txt"  # says which recipe a set was composed by
STAMP_PATTERN = re.compile(r"demo set version \d+: \d+ \+ \d+ images of \d+ px\n")
MANIFEST = "manifest.json"  # SHA-256 of every file of a set
# written by data/cache.py
CACHES = {Path("labels", f"{split}.cache.npz") for split in ("train", "val")}
SPRITE = 28  # px, side of a Fashion-MNIST picture
CLASSES = ("top", "trouser", "dress", "shoe", "bag")
SHEET_ROWS = ((0, 2, 4, 6), (1,), (3,), (5, 7, 9), (8,))  # rows of the sprite sheet by class
SHEETS = {"train": "fashion_train.png", "val": "fashion_t10k.png"}
PHOTOS = {
    "train": ("astronaut", "brick", "coffee", "gravel", "rocket"),
    "val": ("chelsea", "grass", "motorcycle_left"),
}
MIN_VISIBLE = 0.5  # no garment is hidden by more than half


@dataclass(frozen=True)
class Recipe:
    """Size of a composed set."""

    imgsz: int  # px
    train: int  # images
    val: int

    @property
    def stamp(self) -> str:
        """Text that identifies the composed set."""
        return f"demo set version {VERSION}: {self.train} + {self.val} images of {self.imgsz} px\n"


RECIPES = {"demo": Recipe(128, 400, 100), "demo-large": Recipe(192, 1200, 300)}


class Patch(NamedTuple):
    """Picture of a garment or of clutter, to be laid into a scene."""

    colour: np.ndarray  # (h, w, 3) float32 RGB
    alpha: np.ndarray  # (h, w) float32 opacity
    area: float  # px that it covers and that must not be hidden; 0 for clutter
    kind: int | None  # class, None for clutter


@dataclass
class Scene:
    """Picture under construction, with the pixels that show each garment."""

    image: np.ndarray  # (size, size, 3) float32 RGB
    classes: list[int] = field(default_factory=list)
    visible: list[np.ndarray] = field(default_factory=list)  # (size, size) bool
    # px that the whole garment covers, hidden or not
    areas: list[float] = field(default_factory=list)

    def paste(self, patch: "Patch", corner: np.ndarray) -> bool:
        """Lay a patch into the scene, unless a garment or the patch would be hidden too far.

        Args:
            patch: The patch.
            corner: (x, y) of its upper left corner, pixels.

        Returns:
            False where the scene was left unchanged.
        """
        size, (h, w) = self.image.shape[0], patch.alpha.shape
        (x1, y1), (x2, y2) = corner.clip(0, size), (corner + [w, h]).clip(0, size)
        here = slice(y1, y2), slice(x1, x2)
        inside = slice(y1 - corner[1], y2 - corner[1]), slice(x1 - corner[0], x2 - corner[0])
        alpha = patch.alpha[inside]
        cover = np.zeros((size, size), bool)
        cover[here] = alpha > 0.5
        left = [seen & ~cover for seen in self.visible]
        if np.count_nonzero(cover) < MIN_VISIBLE * patch.area or any(
            np.count_nonzero(seen) < MIN_VISIBLE * whole
            for seen, whole in zip(left, self.areas, strict=True)
        ):
            return False
        self.image[here] += alpha[..., None] * (patch.colour[inside] - self.image[here])
        self.visible = left
        if patch.kind is not None:
            self.classes.append(patch.kind)
            self.visible.append(cover)
            self.areas.append(patch.area)
        return True

    def label_lines(self) -> str:
        """Return the lines of the label file: `class xc yc w h`, normalised."""
        size, lines = self.image.shape[0], []
        for kind, seen in zip(self.classes, self.visible, strict=True):
            x, y, w, h = cv2.boundingRect(seen.astype(np.uint8))
            lines.append(
                f"{kind} {(x + w / 2) / size:.6f} {(y + h / 2) / size:.6f} {w / size:.6f}"
                f" {h / size:.6f}\n"
            )
        return "".join(lines)


def compose(recipe: Recipe, folder: Path) -> None:
    """Write the set to `folder` unless it is there already.

    The set is written whole or not at all, and several processes may compose it at once. A set of
    another version is replaced, as long as no file in its folder was added or changed.

    Raises:
        UserError: Where the folder holds other files, which stay untouched, or cannot be written.
    """
    if _is_there(recipe, folder):
        return
    try:
        _refuse_what_is_not_ours(recipe, folder)
        LOGGER.info(
            f"Composing the demo set ({recipe.train} + {recipe.val} images of {recipe.imgsz} px) in"
            f" {folder}"
        )
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as workshop:
            fresh = Path(workshop) / "fresh"
            for split in SHEETS:
                _compose_split(recipe, split, fresh)
            (fresh / MANIFEST).write_text(json.dumps(_digests(fresh), indent=0))
            (fresh / STAMP).write_text(recipe.stamp)
            _publish(recipe, fresh, folder)
    except OSError as error:
        raise UserError(
            f"{folder}: the demo set cannot be written: {error.strerror or error}"
        ) from None


def _is_there(recipe: Recipe, folder: Path) -> bool:
    """Return True where the folder holds the set of this recipe and version."""
    return _read_stamp(folder) == recipe.stamp


def _read_stamp(folder: Path) -> str:
    """Return the text of the stamp; empty where the folder has none of the demo set."""
    try:
        text = (folder / STAMP).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
    return text if STAMP_PATTERN.fullmatch(text) else ""


def _refuse_what_is_not_ours(recipe: Recipe, folder: Path) -> None:
    """Check that the folder is missing, empty, or exactly as some version of this module wrote it.

    Raises:
        UserError: Otherwise.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not folder.is_dir() or not _read_stamp(folder):
        raise UserError(
            f"{folder}: holds files that are not of the demo set, which a 'generator' needs an"
            " empty folder for; name another 'path', or leave 'generator' out to use these files"
        )
    if reason := _difference(folder):
        raise UserError(
            f"{folder}: holds a demo set of another version ({reason}); it is left as it is: move"
            " it elsewhere or delete it"
        )


def _difference(folder: Path) -> str:
    """Return how a set differs from its manifest; empty where the files are those of the manifest.

    Label caches that this project wrote are no difference.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        manifest = None
    if not isinstance(manifest, dict):
        return f"it has no {MANIFEST} that says what was composed"
    if links := [path for path in folder.rglob("*") if path.is_symlink()]:
        return f"{links[0].relative_to(folder)} is a link"
    caches = {str(path) for path in CACHES}
    found = {
        name: digest
        for name, digest in _digests(folder).items()
        if name not in {STAMP, MANIFEST, *caches}
    }
    if found == manifest:
        return ""
    names = sorted(name for name in {*found, *manifest} if found.get(name) != manifest.get(name))
    return f"{names[0]} was added, changed or removed since"


def _digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below a folder, by its path from there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def _publish(recipe: Recipe, fresh: Path, folder: Path) -> None:
    """Rename the fresh set to its folder.

    A set of another version is moved away first. Where another process was quicker, its set stays.
    """
    if not _is_there(recipe, folder):
        _refuse_what_is_not_ours(recipe, folder)
    try:
        if folder.exists() and any(folder.iterdir()) and not _is_there(recipe, folder):
            folder.rename(fresh.with_name("outdated"))
        fresh.rename(folder)
    except OSError:
        if not _is_there(recipe, folder):
            raise


def _compose_split(recipe: Recipe, split: str, root: Path) -> None:
    """Write images and labels of one split below `root`."""
    sprites = _sprites(split)
    photos = [read_image(ASSETS / f"{name}.jpg") for name in PHOTOS[split]]
    images, labels = root / "images" / split, root / "labels" / split
    for folder in (images, labels):
        folder.mkdir(parents=True)
    for number in range(getattr(recipe, split)):
        rng = np.random.default_rng([VERSION, recipe.imgsz, list(SHEETS).index(split), number])
        scene = compose_scene(recipe.imgsz, sprites, photos, rng)
        pixels = cv2.cvtColor(scene.image.round().clip(0, 255).astype(np.uint8), cv2.COLOR_RGB2BGR)
        # cv2.imwrite is silent on a full disk
        _, encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 92])
        (images / f"{number:04d}.jpg").write_bytes(encoded.tobytes())
        (labels / f"{number:04d}.txt").write_text(scene.label_lines())


def _sprites(split: str) -> list[list[np.ndarray]]:
    """Return the (28, 28) grey pictures on black of each class."""
    sheet = cv2.imread(str(ASSETS / SHEETS[split]), cv2.IMREAD_GRAYSCALE)
    assert sheet is not None, f"{SHEETS[split]} is missing from {ASSETS}"
    rows = sheet.reshape(10, SPRITE, -1, SPRITE).swapaxes(1, 2)
    return [[sprite for row in members for sprite in rows[row]] for members in SHEET_ROWS]


def compose_scene(
    size: int, sprites: list[list[np.ndarray]], photos: list[np.ndarray], rng: np.random.Generator
) -> Scene:
    """Compose a scene on a part of a photograph.

    Two to six garments and up to four scraps of photographs lie on it in random order.
    """
    scene = Scene(_crop(photos, size, rng, zoom=(0.9, 1.6)))
    things = rng.permutation([True] * int(rng.integers(2, 7)) + [False] * int(rng.integers(0, 5)))
    for is_garment in things:
        for _ in range(5):  # tries to find room for the thing
            patch = _garment(size, sprites, rng) if is_garment else _scrap(size, photos, rng)
            centre = rng.uniform(0.06, 0.94, 2) * size
            if scene.paste(patch, (centre - patch.alpha.shape[0] / 2).round().astype(int)):
                break
    scene.image += rng.standard_normal(scene.image.shape, np.float32) * np.float32(
        rng.uniform(0, 8)
    )
    return scene


def _garment(size: int, sprites: list[list[np.ndarray]], rng: np.random.Generator) -> Patch:
    """Return a random garment of a random class, tinted, turned and scaled."""
    kind = int(rng.integers(len(sprites)))
    sprite = sprites[kind][int(rng.integers(len(sprites[kind])))]
    mask = _silhouette(sprite)
    zoom = size / 128 * rng.uniform(1.1, 2.3)
    angle = np.radians(rng.normal(0, 8))
    turn = zoom * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    turn[:, 0] *= rng.choice([-1, 1])
    side = int(SPRITE * zoom * 1.5)
    matrix = np.column_stack([turn, side / 2 - turn @ [SPRITE / 2, SPRITE / 2]])
    light = rng.uniform(110, 255, 3).astype(np.float32)
    dark = rng.uniform(0, 60, 3).astype(np.float32)
    shade = cv2.warpAffine(
        sprite.astype(np.float32) / 255, matrix, (side, side), flags=cv2.INTER_CUBIC
    )
    alpha = cv2.warpAffine(mask.astype(np.float32), matrix, (side, side), flags=cv2.INTER_LINEAR)
    colour = dark + shade.clip(0, 1)[..., None] * (light - dark)
    return Patch(colour, alpha, mask.sum() * zoom**2, kind)


def _silhouette(sprite: np.ndarray) -> np.ndarray:
    """Return the mask of a garment, (28, 28) uint8 0/1; holes, which are dark cloth, are filled."""
    outlines, _ = cv2.findContours(
        (sprite > 12).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    largest = max(outlines, key=cv2.contourArea)
    return cv2.drawContours(np.zeros_like(sprite), [largest], -1, 1, cv2.FILLED)


def _scrap(size: int, photos: list[np.ndarray], rng: np.random.Generator) -> Patch:
    """Return clutter: a turned ellipse or rectangle cut from a photograph."""
    axes, angle = rng.uniform(0.08, 0.32, 2) * size, rng.uniform(0, 180)
    side = int(np.hypot(*axes)) + 2
    alpha = np.zeros((side, side), np.float32)
    shape = ((side / 2, side / 2), axes.tolist(), angle)
    if rng.random() < 0.5:
        cv2.ellipse(alpha, shape, 1.0, cv2.FILLED)
    else:
        cv2.fillConvexPoly(alpha, cv2.boxPoints(shape).round().astype(np.int32), 1.0)
    tint = rng.uniform(0.5, 1.3, 3).astype(np.float32)
    return Patch((_crop(photos, side, rng, zoom=(0.4, 1.0)) * tint).clip(0, 255), alpha, 0.0, None)


def _crop(
    photos: list[np.ndarray], side: int, rng: np.random.Generator, zoom: tuple[float, float]
) -> np.ndarray:
    """Return a random part of a random photograph, (side, side, 3) float32.

    Half of the parts are mirrored, and the brightness is changed.

    Args:
        photos: Photographs, (h, w, 3) each.
        side: Side of the result, pixels.
        rng: Generator of the random numbers.
        zoom: Range of the part's side over `side`.
    """
    photo = photos[int(rng.integers(len(photos)))]
    part = max(1, int(side * min(rng.uniform(*zoom), min(photo.shape[:2]) / side)))
    top, left = rng.integers(photo.shape[0] - part + 1), rng.integers(photo.shape[1] - part + 1)
    patch = cv2.resize(
        photo[top : top + part, left : left + part], (side, side), interpolation=cv2.INTER_AREA
    )
    patch = patch[:, ::-1] if rng.random() < 0.5 else patch
    return (patch * np.float32(rng.uniform(0.6, 1.1))).clip(0, 255)
