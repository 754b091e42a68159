"""Any records: a report without hostile text, formulas and wrong numbers, or one sentence."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import tempfile
import unicodedata
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compress.errors import CompressError
from profiles.record_sets import average_seeds, collect_records
from profiles.records import FILE, MAX_FILE_BYTES, Record, RecordError, append_records, read_records
from profiles.report.build import clean_record, write_run_report
from profiles.report.comparison import Comparison
from profiles.report.html import render_page
from profiles.report.html_tables import initial_rows, visible_columns
from profiles.report.recommendation import Limits, recommend
from profiles.report.rows import build_page_data, rows_to_csv
from profiles.report.tables import build_tables

LATENCY = {
    "latency_ms_p50": 1.5, "latency_ms_p90": 2.0, "latency_ms_p99": 3.0, "latency_ms_mean": 1.6, "latency_ms_std": 0.1,
    "throughput_ips": 600.0, "batch_size": 1, "runs": 10, "threads": None, "runtime": "torch", "device": "cpu",
    "precision": "fp32", "load_before": None, "load_after": 0.5,
}  # fmt: skip
LINE: dict[str, Any] = {
    "schema": 2, "name": "S", "role": "student", "method": "kd", "architecture": "wrn16_1", "task": "classification",
    "image_size": [32, 32], "format": "onnx", "precision": "int8", "metrics": {"accuracy": 0.5, "iou/sky": 0.25},
    "macs": 10, "flops": 20, "params": 3, "activations": 4, "macs_torch": 11, "unsupported": {"odd": 2},
    "size_bytes": 99,
    "latencies": [LATENCY], "export": {"path": "a.onnx", "opset": 18, "parity": {"images": 3, "max_abs": 1e-6}},
    "run": {"steps": 7, "seed": 0, "wall_s": 3.0, "teacher": "T", "scores": {}, "command": "compress distill",
            "history": [{"step": 1, "seconds": 0.5, "accuracy": 0.1}]},
    "machine": {"cores": 2}, "versions": {"python": "3.11"}, "images": {"a": "b.png"},
    "at": "2026-01-01T00:00:00+00:00",
}  # fmt: skip
HOSTILE = (
    "<script>alert(1)</script>", "</script><svg onload=alert(1)>", "<!--", "=1+1", "\r=1", " @x", "\u202eevil",
    "\x1b[2J", "javascript:alert(1)", "data:text/html,<script>", "a|b\nc", "$\\frac$", "$x", "_x", "__proto__", "",
    "NaN", "1e999", "\ud800", "x" * 3000, "[a](javascript:b)", "`", "teacher", "../../../etc/passwd", "/dev/zero",
)  # fmt: skip
POSSIBLE = (0, -1, -0.0, 1e-320, 5e-324, 1e18, -1e18, 0.5, 1.0, 2.0, 1e-12, 3, 10**17)
IMPOSSIBLE = (1e308, -1e308, 10**30, 10**400, 2**63, math.nan, math.inf, True)
numbers = st.one_of(st.sampled_from(POSSIBLE), st.sampled_from(POSSIBLE), st.sampled_from(POSSIBLE + IMPOSSIBLE))
leaves = st.one_of(st.none(), numbers, st.sampled_from(HOSTILE), st.text(max_size=8))
values = st.recursive(
    leaves,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(HOSTILE), inner, max_size=3)),
    max_leaves=4,
)


def list_places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """All places in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place, *(inner for key, item in items for inner in list_places(item, (*place, key)))]


PLACES = [place for place in list_places(LINE) if place]
#: places whose types are not fixed
FREE = [place for place in PLACES if place[0] in ("run", "export", "machine") and len(place) > 1]


@st.composite
def lines(draw: st.DrawFn) -> dict[str, Any]:
    """A valid line with up to four values that are replaced, removed or renamed."""
    line = json.loads(json.dumps(LINE))
    line["name"] = draw(st.sampled_from(["S", "T", *HOSTILE[:6]]))
    line["role"] = draw(st.sampled_from(["student", "teacher", "model"]))
    line["format"] = draw(st.sampled_from(["", "onnx"]))
    for place in draw(st.lists(st.one_of(st.sampled_from(FREE), st.sampled_from(PLACES)), max_size=3)):
        holder: Any = line
        try:
            for key in place[:-1]:
                holder = holder[key]
            old = holder[place[-1]]
            free = place in FREE
            action = draw(st.sampled_from(["replace", "remove", "rename"] if free else ["similar"] * 5 + ["remove"]))
            if action == "replace":
                holder[place[-1]] = draw(values)
            elif action == "similar":
                holder[place[-1]] = draw(st.sampled_from(HOSTILE) if isinstance(old, str) else numbers)
            elif action == "remove":
                del holder[place[-1]]
            else:
                holder[draw(st.sampled_from(HOSTILE))] = holder.pop(place[-1])
        except (LookupError, TypeError):
            continue
    return line


