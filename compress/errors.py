"""Errors that the user can resolve, and their texts.

Every error with an `exit_code` is shown as one sentence without a traceback. Any other exception is a bug.
"""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable

#: escape sequences with which PyTorch's exporter colors its errors
COLOR = re.compile(r"\x1b\[[0-9;]*m")
#: how libraries report an exhausted memory, in lower case
OUT_OF_MEMORY = (
    "can't allocate memory", "cannot allocate memory", "not enough memory", "out of memory", "bad_alloc",
    "bad allocation", "failed to allocate memory", "unable to allocate", "could not create a memory",
    "could not create a primitive",
)  # fmt: skip


class CompressError(Exception):
    """The operation failed; the message has the form `what: found X, expected Y; do Z`. Exit code 1."""

    exit_code = 1


class UsageError(CompressError):
    """The request itself is wrong: unknown name, invalid value or missing file. Exit code 2."""

    exit_code = 2


class Interrupted(CompressError):
    """A signal stopped the run, which has saved its state. Exit code 128 + signal number."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum


def is_out_of_memory(error: BaseException) -> bool:
    """Check whether an error, or its cause, is an exhausted memory, in the words of any library."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    if isinstance(error, RuntimeError) or type(error).__module__.startswith("onnxruntime"):
        text = str(error).lower().replace("a primitive descriptor", "")  # oneDNN: not supported
        if any(words in text for words in OUT_OF_MEMORY):
            return True
    return error.__cause__ is not None and is_out_of_memory(error.__cause__)


def suggest_nearest(name: str, known: Iterable[str], *, n: int = 1) -> str:
    """ "; did you mean 'x'?" for the known names closest to `name`, or the empty string."""
    close = difflib.get_close_matches(name, list(known), n=n, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(c) for c in close)}?" if close else ""


def first_line(error: BaseException, length: int = 200) -> str:
    """The first non-empty line of the text of an error, or of its cause; at most `length` characters."""
    text = COLOR.sub("", str(error.__cause__ or error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:length]
