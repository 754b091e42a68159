"""The two ways a command may end badly for a reason the user can mend.

Whatever carries an `exit_code` is shown as one sentence without a traceback; all else is a bug of ours.
`exporters` and `profiles` know nothing of this package: their own errors carry the same attribute.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CompressError(Exception):
    """The job failed: found, expected, what to do, where. Exit code 1."""

    exit_code = 1


class UsageError(CompressError):
    """The request itself is wrong (unknown name, bad value, missing file). Exit code 2."""

    exit_code = 2


class Interrupted(CompressError):
    """The run was asked to stop by a signal and has saved its state. Exit code 128 + signal number."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum


def nearest(name: str, known: Iterable[str], *, n: int = 1) -> str:
    """ "; did you mean 'x'?" for the known names closest to `name`, or the empty string."""
    close = difflib.get_close_matches(name, list(known), n=n, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
