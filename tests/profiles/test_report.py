# ruff: noqa: E501 - golden text and records on one line
"""The report: one file that needs nothing else, true to its records, and safe whatever they are named."""

from __future__ import annotations

import base64
import io
import json
import random
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import compress
from compress.errors import CompressError, UsageError
from profiles.formatting import (
    escape_markdown,
    fence_code,
    format_count,
    format_duration,
    format_factor,
    format_percent,
    format_significant,
)
from profiles.latency.benchmark import Latency
from profiles.records import Record, RecordError, append_records, write_file
from profiles.report.build import FILES, write_report, write_run_report
from profiles.report.comparison import Comparison, pareto_indices
from profiles.report.tables import runs_table


def latency(p50: float, **more: Any) -> Latency:
    listed = {
        "latency_ms_p50": p50, "latency_ms_p90": 2 * p50, "latency_ms_p99": 4 * p50, "latency_ms_mean": p50, "latency_ms_std": 0.1,
        "throughput_ips": 1000 / p50, "batch_size": 1, "runs": 10, "threads": 1, "runtime": "onnxruntime", "device": "cpu",
        "precision": "fp32", "load_before": 0.1, "load_after": 0.1,
    }  # fmt: skip
    return Latency(**listed | more)


MACHINE = {
    "cpu": "Some CPU",
    "cores": 2,
    "memory_bytes": 25_769_803_776,
    "instructions": ["avx2"],
    "versions": {"x": "1"},
}
TEACHER = Record(
    "Teacher", "teacher", "Supervised", "wrn16_2", metrics={"accuracy": 0.92}, macs=100_000_000, flops=200_000_000, params=700_000,
    macs_torch=101_000_000, size_bytes=2_800_000, latencies=[latency(2.0), latency(5.0, runtime="torch")], machine=MACHINE,
    versions={"python": "3.11"},
)  # fmt: skip
MOSAIC = Record(
    "MosaicKD wrn16_1", "student", "MosaicKD", "wrn16_1", metrics={"accuracy": 0.805}, macs=25_000_000, flops=50_000_000, params=175_000,
    size_bytes=720_000, latencies=[latency(0.5)],
    export={"path": "runs/a/student.onnx", "opset": 18, "sha256": "0123456789abcdef", "parity": {"images": 64, "max_abs": 2e-6, "max_rel": 1e-7, "top1_agreement": 1.0}},
    run={"steps": 400, "wall_s": 240.0, "budget_s": 240.0, "seed": 0, "ood": "embedded/photos", "data_wait_share": 0.004, "command": "compress distill --out runs/a",
         "history": [{"step": 1, "seconds": 10, "accuracy": 0.3}, {"step": 2, "seconds": 240, "accuracy": 0.805}]},
    machine=MACHINE, versions={"python": "3.11"},
)  # fmt: skip
PLAIN = replace(
    MOSAIC,
    name="KD wrn16_1",
    method="KD",
    metrics={"accuracy": 0.6},
    latencies=[latency(0.5)],
    export=None,
    run={"budget_s": 240.0},
)

