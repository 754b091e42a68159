"""`--json` prints one object, and its keys are those of docs/json.md."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from invoking import TEACHER, answer, distill, run

PAGE = Path(__file__).parents[2] / "docs" / "json.md"


def documented(heading: str) -> dict[str, str]:
    """Key -> type, of the page's section with this heading."""
    section = next(
        s for s in re.split(r"^## ", PAGE.read_text(), flags=re.M)[1:] if heading in s.splitlines()[0].split(", ")
    )
    return dict(re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", section, flags=re.M))


def keys(value: Any, path: str = "") -> Iterator[str]:
    """The path of every leaf; `a[].b` for lists of objects; a list of anything else, or nothing, is a leaf."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from keys(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        for item in value:
            yield from keys(item, f"{path}[]")
    else:
        yield path


def holds(pattern: str, key: str) -> bool:
    """Whether a documented key speaks of `key`: itself, anything below `a.*`, or an empty list for `a[].b`, `a[].*`."""
    empty = {pattern[: found.start()] for found in re.finditer(r"\[\]", pattern)}
    if pattern.endswith(".*"):
        return key in {pattern[:-2], *empty} or key.startswith(pattern[:-1])
    return key in {pattern, *empty}


def agree(heading: str, found: dict[str, Any]) -> None:
    page, printed = documented(heading), set(keys(found))
    assert page
    unknown = {key for key in printed if not any(holds(pattern, key) for pattern in page)}
    assert not unknown, f"printed, not in docs/json.md: {unknown}"
    absent = {p for p, kind in page.items() if "optional" not in kind and not any(holds(p, key) for key in printed)}
    assert not absent, f"in docs/json.md, not printed: {absent}"


def test_distill(first_run, clothes) -> None:
    folder, found = first_run
    agree("compress distill", found)
    assert 0 <= found["metrics"]["accuracy"] <= 1
    assert found["flops"] == 2 * found["macs"]
    scored = answer(run("eval", folder / "best", "--data", clothes, "--json"))
    agree("compress eval", scored)
    assert scored["metrics"] == found["metrics"]


def test_dry_run(photos, tmp_path) -> None:
    agree("compress distill --dry-run", answer(distill("--dry-run", "--json", ood=photos, out=tmp_path / "x")))


def test_train(clothes, tmp_path) -> None:
    out = ["--out", tmp_path / "teacher", "--json"]
    found = answer(run("train", "--data", clothes, "--student", "wrn16_1", "--steps", 1, "--batch-size", 8, *out))
    agree("compress train", found)
    assert found["metrics"] == {}


def test_inspect(photos, clothes) -> None:
    agree("compress inspect", answer(run("inspect", TEACHER, "--json")))
    found = answer(run("inspect", TEACHER, "--ood", photos, "--ood-samples", 4, "--json"))
    agree("compress inspect", found)
    page = documented("compress inspect")
    below = {key for key in found["ood"] if not key.endswith("_histogram")}
    assert below == {key.split(".")[1] for key in page if key.startswith("ood.")} - {"*"}
    options = ["--ood-samples", 4, "--reference", clothes, "--patch-sizes", 8]
    compared = answer(run("inspect", TEACHER, "--ood", photos, *options, "--json"))
    agree("compress inspect", compared)
    assert set(compared["reference"]) == set(compared["ood"]) - {"verdict"}
    assert set(compared["discrepancy"]) == {key.split(".")[1] for key in page if key.startswith("discrepancy.")}


@pytest.mark.parametrize(
    ("heading", "arguments"),
    [
        ("compress profile", ["profile", "wrn16_1"]),
        ("compress bench", ["bench", "wrn16_1", "--duration", "0.05s", "--runtimes", "torch"]),
        ("compress methods", ["methods"]),
        ("compress methods NAME", ["methods", "mosaic"]),
        ("compress models", ["models"]),
        ("compress datasets", ["datasets"]),
        ("compress doctor", ["doctor"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_commands_that_need_no_files(heading, arguments) -> None:
    agree(heading, answer(run(*arguments, "--json")))


def test_export_and_report(first_run, photos, tmp_path) -> None:
    folder, _ = first_run
    arguments = ["--images", photos, "--exporter", "torchscript", "--out", tmp_path / "student.onnx", "--json"]
    agree("compress export", answer(run("export", folder / "best", *arguments)))
    agree("compress report", answer(run("report", folder, "--out", tmp_path / "report", "--json")))


@pytest.mark.slow
def test_distill_with_a_report(photos, clothes, tmp_path) -> None:
    found = answer(distill("--val", clothes, "--report", "--json", ood=photos, out=tmp_path / "run"))
    agree("compress distill", found)
    (row,) = (line for line in PAGE.read_text().splitlines() if line.startswith("| `export.*`"))
    named = row.partition("of the ONNX file:")[2].partition("; the rest")[0]
    assert set(found["export"]) == set(re.findall(r"`(\w+)`", named))


@pytest.mark.slow
def test_demo(tmp_path) -> None:
    agree("compress demo", answer(run("demo", "--time-limit", "3s", "--out", tmp_path / "demo", "--json")))


def test_every_command_has_its_section() -> None:
    from compress.cli import COMMANDS

    for name in COMMANDS:
        assert documented(f"compress {name}")
