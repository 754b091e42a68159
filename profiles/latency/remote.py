"""Benchmarks on another machine over ssh: the needed modules and model files are sent, the latencies come back.

The modules are the very files that measure here, so both machines measure in the same way. None of them imports torch.
"""

from __future__ import annotations

import ast
import io
import json
import shutil
import tempfile
import zipapp
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import pydantic

import exporters
import profiles
from compress import errors
from compress.errors import CompressError, UsageError, first_line
from compress.files import require_regular_file, sanitize, sha256
from exporters.model_info import read_model_info
from exporters.runtimes import SUFFIXES, Provider
from profiles.latency.benchmark import InterleavedTimings, Latency
from profiles.latency.cases import (
    BenchmarkCase,
    CaseTimings,
    Progress,
    ScenarioFailure,
    select_scenarios,
)
from profiles.latency.machine import GpuInfo
from profiles.latency.remote_worker import (
    BEGIN,
    END,
    STATUS_PREFIX,
    RemoteCase,
    RemoteFile,
    RemoteRequest,
    encode_request,
)
from profiles.latency.scenarios import ScenarioSettings
from profiles.latency.ssh import Address, RemoteOutput, describe_failure, run_python

#: runtimes with a single possible provider
FIXED_PROVIDERS: dict[str, Provider] = {"openvino": "cpu", "tensorrt": "cuda", "tensorrt-rtx": "cuda"}
#: seconds that the other machine may take in addition to the measurement: to start, and per case to load and warm up;
#: seconds of a case in MLPerf's length, which LoadGen determines
START_S, CASE_S, SUBMISSION_S = 120.0, 60.0, 4 * 3600.0
CHUNK = 2**16
#: a reply's levels, letters of a text, and largest number: a petabyte
MAX_DEPTH, MAX_TEXT, MAX_NUMBER = 10, 2000, 1e15
#: medians of the rounds of a case, in ms
Medians = Annotated[list[pydantic.PositiveFloat], pydantic.Field(min_length=1)]
PACKAGES = {
    "compress": Path(errors.__file__).parent,
    "exporters": Path(exporters.__path__[0]),
    "profiles": Path(profiles.__path__[0]),
}
WORKER = "profiles.latency.remote_worker"
#: sent modules that are imported inside functions
LAZY_MODULES = (
    "profiles.latency.cases", "profiles.latency.loadgen", "exporters.runtimes.onnxruntime",
    "exporters.runtimes.openvino", "exporters.runtimes.tensorrt",
)  # fmt: skip
#: run by the other machine's Python, before anything of ours is there: one line without a single quote, valid in any
#: Python since 2.7. It removes its directory when it ends.
BOOTSTRAP = (
    "import sys;sys.path.pop(0);import atexit,os,runpy,shutil,tempfile;"
    'sys.version_info>=(3,10) or sys.exit("%s is Python %d.%d, expected 3.10 or newer"%'
    "((sys.executable,)+tuple(sys.version_info[:2])));"
    'b=getattr(sys.stdin,"buffer",sys.stdin).read({size});len(b)=={size} or sys.exit("the archive did not arrive");'
    'd=tempfile.mkdtemp(prefix="compress-");atexit.register(shutil.rmtree,d,True);'
    'p=os.path.join(d,"worker.pyz");f=open(p,"wb");f.write(b);f.close();'
    'sys.argv=[p];runpy.run_path(p,run_name="__main__")'
)


@dataclass(frozen=True)
class RemoteMachine:
    """The other machine, as its `describe_machine` returns it."""

    cpu: str
    cores: pydantic.PositiveInt
    instructions: list[str]
    memory_bytes: int | None
    gpus: list[GpuInfo]
    system: Annotated[str, pydantic.Field(pattern=r"\S")]  #: "Linux x86_64"
    versions: dict[str, str]