GOLDEN = """\
# Fashion

Deploy MosaicKD wrn16_1: 80.5 % accuracy, 87.5 % of its teacher's 92.0 %, with 4× fewer MACs, 4× fewer parameters and 4× lower latency. It costs 0.500 ms (ONNX Runtime, CPU, 1 thread, batch 1), 0.0500 GFLOP and 720 kB. It is the best of 2 models. KD wrn16_1, the same network with the same wall-clock budget (4.0 min), is 20.5 points below it (60.0 %).

Results, for one image. p50: median latency with ONNX Runtime, CPU, 1 thread, batch 1. 1 MAC = 2 FLOP.

| Model | Role | Method | Network | Accuracy | Of teacher's | Parameters | GMAC | GFLOP | Size | p50 (ms) | Speed-up |
| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| Teacher | teacher | Supervised | wrn16_2 | 92.00 % | – | 700 k | 0.100 | 0.200 | 2.80 MB | 2.00 | – |
| MosaicKD wrn16_1 | student | MosaicKD | wrn16_1 | 80.50 % | 87.5 % | 175 k | 0.0250 | 0.0500 | 720 kB | 0.500 | 4× |
| KD wrn16_1 | student | KD | wrn16_1 | 60.00 % | 65.2 % | 175 k | 0.0250 | 0.0500 | 720 kB | 0.500 | 4× |

Latency of one batch, and throughput.

| Model | Setting | p50 (ms) | p90 (ms) | p99 (ms) | Images/s | Speed-up |
| --- | --- | ---: | ---: | ---: | ---: | ---: |
| Teacher | ONNX Runtime, CPU, 1 thread, batch 1 | 2.00 | 4.00 | 8.00 | 500 | – |
| MosaicKD wrn16_1 | ONNX Runtime, CPU, 1 thread, batch 1 | 0.500 | 1.00 | 2.00 | 2000 | 4× |
| KD wrn16_1 | ONNX Runtime, CPU, 1 thread, batch 1 | 0.500 | 1.00 | 2.00 | 2000 | 4× |
| Teacher | PyTorch, CPU, 1 thread, batch 1 | 5.00 | 10.0 | 20.0 | 200 | – |

Exported files against PyTorch: logits on the same images.

| Model | File | Opset | SHA-256 | Images compared | Same top-1 class | Largest difference | Relative |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |
| MosaicKD wrn16_1 | student.onnx | 18 | 0123456789ab | 64 | 100.00 % | 2.0e-06 | 1.0e-07 |

Training runs.

| Model | Method | Images | Steps | Wall clock | Budget | Waiting for data | Seed |
| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |
| MosaicKD wrn16_1 | MosaicKD | embedded/photos | 400 | 4.0 min | 4.0 min | 0.4 % | 0 |

![Accuracy against GFLOP](report_flops.svg)

Accuracy against GFLOP. Teacher: 92.0 % at 0.2 GFLOP; MosaicKD wrn16_1: 80.5 % at 0.05 GFLOP; KD wrn16_1: 60.0 % at 0.05 GFLOP. Pareto-optimal: MosaicKD wrn16_1, Teacher.

![Accuracy against latency](report_latency.svg)

Accuracy against latency. Teacher: 92.0 % at 2 ms; MosaicKD wrn16_1: 80.5 % at 0.5 ms; KD wrn16_1: 60.0 % at 0.5 ms. Pareto-optimal: MosaicKD wrn16_1, Teacher.

![Accuracy against size](report_size.svg)

Accuracy against size. Teacher: 92.0 % at 2.8 MB; MosaicKD wrn16_1: 80.5 % at 0.72 MB; KD wrn16_1: 60.0 % at 0.72 MB. Pareto-optimal: MosaicKD wrn16_1, Teacher.

![Learning curves](report_learning.svg)

Accuracy over training time. MosaicKD wrn16_1 ends at 80.5 % after 240 s.

![Mosaics](<grid.png>)

## How to reproduce

```console
make demo
compress distill --out runs/a
```

## Caveats

- One seed.

## Machine

- cpu: Some CPU
- cores: 2
- memory: 25.8 GB
- instructions: avx2

## Versions

- python: 3.11
"""


