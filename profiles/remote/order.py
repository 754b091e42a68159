"""What the other machine is asked for: files, and how to time them. One line of JSON, then the files' bytes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any


class Refused(Exception):
    """The other machine cannot do what is asked for: a sentence without the machine's name and without its stop."""

    exit_code = 1


@dataclass(frozen=True)
class Part:
    """A file that is copied."""

    name: str  #: relative, with slashes: `0/net.onnx`; `0/` holds all that belongs to the first artefact
    size: int  #: bytes
    sha256: str


@dataclass(frozen=True)
class Job:
    """One thing to time."""

    file: str  #: name of the part to open
    shown: str  #: what its user calls it
    runtime: str  #: "onnxruntime", "openvino", "tensorrt" or "tensorrt-rtx"
    provider: str  #: "cpu", "cuda", or of ONNX Runtime "tensorrt" or "openvino": there and nowhere else
    batch: int = 1  #: images a call
    threads: int | None = None  #: None: one a core
    size: tuple[int, int] | None = None  #: (height, width) where the file leaves it open; None: the file says it
    precision: str = "fp32"  #: of the graph, as the file says
    trusted: bool = False  #: an engine may bring code for the processor with it


@dataclass(frozen=True)
class Play:
    """A scenario of MLPerf's for a job."""

    job: int  #: its place among the jobs
    rules: dict[str, Any]  #: fields of `profiles.latency.scenarios.ScenarioSettings`


@dataclass(frozen=True)
class Order:
    """All that is asked for in one call."""

    parts: tuple[Part, ...]
    jobs: tuple[Job, ...]
    limit_s: float  #: from the last byte copied on
    quick_s: float | None = None  #: of each job, all in turns; None: not timed so
    plays: tuple[Play, ...] = ()
    precision: str | None = None  #: in which every job must really run; None: any
    versions: Mapping[str, str] = field(default_factory=dict)  #: package -> how its version there must begin


def to_line(order: Order) -> bytes:
    return json.dumps(dataclasses.asdict(order)).encode("ascii") + b"\n"


def from_line(line: bytes) -> Order:
    """An order as it was. Raises Refused for what is none, and for a part that would lie outside its folder."""
    try:
        found: dict[str, Any] = json.loads(line)
        parts = tuple(Part(**part) for part in found.pop("parts"))
        jobs = tuple(Job(**{**job, "size": pair(job["size"])}) for job in found.pop("jobs"))
        plays = tuple(Play(**play) for play in found.pop("plays"))
        order = Order(parts, jobs, plays=plays, **found)
    except (ValueError, TypeError, KeyError) as error:
        raise Refused(f"the order did not arrive whole ({type(error).__name__})") from error
    for part in order.parts:
        path = PurePosixPath(part.name)
        if path.is_absolute() or ".." in path.parts or not path.name:
            raise Refused(f"{part.name} is no place inside a folder")
    return order


def pair(size: Any) -> tuple[int, int] | None:
    return None if size is None else (int(size[0]), int(size[1]))
