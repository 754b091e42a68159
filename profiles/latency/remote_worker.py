"""The part of a remote benchmark that runs on the other machine, which needs Python 3.10, NumPy and a runtime.

It receives a request and its files on standard input, measures in a child process, and prints the reply. Standard input
stays open meanwhile: its end means that the client is gone (Ctrl-C or a broken connection), and the measurement stops.
The child is separate because a runtime that crashes on a bad file must not prevent the reply and the cleanup.

Imports only the standard library at module level, so that a missing NumPy is reported.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from compress.errors import CompressError, UsageError

#: markers around the reply on standard output, where a login shell may print text of its own
BEGIN, END = "=====compress begins=====", "=====compress ends====="
#: prefix of status lines on standard error; other lines are messages of the runtimes
STATUS_PREFIX = "compress: "
#: names in the temporary directory, which the bootstrap line of `profiles.latency.remote` removes
FILES, REQUEST, REPLY = "files", "request.json", "reply.json"
MAX_REQUEST = 2**20
CHUNK = 2**20


class WorkerCrashedError(CompressError):
    """The measuring process ended without a reply."""


@dataclass(frozen=True)
class RemoteFile:
    """A file that is sent."""

    name: str  #: relative path with slashes: `0/net.onnx`; all files of the first model are in `0/`
    size: int  #: bytes
    sha256: str


@dataclass(frozen=True)
class RemoteCase:
    """A benchmark case, by JSON values. See `profiles.latency.cases.BenchmarkCase`."""

    name: str  #: displayed
    file: str  #: name of the file to load
    runtime: str
    provider: str
    batch_size: int = 1
    threads: int | None = None
    image_size: tuple[int, int] | None = None
    trust_engine: bool = False


@dataclass(frozen=True)
class RemoteRequest:
    """All that is measured in one call."""

    files: tuple[RemoteFile, ...]
    cases: tuple[RemoteCase, ...]
    limit_s: float  #: maximum seconds after the last byte was received
    duration_s: float | None = None  #: seconds of interleaved timing per case; None: none
    scenarios: tuple[dict[str, Any], ...] = ()  #: fields of `profiles.latency.scenarios.ScenarioSettings`
    precision: str | None = None  #: in which every case must really run; None: any
    versions: Mapping[str, str] = field(default_factory=dict)  #: package -> required prefix of its version


def encode_request(request: RemoteRequest) -> bytes:
    """Encode a request as one line of JSON."""
    return json.dumps(dataclasses.asdict(request)).encode("ascii") + b"\n"


def decode_request(line: bytes) -> RemoteRequest:
    """Decode a request. Raises CompressError for a damaged one, and for a file outside its directory."""
    try:
        values: dict[str, Any] = json.loads(line)
        files = tuple(RemoteFile(**file) for file in values.pop("files"))
        cases = tuple(RemoteCase(**{**case, "image_size": as_size(case["image_size"])}) for case in values.pop("cases"))
        request = RemoteRequest(files, cases, scenarios=tuple(values.pop("scenarios")), **values)
    except (ValueError, TypeError, KeyError) as error:
        raise CompressError(f"the request arrived damaged ({type(error).__name__})") from error
    for file in request.files:
        path = PurePosixPath(file.name)
        if path.is_absolute() or ".." in path.parts or not path.name:
            raise CompressError(f"{file.name}: found a path outside of the directory, expected one inside it")
    return request


def as_size(size: Any) -> tuple[int, int] | None:
    return None if size is None else (int(size[0]), int(size[1]))


def main() -> None:
    """Serve a request on standard input; as `measure`, do the measurement in the temporary directory."""
    folder = Path(sys.argv[0]).parent
    if sys.argv[1:2] == ["measure"]:
        request = decode_request((folder / REQUEST).read_bytes())
        (folder / REPLY).write_text(json.dumps(run_safely(measure_request, request, folder)))
        return
    for name in ("SIGTERM", "SIGHUP", "SIGINT"):
        signal.signal(getattr(signal, name), exit_on_signal)
    reply = run_safely(serve_request, sys.stdin.buffer, folder)
    sys.stdout.write(f"\n{BEGIN}\n{json.dumps(reply)}\n{END}\n")
    sys.stdout.flush()
    sys.exit(int("error" in reply))


def exit_on_signal(number: int, _: object) -> None:
    """Exit as after an error, so that cleanup runs."""
    sys.exit(128 + number)


def run_safely(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Return the result of a function, or its error as a reply. Errors of our own code keep their traceback."""
    try:
        return function(*arguments)
    except OSError as error:
        return error_reply(f"{error.strerror or error} ({error.filename or 'no file'})")
    except MemoryError:
        return error_reply("there is not enough memory")
    except CompressError as error:
        return error_reply(
            str(error).rstrip("."),
            is_usage_error=isinstance(error, UsageError),
            is_crash=isinstance(error, WorkerCrashedError),
        )


def error_reply(message: str, *, is_usage_error: bool = False, is_crash: bool = False) -> dict[str, Any]:
    return {"error": {"message": message, "is_usage_error": is_usage_error, "is_crash": is_crash}}


def print_status(text: str) -> None:
    """Print a status line that the client displays."""
    print(STATUS_PREFIX + text, file=sys.stderr, flush=True)


