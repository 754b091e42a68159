"""Atomic writes, locks and safe text."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from compress.errors import CompressError, UsageError, first_line
from compress.files import (
    LockHeldError,
    atomic_write,
    file_lock,
    is_locked,
    require_inside,
    require_regular_file,
    sanitize,
    sanitize_lines,
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
