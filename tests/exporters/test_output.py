"""Output files: replaced as one, and errors of the disk."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from compress.errors import UsageError
from exporters.errors import UnwritableError
from exporters.output import commit_output, temporary_output


class Killed(BaseException):
    pass


def write_pair(path: Path, text: str) -> None:
    """Write a file with a companion."""
    with temporary_output(path) as draft:
        draft.write_text(text)
        draft.with_suffix(".bin").write_text(text)
        commit_output(draft, path)


def test_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError), temporary_output(tmp_path / "\udcff" / "net.onnx"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_killed_export_leaves_no_mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.xml"
    for at in range(12):
        write_pair(path, "old")
        calls = iter(range(100))

        def watch(call, at=at, calls=calls):
            def watched(*args, **options):
                if next(calls) == at:
                    raise Killed
                return call(*args, **options)

            return watched

        with monkeypatch.context() as patch:
            for name in ("fsync", "replace", "chmod"):
                patch.setattr(os, name, watch(getattr(os, name)))
            try:
                write_pair(path, "new")
            except Killed:
                is_killed = True
            else:
                is_killed = False
        if path.exists():
            assert path.read_text() == path.with_suffix(".bin").read_text()
    assert not is_killed
    assert path.read_text() == "new"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model.bin", "model.xml"]


def fill_disk(path: Path, error: OSError) -> None:
    with temporary_output(path) as draft:
        draft.write_bytes(bytes(1000))
        raise error


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_full_disk_keeps_old_file(tmp_path: Path, number: int) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("old")
    with pytest.raises(UnwritableError, match=str(path)):
        fill_disk(path, OSError(number, os.strerror(number)))
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.onnx"]


def test_drafts_of_killed_processes_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    code = f"""
import os, sys, time
from pathlib import Path
from exporters.output import temporary_output
with temporary_output(Path({str(path)!r})) as draft:
    draft.write_text("half")
    print(draft.parent.name, flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        draft = tmp_path / process.stdout.readline().strip()
        foreign = [tmp_path / ".net.onnx.backup", tmp_path / ".net.onnx.abcd1234.draft.txt", tmp_path / ".onnx"]
        for folder in foreign:
            folder.mkdir()
        for folder in (draft, *foreign):
            os.utime(folder, (0, 0))
        with temporary_output(path):
            assert draft.exists(), "its process still writes"
        process.kill()
    with temporary_output(path):
        assert not draft.exists()
    assert all(folder.exists() for folder in foreign)


def test_simultaneous_exports_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "model.xml"
    code = f"""
import sys
from pathlib import Path
from exporters.output import commit_output, temporary_output
for number in range(40):
    with temporary_output(Path({str(path)!r})) as draft:
        draft.write_text(sys.argv[1] + str(number))
        draft.with_suffix(".bin").write_text(sys.argv[1] + str(number))
        commit_output(draft, Path({str(path)!r}))
"""
    processes = [subprocess.Popen([sys.executable, "-c", code, name]) for name in "ab"]
    assert [process.wait() for process in processes] == [0, 0]
    assert path.read_text() == path.with_suffix(".bin").read_text()
    assert path.read_text()[1:] == "39"
