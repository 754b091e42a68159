"""Time one MosaicKD iteration: our implementation against a plain one, interleaved in one process.

    python -m benchmarks.step_speed [--rounds 5] [--batch-size 64] [--compile] [--write]

WRN-40-2 -> WRN-16-1, 32x32, 100 classes. The baseline is float32 with contiguous memory and without frozen networks: as
in the published code, every loss leaves gradients in every network. Both run the same algorithm with the same networks.
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

from compress.engine.accelerator import Accelerator, create_accelerator
from compress.engine.config import TrainingSchedule
from compress.engine.logging import ProgressDisplay
from compress.engine.run import ImageSource, Run
from compress.engine.trainable import FrozenModel
from compress.methods.mosaic import MosaicKD
from compress.models.batchnorm_folding import fold_batchnorm
from compress.models.card import ModelCard
from compress.models.discriminators import build_discriminator
from compress.models.generators import build_generator
from compress.models.registry import build_network
from compress.tasks.classification import Classification
from compress.training.estimate import RandomImages
from profiles.latency import machine

RESULTS = Path(__file__).parent / "results"
CARD = ModelCard("wrn40_2", 100, (32, 32), mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761))


def create_networks() -> tuple[nn.Module, nn.Module, nn.Module, nn.Module]:
    """Create T, S, G and D with the same weights at every call."""
    torch.manual_seed(0)
    student = build_network(ModelCard("wrn16_1", 100, (32, 32), mean=CARD.mean, std=CARD.std))
    return build_network(CARD).eval(), student, build_generator(32), build_discriminator(8, 32)


class PlainLoop:
    """Plain implementation of Algorithm 1: float32, contiguous memory, no frozen networks."""

    def __init__(self, batch_size: int) -> None:
        self.n = batch_size
        self.T, self.S, self.G, self.D = create_networks()
        self.optim_G = torch.optim.Adam(self.G.parameters(), 1e-3, betas=(0.5, 0.999))
        self.optim_D = torch.optim.Adam(self.D.parameters(), 1e-3, betas=(0.5, 0.999))
        self.optim_S = torch.optim.SGD(self.S.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
        self.pixels = torch.rand(batch_size, 3, 32, 32)

    def discriminator_loss(self, images: Tensor, real: float) -> Tensor:
        logits = self.D(images)
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, real), reduction="sum") / len(images)

    def kl_divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        return F.kl_div(student.log_softmax(1), teacher.softmax(1), reduction="batchmean")

    def step(self) -> None:
        x = self.G(torch.randn(self.n, 100))
        self.optim_D.zero_grad()
        ((self.discriminator_loss(x.detach(), 0.0) + self.discriminator_loss(self.pixels, 1.0)) / 2).backward()
        self.optim_D.step()

        t, s = self.T(x), self.S(x)
        p = t.softmax(1)
        mean = p.mean(0)
        loss = self.discriminator_loss(x, 1.0) - (p * t.log_softmax(1)).sum(1).mean() - self.kl_divergence(s, t)
        loss = loss + 10 * (mean * mean.clamp_min(1e-30).log()).sum() / math.log(2)
        self.optim_G.zero_grad()
        loss.backward()
        self.optim_G.step()

        for _ in range(5):
            with torch.no_grad():
                x = torch.cat([self.G(torch.randn(self.n, 100)), self.pixels])
                t = self.T(x)
            self.optim_S.zero_grad()
            self.kl_divergence(self.S(x), t).backward()
            self.optim_S.step()


def create_our_loop(
    batch_size: int,
    folder: Path,
    accelerator: Accelerator,
    *,
    compiled: bool = False,
    fold: bool = False,
    source: ImageSource | None = None,
    **settings: float,
) -> Callable[[], object]:
    """Return the step of our method, set up as in a run; without `source` on random images."""
    T, S, _, _ = create_networks()
    if fold:
        T = fold_batchnorm(T, CARD.image_size)
    if compiled:
        T.compile()
        S.compile()
    task = Classification(100, (32, 32))
    run = Run(
        run_dir=folder, accelerator=accelerator, schedule=TrainingSchedule(), task=task, student=S,
        teachers=[FrozenModel(T, accelerator)], batch_size=batch_size, steps=1000,
        sources={"unlabeled": source or RandomImages(1 << 16, CARD, accelerator.device)},
        display=ProgressDisplay("speed", quiet=True),
    )  # fmt: skip
    method = MosaicKD(**settings)  # pyright: ignore[reportArgumentType]
    method.setup(run)
    if compiled:
        run.trainables["G"].net.compile()
        run.trainables["D"].net.compile()
    return method.step


def measure_peak_bytes(step: Callable[[], object]) -> int:
    """Return the increase of the process's peak resident memory by two steps."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step()
    step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def measure_peaks(names: list[str], batch_size: int) -> dict[str, int]:
    """Measure each loop's peak memory in a new process, because a process does not return memory."""
    peak_bytes = {}
    for name in names:
        command = [sys.executable, "-m", "benchmarks.step_speed", "--batch-size", str(batch_size), "--peak-of", name]
        command += ["--compile"] if "compile" in name else []
        peak_bytes[name] = int(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return peak_bytes


def measure_interleaved(loops: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Measure the seconds of each step, interleaved, after a first step of each."""
    for step in loops.values():
        step()
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(rounds):
        for name, step in loops.items():
            begin = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def loop_factories(batch_size: int, folder: Path, *, compiled: bool) -> dict[str, Callable[[], Callable[[], object]]]:
    """Return functions that create the loops, by name; for memory, only one loop is created."""
    full, fast = Accelerator(torch.device("cpu"), "32"), create_accelerator("cpu", "auto")
    loops: dict[str, Callable[[], Callable[[], object]]] = {
        "plain float32 loop": lambda: PlainLoop(batch_size).step,
        "ours, float32": lambda: create_our_loop(batch_size, folder / "a", full),
        f"ours, {fast.precision} (default)": lambda: create_our_loop(batch_size, folder / "b", fast),
    }
    if compiled:
        name = f"ours, {fast.precision}, torch.compile"
        loops[name] = lambda: create_our_loop(batch_size, folder / "c", fast, compiled=True)
    return loops


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--compile", action="store_true", help="also measure torch.compile (compiles for minutes)")
    parser.add_argument("--write", action="store_true", help="write results/step_speed.json and .md")
    parser.add_argument("--peak-of", metavar="LOOP", help="print only the peak memory of one loop, in bytes")
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        loops = loop_factories(options.batch_size, Path(folder), compiled=options.compile)
        if options.peak_of:
            print(measure_peak_bytes(loops[options.peak_of]()))
            return
        peak_bytes = measure_peaks(list(loops), options.batch_size)
        seconds = measure_interleaved({name: create() for name, create in loops.items()}, options.rounds)
    write_results(seconds, peak_bytes, options)


def write_results(seconds: dict[str, list[float]], peak_bytes: dict[str, int], options: argparse.Namespace) -> None:
    base = statistics.median(next(iter(seconds.values())))
    rows = [
        {
            "loop": name, "seconds_median": round(statistics.median(taken), 4), "seconds_min": round(min(taken), 4),
            "seconds_max": round(max(taken), 4), "times_faster": round(base / statistics.median(taken), 2),
            "peak_bytes": peak_bytes[name],
        }
        for name, taken in seconds.items()
    ]  # fmt: skip
    lines = ["| loop | s/iteration (min-max) | times faster | peak memory, MB |", "| --- | --- | --- | --- |"]
    for row in rows:
        spread = f"{row['seconds_median']:.3f} ({row['seconds_min']:.3f}-{row['seconds_max']:.3f})"
        lines.append(f"| {row['loop']} | {spread} | {row['times_faster']:.2f} | {row['peak_bytes'] / 1e6:.0f} |")
    print("\n".join(lines))
    if options.write:
        settings = {"batch_size": options.batch_size, "rounds": options.rounds, "threads": torch.get_num_threads()}
        content = {
            "benchmark": "step_speed",
            **settings,
            "rows": rows,
            "machine": machine.describe_machine(),
            "torch": torch.__version__,
        }
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "step_speed.json").write_text(json.dumps(content, indent=2) + "\n")
        threads = f"{torch.get_num_threads()} threads, torch {torch.__version__}"
        head = f"WRN-40-2 -> WRN-16-1, batch size {options.batch_size}, {threads}"
        flag = " --compile" if options.compile else ""
        command = f"python -m benchmarks.step_speed --rounds {options.rounds}{flag} --write"
        text = (
            f"# One MosaicKD iteration\n\n{head}, {machine.describe_machine()['cpu']}. Made by `{command}`.\n\n"
            + "\n".join(lines)
            + "\n"
        )
        (RESULTS / "step_speed.md").write_text(text)


if __name__ == "__main__":
    main()
