"""Checkpoints under truncation, flipped bits, zeros, full disks and leftovers."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
from pathlib import Path

import pytest
import tiny
import torch

import compress.files
from benchmarks.reliability.damaged import damage_file
from compress.engine import checkpoint
from compress.engine.accelerator import Accelerator
from compress.engine.checkpoint import CheckpointManager
from compress.engine.trainer import train
from compress.errors import CompressError

HERE = Accelerator(tiny.CPU, "32")


def state(step: int) -> tuple[dict, dict]:
    """Return (shared, per_rank) that differ by step."""
    generator = torch.Generator().manual_seed(step)
    shared = {"step": step, "weights": torch.randn(40, generator=generator), "metrics": {"accuracy": step / 10}}
    return shared, {"random": generator.get_state()[:64], "position": step}


@pytest.fixture
def messages() -> list[str]:
    return []


@pytest.fixture
def two(tmp_path, messages) -> CheckpointManager:
    """The checkpoints of steps 1 and 2."""
    made = CheckpointManager(tmp_path / "checkpoints", HERE, progress=messages.append)
    for step in (1, 2):
        made.save(step, *state(step))
    return made


def load_step(checkpoints: CheckpointManager) -> int:
    """Load a checkpoint, check that it is bit-identical to what was saved, and return its step."""
    loaded = checkpoints.load()
    assert loaded is not None
    step, shared, per_rank = loaded
    assert tiny.state_differences((shared, per_rank), state(step)) == []
    return step


@pytest.mark.parametrize(("fault", "times"), [("truncated", 500), ("bit flipped", 500), ("zeros", 200)])
@pytest.mark.parametrize("end", ["rank0.pt", "json"])
def test_checkpoint_damage_falls_back(two, messages, fault, times, end):
    (path,) = two.folder.glob(f"step-000000002.{end}")
    whole, rng = path.read_bytes(), random.Random(7)
    for _ in range(times):
        path.write_bytes(damage_file(whole, fault, rng))
        messages.clear()
        assert load_step(two) == 1
        assert len(messages) == 1
        assert str(two.folder / "step-000000002.json") in messages[0]
    path.write_bytes(whole)
    assert load_step(two) == 2


def test_checkpoint_missing_file_named(two, messages):
    (two.folder / "step-000000002.rank0.pt").unlink()
    assert load_step(two) == 1
    assert "step-000000002.rank0.pt" in messages[0]


def test_checkpoint_other_format_rejected(two, messages):
    path = two.folder / "step-000000002.json"
    content = json.loads(path.read_text()) | {"format": 99}
    path.write_text(json.dumps(checkpoint.add_hash(content)))
    assert load_step(two) == 1
    assert "99" in messages[0]


def test_checkpoint_all_corrupt_raises(two):
    for path in two.folder.glob("*.pt"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CompressError, match="--fresh"):
        two.load()


def test_checkpoint_none_loads_nothing(tmp_path):
    assert CheckpointManager(tmp_path / "nothing", HERE).load() is None
    assert CheckpointManager(tmp_path / "nothing", HERE).latest_manifest() is None


def test_checkpoint_other_world_size_raises(two):
    other = CheckpointManager(two.folder, Accelerator(tiny.CPU, "32", rank=0, world_size=2))
    with pytest.raises(CompressError, match="--devices 1"):
        other.load()


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_checkpoint_keeps_newest(tmp_path, keep):
    checkpoints = CheckpointManager(tmp_path, HERE, keep=keep)
    for step in range(1, 6):
        checkpoints.save(step, *state(step))
    assert checkpoints.saved_steps() == [1, 2, 3, 4, 5][-keep:]
    assert len(list(tmp_path.iterdir())) == 2 * keep
    assert checkpoints.latest_manifest() == tmp_path / "step-000000005.json"


def test_checkpoint_leftovers_are_removed(two):
    leftovers = [".step-000000003.rank0.pt.a1b2c3.tmp", "step-000000003.rank0.pt", ".step-000000003.json.x.tmp"]
    for name in leftovers:
        (two.folder / name).write_bytes(b"half a file")
    (two.folder / "notes.json").write_text("the user's own")
    assert load_step(two) == 2
    two.save(4, *state(4))
    assert not [name for name in leftovers if (two.folder / name).exists()]
    assert (two.folder / "notes.json").exists()
    assert two.saved_steps() == [2, 4]


def test_checkpoint_corrupt_keeps_previous_valid(tmp_path, messages):
    """Saves depend on time, so after a fall-back the next one can be at an earlier step than the corrupt one."""
    checkpoints = CheckpointManager(tmp_path, HERE, keep=2, progress=messages.append)
    for step in (10, 20):
        checkpoints.save(step, *state(step))
    (tmp_path / "step-000000020.rank0.pt").write_bytes(b"")
    assert load_step(checkpoints) == 10
    checkpoints.save(15, *state(15))
    assert checkpoints.saved_steps() == [10, 15]
    assert load_step(checkpoints) == 15


def test_checkpoint_same_step_saved_twice(tmp_path, monkeypatch):
    checkpoints = CheckpointManager(tmp_path, HERE, keep=1)
    shared, per_rank = state(1)
    checkpoints.save(1, shared, per_rank)
    for _ in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "write_json", dies)
            with pytest.raises(KeyboardInterrupt):
                checkpoints.save(1, {"step": 0}, per_rank)
        assert load_step(checkpoints) == 1
        checkpoints.save(1, shared, per_rank)
        assert load_step(checkpoints) == 1
        assert len(list(tmp_path.iterdir())) == 2


def dies(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("call", ["fsync", "replace", "write", "mkstemp"])
@pytest.mark.parametrize("nth", [0, 1])
def test_checkpoint_survives_full_disk(two, monkeypatch, call, nth):
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
        with pytest.raises(CompressError, match="the disk is full"):
            two.save(3, *state(3))
    assert two.saved_steps() == [1, 2]
    assert load_step(two) == 2
    assert not list(two.folder.glob(".*.tmp"))
    two.save(3, *state(3))
    assert load_step(two) == 3


def test_checkpoint_read_runs_no_code(two, tmp_path):
    """Code in a state file is rejected even if the hash is right."""
    trap = tmp_path / "trap"

    class Trap:
        def __reduce__(self):
            return (Path.touch, (trap,))

    path = two.folder / "step-000000002.rank0.pt"
    torch.save({"per_rank": Trap(), "shared": {}}, path)
    manifest = two.folder / "step-000000002.json"
    content = json.loads(manifest.read_text())
    content["files"][0]["sha256"] = compress.files.sha256(path)
    manifest.write_text(json.dumps(checkpoint.add_hash(content)))
    with pytest.raises(CompressError, match="rank0"):
        two.load()
    assert not trap.exists()


@pytest.mark.parametrize(
    "content",
    [
        {"step": 2}, {"format": 2}, {"format": 2, "files": 3}, {"format": 2, "files": [3]}, {"format": 2, "files": []},
        {"format": 2, "files": [{"name": "../secret", "sha256": "0"}]}, {"format": 2, "files": [{"name": "a"}]},
    ],
)  # fmt: skip
def test_checkpoint_of_odd_content_is_refused(two, content):
    """The hash of such a manifest is right."""
    (two.folder.parent / "secret").write_text("")
    (two.folder / "step-000000002.json").write_text(json.dumps(checkpoint.add_hash(content)))
    if content.get("files") == []:
        with pytest.raises(CompressError):
            two.load()
    else:
        assert load_step(two) == 1


def test_checkpoint_manifest_that_is_no_file_is_skipped(two, messages):
    path = two.folder / "step-000000002.json"
    path.unlink()
    os.mkfifo(path)
    assert load_step(two) == 1
    assert str(path) in messages[0]


def test_checkpoint_file_without_state_is_refused(two):
    path, manifest = two.folder / "step-000000002.rank0.pt", two.folder / "step-000000002.json"
    torch.save([1], path)
    content = json.loads(manifest.read_text())
    content["files"][0]["sha256"] = compress.files.sha256(path)
    manifest.write_text(json.dumps(checkpoint.add_hash(content)))
    with pytest.raises(CompressError, match="--fresh"):
        two.load()


def test_checkpoint_of_damaged_state_is_refused(two):
    """The hashes are those of the damaged file."""
    path, manifest = two.folder / "step-000000002.rank0.pt", two.folder / "step-000000002.json"
    whole, content, rng = path.read_bytes(), json.loads(manifest.read_text()), random.Random(0)
    for kind in ("truncated", "bit flipped", "zeros"):
        for _ in range(30):
            path.write_bytes(damage_file(whole, kind, rng))
            content["files"][0]["sha256"] = compress.files.sha256(path)
            manifest.write_text(json.dumps(checkpoint.add_hash(content)))
            with contextlib.suppress(CompressError):  # a flipped bit may change only a number
                two.load()


def test_checkpoint_old_files_that_cannot_be_removed_stay(two, messages, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refuse)
        two.save(3, *state(3))
    assert load_step(two) == 3
    assert len(messages) == 1
    two.save(4, *state(4))
    assert two.saved_steps() == [3, 4]


def test_checkpoint_of_another_method_is_refused(tmp_path):
    train(tiny.tiny_method("mosaic"), tiny.tiny_run(tmp_path, "mosaic", steps=1))
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(CompressError, match="--fresh"):
        train(tiny.tiny_method("fastdfkd"), tiny.tiny_run(tmp_path, "fastdfkd", steps=1))
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
