"""Metrics, progress display, image grids and streams."""

from __future__ import annotations

import errno
import json
import os

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from compress.engine import logging
from compress.engine.accelerator import Accelerator
from compress.engine.logging import LogFaults, MetricsLogger, ProgressDisplay, save_image_grid
from compress.engine.stream import Stream
from compress.errors import CompressError


@pytest.fixture
def logger(tmp_path) -> MetricsLogger:
    return MetricsLogger(tmp_path, tensorboard=False)


def test_metrics_file_has_json_lines(logger):
    logger.log("train", 1, {"S": 0.5})
    logger.log("evaluation", 1, {"accuracy": 0.25})
    assert [json.loads(line) for line in logger.path.read_text().splitlines()] == [
        {"kind": "train", "step": 1, "S": 0.5},
        {"kind": "evaluation", "step": 1, "accuracy": 0.25},
    ]
    assert logger.read_records("evaluation") == [{"kind": "evaluation", "step": 1, "accuracy": 0.25}]


def test_metrics_truncated_to_checkpoint_size(logger):
    assert logger.sync() == 0
    logger.log("train", 5, {"S": 0.5})
    length = logger.sync()
    logger.log("evaluation", 5, {"accuracy": 0.25})
    logger.log("train", 10, {"S": 0.4})
    logger.truncate(length, 5)
    assert [line["step"] for line in logger.read_records("train")] == [5]
    assert logger.read_records("evaluation") == []
    logger.log("train", 10, {"S": 0.4})
    assert [line["step"] for line in logger.read_records("train")] == [5, 10]


def test_metrics_cut_line_is_dropped(logger):
    logger.log("train", 1, {"S": 0.5})
    with open(logger.path, "ab") as file:
        file.write(b'{"kind": "train", "step": 2, "S": 0.')
    assert [line["step"] for line in logger.read_records("train")] == [1]
    logger.truncate(10**6, 2)
    assert logger.path.read_text() == '{"kind": "train", "step": 1, "S": 0.5}\n'


def test_metrics_without_file_are_empty(logger):
    logger.truncate(0, 0)
    assert logger.read_records("train") == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_metrics_lost_to_a_disk_error_are_written_later(tmp_path, monkeypatch, number):
    def fail(path, content):
        with open(path, "ab") as file:
            file.write(content[:5])
            file.truncate(file.tell() - 5)
        raise OSError(number, os.strerror(number))

    messages = []
    logger = MetricsLogger(tmp_path, report=messages.append)
    logger.log("train", 1, {"S": 0.5})
    with monkeypatch.context() as patch:
        patch.setattr(logging, "append_bytes", fail)
        logger.log("train", 2, {"S": 0.5})
        logger.log("train", 3, {"S": 0.5})
        before = logger.sync()
    assert before == logger.path.stat().st_size
    assert sorted(message.partition(":")[0] for message in messages) == [
        str(tmp_path / "metrics.jsonl"), str(tmp_path / "tensorboard"),
    ]  # fmt: skip
    logger.log("train", 4, {"S": 0.5})
    assert [line["step"] for line in logger.read_records("train")] == [1, 2, 3, 4]


