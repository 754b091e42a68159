"""Methods under one budget, each over several seeds: who is ahead, by how much, and whether that says anything."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev
from typing import Any

from profiles.formatting import finite_number, format_duration, format_percent
from profiles.records import Record
from profiles.report.comparison import Comparison

OVERRUN_FACTOR = 1.1  #: times the budget from which a run is said to have overrun it


@dataclass(frozen=True)
class MethodResult:
    """One method in a contest: the records of its finished runs, one a seed."""

    key: str  #: on the command line
    name: str  #: shown to people
    records: Sequence[Record]
    learns_from: Sequence[str] = ()  #: what of teacher and data it uses, in words
    settings: Mapping[str, Any] = field(default_factory=dict)  #: those that were given, over the method's own
    is_reference: bool = False  #: it is given what the others are not (labels): a height to measure by, no contestant

    def values(self, key: str) -> list[float]:
        """A number of each run, of those that know it."""
        values = [finite_number(record.run.get(key)) for record in self.records]
        return [value for value in values if value is not None]


@dataclass(frozen=True)
class MethodComparison:
    """Methods side by side, by their scores at the end of their runs."""

    title: str
    results: Sequence[MethodResult]
    teacher: Record | None = None
    budget_s: float | None = None  #: seconds of training of each run
    steps: int | None = None  #: of each run, where the budget is not a time
    skipped: Sequence[tuple[str, str]] = ()  #: name of a method that cannot run here, and why
    failed: Sequence[tuple[str, int, str]] = ()  #: name, seed and last words of a run that broke
    commands: Sequence[str] = ()
    notes: Sequence[str] = ()

    @property
    def records(self) -> list[Record]:
        return [record for entry in self.results for record in entry.records]

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
        """The best mean first."""
        return sorted(self.results, key=lambda entry: -mean(self.scores(entry)))

    def scores(self, entry: MethodResult) -> list[float]:
        """The score of each run's last student, a share in [0, 1]."""
        return [final_score(record, self.metric) for record in entry.records]

    def best_scores(self, entry: MethodResult) -> list[float]:
        """The best score on the way of each run, which was chosen on the images that it is measured on."""
        return [finite_number(record.metrics.get(self.metric)) or 0.0 for record in entry.records]


def final_score(record: Record, metric: str) -> float:
    """A run's score at its end; 0 where it is not a number, which is what such a student is worth."""
    found = record.run.get("last")
    return (finite_number(found.get(metric)) if isinstance(found, dict) else None) or 0.0


def sample_std(values: Sequence[float]) -> float | None:
    """The sample standard deviation; None of one value, which has no spread."""
    return stdev(values) if len(values) > 1 else None


def format_mean_std(values: Sequence[float], digits: int = 1) -> str:
    """Shares as `83.6 % ± 0.9`, mean and sample standard deviation; of one value just that."""
    around = sample_std(values)
    return format_percent(mean(values), digits) + ("" if around is None else f" ± {100 * around:.{digits}f}")


def summarize_comparison(contest: MethodComparison) -> str:
    """The contest in a few sentences, computed from the records."""
    rivals = [entry for entry in contest.ranked if not entry.is_reference]
    yardsticks = [entry for entry in contest.ranked if entry.is_reference]
    parts = []
    if rivals:
        budget = (
            f"{contest.steps} steps" if contest.budget_s is None else f"{format_duration(contest.budget_s)} of training"
        )
        of = f", the best of {len(rivals)} methods" if len(rivals) > 1 else ""
        teacher = (
            "" if contest.teacher_score is None else f"; the teacher has {format_percent(contest.teacher_score, 1)}"
        )
        parts.append(f"{describe_result(contest, rivals[0])} in {budget}{of}{teacher}.")
    if len(rivals) > 1:
        parts.append(describe_lead(contest, *rivals[:2]))
    parts += [f"With labels, {describe_result(contest, entry)}." for entry in yardsticks]
    return " ".join(parts) or "No run has finished."


def describe_result(contest: MethodComparison, entry: MethodResult) -> str:
    scores = contest.scores(entry)
    seeds = "one seed" if len(scores) == 1 else f"{len(scores)} seeds"
    return f"{entry.name} reaches {format_mean_std(scores)} {contest.metric_name} ({seeds})"


def describe_lead(contest: MethodComparison, best: MethodResult, follower: MethodResult) -> str:
    """How far the best is ahead of the next one."""
    ahead = mean(contest.scores(best)) - mean(contest.scores(follower))
    text = f"That is {100 * ahead:.1f} points above {follower.name}"
    around = [sample_std(contest.scores(entry)) for entry in (best, follower)]
    if None in around:
        return f"{text}; from one seed nobody can tell how much of it is chance."
    within = ahead <= math.hypot(*(one or 0.0 for one in around))
    return f"{text}, which is within the spread over the seeds." if within else f"{text}."


def list_method_caveats(contest: MethodComparison) -> list[str]:
    """What a reader must know before believing the table, as far as the records show it."""
    found = list(contest.notes)
    for entry in contest.ranked:
        longest = max(entry.values("wall_s"), default=0.0)
        if contest.budget_s is not None and longest > OVERRUN_FACTOR * contest.budget_s:
            found.append(
                f"{entry.name} took up to {format_duration(longest)}: a run ends with a whole step and an evaluation, "
                "and these are long beside the budget."
            )
    most = max((len(entry.records) for entry in contest.results), default=0)
    few = [f"{entry.name} ({len(entry.records)})" for entry in contest.ranked if len(entry.records) < most]
    if few:
        found.append(f"Of these fewer seeds have finished than of the others: {', '.join(few)}.")
    if len({size for entry in contest.results for size in entry.values("batch_size")}) > 1:
        found.append("The methods ran with batches of different sizes, which the table names.")
    if len({str({**record.machine, "versions": None}) for record in contest.records}) > 1:  # `record.versions` has them
        found.append("The runs were made on different machines: their times and steps must not be compared.")
    if len({str(record.versions) for record in contest.records}) > 1:
        found.append("The runs were made with different versions, which are listed below.")
    return found
