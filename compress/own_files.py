"""Which files this package wrote: what it may replace or delete, and which images it never reads as data.

A name alone is no proof. Files of a run are its own if their directory is marked as that of a run, and their names are
those that a run chooses; files of a report are its own if its JSON file is that of a report.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
from collections.abc import Sequence
from pathlib import Path

from compress.errors import UsageError
from compress.files import read_json_object, require_regular_file, write_error

#: marks the directory of a run; contains the identity of its teacher and data
RUN_FILE = "compress-run.json"
RECIPE, RECORDS, METRICS, ONNX, LOCK = "recipe.yaml", "records.jsonl", "metrics.jsonl", "student.onnx", ".lock"
CHECKPOINTS, TENSORBOARD = "checkpoints", "tensorboard"
#: images of a run: of each evaluation, of a pool, the newest of each kind, and examples of a segmentation
STEP_IMAGES, POOL, NEWEST_IMAGES = "compress-images", "compress-pool", "compress-{name}.png"
OVERLAY_ARRAYS, OVERLAY_IMAGE = "compress-overlays.npz", "compress-overlays.png"
#: what a new run creates in its directory, besides RECIPE, RECORDS and images with names as NEWEST_IMAGES
CREATED = (RUN_FILE, METRICS, CHECKPOINTS, "best", "last", TENSORBOARD, STEP_IMAGES, POOL)
#: first line of a recipe that a run wrote
RECIPE_HEADER = re.compile(rb"# \d{4}-\d\d-\d\d \d\d:\d\d UTC; python ")
#: first bytes of the JSON file of a report
REPORT_HEADER = re.compile(rb'\{\s*"schema": \d+,\s*"title": "')
#: paths of images below the directory of a run; the last three are those of release 0.1
OWN_IMAGE = re.compile(
    rf"{STEP_IMAGES}/[^/]+-\d{{7,}}\.png|{POOL}/[^/]+/\d+-\d{{7,}}\.png|compress-[^/]+\.png"
    r"|images/(mosaics|synthetic)-\d{7,}\.png|pool/[^/]+/\d+-\d{7,}\.png|(mosaics|synthetic|pool|overlays)\.png"
)
#: paths of its other files, except RECIPE, ONNX and a report, whose content decides
OWN_FILE = re.compile(
    rf"{CHECKPOINTS}/step-\d{{9,}}(\.json|(\.again)?\.rank\d+\.pt)|{TENSORBOARD}/events\.out\.tfevents\.[^/]+"
    r"|(best|last)/(config\.json|model\.safetensors|\.model-[0-9a-f]{64}\.safetensors)|(compress-)?overlays\.npz"
    rf"|{re.escape(METRICS)}|{re.escape(RECORDS)}|{re.escape(LOCK)}|{re.escape(RUN_FILE)}"
)
#: metadata of every exported file; see `compress.models.metadata`
EXPORT_KEY = b"source_sha256"
REPORT_FILE = re.compile(r"report\.(html|md|csv|json)|report_\w+\.svg")
#: files of the operating system, which are neither removed nor in the way
SYSTEM_FILE = re.compile(r"\.DS_Store|\._.*|Thumbs\.db|desktop\.ini|\.nfs[0-9a-f]+")
#: what `atomic_write` leaves if it is killed
TEMPORARY = re.compile(r"\.(.+)\.[a-z0-9_]{8}\.tmp")


def is_run_dir(directory: Path) -> bool:
    """Whether a run wrote this directory; one of release 0.1 has only the header of its recipe."""
    return "schema" in read_json_object(directory / RUN_FILE) or starts_with(directory / RECIPE, RECIPE_HEADER)


def is_report(path: Path) -> bool:
    """Whether `path` is the JSON file of a report."""
    return starts_with(path, REPORT_HEADER)


def starts_with(path: Path, header: re.Pattern[bytes]) -> bool:
    try:
        with open(require_regular_file(path), "rb") as file:
            return header.match(file.read(100)) is not None
    except (OSError, UsageError):
        return False


def require_own_report(json_file: Path, files: Sequence[Path]) -> None:
    """Raise UsageError if a report would replace files that no report wrote.

    Args:
        json_file: JSON file of the report; if it is one of a report, the others are its own too.
        files: All files that would be written.
    """
    existing = [path for path in files if os.path.lexists(path)]
    if existing and not is_report(json_file):
        raise UsageError(
            f"{existing[0]}: found a file that no report wrote, expected none; rename it or choose another --out."
        )


def list_run_files(run_dir: Path) -> tuple[list[Path], list[Path]]:
    """Return the files that the run in a directory wrote, and all others, links included."""
    own: list[Path] = []
    foreign: list[Path] = []
    has_report = is_report(run_dir / "report.json")
    for here, folders, files in os.walk(run_dir):
        links = [name for name in folders if os.path.islink(os.path.join(here, name))]
        for name in (*(name for name in files if not SYSTEM_FILE.fullmatch(name)), *links):
            path = Path(here) / name
            is_own = name not in links and is_written_by_run(run_dir, path, has_report=has_report)
            (own if is_own else foreign).append(path)
    return own, foreign


def is_written_by_run(run_dir: Path, path: Path, *, has_report: bool) -> bool:
    """Whether the run in `run_dir` wrote the file `path` below it; `has_report`: also a report."""
    relative = path.relative_to(run_dir)
    temporary = TEMPORARY.fullmatch(path.name)
    name = str(relative if temporary is None else relative.with_name(temporary[1]))
    if temporary is not None and name in (RECIPE, ONNX):
        return True
    if name == RECIPE:
        return starts_with(path, RECIPE_HEADER)
    if name == ONNX:
        return is_exported(path)
    if REPORT_FILE.fullmatch(name):
        return has_report
    return OWN_IMAGE.fullmatch(name) is not None or OWN_FILE.fullmatch(name) is not None


def is_exported(path: Path) -> bool:
    """Whether `compress` exported a file, by its metadata."""
    try:
        with open(require_regular_file(path), "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ).find(EXPORT_KEY) >= 0
    except (OSError, UsageError, ValueError):  # ValueError: an empty file
        return False


def remove_run_files(run_dir: Path) -> None:
    """Remove what the run in a directory wrote, and directories that become empty; keep its recipe, marker and lock.

    If this is interrupted, the rest is a run without a result or a checkpoint, which begins anew.

    Raises:
        WriteError: A file cannot be removed.
    """
    own, _ = list_run_files(run_dir)
    last = {run_dir / name for name in (RECIPE, RUN_FILE, LOCK)}
    order = (RECORDS, CHECKPOINTS)
    ranked = sorted(
        (path for path in own if path not in last),
        key=lambda path: (order.index(top) if (top := path.relative_to(run_dir).parts[0]) in order else 2, str(path)),
    )
    try:
        for path in ranked:
            path.unlink(missing_ok=True)
        for folder in sorted({folder for path in ranked for folder in path.parents}, reverse=True):
            if run_dir in folder.parents:
                with contextlib.suppress(OSError):  # not empty
                    folder.rmdir()
    except OSError as error:
        raise write_error(run_dir, error) from error
