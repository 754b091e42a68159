"""Numbers and findings in words; text made safe for Markdown."""

from __future__ import annotations

import re
from typing import Any

from profiles.comparison import Comparison, number, setting
from profiles.latency import Latency
from profiles.record import Record

FOUND = 0.01  #: IoU from which a class counts as found at all
MOST_NAMED = 8  #: names in one sentence
TOLERATED_DISAGREEMENT = 0.05  #: between the two counters of MACs, before the report says so


def share(value: float | None, digits: int = 2) -> str:
    """A share in [0, 1] as a percentage."""
    return "" if value is None else f"{100 * value:.{digits}f} %"


def times(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}×" if value >= 100 else f"{value:.2g}×" if value < 10 else f"{value:.3g}×"


def count(value: float | None) -> str:
    """A number of things, three digits of it: 180 k, 23.5 M."""
    if value is None:
        return ""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= 0.9995 * size:
            return f"{three(value / size)}{unit}"
    return f"{value:.0f}"


def three(value: float | None) -> str:
    """A number to three significant digits, never as a power of ten unless it is tiny."""
    if value is None:
        return ""
    return f"{value:.0f}" if abs(value) >= 999.5 else f"{value:#.3g}".rstrip(".")


def seconds(value: Any) -> str:
    """A time in the unit that people would use."""
    known = number(value)
    if known is None:
        return ""
    if known < 100:
        return f"{three(known)} s"
    minutes = round(known / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 120 else f"{known / 60:.1f} min"


def gains(comparison: Comparison, record: Record) -> str:
    """What a model saves against its teacher: `4× fewer MACs and 2× lower latency`; empty where nothing is known."""
    found = [
        change(comparison.fewer_macs(record), "fewer MACs", "more MACs"),
        change(comparison.fewer_params(record), "fewer parameters", "more parameters"),
        change(comparison.speedup(record), "lower latency", "higher latency"),
    ]
    said = [f"{factor} {what}" for factor, what in found if factor]
    return listed(said) if said else ""


def rivalry(comparison: Comparison, record: Record) -> str:
    """How far the same network that was taught otherwise is from a model; empty where there is none."""
    rival = comparison.rival(record)
    if rival is None:
        return ""
    points = 100 * ((comparison.score(record) or 0.0) - (comparison.score(rival) or 0.0))
    side = "below" if points >= 0 else "above"
    budget = seconds(record.run.get("budget_s"))
    return (
        f"{rival.name}, the same network with the same wall-clock budget ({budget}), is {abs(points):.1f} points "
        f"{side} it ({share(comparison.score(rival), 1)})."
    )


def change(factor: float | None, better: str, worse: str) -> tuple[str, str]:
    """(`3.1×`, `fewer MACs`), or the other way round where the factor is below one; empty where it is not known."""
    if factor is None or factor <= 0:
        return "", ""
    return (times(factor), better) if factor >= 1 else (times(1 / factor), worse)


def listed(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def shortened(names: list[str]) -> list[str]:
    """The first of many names, and how many more there are."""
    return names if len(names) <= MOST_NAMED + 1 else [*names[:MOST_NAMED], f"{len(names) - MOST_NAMED} more"]


def caveats(comparison: Comparison) -> list[str]:
    """What a reader must know before believing the numbers, as far as the records show it."""
    records = comparison.records
    found = []
    for record in records:
        if record.unsupported:
            names = ", ".join(f"{name} ({times_run}×)" for name, times_run in record.unsupported.items())
            found.append(f"{record.name}: operators not counted in its MACs: {names}.")
        if record.macs and record.macs_torch is not None:
            apart = abs(record.macs_torch - record.macs) / record.macs
            if apart > TOLERATED_DISAGREEMENT:
                found.append(f"{record.name}: the two counters of MACs differ by {share(apart, 1)}.")
    found += [words for record in records if (words := hardly_found(comparison, record))]
    unscored = [record.name for record in records if comparison.score(record) is None]
    if unscored and len(unscored) < len(records):
        found.append(f"Not evaluated on {comparison.metric_name}: {listed(shortened(unscored))}.")
    if len({one.machine for record in records for one in record.latencies}) > 1:
        found.append("Latencies come from different machines and must not be compared between them.")
    busy = [record.name for record in records if any(is_busy(one, record) for one in record.latencies)]
    if busy:
        names = listed(shortened(list(dict.fromkeys(busy))))
        found.append(f"The machine was busy with other work when these latencies were measured: {names}.")
    elsewhere = [
        r.name for r in records if r.latencies and all(setting(one) != comparison.setting for one in r.latencies)
    ]
    if elsewhere:
        at = f"the setting that is compared ({comparison.setting})"
        found.append(f"No latency at {at}: {listed(shortened(elsewhere))}.")
    names = {teacher.name for teacher in comparison.teachers}
    if len(names) > 1 and any(comparison.teacher(r) is None for r in records if r.role == "student"):
        found.append("There are several teachers; a student whose run does not name its own is compared with none.")
    return found


def hardly_found(comparison: Comparison, record: Record) -> str:
    """The classes that a model does not find, in a sentence; empty where it finds them all."""
    known = [(name, comparison.class_iou(record, name)) for name in comparison.classes]
    missed = [name for name, iou in known if iou is not None and iou < FOUND]
    if not missed:
        return ""
    return f"{record.name} hardly finds {listed(shortened(missed))} (IoU below {share(FOUND, 0)})."


def is_busy(latency: Latency, record: Record) -> bool:
    """Whether the measurement says so, or more processes wanted to run before it than the machine has cores."""
    load, cores = latency.load_before, number(record.machine.get("cores"))
    return bool(latency.busy) or (load is not None and cores is not None and load > cores)


def cell(text: object) -> str:
    """Text for a line or a table cell of Markdown: nothing in it is markup, a link or a line's end."""
    line = " ".join(str(text).split())
    line = re.sub(r"([\\`*\[\]|~])", r"\\\1", line)
    line = re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", line)
    line = re.sub(r"^([#+>-]|\d+\.)(?=\s|$)", r"\\\1", line)
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def fenced(lines: list[str]) -> str:
    """Lines as a code block that nothing in them can close."""
    text = "\n".join(lines)
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall(r"`+", text))])
    return f"{fence}console\n{text}\n{fence}"
