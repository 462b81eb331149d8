"""Make the distillation tables of docs/results.md: every loss against training alone.

    python benchmarks/distillation.py --jobs 2    # hours
    python benchmarks/distillation.py --tune      # the weights to choose from, on seed 0 alone

There is a table for a new student, two for a pruned one (under its uncut self, and under the
stronger teacher) and one of the parts of the recipe. Runs use the larger demo set at
128 px and eight epochs (600 steps) for the student. The teacher is a YOLOv5s with the OTA loss,
trained three times as long. A teacher that is not better than the student by .05 mAP50-95 shows
nothing: the benchmark says so and stops.

Loss weights are chosen on seed 0 (`--tune`) and written below; the tables are of seeds 1 to 3, as
differences from training alone with the same seed. Every figure is of the last epoch, so that no
figure was chosen on the images it describes. The time budget is printed first; complete runs are
not run again.
"""

import csv
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.results_runs import Recipe, demo_recipe  # noqa: E402
from benchmarks.results_tables import table  # noqa: E402
from benchmarks.runner import Run, budget, chosen, done, execute  # noqa: E402
from utils.cli import run_script  # noqa: E402
from utils.errors import UserError  # noqa: E402
from utils.files import write_atomic  # noqa: E402
from utils.options.base import option  # noqa: E402

SEEDS = (1, 2, 3)
EPOCHS = 8
TEACHER_EPOCHS = 24
TEACHER_LOAD, TAUGHT_LOAD = 3.0, 1.8  # time of an epoch, in epochs of YOLOv5n alone
MARGIN = 0.05  # mAP50-95 by which the teacher must be better than the student
WEIGHTS = {"l1": 1, "l2": 1, "ast": 1, "mimic": 0.15, "mgd": 0.01, "cwd": 0.1, "pkd": 0.3}
"""Weight of each loss, the default ones."""
LOGIT = ("l1", "l2", "ast")
STUDENT_ROWS = ("l1", "l2", "ast", "mimic", "mgd", "cwd", "pkd", "cwd+ast", "mgd+ast", "cwd+mgd")
PRUNED_ROWS = ("ast", "cwd", "cwd+ast", "pkd+ast")
PARTS = {
    "sgd": ("--adapter", "sgd"),
    "adamw": ("--adapter", "adamw"),
    "plain": ("--feature-args", "cwd.norm=False"),
    "linear": ("--kd-schedule", "linear"),
    "cosine": ("--kd-schedule", "cosine"),
    "every-10": ("--adapter-every", "10"),
}
"""Changes of the recipe, one at a time, tried with `cwd`."""
TRIED = {
    "l1": (1,),
    "l2": (1,),
    "ast": (1, 3),
    "mimic": (0.05, 0.15, 0.5),
    "mgd": (0.003, 0.01, 0.03),
    "cwd": (0.03, 0.1, 0.3),
    "pkd": (0.1, 0.3, 1),
}
TRIED_ARGS = {"cwd": ("cwd.temperature=4",), "mgd": ("mgd.norm=True",)}
"""Options tried with the first weight of their loss."""


@dataclass(frozen=True)
class DistillationOptions:
    """Options of the benchmark."""

    tune: bool = option(False, "try weights for every loss on seed 0 instead of the tables")
    jobs: int = option(1, "runs at a time; each gets its share of the CPU cores", least=1)
    only: tuple[str, ...] = option((), "these runs alone, and those they need", multi=True)
    project: str = option("runs/distillation", "folder of the runs")


def main(opt: DistillationOptions) -> None:
    """Run the missing runs, write and print the tables."""
    recipe = large_recipe(Path(opt.project).resolve())
    basis = [teacher_run(recipe), *(alone_run(recipe, seed) for seed in (0, *SEEDS))]
    runs = [
        *basis,
        *(tuning_runs(recipe) if opt.tune else table_runs(recipe)),
    ]
    todo = chosen(runs, opt.only)
    missing = [run for run in todo if not done(recipe.project, run)]
    print(
        f"{len(todo)} runs, {len(missing)} to do;"
        f" {budget(missing, recipe.images, recipe.imgsz, opt.jobs)}",
        flush=True,
    )
    finish(recipe, [run for run in todo if run in basis], opt.jobs)
    gap = last_map(recipe, "teacher") - statistics.mean(
        last_map(recipe, f"alone-{seed}") for seed in SEEDS
    )
    print(f"teacher - student: {gap:+.3f} mAP50-95", flush=True)
    if gap < MARGIN:
        raise UserError(
            f"the teacher is better by {gap:.3f} only, not by {MARGIN:g}: it cannot show what"
            " distillation does"
        )
    finish(recipe, todo, opt.jobs)
    text = tuning_table(recipe, runs) if opt.tune else tables(recipe)
    write_atomic(recipe.project / ("tuning.md" if opt.tune else "results.md"), text + "\n")
    print(text)


