"""Records: what was measured of one model, as lines of `records.jsonl`.

Each measurement appends a line to the file in its run directory; existing lines are never changed. A line holds only
what was measured, so a model is the merge of all its lines (`merge_lines`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Literal

import pydantic

from compress.errors import CompressError, first_line
from compress.files import (
    WriteError,
    describe_write_failure,
    fsync_dir,
    lock_open_file,
    make_directory,
    sanitize,
    write_bytes,
)
from profiles.formatting import finite_number, to_json_safe
from profiles.latency.benchmark import Latency

FILE = "records.jsonl"
SCHEMA = 2  #: increased when an older reader would misunderstand a line
Role = Literal["teacher", "student", "model"]
MAX_FILE_BYTES = 1 << 30  #: of a file that is read
MAX_NUMBER = 1e18  #: no measurement is larger
MAX_CHARACTERS = 1_000_000  #: of a text in a record
MAX_DEPTH = 20  #: of lists and objects in a record
#: metrics that are shares in [0, 1], as are all that begin with CLASS_SCORES
SHARES = ("accuracy", "miou", "iou", "dice", "f1", "map", "label_accuracy", "pixel_accuracy")
CLASS_IOU = "iou/"  #: prefix of the metrics that hold the IoU of a class
CLASS_SCORES = (CLASS_IOU, "f1/")  #: prefixes of the metrics of one class


class RecordError(CompressError):
    """A record that cannot be read or written."""


class NoRecordError(RecordError):
    """A directory without any record: the request is wrong, not the file."""

    exit_code = 2


@dataclass(frozen=True)
class Record:
    """One model in one form with its measurements. What was not measured is None or empty, never zero.

    Example:
        >>> Record("wrn16_1", role="student", method="mosaic", metrics={"accuracy": 0.83}).label
        'wrn16_1'
    """

    name: str  #: displayed; the same for all forms of a model
    role: Role = "model"
    method: str = ""  #: training method
    architecture: str = ""
    task: str = "classification"
    image_size: tuple[int, int] | None = None  #: height, width in pixels
    format: str = ""  #: of the exported file: "onnx", "openvino", "tensorrt", "tensorrt-rtx"; empty: a PyTorch network
    precision: str = "fp32"  #: "fp32", "fp16", "bf16" or "int8"
    metrics: dict[str, float] = field(default_factory=dict)  #: accuracy, miou, …: shares in [0, 1]
    macs: int | None = None  #: multiply-accumulates for one image, counted by fvcore
    flops: int | None = None  #: floating-point operations for one image, 2 x macs
    params: int | None = None
    activations: int | None = None  #: output elements of convolutions and matrix products for one image
    macs_torch: int | None = None  #: multiply-accumulates counted by torch.utils.flop_counter
    unsupported: dict[str, int] = field(default_factory=dict)  #: operator that was not counted -> calls
    size_bytes: int | None = None  #: of the deployed file
    latencies: list[Latency] = field(default_factory=list)  #: one per setting
    export: dict[str, Any] | None = None  #: the exported file and its parity with PyTorch
    run: dict[str, Any] = field(default_factory=dict)  #: steps, wall_s, seed, ood, budget_s, command, history, …
    machine: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    images: dict[str, str] = field(default_factory=dict)  #: caption -> file, relative to the record's directory
    at: str = ""  #: time of the measurement, UTC, ISO 8601; set when the record is written

    @property
    def key(self) -> tuple[Any, ...]:
        """Identity within a directory: model, form and seed."""
        return self.name, self.role, self.method, self.format, self.precision, to_hashable(self.run.get("seed"))

    @property
    def label(self) -> str:
        """The name, followed by format and precision for an exported file."""
        return " ".join([self.name, *([self.format, self.precision] if self.format else [])])

    @property
    def parity(self) -> dict[str, Any]:
        """Agreement of the exported file with PyTorch; empty if unknown."""
        parity = (self.export or {}).get("parity")
        return parity if isinstance(parity, dict) else {}


def append_records(folder: Path, records: Sequence[Record]) -> Path:
    """Append records to `records.jsonl` in a directory, all or none.

    A partial last line, left by a killed process, is removed first. Numbers that are not finite become null.

    Args:
        folder: Run directory; created if missing.
        records: Records to append; an empty `at` is set to the current time.

    Returns:
        Path of the file.

    Raises:
        RecordError: The file cannot be written.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    dated = [record if record.at else dataclasses.replace(record, at=now) for record in records]
    lines = "".join(
        f"{json.dumps({'schema': SCHEMA, **record_to_json(record)}, allow_nan=False)}\n" for record in dated
    )
    path = Path(folder) / FILE
    try:
        make_directory(path.parent)
        with open(path, "ab+", opener=open_without_links) as file, lock_open_file(file):
            end = truncate_partial_line(file)
            try:
                file.write(lines.encode())
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                file.truncate(end)
                raise
        fsync_dir(path.parent)
    except OSError as error:
        raise RecordError(
            f"{path}: cannot be written: {describe_write_failure(path, error, len(lines.encode()))}"
        ) from error
    return path


