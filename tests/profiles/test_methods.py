"""Method comparison: ranking, caveats and files."""

from __future__ import annotations

import csv
import io
import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from profiles.records import Record
from profiles.report.method_comparison import (
    MethodComparison,
    MethodResult,
    describe_lead,
    format_mean_std,
    list_method_caveats,
    sample_std,
    summarize_comparison,
)
from profiles.report.methods import method_table, write_method_report

TEACHER = Record("Teacher wrn16_2", "teacher", metrics={"accuracy": 0.9})


def run(last: float, best: float | None = None, *, seed: int = 0, **more: Any) -> Record:
    history = [{"step": i, "seconds": 30.0 * i, "accuracy": last * i / 10} for i in range(1, 11)]
    facts = {
        "seed": seed, "steps": 100, "wall_s": 301.0, "images_per_s": 40.0, "peak_bytes": 300_000_000, "batch_size": 64,
        "last": {"accuracy": last}, "best_step": 90, "history": history, "command": f"compress distill --seed {seed}",
    }  # fmt: skip
    return Record("x", "student", metrics={"accuracy": best or last}, run=facts | more, machine={"cpu": "one"})


def entry(key: str, *scores: float, **more: Any) -> MethodResult:
    return MethodResult(key, key.upper(), [run(score, seed=i) for i, score in enumerate(scores)], ["images"], **more)


def contest(*entries: MethodResult, **more: Any) -> MethodComparison:
    return MethodComparison("Methods", entries, TEACHER, 300.0, **more)


A, B, C = entry("a", 0.2, 0.4), entry("b", 0.6, 0.64), entry("c", 0.8, is_reference=True)


def test_methods_are_ranked_by_final_score() -> None:
    lucky = MethodResult("l", "L", [run(0.1, 0.99)], ["images"])
    table = method_table(contest(A, lucky, C, B))
    assert table is not None
    assert [row[0] for row in table.rows] == ["C", "B", "A", "L"]
    assert table.strong == 1, "the yardstick is no contestant"
    columns = dict(zip(table.header, table.rows[3], strict=True))
    assert (columns["Accuracy"], columns["Best during training"]) == ("10.0 %", "99.0 %")


def test_std_needs_several_seeds() -> None:
    values = [0.83, 0.85, 0.81]
    assert sample_std(values) == pytest.approx(statistics.stdev(values))
    assert format_mean_std(values) == "83.0 % ± 2.0"
    assert sample_std([0.5]) is None
    assert format_mean_std([0.5]) == "50.0 %"
    table = method_table(contest(C))
    assert table is not None
    assert "±" not in str(table.rows)
    assert "Each seed" not in table.header


def test_summary_names_lead_and_spread() -> None:
    assert summarize_comparison(contest(A, B, C)) == (
        "B reaches 62.0 % ± 2.8 accuracy (2 seeds) in 5.0 min of training, the best of 2 methods; the teacher has "
        "90.0 %. That is 32.0 points above A. With labels, C reaches 80.0 % accuracy (one seed)."
    )
    near = entry("n", 0.61, 0.62)
    assert describe_lead(contest(B, near), B, near).endswith("which is within the spread over the seeds.")
    assert "chance" in describe_lead(contest(C, B), C, B)
    steps = MethodComparison("Methods", [A], None, None, 40)
    assert summarize_comparison(steps) == "A reaches 30.0 % ± 14.1 accuracy (2 seeds) in 40 steps."
    assert summarize_comparison(contest()) == "No run has finished."


def test_method_caveats() -> None:
    assert list_method_caveats(contest(A, B)) == []
    slow = MethodResult("s", "S", [run(0.5, wall_s=400.0), run(0.5, batch_size=8)])
    elsewhere = MethodResult("e", "E", [replace(run(0.5), machine={"cpu": "other"}, versions={"torch": "1"})])
    text = " ".join(list_method_caveats(contest(slow, elsewhere, notes=("a rule",))))
    for words in ("a rule", "S took up to 6.7 min", "E (1)", "different batch sizes", "different machines", "versions"):
        assert words in text


def test_additional_package_is_same_machine() -> None:
    more = [replace(run(0.5), machine={"cpu": "one", "versions": {"loadgen": str(i)}}) for i in range(2)]
    assert list_method_caveats(contest(MethodResult("a", "A", more))) == []


def test_files_hold_the_same_numbers(tmp_path: Path) -> None:
    mine = contest(
        replace(A, settings={"bn": 10}), B, skipped=[("D", "needs labeled images (--data)")],
        failed=[("E", 1, "the loss is nan")], commands=["compress compare"],
    )  # fmt: skip
    paths, result = write_method_report(tmp_path, mine)
    assert {path.name for path in paths.values()} == {
        f"compare.{e}" for e in ("html", "md", "csv", "json", "svg", "png")
    }
    assert json.loads(paths["json"].read_text()) == result
    rows = list(csv.DictReader(io.StringIO(paths["csv"].read_text())))
    assert [row["method"] for row in rows] == [one["method"] for one in result["methods"]] == ["b", "a"]
    for row, one in zip(rows, result["methods"], strict=True):
        scores = [each["last"] for each in one["runs"]]
        assert float(row["mean"]) == one["mean"] == pytest.approx(statistics.mean(scores))
        assert float(row["std"]) == one["std"] == pytest.approx(statistics.stdev(scores))
        assert int(row["peak_bytes"]) == 300_000_000
    assert rows[1]["settings"] == "bn=10"
    markdown, html = paths["markdown"].read_text(), paths["html"].read_text()
    for text in (markdown, html):
        for words in ("needs labeled images (--data)", "E, seed 1", "the loss is nan", "bn = 10", "62.0 % ± 2.8"):
            assert words in text
    assert "![Accuracy over training time](compare.svg)" in markdown
    assert "| B | 62.0 % ± 2.8 | 60.0, 64.0 |" in markdown


def test_method_page_is_self_contained(tmp_path: Path) -> None:
    paths, _ = write_method_report(tmp_path, contest(A, B, C))
    html = paths["html"].read_text()
    assert "<svg" in html
    assert not any(word in html for word in ("http:", "https:", "<script", "<link", "src="))
    assert "#0400" not in html + paths["svg"].read_text()
    assert ">teacher  90.0 %</text>" in paths["svg"].read_text()
    with Image.open(paths["png"]) as drawn:
        assert min(drawn.size) > 500
        assert drawn.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


def test_method_report_is_reproducible(tmp_path: Path) -> None:
    both = [write_method_report(tmp_path / name, contest(A, B))[0] for name in "ab"]
    for kind in both[0]:
        assert both[0][kind].read_bytes() == both[1][kind].read_bytes(), kind


def test_method_report_without_runs(tmp_path: Path) -> None:
    paths, result = write_method_report(tmp_path, contest(failed=[("A", 0, "<b>no</b>")]))
    assert result["methods"] == []
    assert "png" not in paths
    assert "No run has finished." in paths["html"].read_text()
    assert "&lt;b&gt;no&lt;/b&gt;" in paths["html"].read_text()


def test_nan_score_counts_as_zero() -> None:
    broken = MethodResult("x", "X", [replace(run(0.5), run={"last": {"accuracy": None}}), replace(run(0.5), run={})])
    assert contest(broken).scores(broken) == [0.0, 0.0]
