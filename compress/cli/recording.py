"""`--record DIR`: what a command measures becomes a line in a run's folder, for `compress report` to find."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from compress.cli.opening import Opened
    from compress.models.card import Card
    from profiles.record import Record

Command = TypeVar("Command", bound=Callable[..., Any])
#: of the run of a model that no run made: sha256 of its weights
WEIGHTS = "weights"


def record_option(function: Command) -> Command:
    """Add `--record`, passed on as `record`."""
    return click.option(
        "--record", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
        help="Add what is measured to DIR/records.jsonl, for `compress report`.",
    )(function)  # fmt: skip


def remember(folder: Path, opened: Opened, **found: Any) -> None:
    """Add a measurement of an opened model to the records in `folder`. Raises RecordError."""
    form = format_of(opened)
    precision = opened.precision if form else "fp32"
    remember_form(folder, opened.spec, opened.card, form, precision, **found)


def remember_form(folder: Path, spec: str, card: Card, form: str, precision: str, **found: Any) -> None:
    """Add a measurement of a model in one form ("onnx", …, or "" for the network). Raises RecordError."""
    from compress.models.folder import versions
    from profiles import machine
    from profiles.record import Record, append_records, without_course

    folder = run_of(folder, spec)
    known = record_of(folder, spec, card)
    name, role, method = (unnamed(folder, spec, card), "model", "") if known is None else (
        known.name, known.role, known.method
    )  # fmt: skip
    run = {WEIGHTS: card.sha256} if known is None else without_course(known.run)
    run |= found.pop("run", {})
    here = {"machine": machine.describe(), "versions": versions()}  # unless it was measured elsewhere
    line = Record(
        name, role, method, card.architecture, card.task, card.image_size, form, precision, run=run, **here | found
    )
    append_records(folder, [line])


def run_of(folder: Path, spec: str) -> Path:
    """The run within `folder` that a model lies in, where there is one with records of its own: its line goes there."""
    from profiles.record import holds_records

    path = Path(spec)
    if not path.exists():
        return folder
    within = [place for place in path.resolve().parents if place.is_relative_to(folder.resolve())]
    inside = [place for place in within if place != folder.resolve() and holds_records(place)]
    return inside[0] if inside else folder


def unnamed(folder: Path, spec: str, card: Card) -> str:
    """What to call a model that no run knows: by its architecture, with its weights where others bear that name."""
    from compress.models.programs import EXPORTED
    from profiles.record import records_in

    name = Path(spec).stem if card.architecture == EXPORTED else card.architecture
    others = {record.run.get(WEIGHTS) for record in records_in(folder) if record.name == name} - {card.sha256}
    return f"{name} {str(card.sha256)[:8]}" if others else name


def format_of(opened: Opened) -> str:
    """What a record says of the file that a model was opened from; empty for a network."""
    if opened.file is None:
        return ""
    suffix = opened.file.suffix.lower()
    return {".onnx": "onnx", ".xml": "openvino"}.get(suffix, opened.runtime)


def record_of(folder: Path, spec: str, card: Card) -> Record | None:
    """The network in the records of `folder` that a model is, or was exported from; None where there is none.

    What lies in the folder is its student; anything else is the teacher there, if it has that architecture.
    """
    from profiles.record import records_in

    inside = Path(spec).exists() and Path(spec).resolve().is_relative_to(folder.resolve())
    records = [
        record for record in records_in(folder)
        if not record.format and record.architecture == card.architecture and (record.role == "teacher") != inside
    ]  # fmt: skip
    named = [record for record in records if record.name == spec]
    return (named or records or [None])[-1]
