"""Early stopping of trainings: Optuna's pruners, on the scale of tenths of the budget."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.errors import UsageError

if TYPE_CHECKING:
    import optuna

    from compress.engine.config import TrainingSchedule
    from compress.experiments.config import PruningConfig

TENTHS = 10


class PruningMonitor:
    """Compares the scores of running trainings; those of one group compete with each other.

    A plain object for one worker, and a Ray actor for several.

    Args:
        pruning: Algorithm and settings.
        groups: Training name -> group. In a sweep the group is the student.
    """

    def __init__(self, pruning: PruningConfig, groups: Mapping[str, str]) -> None:
        try:
            import optuna
        except ImportError as error:
            raise UsageError("pruning needs Optuna: pip install 'compress-distill[sweep]'.") from error
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.groups = dict(groups)
        self.trials: dict[str, optuna.Trial] = {}
        self.reported: set[tuple[str, int]] = set()
        self.studies = {
            group: optuna.create_study(
                direction="maximize", pruner=create_pruner(pruning), sampler=optuna.samplers.RandomSampler(seed=0)
            )
            for group in dict.fromkeys(groups.values())
        }

    def report(self, name: str, tenth: int, score: float) -> bool:
        """Record a score and return whether the training should stop."""
        if (name, tenth) in self.reported:
            return False
        self.reported.add((name, tenth))
        if name not in self.trials:
            self.trials[name] = self.studies[self.groups[name]].ask()
        trial = self.trials[name]
        trial.report(score, tenth)
        return trial.should_prune()

    def finish(self, name: str, score: float | None) -> None:
        """Mark a training as finished, so that others are compared with its end."""
        if name in self.trials:
            self.studies[self.groups[name]].tell(self.trials[name].number, 0.0 if score is None else score)


def create_pruner(pruning: PruningConfig) -> optuna.pruners.BasePruner:
    """Create Optuna's pruner; its steps are tenths of the budget."""
    import optuna

    if pruning.kind == "none":
        return optuna.pruners.NopPruner()
    if pruning.kind == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=pruning.startup_trials, n_warmup_steps=pruning.warmup)
    return optuna.pruners.SuccessiveHalvingPruner(
        min_resource=pruning.warmup, reduction_factor=pruning.reduction_factor
    )


def scores_by_budget_fraction(run_dir: Path, training: TrainingSchedule) -> dict[int, dict[str, Any]]:
    """Read the first evaluation in each tenth of the budget: tenth -> step, metric and score."""
    from compress.engine.logging import MetricsLogger

    scores: dict[int, dict[str, Any]] = {}
    for line in MetricsLogger(run_dir, tensorboard=False).read_records("evaluation"):
        share = line["step"] / training.steps if training.steps else line.get("seconds", 0) / (training.time_limit or 1)
        metric = next((name for name in line if name not in ("kind", "step", "seconds")), None)
        tenth = min(TENTHS, int(share * TENTHS + 1e-9))
        if metric is not None:
            scores.setdefault(tenth, {"step": line["step"], "metric": metric, "score": line[metric]})
    return scores
