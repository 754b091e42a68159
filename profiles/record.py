"""What is known of one model in one form: how good it is, what it costs, how it was made; lines of `records.jsonl`.

Each measurement appends a line to the file in the folder of its run; nothing that stands there is changed. A line holds
what was measured and nothing else, so a model is what all its lines say together (`folded`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Literal

import pydantic

from profiles.latency import Latency
from profiles.plain import finite

FILE = "records.jsonl"
SCHEMA = 2  #: goes up when a reader of the old one would misunderstand
FIRST = "record.json"  #: what schema 1 was: one document, written anew each time
Role = Literal["teacher", "student", "model"]


class RecordError(Exception):
    """A record that cannot be read or written: found, expected, what to do, where."""

    exit_code = 1


class NoRecordError(RecordError):
    """The folder holds no record at all: the request is wrong, not the file."""

    exit_code = 2


@dataclass(frozen=True)
class Record:
    """One model in one form with its measurements. What was not measured is None or empty, never zero."""

    name: str  #: shown to people; of all forms of a model the same
    role: Role = "model"
    method: str = ""  #: how it was taught
    architecture: str = ""
    task: str = "classification"
    image_size: tuple[int, int] | None = None  #: height, width in pixels
    format: str = ""  #: of the exported file: "onnx", "openvino", "tensorrt", "tensorrt-rtx"; empty: PyTorch's network
    precision: str = "fp32"  #: "fp32", "fp16", "bf16" or "int8"
    metrics: dict[str, float] = field(default_factory=dict)  #: accuracy, miou, …: shares in [0, 1]
    macs: int | None = None  #: multiply-accumulates of one image (what fvcore counts)
    flops: int | None = None  #: floating point operations of one image, 2 x macs
    params: int | None = None
    activations: int | None = None  #: numbers that convolutions and products of one image answer with
    macs_torch: int | None = None  #: as macs, by torch's own counter
    unsupported: dict[str, int] = field(
        default_factory=dict
    )  #: operators that were not counted, and how often they ran
    size_bytes: int | None = None  #: of the file that is deployed
    latencies: list[Latency] = field(default_factory=list)  #: one a setting
    export: dict[str, Any] | None = None  #: the exported file and its parity with PyTorch
    run: dict[str, Any] = field(default_factory=dict)  #: steps, wall_s, seed, ood, budget_s, command, history, …
    machine: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    pictures: dict[str, str] = field(default_factory=dict)  #: caption -> file, relative to the record's folder
    at: str = ""  #: when it was measured, UTC, ISO 8601; filled in when it is written

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells it from other models of its folder, and from its other forms."""
        return self.name, self.role, self.method, self.format, self.precision, self.run.get("seed")


@dataclass(frozen=True)
class First:
    """The content of schema 1's file."""

    schema: int
    records: list[Record]


def append_records(folder: Path, records: Sequence[Record]) -> Path:
    """Add `records` to those in `folder`, all or none. What is not a finite number becomes null.

    A line that a process could not write to its end is cut off first. Raises RecordError where writing fails.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    dated = [record if record.at else dataclasses.replace(record, at=now) for record in records]
    lines = "".join(f"{json.dumps({'schema': SCHEMA, **as_json(record)}, allow_nan=False)}\n" for record in dated)
    path = Path(folder) / FILE
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file, locked(file):
            end = whole_lines(file)
            try:
                file.write(lines.encode())
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                file.truncate(end)
                raise
    except OSError as error:
        raise RecordError(f"{path}: cannot be written ({error.strerror or error}); choose another folder.") from error
    return path


@contextlib.contextmanager
def locked(file: BinaryIO) -> Iterator[None]:
    """Only this process writes to `file`; where the system has no such locks, two must not write at once."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


def whole_lines(file: BinaryIO) -> int:
    """Cut off what stands behind the last whole line; the length that is left."""
    file.seek(0)
    content = file.read()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        file.truncate(end)
    return end


def as_json(record: Record) -> dict[str, Any]:
    """A record as JSON has it: metrics that are not finite are left out, other such numbers are null."""
    content = finite(dataclasses.asdict(record))
    content["metrics"] = {key: value for key, value in content["metrics"].items() if value is not None}
    return content


def read_records(folder: Path) -> list[Record]:
    """The models of a run's folder (or of the file itself), each with all that its lines say of it.

    Raises RecordError with one sentence.
    """
    return folded(read_lines(folder))


