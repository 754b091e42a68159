"""Charts of records as files of their own, for Markdown and for the page of a contest; what each shows in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from profiles import charts
from profiles.comparison import Comparison, Cost, heading
from profiles.record import Record
from profiles.tables import form
from profiles.tradeoff import MOST_MODELS, course
from profiles.wording import share, shortened

MOST_BARS = 30  #: in one chart of classes
MOST_LINES = 10  #: of learning
MOST_TOLD = 12  #: points that the words name
#: cost -> axis, and unit
AXES: dict[Cost, tuple[str, str]] = {
    "flops": ("GFLOP per image", "GFLOP"), "latency": ("median latency in ms: {setting}", "ms"),
    "size": ("MB of the file", "MB"), "energy": ("mJ per image: {setting}", "mJ"),
}  # fmt: skip
NAMES: dict[Cost, str] = {"flops": "GFLOP", "latency": "latency", "size": "size", "energy": "energy"}


@dataclass(frozen=True)
class Chart:
    """One chart of the report."""

    file: str  #: its name beside `report.md`
    title: str
    description: str  #: the same in words
    svg: bytes

    @property
    def inline(self) -> Markup:
        return Markup(charts.inline(self.svg, self.description))


def draw(comparison: Comparison, runs: Sequence[Record]) -> list[Chart]:
    """The charts that the records have something for. `runs`: every run by itself, for its course."""
    drawn = [chart for cost in AXES if (chart := trade_off(comparison, cost)) is not None]
    learning = courses(comparison, runs)
    return [*drawn, *([learning] if learning else [])]


def trade_off(comparison: Comparison, cost: Cost) -> Chart | None:
    """Quality against a cost; None where fewer than two models have both."""
    points = points_of(comparison, cost)
    if len(points) < 2:
        return None
    label, unit = AXES[cost]
    metric = comparison.metric_name
    best = shortened([point.name for point in sorted(points, key=lambda p: p.cost) if point.optimal])
    told = sorted(points, key=lambda p: -p.score)[:MOST_TOLD] if len(points) > MOST_TOLD else points
    words = "; ".join(f"{p.name}: {share(p.score, 1)} at {p.cost:.3g} {unit}" for p in told)
    of = "" if told is points else f" The best {len(told)} of {len(points)}:"
    name = f"{heading(metric)} against {NAMES[cost]}"
    svg = charts.scatter(points, x_label=label.format(setting=comparison.setting), y_label=metric, salt=cost)
    return Chart(f"report_{cost}.svg", name, f"{name}.{of} {words}. Pareto-optimal: {', '.join(best)}.", svg)


def courses(comparison: Comparison, runs: Sequence[Record]) -> Chart | None:
    """Quality over training time of the best runs; None where no run was scored on its way."""
    known = [curve for record in runs if (curve := curve_of(record, comparison.metric)) is not None]
    lines = known if len(known) <= MOST_LINES else sorted(known, key=lambda c: -c.scores[-1])[:MOST_LINES]
    if not lines:
        return None
    named = {teacher.name for teacher in comparison.teachers}
    teacher = comparison.teachers[0] if len(named) == 1 else None
    score = None if teacher is None else comparison.score(teacher)
    level = None if teacher is None or score is None else (teacher.name, score)
    svg = charts.curves(lines, level=level, y_label=comparison.metric_name, salt="learning")
    words = "; ".join(f"{c.name} ends at {share(c.scores[-1], 1)} after {c.seconds[-1]:.0f} s" for c in lines)
    of = "" if len(lines) == len(known) else f" The best {len(lines)} of {len(known)} runs:"
    description = f"{heading(comparison.metric_name)} over training time.{of} {words}."
    return Chart("report_learning.svg", "Learning curves", description, svg)


def draw_classes(comparison: Comparison) -> list[Chart]:
    """IoU of each class, teacher and best students side by side, in as many charts as keep the names readable."""
    names = comparison.classes
    scored = [r for r in comparison.records if any(comparison.class_iou(r, name) is not None for name in names)]
    best = sorted(scored, key=lambda r: (r.role != "teacher", -(comparison.score(r) or 0.0)))[:MOST_MODELS]
    models = [record for record in scored if any(record is one for one in best)]
    if not models:
        return []
    parts = -(-len(names) // max(4, MOST_BARS // len(models)))
    drawn = []
    for i in range(parts):
        part = names[i * len(names) // parts : (i + 1) * len(names) // parts]
        rows = [
            charts.Bars(r.name, [comparison.class_iou(r, name) for name in part], r.role == "teacher") for r in models
        ]
        title = "IoU of each class" + (f", {i + 1} of {parts}" if parts > 1 else "")
        file = "report_classes.svg" if i == 0 else f"report_classes_{i + 1}.svg"
        svg = charts.bars(part, rows, x_label="intersection over union", salt=f"classes {i}")
        drawn.append(Chart(file, title, f"{title}. {' '.join(map(extremes, rows, [part] * len(rows)))}", svg))
    return drawn


def extremes(row: charts.Bars, names: Sequence[str]) -> str:
    """A row of bars in words: its lowest and its highest."""
    known = sorted((value, name) for value, name in zip(row.values, names, strict=True) if value is not None)
    if not known:
        return f"{row.name}: not known."
    (low, worst), (high, best) = known[0], known[-1]
    return f"{row.name}: from {share(low, 1)} ({worst}) to {share(high, 1)} ({best})."


def points_of(comparison: Comparison, cost: Cost) -> list[charts.Point]:
    front = {id(record) for record in comparison.front(cost)}
    points = []
    for record in comparison.records:
        price, score = comparison.cost(record, cost), comparison.score(record)
        if price is not None and score is not None:
            series = record.method or record.role
            point = charts.Point(form(record), price, score, series, record.role == "teacher", id(record) in front)
            points.append(point)
    return points


def curve_of(record: Record, metric: str) -> charts.Curve | None:
    """Quality over time from a run's history, or None where it has none, or is of an exported file."""
    pairs = [] if record.format else course(record, metric)
    seed = record.run.get("seed")
    name = f"{record.name}, seed {seed}" if seed else record.name
    return charts.Curve(name, [s for s, _ in pairs], [m for _, m in pairs]) if pairs else None