def large_recipe(project: Path) -> Recipe:
    """Return the settings for the larger demo set, otherwise those of `make demo`."""
    small = demo_recipe(project, seeds=SEEDS)
    return replace(
        small,
        name="demo-large",
        data="demo-large",
        images=1200,
        base_epochs=EPOCHS,
        finetune_epochs=EPOCHS // 2,
    )


def finish(recipe: Recipe, runs: Sequence[Run], jobs: int) -> None:
    """Run the runs that are not done.

    Raises:
        UserError: A run failed.
    """
    if failed := execute(recipe.project, runs, jobs):
        raise UserError(
            f"these runs failed, see their log.txt in {recipe.project}: {', '.join(failed)}"
        )


def teacher_run(recipe: Recipe) -> Run:
    """Return the run of the teacher: YOLOv5s, OTA loss, three times as long as the student."""
    start = ("--cfg", "yolov5s", "--loss", "ota", "--hyp", recipe.hyp, "--noval")
    words = recipe.train("teacher", *start, epochs=TEACHER_EPOCHS)
    return Run("teacher", words, TEACHER_EPOCHS, TEACHER_EPOCHS, load=TEACHER_LOAD)


def alone_run(recipe: Recipe, seed: int) -> Run:
    """Return a run of the student without a teacher."""
    name = f"alone-{seed}"
    words = recipe.train(
        name, *recipe.start, "--hyp", recipe.hyp, "--noval", epochs=recipe.base_epochs, seed=seed
    )
    return Run(name, words, recipe.base_epochs, recipe.base_epochs)


def taught_run(
    recipe: Recipe, name: str, losses: str, seed: int, weight: float | None = None, *more: str
) -> Run:
    """Return a run of the student with a teacher.

    Args:
        recipe: Settings of the data set.
        name: Name of the run.
        losses: Names of the losses, as `cwd+ast`.
        seed: Seed of the run.
        weight: Weight of each loss; None for the chosen weights.
        more: Further words of the command.
    """
    words = (
        *recipe.start,
        "--hyp",
        recipe.hyp,
        "--noval",
        "--teacher",
        str(recipe.best("teacher")),
        *loss_words(losses, weight),
    )
    command = recipe.train(
        name, *words, *more, epochs=recipe.base_epochs, seed=seed, script="distill.py"
    )
    return Run(
        name, command, recipe.base_epochs, recipe.base_epochs, ("teacher",), load=TAUGHT_LOAD
    )


def loss_words(losses: str, weight: float | None = None) -> tuple[str, ...]:
    """Return the options for losses such as `cwd+ast`, with one weight or the chosen weights."""
    given = losses.split("+")
    kinds = {
        "logit": [name for name in given if name in LOGIT],
        "feature": [name for name in given if name not in LOGIT],
    }
    words: list[str] = []
    for kind, names in kinds.items():
        if names:
            words += [f"--{kind}-loss", *names]
            words += [f"--{kind}-weight", *(f"{weight or WEIGHTS[name]:g}" for name in names)]
    return tuple(words)


def table_runs(recipe: Recipe) -> list[Run]:
    """Return the runs of all tables."""
    return [*student_runs(recipe), *part_runs(recipe), *pruned_runs(recipe)]


def part_runs(recipe: Recipe) -> list[Run]:
    """Return the runs that change one part of the recipe of `cwd`."""
    return [
        taught_run(recipe, f"cwd-{part}-{seed}", "cwd", seed, None, *words)
        for part, words in PARTS.items()
        for seed in SEEDS
    ]


def student_runs(recipe: Recipe) -> list[Run]:
    """Return the runs of a new student: every row at every seed."""
    return [
        taught_run(recipe, f"{row}-{seed}", row, seed) for row in STUDENT_ROWS for seed in SEEDS
    ]


def pruned_runs(recipe: Recipe) -> list[Run]:
    """Return the runs of a pruned student: LAMP 2x of the student that was trained alone.

    The cut student is finetuned alone, under the uncut student, and under the stronger teacher.
    """
    runs = []
    for seed in SEEDS:
        source = recipe.best(f"alone-{seed}")
        teachers = {"self": source, "strong": recipe.best("teacher")}
        runs.append(pruned_run(recipe, "alone", seed))
        for kind, teacher in teachers.items():
            for row in PRUNED_ROWS:
                words = ("--teacher", str(teacher), *loss_words(row))
                runs.append(pruned_run(recipe, f"{kind}-{row}", seed, *words))
    return runs


