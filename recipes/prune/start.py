"""The model before a finetune, as a candidate for its best checkpoint."""

from typing import Any

from models.checkpoint import save_checkpoint
from recipes.session import TrainingRun
from utils.engine.hooks import Hook, TrainerState
from utils.log import LOGGER
from utils.options.base import to_dict

BEFORE = -1  # the epoch of the checkpoint


class StartIsCandidate(Hook):
    """Validate the model before the first epoch: `best.pt` is never worse than the start."""

    main_only = True

    def __init__(self, run: TrainingRun):
        self.run = run

    def on_fit_start(self, trainer: TrainerState) -> None:
        """Write the start as `best.pt`; a resumed run has done that."""
        evaluate: Any = getattr(trainer, "evaluate", None)
        if trainer.step or evaluate is None:
            return
        result = evaluate(trainer.ema.model)
        trainer.best_fitness = float(result.fitness)
        LOGGER.info(f"Before the finetune: mAP50 {result.map50:.3f}, mAP50-95 {result.map:.3f}")
        fields = {"epoch": BEFORE, "best_fitness": trainer.best_fitness, "history": []}
        save_checkpoint(
            self.run.run_dir / "weights" / "best.pt",
            trainer.ema.model,
            hyp=self.run.hyp.to_dict(),
            args=to_dict(self.run.opt),
            **fields,
        )
