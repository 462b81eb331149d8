"""Write a self-contained page with the worst cases of each kind drawn, and the same as JSON."""

import base64
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data.check.issues import Example, Issue, Level, Picture
from data.images import read_image, resize_long_side
from utils.errors import UserError
from utils.files import write_atomic

LONG_SIDE = 320  # pixels of a picture on the page
QUALITY = 80
MARK, OTHER = (255, 60, 40), (80, 200, 255)  # RGB of the boxes of the case, and of all others
HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title><style>
body {{font: 15px/1.4 system-ui, sans-serif; margin: 2em auto; max-width: 1100px; padding: 0 1em;
  overflow-wrap: anywhere; color-scheme: light dark}}
img {{max-width: 100%}}
h2 {{margin-top: 2em; border-bottom: 1px solid #ccc}}
figure {{display: inline-block; margin: 8px 0; vertical-align: top; max-width: min(680px, 100%)}}
figcaption {{font-size: 12px}}
table {{border-collapse: collapse}}
td, th {{padding: 2px 12px; text-align: right; border-bottom: 1px solid #ddd}}
td:first-child, th:first-child {{text-align: left}}
.ERROR {{color: #b00020}} .WARNING {{color: #a65b00}}
</style></head><body>"""


def write_page(
    path: Path, title: str, table: Sequence[Sequence[str]], issues: Sequence[Issue]
) -> None:
    """Write the page.

    Args:
        path: File of the page.
        title: Title, the name of the data set.
        table: Numbers of boxes by class, the head first.
        issues: What was found.
    """
    parts = [HEAD.format(title=escape(title)), f"<h1>{escape(title)}</h1>", _table(table)]
    if not issues:
        parts.append("<p>Nothing odd was found.</p>")
    for issue in issues:
        parts.append(f'<h2 class="{issue.level.name}">{escape(issue.kind)}</h2>')
        shown = f" (the worst {len(issue.examples)} are shown)" * (
            issue.count > len(issue.examples)
        )
        parts.append(f"<p>{escape(issue.text)}{shown}</p>")
        parts += [_figure(example) for example in issue.examples]
    write_atomic(path, "\n".join([*parts, "</body></html>\n"]))


def write_json(path: Path, title: str, code: int, issues: Sequence[Issue]) -> None:
    """Write what was found as JSON."""
    found = [
        {"kind": i.kind, "level": i.level.name.lower(), "count": i.count, "text": i.text}
        | {"examples": [example.text for example in i.examples]}
        for i in issues
    ]
    content: dict[str, Any] = {"data": title, "exit_code": code, "findings": found}
    write_atomic(path, json.dumps(content, indent=2))


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows, the head first, as a table."""
    head, *body = [[escape(cell) for cell in row] for row in rows]
    lines = [f"<tr><td>{'</td><td>'.join(row)}</td></tr>" for row in body]
    return f"<table><tr><th>{'</th><th>'.join(head)}</th></tr>{''.join(lines)}</table>"


def _figure(example: Example) -> str:
    """Return one case: its pictures, if they can be read, above its text."""
    drawn = [(_text(p.file.name), draw(p)) for p in example.pictures]
    tags = [f'<img alt="{name}" src="{data}">' for name, data in drawn if data]
    return f"<figure>{''.join(tags)}<figcaption>{_text(example.text)}</figcaption></figure>"


def _text(text: str) -> str:
    """Return a text for HTML; names of files that are not UTF-8 are written with escapes."""
    return escape(text.encode("utf-8", "backslashreplace").decode())


def draw(picture: Picture) -> str:
    """Return a small picture with its boxes as a data URL; "" where the image cannot be read.

    Around marked boxes that would be hard to see a circle is drawn.
    """
    try:
        image = resize_long_side(read_image(picture.file), LONG_SIDE, smooth=True)
    except UserError:
        return ""
    height, width = image.shape[:2]
    image = np.ascontiguousarray(image)
    marked = set(picture.marked)
    for number, (_, x, y, w, h) in sorted(
        enumerate(picture.boxes.tolist()), key=lambda item: item[0] in marked
    ):
        low = round((x - w / 2) * width), round((y - h / 2) * height)
        high = round((x + w / 2) * width), round((y + h / 2) * height)
        cv2.rectangle(image, low, high, MARK if number in marked else OTHER, 1)
        if number in marked and max(w * width, h * height) < 12:
            cv2.circle(image, (round(x * width), round(y * height)), 14, MARK, 1)
    _, encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.tobytes()).decode()}"


def exit_code(issues: Sequence[Issue], allowed: Sequence[str]) -> int:
    """Return 0, 1 or 2: nothing, warnings, errors, of the kinds that are not allowed."""
    levels = [issue.level for issue in issues if issue.kind not in allowed]
    return int(max(levels, default=Level.NOTE))