def pruned_run(recipe: Recipe, title: str, seed: int, *more: str) -> Run:
    """Return a run that cuts the student of a seed and finetunes it; `more` are further words."""
    name, needed = f"pruned-{title}-{seed}", (f"alone-{seed}", *(["teacher"] if more else []))
    words = (*recipe.prune(name, recipe.best(f"alone-{seed}"), "lamp", 2.0, seed), *more)
    epochs = recipe.finetune_epochs
    return Run(name, words, epochs, recipe.base_epochs + epochs, needed)


def tuning_runs(recipe: Recipe) -> list[Run]:
    """Return the runs that try weights and options, on seed 0."""
    pairs = [(loss, weight) for loss, weights in TRIED.items() for weight in weights]
    options = [(loss, word) for loss, words in TRIED_ARGS.items() for word in words]
    return [
        *(taught_run(recipe, f"tune-{loss}-{weight:g}", loss, 0, weight) for loss, weight in pairs),
        *(
            taught_run(recipe, f"tune-{word}", loss, 0, TRIED[loss][0], "--feature-args", word)
            for loss, word in options
        ),
    ]


def last_map(recipe: Recipe, run: str) -> float:
    """Return the mAP50-95 of a run's last epoch on the validation images."""
    folder = recipe.project / run
    results = [
        path
        for path in (folder / "finetune" / "results.csv", folder / "results.csv")
        if path.is_file()
    ]
    with results[0].open(encoding="utf-8", newline="") as file:
        return float(list(csv.DictReader(file))[-1]["metrics/mAP_0.5:0.95"])


def tables(recipe: Recipe) -> str:
    """Return all tables, of the complete runs."""
    student = comparison(recipe, "alone-{seed}", {row: f"{row}-{{seed}}" for row in STUDENT_ROWS})
    parts = comparison(recipe, "cwd-{seed}", {part: f"cwd-{part}-{{seed}}" for part in PARTS})
    below_self, below_strong = (
        comparison(
            recipe,
            "pruned-alone-{seed}",
            {row: f"pruned-{kind}-{row}-{{seed}}" for row in PRUNED_ROWS},
        )
        for kind in ("self", "strong")
    )
    teacher = f"Teacher: {last_map(recipe, 'teacher'):.3f} mAP50-95."
    return "\n\n".join(
        (
            f"### A new student\n\n{teacher}\n\n{student}",
            f"### Parts of the recipe of cwd\n\nThe first row is cwd as it is.\n\n{parts}",
            f"### LAMP 2x, finetuned under the uncut student\n\n{below_self}",
            f"### LAMP 2x, finetuned under the stronger teacher\n\n{below_strong}",
        )
    )


def comparison(recipe: Recipe, alone: str, rows: dict[str, str]) -> str:
    """Return a table of mAP50-95 as mean and standard deviation over the seeds.

    Each row also has the differences from training alone with the same seed.

    Args:
        recipe: Settings of the data set.
        alone: Name of the runs without a teacher, with `{seed}` in it.
        rows: Names of the other runs by title of their row.
    """
    base = of_seeds(recipe, alone)
    lines = [["alone", spread(list(base.values())), "", ""]]
    for title, name in rows.items():
        found = of_seeds(recipe, name)
        values = {seed: value for seed, value in found.items() if seed in base}
        if values:
            gains = [value - base[seed] for seed, value in values.items()]
            listed = " ".join(f"{gain:+.3f}" for gain in gains)
            lines.append([title, spread(list(values.values())), listed, spread(gains, signed=True)])
    return table(("Loss", "mAP50-95", "against alone, seed by seed", "mean"), lines)


def of_seeds(recipe: Recipe, name: str) -> dict[int, float]:
    """Return mAP50-95 by seed, of the complete runs; `name` has `{seed}` in it."""
    runs = {seed: name.format(seed=seed) for seed in SEEDS}
    return {
        seed: last_map(recipe, run)
        for seed, run in runs.items()
        if (recipe.project / run / "done.json").is_file()
    }


def spread(values: Sequence[float], signed: bool = False) -> str:
    """Return mean and standard deviation: `0.352 ± 0.006`, `+0.010 ± 0.006`, or a lone value."""
    text = f"{statistics.mean(values):{'+' if signed else ''}.3f}" if values else "-"
    return f"{text} ± {statistics.stdev(values):.3f}" if len(values) > 1 else text


def tuning_table(recipe: Recipe, runs: Sequence[Run]) -> str:
    """Return the table of the runs that try weights and options: a row for each run."""
    base = last_map(recipe, "alone-0")
    complete = [
        run.name for run in runs if run.name.startswith("tune-") and done(recipe.project, run)
    ]
    found = [(name, last_map(recipe, name)) for name in complete]
    return table(
        ("Run", "mAP50-95", "against alone"),
        [[name, f"{value:.3f}", f"{value - base:+.3f}"] for name, value in found],
    )


if __name__ == "__main__":
    run_script(DistillationOptions, main, __doc__)
