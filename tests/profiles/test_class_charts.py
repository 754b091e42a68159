"""Reports of segmentation models: class charts and the class table."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from profiles.formatting import capitalize_name
from profiles.latency.benchmark import Latency
from profiles.records import Record
from profiles.report.build import write_report
from profiles.report.comparison import Comparison
from profiles.report.figures import class_charts
from profiles.report.recommendation import list_caveats
from profiles.report.tables import class_table, results_table

#: the classes of NYUv2 and of VOC
NYU13 = [
    "bed",
    "books",
    "ceiling",
    "chair",
    "floor",
    "furniture",
    "objects",
    "picture",
    "sofa",
    "table",
    "television",
    "wall",
    "window",
]
VOC21 = [
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "table",
    "dog",
    "horse",
    "motorbike",
    "person",
    "plant",
    "sheep",
    "sofa",
    "train",
    "television",
]


def latency(p50: float) -> Latency:
    return Latency(p50, p50, p50, p50, 0.0, 1000 / p50, 1, 10, 1, "onnxruntime", "cpu", "fp32", None, None)


def record(name: str, miou: float, names: list[str], role: Any = "student", **more: Any) -> Record:
    """The paper's figures on NYUv2, with classes spread about them."""
    spread = {f"iou/{n}": miou * (0.5 + i / max(1, len(names) - 1)) for i, n in enumerate(names)}
    cost = {"teacher": (40_970_000_000, 39_600_000, 90.0)}.get(role, (5_610_000_000, 5_800_000, 21.0))
    return Record(
        name, role, "" if role == "teacher" else name, task="segmentation", image_size=(256, 256),
        metrics={"miou": miou, "pixel_accuracy": miou + 0.2} | spread, macs=cost[0], flops=2 * cost[0], params=cost[1],
        latencies=[latency(cost[2])], **more,
    )  # fmt: skip


def three(names: list[str]) -> list[Record]:
    return [record("Teacher", 0.519, names, "teacher"), record("KD", 0.406, names), record("MosaicKD", 0.454, names)]


def test_results_table_omits_class_metrics():
    table = results_table(Comparison(three(NYU13)))
    assert table is not None
    assert table.header == [
        "Model", "Role", "Method", "mIoU", "Of teacher's", "Pixel accuracy", "Parameters", "GMAC", "GFLOP", "p50 (ms)",
        "Speed-up",
    ]  # fmt: skip
    assert table.rows[2][3:6] == ["45.40 %", "87.5 %", "65.40 %"]


def test_costs_are_drawn_against_miou(tmp_path: Path):
    paths = write_report(tmp_path, three(NYU13)).files
    text = paths["markdown"].read_text()
    assert "Deploy MosaicKD: 45.4 % mIoU, 87.5 % of its teacher's 51.9 %" in text
    assert "mIoU against GFLOP. Teacher: 51.9 % at 81.9 GFLOP; KD: 40.6 % at 11.2 GFLOP" in text
    assert "mIoU against latency. Teacher: 51.9 % at 90 ms" in text
    assert json.loads(paths["json"].read_text())["metric"] == "miou"


@pytest.mark.parametrize(("count", "charts"), [(1, 1), (11, 2), (13, 2), (21, 3), (40, 4)])
def test_every_class_has_a_bar(count: int, charts: int):
    names = [f"class {i}" for i in range(count)]
    drawn = class_charts(Comparison(three(names)))
    assert len(drawn) == charts
    written: list[str] = []
    for chart in drawn:
        root = ElementTree.fromstring(chart.svg)
        words = ["".join(t.itertext()) for t in root.iter() if t.tag.endswith("}text")]
        here = [word for word in words if word.startswith("class ")]
        assert len(here) <= 10
        assert {"Teacher", "KD", "MosaicKD", "intersection over union"} <= set(words)
        assert chart.svg.decode().count("fill: #04000") >= 2 * len(here)  # the students' bars
        written += here
    assert written == names
    assert [chart.file for chart in drawn][:2] == ["report_classes.svg", "report_classes_2.svg"][:charts]


