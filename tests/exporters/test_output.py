"""Output files: replaced as one, and errors of the disk."""

from __future__ import annotations

import errno
import os
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