def read_lines(folder: Path) -> list[Record]:
    """Every measurement by itself, in the order in which they were made. Raises RecordError with one sentence."""
    path = Path(folder)
    if path.is_dir():
        path = next((path / name for name in (FILE, FIRST) if (path / name).is_file()), path / FILE)
    if not path.is_file():
        raise NoRecordError(f"{folder}: no {FILE} in it; expected the folder of a finished run or of a demo.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RecordError(f"{path}: cannot be read ({error.strerror or error}).") from error
    if path.suffix == ".json":
        return read_first(content, path)
    whole = content[: content.rfind(b"\n") + 1]  # what stands behind was not written to its end
    return [read_line(line, path, i) for i, line in enumerate(whole.splitlines(), 1) if line.strip()]


def holds_records(folder: Path) -> bool:
    """Whether something was measured of the run in `folder`, which is done when it has ended."""
    return any((Path(folder) / name).is_file() for name in (FILE, FIRST))


def records_in(folder: Path) -> list[Record]:
    """As `read_records`, and none where nothing was measured yet."""
    return read_records(folder) if holds_records(folder) else []


def without_course(run: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a run but its scores on the way and at its end: what holds for its student in every form."""
    return {key: value for key, value in run.items() if key not in ("history", "last")}


def read_line(line: bytes, path: Path, number: int) -> Record:
    """One measurement. Raises RecordError that names the line."""
    with refusing(path, f"line {number}: "):
        found = json.loads(line)
        if not isinstance(found, dict):
            raise RecordError(f"{path}: line {number}: not a record; expected an object of JSON.")
        refuse_newer(found, path)
        return adapter(Record).validate_json(line)


def read_first(content: bytes, path: Path) -> list[Record]:
    """The records of schema 1."""
    with refusing(path, ""):
        found = json.loads(content)
        refuse_newer(found, path)
        return adapter(First).validate_json(content).records


@cache
def adapter(kind: type) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(kind)


def json_schema() -> dict[str, Any]:
    """The form of a line as a JSON schema."""
    found = adapter(Record).json_schema()
    found["properties"] = {"schema": {"const": SCHEMA, "description": "of this form of line"}, **found["properties"]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}


def refuse_newer(found: Any, path: Path) -> None:
    schema = found.get("schema") if isinstance(found, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise RecordError(f"{path}: written by a newer version (schema {schema}, known up to {SCHEMA}); update.")


@contextlib.contextmanager
def refusing(path: Path, where: str) -> Iterator[None]:
    """What goes wrong within, as a RecordError of one sentence."""
    try:
        yield
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole"
        what = f"{place}: {first['msg'].lower()}"
        raise RecordError(f"{path}: {where}not a record: {what}; run that job again.") from error
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path}: {where}damaged, not JSON ({error}); run that job again.") from error


def folded(lines: Sequence[Record]) -> list[Record]:
    """The models that `lines` speak of, each once, in the order in which they are first spoken of."""
    found: dict[tuple[Any, ...], Record] = {}
    for line in lines:
        found[line.key] = merged(found[line.key], line) if line.key in found else line
    return list(found.values())


def merged(old: Record, new: Record) -> Record:
    """What both say; where they differ the new one holds. Latencies of the same setting and machine are replaced."""
    values: dict[str, Any] = {}
    for one in dataclasses.fields(Record):
        before, after = getattr(old, one.name), getattr(new, one.name)
        if one.name == "latencies":
            again = {measured_at(latency) for latency in after}
            values[one.name] = [*(latency for latency in before if measured_at(latency) not in again), *after]
        elif one.name in ("metrics", "run", "pictures"):
            values[one.name] = {**before, **after}
        else:
            values[one.name] = before if after in (None, "", {}, one.default) else after
    return Record(**values)


def measured_at(latency: Latency) -> tuple[Any, ...]:
    """What a latency was measured with, and where."""
    one = latency
    return one.machine, one.device, one.runtime, one.precision, one.threads, one.batch_size, one.scenario


def write_atomically(path: Path, content: bytes) -> None:
    """Put `content` in the place of `path` only once it is complete. Raises RecordError where that fails."""
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise RecordError(f"{path}: cannot be written ({error.strerror or error}); choose another folder.") from error


if __name__ == "__main__":
    print(json.dumps(json_schema(), indent=2))
