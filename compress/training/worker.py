"""One process of a distributed training: `python -m compress.training.worker DIRECTORY` in torchrun's environment.

The directory holds the recipe and the job. A summary or an error is written there for the process that started it.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from dataclasses import asdict
from pathlib import Path

from compress.config import load_yaml
from compress.errors import CompressError
from compress.files import sanitize_lines
from compress.own_files import RECIPE
from compress.training.launch import ERROR, JOB, SUMMARY, ignore, train_in_dir
from compress.training.setup import load_config, prepare_training


def print_status(message: str) -> None:
    print(sanitize_lines(message), file=sys.stderr)


def main(directory: Path) -> int:
    """Train as the job describes; return the exit code."""
    rank = int(os.environ["RANK"])
    try:
        job = json.loads((directory / JOB).read_text(encoding="utf-8"))
        is_restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
        config, method = load_config(load_yaml(directory / RECIPE), allow_code=True, trust_pickle=True)
        summary = train_in_dir(
            prepare_training(config, method), Path(job["run_dir"]),
            resume=None if is_restarted else job["resume"], image_count=job["image_count"],
            progress=ignore if rank else print_status,
        )  # fmt: skip
        if summary is not None:
            (directory / SUMMARY).write_text(json.dumps(asdict(summary)), encoding="utf-8")
    except BaseException as error:
        code = getattr(error, "exit_code", 1)
        message = str(error) if isinstance(error, CompressError) else f"process {rank}: {type(error).__name__}: {error}"
        content = {
            "type": type(error).__name__, "exit_code": code, "message": message, "traceback": traceback.format_exc(),
        }  # fmt: skip
        try:
            (directory / ERROR.format(rank=rank)).write_text(json.dumps(content), encoding="utf-8")
        except OSError:  # the temporary directory is full or gone
            print_status(f"Error: {message}")
        return code
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