def test_bar_lengths_match_values():
    shares = {"iou/wall": 0.8, "iou/floor": 0.4, "iou/bed": 0.2}
    drawn = class_charts(Comparison([Record("Student", "student", metrics={"miou": 0.4667} | shares)]))
    bars = re.findall(r'd="M ([\d.]+) [\d.]+\s+L ([\d.]+) [^"]*"[^>]*style="fill: #04000a', drawn[0].svg.decode())
    widths = [float(right) - float(left) for left, right in bars][:3]  # then the legend's
    assert [width / widths[0] for width in widths] == pytest.approx([1, 0.5, 0.25], abs=1e-3)


def test_class_table_has_all_numbers(tmp_path: Path):
    paths = write_report(tmp_path, three(VOC21)).files
    html, text = paths["html"].read_text(), paths["markdown"].read_text()
    assert "television" in html
    assert "| Class | Teacher | KD | MosaicKD |\n| --- | ---: | ---: | ---: |\n| background | 25.9 % | 20.3 % |" in text
    assert "IoU of each class, 1 of 3. Teacher: from 25.9 % (background)" in text
    assert text.count("report_classes") == 3
    assert all((tmp_path / f"report_classes{end}.svg").is_file() for end in ("", "_2", "_3"))


def test_unknown_class_has_no_bar():
    one, other = record("A", 0.4, ["bed"]), record("B", 0.3, ["sofa"])
    table = class_table(Comparison([one, other, Record("C", metrics={"miou": 0.2})]))
    assert table is not None
    assert table.header == ["Class", "A", "B"]
    assert table.rows == [["bed", "20.0 %", "–"], ["sofa", "–", "15.0 %"]]
    assert "A: not known." not in class_charts(Comparison([one, other]))[0].description


def test_report_without_classes(tmp_path: Path):
    paths = write_report(tmp_path, [Record("A", metrics={"accuracy": 0.5})]).files
    assert "<details>" not in paths["html"].read_text()
    assert "class" not in paths["markdown"].read_text().lower()
    assert class_charts(Comparison([])) == []


def test_class_charts_show_best_models():
    many = [record("Teacher", 0.5, NYU13, "teacher"), *(record(f"m{i}", 0.1 + i / 50, NYU13) for i in range(9))]
    drawn = class_charts(Comparison(many))
    assert re.findall(r"(\w+): from", drawn[0].description) == ["Teacher", "m4", "m5", "m6", "m7", "m8"]


def test_undetected_classes_are_a_caveat():
    names = [f"c{i}" for i in range(12)]
    blind = replace(
        record("KD", 0.3, names), metrics={"miou": 0.02, "iou/c0": 0.24} | {f"iou/{n}": 0.0 for n in names[1:]}
    )
    assert "KD hardly detects c1, c2, c3, c4, c5, c6, c7, c8 and 3 more (IoU below 1 %)." in list_caveats(
        Comparison([blind])
    )
    assert list_caveats(Comparison([record("KD", 0.3, names)])) == []


def test_class_names_are_escaped(tmp_path: Path):
    nasty = "<b>`$x_1$` | \"&' \x07 漢"
    paths = write_report(tmp_path, [record("A", 0.5, [nasty, "T-shirt/top"])]).files
    html, text = paths["html"].read_text(), paths["markdown"].read_text()
    assert "<b>" not in html
    assert "<b>" not in text
    assert "T-shirt/top" in html
    assert ">T-shirt/top</text>" in (tmp_path / "report_classes.svg").read_text()
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in rows[-4:]} == {3}


def test_capitalize_name_keeps_capitals():
    assert [capitalize_name(name) for name in ("mIoU", "accuracy", "pixel accuracy", "F1")] == [
        "mIoU", "Accuracy", "Pixel accuracy", "F1",
    ]  # fmt: skip
