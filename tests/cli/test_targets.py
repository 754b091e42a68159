"""Targets: addresses, target files, names and budgets."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from invoking import read_error, read_result, run
from other_machine import classifier

from compress.benchmarking import BenchmarkResult, BenchmarkRow, compare_with_budget, fill_from_target
from compress.errors import CompressError, UsageError
from compress.targets import Target, load_target, parse_address
from profiles.latency.benchmark import Latency
from profiles.latency.ssh import Address

EXAMPLE = Path(__file__).parents[2] / "docs" / "targets" / "example.yaml"


def latency(p90: float, **changes: object) -> Latency:
    one = Latency(1.0, p90, 2 * p90, 1.0, 0.0, 1000.0, 1, 10, 1, "onnxruntime", "cpu", "fp32", None, None)
    return dataclasses.replace(one, **changes)


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch) -> Path:
    """An empty working directory, and an empty directory of user settings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


# Addresses.


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("ssh://board", Address("board")),
        ("ssh://Board-7/", Address("Board-7")),
        ("ssh://me@10.0.0.7:2222", Address("10.0.0.7", "me", 2222)),
        ("ssh://me@[fe80::1]:22", Address("fe80::1", "me", 22)),
        ("ssh://board?python=/opt/my%20py/bin/python", Address("board", python="/opt/my py/bin/python")),
        ("ssh://board?python=~/env/bin/python", Address("board", python="env/bin/python")),
    ],
)
def test_address_is_parsed(url: str, expected: Address) -> None:
    assert parse_address(url) == expected