def serve_request(source: BinaryIO, folder: Path) -> dict[str, Any]:
    """Receive a request with its files and have it measured."""
    line = source.readline(MAX_REQUEST)
    request = decode_request(line)
    for file in request.files:
        receive_file(source, file, folder / FILES)
    (folder / REQUEST).write_bytes(line)
    return run_measurement(folder, request.limit_s)


def receive_file(source: BinaryIO, file: RemoteFile, folder: Path) -> None:
    """Write the next bytes to a file. Raises CompressError if they end early or have another hash."""
    path = folder / file.name
    path.parent.mkdir(parents=True, exist_ok=True)
    digest, left = hashlib.sha256(), file.size
    with open(path, "wb") as output:
        while left and (chunk := source.read(min(left, CHUNK))):
            output.write(chunk)
            digest.update(chunk)
            left -= len(chunk)
    if left or digest.hexdigest() != file.sha256:
        found = f"{file.size - left} bytes with sha256 {digest.hexdigest()[:12]}…"
        raise CompressError(f"{file.name}: found {found}, expected {file.size} bytes with {file.sha256[:12]}…")


def run_measurement(folder: Path, limit_s: float) -> dict[str, Any]:
    """Run the measuring process, at most for `limit_s` seconds and while the client is there."""
    deadline = time.monotonic() + limit_s
    # Its standard output only signals its end: runtimes write other text there. Temporary files that runtimes leave
    # behind, as ONNX Runtime does, are removed with the directory.
    child = subprocess.Popen(
        [sys.executable, sys.argv[0], "measure"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(folder)},
        start_new_session=True,
    )
    assert child.stdout is not None
    output = child.stdout.fileno()
    try:
        while True:
            readable, _, _ = select.select([0, output], [], [], max(0.0, deadline - time.monotonic()))
            if not readable:
                raise CompressError(f"not done after {limit_s:.0f} s; measure fewer cases or use a shorter --duration")
            if 0 in readable and not os.read(0, CHUNK):
                raise CompressError("the client has disconnected")
            if output in readable and not os.read(output, CHUNK):
                break
        code = child.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # including its own children
        child.wait()
        child.stdout.close()
    return read_reply(folder / REPLY, code)


def read_reply(path: Path, code: int) -> dict[str, Any]:
    """Read the reply of the measuring process. Raises WorkerCrashedError if there is none."""
    if path.is_file():
        return json.loads(path.read_bytes())
    if code < 0:
        name = signal.Signals(-code).name
        memory = "; the system may have run out of memory" if name == "SIGKILL" else ""
        raise WorkerCrashedError(f"the runtime there crashed ({name}{memory})")
    raise WorkerCrashedError(f"the measuring process there ended with exit code {code} and no reply")


def measure_request(request: RemoteRequest, folder: Path) -> dict[str, Any]:
    """Measure all cases. Raises CompressError if a package, version, file or runtime is not usable here."""
    if importlib.util.find_spec("numpy") is None:
        raise CompressError(f"NumPy is not installed there; install it with: {sys.executable} -m pip install numpy")
    from profiles.latency.cases import BenchmarkCase, benchmark_cases
    from profiles.latency.machine import package_versions, system_load
    from profiles.latency.scenarios import ScenarioSettings

    if request.scenarios and importlib.util.find_spec("mlperf_loadgen") is None:
        command = f"{sys.executable} -m pip install mlcommons-loadgen"
        raise CompressError(f"MLPerf's LoadGen is not installed there; install it with: {command}")
    load_before = system_load()
    check_versions(request.versions, package_versions())
    cases = [
        BenchmarkCase(
            case.name,
            folder / FILES / case.file,
            case.image_size,
            case.batch_size,
            runtime=case.runtime,  # pyright: ignore[reportArgumentType]
            provider=case.provider,  # pyright: ignore[reportArgumentType]
            threads=case.threads,
            trust_engine=case.trust_engine,
            validate=False,  # the client has validated the file
        )
        for case in request.cases
    ]
    indices = {case: i for i, case in enumerate(cases)}
    timings = benchmark_cases(
        cases,
        duration_s=request.duration_s,
        scenarios=[ScenarioSettings(**settings) for settings in request.scenarios],
        load_before=load_before,
        precision=request.precision,
        progress=print_status,
    )
    interleaved = timings.interleaved
    return {
        "interleaved": None if interleaved is None else {
            "latencies": [dataclasses.asdict(interleaved.latencies[case]) for case in cases],
            "medians": [interleaved.round_medians[case] for case in cases],
        },
        "scenarios": [
            {"case": indices[case], "latency": dataclasses.asdict(latency)} for case, latency in timings.scenarios
        ],
        "failures": [
            {"case": indices[one.case], "scenario": one.scenario, "message": one.message} for one in timings.failures
        ],
        "machine": timings.machine,
    }  # fmt: skip


def check_versions(required: Mapping[str, str], installed: Mapping[str, str]) -> None:
    """Raise CompressError if a package is missing or of another version; 1.2 requires 1.2.x, not 1.20."""
    for name, version in required.items():
        found = installed.get(name)
        if found is None or not f"{found}.".startswith(f"{version}."):
            raise CompressError(f"{name}: found {found or 'none'} there, expected {version} as in the target")