def benchmark_remote(
    address: Address,
    cases: Sequence[BenchmarkCase],
    *,
    duration_s: float | None,
    scenarios: Sequence[ScenarioSettings] = (),
    precision: str | None = None,
    versions: Mapping[str, str] | None = None,
    progress: Progress = lambda _: None,
) -> CaseTimings:
    """Time exported files on another machine.

    Args:
        address: The machine; ssh must reach it without a question.
        cases: Files to time. Cases with the same file send it once.
        duration_s: Seconds of interleaved timing per case; None: no interleaved timing.
        scenarios: LoadGen scenarios to run.
        precision: Precision in which every case must really run; None: any.
        versions: Package -> required prefix of its version on the machine.
        progress: Called with status lines.

    Returns:
        Latencies of the other machine, and the sha256 of each case's file.

    Raises:
        UsageError: A case is a network, or has a provider that its runtime does not support.
        CompressError: The machine cannot be reached or cannot measure, or its reply is invalid.
    """
    paths, files = collect_files(cases)
    folders = {path: i for i, path in enumerate(dict.fromkeys(model_file(case) for case in cases))}
    remote_cases = tuple(create_remote_case(case, folders[model_file(case)]) for case in cases)
    request = RemoteRequest(
        tuple(files),
        remote_cases,
        time_limit(cases, duration_s, scenarios),
        duration_s,
        tuple(asdict(settings) for settings in scenarios),
        precision,
        dict(versions or {}),
    )
    progress(f"Copying {sum(file.size for file in files) / 1e6:.1f} MB to {address} …")
    archive = pack_worker()

    def display_status(line: str) -> bool:
        if line.startswith(STATUS_PREFIX):
            progress(f"{address}: {line.removeprefix(STATUS_PREFIX)}")
        return line.startswith(STATUS_PREFIX)

    output = run_python(
        address,
        BOOTSTRAP.format(size=len(archive)),
        iter_content(archive + encode_request(request), paths, files),
        limit_s=request.limit_s,
        on_message=display_status,
    )
    timings = validate_reply(address, parse_reply(address, output), cases, request)
    sums = {file.name: file.sha256 for file in files}
    return replace(timings, sha256={case: sums[one.file] for case, one in zip(cases, remote_cases, strict=True)})


def model_file(case: BenchmarkCase) -> Path:
    """Return the file of a case. Raises UsageError for a network."""
    if not isinstance(case.model, Path):
        raise UsageError(f"{case.name}: found a network, expected an exported file for another machine.")
    return case.model


def collect_files(cases: Sequence[BenchmarkCase]) -> tuple[list[Path], list[RemoteFile]]:
    """Return the files of all models, each model in a directory with its own number."""
    paths, files = list[Path](), list[RemoteFile]()
    models = {model_file(case): case for case in cases}
    for i, (model, case) in enumerate(models.items()):
        for path in (model, *find_companion_files(model, trust_engine=case.trust_engine)):
            name = f"{i}/{path.relative_to(model.parent).as_posix()}"
            paths.append(require_regular_file(path))
            files.append(RemoteFile(name, path.stat().st_size, sha256(path)))
    return paths, files


def find_companion_files(model: Path, *, trust_engine: bool = False) -> Sequence[Path]:
    """Return the other files that a model consists of. Validates ONNX files and engines."""
    if model.suffix.lower() == ".xml":
        return (model.with_suffix(".bin"),)
    return read_model_info(model, trust_engine=trust_engine).companion_files


def create_remote_case(case: BenchmarkCase, folder: int) -> RemoteCase:
    """Describe a case for the worker. Raises UsageError for a provider that its runtime does not support."""
    model = model_file(case)
    runtime = case.runtime or SUFFIXES[model.suffix.lower()][0]
    provider = FIXED_PROVIDERS.get(runtime)
    if provider is not None and case.provider not in (None, provider):
        raise UsageError(f"{case.name}: found provider {case.provider}, expected {provider} for {runtime}.")
    return RemoteCase(
        case.name,
        f"{folder}/{model.name}",
        runtime,
        provider or case.provider or "cpu",
        case.batch_size,
        case.threads,
        case.image_size,
        case.trust_engine,
    )


