"""Methods under one budget, each with several seeds: ranking, lead and caveats."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev
from typing import Any

from profiles.formatting import finite_number, format_duration, format_percent
from profiles.records import Record
from profiles.report.comparison import Comparison

OVERRUN_FACTOR = 1.1  #: ratio of training time to budget above which an overrun is reported


@dataclass(frozen=True)
class MethodResult:
    """One method: the records of its finished runs, one per seed."""

    key: str  #: name in commands
    name: str  #: displayed
    records: Sequence[Record]
    learns_from: Sequence[str] = ()  #: parts of teacher and data that it uses
    settings: Mapping[str, Any] = field(default_factory=dict)  #: settings that differ from the method's defaults
    is_reference: bool = False  #: it uses labels, unlike the others, and is not ranked

    def values(self, key: str) -> list[float]:
        """Return a number of each run that has it."""
        values = [finite_number(record.run.get(key)) for record in self.records]
        return [value for value in values if value is not None]


@dataclass(frozen=True)
class MethodComparison:
    """Methods compared by their scores at the end of their runs."""

    title: str
    results: Sequence[MethodResult]
    teacher: Record | None = None
    budget_s: float | None = None  #: training time of each run in seconds
    steps: int | None = None  #: steps of each run if the budget is not a time
    skipped: Sequence[tuple[str, str]] = ()  #: name of a method that cannot run, and the reason
    failed: Sequence[tuple[str, int, str]] = ()  #: name, seed and error of a failed run
    commands: Sequence[str] = ()
    notes: Sequence[str] = ()

    @property
    def records(self) -> list[Record]:
        return [record for result in self.results for record in result.records]

    @property
    def metric(self) -> str:
        return Comparison(self.records).metric

    @property
    def metric_name(self) -> str:
        return Comparison(self.records).metric_name

    @property
    def teacher_score(self) -> float | None:
        """The teacher's score."""
        return None if self.teacher is None else finite_number(self.teacher.metrics.get(self.metric))

    @property
    def ranked(self) -> list[MethodResult]:
        """Results by mean score, best first."""
        return sorted(self.results, key=lambda result: -mean(self.scores(result)))

    def scores(self, result: MethodResult) -> list[float]:
        """Return the final score of each run, in [0, 1]."""
        return [final_score(record, self.metric) for record in result.records]

    def best_scores(self, result: MethodResult) -> list[float]:
        """Return the best score during each run, which was selected on the images that it is measured on."""
        return [finite_number(record.metrics.get(self.metric)) or 0.0 for record in result.records]


def final_score(record: Record, metric: str) -> float:
    """Return the score at the end of a run; 0 if it is not a number, as after a divergence."""
    scores = record.run.get("last")
    return (finite_number(scores.get(metric)) if isinstance(scores, dict) else None) or 0.0


def sample_std(values: Sequence[float]) -> float | None:
    """Return the sample standard deviation; None for one value."""
    return stdev(values) if len(values) > 1 else None


def format_mean_std(values: Sequence[float], digits: int = 1) -> str:
    """Format shares as `83.6 % ± 0.9`: mean and sample standard deviation, or only the mean of one value."""
    around = sample_std(values)
    return format_percent(mean(values), digits) + ("" if around is None else f" ± {100 * around:.{digits}f}")


def summarize_comparison(comparison: MethodComparison) -> str:
    """Describe the ranking in a few sentences."""
    ranked = [result for result in comparison.ranked if not result.is_reference]
    references = [result for result in comparison.ranked if result.is_reference]
    parts = []
    if ranked:
        budget = (
            f"{comparison.steps} steps"
            if comparison.budget_s is None
            else f"{format_duration(comparison.budget_s)} of training"
        )
        of = f", the best of {len(ranked)} methods" if len(ranked) > 1 else ""
        teacher = (
            ""
            if comparison.teacher_score is None
            else f"; the teacher has {format_percent(comparison.teacher_score, 1)}"
        )
        parts.append(f"{describe_result(comparison, ranked[0])} in {budget}{of}{teacher}.")
    if len(ranked) > 1:
        parts.append(describe_lead(comparison, *ranked[:2]))
    parts += [f"With labels, {describe_result(comparison, result)}." for result in references]
    return " ".join(parts) or "No run has finished."


def describe_result(comparison: MethodComparison, result: MethodResult) -> str:
    scores = comparison.scores(result)
    seeds = "one seed" if len(scores) == 1 else f"{len(scores)} seeds"
    return f"{result.name} reaches {format_mean_std(scores)} {comparison.metric_name} ({seeds})"


def describe_lead(comparison: MethodComparison, best: MethodResult, follower: MethodResult) -> str:
    """Describe the difference between the best method and the next one."""
    ahead = mean(comparison.scores(best)) - mean(comparison.scores(follower))
    text = f"That is {100 * ahead:.1f} points above {follower.name}"
    around = [sample_std(comparison.scores(result)) for result in (best, follower)]
    if None in around:
        return f"{text}; one seed does not show how much of it is chance."
    within = ahead <= math.hypot(*(one or 0.0 for one in around))
    return f"{text}, which is within the spread over the seeds." if within else f"{text}."


def list_method_caveats(comparison: MethodComparison) -> list[str]:
    """Return the caveats of the comparison, as far as the records show them."""
    caveats = list(comparison.notes)
    for result in comparison.ranked:
        longest = max(result.values("wall_s"), default=0.0)
        if comparison.budget_s is not None and longest > OVERRUN_FACTOR * comparison.budget_s:
            caveats.append(
                f"{result.name} took up to {format_duration(longest)}: a run ends with a whole step and an evaluation, "
                "and these are long compared with the budget."
            )
    most = max((len(result.records) for result in comparison.results), default=0)
    few = [f"{result.name} ({len(result.records)})" for result in comparison.ranked if len(result.records) < most]
    if few:
        caveats.append(f"Fewer seeds have finished for {', '.join(few)} than for the others.")
    if len({size for result in comparison.results for size in result.values("batch_size")}) > 1:
        caveats.append("The methods ran with different batch sizes, which are in the table.")
    if (
        len({str({**record.machine, "versions": None}) for record in comparison.records}) > 1
    ):  # versions are compared below
        caveats.append("The runs were made on different machines: their times and steps must not be compared.")
    if len({str(record.versions) for record in comparison.records}) > 1:
        caveats.append("The runs were made with different versions, which are listed below.")
    return caveats
