"""Checkpoints under truncation, flipped bits, zeros, full disks and leftovers."""

from __future__ import annotations

import errno
import json
import os
import random
from pathlib import Path

import pytest
import tiny
import torch

import compress.files
from compress.engine import checkpoint
from compress.engine.checkpoint import Checkpoints
from compress.engine.place import Place
from compress.errors import CompressError

HERE = Place(tiny.CPU, "32")


def state(step: int) -> tuple[dict, dict]:
    """(shared, own) that differ from step to step."""
    generator = torch.Generator().manual_seed(step)
    shared = {"step": step, "weights": torch.randn(40, generator=generator), "metrics": {"accuracy": step / 10}}
    return shared, {"random": generator.get_state()[:64], "position": step}


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def two(tmp_path, said) -> Checkpoints:
    """The checkpoints of steps 1 and 2."""
    made = Checkpoints(tmp_path / "checkpoints", HERE, say=said.append)
    for step in (1, 2):
        made.save(step, *state(step))
    return made


def loaded_step(checkpoints: Checkpoints) -> int:
    """The step of what is loaded, which is all that was saved at that step, to the bit."""
    found = checkpoints.load()
    assert found is not None
    step, shared, own = found
    assert tiny.differences((shared, own), state(step)) == []
    return step


def truncated(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def flipped(content: bytes, rng: random.Random) -> bytes:
    at, bit = rng.randrange(len(content)), rng.randrange(8)
    return content[:at] + bytes([content[at] ^ (1 << bit)]) + content[at + 1 :]


def zeroed(content: bytes, rng: random.Random) -> bytes:
    at, length = rng.randrange(len(content)), rng.randrange(1, 200)
    run = content[at : at + length]
    return content[:at] + bytes(len(run)) + content[at + len(run) :]


@pytest.mark.parametrize(("fault", "times"), [(truncated, 500), (flipped, 500), (zeroed, 200)])
@pytest.mark.parametrize("end", ["rank0.pt", "json"])
def test_every_damage_to_a_file_is_found_and_the_checkpoint_before_is_taken(two, said, fault, times, end):
    (path,) = two.folder.glob(f"step-000000002.{end}")
    whole, rng = path.read_bytes(), random.Random(7)
    for _ in range(times):
        damaged = fault(whole, rng)
        if damaged == whole or (end == "json" and damaged.strip() == whole.strip()):
            continue  # zeros over zeros, or the line break at the end of the manifest: nothing is lost
        path.write_bytes(damaged)
        said.clear()
        assert loaded_step(two) == 1
        assert len(said) == 1
        assert said[0].startswith(str(two.folder / "step-000000002.json"))
        assert said[0].endswith("falling back to the checkpoint before it.")
    path.write_bytes(whole)
    assert loaded_step(two) == 2


def test_a_missing_file_is_named(two, said):
    (two.folder / "step-000000002.rank0.pt").unlink()
    assert loaded_step(two) == 1
    assert "step-000000002.rank0.pt is missing" in said[0]


def test_a_manifest_of_another_format_is_not_believed(two, said):
    path = two.folder / "step-000000002.json"
    content = json.loads(path.read_text()) | {"format": 99}
    path.write_text(json.dumps(checkpoint.sealed(content)))
    assert loaded_step(two) == 1
    assert "found format 99, expected 1" in said[0]


def test_where_every_checkpoint_is_broken_the_run_does_not_begin_anew_in_silence(two):
    for path in two.folder.glob("*.pt"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CompressError, match=r"all 2 checkpoints are broken; start again with --fresh"):
        two.load()


def test_where_there_is_none_nothing_is_loaded(tmp_path):
    assert Checkpoints(tmp_path / "nothing", HERE).load() is None
    assert Checkpoints(tmp_path / "nothing", HERE).last() is None


def test_another_number_of_processes_is_refused_with_the_one_that_would_do(two):
    other = Checkpoints(two.folder, Place(tiny.CPU, "32", rank=0, world=2))
    with pytest.raises(CompressError, match=r"saved by 1 processes, resumed by 2; use --devices 1"):
        other.load()


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_stay(tmp_path, keep):
    checkpoints = Checkpoints(tmp_path, HERE, keep=keep)
    for step in range(1, 6):
        checkpoints.save(step, *state(step))
    assert checkpoints.steps() == [1, 2, 3, 4, 5][-keep:]
    assert len(list(tmp_path.iterdir())) == 2 * keep
    assert checkpoints.last() == tmp_path / "step-000000005.json"


def test_what_a_kill_left_behind_is_ignored_and_goes_with_the_next_saving(two):
    leftovers = [".step-000000003.rank0.pt.a1b2c3.tmp", "step-000000003.rank0.pt", ".step-000000003.json.x.tmp"]
    for name in leftovers:
        (two.folder / name).write_bytes(b"half a file")
    (two.folder / "notes.json").write_text("the user's own")
    assert loaded_step(two) == 2
    two.save(4, *state(4))
    assert not [name for name in leftovers if (two.folder / name).exists()]
    assert (two.folder / "notes.json").exists()
    assert two.steps() == [2, 4]


def test_a_broken_checkpoint_does_not_push_out_the_good_one_before_it(tmp_path, said):
    """Time decides when is saved, so after a fall-back the next saving may come at a step before the broken one's."""
    checkpoints = Checkpoints(tmp_path, HERE, keep=2, say=said.append)
    for step in (10, 20):
        checkpoints.save(step, *state(step))
    (tmp_path / "step-000000020.rank0.pt").write_bytes(b"")
    assert loaded_step(checkpoints) == 10
    checkpoints.save(15, *state(15))
    assert checkpoints.steps() == [10, 15]
    assert loaded_step(checkpoints) == 15


def test_saving_the_same_step_again_leaves_the_first_whole_until_the_second_is(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, HERE, keep=1)
    shared, own = state(1)
    checkpoints.save(1, shared, own)
    for _ in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "write_json", dies)
            with pytest.raises(KeyboardInterrupt):
                checkpoints.save(1, {"step": 0}, own)
        assert loaded_step(checkpoints) == 1
        checkpoints.save(1, shared, own)
        assert loaded_step(checkpoints) == 1
        assert len(list(tmp_path.iterdir())) == 2


