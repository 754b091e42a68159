"""Targets: the machine that a measurement is for, how to reach it, and the settings that are measured there.

`--target` takes an address (`ssh://host`) or a file in YAML that also keeps runtime, batch, threads and a latency
budget. What such a file says stands in for the options that are not given on the command line.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import click

from compress.errors import CompressError, UsageError, nearest
from compress.units import SECONDS, parse

if TYPE_CHECKING:
    from compress.config import Document
    from profiles.latency import Latency

Command = TypeVar("Command", bound=Callable[..., Any])
SCHEME = "ssh://"
SUFFIXES = (".yaml", ".yml")
EXPECTED = "ssh://[USER@]HOST[:PORT][?python=PATH]"
#: what may stand for a host or a user: no dash first, which ssh would take for an option
HOST, USER = (
    re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*|[0-9A-Fa-f:.]+(?:%[A-Za-z0-9_.-]+)?"),
    re.compile(r"[A-Za-z0-9_][\w.@+-]*"),
)
#: what a budget is held against: the percentile by which MLPerf judges the scenario. For one image after the other that
#: is the 90th: a median says nothing of every second call, and the 99th of a few hundred is a matter of luck.
JUDGED_BY = {"MultiStream": "latency_ms_p99", "Server": "latency_ms_p99"}
USUALLY, WITHOUT_LATENCY = "latency_ms_p90", "Offline"


@dataclass(frozen=True)
class Address:
    """Where and by which Python."""

    host: str
    user: str | None = None
    port: int | None = None
    python: str = "python3"

    def __str__(self) -> str:
        """For people: `user@host:port`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (f"{self.user}@" if self.user else "") + host + (f":{self.port}" if self.port else "")


@dataclass(frozen=True)
class Target:
    """What a target file may say."""

    name: str = ""  #: shown to people; of a file without it the file's own
    host: str | None = None  #: ssh://[user@]host[:port]; null: this machine
    python: str | None = None  #: path of the Python there
    runtime: Literal["torch", "torch-compile", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"] | None = (
        None  #: that is timed
    )
    provider: Literal["cpu", "cuda", "tensorrt", "openvino"] | None = None  #: where it runs
    precision: Literal["fp32", "fp16", "bf16", "int8"] | None = None  #: in which it must really run
    batch: tuple[int, ...] | None = None  #: images a call
    threads: int | None = None  #: of the runtime, on a processor
    duration: str | None = None  #: of each row, as 3s
    scenario: Literal["quick", "single-stream", "multi-stream", "offline", "server"] | None = None  #: how it is timed
    latency_budget_ms: float | None = None  #: that the 90th percentile of a call must keep
    versions: dict[str, str] = field(default_factory=dict)  #: package -> how its version there must begin

    @property
    def address(self) -> Address | None:
        """None: this machine."""
        return None if self.host is None else read_address(self.host, python=self.python)


def read_address(url: str, *, python: str | None = None) -> Address:
    """`ssh://user@host:port?python=/path` in parts. Raises UsageError for anything else.

    `python`: that of a target file; the address goes before it.
    """
    try:
        parts = urlsplit(url)
        host, user, port = parts.hostname or "", parts.username, parts.port
        asked = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    except ValueError as error:
        raise UsageError(f"{url!r}: {error}; expected {EXPECTED}.") from error
    if parts.scheme != "ssh" or parts.path not in ("", "/") or parts.fragment:
        raise UsageError(f"{url!r}: expected {EXPECTED}, without a path.")
    if parts.password is not None:
        raise UsageError("the address has a password in it; expected a key of ssh's, and an address without password.")
    # urlsplit makes letters small, but a name in ~/.ssh/config need not be
    host = spelt_host(parts.netloc) if ":" not in host else host
    user = unquote(user) if user is not None else None
    if not HOST.fullmatch(host):
        raise UsageError(f"{url!r}: found the host {host!r}, expected {EXPECTED}.")
    if user is not None and not USER.fullmatch(user):
        raise UsageError(f"{url!r}: found the user {user!r}, expected {EXPECTED}.")
    if port == 0:
        raise UsageError(f"{url!r}: found port 0, expected 1 to 65535.")
    for key in asked.keys() - {"python"}:
        raise UsageError(
            f"{url!r}: no such setting of an address: {key}{nearest(key, ['python']) or '; known is python.'}"
        )
    return Address(host, user, port, checked_python(asked.get("python", python or Address.python)))


def spelt_host(netloc: str) -> str:
    return unquote(netloc.rpartition("@")[2].partition(":")[0])


def checked_python(path: str) -> str:
    """The path of a Python, from the home folder there where it begins with a tilde."""
    short = path.removeprefix("~/")
    if not short or short.startswith(("-", "~")) or not short.isprintable():
        raise UsageError(f"python: found {path!r}, expected the path of a Python on the other machine.")
    return short


def read_target(text: str) -> Target:
    """What `--target` says: an address, a YAML file, or the name of a file among those of `target_folders`."""
    if text.startswith(SCHEME):
        read_address(text)
        return Target(name=text.partition("?")[0], host=text)
    if text.lower().endswith(SUFFIXES):
        return read_file(Path(text).expanduser())
    for folder in target_folders():
        for suffix in SUFFIXES:
            if re.fullmatch(r"[\w.+-]+", text) and (folder / f"{text}{suffix}").is_file():
                return read_file(folder / f"{text}{suffix}")
    known = known_targets()
    places = " or ".join(str(folder) for folder in target_folders())
    close = nearest(text, known) or (f"; known are {', '.join(known)}." if known else ".")
    raise UsageError(f"--target {text}: no {text}.yaml in {places}, and no address ({EXPECTED}){close}")


