"""What goes wrong on the way to a runtime, in one sentence; `exit_code` is what a command line ends with."""

from __future__ import annotations

import re

#: escape sequences with which PyTorch's exporter colours its errors
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class ExportError(Exception):
    """The network cannot be written for a runtime, or what was written answers differently. Nothing was kept."""

    exit_code = 1


class RejectedError(ExportError):
    """What was written works, but not as it should: it answers too differently, or it is no faster."""


class UnwritableError(ExportError):
    """The file's place does not take it, which says nothing of the file."""


class RunnerError(Exception):
    """A file cannot be run: damaged, of another kind, or for a device that is not there."""

    exit_code = 1


class MissingFileError(RunnerError):
    """There is no such file."""

    exit_code = 2


def first_line(error: BaseException, length: int = 200) -> str:
    """The first line that says something in an error's text, or in its cause's; at most `length` characters."""
    text = COLOUR.sub("", str(error.__cause__ or error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:length]
