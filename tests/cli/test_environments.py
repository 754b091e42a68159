"""The command line in unusual surroundings: streams, terminals, locales, directories, signals. No torch is loaded."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from running import is_running

from compress.cli import describe_error

PATIENCE = 120
COMMAND = (sys.executable, "-m", "compress")
#: a command that starts a temporary file and a child process, and then waits
SLOW_COMMAND = """
import subprocess, sys, time, types
from pathlib import Path
import click
from compress import cli
from compress.files import atomic_write

@click.command()
def doctor():
    with atomic_write(Path("result")) as file, subprocess.Popen(["sleep", "777"]) as child:
        file.write(b"half")
        try:
            print("ready", child.pid, flush=True)
            {call}
        finally:
            child.kill()

module = types.ModuleType("compress.cli.doctor")
module.doctor = doctor
sys.modules["compress.cli.doctor"] = module
cli.main()
"""


def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])} | options.pop("env", {})  # pyright: ignore
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=PATIENCE,
        env=environment,
        **options,
    )  # pyright: ignore[reportCallIssue, reportArgumentType]


def assert_one_sentence(done: subprocess.CompletedProcess[str], code: int) -> None:
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("Error: ")
    assert len(done.stderr.splitlines()) == 1
    assert "internal error" not in done.stderr


@pytest.mark.parametrize(
    "strange",
    [
        {"COLUMNS": "1", "TERM": "dumb", "HOME": "", "TMPDIR": "/nonexistent", "TZ": "nowhere"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "tr_TR.ISO-8859-9", "LANG": "tr_TR", "PYTHONUTF8": "0", "PYTHONIOENCODING": "iso8859-9"},
    ],
)
def test_surroundings_change_nothing(strange):
    done = run("--help", env=strange)
    assert (done.returncode, done.stderr) == (0, "")
    assert "distill" in done.stdout
    assert_one_sentence(run("nam\udcff", env=strange), 2)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&- 2>&-"])
def test_closed_streams(closed):
    command = " ".join([*COMMAND, "--version", closed])
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")


def test_reader_that_has_ended():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*COMMAND, "--help"], stdout=write, stderr=subprocess.PIPE, text=True, timeout=PATIENCE)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device")
def test_full_standard_output():
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, "--help"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=PATIENCE)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: standard output: ")
    assert len(done.stderr.splitlines()) == 1


def test_interrupt_during_imports():
    code = "import os, runpy, signal, sys; sys.argv = ['compress']\n"
    code += "class Finder:\n    def find_spec(self, name, *_):\n"
    code += "        if name == 'compress.cli': os.kill(os.getpid(), signal.SIGINT)\n"
    code += "sys.meta_path.insert(0, Finder()); runpy.run_module('compress', run_name='__main__', alter_sys=True)"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")  # a shell shows 130


def test_deleted_working_directory(tmp_path):
    (tmp_path / "gone").mkdir()
    code = f"import os, sys; os.rmdir({str(tmp_path / 'gone')!r}); from compress.cli import main; main(['models'])"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "gone", capture_output=True, text=True, env=environment
    )
    assert_one_sentence(done, 2)


def surrogate_error() -> UnicodeEncodeError:
    try:
        "nam\udcff".encode()
    except UnicodeEncodeError as error:
        return error
    raise AssertionError


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "Permission denied", "somewhere"),
        OSError(errno.ENAMETOOLONG, "File name too long", b"a" * 300),
        OSError("a library's own text\non two lines"),
        FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"),
        RecursionError("maximum recursion depth exceeded"),
        RuntimeError("Could not determine home directory."),
        surrogate_error(),
    ],
)
def test_faults_of_the_system_are_no_internal_errors(error):
    sentence, code = describe_error(error)
    assert code == 1
    assert "internal error" not in sentence
    assert len(sentence.splitlines()) == 1


def start_slow_command(folder: Path, call: str = "time.sleep(1000)") -> tuple[subprocess.Popen[str], int]:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_COMMAND.format(call=call), "doctor"], cwd=folder, text=True, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    word, child = process.stdout.readline().split()
    assert word == "ready"
    return process, int(child)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_first_signal_ends_a_command_in_order(tmp_path, signum, code):
    process, child = start_slow_command(tmp_path)
    process.send_signal(signum)
    _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (code, f"Error: interrupted by {signum.name}.\n")
    assert list(tmp_path.iterdir()) == []
    assert not is_running(child)


def test_second_signal_ends_a_command_at_once(tmp_path):
    process, child = start_slow_command(tmp_path, "__import__('hashlib').pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)")
    time.sleep(0.3)  # until it is in the call
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    end = time.monotonic() + PATIENCE  # a killed process takes a moment to end
    while is_running(child) and time.monotonic() < end:
        time.sleep(0.02)
    assert not is_running(child)


def test_library_that_hides_the_signal(tmp_path):
    process, _ = start_slow_command(
        tmp_path, "exec('try: time.sleep(1000)\\nexcept BaseException: raise ValueError(0)')"
    )
    process.terminate()
    _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (143, "Error: interrupted by SIGTERM.\n")
