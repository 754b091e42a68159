"""Rows of whole commands and several processes: environments, memory, killed ranks and workers, concurrent runs."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.reliability.counts import Counts, Scale
from benchmarks.reliability.isolated import TESTS, Outcome, call_isolated, count_failure
from benchmarks.reliability.writers import TEACHER, save_noise

#: seconds after which a command counts as hanging
PATIENCE = 600


def start_command(*arguments: object, cwd: Path, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Start `compress ARGUMENTS` from this source."""
    base = {**os.environ, "PYTHONPATH": str(TESTS.parent)}
    return subprocess.Popen(
        [sys.executable, "-m", "compress", *map(str, arguments)], cwd=cwd, text=True, errors="replace",
        env=base if environment is None else environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def wait_for_end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit code and standard error; None of its processes is left."""
    try:
        _, error = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        _, error = process.communicate()
        return -1000, f"no end in {PATIENCE} s; {error}"
    return process.returncode, error


def tiny_distill(images: Path, out: Path | str, *more: object) -> list[object]:
    from invoking import TINY

    return ["distill", "--teacher", TEACHER, "--ood", images, "--student", "wrn16_1", "--out", out, *TINY, *more]


def hash_student(run_dir: Path) -> str:
    from compress.models.loading import load_model

    network, _ = load_model(run_dir / "last")
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()


def is_crash(error: str) -> bool:
    return "Traceback" in error or "internal error" in error


# R14: environments of the command.


def run_command_environments(scale: Scale, counts: Counts) -> None:
    """The same tiny distillation under other locales, homes, terminals, time zones and paths."""
    usual = {
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", "/"),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    usual["PYTHONPATH"] = str(TESTS.parent)
    without_home = {name: value for name, value in usual.items() if name != "HOME"}
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    variants: list[tuple[str, dict[str, str], bytes | str]] = [
        ("LC_ALL=C, ASCII output", usual | ascii_only, "run"),
        ("HOME unset", without_home, "run"),
        ("HOME missing", usual | {"HOME": "/nowhere"}, "run"),
        ("a path that is not UTF-8", usual, b"run \xff\xfe"),
        ("LC_ALL=tr_TR.UTF-8, TZ=Asia/Kathmandu", usual | {"LC_ALL": "tr_TR.UTF-8", "TZ": "Asia/Kathmandu"}, "run"),
        ("TERM=dumb, COLUMNS=1", usual | {"TERM": "dumb", "COLUMNS": "1", "LINES": "0"}, "run"),
        ("TMPDIR with spaces", usual | {"TMPDIR": "{here}/süß tmp"}, "run 学生"),
        ("TZ=garbage, LANG=garbage", usual | {"TZ": "\x01", "LANG": "garbage", "LC_ALL": "garbage"}, "run"),
    ]  # fmt: skip
    with TemporaryDirectory(prefix="reliability-") as name:
        here = Path(name)
        images = save_noise(here / "images", 8)
        (here / "süß tmp").mkdir()
        first = run_variant(here / "usual", images, usual | {"LC_ALL": "C.UTF-8"}, "run")
        if first.kind != "returned":
            counts.add("command", "internal", f"the usual environment: {first.text}")
            return
        for i, (what, environment, out) in enumerate(variants[: scale.count(len(variants))]):
            filled = {key: value.replace("{here}", str(here)) for key, value in environment.items()}
            outcome = run_variant(here / str(i), images, filled, out)
            if outcome.kind == "returned":
                counts.add(
                    "command", "expected" if outcome.value == first.value else "silent", f"{what}: another student"
                )
            elif outcome.kind == "refused" and isinstance(out, bytes):
                counts.add("command", "expected")
                counts.note(f"{what}: refused: {outcome.text[-160:]}")
            else:
                counts.add("command", "internal" if outcome.kind == "internal" else "other", f"{what}: {outcome.text}")


def run_variant(folder: Path, images: Path, environment: dict[str, str], out: bytes | str) -> Outcome:
    folder.mkdir()
    environment = environment | {"COMPRESS_CACHE": str(folder / "cache")}
    process = start_command(*tiny_distill(images, os.fsdecode(out)), cwd=folder, environment=environment)
    code, error = wait_for_end(process)
    if is_crash(error) or code not in (0, 1, 2):
        return Outcome("internal", text=f"exit code {code}: {error[-600:]}")
    if code:
        return Outcome("refused", text=error)
    return call_isolated(hash_student, folder / os.fsdecode(out))


# R10: memory.


def train_with_batch(folder: Path, images: Path) -> dict[str, Any]:
    import compress

    result = compress.distill(
        TEACHER, student="wrn16_1", unlabeled=str(images), batch_size=256, steps=1, precision="32", device="cpu",
        method="kd", settings={"data.views": 32}, output_dir=folder,
    )  # fmt: skip
    return {"steps": result.steps}


def run_memory_limits(scale: Scale, counts: Counts) -> None:
    """An address space of 30 to 110 % of what a training needs: it works, or an error says what to do."""
    rng = random.Random(scale.seed)
    with TemporaryDirectory(prefix="reliability-") as name:
        here = Path(name)
        images = save_noise(here / "images", 8)
        need = find_need(here, images)
        counts.note(f"the training needs {need / 1e6:,.0f} MB of address space more than Python")
        for i in range(scale.count(12)):
            share = (0.3 + 0.8 * (i + rng.random()) / scale.count(12)) if scale.count(12) > 1 else 0.7
            outcome = call_isolated(
                train_with_batch, here / str(i), images, address_space=int(share * need), seconds=300
            )
            if outcome.kind in ("returned", "refused"):
                counts.add("refused" if outcome.kind == "refused" else "works", "expected")
                if outcome.kind == "refused" and "memory" not in outcome.text:
                    counts.note(f"an error that does not name the memory: {outcome.text[:200]}")
            else:
                count_failure(counts, "training", outcome, f"{share:.0%} of the need")
    counts.note("memory of a GPU: not run: no GPU")


def find_need(here: Path, images: Path) -> int:
    """Bytes of address space with which the training works, by bisection to 5 %."""
    low, high = 0, 4 << 30
    for i in range(6):
        middle = (low + high) // 2
        outcome = call_isolated(train_with_batch, here / f"need{i}", images, address_space=middle, seconds=300)
        low, high = (low, middle) if outcome.kind == "returned" else (middle, high)
    return high


# R12: ranks and workers.


def run_killed_workers(scale: Scale, counts: Counts) -> None:
    """SIGKILL of one of two ranks, and of a worker of a comparison: restarted, with the same student."""
    rng = random.Random(scale.seed)
    with TemporaryDirectory(prefix="reliability-") as name:
        here = Path(name)
        images = save_noise(here / "images", 8)
        kill_ranks(scale, counts, here, images, rng)
        kill_sweep_workers(scale, counts, here, images, rng)


STEPS = ("--steps", 40, "--set", "training.log_every=1", "--set", "training.save_every=1", "--devices", 2)


def kill_ranks(scale: Scale, counts: Counts, here: Path, images: Path, rng: random.Random) -> None:
    from test_processes import kill_rank

    part = "ranks"
    code, error = wait_for_end(start_command(*tiny_distill(images, "whole", *STEPS), cwd=here))
    if code:
        counts.add(part, "internal" if is_crash(error) else "other", f"undisturbed: {error[-600:]}")
        return
    whole = call_isolated(hash_student, here / "whole").value
    for i in range(scale.count(2)):
        rank, out = rng.randrange(2), f"killed{i}"
        process = start_command(*tiny_distill(images, out, *STEPS, "--restarts", 2), cwd=here)
        step = rng.randrange(1, 20)
        wait_until(lambda out=out, step=step: count_lines(here / out / "metrics.jsonl") >= step, process)
        try:
            kill_rank(rank, process)
        except (ValueError, OSError) as error_:
            counts.note(f"rank {rank} was not killed: {error_}")
        code, error = wait_for_end(process)
        what = f"rank {rank} killed at step {step}"
        if code:
            counts.add(part, "internal" if is_crash(error) else "other", f"{what}: exit code {code}: {error[-600:]}")
        else:
            is_same = call_isolated(hash_student, here / out).value == whole
            counts.add(part, "expected" if is_same else "silent", f"{what}: another student")


def kill_sweep_workers(scale: Scale, counts: Counts, here: Path, images: Path, rng: random.Random) -> None:
    part = "workers of a comparison"
    if find_spec("ray") is None:
        counts.note(f"{part}: not run: Ray is not installed")
        return
    from test_runner import compare_command, find_parent, read_steps

    clothes = save_labeled(here / "clothes")
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64, "PYTHONPATH": str(TESTS.parent)}
    for i in range(scale.count(1)):
        out, seed = here / f"compared{i}", rng.randrange(2)
        command = compare_command(images, clothes, out, workers=2, seeds=2)
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=here)
        wait_until(lambda out=out, seed=seed: count_lines(out / f"kd-{seed}" / "metrics.jsonl") > 0, process)
        if process.poll() is None:
            os.kill(find_parent(out / f"kd-{seed}"), signal.SIGKILL)
        code, error = wait_for_end(process)
        if code:
            counts.add(part, "internal" if is_crash(error) else "other", f"exit code {code}: {error[-600:]}")
            continue
        steps = [read_steps(out / f"kd-{one}") == list(range(1, 41)) for one in range(2)]
        counts.add(part, "expected" if all(steps) else "silent", "a step is lost or repeated")


def save_labeled(folder: Path) -> Path:
    """Four images of each class of Fashion-MNIST, as the fixture `clothes` of the tests."""
    import numpy as np

    from compress.data import open_images

    images = open_images("embedded/fashion", split="val", labeled=True)
    for label in range(10):
        (folder / f"class{label}").mkdir(parents=True)
        for i in np.flatnonzero(np.asarray(images.labels) == label)[:4]:
            images.read_image(int(i)).save(folder / f"class{label}" / f"{i}.png")
    return folder


def count_lines(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except OSError:
        return 0


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait for a condition, or the end of a process."""
    end = time.monotonic() + PATIENCE
    while not condition() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)