def dies(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("call", ["fsync", "replace", "write", "mkstemp"])
@pytest.mark.parametrize("nth", [0, 1])
def test_a_full_disk_leaves_the_checkpoints_that_there_are(two, monkeypatch, call, nth):
    """ENOSPC at each call of the state's file (0) and of the manifest's (1)."""
    left = {"fsync": 2 * nth, "replace": nth, "write": nth, "mkstemp": nth}[call]

    def full(real):
        def called(*args, **options):
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*args, **options)

        return called

    class Full:
        def __init__(self, file):
            self.file, self.write = file, full(file.write)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

    fdopen = os.fdopen
    with monkeypatch.context() as patch:
        if call == "write":
            patch.setattr(compress.files.os, "fdopen", lambda *a: Full(fdopen(*a)))
            left = nth
        elif call == "mkstemp":
            patch.setattr(compress.files.tempfile, "mkstemp", full(compress.files.tempfile.mkstemp))
        else:
            patch.setattr(compress.files.os, call, full(getattr(os, call)))
        with pytest.raises(CompressError, match="the disk is full; what was there before is intact"):
            two.save(3, *state(3))
    assert two.steps() == [1, 2]
    assert loaded_step(two) == 2
    assert not list(two.folder.glob(".*.tmp"))
    two.save(3, *state(3))
    assert loaded_step(two) == 3


def test_checkpoints_are_read_without_running_anything_of_theirs(two, tmp_path):
    """A state with code in it is refused even where its hash is right: that proves only that it was not damaged."""
    trap = tmp_path / "trap"

    class Trap:
        def __reduce__(self):
            return (Path.touch, (trap,))

    path = two.folder / "step-000000002.rank0.pt"
    torch.save({"own": Trap(), "shared": {}}, path)
    manifest = two.folder / "step-000000002.json"
    content = json.loads(manifest.read_text())
    content["files"][0]["sha256"] = compress.files.sha256(path)
    manifest.write_text(json.dumps(checkpoint.sealed(content)))
    with pytest.raises(CompressError, match="holds more than tensors and values"):
        two.load()
    assert not trap.exists()
