"""Who takes part in `compress compare`: for each method its runs, or why it cannot run here; nothing is spent yet."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.cli.options import read_document, read_options
from compress.errors import UsageError, nearest

if TYPE_CHECKING:
    from torch import nn

    from compress.engine.method import Method
    from compress.models.card import Card
    from compress.plan import Plan, Prepared

#: what a method may need -> (the option that brings it, what is missing without)
DATA = {"unlabelled": ("ood", "unlabelled images (--ood)"), "labelled": ("data", "labelled images (--data)")}
#: settings that must be the same for all, or that tell the runs apart
FIXED = ("student.model", "data.unlabelled", "data.labelled", "data.validation", "pace.steps", "pace.epochs")
FIXED += ("pace.time_limit", "pace.batch_size", "pace.seed")


@dataclass(frozen=True)
class Shared:
    """What every run is told."""

    options: Mapping[str, Any]  #: of `distill`, by their names; without those of the teacher
    teacher: Mapping[str, Any]  #: options of `distill` about the teacher
    sets: tuple[str, ...] = ()  #: `--set` for all

    def plan(self) -> Plan:
        """The settings of all, without a method. Raises UsageError for a setting that is not there."""
        from compress import config
        from compress.plan import Plan

        return config.validate(Plan, read_document(None, self.sets, self.options, teacher=self.first))

    @property
    def first(self) -> dict[str, Any]:
        from compress.cli.distill import TEACHER

        return {TEACHER[name]: value for name, value in self.teacher.items()}


@dataclass(frozen=True)
class Job:
    """One run: a method with a seed, in a folder of its own."""

    name: str
    seed: int
    folder: Path
    words: list[str]  #: the command line that makes it, from `distill` on
    follows: Job | None = None  #: this one has as many steps as that one made in its time

    @property
    def finished(self) -> bool:
        from profiles.record import holds_records

        return holds_records(self.folder)

    def command(self) -> list[str]:
        """The words with the steps of the run that it follows. Raises UsageError where that has not finished."""
        if self.follows is None:
            return self.words
        if not self.follows.finished:
            raise UsageError(f"seed {self.follows.seed} did not finish, whose steps this run is to make.")
        at = self.words.index("--time-limit")
        return [*self.words[:at], "--steps", str(self.follows.steps()), *self.words[at + 2 :]]

    def steps(self) -> int:
        """How many steps it made. Raises RecordError where its record cannot be read."""
        from profiles.record import read_records

        return int(read_records(self.folder)[-1].run["steps"])


@dataclass(frozen=True)
class Entrant:
    """A method that takes part."""

    key: str
    name: str
    ready: Prepared
    learns_from: list[str]
    settings: dict[str, Any]  #: those that were given
    jobs: list[Job]


@dataclass
class Field:
    """All methods that were asked for."""

    entrants: list[Entrant] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)  #: name, and why it cannot run here

    @property
    def jobs(self) -> list[Job]:
        """Every run, seed by seed, so that an early stop leaves something of each method."""
        return [job for row in zip(*(entrant.jobs for entrant in self.entrants), strict=True) for job in row]


def choose(wanted: str) -> dict[str, type]:
    """`all`, or names separated by commas -> the methods. Raises UsageError with the nearest name."""
    from compress.methods import METHODS, find_method

    if wanted.strip() == "all":
        return dict(METHODS)
    names = [name.strip() for name in wanted.split(",")]
    return {name: find_method(name) for name in dict.fromkeys(names)}


def route(sets: Sequence[str], methods: Mapping[str, type]) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """`--set mosaic.bn=10` goes to mosaic as method.bn=10, `--set data.views=1` to all: (for all, by method).

    Raises UsageError for a method that is not there or does not take part, and for what has an option of its own.
    """
    from compress.config import paths
    from compress.methods import METHODS
    from compress.plan import Plan

    sections = {path.partition(".")[0] for path in paths(Plan)} - {"method"}
    common: list[str] = []
    own: dict[str, list[str]] = {name: [] for name in methods}
    for item in sets:
        path, _, text = item.partition("=")
        owner = next((name for name in sorted({*methods, *METHODS}, key=len) if path.startswith(f"{name}.")), None)
        if owner in own:
            own[owner].append(f"method.{path.removeprefix(f'{owner}.')}={text}")
        elif owner is not None:
            raise UsageError(f"--set {item}: {owner} is not among --methods; leave one of the two out.")
        elif path in FIXED:
            raise UsageError(f"--set {item}: this has an option of its own, for it is part of what is compared.")
        elif path.partition(".")[0] in sections:
            common.append(item)
        else:
            first = path.partition(".")[0]
            hint = nearest(first, [*methods, *METHODS, *sections]) or "."
            raise UsageError(f"--set {item}: expected METHOD.SETTING=VALUE, and {first!r} is no method{hint}")
    return tuple(common), {name: tuple(items) for name, items in own.items()}


def given(name: str, kind: type, sets: Sequence[str]) -> dict[str, Any]:
    """A method's settings as they were given. Raises UsageError with the nearest setting, or saying what is wrong."""
    from compress import config

    found = config.parse_set(sets).get("method", {})
    label = name if "." not in name else "method"
    config.validate(kind, config.from_mapping({label: found}), path=label)
    return found


