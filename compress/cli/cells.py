"""What a sweep makes: a training for each student, method and seed; its files in each format and precision; scores.

All of it is told by what lies in the folders, and all work is done by commands of ours as processes of their own: one
that dies takes nothing with it, and each can be given again by hand.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.cli import sequence
from compress.cli.entrants import Job
from compress.errors import CompressError
from compress.files import write_json

if TYPE_CHECKING:
    from compress.experiments.config import SweepPlan
    from profiles.records import Record

#: in the folder of a run: what became of its files; how it was stopped early
OUTCOME, STOPPED = "files.json", "stopped.json"
Pair = tuple[str, str]  #: format, precision


class Stopped(Exception):
    """A signal asked for an end; what was going on has saved its state."""


@dataclass
class Hand:
    """What carries out commands, one at a time."""

    relay: sequence.Relay = field(default_factory=sequence.Relay)
    environment: Mapping[str, str] = field(default_factory=dict)
    one_of_many: bool = False  #: others work at the same time, so what each says needs a name before it
    label: str = ""  #: before each line that a command says

    def run(self, words: Sequence[str]) -> tuple[int, str]:
        """Exit code and last words. Raises Stopped after a signal."""
        done = sequence.played(words, self.relay, label=self.label, environment=self.environment)
        if self.relay.received:
            raise Stopped
        return done

    def ask(self, words: Sequence[str]) -> dict[str, Any]:
        """The object that a command prints. Raises CompressError with its last words where it prints none, Stopped."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "answer.json"
            code, last = sequence.played(
                words, self.relay, answer=path, label=self.label, environment=self.environment
            )  # fmt: skip
            if self.relay.received:
                raise Stopped
            text = path.read_text() if path.exists() else ""
        if not text.strip():
            raise CompressError(f"compress {words[0]}: {sequence.ended(code, last)}")
        return json.loads(text)


@dataclass(frozen=True)
class Model:
    """A network whose files are made, in the folder of its records."""

    folder: Path
    words: tuple[str, ...]  #: what names it on a command line: the model, and options about it
    wanted: tuple[Pair, ...]
    calibration: str | None  #: None: no int8
    plan: SweepPlan

    @property
    def asked(self) -> dict[str, Any]:
        """What files that are there must have been made with."""
        plan = self.plan
        return {
            "model": list(self.words[1:]), "val": plan.val, "calibration": self.calibration,
            "calibration_images": plan.calibration_images, "max_drop": plan.max_drop,
        }  # fmt: skip

    def outcome(self) -> dict[str, Any]:
        """What became of the files so far; files that were made otherwise, or are gone, are not in it."""
        try:
            found = json.loads((self.folder / OUTCOME).read_bytes())
            if found["asked"] != self.asked:
                raise ValueError("made with other settings")
        except (OSError, ValueError, KeyError, TypeError):
            return {"asked": self.asked, "made": [], "rejected": []}
        found["made"] = [one for one in found["made"] if (self.folder / one["file"]).exists()]
        return found

    def missing(self, outcome: Mapping[str, Any]) -> list[Pair]:
        known = {(one["format"], one["precision"]) for kind in ("made", "rejected") for one in outcome[kind]}
        return [pair for pair in self.wanted if pair not in known]

    def complete(self) -> bool:
        outcome = self.outcome()
        return not self.missing(outcome) and all(one["measured"] for one in outcome["made"])

    def record(self) -> Record | None:
        """Of the network in PyTorch; None where there is none yet. Raises RecordError."""
        from profiles.records import read_existing_records

        return next((record for record in read_existing_records(self.folder) if not record.format and record.metrics), None)


@dataclass(frozen=True)
class Cell:
    """A student, a method and a seed."""

    student: str
    method: str  #: as on the command line
    job: Job
    model: Model

    @property
    def name(self) -> str:
        return self.job.folder.name

    @property
    def pruned(self) -> dict[str, Any] | None:
        """How the training was stopped early; None: it was not, or it is to go on all the same."""
        path = self.job.folder / STOPPED
        if self.model.plan.prune.kind == "none" or self.job.finished or not path.exists():
            return None
        return json.loads(path.read_bytes())

    @property
    def done(self) -> bool:
        return self.pruned is not None or (self.job.finished and self.model.complete())

    @property
    def score(self) -> float | None:
        """Of the trained student, or the last one of a training that was stopped early."""
        if self.pruned is not None:
            return self.pruned["score"]
        record = self.model.record() if self.job.finished else None
        return None if record is None else next(iter(record.metrics.values()), None)


def make_files(model: Model, hand: Hand) -> None:
    """Make, verify and measure what is missing, and add it to the records. Raises CompressError, Stopped, RecordError.

    What answers too differently is not made; the reason is kept.
    """
    outcome = model.outcome()
    for pairs in orders(model, outcome):
        found = exported(model, pairs, hand)
        outcome["made"] += [entry(one, model.folder) for one in found["artefacts"]]
        outcome["rejected"] += found["rejected"]
        write_json(model.folder / OUTCOME, outcome)
    for one in outcome["made"]:
        if one["measured"]:
            continue
        if one["not_run"] is None:
            words = ["eval", str(model.folder / one["file"]), "--data", model.plan.val, *root(model.plan)]
            one["metrics"] = hand.ask([*words, "--json"])["metrics"]
        write_down(model, one)
        one["measured"] = True
        write_json(model.folder / OUTCOME, outcome)