def target_folders() -> tuple[Path, Path]:
    """Where named targets lie: beside the work, and of the user."""
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return Path("targets"), config / "compress" / "targets"


def known_targets() -> list[str]:
    found: Iterable[Path] = (path for folder in target_folders() if folder.is_dir() for path in folder.iterdir())
    return sorted({path.stem for path in found if path.suffix in SUFFIXES})


def read_file(path: Path) -> Target:
    """The target in a YAML file. Raises UsageError with the line and the nearest key."""
    from compress.config import read_yaml, validate

    document = read_yaml(path)
    target = validate(Target, document)
    refuse_odd_values(target, document)
    return target if target.name else dataclasses.replace(target, name=path.stem)


def refuse_odd_values(target: Target, document: Document) -> None:
    """What types do not say. Raises UsageError."""
    if target.batch is not None and (not target.batch or min(target.batch) < 1):
        raise document.error("batch", "expected a list of whole numbers > 0, such as [1, 8].")
    if target.threads is not None and target.threads < 1:
        raise document.error("threads", f"found {target.threads}, expected a whole number > 0.")
    if target.latency_budget_ms is not None and not target.latency_budget_ms > 0:
        raise document.error("latency_budget_ms", f"found {target.latency_budget_ms}, expected a number > 0.")
    if target.duration is not None:
        try:
            parse(target.duration, SECONDS)
        except ValueError as error:
            raise document.error("duration", f"{error}.") from error
    if target.host is None:
        if target.python is not None:
            raise document.error("python", "is of another machine; give its host too, or leave it out.")
        return
    try:
        read_address(target.host, python=target.python)
    except UsageError as error:
        raise document.error("host", str(error)) from error
    if target.runtime in ("torch", "torch-compile"):
        raise document.error("runtime", f"found {target.runtime}, which runs here only; expected a runtime of files.")


def take_target(context: click.Context, _: click.Parameter, value: str | None) -> Target | None:
    """The target; what it says becomes the default of the options that say the same."""
    if value is None:
        return None
    target = read_target(value)
    said = {
        "runtimes": target.runtime,
        "provider": target.provider,
        "threads": target.threads,
        "batch_size": None if target.batch is None else ",".join(map(str, target.batch)),
        "duration": target.duration,
        "scenarios": target.scenario,
    }
    context.default_map = {**(context.default_map or {}), **{key: one for key, one in said.items() if one is not None}}
    return target


def target_options(function: Command) -> Command:
    """Add `--target` and `--check`."""
    check = click.option(
        "--check", is_flag=True, help="Exit code 1 if a row does not hold the target's latency budget."
    )
    where = click.option(
        "--target",
        callback=take_target,
        is_eager=True,
        metavar="ssh://HOST|NAME|FILE.yaml",
        help="Measure on another machine, or for a named target; see docs/targets.md.",
    )
    return where(check(function))


def refuse_other_versions(target: Target | None) -> None:
    """Raises CompressError where what is installed here is not what a target without a host says."""
    from profiles.machine import versions

    if target is None or target.host is not None:
        return
    found = versions()
    for package, version in target.versions.items():
        here = found.get(package)
        if here is None or not f"{here}.".startswith(f"{version}."):
            raise CompressError(f"{target.name}: found {package} {here or 'not installed'} here, expected {version}.")


def refuse_other_precision(target: Target | None, rows: list[tuple[str, Latency]]) -> None:
    """Raises CompressError where a model ran in another precision than its target says."""
    for name, latency in rows:
        if target is not None and target.precision not in (None, latency.precision):
            where = f"runs in {latency.precision} in {latency.runtime}"
            raise CompressError(f"{name}: {where}, expected {target.precision}, as the target {target.name} says.")


def judged(target: Target | None, latency: Latency) -> dict[str, Any]:
    """Whether a row holds the budget of its target, to be added to it; nothing without one, and of Offline."""
    if target is None or target.latency_budget_ms is None or latency.scenario == WITHOUT_LATENCY:
        return {}
    by = JUDGED_BY.get(latency.scenario, USUALLY)
    found, budget = getattr(latency, by), target.latency_budget_ms
    return {"latency_budget_ms": budget, "budget_percentile": by.rpartition("_")[2], "holds_budget": found <= budget}


def verdict(target: Target | None, named: list[tuple[str, Latency]]) -> list[str]:
    """A line for every row on the budget; none without one."""
    return [line for name, latency in named for line in verdict_of(target, name, latency)]


def verdict_of(target: Target | None, name: str, latency: Latency) -> list[str]:
    found = judged(target, latency)
    if not found or target is None:
        return []
    by, word = found["budget_percentile"], "holds" if found["holds_budget"] else "does NOT hold"
    value = getattr(latency, f"latency_ms_{by}")
    what = f"{name}, {latency.runtime}, batch {latency.batch_size}"
    return [f"{what}: {by} {value:.3f} ms {word} the {target.latency_budget_ms:g} ms of {target.name}"]


def refuse_check_without_budget(target: Target | None, *, check: bool) -> None:
    """Raises UsageError for `--check` with nothing to check against."""
    if check and (target is None or target.latency_budget_ms is None):
        raise UsageError("--check needs a latency budget: a --target FILE.yaml that says latency_budget_ms.")


def refuse_over_budget(target: Target | None, named: list[tuple[str, Latency]], *, check: bool) -> None:
    """Raises CompressError, with `check`, where a row does not hold the budget; to be called after printing."""
    lines = verdict(target, named)
    over = [line for line in lines if " NOT " in line]
    if check and not lines:
        raise CompressError("--check: nothing was timed that has a latency to hold against the budget.")
    if check and over:
        raise CompressError("; ".join(over) + ".")
