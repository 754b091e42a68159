"""Rows of damaged files: checkpoints, models, exported files, caches, engines; runs of earlier versions."""

from __future__ import annotations

import hashlib
import importlib
import os
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.reliability.counts import Counts, Scale
from benchmarks.reliability.isolated import TESTS, Outcome, call_isolated, expect_same
from benchmarks.reliability.runs import Runs, start_runs

FIXTURES = TESTS / "fixtures" / "runs"


def truncate(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def flip_bit(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def zero_run(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content))
    length = min(rng.choice([1, 16, 512, 4096]), len(content) - start)
    return content[:start] + bytes(length) + content[start + length :]


DAMAGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "truncated": truncate,
    "bit flipped": flip_bit,
    "zeros": zero_run,
}


def damage_file(content: bytes, kind: str, rng: random.Random) -> bytes:
    """Damaged content that differs from the original by more than the final line break."""
    for _ in range(1000):
        damaged = DAMAGES[kind](content, rng)
        if damaged.rstrip(b"\n") != content.rstrip(b"\n"):
            return damaged
    return content + b"\0"


def run_damaged_files(scale: Scale, counts: Counts) -> None:
    """Truncations, flipped bits and runs of zeros in everything that is saved."""
    from benchmarks.reliability.images import damage_caches

    rng = random.Random(scale.seed)
    with start_runs() as runs:
        damage_checkpoints(scale, counts, runs, rng)
    damage_models(scale, counts, rng)
    damage_exports(scale, counts, rng)
    damage_caches(scale, counts)


def damage_checkpoints(scale: Scale, counts: Counts, runs: Runs, rng: random.Random) -> None:
    """The newest checkpoint is damaged: the previous one is loaded; some runs are resumed to the end."""
    folder = runs.whole / "checkpoints"
    newest = sorted({path.name.split(".")[0] for path in folder.glob("step-*.json")})[-1]
    files = sorted(path for path in folder.iterdir() if path.name.startswith(newest))
    with TemporaryDirectory(prefix="reliability-") as name:
        here = Path(name) / "checkpoints"
        shutil.copytree(folder, here)
        whole, previous = load_step(here), load_step(here, skip=newest)
        plans = [("truncated", 1000), ("bit flipped", 1000), ("zeros", 100)]
        for kind, n in plans:
            for _ in range(scale.count(n)):
                file = rng.choice(files)
                (here / file.name).write_bytes(damage_file(file.read_bytes(), kind, rng))
                outcome = try_call(load_step, here)
                what = f"{kind} {file.name}"
                if outcome.kind == "returned" and outcome.value == whole:
                    counts.add("checkpoint", "silent", f"{what}: was loaded")
                else:
                    expect_same(counts, "checkpoint", outcome, previous, what)
                (here / file.name).write_bytes(file.read_bytes())
    for i in range(scale.count(6)):
        here, kind = runs.new_folder(), list(DAMAGES)[i % 3]
        runs.run(here, when=[f"did {rng.randrange(7, 13)}"], signal=15)
        saved = sorted((here / "checkpoints").glob("step-*.rank0.pt"))
        if saved:
            saved[-1].write_bytes(damage_file(saved[-1].read_bytes(), kind, rng))
            runs_finish_identical(runs, counts, here, f"{kind}, then resumed")


def runs_finish_identical(runs: Runs, counts: Counts, folder: Path, what: str) -> None:
    """Like `Runs.finish`, but more than one save interval may be lost."""
    from test_kills import read_results

    code = runs.run(folder)
    if code:
        counts.add("checkpoint, resumed", "internal" if code == 70 else "other", f"{what}: {runs.error_of(folder)}")
    else:
        is_same = read_results(folder) == read_results(runs.whole)
        counts.add("checkpoint, resumed", "expected" if is_same else "silent", what)


def load_step(folder: Path, skip: str = "") -> dict[str, Any]:
    """Load the newest checkpoint; return its step and a digest of its content."""
    import tiny

    from compress.engine.accelerator import Accelerator
    from compress.engine.checkpoint import CheckpointManager

    if skip:
        copy = folder.with_name("previous")
        shutil.copytree(folder, copy, ignore=lambda _, names: [one for one in names if one.startswith(skip)])
        folder = copy
    loaded = CheckpointManager(folder, Accelerator(tiny.CPU, "32")).load()
    assert loaded is not None
    leaves = {
        key: tiny.hash_tensor(v) if hasattr(v, "layout") else repr(v)
        for key, v in tiny.flatten_state(loaded[1:]).items()
    }
    return {"step": loaded[0], "digest": hashlib.sha256(repr(sorted(leaves.items())).encode()).hexdigest()}


