"""`python -m data.check`: scan a data set, check it, log what is found, write the page."""

from collections.abc import Sequence

from data.cache import scan
from data.check.image_checks import check_images
from data.check.issues import Issue, Level, Split
from data.check.label_checks import check_labels, class_counts
from data.check.page import exit_code, write_json, write_page
from data.config import SPLITS, DataConfig, load_data
from utils.log import LOGGER
from utils.options.data.check import KINDS, DataCheckOptions
from utils.rundir import make_run_dir
from utils.tables import console_table

WORDS = {Level.ERROR: "ERROR", Level.WARNING: "warning", Level.NOTE: "note"}
MOST_CLASSES = 30  # that the table in the console has


def check(opt: DataCheckOptions) -> int:
    """Check a data set; return 0 where it is clean, 1 for warnings, 2 for errors."""
    data = load_data(opt.data)
    folder = make_run_dir(opt.project, opt.name, opt.exist_ok)
    splits = [
        Split(split, images := data.images(split), scan(images, data.nc, data.coco.get(split)))
        for split in SPLITS
        if getattr(data, split)
    ]
    issues = [*check_labels(splits, data.names, opt.imgsz)]
    if opt.compare:
        issues += check_images(splits)
    issues.sort(key=lambda issue: (-issue.level, KINDS.index(issue.kind)))
    table = class_table(splits, data)
    shown = table if len(table) <= MOST_CLASSES + 2 else table[: MOST_CLASSES + 1]
    LOGGER.info(console_table(shown, right=range(1, len(table[0]))))
    log(issues)
    code = exit_code(issues, opt.allow)
    title = str(data.file or opt.data)
    write_page(folder / "check.html", title, table, issues)
    write_json(folder / "check.json", title, code, issues)
    LOGGER.info(f"Results saved to {folder}: check.html shows the worst cases; exit code {code}")
    return code


def log(issues: Sequence[Issue]) -> None:
    """Log each issue in a line."""
    if not issues:
        LOGGER.info("Nothing odd was found")
    for issue in issues:
        text = f"{WORDS[issue.level]}: {issue.kind}: {issue.text}"
        (LOGGER.warning if issue.level else LOGGER.info)(text)


def class_table(splits: Sequence[Split], data: DataConfig) -> list[list[str]]:
    """Return the numbers of boxes by class and split, with the sums, the head first."""
    counts = class_counts(splits, data.nc)
    head = ["class", *counts]
    rows = [
        [name, *(str(counts[split][number]) for split in counts)]
        for number, name in enumerate(data.names)
    ]
    images = ["images", *(str(len(split.images)) for split in splits)]
    boxes = ["boxes", *(str(counts[split].sum()) for split in counts)]
    return [head, images, boxes, *rows]
