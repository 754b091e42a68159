"""Which model to deploy: the cheapest of the best ones within given limits; and caveats of the numbers."""

from __future__ import annotations

from dataclasses import dataclass

from profiles.formatting import (
    finite_number,
    format_count,
    format_duration,
    format_factor,
    format_percent,
    format_significant,
    join_words,
    positive_number,
    shorten_list,
)
from profiles.latency.benchmark import Latency
from profiles.records import Record
from profiles.report.comparison import Comparison, Cost, setting_of

#: difference of the score below which two models count as equally good; then the cheaper one is better
SCORE_TOLERANCE = 0.01
#: name and unit of each cost
COST_NAMES: dict[Cost, tuple[str, str]] = {
    "latency": ("latency", "ms"), "flops": ("arithmetic", "GFLOP"), "size": ("size", "MB"), "energy": ("energy", "mJ"),
}  # fmt: skip
MIN_CLASS_IOU = 0.01  #: IoU from which a class counts as detected
COUNTER_TOLERANCE = 0.05  #: relative difference of the two MAC counters above which the report warns


@dataclass(frozen=True)
class Limits:
    """Maximum costs of the recommended model; None: no limit.

    Example:
        >>> str(Limits(latency_ms=2, size_mb=1.5))
        '2.00 ms and 1.50 MB'
    """

    latency_ms: float | None = None  #: median per batch, at the setting that is compared
    gflop: float | None = None  #: arithmetic for one image
    size_mb: float | None = None  #: file size
    energy_mj: float | None = None  #: energy per image

    @property
    def by_cost(self) -> dict[Cost, float]:
        """The limits that are set."""
        limits: dict[Cost, float | None] = {
            "latency": self.latency_ms, "flops": self.gflop, "size": self.size_mb, "energy": self.energy_mj,
        }  # fmt: skip
        return {name: limit for name, limit in limits.items() if limit is not None}

    def __str__(self) -> str:
        return join_words(
            [f"{format_significant(limit)} {COST_NAMES[cost][1]}" for cost, limit in self.by_cost.items()]
        )


@dataclass(frozen=True)
class Recommendation:
    """The recommended model."""

    record: Record | None  #: None if no model is within the limits
    reason: str


def exported_models(comparison: Comparison) -> set[int]:
    """Return the `id` of the networks that were exported: their files are recommended instead."""
    files = {(record.name, record.role, record.method) for record in comparison.records if record.format}
    networks = [record for record in comparison.records if not record.format]
    return {id(record) for record in networks if (record.name, record.role, record.method) in files}


def violated_limit(comparison: Comparison, record: Record, limits: Limits) -> str:
    """Return the first limit that a record violates, as text; empty if none. An unknown cost violates its limit."""
    for cost, limit in limits.by_cost.items():
        value = comparison.cost_of(record, cost)
        name, unit = COST_NAMES[cost]
        if value is None:
            return f"{name} not measured"
        if value > limit:
            return f"{name} {format_significant(value)} {unit}"
    return ""


def recommend(comparison: Comparison, limits: Limits | None = None) -> Recommendation:
    """Return the cheapest of the models that are within the limits and within one point of the best of them.

    Cheapest: by latency if it is known for all, else by arithmetic, else by size. For an exported model its files are
    recommended, not the network. A teacher is recommended only if limits are given.
    """
    limits = limits or Limits()
    replaced = exported_models(comparison)
    scored = [
        record for record in comparison.records
        if id(record) not in replaced and comparison.score(record) is not None
    ]  # fmt: skip
    students = [record for record in scored if record.role != "teacher"]
    eligible = scored if limits.by_cost or not students else students
    within = [record for record in eligible if not violated_limit(comparison, record, limits)]
    if not within:
        return Recommendation(None, no_model_message(comparison, eligible, limits))
    best = max(comparison.score(record) or 0.0 for record in within)
    good = [record for record in within if (comparison.score(record) or 0.0) >= best - SCORE_TOLERANCE]
    compared: list[Cost] = ["latency", "flops", "size"]
    shared: list[Cost] = [cost for cost in compared if all(comparison.cost_of(one, cost) is not None for one in good)]

    def sort_key(record: Record) -> tuple[float, ...]:
        return (*(comparison.cost_of(record, cost) or 0.0 for cost in shared), -(comparison.score(record) or 0.0))

    chosen = min(good, key=sort_key)
    return Recommendation(chosen, explain_choice(comparison, chosen, within, eligible, limits))


