"""Where a measurement is for: addresses, files of targets, names, budgets."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click
import pytest
from invoking import answer, refusal, run
from other_machine import classifier

from compress.cli.options import duration
from compress.cli.targets import (
    Address,
    Target,
    judged,
    read_address,
    read_target,
    refuse_check_without_budget,
    refuse_over_budget,
    target_options,
    verdict,
)
from compress.errors import CompressError, UsageError
from profiles.latency import Latency

EXAMPLE = Path(__file__).parents[2] / "docs" / "targets" / "example.yaml"


def latency(p90: float, **changes: object) -> Latency:
    one = Latency(1.0, p90, 2 * p90, 1.0, 0.0, 1000.0, 1, 10, 1, "onnxruntime", "cpu", "fp32", None, None)
    return dataclasses.replace(one, **changes)


@pytest.fixture
def place(tmp_path: Path, monkeypatch) -> Path:
    """An empty working folder, and an empty one of the user's settings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


def written(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


# addresses


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
def test_an_address_has_host_user_port_and_python(url: str, expected: Address) -> None:
    assert read_address(url) == expected


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://board", "expected ssh://"),
        ("ssh://", "found the host ''"),
        ("ssh://-oProxyCommand=touch%20x", "found the host"),
        ("ssh://-l@board", "found the user '-l'"),
        ("ssh://%2DoProxyCommand@board", "found the user"),
        ("ssh://board;true", "found the host"),
        ("ssh://bo%20ard", "found the host"),
        ("ssh://me:secret@board", "password"),
        ("ssh://board:0", "port 0"),
        ("ssh://board:70000", "[Pp]ort"),
        ("ssh://board/home/me", "without a path"),
        ("ssh://board?pyton=/x", "did you mean 'python'"),
        ("ssh://board?python", "expected ssh://"),
        ("ssh://board?python=-c", "found '-c'"),
        ("ssh://board?python=a%0Ab", "expected the path of a Python"),
    ],
)
def test_what_is_no_address_is_refused_in_a_sentence(url: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        read_address(url)
    assert "secret" not in str(caught.value)


def test_the_address_of_a_machine_is_shown_without_its_python() -> None:
    assert str(read_address("ssh://me@[fe80::1]:22?python=/x")) == "me@[fe80::1]:22"


# files


def test_the_example_that_is_shipped_loads() -> None:
    target = read_target(str(EXAMPLE))
    assert target.address == Address("edge-board.local", "pi", None, "runtime/bin/python")
    assert (target.batch, target.threads, target.latency_budget_ms) == ((1,), 4, 33)
    assert target.versions == {"onnxruntime": "1.20"}  # as it is written, and not the number 1.2
    said = {one.name for one in dataclasses.fields(Target) if getattr(target, one.name) not in (None, "", {})}
    assert said == {one.name for one in dataclasses.fields(Target)}, "the example names every setting"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("threds: 2", r"t.yaml:1: threds: no such setting.*did you mean 'threads'"),
        ("name: x\nbatch: [0]", r"t.yaml:2: batch: expected a list of whole numbers > 0"),
        ("batch: []", r"t.yaml:1: batch: "),
        ("batch: 8", r"t.yaml:1: batch: found 8, expected a list"),
        ("threads: 0", r"t.yaml:1: threads: found 0"),
        ("runtime: onnxruntme", r"t.yaml:1: runtime: .*did you mean 'onnxruntime'"),
        ("provider: gpu", r"t.yaml:1: provider: "),
        ("precision: int4", r"t.yaml:1: precision: .*int8"),
        ("scenario: singlestream", r"t.yaml:1: scenario: .*'single-stream'"),
        ("duration: soon", r"t.yaml:1: duration: found 'soon', expected a duration"),
        ("latency_budget_ms: -1", r"t.yaml:1: latency_budget_ms: found -1"),
        ("latency_budget_ms: .nan", r"latency_budget_ms: "),
        ("latency_budget_ms: fast", r"t.yaml:1: latency_budget_ms: found 'fast', expected a number"),
        ("\nhost: board", r"t.yaml:2: host: 'board': expected ssh://"),
        ("host: ssh://-oX", r"t.yaml:1: host: .*found the host"),
        ("python: /usr/bin/python3", r"t.yaml:1: python: is of another machine"),
        ("host: ssh://a\nruntime: torch", r"t.yaml:2: runtime: found torch, which runs here only"),
        ("versions: 3", r"t.yaml:1: versions: found 3, expected a mapping"),
        ("- a", "found a list"),
        ("name: [", "not valid YAML"),
        ("host: ssh://a\nhost: ssh://b", "host"),
    ],
)
def test_an_error_in_a_file_names_its_line_and_the_nearest_key(place: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read_target(written(place / "t.yaml", text))


def test_a_file_that_is_not_there_is_wrong_usage(place: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_target("nothing.yaml")


# names


def test_a_name_is_looked_for_beside_the_work_and_then_among_the_users_own(place: Path) -> None:
    written(place / "config" / "compress" / "targets" / "board.yaml", "threads: 2")
    assert read_target("board") == Target(name="board", threads=2)
    written(place / "targets" / "board.yml", "threads: 3\nname: The board")
    assert read_target("board") == Target(name="The board", threads=3)


def test_an_unknown_name_says_where_it_was_looked_for_and_what_is_near(place: Path) -> None:
    written(place / "targets" / "jetson.yaml", "threads: 2")
    with pytest.raises(UsageError, match=r"no jetsn\.yaml in targets or .*did you mean 'jetson'"):
        read_target("jetsn")
    with pytest.raises(UsageError, match="no "):
        read_target("../targets/jetson")


# options


@click.command()
@click.option("--runtimes")
@click.option("--threads", type=int)
@click.option("--batch-size", default="1")
@click.option("--duration", default="1s", callback=duration)
@target_options
def settings(**found: object) -> None:
    click.echo(" ".join(f"{key}={found[key]}" for key in ("runtimes", "threads", "batch_size", "duration", "check")))


def said(*arguments: str) -> str:
    from click.testing import CliRunner

    return CliRunner().invoke(settings, arguments, catch_exceptions=False).stdout.strip()


def test_a_file_stands_in_for_options_that_are_not_given(place: Path) -> None:
    path = written(place / "t.yaml", "runtime: openvino\nthreads: 3\nbatch: [2, 4]\nduration: 5s")
    assert said() == "runtimes=None threads=None batch_size=1 duration=1.0 check=False"
    assert said("--target", path) == "runtimes=openvino threads=3 batch_size=2,4 duration=5.0 check=False"
    assert said("--threads", "1", "--target", path).startswith("runtimes=openvino threads=1 batch_size=2,4")


# budgets


def test_a_budget_is_held_against_the_90th_percentile_and_of_servers_the_99th() -> None:
    target = Target(name="board", latency_budget_ms=10)
    assert judged(target, latency(10)) == {
        "latency_budget_ms": 10, "budget_percentile": "p90", "holds_budget": True,
    }  # fmt: skip
    assert judged(target, latency(10.1))["holds_budget"] is False
    server = judged(target, latency(6, scenario="Server"))
    assert (server["budget_percentile"], server["holds_budget"]) == ("p99", False)


def test_without_a_budget_nothing_is_judged() -> None:
    for target in (None, Target(name="board")):
        assert judged(target, latency(10)) == {}
        assert verdict(target, [("net", latency(10))]) == []


def test_the_verdict_names_model_percentile_and_target() -> None:
    lines = verdict(Target(name="board", latency_budget_ms=33), [("a", latency(32)), ("b", latency(40))])
    assert lines == [
        "a, onnxruntime, batch 1: p90 32.000 ms holds the 33 ms of board",
        "b, onnxruntime, batch 1: p90 40.000 ms does NOT hold the 33 ms of board",
    ]


def test_check_fails_only_where_a_budget_is_not_held_and_needs_one() -> None:
    target = Target(name="board", latency_budget_ms=33)
    named = [("a", latency(32)), ("b", latency(40))]
    refuse_over_budget(target, named, check=False)
    refuse_over_budget(target, named[:1], check=True)
    with pytest.raises(CompressError, match=r"^b, .* NOT hold the 33 ms of board\.$"):
        refuse_over_budget(target, named, check=True)
    for without in (None, Target(name="board")):
        with pytest.raises(UsageError, match="--check needs a latency budget"):
            refuse_check_without_budget(without, check=True)
        refuse_check_without_budget(without, check=False)


# a target without a host is this machine


def test_this_machine_may_be_a_target_too(place: Path) -> None:
    net = classifier(place / "net.onnx")
    lines = ["threads: 1", "duration: 0.05s", "batch: [2]", "scenario: quick", "precision: fp32"]
    path = written(place / "here.yaml", "\n".join([*lines, "latency_budget_ms: 1000000"]))
    (row,) = answer(run("bench", net, "--target", path, "--check", "--json"))["results"]
    assert (row["threads"], row["batch_size"], row["holds_budget"]) == (1, 2, True)
    assert "sha256" not in row


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("precision: int8", "runs in fp32 in onnxruntime, expected int8, as the target here says"),
        ("versions: {onnxruntime: 0.1}", "here: found onnxruntime 1."),
        ("versions: {no-such-package: 1}", "here: found no-such-package not installed here, expected 1"),
    ],
)
def test_this_machine_is_refused_where_it_is_not_as_the_target_says(place: Path, line: str, said: str) -> None:
    net, path = classifier(place / "net.onnx"), written(place / "here.yaml", f"duration: 0.05s\nthreads: 1\n{line}\n")
    result = run("bench", net, "--target", path)
    assert (result.exit_code, result.stdout) == (1, "")
    assert said in result.stderr.splitlines()[-1]


def test_a_check_without_a_budget_is_wrong_usage(place: Path) -> None:
    assert "--check needs a latency budget" in refusal(run("bench", "net.onnx", "--check"), 2)
