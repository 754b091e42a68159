"""Runs one after another, each as a process of its own: none knows what another left, none takes another with it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import click

from compress.cli.entrants import Job
from compress.cli.output import say
from compress.engine.signals import noted_by
from compress.errors import UsageError

#: runs `compress` as a process that is asked to save and end, as by SIGTERM, once the one that started it is no more
#: (where the system can do so): nobody would know how it ends
TIED = """
import ctypes, os, runpy, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv.pop(1)):
    sys.exit(128 + signal.SIGTERM)
runpy.run_module("compress", run_name="__main__", alter_sys=True)
"""


@dataclass
class Relay:
    """Passes Ctrl-C and SIGTERM on to the process that works, which saves and ends."""

    process: subprocess.Popen[str] | None = None
    received: int = 0

    def note(self, signum: int, _: FrameType | None) -> None:
        self.received = signum
        self.send(signum)

    def send(self, signum: int) -> None:
        """Give the process a signal, if there is one just now."""
        process = self.process
        if process is not None:
            process.send_signal(signum)


def played(
    words: Sequence[str], relay: Relay, *, answer: Path | None = None, label: str = "",
    environment: Mapping[str, str] | None = None,
) -> tuple[int, str]:  # fmt: skip
    """Carry out a command of ours as a process; its exit code, and what it said last. What it says is passed on.

    `answer`: the file that its standard output goes to. `label` stands before each line of what it says.
    `environment`: variables that are set for it besides our own.
    """
    last, start = "", [sys.executable, "-c", TIED, str(os.getpid())]
    with contextlib.ExitStack() as stack:
        to = subprocess.DEVNULL if answer is None else stack.enter_context(answer.open("wb"))
        process = stack.enter_context(subprocess.Popen(
            [*start, *words], stdin=subprocess.DEVNULL, stdout=to, stderr=subprocess.PIPE, text=True, errors="replace",
            start_new_session=True,  # a terminal's Ctrl-C comes through the relay, once
            env={**os.environ, **(environment or {})},
        ))  # fmt: skip
        relay.process = process
        if relay.received:  # just now, when there was nobody to pass it on to
            process.send_signal(relay.received)
        try:
            assert process.stderr is not None
            for line in process.stderr:
                click.echo(label + line.rstrip("\n"), err=True)
                last = line.strip() or last
            process.wait()
        except BaseException:  # listening to it failed: nobody would know how it ends
            process.terminate()
            raise
        finally:
            relay.process = None
    return process.returncode, last.removeprefix("Error: ")


def ended(code: int, words: str) -> str:
    """Why a process did not do its work, in words."""
    if code < 0:
        cause = ", perhaps because memory ran out" if code == -signal.SIGKILL else ""
        return f"killed by {signal.Signals(-code).name}{cause}"
    return words or f"ended with exit code {code}"


def carry_out(jobs: Sequence[Job]) -> tuple[list[tuple[Job, str]], int]:
    """Make every run that is not finished; those that failed with their last words, and the signal that came, or 0.

    A run that was interrupted goes on where it was. One that fails does not keep the others from being made.
    """
    from profiles.record import RecordError

    failed = []
    relay = Relay()
    with noted_by(relay.note):
        for i, job in enumerate(jobs, 1):
            if relay.received:
                break
            if job.finished:
                continue
            say(f"run {i} of {len(jobs)}: {job.name}, seed {job.seed}")
            try:
                code, words = played(job.command(), relay)
            except (UsageError, RecordError) as error:
                code, words = 1, str(error)
            if code and not relay.received:
                failed.append((job, ended(code, words)))
    return failed, relay.received