def no_model_message(comparison: Comparison, eligible: list[Record], limits: Limits) -> str:
    """Explain why no model is recommended."""
    if not eligible:
        return "No model was evaluated." if comparison.records else "There are no results yet."
    nearest = max(eligible, key=lambda record: comparison.score(record) or 0.0)
    return (
        f"No model is within the budget ({limits}): {nearest.label}, the best of {len(eligible)}, exceeds it with its "
        f"{violated_limit(comparison, nearest, limits)}."
    )


def explain_choice(
    comparison: Comparison, chosen: Record, within: list[Record], eligible: list[Record], limits: Limits
) -> str:
    """Describe the recommended model: score, savings, costs and rank."""
    is_only = len(comparison.records) == 1
    text = f"{chosen.label} reaches" if is_only else f"Deploy {chosen.label}:"
    text += f" {format_percent(comparison.score(chosen), 1)} {comparison.metric_name}"
    teacher, retained = comparison.teacher_of(chosen), comparison.retained_accuracy(chosen)
    if teacher is not None and retained is not None:
        text += f", {format_percent(retained, 1)} of its teacher's {format_percent(comparison.score(teacher), 1)}"
    text += f", with {savings}." if (savings := describe_savings(comparison, chosen)) else "."
    order: list[Cost] = list(COST_NAMES)
    costs = [format_cost(comparison, chosen, cost) for cost in order if comparison.cost_of(chosen, cost) is not None]
    text += f" It costs {join_words(costs)}." if costs else ""
    rank = "" if len(eligible) < 2 else explain_rank(comparison, chosen, within, eligible, limits)
    return " ".join(part for part in (text, rank, describe_best_other_method(comparison, chosen)) if part)


def explain_rank(
    comparison: Comparison, chosen: Record, within: list[Record], eligible: list[Record], limits: Limits
) -> str:
    """Describe the rank of the chosen model among those within the limits, and the best one that exceeds them."""
    score = comparison.score(chosen) or 0.0
    top = max(within, key=lambda record: comparison.score(record) or 0.0)
    count = f"{len(within)} within {limits}" if limits.by_cost else f"{len(within)} models"
    if (comparison.score(top) or 0.0) <= score:
        text = f"It is the best of {count}." if len(within) > 1 else f"It is the only one within {limits}."
    else:
        points = 100 * ((comparison.score(top) or 0.0) - score)
        text = (
            f"The best of {count} is {top.label} ({format_percent(comparison.score(top), 1)}); this one is "
            f"{points:.1f} points behind it, at most one, and costs less."
        )
    over = [record for record in eligible if violated_limit(comparison, record, limits)]
    if not over:
        return text
    best_over = max(over, key=lambda record: comparison.score(record) or 0.0)
    return (
        f"{text} {len(over)} of {len(eligible)} are over the budget, the best of them {best_over.label}: "
        f"{format_percent(comparison.score(best_over), 1)}, {violated_limit(comparison, best_over, limits)}."
    )


def format_cost(comparison: Comparison, record: Record, cost: Cost) -> str:
    """Format a cost with its unit: `0.4 ms per batch`, `0.05 GFLOP`, `720 kB`."""
    value = comparison.cost_of(record, cost)
    if cost == "size":
        return f"{format_count(positive_number(record.size_bytes))}B"
    if cost == "latency" and comparison.setting is not None:
        return f"{format_significant(value)} ms ({comparison.setting_label(comparison.setting)})"
    return f"{format_significant(value)} {COST_NAMES[cost][1]}" + (" per image" if cost == "energy" else "")


