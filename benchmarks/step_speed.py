"""Seconds of one MosaicKD iteration: our loop against the algorithm as plainly coded, alternated in one process.

    python -m benchmarks.step_speed [--rounds 5] [--batch-size 64] [--compile] [--write]

WRN-40-2 -> WRN-16-1, 32x32, 100 classes. The baseline is float32, contiguous, nothing frozen: every loss goes through
every network and leaves gradients there, as in the published code. Both play the same algorithm with the same networks.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.engine.display import Display
from compress.engine.pace import Pace
from compress.engine.place import Place, open_place
from compress.engine.player import Frozen
from compress.engine.run import Run, Source
from compress.methods.mosaic import MosaicKD
from compress.models import network
from compress.models.card import Card
from compress.models.discriminators import discriminator
from compress.models.folding import folded
from compress.models.generators import generator
from compress.rehearsal import Blank
from compress.tasks.classification import Classification
from profiles import machine

RESULTS = Path(__file__).parent / "results"
CARD = Card("wrn40_2", 100, (32, 32), mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761))


def players() -> tuple[nn.Module, nn.Module, nn.Module, nn.Module]:
    """T, S, G, D with the same weights every time."""
    torch.manual_seed(0)
    student = network(Card("wrn16_1", 100, (32, 32), mean=CARD.mean, std=CARD.std))
    return network(CARD).eval(), student, generator(32), discriminator(8, 32)


class PlainLoop:
    """Algorithm 1 as one writes it down first: float32, contiguous, nothing frozen."""

    def __init__(self, batch_size: int) -> None:
        self.n = batch_size
        self.T, self.S, self.G, self.D = players()
        self.optim_G = torch.optim.Adam(self.G.parameters(), 1e-3, betas=(0.5, 0.999))
        self.optim_D = torch.optim.Adam(self.D.parameters(), 1e-3, betas=(0.5, 0.999))
        self.optim_S = torch.optim.SGD(self.S.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
        self.pixels = torch.rand(batch_size, 3, 32, 32)

    def judge(self, images: Tensor, real: float) -> Tensor:
        logits = self.D(images)
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, real), reduction="sum") / len(images)

    def divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        return F.kl_div(student.log_softmax(1), teacher.softmax(1), reduction="batchmean")

    def step(self) -> None:
        x = self.G(torch.randn(self.n, 100))
        self.optim_D.zero_grad()
        ((self.judge(x.detach(), 0.0) + self.judge(self.pixels, 1.0)) / 2).backward()
        self.optim_D.step()

        t, s = self.T(x), self.S(x)
        p = t.softmax(1)
        mean = p.mean(0)
        loss = self.judge(x, 1.0) - (p * t.log_softmax(1)).sum(1).mean() - self.divergence(s, t)
        loss = loss + 10 * (mean * mean.clamp_min(1e-30).log()).sum() / math.log(2)
        self.optim_G.zero_grad()
        loss.backward()
        self.optim_G.step()

        for _ in range(5):
            with torch.no_grad():
                x = torch.cat([self.G(torch.randn(self.n, 100)), self.pixels])
                t = self.T(x)
            self.optim_S.zero_grad()
            self.divergence(self.S(x), t).backward()
            self.optim_S.step()


def our_loop(
    batch_size: int,
    folder: Path,
    place: Place,
    *,
    compiled: bool = False,
    fold: bool = False,
    source: Source | None = None,
    **settings: float,
) -> Callable[[], object]:
    """The shipped method's step, set up as a run does it; on random images where no `source` is given."""
    T, S, _, _ = players()
    if fold:
        T = folded(T, CARD.image_size)
    if compiled:
        T, S = torch.compile(T), torch.compile(S)  # pyright: ignore[reportAssignmentType]
    task = Classification(100, (32, 32))
    run = Run(
        folder=folder, place=place, pace=Pace(), task=task, student=S, teachers=[Frozen(T, place)],
        sources={"unlabelled": source or Blank(1 << 16, CARD, place.device)}, batch_size=batch_size, steps=1000,
        display=Display("speed", quiet=True),
    )  # fmt: skip
    method = MosaicKD(**settings)  # pyright: ignore[reportArgumentType]
    method.setup(run)
    if compiled:
        run.players["G"].net = torch.compile(run.players["G"].net)  # pyright: ignore[reportAttributeAccessIssue]
        run.players["D"].net = torch.compile(run.players["D"].net)  # pyright: ignore[reportAttributeAccessIssue]
    return method.step


