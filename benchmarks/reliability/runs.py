"""Rows of one training run: kills, signals, power loss, full disks, NaN, clock and paths, determinism."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.reliability.counts import Counts, Scale

#: what a file system answers if it cannot write
DISK_ERRORS = ("ENOSPC", "EDQUOT", "EROFS", "EIO")
#: exit code of killable_runs for an exception that is no error of this package
INTERNAL = 70


class Runs:
    """Runs that can be killed or disturbed, and an undisturbed one."""

    def __init__(self, folder: Path) -> None:
        from killable_runs import fork_run

        self.folder, self.fork_run, self.number = folder, fork_run, 0
        self.whole = folder / "whole"
        assert self.run(self.whole) == 0, self.error_of(self.whole)
        self.touches = int((self.whole / "touches").read_text())
        self.seconds = fork_run({"folder": str(folder / "timed")})["seconds"]

    def new_folder(self) -> Path:
        self.number += 1
        return self.folder / f"run-{self.number}"

    def run(self, folder: Path, **order: Any) -> int:
        (folder / "error").unlink(missing_ok=True)
        return int(self.fork_run({"folder": str(folder), **order})["exit_code"])

    def error_of(self, folder: Path) -> str:
        path = folder / "error"
        return path.read_text() if path.exists() else ""

    def finish(self, counts: Counts, part: str, folder: Path, what: str, n: int = 1, *, logs: bool = True) -> None:
        """Resume to the end and compare with the undisturbed run; count `n` disturbances.

        Without `logs`, preview images may be missing, as after a full disk.
        """
        from test_kills import assert_equals_undisturbed, read_results

        code = self.run(folder)
        if code:
            kind = "internal" if code == INTERNAL else "other"
            counts.add(part, kind, f"{what}: not resumed, exit code {code}: {self.error_of(folder)}", n)
        elif read_results(folder, logs=logs) != read_results(self.whole, logs=logs):
            counts.add(part, "silent", f"{what}: another student", n)
        else:
            try:
                assert_equals_undisturbed(folder, self.whole, logs=logs)
            except AssertionError as error:
                counts.add(
                    part, "other", f"{what}: the same student, but {str(error) or 'another log or lost steps'}", n
                )
            else:
                counts.add(part, "expected", n=n)

    def disturb(self, counts: Counts, part: str, what: str, codes: set[int], **order: Any) -> None:
        """Disturb a run once, which must end with one of these codes, then finish it."""
        folder = self.new_folder()
        code = self.run(folder, **order)
        if code in codes:
            self.finish(counts, part, folder, what)
        else:
            kind = "internal" if code == INTERNAL else "other"
            counts.add(part, kind, f"{what}: exit code {code}: {self.error_of(folder)}")


@contextmanager
def start_runs() -> Iterator[Runs]:
    with TemporaryDirectory(prefix="reliability-") as name:
        yield Runs(Path(name))


def spread(count: int, top: int, rng: random.Random) -> list[int]:
    """`count` numbers below `top`, evenly spaced from a random start; all if there are fewer."""
    if count >= top:
        return list(range(top))
    start = rng.random()
    return [int((i + start) * top / count) for i in range(count)]


def run_kills(scale: Scale, counts: Counts) -> None:
    """SIGKILL at random times, and before, in and after accesses to the disk, several in each run."""
    rng = random.Random(scale.seed)
    with start_runs() as runs:
        wanted = scale.kills
        places = [(touch, rng.random() < 0.5) for touch in spread(3 * wanted // 4, runs.touches, rng)]
        by_access = [{"touch": touch, "before": before} for touch, before in places]
        while len(by_access) < 3 * wanted // 4:
            by_access.append({"touch": rng.randrange(runs.touches), "before": rng.random() < 0.5})
        at_times = [{"after": rng.uniform(0.02, 0.9) * runs.seconds} for _ in range(wanted - len(by_access))]
        for part, orders in (("disk access", by_access), ("random time", at_times)):
            rng.shuffle(orders)
            kill_in_groups(runs, counts, part, orders, rng)


def kill_in_groups(runs: Runs, counts: Counts, part: str, orders: list[dict[str, Any]], rng: random.Random) -> None:
    """One to three kills a run; an order that comes after the end of its run is repeated in another one."""
    waiting, repeats = list(orders), 0
    while waiting:
        folder, kills = runs.new_folder(), []
        for order in [waiting.pop() for _ in range(min(rng.randint(1, 3), len(waiting)))]:
            code = runs.run(folder, **order)
            if code == -signal.SIGKILL:
                kills.append(order)
            elif code == 0 and repeats < 2 * len(orders):
                repeats += 1
                waiting.insert(0, order | ({"after": order["after"] / 2} if "after" in order else {}))
            elif code:
                counts.add(part, "internal" if code == INTERNAL else "other", f"{order}: {runs.error_of(folder)}")
        if kills:
            runs.finish(counts, part, folder, f"kills {kills}", n=len(kills))


def run_signals(scale: Scale, counts: Counts) -> None:
    """SIGINT and SIGTERM before, in and between steps and in accesses to the disk; a second SIGINT."""
    rng = random.Random(scale.seed)
    with start_runs() as runs:
        for signum in (signal.SIGINT, signal.SIGTERM):
            name = signal.Signals(signum).name
            # before the handlers are installed, the process ends as any other
            codes = {128 + signum, 0}
            for touch in spread(scale.count(12), runs.touches, rng):
                order: dict[str, Any] = {"touch": touch, "signal": signum, "before": rng.random() < 0.5}
                runs.disturb(counts, f"{name} in a disk access", f"{order}", codes, **order)
            for _ in range(scale.count(8)):
                word = rng.choice(["began 0", *(f"did {step}" for step in range(1, 14))])
                runs.disturb(counts, f"{name} in a step", word, codes, when=[word], signal=signum)
        for kind in ("python", "native"):
            for _ in range(scale.count(2)):
                folder, begin = runs.new_folder(), time.monotonic()
                code = runs.run(folder, when=["hangs", "hangs"], signal=signal.SIGINT, hang=kind)
                took = time.monotonic() - begin
                is_fast = took < 2 + runs.seconds
                counts.add(
                    f"second SIGINT in a {kind} call", "expected" if code == 130 and is_fast else "other",
                    f"exit code {code} after {took:.1f} s",
                )  # fmt: skip


def run_power_losses(scale: Scale, counts: Counts) -> None:
    """Only what was synced remains: under the synced names, and under all names with the synced content."""
    rng = random.Random(scale.seed)
    with start_runs() as runs:
        for touch in spread(scale.count(40), runs.touches, rng):
            folder = runs.new_folder()
            code = runs.run(folder / "run", touch=touch, before=rng.random() < 0.5, power_loss=str(folder / "after"))
            if code != -signal.SIGKILL:
                counts.add("power loss", "other", f"access {touch}: exit code {code}: {runs.error_of(folder / 'run')}")
                continue
            for names in ("strict", "renamed"):
                here = folder / "after" / names
                here.mkdir(exist_ok=True)
                # the diary is the benchmark's own
                (here / "diary").write_bytes((folder / "run" / "diary").read_bytes())
                finish_after_power_loss(runs, counts, here, f"access {touch}, {names} names")


def finish_after_power_loss(runs: Runs, counts: Counts, folder: Path, what: str) -> None:
    """Like `Runs.finish`; lines of the log that were not synced may be lost."""
    from killable_runs import SAVE
    from test_kills import read_diary, read_results

    done = max((step for word, step in read_diary(folder) if word == "did"), default=0)
    lines = len(read_diary(folder))
    code = runs.run(folder)
    if code:
        kind = "internal" if code == INTERNAL else "other"
        counts.add("power loss", kind, f"{what}: not resumed: {runs.error_of(folder)}")
    elif read_results(folder) != read_results(runs.whole):
        counts.add("power loss", "silent", f"{what}: another student")
    else:
        began = next((step for word, step in read_diary(folder)[lines:] if word == "began"), done)
        kind = "expected" if began >= done - SAVE else "other"
        counts.add("power loss", kind, f"{what}: resumed at step {began} of {done}")


def run_disk_errors(scale: Scale, counts: Counts) -> None:
    """One access, or all from one on, fails with ENOSPC, EDQUOT, EROFS or EIO; then the disk works again."""
    rng = random.Random(scale.seed)
    with start_runs() as runs:
        for name in DISK_ERRORS:
            for touch in spread(scale.count(30), runs.touches, rng):
                order: dict[str, Any] = {"touch": touch, "errno": name} | (
                    {"lasting": True} if rng.random() < 0.5 else {}
                )
                folder = runs.new_folder()
                code = runs.run(folder, **order)
                error = runs.error_of(folder)
                if code not in (0, 1):
                    counts.add(name, "internal" if code == INTERNAL else "other", f"{order}: exit code {code}: {error}")
                elif code == 1 and str(folder) not in error.splitlines()[0]:
                    counts.add(name, "other", f"{order}: the error names no place: {error.splitlines()[0]}")
                else:
                    runs.finish(counts, name, folder, f"{order}, then resumed", logs=False)
        run_disk_errors_elsewhere(scale, counts, rng)


def run_disk_errors_elsewhere(scale: Scale, counts: Counts, rng: random.Random) -> None:
    """The same for an export, a report and a cache of images: an error, and the second try succeeds."""
    from benchmarks.reliability.isolated import call_isolated
    from benchmarks.reliability.writers import WRITERS, write_with_error

    for name, write in WRITERS.items():
        with TemporaryDirectory(prefix="reliability-") as folder:
            whole = call_isolated(write_with_error, write, Path(folder) / "whole", None)
            if whole.kind != "returned":
                counts.add(name, "other", f"{name} fails undisturbed: {whole.text}")
                continue
            touches, expected = whole.value
            for i, touch in enumerate(spread(scale.count(12), touches, rng)):
                here, code = Path(folder) / str(i), rng.choice(DISK_ERRORS)
                outcome = call_isolated(write_with_error, write, here, touch, code)
                again = call_isolated(write_with_error, write, here, None)
                what = f"{code} at access {touch}"
                if outcome.kind not in ("returned", "refused"):
                    counts.add(name, "internal", f"{what}: {outcome.kind} {outcome.text}")
                elif again.kind != "returned":
                    counts.add(name, "other", f"{what}: the next try: {again.kind} {again.text}")
                else:
                    counts.add(name, "expected" if again.value[1] == expected else "silent", f"{what}: another file")


def run_nan(scale: Scale, counts: Counts) -> None:
    """The student's weights become NaN in one step, in several, or always; a teacher with NaN or Inf."""
    from benchmarks.reliability.nan import run_nan_teachers

    rng = random.Random(scale.seed)
    with start_runs() as runs:
        for _ in range(scale.count(10)):
            steps = rng.choice(
                [[rng.randrange(15)], sorted(rng.sample(range(15), 3)), list(range(rng.randrange(15), 15))]
            )
            folder = runs.new_folder()
            code = runs.run(folder, nan=steps)
            part = "weights of the student"
            if code not in (0, 1):
                counts.add(
                    part, "internal" if code == INTERNAL else "other", f"{steps}: {code}: {runs.error_of(folder)}"
                )
            elif has_nan_model(folder):
                counts.add(part, "silent", f"NaN from step {steps[0]}: a saved student has NaN")
            else:
                counts.add(part, "expected")
    run_nan_teachers(scale, counts)