def describe_savings(comparison: Comparison, record: Record) -> str:
    """Describe what a model saves against its teacher: `4× fewer MACs and 2× lower latency`; empty if unknown."""
    changes = [
        format_change(comparison.macs_reduction(record), "fewer MACs", "more MACs"),
        format_change(comparison.params_reduction(record), "fewer parameters", "more parameters"),
        format_change(comparison.speedup(record), "lower latency", "higher latency"),
    ]
    texts = [text for text in changes if text]
    return join_words(texts) if texts else ""


def format_change(factor: float | None, better: str, worse: str) -> str:
    """Format `3.1× fewer MACs`, or the inverse factor with `worse` if it is below one; empty if unknown."""
    if factor is None or factor <= 0:
        return ""
    return f"{format_factor(factor)} {better}" if factor >= 1 else f"{format_factor(1 / factor)} {worse}"


def describe_best_other_method(comparison: Comparison, record: Record) -> str:
    """Compare a model with the same network trained by the best other method; empty if there is none."""
    other = comparison.best_other_method(record)
    if other is None:
        return ""
    points = 100 * ((comparison.score(record) or 0.0) - (comparison.score(other) or 0.0))
    side = "below" if points >= 0 else "above"
    budget = format_duration(record.run.get("budget_s"))
    return (
        f"{other.name}, the same network with the same wall-clock budget ({budget}), is {abs(points):.1f} points "
        f"{side} it ({format_percent(comparison.score(other), 1)})."
    )


def list_caveats(comparison: Comparison) -> list[str]:
    """Return the caveats of the numbers, as far as the records show them."""
    records = comparison.records
    caveats = []
    for record in records:
        if record.unsupported:
            names = ", ".join(f"{name} ({calls}×)" for name, calls in record.unsupported.items())
            caveats.append(f"{record.name}: operators not counted in its MACs: {names}.")
        if record.macs and record.macs_torch is not None:
            difference = abs(record.macs_torch - record.macs) / record.macs
            if difference > COUNTER_TOLERANCE:
                caveats.append(f"{record.name}: the two counters of MACs differ by {format_percent(difference, 1)}.")
    caveats += [text for record in records if (text := undetected_classes_caveat(comparison, record))]
    unscored = [record.name for record in records if comparison.score(record) is None]
    if unscored and len(unscored) < len(records):
        caveats.append(f"Not evaluated on {comparison.metric_name}: {join_words(shorten_list(unscored))}.")
    if len({one.machine for record in records for one in record.latencies}) > 1:
        caveats.append("Latencies come from different machines and must not be compared between them.")
    loaded = [record.name for record in records if any(had_other_load(one, record) for one in record.latencies)]
    if loaded:
        names = join_words(shorten_list(list(dict.fromkeys(loaded))))
        caveats.append(f"The machine was busy with other work when these latencies were measured: {names}.")
    not_compared = [
        r.name for r in records if r.latencies and all(setting_of(one) != comparison.setting for one in r.latencies)
    ]
    if not_compared:
        names = join_words(shorten_list(not_compared))
        caveats.append(f"No latency at the setting that is compared ({comparison.setting}): {names}.")
    teachers = {teacher.name for teacher in comparison.teachers}
    if len(teachers) > 1 and any(comparison.teacher_of(r) is None for r in records if r.role == "student"):
        caveats.append("There are several teachers; a student whose run does not name its own is compared with none.")
    return caveats


def undetected_classes_caveat(comparison: Comparison, record: Record) -> str:
    """Name the classes that a model does not detect; empty if it detects all."""
    missed = [name for name, iou in comparison.class_ious(record).items() if iou < MIN_CLASS_IOU]
    if not missed:
        return ""
    names = join_words(shorten_list(missed))
    return f"{record.name} hardly detects {names} (IoU below {format_percent(MIN_CLASS_IOU, 0)})."


def had_other_load(latency: Latency, record: Record) -> bool:
    """Whether the machine had other load: by the measurement, or by a load average above its number of cores."""
    load, cores = latency.load_before, finite_number(record.machine.get("cores"))
    return bool(latency.load_warning) or (load is not None and cores is not None and load > cores)