def time_limit(
    cases: Sequence[BenchmarkCase], duration_s: float | None, scenarios: Sequence[ScenarioSettings]
) -> float:
    """Return the seconds after which the other machine gives up."""
    limit = START_S + len(cases) * (CASE_S + 3 * (duration_s or 0))
    return limit + sum(
        SUBMISSION_S if settings.mlperf else CASE_S + 3 * settings.duration_s
        for _, settings in select_scenarios(cases, scenarios)
    )


def iter_content(head: bytes, paths: Sequence[Path], files: Sequence[RemoteFile]) -> Iterator[bytes]:
    """Yield all bytes to send. Raises CompressError for a file that has become shorter."""
    yield head
    for path, file in zip(paths, files, strict=True):
        left = file.size
        with open(path, "rb") as source:
            while chunk := source.read(min(CHUNK, left)):
                left -= len(chunk)
                yield chunk
        if left:
            raise CompressError(f"{path}: became shorter while it was copied; run again.")


def sent_modules() -> dict[str, Path]:
    """Return name -> file of every module that the worker may import."""
    modules: dict[str, Path] = {}
    pending = [WORKER, *LAZY_MODULES]
    while pending:
        name = pending.pop()
        path = find_module(name)
        if path is not None and name not in modules:
            modules[name] = path
            pending += [*find_imports(path), name.rpartition(".")[0]]
    return modules


def find_module(name: str) -> Path | None:
    """Return the file of a module of our packages; None for any other name."""
    top, *rest = name.split(".")
    if top not in PACKAGES:
        return None
    path = PACKAGES[top].joinpath(*rest)
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)


def find_imports(path: Path) -> Iterator[str]:
    """Yield the modules that a file imports at module level, except for type checking."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def pack_worker() -> bytes:
    """Pack the worker's modules into an archive that Python runs."""
    target = io.BytesIO()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for name, path in sent_modules().items():
            file = Path(folder, *name.split("."))
            file = file / "__init__.py" if path.name == "__init__.py" else file.with_suffix(".py")
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, file)
        zipapp.create_archive(folder, target, main=f"{WORKER}:main")
    return target.getvalue()


def parse_reply(address: Address, output: RemoteOutput) -> dict[str, Any]:
    """Find the reply in the output. Raises CompressError if there is none, or if it is an error."""
    _, begin, rest = output.stdout.decode(errors="replace").rpartition(BEGIN + "\n")
    content, end, _ = rest.partition("\n" + END)
    if not begin or not end:
        raise CompressError(f"{address}: {describe_failure(address, output)}")
    try:
        reply = clean_json(json.loads(content))
    except (ValueError, RecursionError) as error:
        raise CompressError(f"{address}: found an invalid reply ({first_line(error, 80)}), expected JSON.") from error
    if not isinstance(reply, dict):
        raise CompressError(f"{address}: found an invalid reply ({type(reply).__name__}), expected an object.")
    if "error" in reply:
        error = validate_part(address, "error", reply["error"], dict[str, Any])
        details = f" ({output.messages[-1]})" if error.get("is_crash") and output.messages else ""
        kind = UsageError if error.get("is_usage_error") else CompressError
        raise kind(f"{address}: {str(error.get('message'))[:2000]}{details}.")
    return reply


def clean_json(value: Any, depth: int = 0) -> Any:
    """Shorten all strings and remove their control characters. Raises ValueError for absurd numbers and deep values."""
    if depth > MAX_DEPTH:
        raise ValueError(f"more than {MAX_DEPTH} levels")
    if isinstance(value, str):
        return sanitize(value[:MAX_TEXT], " ")
    if isinstance(value, int | float) and not abs(value) <= MAX_NUMBER:  # also NaN
        raise ValueError(f"a number beyond {MAX_NUMBER:g}")
    if isinstance(value, dict):
        return {sanitize(key[:MAX_TEXT], " "): clean_json(one, depth + 1) for key, one in value.items()}
    return [clean_json(one, depth + 1) for one in value] if isinstance(value, list) else value