def try_call(function: Callable[..., Any], *arguments: Any) -> Outcome:
    """Call a function in this process, if its crash is an exception."""
    try:
        return Outcome("returned", function(*arguments))
    except Exception as error:
        is_ours = isinstance(getattr(error, "exit_code", None), int)
        return Outcome("refused" if is_ours else "internal", text=f"{type(error).__name__}: {error}")


def digest_outputs(path: Path) -> str:
    """Load a model directory or an exported file and hash what it answers, with its card."""
    import numpy as np
    import torch

    images = np.random.default_rng(0).random((2, 3, 32, 32), dtype=np.float32)
    if path.is_dir():
        from compress.models.loading import load_model

        network, card = load_model(path)
        with torch.no_grad():
            logits = network(torch.from_numpy(images)).numpy()
        facts = repr({key: value for key, value in card.as_dict().items() if key != "sha256"})
    else:
        from exporters import load

        with load(path, threads=1) as runner:
            logits, facts = runner(images), repr(sorted(runner.metadata.items()))
    return hashlib.sha256(np.ascontiguousarray(logits).tobytes() + facts.encode()).hexdigest()


def damage_models(scale: Scale, counts: Counts, rng: random.Random) -> None:
    """The weights or the card of a model directory are damaged."""
    from compress.models.loading import embedded_dir

    with TemporaryDirectory(prefix="reliability-") as name:
        here = Path(name) / "model"
        shutil.copytree(embedded_dir() / "fashion_wrn16_2", here)
        damage_and_load(scale.count(500), counts, "model directory", here, sorted(here.iterdir()), rng)


def damage_exports(scale: Scale, counts: Counts, rng: random.Random) -> None:
    """An exported ONNX file, and the two files of OpenVINO."""
    with TemporaryDirectory(prefix="reliability-") as name:
        here = Path(name)
        outcome = call_isolated(export_files, here, seconds=300)
        if outcome.kind != "returned":
            counts.add("ONNX file", "internal", f"not exported: {outcome.text}")
            return
        for suffix, part in ((".onnx", "ONNX file"), (".xml", "OpenVINO file")):
            main = next((path for path in here.iterdir() if path.suffix == suffix), None)
            if main is None:
                counts.note(f"{part}: not run: OpenVINO is not installed")
                continue
            files = sorted(path for path in here.iterdir() if path.stem.split(".")[0] == main.stem.split(".")[0])
            files = [path for path in files if (path.suffix == ".onnx") == (suffix == ".onnx")]
            damage_and_load(scale.count(100), counts, part, main, files, rng)


def export_files(folder: Path) -> list[str]:
    import compress

    formats = ["onnx"]
    try:
        import openvino  # noqa: F401 - optional

        formats.append("openvino")
    except ImportError:
        pass
    result = compress.export("embedded/fashion_wrn16_2", folder, formats=formats)
    return [str(one.path) for one in result.artifacts]


def damage_and_load(n: int, counts: Counts, part: str, model: Path, files: list[Path], rng: random.Random) -> None:
    """Damage one of `files` at a time and load the model: refused, or the same answers and facts."""
    whole = call_isolated(digest_outputs, model)
    if whole.kind != "returned":
        counts.add(part, "internal", f"{model.name} is not loaded undisturbed: {whole.text}")
        return
    contents = {path: path.read_bytes() for path in files}
    for _ in range(n):
        kind, path = rng.choice(list(DAMAGES)), rng.choice(files)
        path.write_bytes(damage_file(contents[path], kind, rng))
        expect_same(counts, part, call_isolated(digest_outputs, model), whole.value, f"{kind} in {path.name}")
        path.write_bytes(contents[path])