def test_append_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "log"
    logging.append_bytes(path, b"one\n")
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            logging.append_bytes(path, b"two\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"one\n"


def test_metrics_damaged_lines_are_named(tmp_path):
    messages = []
    logger = MetricsLogger(tmp_path, tensorboard=False, report=messages.append)
    logger.log("evaluation", 1, {"accuracy": 0.5, "seconds": 1.0})
    damaged = [
        b"\xff\xfe", b"{", b"[]", b'{"kind": "evaluation"}', b'{"kind": ["evaluation"], "step": 1}', b"[" * 100000,
        b'{"kind": "evaluation", "step": "2", "accuracy": 1}', b'{"kind": "evaluation", "step": 2, "accuracy": "x"}',
    ]  # fmt: skip
    with open(logger.path, "ab") as file:
        file.write(b"\n".join(damaged) + b"\n")
    logger.log("evaluation", 3, {"accuracy": 0.5, "seconds": 1.0})
    assert [line["step"] for line in logger.read_records("evaluation")] == [1, 3]
    assert len(messages) == 1
    assert "line 2" in messages[0]


def test_metrics_file_that_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(CompressError):
        MetricsLogger(tmp_path, tensorboard=False).truncate(0, 0)


def test_lost_image_is_reported_once(tmp_path):
    messages = []
    faults = LogFaults(messages.append)
    (tmp_path / "images").write_text("a file is in the way")
    for step in range(3):
        with faults.tolerate(tmp_path / "images"):
            save_image_grid(tmp_path / "images" / f"{step}.png", [torch.zeros(1, 3, 4, 4)])
    assert len(messages) == 1


def test_display_ignores_full_disk(monkeypatch):
    class FullDisk:
        def write(self, _):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def flush(self):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("sys.stderr", FullDisk())
    display = ProgressDisplay("mosaic")
    display.print_line("word")
    display.update(1.0, 1, "facts")


def test_tensorboard_receives_scalars(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, last in ((1, 4), (3, 6)):  # the second one resumes at step 3
        logger = MetricsLogger(tmp_path)
        logger.truncate(10**6, first - 1)
        for step in range(first, last):
            logger.log("train", step, {"S": step + first / 10, "words": "not a number"})
        logger.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["train/S"]
    points = {event.step: round(event.value, 3) for event in events.Scalars("train/S")}
    assert points == {1: 1.1, 2: 2.1, 3: 3.3, 4: 4.3, 5: 5.3}


def test_image_grid_shows_every_image(tmp_path):
    left, right = torch.zeros(12, 3, 8, 8), torch.ones(25, 3, 8, 8) * 0.5
    left[:, 0] = 1
    save_image_grid(tmp_path / "new" / "grid.png", [left, right])
    with Image.open(tmp_path / "new" / "grid.png") as image:
        assert image.mode == "RGB"
        pixels = np.asarray(image)
    red = (pixels == [255, 0, 0]).all(2).sum()
    gray = (pixels == [128, 128, 128]).all(2).sum()
    assert (red, gray) == (12 * 64 * 4, 25 * 64 * 4)


def test_image_grid_clamps_and_converts_values(tmp_path):
    save_image_grid(tmp_path / "grid.png", [torch.full((2, 3, 4, 4), 7.0).bfloat16(), torch.full((2, 3, 4, 4), -7.0)])
    with Image.open(tmp_path / "grid.png") as image:
        assert {tuple(p) for row in np.asarray(image) for p in row} == {(255, 255, 255), (0, 0, 0)}


def test_stream_is_function_of_position():
    accelerator = Accelerator(tiny.CPU, "32")
    source = tiny.InMemoryImages()
    one, other = (
        Stream(source.batches(4, seed=(1,), rank=0, world_size=1, augment=True), accelerator) for _ in range(2)
    )  # fmt: skip
    read = [next(one).clone() for _ in range(5)]
    other.load_state_dict({"position": 3})
    assert torch.equal(next(other), read[3])
    assert other.state_dict() == {"position": 4}
    assert other.targets is not None
    assert torch.equal(other.targets, source.labels[other.indices])
    assert one.wait_seconds > 0
    assert iter(one) is one


def test_display_writes_to_stderr_without_markup(capsys):
    with ProgressDisplay("mosaic") as display:
        display.print_line("[bold]data[/bold] [1, 2]: 3 files")
        display.update(0.5, 10, "not yet: lines come every 20 seconds")
        display.update(1.0, 20, "S 0.123")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "[bold]data[/bold] [1, 2]: 3 files" in captured.err
    assert "not yet" not in captured.err
    assert "mosaic  100%  step 20  S 0.123  0 s left" in captured.err


def test_display_quiet_prints_nothing(capsys):
    with ProgressDisplay("mosaic", quiet=True) as display:
        display.print_line("word")
        display.update(1.0, 1, "facts")
    assert capsys.readouterr() == ("", "")
