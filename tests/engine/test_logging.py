"""What a run leaves for people: the journal, the display, the pictures; and the streams it reads."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from compress.engine.display import Display
from compress.engine.gallery import save_grid
from compress.engine.journal import Journal
from compress.engine.place import Place
from compress.engine.stream import Stream


@pytest.fixture
def journal(tmp_path) -> Journal:
    return Journal(tmp_path, tensorboard=False)


def test_a_journal_is_one_json_object_a_line(journal):
    journal.write("train", 1, {"S": 0.5})
    journal.write("evaluation", 1, {"accuracy": 0.25})
    assert [json.loads(line) for line in journal.path.read_text().splitlines()] == [
        {"kind": "train", "step": 1, "S": 0.5},
        {"kind": "evaluation", "step": 1, "accuracy": 0.25},
    ]
    assert journal.lines("evaluation") == [{"kind": "evaluation", "step": 1, "accuracy": 0.25}]


def test_a_journal_is_rewound_to_what_a_checkpoint_remembers(journal):
    assert journal.length == 0
    journal.write("train", 5, {"S": 0.5})
    length = journal.length
    journal.write("evaluation", 5, {"accuracy": 0.25})
    journal.write("train", 10, {"S": 0.4})
    journal.rewind(length, 5)
    assert [line["step"] for line in journal.lines("train")] == [5]
    assert journal.lines("evaluation") == []
    journal.write("train", 10, {"S": 0.4})
    assert [line["step"] for line in journal.lines("train")] == [5, 10]


def test_a_line_that_was_cut_off_is_not_read_and_not_kept(journal):
    journal.write("train", 1, {"S": 0.5})
    with open(journal.path, "ab") as file:
        file.write(b'{"kind": "train", "step": 2, "S": 0.')
    assert [line["step"] for line in journal.lines("train")] == [1]
    journal.rewind(10**6, 2)
    assert journal.path.read_text() == '{"kind": "train", "step": 1, "S": 0.5}\n'


def test_a_journal_that_is_not_there_has_no_lines_and_nothing_to_rewind(journal):
    journal.rewind(0, 0)
    assert journal.lines("train") == []


def test_tensorboard_gets_the_numbers_where_it_is_installed(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, last in ((1, 4), (3, 6)):  # the second begins anew from step 3, as a resumed run does
        journal = Journal(tmp_path)
        journal.rewind(10**6, first - 1)
        for step in range(first, last):
            journal.write("train", step, {"S": step + first / 10, "words": "not a number"})
        journal.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["train/S"]
    points = {event.step: round(event.value, 3) for event in events.Scalars("train/S")}
    assert points == {1: 1.1, 2: 2.1, 3: 3.3, 4: 4.3, 5: 5.3}


def test_the_grid_shows_every_image_as_it_is(tmp_path):
    left, right = torch.zeros(12, 3, 8, 8), torch.ones(25, 3, 8, 8) * 0.5
    left[:, 0] = 1
    save_grid(tmp_path / "new" / "grid.png", [left, right])
    with Image.open(tmp_path / "new" / "grid.png") as image:
        assert image.mode == "RGB"
        pixels = np.asarray(image)
    red = (pixels == [255, 0, 0]).all(2).sum()
    grey = (pixels == [128, 128, 128]).all(2).sum()
    assert (red, grey) == (12 * 64 * 4, 25 * 64 * 4), "all of them, twice as large a side"


def test_values_outside_0_to_1_are_cut_and_half_precision_is_drawn(tmp_path):
    save_grid(tmp_path / "grid.png", [torch.full((2, 3, 4, 4), 7.0).bfloat16(), torch.full((2, 3, 4, 4), -7.0)])
    with Image.open(tmp_path / "grid.png") as image:
        assert {tuple(p) for row in np.asarray(image) for p in row} == {(255, 255, 255), (0, 0, 0)}


def test_a_stream_is_a_pure_function_of_its_position():
    place = Place(tiny.CPU, "32")
    source = tiny.Pictures()
    one, other = (
        Stream(source.batches(4, seed=(1,), rank=0, world=1, augment=True), place) for _ in range(2)
    )  # fmt: skip
    read = [next(one).clone() for _ in range(5)]
    other.load_state_dict({"position": 3})
    assert torch.equal(next(other), read[3])
    assert other.state_dict() == {"position": 4}
    assert other.targets is not None
    assert torch.equal(other.targets, source.labels[other.indices])
    assert one.waited > 0
    assert iter(one) is one


def test_a_display_writes_to_stderr_and_takes_brackets_as_they_are(capsys):
    with Display("mosaic") as display:
        display.say("[bold]data[/bold] [1, 2]: 3 files")
        display.update(0.5, 10, "not yet: lines come every 20 seconds")
        display.update(1.0, 20, "S 0.123")
    told = capsys.readouterr()
    assert told.out == ""
    assert "[bold]data[/bold] [1, 2]: 3 files" in told.err
    assert "not yet" not in told.err
    assert "mosaic  100%  step 20  S 0.123  0 s left" in told.err


def test_a_quiet_display_says_nothing(capsys):
    with Display("mosaic", quiet=True) as display:
        display.say("word")
        display.update(1.0, 1, "facts")
    assert capsys.readouterr() == ("", "")