@pytest.mark.parametrize(
    ("url", "datum"),
    [
        ("http://board", "http://board"),
        ("ssh://", "''"),
        ("ssh://-oProxyCommand=touch%20x", "-oProxyCommand"),
        ("ssh://-l@board", "'-l'"),
        ("ssh://%2DoProxyCommand@board", "-oProxyCommand"),
        ("ssh://board;true", "board;true"),
        ("ssh://bo%20ard", "bo ard"),
        ("ssh://me:secret@board", "password"),
        ("ssh://board:0", "port 0"),
        ("ssh://bo\nard", "control"),
        ("ssh://board\n", "control"),
        ("\x00ssh://board", "control"),
        ("ssh://bo\tard", "control"),
        ("ssh://bo%0Aard", "bo"),
        ("ssh://board\u202e", "control"),
        ("ssh://me%0A@board", "me"),
        ("ssh://board:70000", "board:70000"),
        ("ssh://board/home/me", "board/home/me"),
        ("ssh://board?pyton=/x", "'python'"),
        ("ssh://board?python", "python"),
        ("ssh://board?python=-c", "'-c'"),
        ("ssh://board?python=a%0Ab", "python"),
    ],
)
def test_invalid_address_is_refused(url: str, datum: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_address(url)
    assert datum in str(caught.value)
    assert "secret" not in str(caught.value)


def test_address_prints_without_python() -> None:
    assert str(parse_address("ssh://me@[fe80::1]:22?python=/x")) == "me@[fe80::1]:22"


# Files.


def test_example_file_sets_every_field() -> None:
    target = load_target(str(EXAMPLE))
    assert target.address == Address("edge-board.local", "pi", None, "runtime/bin/python")
    assert (target.batch_size, target.threads, target.latency_budget_ms) == ((1,), 4, 33)
    assert target.versions == {"onnxruntime": "1.20"}  # text, not the number 1.2
    assert all(getattr(target, one.name) not in (None, "", {}) for one in dataclasses.fields(Target))


@pytest.mark.parametrize(
    ("text", "datum"),
    [
        ("threds: 2", "'threads'"),
        ("name: x\nbatch_size: [0]", "t.yaml:2: batch_size"),
        ("batch_size: []", "batch_size"),
        ("batch_size: 8", "batch_size"),
        ("threads: 0", "threads"),
        ("threads: 3000000000", "threads"),
        ("batch_size: [1, 2000000]", "batch_size"),
        ("runtime: onnxruntme", "'onnxruntime'"),
        ("provider: gpu", "provider"),
        ("precision: int4", "int8"),
        ("scenario: singlestream", "'single-stream'"),
        ("duration: soon", "'soon'"),
        ("latency_budget_ms: -1", "latency_budget_ms"),
        ("latency_budget_ms: .nan", "latency_budget_ms"),
        ("latency_budget_ms: fast", "'fast'"),
        ("\nhost: board", "t.yaml:2: host"),
        ("host: ssh://-oX", "-oX"),
        ("python: /usr/bin/python3", "python"),
        ("host: ssh://a\nruntime: torch", "t.yaml:2: runtime"),
        ("versions: 3", "versions"),
        ("- a", "t.yaml"),
        ("name: [", "t.yaml"),
        ("host: ssh://a\nhost: ssh://b", "host"),
    ],
)
def test_file_error_names_key(workdir: Path, text: str, datum: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_target(write(workdir / "t.yaml", text))
    assert datum in str(caught.value)


def test_named_target_prefers_working_directory(workdir: Path) -> None:
    write(workdir / "config" / "compress" / "targets" / "board.yaml", "threads: 2")
    assert load_target("board") == Target(name="board", threads=2)
    write(workdir / "targets" / "board.yml", "threads: 3\nname: The board")
    assert load_target("board") == Target(name="The board", threads=3)


@pytest.mark.parametrize(
    ("name", "datum"), [("jetsn", "'jetson'"), ("../targets/jetson", "jetson"), ("x.yaml", "x.yaml")]
)
def test_unknown_target_is_refused(workdir: Path, name: str, datum: str) -> None:
    write(workdir / "targets" / "jetson.yaml", "threads: 2")
    with pytest.raises(UsageError) as caught:
        load_target(name)
    assert datum in str(caught.value)


def test_target_fills_missing_arguments(workdir: Path) -> None:
    path = write(
        workdir / "t.yaml", "runtime: openvino\nthreads: 3\nbatch_size: [2, 4]\nduration: 5s\nscenario: server"
    )
    assert fill_from_target(load_target(path)) == {
        "runtimes": ("openvino",), "threads": 3, "batch_sizes": (2, 4), "duration": 5.0, "scenarios": ("server",),
    }  # fmt: skip
    assert fill_from_target(None) == {}


# Budgets.


@pytest.mark.parametrize(
    ("timed", "percentile", "within"),
    [(latency(10), "p90", True), (latency(10.1), "p90", False), (latency(6, scenario="Server"), "p99", False)],
)
def test_budget_uses_percentile_of_scenario(timed: Latency, percentile: str, within: bool) -> None:
    fields = compare_with_budget(Target(name="board", latency_budget_ms=10), "net", timed)
    assert (fields["budget_percentile"], fields["within_budget"]) == (percentile, within)


def test_no_budget_compares_nothing() -> None:
    for target in (None, Target(name="board")):
        assert compare_with_budget(target, "net", latency(10)) == {}
    assert compare_with_budget(Target(latency_budget_ms=1), "net", latency(10, scenario="Offline")) == {}


def test_check_fails_only_over_budget() -> None:
    target = Target(name="board", latency_budget_ms=33)
    rows = [
        BenchmarkRow(**vars(latency(p90)), name=name, **compare_with_budget(target, name, latency(p90)))
        for name, p90 in (("a", 32), ("b", 40))
    ]
    BenchmarkResult(rows, {}, [], [], {}).raise_failures()
    BenchmarkResult(rows[:1], {}, [], [], {}).raise_failures(check_budget=True)
    with pytest.raises(CompressError, match=r"^b, "):
        BenchmarkResult(rows, {}, [], [], {}).raise_failures(check_budget=True)
    with pytest.raises(CompressError, match="LoadGen died"):
        BenchmarkResult(rows, {}, [], ["LoadGen died"], {}).raise_failures()


# This machine as a target.


def test_local_target_sets_options(workdir: Path) -> None:
    net = classifier(workdir / "net.onnx")
    lines = ["threads: 1", "duration: 0.05s", "batch_size: [2]", "scenario: quick", "precision: fp32"]
    path = write(workdir / "here.yaml", "\n".join([*lines, "latency_budget_ms: 1000000"]))
    (row,) = read_result(run("bench", net, "--target", path, "--check", "--json"))["results"]
    assert (row["threads"], row["batch_size"], row["within_budget"], row["sha256"]) == (1, 2, True, None)


@pytest.mark.parametrize(
    ("line", "datum"),
    [("precision: int8", "int8"), ("versions: {onnxruntime: '0.1'}", "0.1"), ("versions: {no-such: '1'}", "no-such")],
)
def test_local_target_must_match(workdir: Path, line: str, datum: str) -> None:
    net, path = classifier(workdir / "net.onnx"), write(workdir / "here.yaml", f"duration: 0.05s\nthreads: 1\n{line}\n")
    assert datum in read_error(run("bench", net, "--target", path), 1)


def test_check_needs_budget(workdir: Path) -> None:
    assert "--check" in read_error(run("bench", "net.onnx", "--check"), 2)
