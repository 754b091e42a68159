"""Charts drawn by matplotlib as SVG. On a page they use its colors (light, dark, print)."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import Bbox

from compress.files import sanitize

#: placeholders for the page's colors, and plain colors for standalone files
INK, FAINT, PAPER = ("#010101", "#222222"), ("#020202", "#8a8a8a"), ("#030303", "#ffffff")
LEGEND_WIDTH = 84  #: characters in a line of the legend
PLAIN = ("#0067c0", "#c2410c", "#0b7a53", "#9333a8", "#a16207", "#0e7490")
SERIES = [(f"#04000{'abcdef'[i]}", plain) for i, plain in enumerate(PLAIN)]
DASHES = (0, (4, 3))
MARKERS = "osD^vP"
VARIABLES = {INK: "ink", FAINT: "faint", PAPER: "paper"} | {pair: f"series-{i + 1}" for i, pair in enumerate(SERIES)}
SIZE = (6.4, 4.2)  #: inches
PNG_DPI = 160
MAX_LABELS = 40  #: points that are labeled
BAR, SPACE, MARGINS = 0.16, 0.14, 1.0  #: inches: a bar, between groups of bars, above and below all


@dataclass(frozen=True)
class ScatterPoint:
    """One model in a chart of quality against cost."""

    name: str
    cost: float
    score: float  #: in [0, 1]
    series: str  #: group with the same color and marker, such as its method
    teacher: bool = False
    optimal: bool = False


@dataclass(frozen=True)
class LearningCurve:
    """Quality over time of one run."""

    name: str
    seconds: Sequence[float]
    scores: Sequence[float]


@dataclass(frozen=True)
class BarSeries:
    """Shares of one model in a bar chart, one per group; None if unknown."""

    name: str
    values: Sequence[float | None]
    teacher: bool = False


def draw_scatter(points: Sequence[ScatterPoint], *, x_label: str, y_label: str, salt: str) -> bytes:
    """Draw quality against cost as SVG: teacher as a star, Pareto-optimal models connected, points labeled."""
    with chart_style(salt):
        figure, axes = create_axes(x_label, y_label)
        front = sorted((p for p in points if p.optimal), key=lambda p: (p.cost, p.score))
        line = axes.plot([p.cost for p in front], [p.score for p in front], color=FAINT[0], linewidth=1.4, zorder=1)[0]
        line.set(linestyle=DASHES, label="Pareto-optimal")
        for i, series in enumerate(dict.fromkeys(p.series for p in points if not p.teacher)):
            chosen = [p for p in points if p.series == series and not p.teacher]
            draw_points(axes, chosen, SERIES[i % len(SERIES)][0], MARKERS[i % len(MARKERS)], 58, clean_label(series))
        draw_points(axes, [p for p in points if p.teacher], INK[0], "*", 150, "teacher")
        scale_axes(axes, points)
        add_legend(figure, axes)
        place_labels(figure, axes, points)
        return figure_to_svg(figure)


def draw_curves(lines: Sequence[LearningCurve], *, level: tuple[str, float] | None, y_label: str, salt: str) -> bytes:
    """Draw learning curves as SVG, one per run. `level`: name and score of a horizontal line, the teacher."""
    with chart_style(salt):
        figure, axes = create_axes("training time (seconds)", y_label)
        for i, curve in enumerate(lines):
            line = axes.plot(list(curve.seconds), list(curve.scores), linewidth=1.8, label=clean_label(curve.name))[0]
            line.set(color=SERIES[i % len(SERIES)][0], marker=MARKERS[i % len(MARKERS)], markersize=4.5)
        if level is not None:
            axes.axhline(level[1], color=INK[0], linewidth=1.2, linestyle=DASHES, label=clean_label(level[0]), zorder=1)
        axes.set_xlim(left=0)
        axes.margins(y=0.12)
        add_legend(figure, axes)
        return figure_to_svg(figure)


def draw_bars(groups: Sequence[str], rows: Sequence[BarSeries], *, x_label: str, salt: str) -> bytes:
    """Draw shares side by side as SVG: for each group, from the top, one bar per series."""
    with chart_style(salt):
        figure, axes = create_axes(x_label, "", height=MARGINS + len(groups) * (len(rows) * BAR + SPACE))
        students = 0
        thick = BAR / (len(rows) * BAR + SPACE)
        for i, row in enumerate(rows):
            known = [(j, value) for j, value in enumerate(row.values) if value is not None]
            positions = [j + (i - (len(rows) - 1) / 2) * thick for j, _ in known]
            color = FAINT[0] if row.teacher else SERIES[students % len(SERIES)][0]
            students += not row.teacher
            drawn = axes.barh(positions, [value for _, value in known], height=0.9 * thick, color=color)
            drawn.set_label(clean_label(row.name))
        axes.set_yticks(range(len(groups)), [clean_label(name, 24) for name in groups], parse_math=False)
        axes.tick_params(axis="y", length=0)
        axes.set(xlim=(0, 1), ylim=(len(groups) - 0.5, -0.5))
        axes.grid(False, axis="y")
        axes.xaxis.set_major_formatter(FuncFormatter(format_percent_tick))
        add_legend(figure, axes)
        return figure_to_svg(figure)


def format_percent_tick(share: float, _: int) -> str:
    return f"{100 * share:.4g} %"


@contextlib.contextmanager
def chart_style(salt: str) -> Iterator[None]:
    """Set up matplotlib for one chart: text stays text, ids are reproducible, missing glyphs do not warn."""
    look = matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt, "font.size": 11})
    with look, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        yield


def draw_points(axes: Axes, points: Sequence[ScatterPoint], color: str, marker: str, size: float, label: str) -> None:
    if points:
        drawn = axes.scatter([p.cost for p in points], [p.score for p in points], marker=marker, s=size, color=color)
        drawn.set(linewidth=0, zorder=3, label=label)


def create_axes(
    x_label: str, y_label: str, height: float = SIZE[1], *, width: float = SIZE[0], plain: bool = False
) -> tuple[Figure, Axes]:
    """Create an empty chart. `plain`: fixed colors on white instead of placeholders for the page's colors."""
    ink, faint = INK[plain], FAINT[plain]
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.patch.set(facecolor=PAPER[1], alpha=float(plain))
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(faint)
    axes.tick_params(colors=ink, which="both", length=3, labelsize=10)
    axes.grid(True, color=faint, alpha=0.22, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel(clean_label(x_label, 90), color=ink, parse_math=False)
    axes.set_ylabel(clean_label(y_label, 90), color=ink, parse_math=False)
    axes.yaxis.set_major_formatter(FuncFormatter(format_percent_tick))
    return figure, axes


def scale_axes(axes: Axes, points: Sequence[ScatterPoint]) -> None:
    """Use a logarithmic cost axis if costs differ much; leave room for labels at the sides."""
    costs = [p.cost for p in points]
    if min(costs) > 0 and max(costs) > 6 * min(costs):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if max(costs) < 200 * min(costs) else (1.0,)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlim(min(costs) / 1.5, max(costs) * 1.5)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6))
        room = 0.2 * (max(costs) - min(costs)) or 0.5 * max(costs) or 1.0
        axes.set_xlim(max(0.0, min(costs) - room), max(costs) + room)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda cost, _: f"{cost:.4g}"))
    scores = [p.score for p in points]
    room = max(0.18 * (max(scores) - min(scores)), 0.02)
    axes.set_ylim(min(scores) - room, max(scores) + room)