def peak_bytes(step: Callable[[], object]) -> int:
    """The most resident memory that two steps add to this process, by the system's own high-water mark."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step()
    step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def peaks(names: list[str], batch_size: int) -> dict[str, int]:
    """Each loop's peak, alone in a fresh process: a process does not give back what an earlier loop took."""
    found = {}
    for name in names:
        command = [sys.executable, "-m", "benchmarks.step_speed", "--batch-size", str(batch_size), "--peak-of", name]
        command += ["--compile"] if "compile" in name else []
        found[name] = int(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return found


def alternate(loops: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each step in turns, after a first step of each."""
    for step in loops.values():
        step()
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(rounds):
        for name, step in loops.items():
            begin = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def makers(batch_size: int, folder: Path, *, compiled: bool) -> dict[str, Callable[[], Callable[[], object]]]:
    """The loops by name, not yet made: what is measured for its memory is made alone."""
    full, fast = Place(torch.device("cpu"), "32"), open_place("cpu", "auto")
    loops: dict[str, Callable[[], Callable[[], object]]] = {
        "plain float32 loop": lambda: PlainLoop(batch_size).step,
        "ours, float32": lambda: our_loop(batch_size, folder / "a", full),
        f"ours, {fast.precision} (default)": lambda: our_loop(batch_size, folder / "b", fast),
    }
    if compiled:
        name = f"ours, {fast.precision}, torch.compile"
        loops[name] = lambda: our_loop(batch_size, folder / "c", fast, compiled=True)
    return loops


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--compile", action="store_true", help="also measure torch.compile (minutes of compiling)")
    parser.add_argument("--write", action="store_true", help="write results/step_speed.json and .md")
    parser.add_argument("--peak-of", metavar="LOOP", help="print the peak memory of one loop in bytes, and stop")
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        loops = makers(options.batch_size, Path(folder), compiled=options.compile)
        if options.peak_of:
            print(peak_bytes(loops[options.peak_of]()))
            return
        memory = peaks(list(loops), options.batch_size)
        seconds = alternate({name: make() for name, make in loops.items()}, options.rounds)
    report(seconds, memory, options)


def report(seconds: dict[str, list[float]], peaks: dict[str, int], options: argparse.Namespace) -> None:
    base = statistics.median(next(iter(seconds.values())))
    rows = [
        {
            "loop": name, "seconds_median": round(statistics.median(taken), 4), "seconds_min": round(min(taken), 4),
            "seconds_max": round(max(taken), 4), "times_faster": round(base / statistics.median(taken), 2),
            "peak_bytes": peaks[name],
        }
        for name, taken in seconds.items()
    ]  # fmt: skip
    lines = ["| loop | s/iteration (min-max) | times faster | peak memory, MB |", "| --- | --- | --- | --- |"]
    for row in rows:
        spread = f"{row['seconds_median']:.3f} ({row['seconds_min']:.3f}-{row['seconds_max']:.3f})"
        lines.append(f"| {row['loop']} | {spread} | {row['times_faster']:.2f} | {row['peak_bytes'] / 1e6:.0f} |")
    print("\n".join(lines))
    if options.write:
        facts = {"batch_size": options.batch_size, "rounds": options.rounds, "threads": torch.get_num_threads()}
        content = {
            "benchmark": "step_speed",
            **facts,
            "rows": rows,
            "machine": machine.describe(),
            "torch": torch.__version__,
        }
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "step_speed.json").write_text(json.dumps(content, indent=2) + "\n")
        threads = f"{torch.get_num_threads()} threads, torch {torch.__version__}"
        head = f"WRN-40-2 -> WRN-16-1, batch {options.batch_size}, {threads}"
        more = " --compile" if options.compile else ""
        command = f"python -m benchmarks.step_speed --rounds {options.rounds}{more} --write"
        text = (
            f"# One MosaicKD iteration\n\n{head}, {machine.describe()['cpu']}. Made by `{command}`.\n\n"
            + "\n".join(lines)
            + "\n"
        )
        (RESULTS / "step_speed.md").write_text(text)


if __name__ == "__main__":
    main()
