"""Charts of records as SVG files, each with a description."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from profiles.formatting import capitalize_name, format_percent, shorten_list
from profiles.records import Record, learning_curve
from profiles.report import charts
from profiles.report.comparison import Comparison, Cost
from profiles.report.rows import MAX_CLASS_MODELS

MAX_BARS = 30  #: bars in one chart of classes
MAX_CLASSES = 200  #: classes in all charts
MAX_POINTS = 200  #: models in one chart
MAX_LINES = 10  #: learning curves in one chart
MAX_DESCRIBED = 12  #: points in the description
#: cost -> axis label and unit
AXES: dict[Cost, tuple[str, str]] = {
    "flops": ("GFLOP per image", "GFLOP"), "latency": ("median latency in ms: {setting}", "ms"),
    "size": ("MB of the file", "MB"), "energy": ("mJ per image: {setting}", "mJ"),
}  # fmt: skip
NAMES: dict[Cost, str] = {"flops": "GFLOP", "latency": "latency", "size": "size", "energy": "energy"}


@dataclass(frozen=True)
class Chart:
    """One chart of the report."""

    file: str  #: file name beside `report.md`
    title: str
    description: str  #: alternative text
    svg: bytes

    @property
    def inline_markup(self) -> Markup:
        return Markup(charts.inline_svg(self.svg, self.description))


def draw_charts(comparison: Comparison, runs: Sequence[Record]) -> list[Chart]:
    """Draw all charts for which the records have data. `runs`: one record per run, for the learning curves."""
    tradeoffs = [chart for cost in AXES if (chart := tradeoff_chart(comparison, cost)) is not None]
    learning = learning_chart(comparison, runs)
    return [*tradeoffs, *([learning] if learning else [])]


def tradeoff_chart(comparison: Comparison, cost: Cost) -> Chart | None:
    """Draw quality against a cost; None if fewer than two models have both."""
    points = scatter_points(comparison, cost)
    if len(points) < 2:
        return None
    total = len(points)
    if total > MAX_POINTS:
        points = sorted(points, key=lambda p: (not p.teacher, not p.optimal, -p.score))[:MAX_POINTS]
    label, unit = AXES[cost]
    metric = comparison.metric_name
    best = shorten_list([point.name for point in sorted(points, key=lambda p: p.cost) if point.optimal])
    described = sorted(points, key=lambda p: -p.score)[:MAX_DESCRIBED] if len(points) > MAX_DESCRIBED else points
    drawn = "" if total == len(points) else f" Drawn are {len(points)} of {total:,} models."
    words = "; ".join(f"{p.name}: {format_percent(p.score, 1)} at {p.cost:.3g} {unit}" for p in described)
    prefix = "" if described is points else f" The best {len(described)} of {len(points)}:"
    name = f"{capitalize_name(metric)} against {NAMES[cost]}"
    svg = charts.draw_scatter(points, x_label=label.format(setting=comparison.setting), y_label=metric, salt=cost)
    return Chart(f"report_{cost}.svg", name, f"{name}.{drawn}{prefix} {words}. Pareto-optimal: {', '.join(best)}.", svg)


def learning_chart(comparison: Comparison, runs: Sequence[Record]) -> Chart | None:
    """Draw the learning curves of the best runs; None if no run has a history."""
    known = [curve for record in runs if (curve := create_learning_curve(record, comparison.metric)) is not None]
    lines = known if len(known) <= MAX_LINES else sorted(known, key=lambda c: -c.scores[-1])[:MAX_LINES]
    if not lines:
        return None
    named = {teacher.name for teacher in comparison.teachers}
    teacher = comparison.teachers[0] if len(named) == 1 else None
    score = None if teacher is None else comparison.score(teacher)
    level = None if teacher is None or score is None else (teacher.name, score)
    svg = charts.draw_curves(lines, level=level, y_label=comparison.metric_name, salt="learning")
    words = "; ".join(f"{c.name} ends at {format_percent(c.scores[-1], 1)} after {c.seconds[-1]:.0f} s" for c in lines)
    prefix = "" if len(lines) == len(known) else f" The best {len(lines)} of {len(known)} runs:"
    description = f"{capitalize_name(comparison.metric_name)} over training time.{prefix} {words}."
    return Chart("report_learning.svg", "Learning curves", description, svg)


def class_charts(comparison: Comparison) -> list[Chart]:
    """Draw the IoU per class of the teacher and the best students, in as many charts as keep names readable."""
    names = comparison.class_names[:MAX_CLASSES]
    scored = [r for r in comparison.records if comparison.class_ious(r)]
    best = sorted(scored, key=lambda r: (r.role != "teacher", -(comparison.score(r) or 0.0)))[:MAX_CLASS_MODELS]
    models = [record for record in scored if any(record is one for one in best)]
    if not models:
        return []
    parts = -(-len(names) // max(4, MAX_BARS // len(models)))
    drawn = []
    for i in range(parts):
        part = names[i * len(names) // parts : (i + 1) * len(names) // parts]
        rows = [
            charts.BarSeries(r.name, [comparison.class_iou(r, name) for name in part], r.role == "teacher")
            for r in models
        ]
        title = "IoU of each class" + (f", {i + 1} of {parts}" if parts > 1 else "")
        file = "report_classes.svg" if i == 0 else f"report_classes_{i + 1}.svg"
        svg = charts.draw_bars(part, rows, x_label="intersection over union", salt=f"classes {i}")
        drawn.append(Chart(file, title, f"{title}. {' '.join(map(describe_extremes, rows, [part] * len(rows)))}", svg))
    return drawn


def describe_extremes(row: charts.BarSeries, names: Sequence[str]) -> str:
    """Describe the lowest and the highest value of a row of bars."""
    known = sorted((value, name) for value, name in zip(row.values, names, strict=True) if value is not None)
    if not known:
        return f"{row.name}: unknown."
    (low, worst), (high, best) = known[0], known[-1]
    return f"{row.name}: from {format_percent(low, 1)} ({worst}) to {format_percent(high, 1)} ({best})."


def scatter_points(comparison: Comparison, cost: Cost) -> list[charts.ScatterPoint]:
    """Return the points of the records that have a score and a cost."""
    front = {id(record) for record in comparison.pareto_front(cost)}
    points = []
    for record in comparison.records:
        price, score = comparison.cost_of(record, cost), comparison.score(record)
        if price is not None and score is not None:
            series = record.method or record.role
            point = charts.ScatterPoint(
                record.label, price, score, series, record.role == "teacher", id(record) in front
            )
            points.append(point)
    return points


def create_learning_curve(record: Record, metric: str) -> charts.LearningCurve | None:
    """Return the learning curve of a run; None without a history, and for an exported file."""
    pairs = [] if record.format else learning_curve(record, metric)
    seed = record.run.get("seed")
    name = f"{record.name}, seed {seed}" if seed else record.name
    return charts.LearningCurve(name, [s for s, _ in pairs], [m for _, m in pairs]) if pairs else None
