"""`--record DIR`: measurements of a network and of its files become one model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from invoking import TEACHER, read_result, run

from profiles.records import read_measurements, read_records


@pytest.fixture(scope="module")
def measured(tmp_path_factory, clothes) -> Path:
    """The embedded teacher, exported, timed, scored and counted into one directory."""
    folder = tmp_path_factory.mktemp("measured")
    file = folder / "teacher.onnx"
    export = ["--images", clothes, "--exporter", "torchscript", "--out", file, "--record", folder, "--json"]
    read_result(run("export", TEACHER, *export))
    for model in (TEACHER, file):
        read_result(run("eval", model, "--data", clothes, "--record", folder, "--json"))
    read_result(run("bench", file, "--duration", "0.05s", "--threads", 1, "--record", folder, "--json"))
    read_result(run("profile", TEACHER, "--record", folder, "--json"))
    return folder


def test_network_and_file_are_one_model(measured: Path):
    network, file = sorted(read_records(measured), key=lambda record: record.format)
    assert (network.name, network.format, network.precision) == ("wrn16_2", "", "fp32")
    assert (file.name, file.format, file.precision) == ("wrn16_2", "onnx", "fp32")
    assert network.metrics["accuracy"] == file.metrics["accuracy"] > 0.5
    assert (network.macs, network.params) == (101_303_552, 691_386)
    assert network.activations
    assert file.size_bytes == (measured / "teacher.onnx").stat().st_size
    assert file.export
    assert file.export["parity"]["top1_agreement"] == 1
    (latency,) = file.latencies
    assert (latency.runtime, latency.threads) == ("onnxruntime", 1)
    assert latency.machine
    assert latency.first_call_ms


def test_each_measurement_is_one_line(measured: Path):
    lines = read_measurements(measured)
    assert len(lines) == 5
    assert [bool(line.export) for line in lines] == [True, False, False, False, False]
    assert all(line.at and line.versions["torch"] for line in lines)


def test_report_merges_recorded_lines(measured: Path, tmp_path: Path):
    found = read_result(run("report", measured, "--out", tmp_path, "--max-latency", 1e6, "--json"))
    assert found["models"] == 2
    assert found["best"] == "wrn16_2 onnx fp32"
    assert found["limits"]["latency_ms"] == 1e6
    assert (tmp_path / "report.csv").read_text().count("\n") == 3


def test_other_weights_are_another_model(measured: Path, first_run, clothes, tmp_path: Path):
    for model in (first_run[0] / "best", TEACHER, "wrn16_1"):
        read_result(run("profile", model, "--record", tmp_path, "--json"))
    names = [record.name for record in read_records(tmp_path)]
    assert [name.split()[0] for name in names] == ["wrn16_1", "wrn16_2", "wrn16_1"]
    assert len(set(names)) == 3


def test_record_goes_to_enclosing_run(first_run, clothes):
    folder, _ = first_run
    before = len(read_measurements(folder))
    read_result(run("eval", folder / "best", "--data", clothes, "--record", folder.parent, "--json"))
    assert len(read_measurements(folder)) == before + 1
    assert not (folder.parent / "records.jsonl").exists()


def test_model_in_run_is_its_student(first_run, clothes):
    folder, _ = first_run
    before, lines = read_records(folder), len(read_measurements(folder))
    read_result(run("eval", folder / "best", "--data", clothes, "--record", folder, "--json"))
    after = read_records(folder)
    assert [record.name for record in after] == [record.name for record in before]
    assert after[-1].run["steps"] == before[-1].run["steps"]
    assert len(read_measurements(folder)) == lines + 1


def test_equal_names_are_printed_in_full(measured: Path, tmp_path: Path):
    for name in "ab":
        (tmp_path / name / "files").mkdir(parents=True)
        shutil.copy(measured / "teacher.onnx", tmp_path / name / "files")
    files = [tmp_path / name / "files" / "teacher.onnx" for name in "ab"]
    found = run("bench", *files, "--duration", "0.05s")
    assert all(str(file) in found.output for file in files)