def open_without_links(path: str, flags: int) -> int:
    """Open a file, but no link, which could have been planted to change another file, and no pipe."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)


def truncate_partial_line(file: BinaryIO) -> int:
    """Remove what follows the last complete line; return the remaining length."""
    file.seek(0)
    content = file.read()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        file.truncate(end)
    return end


def record_to_json(record: Record) -> dict[str, Any]:
    """Convert a record to JSON values: metrics that are not finite are omitted, other such numbers are null."""
    content = to_json_safe(dataclasses.asdict(record))
    content["metrics"] = {key: value for key, value in content["metrics"].items() if value is not None}
    return content


def read_records(folder: Path) -> list[Record]:
    """Read the models of a run directory, each merged from all its lines.

    Args:
        folder: Run directory, or the path of a `records.jsonl`.

    Raises:
        NoRecordError: There is no record.
        RecordError: The file is damaged or written by a newer version.
    """
    return merge_lines(read_measurements(folder))


def read_measurements(folder: Path) -> list[Record]:
    """Read every line as its own record, in the order of measurement. Raises as `read_records`."""
    path = Path(folder) / FILE if os.path.isdir(folder) else Path(folder)
    if not os.path.isfile(path):
        raise NoRecordError(f"{folder}: found no {FILE}, expected the folder of a finished run or of a demo.")
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise RecordError(f"{path}: found {size} bytes, expected at most {MAX_FILE_BYTES}; run that job again.")
        content = path.read_bytes()
    except OSError as error:
        raise RecordError(f"{path}: cannot be read ({error.strerror or error}).") from error
    complete = content[: content.rfind(b"\n") + 1]  # a killed process may leave a partial last line
    if not complete.strip():
        raise NoRecordError(f"{path}: found no record, expected one per line; run that job again.")
    return [parse_line(line, path, i) for i, line in enumerate(complete.splitlines(), 1) if line.strip()]


def has_records(folder: Path) -> bool:
    """Whether a run directory has records, which are written when the run has ended."""
    path = Path(folder) / FILE
    if not os.path.isfile(path):
        return False
    try:
        with path.open("rb") as file:
            return file.readline().endswith(b"\n")  # a killed process may leave no complete line
    except OSError:
        return True  # the reader names the error


def read_existing_records(folder: Path) -> list[Record]:
    """Read records as `read_records`; return an empty list if there are none."""
    return read_records(folder) if has_records(folder) else []


def without_history(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of a run that hold for every form of its student: all but `history` and `last`."""
    return {key: value for key, value in run.items() if key not in ("history", "last")}


def learning_curve(record: Record, metric: str) -> list[tuple[float, float]]:
    """Return (seconds, score) of each evaluation of a run in order; empty without a history."""
    history = record.run.get("history")
    entries = [entry for entry in (history if isinstance(history, list) else []) if isinstance(entry, dict)]
    pairs = [(finite_number(entry.get("seconds")), finite_number(entry.get(metric))) for entry in entries]
    return sorted((seconds, score) for seconds, score in pairs if seconds is not None and score is not None)


def to_hashable(value: Any) -> Any:
    """Convert JSON values to tuples, which can be dictionary keys."""
    if isinstance(value, dict):
        return tuple((key, to_hashable(item)) for key, item in sorted(value.items()))
    return tuple(map(to_hashable, value)) if isinstance(value, list | tuple) else value


def check_values(record: Record) -> None:
    """Check that a report can show the values of a record.

    Raises:
        RecordError: A number is not finite or larger than any measurement, a share is not in [0, 1], a text is too
            long, or lists and objects are too deep.
    """
    for name, share in record.metrics.items():
        if (name in SHARES or name.startswith(CLASS_SCORES)) and not -1e-6 <= share <= 1 + 1e-6:
            raise RecordError(f"metrics.{shorten(name)}: found {share:g}, expected a share from 0 to 1.")
    for one in dataclasses.fields(record):
        check_value(getattr(record, one.name), (None, one.name), 0)


