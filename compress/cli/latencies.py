"""What `compress bench` found, for people: times, beginnings, ratios, verdicts; no column without anything in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from compress.cli.output import print_status
from compress.cli.tables import format_table

if TYPE_CHECKING:
    from profiles.latency.benchmark import Latency

Row = tuple[str, "Latency"]
#: LoadGen's own latencies of Offline are since the beginning of all: no row of a table is to compare them
NO_LATENCY = "Offline"


def ratios_of(rows: Sequence[tuple[int, Sequence[float]]]) -> list[dict[str, Any]]:
    """Each row against each before it of the same batch size; a row is its batch size and its medians by round.

    `result` and `against` are places in the list of results.
    """
    from profiles.latency.benchmark import pairwise_ratios

    found = pairwise_ratios({place: medians for place, (_, medians) in enumerate(rows)})
    return [
        {"result": ours, "against": theirs, **asdict(ratio)}
        for (ours, theirs), ratio in found.items()
        if rows[ours][0] == rows[theirs][0]
    ]


def warn_of_others(timed: list[Latency]) -> None:
    """One line where other work on the machine was seen."""
    found = [one.load_warning for one in timed if one.load_warning]
    if found:
        how_many = "" if len(found) == len(timed) == 1 else f" ({len(found)} of {len(timed)} rows.)"
        print_status(f"{found[0]}{how_many} Compare within this table, not with others.")


def describe_rows(rows: list[Row], ratios: list[dict[str, Any]]) -> str:
    parts = [times(rows), beginnings(rows), against_first(rows, ratios), verdicts(rows)]
    return "\n\n".join(part for part in parts if part)


def times(rows: list[Row]) -> str:
    columns: dict[str, Callable[[Latency], str]] = {
        **SETTING,
        "scenario": lambda one: one.scenario,
        "p50 ms": lambda one: milliseconds(one.latency_ms_p50, one),
        "p90 ms": lambda one: milliseconds(one.latency_ms_p90, one),
        "p99 ms": lambda one: milliseconds(one.latency_ms_p99, one),
        "images/s": lambda one: f"{one.throughput_ips:.1f}",
        "runs": lambda one: str(one.runs),
    }
    optional: dict[str, Callable[[Latency], str]] = {
        "mJ/image": lambda one: number(one.energy_mj, 2),
        "copy in ms": lambda one: number(one.copy_in_ms),
        "compute ms": lambda one: number(one.compute_ms),
        "copy out ms": lambda one: number(one.copy_out_ms),
        "asked/s": lambda one: number(one.target_qps, 1),
        "valid": lambda one: {True: "yes", False: "NO", None: "-"}[one.valid],
        "busy": lambda one: "yes" if one.load_warning else "-",
    }
    return tabulated(rows, columns, optional)


def beginnings(rows: list[Row]) -> str:
    """Loading, the first call, memory and warm-up."""
    optional: dict[str, Callable[[Latency], str]] = {
        "load ms": lambda one: number(one.load_ms, 1),
        "first ms": lambda one: number(one.first_call_ms, 1),
        "peak MB": lambda one: number(None if one.peak_bytes is None else one.peak_bytes / 1e6, 1),
        "warm-up calls": lambda one: "-" if one.warmup_runs is None else str(one.warmup_runs),
        "settled": lambda one: {True: "yes", False: "NO", None: "-"}[one.warmup_stable],
    }
    places = {"runtime": SETTING["runtime"], "batch": SETTING["batch"]}
    return tabulated([row for row in rows if row[1].scenario == "quick"], places, optional)


def against_first(rows: list[Row], ratios: list[dict[str, Any]]) -> str:
    """Each row against the first of its batch size."""
    firsts: dict[int, int] = {}
    for place, (_, one) in enumerate(rows):
        if one.scenario == "quick":
            firsts.setdefault(one.batch_size, place)
    found = []
    for ratio in ratios:
        ours, theirs = ratio["result"], ratio["against"]
        if theirs == firsts[rows[ours][1].batch_size]:
            spread = f"{ratio['low']:.3f} to {ratio['high']:.3f}"
            size = str(rows[ours][1].batch_size)
            found.append([called(rows[ours]), size, f"{ratio['p50']:.3f}", called(rows[theirs]), spread])
    header = ["in turns", "batch", "times as long as", "", "by round"]
    return format_table(found, header) if found else ""


def verdicts(rows: list[Row]) -> str:
    """LoadGen's reasons, and what its runs are not."""
    lines = [
        f"{called(row)}, batch {row[1].batch_size}: {row[1].scenario} is not valid: {row[1].invalid_reason}."
        for row in rows
        if row[1].valid is False
    ]
    bound = next((one.latency_bound_ms for _, one in rows if one.latency_bound_ms is not None), None)
    lines += [] if bound is None else [f"Of Server's answers 99 % are to come within {bound:g} ms."]
    if any(one.submission_length is False for _, one in rows):
        lines.append("LoadGen's runs here are shorter than MLPerf asks for (--mlperf): not of submission length.")
    return "\n".join(lines)


def tabulated(
    rows: list[Row], columns: dict[str, Callable[[Latency], str]], optional: dict[str, Callable[[Latency], str]]
) -> str:
    """The columns, and those of the optional ones in which something stands; empty where there is none of either."""
    known = {name: show for name, show in optional.items() if any(show(one) != "-" for _, one in rows)}
    if not rows or not (known or len(columns) > 2):
        return ""
    shown = columns | known
    return format_table([[name, *(show(one) for show in shown.values())] for name, one in rows], ["model", *shown])


def milliseconds(value: float, one: Latency) -> str:
    return "-" if one.scenario == NO_LATENCY else f"{value:.3f}"


def number(value: float | None, places: int = 3) -> str:
    return "-" if value is None else f"{value:.{places}f}"


def called(row: Row) -> str:
    return f"{row[0]} in {row[1].runtime}"


SETTING: dict[str, Callable[[Any], str]] = {
    "runtime": lambda one: one.runtime,
    "device": lambda one: one.device,
    "precision": lambda one: one.precision,
    "threads": lambda one: str(one.threads or "-"),
    "batch": lambda one: str(one.batch_size),
}
