"""Numbers and findings in words; text made safe for Markdown."""

from __future__ import annotations

import re
from typing import Any

from profiles.comparison import Comparison, number, setting
from profiles.record import Record

FOUND = 0.01  #: IoU from which a class counts as found at all
MOST_NAMED = 8  #: classes in one sentence
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


def summary(comparison: Comparison) -> str:
    """The report in two or three sentences, computed from the records."""
    best = comparison.best()
    if best is None:
        return "No model was evaluated." if comparison.records else "There are no results yet."
    score = share(comparison.score(best), 1)
    parts = [f"{best.name} is the best {best.role}: {score} {comparison.metric_name}"]
    if len(comparison.records) == 1:
        parts = [f"{best.name} reaches {score} {comparison.metric_name}"]
    teacher = comparison.teacher(best)
    if teacher is not None and (kept := comparison.retained(best)) is not None:
        parts.append(f"{share(kept, 1)} of its teacher's {share(comparison.score(teacher), 1)}")
    gains = [
        change(comparison.fewer_macs(best), "fewer MACs", "more MACs"),
        change(comparison.fewer_params(best), "fewer parameters", "more parameters"),
        change(comparison.speedup(best), "lower latency", "higher latency"),
    ]
    said = [f"{factor} {what}" for factor, what in gains if factor]
    if gains[-1][0]:
        said[-1] += f" ({comparison.setting})"
    text = ", ".join(parts) + (f", with {listed(said)}" if said else "") + "."
    rival = comparison.rival(best)
    if rival is None:
        return text
    points = 100 * ((comparison.score(best) or 0.0) - (comparison.score(rival) or 0.0))
    budget = seconds(best.run.get("budget_s"))
    return (
        f"{text} That is {points:.1f} points above {rival.name} ({share(comparison.score(rival), 1)}), "
        f"the same network with the same wall-clock budget ({budget})."
    )


def change(factor: float | None, better: str, worse: str) -> tuple[str, str]:
    """(`3.1×`, `fewer MACs`), or the other way round where the factor is below one; empty where it is not known."""
    if factor is None or factor <= 0:
        return "", ""
    return (times(factor), better) if factor >= 1 else (times(1 / factor), worse)


def listed(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


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
        found.append(f"Not evaluated on {comparison.metric_name}: {', '.join(unscored)}.")
    if len({str(record.machine) for record in records if record.latencies}) > 1:
        found.append("Latencies come from different machines and must not be compared between them.")
    busy = [record.name for record in records if any(is_busy(one, record) for one in record.latencies)]
    if busy:
        found.append(f"The machine was busy with other work when these latencies were measured: {', '.join(busy)}.")
    elsewhere = [
        r.name for r in records if r.latencies and all(setting(one) != comparison.setting for one in r.latencies)
    ]
    if elsewhere:
        found.append(f"No latency at the setting that is compared ({comparison.setting}): {', '.join(elsewhere)}.")
    if len(comparison.teachers) > 1 and any(comparison.teacher(r) is None for r in records if r.role == "student"):
        found.append("There are several teachers; a student whose run does not name its own is compared with none.")
    return found


def hardly_found(comparison: Comparison, record: Record) -> str:
    """The classes that a model does not find, in a sentence; empty where it finds them all."""
    known = [(name, comparison.class_iou(record, name)) for name in comparison.classes]
    missed = [name for name, iou in known if iou is not None and iou < FOUND]
    if not missed:
        return ""
    if len(missed) > MOST_NAMED + 1:
        missed = [*missed[:MOST_NAMED], f"{len(missed) - MOST_NAMED} more"]
    return f"{record.name} hardly finds {listed(missed)} (IoU below {share(FOUND, 0)})."


def is_busy(latency: dict[str, Any], record: Record) -> bool:
    """Whether more processes wanted to run before the measurement than the machine has cores."""
    load, cores = number(latency.get("load_before")), number(record.machine.get("cores"))
    return load is not None and cores is not None and load > cores


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
