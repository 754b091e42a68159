"""Atomic writes, locks and safe text."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from compress.errors import CompressError, UsageError, first_line
from compress.files import (
    LockHeldError,
    WriteError,
    append_bytes,
    atomic_write,
    file_lock,
    is_locked,
    require_inside,
    require_regular_file,
    sanitize,
    sanitize_lines,
    write_bytes,
    write_error,
    write_text,
)


def test_atomic_write_replaces_complete_files_only(tmp_path) -> None:
    path = tmp_path / "sub" / "a.txt"
    write_text(path, "old")
    with pytest.raises(TypeError), atomic_write(path) as file:
        file.write("not bytes")  # type: ignore[arg-type]
    assert path.read_text() == "old"
    with atomic_write(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [entry.name for entry in path.parent.iterdir()] == ["a.txt"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~current_umask()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_atomic_write_names_what_fails(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CompressError, match=r"a.txt"):
        write_text(tmp_path / "file" / "a.txt", "x")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES])
def test_write_errors_have_place_and_space(tmp_path, number) -> None:
    path = tmp_path / "missing" / "a.txt"
    error = write_error(path, OSError(number, os.strerror(number)), 12_345_678)
    assert isinstance(error, WriteError)
    assert error.exit_code == 1
    assert str(path) in str(error)
    if number in (errno.ENOSPC, errno.EDQUOT):
        assert "12.3 MB" in str(error)


@pytest.mark.parametrize("call", ["mkdir", "open", "chmod", "fsync", "replace"])
@pytest.mark.parametrize("nth", [0, 1])
def test_atomic_write_survives_each_error(tmp_path, monkeypatch, call, nth) -> None:
    path, left, real = tmp_path / "sub" / "a.txt", nth, getattr(os, call)

    def fail(*args, **options):
        nonlocal left
        left -= 1
        if left == -1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(*args, **options)

    monkeypatch.setattr(os, call, fail)
    for content in ("old", "new"):
        with contextlib.suppress(WriteError):
            write_text(path, content)
    monkeypatch.undo()
    assert path.read_text() in ("old", "new")
    assert [entry.name for entry in path.parent.iterdir()] == ["a.txt"]


def test_new_directories_are_synced_into_their_parents(tmp_path, monkeypatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.readlink(f"/proc/self/fd/{handle}")))
    write_text(tmp_path / "run" / "checkpoints" / "a.txt", "x")
    assert {str(tmp_path), str(tmp_path / "run"), str(tmp_path / "run" / "checkpoints")} <= set(synced)


@pytest.fixture
def small_disk(tmp_path):
    """A real disk of 256 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k,nr_inodes=20", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small disk is not permitted")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_small_disk_becomes_full(small_disk) -> None:
    write_text(small_disk / "a", "old")
    with pytest.raises(WriteError, match=r"0\.3 MB free, expected 1\.0 MB"):
        write_bytes(small_disk / "a", bytes(1_000_000))
    with pytest.raises(OSError, match="No space left"):
        append_bytes(small_disk / "a", bytes(1_000_000))
    assert (small_disk / "a").read_text() == "old"
    with contextlib.suppress(WriteError):
        for number in range(30):
            write_text(small_disk / str(number), "")
    with pytest.raises(WriteError, match="inodes"):
        write_text(small_disk / "one more", "")


def test_file_lock_names_its_holder(tmp_path) -> None:
    path = tmp_path / ".lock"
    assert not is_locked(path)
    with file_lock(path) as locked:
        assert locked
        assert is_locked(path)
        with pytest.raises(LockHeldError) as caught, file_lock(path):
            pass
        assert caught.value.holder == str(os.getpid())
    assert not is_locked(path)


def test_file_lock_waits_for_its_holder(tmp_path) -> None:
    path, waiting, order = tmp_path / ".lock", threading.Event(), []

    def work() -> None:
        with file_lock(path, wait=waiting.set):
            order.append("second")

    with file_lock(path):
        thread = threading.Thread(target=work)
        thread.start()
        assert waiting.wait(10)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_file_lock_ends_with_its_process(tmp_path) -> None:
    code = "import sys, os; from compress.files import file_lock\nwith file_lock(sys.argv[1]): os._exit(3)"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / ".lock")]).returncode == 3
    with file_lock(tmp_path / ".lock"):
        pass


def test_texts_for_terminals() -> None:
    assert sanitize("a\x1b[31mb\nc") == "a?[31mb?c"
    assert sanitize("\u202ex\u200b\ud800\u00a0é語") == "?x?? é語"
    assert sanitize_lines("a\r\nb\x9b") == "a?\nb?"
    assert first_line(ValueError("\n\n \x1b[31mone\x1b[0m\ntwo")) == "one"
    assert first_line(ValueError()) == "ValueError"


def test_paths_out_of_a_folder_are_refused(tmp_path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "in" / "a")
    (tmp_path / "in" / "out").symlink_to(tmp_path)
    assert require_inside(tmp_path / "in", Path("link")) == (tmp_path / "in" / "a").resolve()
    for name in ("../b", "/etc/passwd", "out/b", "\0"):
        with pytest.raises(UsageError):
            require_inside(tmp_path / "in", Path(name))


def test_only_regular_files_are_accepted(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    for name in ("file", "link"):
        assert require_regular_file(tmp_path / name) == tmp_path / name
    for name in ("zero", "loop", "pipe", "absent", ".", "nul\0"):
        with pytest.raises(UsageError):
            require_regular_file(tmp_path / name)