class Page(HTMLParser):
    """What a browser would see of a page: tags in order, attributes, text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def image(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "grid.png")
    return tmp_path / "grid.png"


def report(folder: Path, records: list[Record], **more: Any) -> tuple[str, str, dict[str, Any]]:
    """(HTML, Markdown, JSON) of a report, held to what holds for every one."""
    paths = write_report(folder, records, **more).files
    html, markdown = paths["html"].read_text(), paths["markdown"].read_text()
    assert_needs_nothing_else(html)
    content = json.loads(paths["json"].read_text(), parse_constant=lambda name: pytest.fail(f"{name} in report.json"))
    return html, markdown, content


def assert_needs_nothing_else(html: str) -> None:
    outside = re.sub(r"<script.*?</script>|base64,[\w+/=]+", "", html, flags=re.DOTALL)  # the scripts: test_page.py
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", outside)
    for tag, attributes in Page(html).tags:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        assert not any(name.startswith("on") or name == "action" for name in attributes)
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/"))


def test_markdown_golden_file(tmp_path: Path, image: Path):
    _, markdown, _ = report(
        tmp_path, [TEACHER, MOSAIC, PLAIN], title="Fashion", images={"Mosaics": image}, notes=["One seed."], commands=["make demo"]
    )  # fmt: skip
    assert markdown == GOLDEN


def test_page_has_tables_and_images(tmp_path: Path, image: Path):
    html, _, _ = report(tmp_path, [TEACHER, MOSAIC, PLAIN], images={"Mosaics": image})
    page = Page(html)
    for words in ("80.50 %", "0.0500", "2.0e-06", "Some CPU", "MosaicKD wrn16_1", "compress distill --out runs/a"):
        assert words in page.text
    for tag, attributes in page.tags:
        if tag == "img":
            assert attributes["alt"] == "Mosaics"
            source = base64.b64decode((attributes["src"] or "").partition(",")[2])
            with Image.open(io.BytesIO(source)) as embedded, Image.open(image) as original:
                assert np.array_equal(np.asarray(embedded), np.asarray(original))
        if tag == "th":
            assert attributes["scope"] in ("col", "row")
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_json_has_the_records(tmp_path: Path):
    _, _, outcome = report(tmp_path, [TEACHER, MOSAIC, PLAIN])
    assert outcome["best"] == "MosaicKD wrn16_1"
    student = outcome["records"][1]
    assert student["metrics"] == {"accuracy": 0.805}
    assert student["retained_share"] == pytest.approx(0.805 / 0.92)
    assert (student["macs_ratio"], student["params_ratio"], student["speedup"]) == (4, 4, 4)
    assert outcome["records"][0]["speedup"] is None
    front = ["MosaicKD wrn16_1", "Teacher"]
    assert outcome["pareto"] == {"flops": front, "latency": front, "size": front, "energy": []}


NASTY = "<script>alert(1)</script>|`a` $x_1$ \"'&amp; ![x](http:y) \n# 漢字 \x07\ud800"


def test_report_escapes_names(tmp_path: Path, image: Path):
    records = [
        replace(TEACHER, name="T" + NASTY, machine={NASTY: NASTY}, versions={NASTY: NASTY}, architecture=NASTY),
        replace(MOSAIC, name=NASTY, method=NASTY, metrics={"accuracy": 0.5, NASTY: 0.1}, unsupported={NASTY: 2},
                latencies=[latency(1.0, runtime=NASTY, device=NASTY)], run={"command": NASTY, "ood": NASTY, "steps": NASTY, "history": [{"seconds": 1, "accuracy": 0.5}]}),
    ]  # fmt: skip
    paths = write_report(
        tmp_path, records, title=NASTY, images={NASTY: image}, notes=[NASTY], commands=[NASTY + "```"]
    ).files
    html, markdown = paths["html"].read_text(), paths["markdown"].read_text()
    page = Page(html)
    plain = Page(write_report(tmp_path / "plain", [TEACHER, MOSAIC], images={"a": image}).files["html"].read_text())
    assert [tag for tag, _ in page.tags].count("script") == [tag for tag, _ in plain.tags].count("script")
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in plain.tags} | {"li", "ul"}
    assert "<script>alert(1)</script>" in page.text
    outside_code = re.sub(r"^(`{3,}).*?^\1$", "", markdown, flags=re.DOTALL | re.MULTILINE)
    assert "<script" not in outside_code
    assert "![x](" not in outside_code
    for table in re.findall(r"(?:^\|.*\n)+", outside_code, flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    json.loads(paths["json"].read_text())


def test_chart_files_name_every_model(tmp_path: Path):
    write_report(tmp_path, [TEACHER, MOSAIC, PLAIN])
    drawn = (tmp_path / "report_flops.svg").read_text()
    for name in ("Teacher", "MosaicKD wrn16_1", "KD wrn16_1", "GFLOP per image", "accuracy", "Pareto-optimal"):
        assert f">{name}</text>" in drawn
    assert "#0067c0" in drawn
    assert "#0400" not in drawn
    assert "var(--" not in drawn


def test_report_is_reproducible(tmp_path: Path, image: Path):
    both = [write_report(tmp_path / name, [TEACHER, MOSAIC], images={"a": image}).files for name in "ab"]
    assert both[0]["html"].read_bytes() == both[1]["html"].read_bytes()


def test_report_without_records(tmp_path: Path):
    html, markdown, outcome = report(tmp_path, [])
    assert "There are no results yet." in html
    assert markdown == "# Compression report\n\nThere are no results yet.\n"
    assert outcome["records"] == []


def test_unmeasured_values_are_missing(tmp_path: Path):
    bare = [
        Record("A"),
        Record("B", "student", metrics={"miou": 0.4}),
        Record("C", "teacher", metrics={"miou": 0.0}, macs=0),
    ]
    html, markdown, outcome = report(tmp_path, bare)
    assert "Deploy B: 40.0 % mIoU." in markdown
    assert "| A | model | – |" in markdown
    assert "Not evaluated on mIoU: A." in html
    assert [record["retained_share"] for record in outcome["records"]] == [None, None, None]
    assert "Latency" not in markdown
    assert report(tmp_path, [Record("A")])[2]["summary"] == "No model was evaluated."
    one = report(tmp_path, [Record("A", metrics={"accuracy": 0.5}, macs=5, flops=10)])
    assert one[2]["summary"] == "A reaches 50.0 % accuracy. It costs 1.00e-08 GFLOP."


def test_savings_may_be_negative(tmp_path: Path):
    large = replace(MOSAIC, macs=200_000_000, flops=400_000_000, latencies=[latency(4.0)])
    _, _, outcome = report(tmp_path, [TEACHER, large])
    assert "with 2× more MACs, 4× fewer parameters and 2× higher latency" in outcome["summary"]


def test_latencies_of_one_setting_are_compared():
    records = [replace(TEACHER, latencies=[latency(2.0, threads=2)]), MOSAIC, PLAIN]
    comparison = Comparison(records)
    assert comparison.setting is not None
    assert comparison.setting.threads == 1
    assert [comparison.speedup(record) for record in records] == [None, None, None]


def test_student_is_compared_with_its_teacher(tmp_path: Path):
    other = replace(TEACHER, name="Other", metrics={"accuracy": 0.5})
    lost, outcome = replace(MOSAIC, name="lost"), replace(MOSAIC, run={"teacher": "Other"})
    comparison = Comparison([TEACHER, other, lost, outcome])
    assert comparison.retained_accuracy(outcome) == pytest.approx(0.805 / 0.5)
    assert comparison.retained_accuracy(lost) is None
    assert any("several teachers" in caveat for caveat in report(tmp_path, comparison.records)[2]["caveats"])


def test_runs_table_has_each_run_once():
    int8 = replace(MOSAIC, format="onnx", precision="int8")
    made = runs_table(Comparison([TEACHER, MOSAIC, int8]))
    assert made is not None
    assert len(made.rows) == 1
    alone = runs_table(Comparison([TEACHER, int8]))
    assert alone is not None
    assert len(alone.rows) == 1


def test_report_caveats(tmp_path: Path):
    doubtful = replace(
        MOSAIC, unsupported={"aten::odd": 3}, macs_torch=10_000_000, latencies=[latency(1.0, load_before=5.0, machine="Other")], machine={"cores": 2, "cpu": "Other"}
    )  # fmt: skip
    caveats = " ".join(report(tmp_path, [TEACHER, doubtful])[2]["caveats"])
    for words in (
        "operators not counted in its MACs: aten::odd (3×)",
        "differ by 60.0 %",
        "different machines",
        "was busy",
    ):
        assert words in caveats


def test_unreadable_image_is_a_caveat(tmp_path: Path, image: Path):
    (tmp_path / "cut.png").write_bytes(image.read_bytes()[:200])
    (tmp_path / "text.png").write_text("no picture")
    wrong = {
        "cut": tmp_path / "cut.png",
        "text": tmp_path / "text.png",
        "gone": tmp_path / "gone.png",
        "folder": tmp_path,
    }
    html, _, outcome = report(tmp_path, [MOSAIC], images=wrong | {"good": image})
    assert html.count("<img") == 1
    assert sum("could not be read" in caveat for caveat in outcome["caveats"]) == 4


def test_large_image_is_reduced(tmp_path: Path):
    noise = np.random.default_rng(0).integers(0, 255, (1500, 3000, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png", compress_level=1)
    html, _, _ = report(tmp_path, [MOSAIC], images={"noise": tmp_path / "noise.png"})
    source = re.search(r'src="data:image/jpeg;base64,([^"]+)"', html)
    assert source is not None
    with Image.open(io.BytesIO(base64.b64decode(source[1]))) as embedded:
        assert embedded.size == (1400, 700)


def test_unwritable_report_folder_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match=r"report\.json: cannot be written"):
        write_report(tmp_path / "file", [MOSAIC])


def is_beaten(points: list[tuple[float, float]], i: int) -> bool:
    cost, quality = points[i]
    return any(c <= cost and q >= quality and (c, q) != (cost, quality) for c, q in points)


@pytest.mark.parametrize("seed", range(30))
def test_pareto_matches_brute_force(seed: int):
    rng = random.Random(seed)
    for _ in range(20):
        points = [(float(rng.randrange(6)), float(rng.randrange(6))) for _ in range(rng.randrange(12))]
        outcome = pareto_indices(points)
        assert sorted(outcome) == [i for i in range(len(points)) if not is_beaten(points, i)]
        assert [points[i][0] for i in outcome] == sorted(points[i][0] for i in outcome)


def test_labels_do_not_overlap(tmp_path: Path):
    rng = random.Random(0)
    many = [
        replace(MOSAIC, name=f"model {i}", method=f"method {i % 8}", flops=int(10 ** rng.uniform(6, 10)), metrics={"accuracy": rng.random()})
        for i in range(40)
    ]  # fmt: skip
    _, _, outcome = report(tmp_path, many)
    drawn = (tmp_path / "report_flops.svg").read_text()
    assert all(f">{name}</text>" in drawn for name in outcome["pareto"]["flops"])


def test_number_formats():
    assert [format_count(n) for n in (0, 999, 999.9, 1000, 175_994, 23_500_000, 2e9)] == [
        "0",
        "999",
        "1.00 k",
        "1.00 k",
        "176 k",
        "23.5 M",
        "2.00 G",
    ]
    assert [format_significant(n) for n in (0.061, 0.61, 12.34, 999.6, 1234.5, None)] == [
        "0.0610",
        "0.610",
        "12.3",
        "1000",
        "1234",
        "",
    ]
    assert [format_factor(n) for n in (0.5, 4.0, 9.23, 12.34, 123.4, None)] == [
        "0.5×",
        "4×",
        "9.2×",
        "12.3×",
        "123×",
        "",
    ]
    assert [format_duration(n) for n in (5, 99, 240, 7199, 7200, 36_660, None)] == [
        "5.00 s",
        "99.0 s",
        "4.0 min",
        "2 h 00 min",
        "2 h 00 min",
        "10 h 11 min",
        "",
    ]
    assert format_percent(0.81425) == "81.42 %"


def test_markdown_is_escaped():
    assert escape_markdown("a|b\n<i> *x* _y_ z_1 `c` [d](e) \\") == r"a\|b &lt;i&gt; \*x\* \_y\_ z_1 \`c\` \[d\](e) \\"
    assert escape_markdown("# a") == r"\# a"
    assert fence_code(["a ``` b"]) == "````console\na ``` b\n````"


@pytest.mark.parametrize("name", FILES)
def test_files_of_the_user_are_not_replaced(tmp_path: Path, name: str):
    append_records(tmp_path / "run", [TEACHER, MOSAIC])
    own = tmp_path / "run" / name
    own.write_text('{"title": "mine"}')
    for write in (lambda: write_run_report(own.parent, [own.parent]), lambda: write_report(own.parent, [TEACHER])):
        with pytest.raises(UsageError, match="--out"):
            write()
    assert own.read_text() == '{"title": "mine"}'
    assert sorted(path.name for path in own.parent.iterdir()) == sorted(["records.jsonl", name])


def test_own_report_is_replaced_also_after_a_kill_between_its_files(tmp_path: Path, monkeypatch):
    def stop(path: Path, content: bytes) -> None:
        write_file(path, content)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("profiles.report.build.write_file", stop)
        with pytest.raises(KeyboardInterrupt):
            write_report(tmp_path, [TEACHER], title="first")
    files = write_report(tmp_path, [TEACHER], title="second").files
    assert files == {kind: tmp_path / name for kind, name in zip(files, FILES, strict=True)}
    write_report(tmp_path, [TEACHER], title="third")
    assert all("third" in files[kind].read_text() for kind in ("html", "markdown", "json"))


@pytest.mark.parametrize("name", ["\ud800", "a\0b", "a" * 300])
def test_impossible_paths_are_refused(tmp_path: Path, name: str):
    append_records(tmp_path / "run", [TEACHER])
    with pytest.raises(CompressError):
        compress.report(tmp_path / "run", output_dir=tmp_path / name)
    with pytest.raises(CompressError):
        compress.report(tmp_path / name)


def test_report_command(tmp_path: Path):
    from compress.cli.report import report as command

    append_records(tmp_path / "a", [TEACHER, MOSAIC])
    append_records(tmp_path / "b", [TEACHER, PLAIN])
    Image.new("RGB", (8, 8)).save(tmp_path / "b" / "gallery.png")
    out = tmp_path / "out"
    arguments = [str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(out), "--title", "Both"]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.output.splitlines()[-1] == str(out / "report.html")
    assert "# Both" in (out / "report.md").read_text()
    assert "![gallery (b)](<../b/gallery.png>)" in (out / "report.md").read_text()
    result = CliRunner().invoke(command, [*arguments, "--json"], catch_exceptions=False)
    outcome = json.loads(result.stdout)
    assert outcome["models"] == 3
    assert outcome["html"] == str(out / "report.html")
    assert outcome["pareto"]["flops"] == ["MosaicKD wrn16_1", "Teacher"]