def validate_reply(
    address: Address, reply: Mapping[str, Any], cases: Sequence[BenchmarkCase], request: RemoteRequest
) -> CaseTimings:
    """Validate a reply. Raises CompressError if it is not of the expected form or measured something else."""
    interleaved = None
    if request.duration_s is not None:
        timings = validate_part(address, "interleaved", reply.get("interleaved"), dict[str, Any])
        latencies = validate_part(address, "latencies", timings.get("latencies"), list[Latency], len(cases))
        medians = validate_part(address, "medians", timings.get("medians"), list[Medians], len(cases))
        if len({len(rounds) for rounds in medians}) > 1:
            raise CompressError(f"{address}: found medians of different numbers of rounds in the reply.")
        for one, latency in zip(request.cases, latencies, strict=True):
            check_latency(address, one, "quick", latency, request.limit_s)
        interleaved = InterleavedTimings(
            dict(zip(cases, latencies, strict=True)), dict(zip(cases, medians, strict=True))
        )
    results: list[tuple[BenchmarkCase, Latency]] = []
    failures: list[ScenarioFailure] = []
    selected = {settings["scenario"] for settings in request.scenarios}
    for one in validate_part(address, "scenarios", reply.get("scenarios"), list[dict[str, Any]]):
        index = validate_part(address, "case", one.get("case"), pydantic.conint(ge=0, lt=len(cases)))
        latency = validate_part(address, "latency", one.get("latency"), Latency)
        check_latency(
            address, request.cases[index], latency.scenario if latency.scenario in selected else None, latency,
            request.limit_s,
        )  # fmt: skip
        results.append((cases[index], latency))
    for one in validate_part(address, "failures", reply.get("failures"), list[dict[str, Any]]):
        index = validate_part(address, "case", one.get("case"), pydantic.conint(ge=0, lt=len(cases)))
        name, message = (validate_part(address, key, one.get(key), str) for key in ("scenario", "message"))
        failures.append(ScenarioFailure(cases[index], name, f"{address}: {message}"))
    scenarios = [ScenarioSettings(**settings) for settings in request.scenarios]
    expected = sum(1 for _ in select_scenarios(cases, scenarios))
    if len(results) + len(failures) != expected:
        raise CompressError(f"{address}: found {len(results) + len(failures)} scenario results, expected {expected}.")
    machine = validate_part(address, "machine", reply.get("machine"), RemoteMachine)
    return CaseTimings(interleaved, results, asdict(machine), failures).require_any()


@cache
def type_adapter(kind: Any) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(kind)


def validate_part(address: Address, name: str, value: Any, kind: Any, length: int | None = None) -> Any:
    """Validate a part of the reply. Raises CompressError for another type or length."""
    try:
        # Strict JSON, because Python values would convert "nan" to a number.
        part = type_adapter(kind).validate_json(json.dumps(value), strict=True)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, (name, *first["loc"])))
        raise CompressError(f"{address}: found an invalid reply ({key}: {first['msg']}).") from error
    if length is not None and len(part) != length:
        raise CompressError(f"{address}: found {len(part)} {name} in the reply, expected {length}.")
    return part


def check_latency(address: Address, case: RemoteCase, scenario: str | None, latency: Latency, limit_s: float) -> None:
    """Raise CompressError if a latency is of another case, not positive, or longer than the measurement may take."""
    expected = (case.runtime, case.provider, case.batch_size, scenario)
    found = (latency.runtime, latency.device, latency.batch_size, latency.scenario)
    times = (latency.latency_ms_p50, latency.latency_ms_p90, latency.latency_ms_p99, latency.latency_ms_mean)
    numbers = [value for value in vars(latency).values() if isinstance(value, int | float)]
    if found != expected or min(times) <= 0 or max(times) > 1e3 * limit_s or min(numbers) < 0:
        raise CompressError(
            f"{address}: {case.name}: found {found} with {times} ms in the reply, expected {expected} and at most "
            f"{limit_s:,.0f} s."
        )
