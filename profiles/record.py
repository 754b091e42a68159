"""What is known of one model: how good it is, what it costs, how it was made; `record.json` in the folder of a run."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pydantic

FILE = "record.json"
SCHEMA = 1  #: goes up when a reader of the old one would misunderstand
Role = Literal["teacher", "student", "model"]


class RecordError(Exception):
    """A record that cannot be read or written: found, expected, what to do, where."""

    exit_code = 1


class NoRecordError(RecordError):
    """The folder holds no record at all: the request is wrong, not the file."""

    exit_code = 2


@dataclass(frozen=True)
class Record:
    """One model with its measurements. What was not measured is None or empty, never zero."""

    name: str  #: shown to people
    role: Role = "model"
    method: str = ""  #: how it was taught
    architecture: str = ""
    task: str = "classification"
    image_size: tuple[int, int] | None = None  #: height, width in pixels
    metrics: dict[str, float] = field(default_factory=dict)  #: accuracy, miou, …: shares in [0, 1]
    macs: int | None = None  #: multiply-accumulates of one image (what fvcore counts)
    flops: int | None = None  #: floating point operations of one image, 2 x macs
    params: int | None = None
    macs_torch: int | None = None  #: the same by torch's own counter
    unsupported: dict[str, int] = field(
        default_factory=dict
    )  #: operators that were not counted, and how often they ran
    size_bytes: int | None = None  #: of the file that is deployed
    latencies: list[dict[str, Any]] = field(default_factory=list)  #: one a setting: latency_ms_p50, runtime, device, …
    export: dict[str, Any] | None = None  #: the exported file and its parity with PyTorch
    run: dict[str, Any] = field(default_factory=dict)  #: steps, wall_s, seed, ood, budget_s, command, history, …
    machine: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    pictures: dict[str, str] = field(default_factory=dict)  #: caption -> file, relative to the record's folder


@dataclass(frozen=True)
class File:
    """The content of `record.json`."""

    schema: int
    records: list[Record]


def write_records(folder: Path, records: Sequence[Record]) -> Path:
    """Write `record.json` into `folder`, in the place of the one before. What is not a finite number becomes null."""
    content = {"schema": SCHEMA, "records": [as_json(record) for record in records]}
    path = Path(folder) / FILE
    write_atomically(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
    return path


def as_json(record: Record) -> dict[str, Any]:
    """A record as JSON has it: metrics that are not finite are left out, other such numbers are null."""
    content = finite(dataclasses.asdict(record))
    content["metrics"] = {key: value for key, value in content["metrics"].items() if value is not None}
    return content


def read_records(folder: Path) -> list[Record]:
    """The records of a run's folder (or in the file itself). Raises RecordError with one sentence."""
    path = Path(folder)
    if path.is_dir():
        path /= FILE
    if not path.is_file():
        raise NoRecordError(f"{folder}: no {FILE} in it; expected the folder of a finished run or of a demo.")
    try:
        text = path.read_bytes()
        found = json.loads(text)
        schema = found.get("schema") if isinstance(found, dict) else None
        if isinstance(schema, int) and schema > SCHEMA:
            raise RecordError(f"{path}: written by a newer version (schema {schema}, known up to {SCHEMA}); update.")
        return pydantic.TypeAdapter(File).validate_json(text).records
    except OSError as error:
        raise RecordError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise RecordError(f"{path}: not a record: {where}: {first['msg'].lower()}; run that job again.") from error
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path}: damaged, not JSON ({error}); run that job again.") from error


def join(folders: Sequence[Path]) -> tuple[list[Record], dict[str, Path]]:
    """The records of several folders without repetitions (runs share a teacher), and their pictures by caption.

    Records of the same name that differ get their folder's name behind it.
    """
    places = [place for folder in folders for place in runs_in(Path(folder))]
    found = [(place, record) for place in places for record in read_records(place)]
    kept: list[tuple[Path, Record]] = []
    for folder, record in found:
        twin = next((i for i, (_, other) in enumerate(kept) if same_model(record, other)), None)
        if twin is None:
            kept.append((folder, record))
        elif len(record.latencies) > len(kept[twin][1].latencies):
            kept[twin] = (folder, record)
    names = [record.name for _, record in kept]
    records: list[Record] = []
    pictures: dict[str, Path] = {}
    for folder, record in kept:
        place = (folder if folder.is_dir() else folder.parent).resolve()
        twice = names.count(record.name) > 1
        named = dataclasses.replace(record, name=f"{record.name} ({place.name})") if twice else record
        records.append(named)
        for caption, file in record.pictures.items():
            pictures[f"{caption} ({place.name})" if caption in pictures else caption] = place / file
    return records, pictures


def runs_in(folder: Path) -> list[Path]:
    """The folder itself where it has a record, else the folders in it that have one, else itself, to be refused."""
    inside = sorted(file.parent for file in folder.glob(f"*/{FILE}")) if folder.is_dir() else []
    return [folder] if (folder / FILE).is_file() or not inside else inside


def same_model(one: Record, other: Record) -> bool:
    """The same network under the same name: what was measured once need not be shown twice."""
    keys = ("name", "role", "method", "architecture", "metrics", "macs", "params")
    same = all(getattr(one, key) == getattr(other, key) for key in keys)
    return same and (one.role == "teacher" or one.run == other.run)


def finite(value: Any) -> Any:
    """`value` with NaN and infinities as None, which is all JSON has for them."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


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