def enter(
    methods: Mapping[str, type], shared: Shared, own: Mapping[str, tuple[str, ...]], seeds: Sequence[int], out: Path,
    teacher: nn.Module, card: Card, *, follow: bool = False, before: str = "",
) -> Field:  # fmt: skip
    """Every method with its runs, or the reason why it has none. With `follow` seeds after the first have its steps.

    The run of a seed is in the folder METHOD-SEED of `out`, with `before` before that.

    Raises UsageError where the request is wrong for all, or a folder of `out` holds a run with other settings.
    """
    from compress.methods import display_name
    from compress.requirements import knowledge

    found = Field()
    for key, kind in methods.items():
        settings = given(key, kind, own[key])
        options, first, sets = told(key, kind, shared, own[key], card)
        read = obstructed(key, kind, options, first, sets, teacher, card)
        if isinstance(read, str):
            found.left_out.append((display_name(key), read))
            continue
        ready = prepared(*read, teacher, card)
        jobs = [
            Job(display_name(key), seed, folder, command(options, first and shared.teacher, sets, seed, folder))
            for seed in seeds
            for folder in [out / f"{before}{key.replace(':', '-')}-{seed}"]
        ]
        if follow:
            jobs = [jobs[0], *(replace(job, follows=jobs[0]) for job in jobs[1:])]
        for job in jobs:
            refuse_other(job, ready.plan)
        learns_from = knowledge(ready.method)
        found.entrants.append(Entrant(key, display_name(key), ready, learns_from, settings, jobs))
    return found


def told(
    key: str, kind: Any, shared: Shared, own: Sequence[str], card: Card
) -> tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]:
    """What the runs of one method are told: options, those of the teacher, settings.

    Data goes to who needs it; who has no teacher is told what the others know from theirs.
    """
    unneeded = [option for need, (option, _) in DATA.items() if need not in kind.needs]
    options = {**{name: v for name, v in shared.options.items() if name not in unneeded}, "method": key}
    if kind.teachers:
        return options, shared.first, (*shared.sets, *own)
    height, width = card.image_size
    known = [f"task.image_size=[{height}, {width}]", f"task.grey={str(card.grey).lower()}"]
    known += [f"task.resize={card.resize}"] if card.resize else []
    free = [item for item in shared.sets if not item.startswith("teachers.")]
    return options | {"classes": card.classes}, {}, (*known, *free, *own)


def obstructed(
    key: str, kind: Any, options: Mapping[str, Any], first: Mapping[str, Any], sets: tuple[str, ...],
    teacher: nn.Module, card: Card,
) -> tuple[Plan, Method] | str:  # fmt: skip
    """The plan and its method, or in words why it cannot run on this teacher and these data."""
    from compress.requirements import obstacle

    for need in kind.needs:
        option, what = DATA[need]
        if options.get(option) is None:
            return f"needs {what}"
    try:
        plan, method = read_options(None, sets, options, teacher=first)
    except UsageError as error:
        return str(error)
    return obstacle(key, method, card.task, teacher if first else None) or (plan, method)


def prepared(plan: Plan, method: Method, teacher: nn.Module, card: Card) -> Prepared:
    """The plan with its networks, as `prepare` makes it; the teacher is loaded only once for all."""
    from compress.models.network import Network
    from compress.plan import prepare, with_student

    if plan.teachers:
        assert isinstance(teacher, Network)
        return with_student(plan, method, [(teacher, card)], card)
    ready = prepare(plan, method)
    if ready.card.task != card.task:
        raise UsageError(
            f"{plan.data.labelled}: its labels are for {ready.card.task}, and the teacher is for {card.task}; give "
            "--data with labels of its kind."
        )
    return ready


def command(
    options: Mapping[str, Any], teacher: Mapping[str, Any], sets: tuple[str, ...], seed: int, folder: Path
) -> list[str]:
    """The words of the command line that makes a run."""
    words = ["distill"]
    for name, value in {**teacher, **options, "seed": seed, "out": folder}.items():
        if value is not None and value is not False and name != "data":
            option = f"--{name.replace('_', '-')}"
            words += [option] if value is True else [option, str(value)]
    if options.get("data"):  # for which `distill` has no option
        sets = (*sets, f"data.labelled={json.dumps(str(options['data']))}")
    return [*words, *(word for item in sets for word in ("--set", item)), "--json"]


def refuse_other(job: Job, plan: Plan) -> None:
    """Raises UsageError where the job's folder holds a run with other settings: it would not be the same contest."""
    from compress import config
    from compress.patch_size import AUTO, began_with
    from compress.plan import RECIPE, differences

    recipe = job.folder / RECIPE
    if not recipe.exists():
        return
    mine = config.plain(replace(plan, pace=replace(plan.pace, seed=job.seed)))
    if mine["method"].get("patch") == AUTO:
        mine["method"]["patch"] = began_with(job.folder)
    theirs = config.read_yaml(recipe).data
    if job.follows is not None:
        mine["pace"] |= {"time_limit": None, "steps": theirs["pace"]["steps"]}
    other = differences(mine, theirs)
    if other:
        raise UsageError(
            f"{job.folder}: holds a run with other settings ({'; '.join(other[:3])}); give the same to go on, choose "
            "another --out, or remove that folder."
        )
