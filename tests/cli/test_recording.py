"""`--record DIR`: what is measured of a model and of its files becomes one model in its forms, whoever measured it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from invoking import TEACHER, answer, run

from profiles.record import read_lines, read_records


@pytest.fixture(scope="module")
def measured(tmp_path_factory, clothes) -> Path:
    """The shipped teacher, exported, timed, scored and counted into one folder."""
    folder = tmp_path_factory.mktemp("measured")
    file = folder / "teacher.onnx"
    answer(run("export", TEACHER, "--images", clothes, "--exporter", "torchscript", "--out", file, "--record", folder,
               "--json"))  # fmt: skip
    for model in (TEACHER, file):
        answer(run("eval", model, "--data", clothes, "--record", folder, "--json"))
    answer(run("bench", file, "--duration", "0.05s", "--threads", 1, "--record", folder, "--json"))
    answer(run("profile", TEACHER, "--record", folder, "--json"))
    return folder


def test_network_and_file_are_two_forms_of_one_model(measured: Path):
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
    assert latency.first_ms


def test_each_measurement_is_a_line_of_its_own(measured: Path):
    lines = read_lines(measured)
    assert len(lines) == 5
    assert [bool(line.export) for line in lines] == [True, False, False, False, False]
    assert all(line.at and line.versions["torch"] for line in lines)


def test_the_report_says_what_they_say_together(measured: Path, tmp_path: Path):
    found = answer(run("report", measured, "--out", tmp_path, "--max-latency", 1e6, "--json"))
    assert found["models"] == 2
    assert found["best"] == "wrn16_2 onnx fp32", "the network was not timed, so it is not known to hold the budget"
    assert found["budget"]["latency_ms"] == 1e6
    assert (tmp_path / "report.csv").read_text().count("\n") == 3


def test_other_weights_of_the_same_network_are_another_model(measured: Path, first_run, clothes, tmp_path: Path):
    """A student that is measured into a folder which is not its run's."""
    for model in (first_run[0] / "best", TEACHER, "wrn16_1"):
        answer(run("profile", model, "--record", tmp_path, "--json"))
    names = [record.name for record in read_records(tmp_path)]
    assert [name.split()[0] for name in names] == ["wrn16_1", "wrn16_2", "wrn16_1"]
    assert len(set(names)) == 3


def test_what_lies_in_a_run_within_the_folder_goes_to_that_run(first_run, clothes):
    folder, _ = first_run
    before = len(read_lines(folder))
    answer(run("eval", folder / "best", "--data", clothes, "--record", folder.parent, "--json"))
    assert len(read_lines(folder)) == before + 1
    assert not (folder.parent / "records.jsonl").exists()


def test_what_lies_in_a_run_is_its_student(first_run, clothes):
    folder, _ = first_run
    before, lines = read_records(folder), len(read_lines(folder))
    answer(run("eval", folder / "best", "--data", clothes, "--record", folder, "--json"))
    after = read_records(folder)
    assert [record.name for record in after] == [record.name for record in before]
    assert after[-1].run["steps"] == before[-1].run["steps"]
    assert len(read_lines(folder)) == lines + 1


def test_two_files_that_would_be_called_the_same_are_called_in_full(measured: Path, tmp_path: Path):
    for name in "ab":
        (tmp_path / name / "files").mkdir(parents=True)
        shutil.copy(measured / "teacher.onnx", tmp_path / name / "files")
    files = [tmp_path / name / "files" / "teacher.onnx" for name in "ab"]
    found = run("bench", *files, "--duration", "0.05s")
    assert all(str(file) in found.output for file in files)