def check_value(value: Any, place: tuple[Any, Any], depth: int) -> None:
    """Check one value (see `check_values`). `place`: (place of its container or None, its key)."""
    if isinstance(value, str):
        if len(value) > MAX_CHARACTERS:
            raise RecordError(
                f"{format_place(place)}: found {len(value)} characters, expected {MAX_CHARACTERS} or less."
            )
    elif isinstance(value, int | float):
        if not -MAX_NUMBER <= value <= MAX_NUMBER:
            raise RecordError(
                f"{format_place(place)}: found {format_number(value)}, expected a number up to {MAX_NUMBER:g}."
            )
    elif value is not None:
        if depth > MAX_DEPTH:
            raise RecordError(f"{format_place(place)}: found more than {MAX_DEPTH} nested values, expected less.")
        inner = vars(value) if isinstance(value, Latency) else value
        if isinstance(inner, Mapping):
            for key, item in inner.items():
                check_value(key, place, depth)
                check_value(item, (place, key), depth + 1)
        elif isinstance(inner, list | tuple):
            for i, item in enumerate(inner):
                check_value(item, (place, i), depth + 1)


def format_place(place: tuple[Any, Any] | None) -> str:
    """Format the place of a value: `latencies.0.runs`."""
    keys: list[str] = []
    while place is not None:
        keys.insert(0, shorten(str(place[1])))
        place = place[0]
    return ".".join(keys)


def shorten(text: str) -> str:
    return sanitize(text[:100])


def format_number(value: float) -> str:
    """Format a number of any size."""
    return "an integer of more than 300 digits" if isinstance(value, int) and abs(value) > 1e300 else f"{value:g}"


def parse_line(line: bytes, path: Path, number: int) -> Record:
    """Parse one line. Raises RecordError that names the line."""
    with convert_errors(path, f"line {number}: "):
        content = json.loads(line)
        if not isinstance(content, dict):
            raise RecordError(f"{path}: line {number}: found no object, expected a record; run that job again.")
        check_schema_version(content, path)
        record = type_adapter(Record).validate_json(line)
    try:
        check_values(record)
    except RecordError as error:
        raise RecordError(f"{path}: line {number}: {error}") from error
    return record


@cache
def type_adapter(kind: type) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(kind)


def record_schema() -> dict[str, Any]:
    """Return the JSON schema of a line."""
    schema = type_adapter(Record).json_schema()
    version = {"const": SCHEMA, "description": "version of this schema"}
    schema["properties"] = {"schema": version, **schema["properties"]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def check_schema_version(content: Mapping[str, Any], path: Path) -> None:
    """Raise RecordError for a line with another schema than `SCHEMA`."""
    schema = content.get("schema")
    if isinstance(schema, int) and schema != SCHEMA:
        remedy = "update this package" if schema > SCHEMA else "run that job again"
        raise RecordError(f"{path}: found schema {schema}, expected {SCHEMA}; {remedy}.")


@contextlib.contextmanager
def convert_errors(path: Path, where: str) -> Iterator[None]:
    """Convert errors of JSON and validation to RecordError."""
    try:
        yield
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(shorten(str(part)) for part in first["loc"]) or "the whole"
        raise RecordError(f"{path}: {where}not a record: {key}: {first['msg'].lower()}; run that job again.") from error
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path}: {where}damaged, not JSON ({first_line(error)}); run that job again.") from error


def merge_lines(lines: Sequence[Record]) -> list[Record]:
    """Merge lines with the same key, in the order of their first occurrence."""
    merged: dict[tuple[Any, ...], Record] = {}
    for line in lines:
        merged[line.key] = merge_records(merged[line.key], line) if line.key in merged else line
    return list(merged.values())


def merge_records(old: Record, new: Record) -> Record:
    """Merge two records of one model; new values win. Latencies of the same setting and machine are replaced."""
    values: dict[str, Any] = {}
    for one in dataclasses.fields(Record):
        before, after = getattr(old, one.name), getattr(new, one.name)
        if one.name == "latencies":
            again = {measurement_setting(latency) for latency in after}
            values[one.name] = [*(latency for latency in before if measurement_setting(latency) not in again), *after]
        elif one.name in ("metrics", "run", "images"):
            values[one.name] = {**before, **after}
        else:
            values[one.name] = before if after in (None, "", {}, one.default) else after
    return Record(**values)


def measurement_setting(latency: Latency) -> tuple[Any, ...]:
    """Return how and where a latency was measured."""
    one = latency
    return one.machine, one.device, one.runtime, one.precision, one.threads, one.batch_size, one.scenario


def write_file(path: Path, content: bytes) -> None:
    """Replace a file atomically and create its directory. Raises RecordError if that fails."""
    try:
        write_bytes(path, content)
    except WriteError as error:
        raise RecordError(str(error)) from error


if __name__ == "__main__":
    print(json.dumps(record_schema(), indent=2))
