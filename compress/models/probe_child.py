"""The process that loads and runs a program for `compress.models.probe`.

One request on standard input is answered on standard output, after a line, by the card of the program, or by an error.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

from compress.errors import CompressError
from compress.models.file_safety import detect_file_kind
from compress.models.hugging_face import load_hugging_face
from compress.models.loading import PROGRAM_LOADERS
from compress.models.overrides import ModelOverrides
from compress.resources import available_memory, usable_cores

#: memory for a program if the system does not report what is free
DEFAULT_MEMORY = 8 * 2**30


def main() -> None:
    answers = os.dup(1)
    os.dup2(2, 1)  # a program may print
    os.write(answers, b"ready\n")
    request = json.load(sys.stdin)
    path, given = Path(request["path"]), request["overrides"]
    size = given["image_size"]
    overrides = ModelOverrides(**{**given, "image_size": None if size is None else tuple(size)})
    limit_process(request["limit"])
    answer: dict[str, Any]
    try:
        load = load_hugging_face if path.is_dir() else PROGRAM_LOADERS[detect_file_kind(path)]
        _, card = load(path, overrides)
        answer = {"card": card.as_dict()}
    except CompressError as error:
        answer = {"error": str(error), "exit_code": error.exit_code}
    except MemoryError:
        answer = {"error": f"{path}: needs more memory than there is to load and run it.", "exit_code": 1}
    os.write(answers, json.dumps(answer).encode())
    os._exit(0)  # libraries may hang at exit if memory is limited


def limit_process(limit: float) -> None:
    """Limit the memory of this process and, in case its parent dies, its time."""
    if sys.platform == "win32":
        return
    import resource

    statm = Path("/proc/self/statm")
    used = int(statm.read_text().split()[0]) * resource.getpagesize() if statm.exists() else 0
    limits = {
        resource.RLIMIT_AS: used + (available_memory() or DEFAULT_MEMORY),
        resource.RLIMIT_CPU: math.ceil(limit * usable_cores()),
        resource.RLIMIT_CORE: 0,
    }
    for kind, value in limits.items():
        with contextlib.suppress(ValueError, OSError):  # a lower limit is in force
            resource.setrlimit(kind, (value, value))


if __name__ == "__main__":
    main()
