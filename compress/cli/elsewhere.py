"""Models timed on another machine: which files go there, what is asked, and whether the answer is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.cli.output import print_status
from compress.cli.remote import Sent, ask, printable
from compress.errors import CompressError, UsageError
from compress.targets import Address, Target

if TYPE_CHECKING:
    from compress.cli.cases import Case
    from compress.predictor import Predictor
    from exporters.runtimes import Provider, Runtime
    from profiles.latency.benchmark import InterleavedTimings, Latency
    from profiles.latency.scenarios import ScenarioSettings
    from profiles.remote.order import Job, Part, Play

#: runtimes that know one place only
PLACES: dict[str, Provider] = {"openvino": "cpu", "tensorrt": "cuda", "tensorrt-rtx": "cuda"}
#: seconds that the other machine may take besides the measuring itself: to begin, and of each row to load and warm up;
#: for a row as long as MLPerf's, whose length is LoadGen's to choose
START_S, ROW_S, SUBMISSION_S = 120.0, 60.0, 4 * 3600.0


@dataclass(frozen=True)
class Found:
    """What came back."""

    rounds: InterleavedTimings[Case] | None
    played: list[tuple[Case, Latency]]
    machine: dict[str, Any]  #: that it was measured on, as `profiles.latency.machine.describe_machine` has it
    failed: list[str] = field(default_factory=list)  #: what could not be played, in a sentence each
    sha256: dict[int, str] = field(default_factory=dict)  #: of the file that was sent, by the number of the model

    def of(self, case: Case) -> dict[str, str]:
        """What is to be added to a row of a case; nothing where no file was sent."""
        return {"sha256": self.sha256[case.index]} if case.index in self.sha256 else {}


def open_to_send(model: str, **wishes: Any) -> Predictor:
    """A model that another machine will run: a file by what it says of itself, so that nothing need run it here."""
    from compress.models.wishes import ModelOverrides
    from compress.predictor import load_predictor, predictor_from_runner
    from exporters.model_info import read_model_info

    path = Path(model).expanduser()
    if path.suffix.lower() not in (".onnx", ".engine"):
        return load_predictor(model, untrained=True, **wishes)
    said = ModelOverrides(**wishes)
    return predictor_from_runner(read_model_info(path, trust_engine=said.trust_pickle), model, path, said)


def runtimes_there(opened: Sequence[Predictor], wanted: Sequence[Runtime] | None) -> list[list[Runtime]]:
    """For each model the runtimes in which it is timed there: those asked for, else its file's own.

    Says what is left out. Raises UsageError if that is everything.
    """
    from exporters.runtimes import SUFFIXES

    chosen, missing = list[list["Runtime"]](), []
    for one in opened:
        suffix = ".onnx" if one.file is None else one.file.suffix.lower()
        possible: tuple[Runtime, ...] = (one.runtime,) if suffix == ".engine" else SUFFIXES[suffix]
        chosen.append([possible[0]] if wanted is None else [name for name in wanted if name in possible])
        if left := [name for name in wanted or () if name not in possible]:
            where = f"it can be in {', '.join(possible)}"
            missing.append(f"{one.spec}: not timed on another machine in {', '.join(left)}; {where}")
    if not any(chosen):
        raise UsageError(f"{'; '.join(missing)}.")
    for text in missing:
        print_status(f"{text}.")
    return chosen


def time_elsewhere(target: Target, cases: Sequence[Case], quick_s: float | None, rules: Sequence[ScenarioSettings]) -> Found:
    """Time `cases` on the machine of `target`: all in turns for `quick_s` seconds each, and by each of the rules.

    Raises UsageError for what no other machine runs, CompressError where that one cannot be reached or cannot do it.
    """
    from profiles.remote.order import Order

    address = target.address
    assert address is not None
    files, parts = collected(cases)
    jobs = tuple(job_of(case) for case in cases)
    plays = plays_of(cases, rules)
    limit = START_S + len(cases) * (ROW_S + 3 * (quick_s or 0))
    limit += sum(SUBMISSION_S if play.rules["mlperf"] else ROW_S + 3 * play.rules["duration_s"] for play in plays)
    order = Order(tuple(parts), jobs, limit, quick_s, plays, target.precision, target.versions)
    print_status(f"Copying {sum(sent.size for sent in files) / 1e6:.1f} MB to {address} …")
    reply = ask(address, order, files, hear=lambda text: print_status(f"{address}: {text}"))
    sums = {part.name: part.sha256 for part in parts}
    sent = {case.index: sums[job.file] for case, job in zip(cases, jobs, strict=True)}
    return replace(checked(address, reply, cases, order), sha256=sent)


def collected(cases: Sequence[Case]) -> tuple[list[Sent], list[Part]]:
    """The files of all models, each model's in a folder of its own number."""
    from compress.files import sha256
    from profiles.remote.order import Part

    files, parts = list[Sent](), list[Part]()
    for index, case in {case.index: case for case in cases}.items():
        model = file_of(case)
        for path in (model, *beside(model, trusted=case.wishes["trust_pickle"])):
            name = f"{index}/{path.relative_to(model.parent).as_posix()}"
            files.append(Sent(path, path.stat().st_size))
            parts.append(Part(name, path.stat().st_size, sha256(path)))
    return files, parts