# R13: concurrent runs.


def distill_here(images: Path, out: Path, steps: int) -> dict[str, Any]:
    from small_training import ARGUMENTS, SETTINGS

    import compress

    arguments = ARGUMENTS | {"steps": steps}
    compress.distill(TEACHER, unlabeled=str(images), settings=SETTINGS, output_dir=out, **arguments)
    return {"pid": os.getpid(), "student": hash_student(out)}


def run_concurrent(scale: Scale, counts: Counts) -> None:
    """Several processes start the same run: one trains, the others name it or continue after it; same student."""
    with TemporaryDirectory(prefix="reliability-") as name:
        here = Path(name)
        images = save_noise(here / "images", 8)
        whole = call_isolated(distill_here, images, here / "whole", 3)
        for i in range(scale.count(5)):
            with ThreadPoolExecutor(3) as pool:
                calls = [pool.submit(call_isolated, distill_here, images, here / str(i), 3) for _ in range(3)]
            outcomes = [call.result() for call in calls]
            count_concurrent(counts, outcomes, whole, here / str(i))
        append_concurrently(scale, counts, here / "records")


def count_concurrent(counts: Counts, outcomes: list[Outcome], whole: Outcome, run_dir: Path) -> None:
    ended = [one for one in outcomes if one.kind == "returned"]
    for one in outcomes:
        if one.kind == "returned":
            is_same = one.value["student"] == whole.value["student"]
            counts.add("starts at the same time", "expected" if is_same else "silent", "another student")
        elif one.kind == "refused":
            counts.add("starts at the same time", "expected" if "in use by process" in one.text else "other", one.text)
        else:
            count_failure(counts, "starts at the same time", one, str(run_dir))
    if not ended:
        counts.add("starts at the same time", "other", "none of the processes trained")


def append_lines(folder: Path, name: str, n: int) -> None:
    from profiles.records import Record, append_records

    for i in range(n):
        append_records(folder, [Record(f"{name}-{i}", macs=i)])


def append_concurrently(scale: Scale, counts: Counts, folder: Path) -> None:
    """Four processes append records to one file; no line is lost."""
    from profiles.records import read_records

    each = scale.count(20)
    with ThreadPoolExecutor(4) as pool:
        for i in range(4):
            pool.submit(call_isolated, append_lines, folder, str(i), each)
    records = read_records(folder)
    lost = 4 * each - len(records)
    counts.add("records of four processes", "expected", n=len(records))
    if lost:
        counts.add("records of four processes", "silent", f"{lost} lines lost", n=lost)