def add_legend(figure: Figure, axes: Axes) -> None:
    """Add the legend in rows above the chart."""
    handles, labels = axes.get_legend_handles_labels()
    longest = max(map(len, labels), default=0)
    columns = max(1, min(4, len(labels), LEGEND_WIDTH // (longest + 6)))
    box = figure.legend(handles, labels, loc="outside upper left", ncols=columns, frameon=False, fontsize=9.5)
    for text in box.get_texts():
        text.set(color=INK[0], parse_math=False)


def place_labels(figure: Figure, axes: Axes, points: Sequence[ScatterPoint]) -> None:
    """Label each point where the label covers no other label or point; the least important ones may get none."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # labels must not move the axes
    at = [axes.transData.transform((p.cost, p.score)) for p in points]
    taken = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in at]
    room = Bbox.from_extents(axes.bbox.x0, axes.bbox.y0, figure.bbox.x1, axes.bbox.y1)  # not over the tick labels
    order = sorted(range(len(points)), key=lambda i: (not points[i].teacher, not points[i].optimal, -points[i].score))
    for i in order[:MAX_LABELS]:
        text = axes.annotate(
            clean_label(points[i].name), (points[i].cost, points[i].score), (0, 0), textcoords="offset points"
        )
        text.set(color=INK[0], fontsize=10, parse_math=False, zorder=4, annotation_clip=False)
        text.set_fontweight("bold" if points[i].optimal or points[i].teacher else "normal")
        text.set_bbox({"facecolor": PAPER[0], "edgecolor": "none", "alpha": 0.75, "pad": 0.6})
        others = taken[:i] + taken[i + 1 :]
        for dx, dy, across, up in label_offsets():
            text.set(x=dx, y=dy, ha=across, va=up)
            box = text.get_window_extent()
            if room.contains(*box.min) and room.contains(*box.max) and not box.count_overlaps(others):
                taken.append(box)
                break
        else:
            text.remove()


def label_offsets() -> Iterator[tuple[float, float, str, str]]:
    """Yield offsets in points and alignments of a label, the best first, then farther away."""
    for far in (8, 16, 26):
        yield from [
            (far, 0, "left", "center"), (-far, 0, "right", "center"), (0, far, "center", "bottom"),
            (0, -far, "center", "top"), (far, far, "left", "bottom"), (far, -far, "left", "top"),
            (-far, far, "right", "bottom"), (-far, -far, "right", "top"),
        ]  # fmt: skip


def clean_label(text: str, longest: int = 48) -> str:
    """Return `text` on one line, without characters that SVG cannot hold, shortened."""
    line = sanitize(text, " ")
    line = line.encode("utf-8", "replace").decode()
    return line if len(line) <= longest else line[: longest - 1] + "…"


def figure_to_svg(figure: Figure) -> bytes:
    """Render a figure as SVG with placeholder colors, without date and addresses."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue().decode()
    for pattern, instead in TIDY:
        text = re.sub(pattern, instead, text, flags=re.DOTALL)
    return text.strip().encode()


def figure_to_png(figure: Figure) -> bytes:
    """Render a figure in plain colors as PNG, reproducibly."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=PNG_DPI, metadata={"Software": None})
    return file.getvalue()


#: parts of matplotlib's output that a page must not contain: addresses, dates, repeated ids, global styles, fonts
TIDY = [
    (r"<\?xml.*?\?>|<!DOCTYPE.*?>|<metadata>.*?</metadata>|<!--.*?-->|<defs>\s*<style.*?</style>\s*</defs>", ""),
    (r'<g id="[^"]*"', "<g"),
    (r"font-family: [^;\"]+", "font-family: system-ui, sans-serif"),
    (r"(font: (?:[a-z]+ )?(?:\d+ )?[\d.]+px) [^;\"]+", r"\1 system-ui, sans-serif"),
    (r"<svg\b", '<svg style="stroke-linejoin: round; stroke-linecap: butt"'),
    (r"\s*\n\s*", "\n"),
]


def standalone_svg(svg: bytes) -> bytes:
    """Return a chart as a file: on white, in plain colors."""
    text = svg.decode()
    for stand_in, plain in VARIABLES:
        text = text.replace(stand_in, plain)
    return text.replace('<svg style="', '<svg style="background: #fff; ', 1).encode()


def inline_svg(svg: bytes, description: str) -> str:
    """Return a chart as part of a page: in the page's colors, with a description for screen readers."""
    text = svg.decode()
    for (stand_in, _), name in VARIABLES.items():
        text = text.replace(stand_in, f"var(--{name})")
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    head, _, body = text.partition(">")
    head = re.sub(r' (?:width|height)="[^"]*"', "", head)
    return head.replace("<svg", f'<svg role="img" aria-label="{escape_attribute(description)}"', 1) + ">" + body


def escape_attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")
