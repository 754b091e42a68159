"""Handling of SIGINT and SIGTERM (no torch, so that other processes can import it fast)."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def handle_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Context in which `handler` receives SIGINT and SIGTERM; restores the previous handlers."""
    previous = {}
    for signum in (signal.SIGINT, signal.SIGTERM):
        try:
            previous[signum] = signal.signal(signum, handler)
        except ValueError:
            break  # only the main thread can set handlers; elsewhere its owner handles signals
    try:
        yield
    finally:
        for signum, old in previous.items():
            signal.signal(signum, old)