def exported(model: Model, pairs: Sequence[Pair], hand: Hand) -> dict[str, Any]:
    """What came of one order: `artefacts`, and those `rejected` with the reason. Raises as `Hand.ask`."""
    from exporters.api import artifact_name

    found = hand.ask(export_words(model, pairs))
    for one in found["rejected"]:
        path = model.folder / "files" / artifact_name(one["format"], one["precision"])
        one["reason"] = one["reason"].removeprefix(f"{path}: ")
    return found


def orders(model: Model, outcome: Mapping[str, Any]) -> list[list[Pair]]:
    """What is missing, as orders that each are one command: all formats in all precisions, or a format by itself."""
    left = model.missing(outcome)
    if len(left) == len(model.wanted):
        return [left] if left else []
    return [[pair for pair in left if pair[0] == format] for format in dict.fromkeys(pair[0] for pair in left)]


def export_words(model: Model, pairs: Sequence[Pair]) -> list[str]:
    """The command that makes some files of a model."""
    from exporters.api import artifact_name

    formats, precisions = (list(dict.fromkeys(pair[i] for pair in pairs)) for i in (0, 1))
    out = model.folder / "files"
    if len(pairs) == 1:
        out /= artifact_name(*pairs[0])  # pyright: ignore[reportArgumentType]
    words = ["export", *model.words, "--format", ",".join(formats), "--precision", ",".join(precisions)]
    if "int8" in precisions:
        assert model.calibration is not None
        words += ["--calibration", model.calibration, "--calibration-images", str(model.plan.calibration_images)]
        words += ["--allow-slower"]  # the report shows how it compares
    if model.plan.max_drop is not None and set(precisions) != {"fp32"}:
        words += ["--max-drop", str(model.plan.max_drop), "--val", model.plan.val]
    return [*words, *root(model.plan), "--out", str(out), "--json"]


def root(plan: SweepPlan) -> list[str]:
    return [] if plan.data_root is None else ["--data-root", str(plan.data_root)]


def entry(artefact: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """An artefact as `files.json` has it: by its place in the folder, to be measured unless it does not run here."""
    file = str(Path(artefact["path"]).relative_to(folder))
    return {**artefact, "file": file, "metrics": {}, "not_run": artefact["unverified"], "measured": False}


def write_down(model: Model, made: Mapping[str, Any]) -> None:
    """Add the record of a file to those of its model."""
    from profiles.records import append_records, without_history

    whole = model.record()
    assert whole is not None  # the model's own record comes first
    export = {key: value for key, value in made.items() if key not in ("metrics", "not_run", "file", "measured")}
    append_records(model.folder, [replace(
        whole, format=made["format"], precision=made["precision"], metrics=made["metrics"],
        size_bytes=made["bytes"], export=export, latencies=[], run=without_history(whole.run), images={}, at="",
    )])  # fmt: skip


@dataclass(frozen=True)
class Teacher:
    """The model that all learn from, with what is measured of it once for all."""

    model: Model
    net: Any
    card: Any

    @cached_property
    def name(self) -> str:
        return f"Teacher {self.card.architecture}"

    @property
    def done(self) -> bool:
        return self.model.record() is not None and self.model.complete()

    def make(self, hand: Hand) -> None:
        """Score it, count it, make its files. Raises as `make_files`."""
        from compress.training.results import create_model_record
        from profiles.records import append_records

        plan = self.model.plan
        if self.model.record() is None:
            words = ["eval", *self.model.words, "--data", plan.val, *root(plan), "--json"]
            metrics = hand.ask(words)["metrics"]
            counted = create_model_record(self.net, self.card, name=self.name, role="teacher")
            run = {"teacher": plan.teacher, "val": plan.val}
            append_records(self.model.folder, [replace(counted, metrics=metrics, run=run)])
        make_files(self.model, hand)


def facts(cell: Cell, *, state: str, error: str | None) -> dict[str, Any]:
    """A cell for programs."""
    finished = cell.job.finished
    record = cell.model.record() if finished else None
    outcome = cell.model.outcome() if finished else {"made": [], "rejected": []}
    run = {} if record is None else record.run
    return {
        "cell": cell.name, "student": cell.student, "method": cell.method, "name": cell.job.name,
        "seed": cell.job.seed, "folder": str(cell.job.folder), "state": state, "error": error, "score": cell.score,
        "steps": run.get("steps"), "seconds": run.get("wall_s"),
        "stopped_after": None if cell.pruned is None else cell.pruned["tenth"] / 10,
        "files": [
            {
                "format": one["format"], "precision": one["precision"], "path": str(cell.job.folder / one["file"]),
                "bytes": one["bytes"], "metrics": one["metrics"], "not_run": one["not_run"],
            }
            for one in outcome["made"]
        ],
        "left_out": [
            {"format": one["format"], "precision": one["precision"], "reason": one["reason"]}
            for one in outcome["rejected"]
        ],
    }  # fmt: skip
