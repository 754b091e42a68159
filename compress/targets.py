"""Targets: the machine that a measurement is for, its settings and its latency budget.

A target is an address (`ssh://host`) or a YAML file that also contains runtime, batch sizes, threads and a budget. Its
values replace arguments of `compress.benchmark` that are not given.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from compress.config.quantities import BatchSize, Count
from compress.errors import CompressError, UsageError, suggest_nearest
from compress.units import SECONDS, parse_quantity
from profiles.latency.ssh import Address

if TYPE_CHECKING:
    from compress.config import Document

SCHEME = "ssh://"
SUFFIXES = (".yaml", ".yml")
EXPECTED = "ssh://[USER@]HOST[:PORT][?python=PATH]"
#: valid hosts and users; a leading dash is excluded, because ssh would read it as an option
HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*|[0-9A-Fa-f:.]+(?:%[A-Za-z0-9_.-]+)?")
USER = re.compile(r"[A-Za-z0-9_][\w.@+-]*")
#: LoadGen scenario -> percentile that MLPerf judges it by; the others are judged by the 90th
BUDGET_PERCENTILES = {"MultiStream": "p99", "Server": "p99"}
DEFAULT_PERCENTILE, WITHOUT_LATENCY = "p90", "Offline"


@dataclass(frozen=True)
class Target:
    """The settings in a target file."""

    name: str = ""  #: name in tables; default: the name of the file
    host: str | None = None  #: ssh://[user@]host[:port]; null: this machine
    python: str | None = None  #: path of the Python on the host
    runtime: Literal["torch", "torch-compile", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"] | None = None
    provider: Literal["cpu", "cuda", "tensorrt", "openvino"] | None = None  #: device or ONNX Runtime provider
    precision: Literal["fp32", "fp16", "bf16", "int8"] | None = None  #: precision that must really run
    batch_size: tuple[BatchSize, ...] | None = None  #: images per call
    threads: Count | None = None  #: CPU threads of the runtime
    duration: str | None = None  #: time per row, such as 3s
    scenario: Literal["quick", "single-stream", "multi-stream", "offline", "server"] | None = None
    latency_budget_ms: float | None = None  #: maximum 90th percentile of a call
    versions: dict[str, str] = field(default_factory=dict)  #: package -> prefix of its version on the target

    @property
    def address(self) -> Address | None:
        """The address; None: this machine."""
        return None if self.host is None else parse_address(self.host, python=self.python)


def parse_address(url: str, *, python: str | None = None) -> Address:
    """Parse `ssh://user@host:port?python=/path`; `python` is the default. Raises UsageError."""
    if not url.isprintable():  # urlsplit would drop line ends and tabs
        raise UsageError(f"{url!r}: found a control character, expected {EXPECTED}.")
    try:
        parts = urlsplit(url)
        host, user, port = parts.hostname or "", parts.username, parts.port
        settings = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    except ValueError as error:
        raise UsageError(f"{url!r}: {error}; expected {EXPECTED}.") from error
    if parts.scheme != "ssh" or parts.path not in ("", "/") or parts.fragment:
        raise UsageError(f"{url!r}: expected {EXPECTED}, without a path.")
    if parts.password is not None:
        raise UsageError("the address contains a password; expected an ssh key, and an address without a password.")
    # urlsplit lowers the case, but names in ~/.ssh/config are case-sensitive
    host = unquote(parts.netloc.rpartition("@")[2].partition(":")[0]) if ":" not in host else host
    user = unquote(user) if user is not None else None
    if not HOST.fullmatch(host):
        raise UsageError(f"{url!r}: found host {host!r}, expected {EXPECTED}.")
    if user is not None and not USER.fullmatch(user):
        raise UsageError(f"{url!r}: found user {user!r}, expected {EXPECTED}.")
    if port == 0:
        raise UsageError(f"{url!r}: found port 0, expected 1 to 65535.")
    for key in settings.keys() - {"python"}:
        raise UsageError(f"{url!r}: no such setting: {key}{suggest_nearest(key, ['python']) or '; expected python.'}")
    return Address(host, user, port, validate_python_path(settings.get("python", python or Address.python)))


def validate_python_path(path: str) -> str:
    """Return the path of a Python, relative to the home directory if it starts with a tilde. Raises UsageError."""
    relative = path.removeprefix("~/")
    if not relative or relative.startswith(("-", "~")) or not relative.isprintable():
        raise UsageError(f"python: found {path!r}, expected the path of a Python on the other machine.")
    return relative


def load_target(text: str) -> Target:
    """Load a target from an address, a YAML file, or the name of a file in `target_directories`. Raises UsageError."""
    if text.startswith(SCHEME):
        parse_address(text)
        return Target(name=text.partition("?")[0], host=text)
    if text.lower().endswith(SUFFIXES):
        return load_target_file(Path(text).expanduser())
    for directory in target_directories():
        for suffix in SUFFIXES:
            if re.fullmatch(r"[\w.+-]+", text) and (directory / f"{text}{suffix}").is_file():
                return load_target_file(directory / f"{text}{suffix}")
    known = list_targets()
    places = " or ".join(str(directory) for directory in target_directories())
    hint = suggest_nearest(text, known) or (f"; known: {', '.join(known)}." if known else ".")
    raise UsageError(f"--target {text}: no {text}.yaml in {places}, and not an address ({EXPECTED}){hint}")


def target_directories() -> tuple[Path, Path]:
    """Return the directories of named targets: in the working directory, and the user's."""
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return Path("targets"), config / "compress" / "targets"


def list_targets() -> list[str]:
    paths = [path for directory in target_directories() if directory.is_dir() for path in directory.iterdir()]
    return sorted({path.stem for path in paths if path.suffix in SUFFIXES})


def load_target_file(path: Path) -> Target:
    """Load a YAML file. Raises UsageError with the line and the nearest key."""
    from compress.config import load_yaml, validate

    document = load_yaml(path)
    target = validate(Target, document)
    validate_target(target, document)
    return target if target.name else dataclasses.replace(target, name=path.stem)


def validate_target(target: Target, document: Document) -> None:
    """Raise UsageError for values of the right type that are wrong."""
    if target.batch_size is not None and not target.batch_size:
        raise document.error("batch_size", "expected a list of whole numbers > 0, such as [1, 8].")
    if target.latency_budget_ms is not None and not 0 < target.latency_budget_ms < math.inf:
        raise document.error("latency_budget_ms", f"found {target.latency_budget_ms}, expected a number > 0.")
    if target.duration is not None:
        try:
            parse_quantity(target.duration, SECONDS)
        except ValueError as error:
            raise document.error("duration", f"{error}.") from error
    if target.host is None:
        if target.python is not None:
            raise document.error("python", "has an effect on another machine only; give its host, or remove it.")
        return
    try:
        parse_address(target.host, python=target.python)
    except UsageError as error:
        raise document.error("host", str(error)) from error
    if target.runtime in ("torch", "torch-compile"):
        raise document.error("runtime", f"found {target.runtime}, expected a runtime of files for another machine.")


def validate_versions(target: Target | None) -> None:
    """Raise CompressError if packages on this machine differ from a target without a host."""
    from profiles.latency.machine import package_versions

    if target is None or target.host is not None:
        return
    installed = package_versions()
    for package, expected in target.versions.items():
        version = installed.get(package)
        if version is None or not f"{version}.".startswith(f"{expected}."):
            raise CompressError(f"{target.name}: found {package} {version or 'not installed'}, expected {expected}.")