def file_of(case: Case) -> Path:
    """The file that is sent for a case, which has one: `runtimes_there` leaves no other."""
    assert case.file is not None
    return case.file


def beside(model: Path, *, trusted: bool) -> Sequence[Path]:
    """The other files that a model consists of."""
    if model.suffix.lower() == ".xml":
        return (model.with_suffix(".bin"),)
    from exporters.model_info import read_model_info

    return read_model_info(model, trust_engine=trusted).companion_files


def job_of(case: Case) -> Job:
    """What is asked of the other machine for a case. Raises UsageError for a place where its runtime never runs."""
    from profiles.remote.order import Job

    place, model = PLACES.get(case.runtime), case.model
    if place is not None and case.provider not in (None, place):
        raise UsageError(f"{model.spec}: {case.provider} was asked for, but {case.runtime} runs on {place}.")
    return Job(
        f"{case.index}/{file_of(case).name}",
        model.spec,
        case.runtime,
        place or case.provider or "cpu",
        case.size,
        case.threads,
        model.card.image_size,
        "fp32" if model.file is None else model.precision,
        bool(case.wishes["trust_pickle"]),
    )


def plays_of(cases: Sequence[Case], rules: Sequence[ScenarioSettings]) -> tuple[Play, ...]:
    """Each of the rules with each case that it goes with: a single stream is of one image."""
    from profiles.remote.order import Play

    return tuple(
        Play(number, asdict(rule))
        for rule in rules
        for number, case in enumerate(cases)
        if rule.scenario != "SingleStream" or case.size == 1
    )


def checked(address: Address, reply: Mapping[str, Any], cases: Sequence[Case], order: Any) -> Found:
    """The answer as numbers. Raises CompressError for one that is none, or is of something else than was asked."""
    from profiles.latency.benchmark import InterleavedTimings, Latency

    found = plain(reply)
    quick, rounds = found.get("quick"), None
    if order.quick_s is not None:
        quick = quick if isinstance(quick, dict) else {}
        latencies = read(address, "latencies", quick.get("latencies"), list[Latency], len(cases))
        medians = read(address, "medians", quick.get("medians"), list[list[float]], len(cases))
        for job, latency in zip(order.jobs, latencies, strict=True):
            refuse_other(address, job, "quick", latency)
        rounds = InterleavedTimings(dict(zip(cases, latencies, strict=True)), dict(zip(cases, medians, strict=True)))
    played, failed = list[tuple["Case", Latency]](), list[str]()
    answers = read(address, "played", found.get("played"), list[dict[str, Any]], len(order.plays))
    for play, one in zip(order.plays, answers, strict=True):
        if "error" in one:
            failed.append(
                f"{address}: {order.jobs[play.job].shown}, batch {order.jobs[play.job].batch}: {one['error']}"
            )
        else:
            latency = read(address, "latency", one.get("latency"), Latency, None)
            refuse_other(address, order.jobs[play.job], play.rules["scenario"], latency)
            played.append((cases[play.job], latency))
    if failed and rounds is None and not played:
        raise CompressError(" ".join(failed))
    return Found(rounds, played, read(address, "machine", found.get("machine"), dict[str, Any], None), failed)


def read(address: Address, name: str, value: Any, kind: Any, length: int | None) -> Any:
    """A part of the answer. Raises CompressError for one that is not of its kind, or not so many."""
    import pydantic

    try:
        found = pydantic.TypeAdapter(kind).validate_python(value)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, (name, *first["loc"])))
        raise CompressError(f"{address}: what came back is no measurement ({where}: {first['msg']}).") from error
    if length is not None and len(found) != length:
        raise CompressError(f"{address}: {len(found)} {name} came back, expected {length}.")
    return found


def refuse_other(address: Address, job: Job, scenario: str, found: Latency) -> None:
    """Raises CompressError for a measurement of something else than was asked for."""
    asked = (job.runtime, job.provider, job.batch, scenario)
    came = (found.runtime, found.device, found.batch_size, found.scenario)
    if came != asked or not found.latency_ms_p50 > 0:
        said = f"{came} of {found.latency_ms_p50} ms came back, expected {asked}"
        raise CompressError(f"{address}: {job.shown}: {said}.")


def plain(value: Any) -> Any:
    """JSON without signs that do something to a terminal."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(key): plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list) else value
