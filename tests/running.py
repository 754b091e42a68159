"""Whether a process runs, for tests that end processes."""

from __future__ import annotations

from pathlib import Path


def is_running(pid: int) -> bool:
    """Check that a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