def write_lines(folder: Path, content: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_bytes(b"".join(json.dumps(line).encode() + b"\n" for line in content))


class Markup(HTMLParser):
    """The elements and attributes of a page, without its own scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.wrong: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name.startswith("on") or re.match(r"\s*(javascript|data:text|vbscript):?", value or "", re.IGNORECASE):
                self.wrong.append(f"{tag} {name}={value}")


def check_report(data: dict[str, Any], html: str, text: str) -> None:
    """Check a page and a CSV file for what runs, and for numbers that are none."""
    markup = Markup(html)
    assert markup.tags.count("script") == 3
    assert "svg" not in markup.tags
    assert [one for one in markup.wrong if "aria-label" not in one and "alt=" not in one] == []
    embedded = html.split('id="page-data">')[1].split("</script>")[0]
    assert not re.search("[<>&]", embedded)
    json.loads(embedded, parse_constant=lambda name: pytest.fail(name))
    for separator in ",;":
        for line in csv.reader(io.StringIO(text), delimiter=separator):
            for cell in line:
                start = unicodedata.normalize("NFKC", cell).lstrip(' "\t')[:1]
                assert start not in set("=+-@") or (start == "-" and math.isfinite(float(cell.split('"')[0])))
    for row in initial_rows(data, visible_columns(data)):
        for cell in row["cells"]:
            assert not re.search(r"\b(nan|inf)\b", cell) or not cell[:1].isdigit()


def build_report(content: list[dict[str, Any]]) -> bool:
    """Build the parts of a report without files; False if the records are refused."""
    with tempfile.TemporaryDirectory() as folder:
        write_lines(Path(folder), content)
        try:
            records = collect_records([Path(folder)]).records
        except CompressError:
            return False
    records = list(map(clean_record, records))
    comparison = Comparison(average_seeds(records))
    limits = Limits(latency_ms=2)
    recommendation = recommend(comparison, limits)
    data = build_page_data(comparison, records, recommendation, limits, title="t")
    build_tables(comparison)
    check_report(data, render_page(data), rows_to_csv(data))
    return True


QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}


@settings(max_examples=40, derandomize=True, **QUIET)
@given(st.lists(lines(), min_size=1, max_size=4))
def test_any_records_are_shown_or_refused(content: list[dict[str, Any]]):
    build_report(content)


@pytest.mark.slow
@settings(max_examples=5000, **QUIET)
@given(st.lists(lines(), min_size=1, max_size=5))
def test_many_records_are_shown_or_refused(content: list[dict[str, Any]]):
    build_report(content)


@pytest.mark.slow
@settings(max_examples=300, **QUIET)
@given(st.lists(lines(), min_size=1, max_size=5))
def test_any_report_is_written_or_refused(content: list[dict[str, Any]]):
    """With charts, images and Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        write_lines(Path(folder), content)
        try:
            result = write_run_report(Path(folder), [Path(folder)])
        except CompressError:
            return
        for file in result.files.values():
            assert file.is_file()
        json.loads(result.json.read_text(), parse_constant=lambda name: pytest.fail(name))


@pytest.mark.parametrize(
    "damaged",
    [
        b'{"schema": 2, "name": "a", "metrics": {"accuracy": 1e308}}',
        b'{"schema": 2, "name": "a", "metrics": {"accuracy": "NaN"}}',
        b'{"schema": 2, "name": "a", "metrics": {"loss": 1e308}}',
        b'{"schema": 2, "name": "a", "metrics": {"loss": NaN}}',
        b'{"schema": 2, "name": "a", "macs": 1' + b"0" * 30 + b"}",
        b'{"schema": 2, "name": "a", "macs": 1' + b"0" * 400 + b"}",
        b'{"schema": 2, "name": "a", "run": {"seed": 1' + b"0" * 5000 + b"}}",
        b'{"schema": 2, "name": "a", "run": {"x": ' + b"[" * 200 + b"]" * 200 + b"}}",
        b'{"schema": 2, "name": "' + b"a" * 10_000_000 + b'"}',
    ],
    ids=range(9),
)
def test_impossible_values_are_refused(tmp_path: Path, damaged: bytes):
    (tmp_path / FILE).write_bytes(damaged + b"\n")
    with pytest.raises(RecordError) as caught:
        read_records(tmp_path)
    assert len(str(caught.value)) < 1000


def test_odd_values_are_shown(tmp_path: Path):
    """Values of other types than expected, tiny and negative ones: unknown, but no error."""
    write_lines(tmp_path, [
        LINE | {"run": {"seed": {"a": [1]}, "steps": [2], "scores": [3], "history": [{"seconds": "x", "accuracy": {}}]},
                "export": {"parity": "none", "verified_in": {"a": 1}}, "metrics": {"accuracy": -0.0}},
        LINE | {"name": "T", "role": "teacher", "macs": -5, "latencies": [LATENCY | {"latency_ms_p50": 1e-320}]},
    ])  # fmt: skip
    result = write_run_report(tmp_path, [tmp_path])
    rows = list(csv.DictReader(io.StringIO(result.csv.read_text())))
    assert {row["score"] for row in rows} == {"0.0", "0.5"}
    assert not re.search(r"\b(inf|nan)\b|-0\.0", result.markdown.read_text())


def test_records_that_are_no_file_are_refused(tmp_path: Path):
    for name in ("pipe", "folder", "device", "loop"):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / "pipe" / FILE)
    (tmp_path / "folder" / FILE).mkdir()
    (tmp_path / "device" / FILE).symlink_to("/dev/zero")
    (tmp_path / "loop" / FILE).symlink_to(tmp_path / "loop" / FILE)
    for name in ("pipe", "folder", "device", "loop"):
        for place in (tmp_path / name, tmp_path / name / FILE):
            with pytest.raises(RecordError):
                read_records(place)
        with pytest.raises(CompressError):
            append_records(tmp_path / name, [Record("a")])


def test_huge_file_is_refused(tmp_path: Path):
    with (tmp_path / FILE).open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(RecordError):
        read_records(tmp_path)


def test_planted_link_is_not_appended_to(tmp_path: Path):
    victim = tmp_path / "victim"
    victim.write_text("mine, without a line end")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / FILE).symlink_to(victim)
    with pytest.raises(RecordError):
        append_records(tmp_path / "run", [Record("a")])
    assert victim.read_text() == "mine, without a line end"
