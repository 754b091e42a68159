"""Learning curves of several methods with several seeds: one line per method, labeled at its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from profiles.formatting import format_percent
from profiles.report.charts import (
    DASHES,
    FAINT,
    INK,
    MARKERS,
    SERIES,
    SIZE,
    LearningCurve,
    chart_style,
    clean_label,
    create_axes,
    figure_to_png,
    figure_to_svg,
)

LINE_STYLES = ["-", (0, (5, 2)), (0, (1, 1.2))]  #: for the first six lines, the next six, and the rest
LABEL_GAP = 13.0  #: points between two labels
WIDTH, MARGIN = 8.6, 0.8  #: inches: width with labels, margin above and below the labels
MAX_OPAQUE_BANDS = 6  #: number of lines above which their bands are fainter
MAX_LABEL_HEIGHT = 0.98  #: highest label; at the very top it would be cut in half
TIME_UNITS = (
    (3 * 3600.0, 3600.0, "hours"),
    (600.0, 60.0, "minutes"),
    (0.0, 1.0, "seconds"),
)  #: minimum seconds, length in seconds, name


@dataclass(frozen=True)
class MethodCurves:
    """Learning curves of one method, one per seed."""

    name: str
    runs: Sequence[LearningCurve]


@dataclass(frozen=True)
class CurveBand:
    """The curves of a method as one: mean time, mean score, and the range of scores."""

    seconds: np.ndarray
    mean: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray


def average_curves(runs: Sequence[LearningCurve]) -> CurveBand:
    """Average runs at equal shares of their time, with linear interpolation.

    The result begins when every run has been evaluated, and ends at the mean of their ends.
    """
    shares = [np.asarray(run.seconds, dtype=float) / run.seconds[-1] for run in runs]
    begin = max(float(one[0]) for one in shares)
    grid = np.unique(np.concatenate(shares))
    grid = grid[grid >= begin]
    scores = np.stack([np.interp(grid, one, run.scores) for one, run in zip(shares, runs, strict=True)])
    length = mean(run.seconds[-1] for run in runs)
    return CurveBand(grid * length, scores.mean(0), scores.min(0), scores.max(0))


def draw_method_curves(
    lines: Sequence[MethodCurves],
    *,
    level: tuple[str, float] | None,
    y_label: str,
    salt: str,
    form: Literal["svg", "png"] = "svg",
) -> bytes:
    """Draw quality over time: the mean over the seeds, and a band from minimum to maximum.

    `level`: name and score of a horizontal line, the teacher. SVG has placeholder colors for `charts.inline_svg` and
    `charts.standalone_svg`; PNG has plain colors.
    """
    plain = form == "png"
    bands = [average_curves(line.runs) for line in lines]
    longest = max(float(band.seconds[-1]) for band in bands)
    scale, unit = time_unit(longest)
    height = max(SIZE[1], MARGIN + (len(lines) + (level is not None)) * LABEL_GAP / 72)
    with chart_style(salt):
        figure, axes = create_axes(f"training time ({unit})", y_label, height, width=WIDTH, plain=plain)
        names = []
        for i, (line, band) in enumerate(zip(lines, bands, strict=True)):
            color, stroke = SERIES[i % len(SERIES)][plain], LINE_STYLES[i // len(SERIES) % len(LINE_STYLES)]
            drawn = axes.plot(band.seconds / scale, band.mean, color=color, linewidth=1.8)[0]
            drawn.set(
                linestyle=stroke, marker=MARKERS[(i + i // len(SERIES)) % len(MARKERS)], markevery=[-1], markersize=5
            )
            if len(line.runs) > 1:
                spanned = axes.fill_between(band.seconds / scale, band.lowest, band.highest, color=color, linewidth=0)
                spanned.set_alpha(0.13 if len(lines) <= MAX_OPAQUE_BANDS else 0.06)
            end = (float(band.seconds[-1]) / scale, float(band.mean[-1]))
            names.append(add_line_label(axes, line.name, end, color))
        axes.set_xlim(0, longest / scale * 1.01)
        if level is not None:
            axes.axhline(level[1], color=INK[plain], linewidth=1.2, linestyle=DASHES, zorder=1)
            names.append(add_line_label(axes, level[0], (axes.get_xlim()[1], level[1]), INK[plain]))
        axes.margins(y=0.06)
        separate_labels(figure, axes, names, FAINT[plain])
        return figure_to_png(figure) if plain else figure_to_svg(figure)


def time_unit(longest: float) -> tuple[float, str]:
    """Return the unit of an axis that reaches `longest` seconds: its length in seconds, and its name."""
    return next((size, name) for least, size, name in TIME_UNITS if longest >= least)


def add_line_label(axes: Axes, name: str, end: tuple[float, float], color: str) -> Annotation:
    """Label a line with its name and last score, to the right of the chart."""
    text = axes.annotate(
        f"{clean_label(name, 32)}  {format_percent(end[1], 1)}", end, (1.03, 0.5), textcoords="axes fraction",
        arrowprops={"arrowstyle": "-", "linewidth": 0.8, "shrinkA": 1, "shrinkB": 3, "relpos": (0, 0.5)},
    )  # fmt: skip
    text.set(color=color, fontsize=9.5, va="center", parse_math=False, annotation_clip=False)
    return text


def separate_labels(figure: Figure, axes: Axes, names: Sequence[Annotation], faint: str) -> None:
    """Move labels vertically until none overlap, and connect each to the end of its line."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # moving labels must not move the axes
    order = sorted(names, key=lambda name: name.xy[1])
    wanted = [float(axes.transAxes.inverted().transform(axes.transData.transform(name.xy))[1]) for name in order]
    gap = LABEL_GAP / 72 * figure.dpi / axes.bbox.height
    for name, height in zip(order, separate_positions(wanted, gap), strict=True):
        name.xyann = (1.03, height)
        if name.arrow_patch is not None:
            name.arrow_patch.set_color(faint)


def separate_positions(wanted: Sequence[float], gap: float) -> list[float]:
    """Return positions in [0, MAX_LABEL_HEIGHT] at least `gap` apart, as close as possible to the wanted ones.

    `wanted` is ascending. Minimizes the sum of squared distances by merging neighbors that are too close.
    """
    joined: list[list[float]] = []
    for i, height in enumerate(wanted):
        joined.append([height - i * gap])
        while len(joined) > 1 and mean(joined[-2]) > mean(joined[-1]):
            last = joined.pop()
            joined[-1] += last
    free = max(0.0, MAX_LABEL_HEIGHT - (len(wanted) - 1) * gap)
    levels = [min(max(mean(block), 0.0), free) for block in joined for _ in block]
    return [level + i * gap for i, level in enumerate(levels)]
