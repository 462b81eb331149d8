"""The runs that the pruning tables of docs/results.md are made from; `results.py` runs them."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.runner import Run

METHODS = (
    *("l1", "random", "group_norm", "lamp", "fpgm"),
    *("group_fisher", "group_hessian", "group_taylor", "pagcp"),
)
SPARSE_METHODS = ("slim", "group_slim", "group_sl", "group_reg")
SEEDED = ("group_fisher", "lamp")  # the default, and the one that looks at weights alone
SEEDS = (0, 1, 2)
LONGER = 3  # times the epochs of the base


@dataclass(frozen=True)
class Recipe:
    """Settings that the runs on one data set share.

    Args:
        name: Name of the data set.
        data: Data YAML.
        start: Words of the command that say what the base model starts from.
        hyp: Hyp file of the base model and of sparse training.
        finetune_hyp: Hyp file of the finetunes.
        imgsz: Image size in pixels.
        images: Number of training images.
        base_epochs: Epochs of the base model.
        finetune_epochs: Epochs of a finetune.
        methods: Pruning methods.
        curve: Speed-ups of the curves.
        longer: Sparse methods that are also trained three times as long.
        seeds: Seeds of the finetunes of the uncut model and of `SEEDED`; the base has `SEEDS`.
        project: Folder of the runs.
    """

    name: str
    data: str
    start: tuple[str, ...]
    hyp: str
    finetune_hyp: str
    imgsz: int
    images: int
    base_epochs: int
    finetune_epochs: int
    methods: tuple[str, ...]
    curve: tuple[float, ...]
    longer: tuple[str, ...]
    seeds: tuple[int, ...]
    project: Path

    @property
    def curved(self) -> tuple[str, ...]:
        """Methods of the curve from small to large speed-ups."""
        return tuple(method for method in (*SEEDED, "slim") if method in self.methods)

    def train(
        self, name: str, *words: str, epochs: int, seed: int = 0, script: str = "train.py"
    ) -> tuple[str, ...]:
        """Return the command of a training run; `words` are further words of it."""
        return (script, *words, *self._common(name, seed), "--epochs", str(epochs))

    def prune(
        self, name: str, weights: Path, method: str, speed_up: float, seed: int = 0
    ) -> tuple[str, ...]:
        """Return the command of a pruning run with its finetune."""
        words = ("--weights", str(weights), "--method", method, "--speed-up", f"{speed_up:g}")
        words += ("--calib-batches", "4") if method == "pagcp" else ()
        finetune = (
            "--finetune-hyp",
            self.finetune_hyp,
            "--finetune-epochs",
            str(self.finetune_epochs),
        )
        return ("prune.py", *words, *finetune, *self._common(name, seed))

    def best(self, run: str) -> Path:
        """Return the path of the best checkpoint of a run."""
        return self.project / run / "weights" / "best.pt"

    def _common(self, name: str, seed: int) -> tuple[str, ...]:
        where = ("--project", str(self.project), "--name", name, "--exist-ok")
        return (
            "--data",
            self.data,
            "--imgsz",
            str(self.imgsz),
            "--cache",
            "--workers",
            "0",
            "--seed",
            str(seed),
            *where,
        )


def demo_recipe(
    project: Path, methods: tuple[str, ...] = (), seeds: tuple[int, ...] = (0,)
) -> Recipe:
    """Return the settings of the embedded set, as `make demo` trains on it."""
    return Recipe(
        name="demo",
        data="demo",
        start=("--cfg", "yolov5n"),
        hyp="demo",
        finetune_hyp="demo-finetune",
        imgsz=128,
        images=400,
        base_epochs=40,
        finetune_epochs=20,
        methods=methods,
        curve=(),
        longer=(),
        seeds=seeds,
        project=project,
    )


def runs_of(recipe: Recipe) -> list[Run]:
    """Return all runs of a data set; each comes after the runs that it needs."""
    return [*base_runs(recipe), *pruning_runs(recipe), scratch_run(recipe)]


def base_runs(recipe: Recipe) -> list[Run]:
    """Return the runs before pruning.

    The base at three seeds, the finetune of the uncut base at the seeds of the finetunes (the noise
    floor), and sparse training by each penalty.
    """
    base, tune = recipe.base_epochs, recipe.finetune_epochs
    runs = []
    for seed in SEEDS:
        name = f"base-{seed}"
        words = recipe.train(name, *recipe.start, "--hyp", recipe.hyp, epochs=base, seed=seed)
        runs.append(Run(name, words, base, base))
    weights = ("--weights", str(recipe.best("base-0")))
    for seed in recipe.seeds:
        name = f"control-{seed}"
        words = recipe.train(name, *weights, "--hyp", recipe.finetune_hyp, epochs=tune, seed=seed)
        runs.append(Run(name, words, tune, base + tune, ("base-0",)))
    for method in [m for m in recipe.methods if m in SPARSE_METHODS]:
        runs.append(_sparse_run(recipe, f"sparse-{method}", method, base))
    for method in recipe.longer:
        runs.append(_sparse_run(recipe, f"sparse-{method}-long", method, LONGER * base))
    return runs


def _sparse_run(recipe: Recipe, name: str, method: str, epochs: int) -> Run:
    sparse = (
        "--weights",
        str(recipe.best("base-0")),
        "--hyp",
        recipe.hyp,
        "--method",
        method,
        "--reg",
        "auto",
    )
    words = recipe.train(name, *sparse, epochs=epochs, script="train_sparse.py")
    return Run(name, words, epochs, recipe.base_epochs + epochs, ("base-0",))


def pruning_runs(recipe: Recipe) -> list[Run]:
    """Return the pruning runs.

    2x by every method, 2x of some methods at further seeds, the curves, and 2x after the longer
    sparse trainings.
    """
    wanted = [(method, 2.0, 0) for method in recipe.methods]
    seeded = [method for method in SEEDED if method in recipe.methods]
    wanted += [(method, 2.0, seed) for method in seeded for seed in recipe.seeds[1:]]
    wanted += [
        (method, speed_up, 0)
        for method in recipe.curved
        for speed_up in recipe.curve
        if speed_up != 2.0
    ]
    long = [_pruning_run(recipe, method, 2.0, 0, longer=True) for method in recipe.longer]
    return [*(_pruning_run(recipe, *one) for one in wanted), *long]


def _pruning_run(
    recipe: Recipe, method: str, speed_up: float, seed: int, longer: bool = False
) -> Run:
    suffix = "-long" if longer else ""
    name = f"{method}-{speed_up:g}x" + (f"-seed{seed}" if seed else suffix)
    source = f"sparse-{method}{suffix}" if method in SPARSE_METHODS else "base-0"
    sparse = (LONGER if longer else 1) if method in SPARSE_METHODS else 0
    before = recipe.base_epochs * (1 + sparse)
    weights = recipe.best(source)
    if source != "base-0":
        # The last model of a sparse training has the least weight left in the channels to cut.
        weights = weights.with_name("last.pt")
    words = recipe.prune(name, weights, method, speed_up, seed)
    tune = recipe.finetune_epochs
    return Run(name, words, tune, before + tune, (source,), load=0.4 + 0.6 / speed_up)


def scratch_run(recipe: Recipe) -> Run:
    """Return the run of LAMP's shape with new weights, as long as base and finetune together."""
    epochs = recipe.base_epochs + recipe.finetune_epochs
    shape = recipe.project / "lamp-2x" / "weights" / "pruned.pt"
    words = recipe.train(
        "scratch", "--weights", str(shape), "--reinit", "--hyp", recipe.hyp, epochs=epochs
    )
    return Run("scratch", words, epochs, epochs, ("lamp-2x",), load=0.7)
