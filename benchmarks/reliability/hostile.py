"""Rows of hostile files: weights, programs, ONNX files, recipes, names."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.reliability.counts import Counts, Scale
from benchmarks.reliability.hostile_documents import list_hostile_onnx, list_hostile_recipes, write_hostile_run
from benchmarks.reliability.hostile_weights import list_hostile_weights
from benchmarks.reliability.isolated import call_command, call_isolated, count_failure, expect_refusal

#: memory that a refusal may need besides twice the size of the file
CONSTANT = 300 << 20
#: seconds for one file; a computation that never ends is refused before
SECONDS = 180.0


def run_hostile_weights(scale: Scale, counts: Counts) -> None:
    """Files that would run code, fill the memory or write files when they are loaded."""
    rng = random.Random(scale.seed)
    with TemporaryDirectory(prefix="reliability-") as name, contextlib.chdir(name):
        here, tripwire = Path(name), Path(name) / "TRIPWIRE"
        for part, what, write in pick(list_hostile_weights(tripwire), scale, rng):
            path = write(here / "files")
            if path is None:
                counts.note(f"{what}: not run: this version of PyTorch cannot write it")
                continue
            for command in choose_commands(path, rng):
                outcome = call_isolated(call_command, *command, seconds=SECONDS)
                limit = 2 * size_of(path) + CONSTANT
                if not expect_refusal(counts, part, outcome, f"{command[0]} {what}", tripwire):
                    continue
                if outcome.peak_bytes > limit:
                    counts.as_expected -= 1
                    counts.others += 1
                    counts.examples.append(f"{part}: other: {command[0]} {what}: {outcome.peak_bytes / 1e6:,.0f} MB")


def pick(cases: list[Any], scale: Scale, rng: random.Random) -> list[Any]:
    """All cases, or a share of them."""
    n = min(len(cases), scale.count(len(cases)))
    return cases if n == len(cases) else rng.sample(cases, n)


def size_of(path: Path) -> int:
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    return sum(one.stat().st_size for one in files)


def choose_commands(path: Path, rng: random.Random) -> list[list[object]]:
    """`inspect`, and for some files a dry run."""
    distill = ["distill", "--teacher", path, "--ood", "embedded/photos", "--steps", "1", "--dry-run", "--device", "cpu"]
    return [["inspect", path], *([distill] if rng.random() < 0.25 else [])]


def run_hostile_documents(scale: Scale, counts: Counts) -> None:
    """Hostile ONNX files and recipes are refused; names and numbers of a record are escaped in its report."""
    rng = random.Random(scale.seed)
    with TemporaryDirectory(prefix="reliability-") as name, contextlib.chdir(name):
        here, tripwire = Path(name), Path(name) / "TRIPWIRE"
        for part, what, write in pick(list_hostile_onnx(), scale, rng):
            path = write(here / "onnx")
            command = rng.choice([["inspect", path], ["eval", path, "--data", "embedded/fashion"], ["profile", path]])
            outcome = call_isolated(call_command, *command, seconds=SECONDS)
            expect_refusal(counts, part, outcome, f"{command[0]} {what}", tripwire)
        for part, what, write in pick(list_hostile_recipes(tripwire), scale, rng):
            path = write(here / "recipes")
            outcome = call_isolated(call_command, "distill", "--recipe", path, "--dry-run", seconds=SECONDS)
            expect_refusal(counts, part, outcome, what, tripwire)
        count_report(counts, here, tripwire)


def count_report(counts: Counts, here: Path, tripwire: Path) -> None:
    """Hostile names in every text of a record: the page has no new element, the CSV file no formula."""
    payloads = write_hostile_run(here / "run", tripwire)
    outcome = call_isolated(call_command, "report", here / "run", "--out", here / "report", seconds=300)
    if outcome.kind != "returned" or outcome.value["exit_code"]:
        count_failure(counts, "report", outcome, str(outcome.value)[-400:])
        return
    check_report(counts, here / "report", payloads)
    counts.add("report", "code" if tripwire.exists() else "expected", "a picture ran a program")


def check_report(counts: Counts, folder: Path, payloads: list[str]) -> None:
    import csv
    from html.parser import HTMLParser

    class Elements(HTMLParser):
        """Collects names of elements and attributes that could come from a record."""

        def __init__(self) -> None:
            super().__init__()
            self.hostile: list[str] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            names = {name for name, _ in attrs}
            if tag in ("iframe", "object", "embed", "base") or any(name.startswith("on") for name in names):
                self.hostile.append(f"{tag} {sorted(names)}")
            if any("javascript:" in (value or "").lower() for _, value in attrs):
                self.hostile.append(f"{tag} with javascript:")

    for page in folder.rglob("*.html"):
        parser = Elements()
        parser.feed(page.read_text())
        counts.add("elements of the page", "code" if parser.hostile else "expected", str(parser.hostile[:3]))
        for payload in payloads:
            is_raw = payload in page.read_text() and "<" in payload
            counts.add("names in the page", "code" if is_raw else "expected", payload)
    for table in folder.rglob("*.csv"):
        with open(table, newline="") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        bad = [
            cell for cell in cells if cell.lstrip(" \t\r\n\v\f\0")[:1] in ("=", "+", "-", "@") and not is_number(cell)
        ]
        counts.add("cells of the CSV file", "code" if bad else "expected", str(bad[:3]), n=max(1, len(cells)))


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
