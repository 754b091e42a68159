"""Load and run a file whose content is a program in a process of its own, with limits of time and memory.

A loop in C++ does not return to Python, so no timer of this process could end it. Exported programs, TorchScript and
ONNX files are loaded and called there first, with small batches. What they do after that is limited by nobody.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from torch import nn

from compress.errors import CompressError, UsageError
from compress.files import sanitize
from compress.models.card import ModelCard, parse_card
from compress.models.overrides import ModelOverrides
from compress.plugins import child_command

#: environment variable -> seconds; 0 runs the file in this process, without limits
LIMIT_VARIABLE, DEFAULT_LIMIT_S = "COMPRESS_PROBE_SECONDS", 120.0


class ProgramLoader(Protocol):
    """Loads a file and infers its card; `card`: the known card, so that the file is not run."""

    def __call__(
        self, path: Path, overrides: ModelOverrides, *, card: ModelCard | None = None
    ) -> tuple[nn.Module, ModelCard]: ...


def load_with_limits(load: ProgramLoader, path: Path, overrides: ModelOverrides) -> tuple[nn.Module, ModelCard]:
    """Load a program and its card, after another process has done so within the limits.

    Raises:
        CompressError: It does not end in time, needs more memory than there is, crashes, or does not load.
        UsageError: The limit is not a number, or what `load` raises.
    """
    limit = read_time_limit()
    if limit == 0:
        return load(path, overrides)
    return load(path, overrides, card=run_probe(path, overrides, limit))


def read_time_limit() -> float:
    text = os.environ.get(LIMIT_VARIABLE, "")
    try:
        limit = float(text or DEFAULT_LIMIT_S)
    except ValueError:
        limit = math.nan
    if not 0 <= limit <= 1e6:
        raise UsageError(f"{LIMIT_VARIABLE}: found {text!r}, expected seconds, or 0 for no limit.")
    return limit


def run_probe(path: Path, overrides: ModelOverrides, limit: float) -> ModelCard:
    """Return the card of a program, from a process that loads and runs it."""
    request = {"path": str(path), "limit": limit, "overrides": asdict(overrides)}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        child_command("compress.models.probe_child"), stdin=pipe, stdout=pipe, stderr=pipe, text=True,
        errors="replace", env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    ) as child:  # fmt: skip
        try:
            assert child.stdout is not None
            child.stdout.readline()  # its imports are done; their time is not the program's
            output, errors = child.communicate(json.dumps(request), timeout=limit)
        except subprocess.TimeoutExpired as error:
            raise CompressError(
                f"{path}: did not load and answer for two small batches within {limit:g} s; if it is only slow, set "
                f"{LIMIT_VARIABLE} to more seconds."
            ) from error
        finally:
            child.kill()
    try:
        answer = json.loads(output)
    except ValueError as error:
        raise CompressError(f"{path}: {describe_end(child.returncode, errors)}; export it again.") from error
    if "card" in answer:
        return parse_card(answer["card"], path)
    raise (UsageError if answer["exit_code"] == UsageError.exit_code else CompressError)(answer["error"])


def describe_end(code: int, errors: str) -> str:
    """Why a process ended without an answer."""
    if code < 0:
        return f"ended its process when it was loaded or run ({signal.Signals(-code).name})"
    last = (errors.strip().splitlines() or ["no message"])[-1]
    return f"cannot be loaded or run ({sanitize(last[:200])})"