def run_damaged_engines(scale: Scale, counts: Counts) -> None:
    """Engines of TensorRT and their metadata: damaged, of another version, platform or GPU."""
    rng = random.Random(scale.seed)
    with TemporaryDirectory(prefix="reliability-") as name:
        engine = Path(name) / "net.engine"
        call = call_isolated(write_fake_engine, engine)
        if call.kind != "returned":
            counts.add("engine", "internal", call.text)
            return
        files = sorted(Path(name).iterdir())
        contents = {path: path.read_bytes() for path in files}
        whole = try_call(digest_engine, engine)
        for _ in range(scale.count(300)):
            kind, path = rng.choice(list(DAMAGES)), rng.choice(files)
            path.write_bytes(damage_file(contents[path], kind, rng))
            expect_same(
                counts, "damaged engine", try_call(digest_engine, engine), whole.value, f"{kind} in {path.name}"
            )
            path.write_bytes(contents[path])
        for what, reason in try_call(list_incompatibilities, engine).value.items():
            counts.add("another GPU, version or platform", "expected" if reason else "silent", what)
    counts.note("engines run and rebuilt on a GPU: not run: no GPU")


def write_fake_engine(path: Path) -> None:
    """Bytes that no library reads, with valid metadata."""
    from exporters.tensorrt import metadata as engines

    content = random.Random(0).randbytes(20_000)
    path.write_bytes(content)
    facts = engines.EngineMetadata(
        format=engines.FORMAT, kind="tensorrt", version="10.13.3.9", versions={}, platform=engines.current_platform(),
        gpu=engines.Gpu("NVIDIA H200", "9.0"), compute_capabilities=("9.0",),
        profiles=(engines.ShapeProfile(*[(1, 3, 8, 10)] * 3),),
        inputs={"images": engines.TensorSpec(("batch", 3, 8, 10), "float32")},
        outputs={"logits": engines.TensorSpec(("batch", 4), "float32")},
        sha256=hashlib.sha256(content).hexdigest(), source=engines.OnnxSource("net.onnx", "0" * 64),
        metadata={"classes": "4"}, precision="fp32", options={},
    )  # fmt: skip
    engines.write_metadata(path, facts)
    engines.read_engine(path)


def digest_engine(path: Path) -> str:
    from exporters.tensorrt.metadata import read_engine

    content, facts = read_engine(path)
    return hashlib.sha256(content + repr(facts).encode()).hexdigest()


def list_incompatibilities(path: Path) -> dict[str, str | None]:
    """What differs -> the reason for which the engine is refused."""
    from dataclasses import replace
    from types import SimpleNamespace

    from exporters.tensorrt.metadata import Gpu, incompatibility_reason, read_engine

    content, facts = read_engine(path)
    same, library = Gpu("NVIDIA H200", "9.0"), SimpleNamespace(__version__="10.13.3.9")
    assert incompatibility_reason(facts, content, library, same) is None
    return {
        "another version": incompatibility_reason(facts, content, SimpleNamespace(__version__="10.14.0.1"), same),
        "another GPU": incompatibility_reason(facts, content, library, Gpu("NVIDIA T4", "7.5")),
        "another GPU of the same capability": incompatibility_reason(
            facts, content, library, Gpu("NVIDIA H100", "9.0")
        ),
        "another platform": incompatibility_reason(replace(facts, platform="Windows AMD64"), content, library, same),
        "no GPU": incompatibility_reason(facts, content, library, None),
    }


def run_upgrades(scale: Scale, counts: Counts) -> None:
    """Runs of earlier releases, kept as fixtures, are loaded and continued."""
    del scale
    releases = sorted(path for path in FIXTURES.iterdir() if (path / "photos").is_dir())
    for release in releases:
        runs = sorted(path.name for path in release.iterdir() if (path / "recipe.yaml").is_file())
        for run in runs:
            with TemporaryDirectory(prefix="reliability-") as name:
                copy = Path(name) / release.name
                shutil.copytree(release, copy)
                outcome = call_isolated(continue_run, copy, run, seconds=600)
                kind = "expected" if outcome.value else "internal" if outcome.kind == "internal" else "other"
                counts.add(release.name, kind, f"{run}: {outcome.text or 'another number of steps'}")


def continue_run(release: Path, name: str) -> bool:
    """Continue a run; whether it made all steps, and its models load."""
    sys.path.insert(0, str(FIXTURES))
    make_runs = importlib.import_module("make_runs")
    os.chdir(release)
    import compress

    result = compress.distill(**make_runs.RUNS[name], output_dir=name, resume=True)
    for path in (release / name).glob("*/config.json"):
        compress.load_model(path.parent, compress.ModelOverrides(architecture=make_runs.RUNS[name]["student"]))
    return result.steps == make_runs.STEPS