def has_nan_model(folder: Path) -> bool:
    from safetensors.torch import load_file

    files = folder.glob("*/*.safetensors")
    return any(
        bool(value.isnan().any()) for file in files for value in load_file(file).values() if value.is_floating_point()
    )


def run_environments(scale: Scale, counts: Counts) -> None:
    """Clock, umask and path of a run; then locale, HOME, terminal and temporary directory of the command."""
    from benchmarks.reliability.processes import run_command_environments

    with start_runs() as runs:
        for seconds in (-1e9, -3600.0, 3600.0, 1e9):
            runs.disturb(counts, "clock jumps", f"{seconds:+.0f} s a step", {0}, clock=seconds)
        for mask in (0o000, 0o077, 0o777 & ~0o600):
            runs.disturb(counts, "umask", f"{mask:03o}", {0}, umask=mask)
        for name in (
            "two words",
            "süß 学生 🎓",
            "-rf",
            "a'b\"c",
            "[x]{y}*",
            "%s $HOME",
            "x" * 200,
            "new\nline",
            b"\xff\xfe",
        ):
            folder = Path(os.fsdecode(os.path.join(os.fsencode(runs.folder), os.fsencode(name))))
            if isinstance(name, bytes):
                counts.note("a path that is not UTF-8: see the commands")
                continue
            code = runs.run(folder)
            if code:
                counts.add("path", "internal" if code == INTERNAL else "other", f"{name!r}: {runs.error_of(folder)}")
            else:
                runs.finish(counts, "path", folder, repr(name))
    run_command_environments(scale, counts)


def run_repetitions(scale: Scale, counts: Counts) -> None:
    """The same seed again, undisturbed and resumed; the same images with other numbers of decoders."""
    from benchmarks.reliability.images import compare_decoder_counts

    rng = random.Random(scale.seed)
    with start_runs() as runs:
        for _ in range(scale.count(10)):
            folder = runs.new_folder()
            runs.run(folder)
            runs.finish(counts, "the same seed", folder, "run again")
        for _ in range(scale.count(5)):
            word = f"did {rng.randrange(1, 14)}"
            runs.disturb(counts, "resumed", word, {128 + signal.SIGTERM, 0}, when=[word], signal=signal.SIGTERM)
    compare_decoder_counts(scale, counts)
    counts.note("on a GPU: not run: no GPU")
