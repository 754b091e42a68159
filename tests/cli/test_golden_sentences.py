"""Sentences that users read, word for word. Other tests assert on exit codes and data only."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from invoking import TEACHER, read_error, run

from compress.cli import COMMANDS

DISTILL = "distill --teacher T --ood embedded/photos --student wrn16_1 --steps 1"
#: command (T is the embedded teacher), exit code, sentence
ERRORS = [
    ("distil", 2, "no such command 'distil'; did you mean 'distill'? See `compress --help`."),
    ("qqq", 2, "no such command 'qqq'. See `compress --help`."),
    ("inspect nope.pt", 2, "nope.pt: no such file or directory; `compress models` lists the models with a name."),
    ("eval nope.onnx --data embedded/fashion", 2, "nope.onnx: no such file; expected an .onnx file."),
    ("report nope", 2, "nope: found no records.jsonl, expected the folder of a finished run or of a demo."),
    ("distill", 2, "teachers: found 0, expected 1 for method mosaic; give --teacher."),
    ("distill --teacher T", 2, "data.unlabeled: missing, but method mosaic requires it; give --ood."),
    ("distill --teacher T --ood texts --steps 1", 2,
     "texts: found no images at any depth, expected files such as .jpg or .png."),
    ("distill --recipe nope.yaml", 2, "nope.yaml: cannot be read (No such file or directory); give an existing file."),
    ("train --steps 1", 2, "data.labeled: missing, but method supervised requires it; give --data."),
    (f"{DISTILL} --method mosiac", 2,
     "method.name: --method: found 'mosiac'; did you mean 'mosaic'? See `compress methods`."),
    (f"{DISTILL} --set method.lcoal=1", 2, "--set: method.lcoal: no such setting; did you mean 'local'?"),
    (f"{DISTILL} --set local=1", 2,
     "--set local=1: expected the full path, section.setting=value; did you mean 'method.local'?"),
    (f"{DISTILL} --recipe my.yaml", 2, "my.yaml:2: method.lcoal: no such setting; did you mean 'local'?"),
    (f"{DISTILL} --epochs 1", 2,
     "training: found steps and epochs, expected one of --steps, --epochs and --time-limit."),
    (f"{DISTILL} --time-limit soon", 2,
     "Invalid value for '--time-limit': found 'soon', expected a duration such as 90s, 10m or 1.5h"),
    (f"{DISTILL} --device tpu", 2, "--device: found 'tpu', expected auto, cpu, cuda or cuda:N."),
    (f"{DISTILL} --resume --out new", 2, "new: found no run to resume; remove --resume to begin one."),
    (f"{DISTILL} --classes 7", 2, "embedded/fashion_wrn16_2: found 10 classes, expected 7; leave out --classes."),
    ("distill --teacher T --method dafl --epochs 2", 2,
     "training.epochs: found 2, but method dafl uses no images; give --steps or --time-limit."),
    ("inspect T --reference embedded/fashion", 2,
     "--reference, --patch-sizes, --features: need images to compare; give --ood too."),
    ("profile broken.onnx", 1,
     "broken.onnx: cannot be loaded as ONNX (not a complete protobuf message); the file is damaged or no ONNX file: "
     "export it again."),
    ("bench T --check", 2, "--check: needs a latency budget; give a --target FILE.yaml with latency_budget_ms."),
    ("bench T --target t.yaml", 2, "t.yaml:1: threds: no such setting; did you mean 'threads'?"),
    ("bench T --target ssh://a:b@c", 2,
     "the address contains a password; expected an ssh key, and an address without a password."),
    ("bench T --mlperf", 2,
     "--mlperf: found --scenario quick, expected multi-stream or offline or server or single-stream."),
    ("export T --precision fp8", 2,
     "Invalid value for '--precision': found 'fp8', expected some of fp32, fp16, bf16, int8; did you mean 'fp32'?"),
    ("export T --max-drop 1", 2,
     "--max-drop: has an effect below fp32 only; add a precision, such as --precision int8."),
    ("export T --workspace 2GiB", 2,
     "--workspace: has an effect on engines only; add --format tensorrt or tensorrt-rtx."),
    ("export T --format openvino --out a.onnx", 2, "output a.onnx: found suffix .onnx, expected .xml for openvino."),
    ("export T --batch 8:4:2", 2,
     "Invalid value for '--batch': found '8:4:2', expected ascending values, such as 1:8:64"),
    ("synthesize --teacher T --method kd", 2,
     "--method: found kd, which keeps no images; expected one of deepinversion, cmi, fastdfkd."),
    ("synthesize --teacher T --set method.adv=1", 2, "--set method.adv: has no effect without a student; remove it."),
    ("compare --teacher T --val embedded/fashion", 2,
     "training: found none of steps and time_limit, expected one: the budget of each run."),
    ("sweep nope", 2, "nope: cannot be read (No such file or directory); give an existing file."),
    ("models nope/", 2, "nope/: no model name begins with it; see `compress models`."),
]  # fmt: skip
#: command -> first line of its help
HELP = {
    "distill": "Train a small student from a teacher and unlabeled images.",
    "export": "Export MODEL in every requested format and precision.",
    "bench": "Measure latency and throughput of MODELs (directories, checkpoints, exported files or architectures).",
    "doctor": "Check versions, devices and optional packages. Exit code 1 if a core package is missing or broken.",
}


@pytest.fixture
def workdir(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "texts").mkdir()
    for name, text in (("my.yaml", "method:\n  lcoal: 1\n"), ("t.yaml", "threds: 2"), ("broken.onnx", "no\n")):
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(("command", "code", "sentence"), ERRORS, ids=[command for command, _, _ in ERRORS])
def test_error_sentence_is_unchanged(workdir, command: str, code: int, sentence: str) -> None:
    arguments = [TEACHER if word == "T" else word for word in shlex.split(command)]
    assert read_error(run(*arguments), code) == sentence


@pytest.mark.parametrize("command", HELP)
def test_help_begins_as_before(command: str) -> None:
    text = " ".join(run(command, "--help").stdout.split())
    assert HELP[command] in text


def test_command_list_has_one_line_each() -> None:
    text = run("--help").stdout
    assert all(f"  {name}" in text for name in COMMANDS)
