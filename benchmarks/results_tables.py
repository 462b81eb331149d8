"""Tables of the finished runs.

Every model is measured anew on images that no run has seen, latencies in turn.
"""

import json
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.results_runs import LONGER, SEEDED, SEEDS, SPARSE_METHODS, Recipe
from benchmarks.runner import Run
from recipes.report import Candidate, measure_candidates
from utils.comparison import ComparisonRow
from utils.engine.device import select_device
from utils.files import write_atomic
from utils.options.report import ReportOptions

HEAD = (
    "Model",
    "Epochs",
    "Parameters",
    "GFLOPs @640",
    "Size MB",
    "Cut: mAP50",
    "mAP50-95",
    "Finetuned: mAP50",
    "mAP50-95",
)
STAGES = {
    "after the cut": "zeroed",
    "after folding constants": "constants folded",
    "after BN recalibration": "recalibrated",
    "after reconstruction": "reconstructed",
    "after repair": "and repaired",
}


def write_tables(recipe: Recipe, runs: Sequence[Run], seconds: float) -> str:
    """Measure all models of a data set, write `results.md` into its project and return the text.

    Args:
        recipe: Settings of the data set.
        runs: Complete runs.
        seconds: Time spent on measuring latency.
    """
    names = {run.name: run for run in runs}
    pruned = [run for run in runs if run.words[0] == "prune.py"]
    trained = [run for run in runs if run.words[0] != "prune.py"]
    data = recipe.project / "data" / "report.yaml"
    files = {run.name: recipe.best(run.name) for run in trained}
    files |= {
        f"{run.name}, cut": recipe.project / run.name / "weights" / "pruned.pt" for run in pruned
    }
    files |= {run.name: recipe.best(run.name) for run in pruned}
    source = str(data if data.is_file() else recipe.data)
    candidates = [Candidate(name, file, source, recipe.imgsz) for name, file in files.items()]
    options = ReportOptions(seconds=seconds)
    measured, images = measure_candidates(candidates, options, select_device(""))
    rows = {row.name: row for row in measured}
    text = "\n\n".join(
        [
            f"## {recipe.name}: {images} images at {recipe.imgsz} px",
            methods_table(recipe, names, rows),
            noise(rows),
            *([curve_table(recipe, names, rows)] if recipe.curve else []),
            stages_table(
                recipe, [run.name for run in pruned if run.name.endswith(("-2x", "-long"))]
            ),
        ]
    )
    write_atomic(recipe.project / "results.md", text + "\n")
    return text


def methods_table(recipe: Recipe, runs: dict[str, Run], rows: dict[str, ComparisonRow]) -> str:
    """Return the table of base, controls and every method at 2x.

    Several seeds give mean and standard deviation.
    """
    lines = [
        _cells("base", runs["base-0"].total, _seeds(rows, "base"), None, rows),
        _cells(
            "base + the finetune's epochs, uncut",
            runs["control-0"].total,
            _seeds(rows, "control"),
            None,
            rows,
        ),
        _cells(
            "LAMP's 2x shape from new weights", runs["scratch"].total, [rows["scratch"]], None, rows
        ),
    ]
    found = [(method, f"{method}-2x") for method in recipe.methods]
    found += [(f"{method}, {LONGER}x the epochs", f"{method}-2x-long") for method in recipe.longer]
    for method, name in found:
        title = f"{method}, sparse-trained" if method.split(",")[0] in SPARSE_METHODS else method
        lines.append(
            _cells(title, runs[name].total, _seeds(rows, name), rows[f"{name}, cut"], rows)
        )
    return table((*HEAD, "ms / image"), lines)


def curve_table(recipe: Recipe, runs: dict[str, Run], rows: dict[str, ComparisonRow]) -> str:
    """Return the table from small to large speed-ups."""
    lines = []
    for method in recipe.curved:
        for speed_up in recipe.curve:
            name = f"{method}-{speed_up:g}x"
            lines.append(
                _cells(
                    f"{method} {speed_up:g}x",
                    runs[name].total,
                    [rows[name]],
                    rows[f"{name}, cut"],
                    rows,
                )
            )
    return "### How far\n\n" + table((*HEAD, "ms / image"), lines)


def noise(rows: dict[str, ComparisonRow]) -> str:
    """Return the line on the noise floor: how far the seed alone changes mAP50-95."""
    parts = []
    for kind in ("base", "control", *(f"{method}-2x" for method in SEEDED)):
        values = [row.map for row in _seeds(rows, kind)]
        if len(values) > 1:
            parts.append(
                f"{kind} {min(values):.3f} to {max(values):.3f} (standard deviation"
                f" {statistics.stdev(values):.3f})"
            )
    return (
        f"Noise floor, mAP50-95 over three seeds: {'; '.join(parts)}. A difference inside it is"
        " none."
    )


def stages_table(recipe: Recipe, names: Sequence[str]) -> str:
    """Return the table of mAP50-95 right after the cut, on the images set aside for choosing.

    Its columns are: uncut, removed channels zero, and each compensation that was tried.
    """
    lines = []
    for name in names:
        stages = json.loads(
            (recipe.project / name / "prune_report.json").read_text(encoding="utf-8")
        )["stages"]
        found: dict[str, Any] = {stage["stage"]: stage["map"] for stage in stages}
        lines.append(
            [
                name,
                *(f"{found[stage]:.3f}" if stage in found else "" for stage in ("base", *STAGES)),
            ]
        )
    return "### What each compensation saves right after the cut\n\n" + table(
        ("Run", "uncut", *STAGES.values()), lines
    )


def _seeds(rows: dict[str, ComparisonRow], kind: str) -> list[ComparisonRow]:
    """Return the rows of one kind of run at all seeds that were run.

    Their names are `base-0`, `base-1` ... or `lamp-2x`, `lamp-2x-seed1` ...
    """
    names: list[str] = []
    for seed in SEEDS:
        names += [f"{kind}-{seed}", f"{kind}-seed{seed}" if seed else kind]
    return [rows[name] for name in names if name in rows]


def _cells(
    title: str,
    epochs: int,
    found: Sequence[ComparisonRow],
    cut: ComparisonRow | None,
    rows: dict[str, ComparisonRow],
) -> list[str]:
    """Return the cells of a line.

    Args:
        title: First cell.
        epochs: Epochs in all, back to the given weights.
        found: Rows of one model at several seeds; size and latency are those of the first.
        cut: Row of the model right after the cut; None for an uncut model.
        rows: All rows by name.
    """
    row, base = found[0], rows["base-0"]
    cells = [
        title,
        str(epochs),
        f"{row.deployed_parameters:,} ({row.deployed_parameters / base.deployed_parameters:.0%})",
    ]
    cells += [
        f"{row.gflops_640:.2f} ({base.gflops_640 / row.gflops_640:.2f}x)",
        f"{row.size_mb:.2f}",
    ]
    cells += [f"{cut.map50:.3f}", f"{cut.map:.3f}"] if cut else ["", ""]
    cells += [_spread(found, lambda r: r.map50), _spread(found, lambda r: r.map)]
    return [*cells, f"{row.latency_ms:.2f} ({base.latency_ms / row.latency_ms:.2f}x)"]


def _spread(rows: Sequence[ComparisonRow], value: Callable[[ComparisonRow], float]) -> str:
    values = [value(row) for row in rows]
    mean = f"{statistics.mean(values):.3f}"
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
