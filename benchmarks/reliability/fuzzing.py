"""Fuzzers: valid input of every reader, changed by hypothesis; each example is a result or an error of this package."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import tarfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.reliability.counts import Counts, Scale
from benchmarks.reliability.hostile_documents import GOOD, RECIPE
from benchmarks.reliability.isolated import call_isolated

#: seconds for one example
LIMIT = 20
#: address space that a batch of examples may use beyond that of this process
ADDRESS_SPACE = 6 << 30
BATCH = 100
#: values that readers tend to forget
STRANGE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, -(10**30), 0.5, 1e308, -1e-308, float("nan"), float("inf"),
    "", "x" * 3000, "\0", "\x1b[2J", "\u202e", "\ud800", "../../etc/passwd", "/dev/zero", "os:system", "=1+1", "<b>",
    [], {}, [[]], [None], {"": None}, [1] * 300, "1e5", "0x10", "null", "-", "2026-01-01",
)  # fmt: skip


@dataclass(frozen=True)
class Reader:
    """A reader of one kind of file."""

    name: str
    #: writes a valid file into a folder and returns the path of the file to change
    write: Callable[[Path], Path]
    #: reads it; the argument is that path
    read: Callable[[Path], object]
    #: "bytes", "json" (also as structure), "lines" (each line is JSON) or "yaml"
    form: str = "bytes"
    #: the number of examples of the default scale
    examples: int = 500
    #: changes parsed JSON so that hashes in it are valid again
    reseal: Callable[[Any], Any] = lambda content: content


def run_fuzzers(scale: Scale, counts: Counts) -> None:
    """Each reader with changed files; the same seed gives the same examples."""
    for reader in list_readers():
        with TemporaryDirectory(prefix="reliability-") as name:
            here, done, wanted = Path(name), 0, scale.count(reader.examples)
            while done < wanted:
                n = min(BATCH, wanted - done)
                outcome = call_isolated(
                    run_examples, reader, here, n, scale.seed * 1_000_003 + done, seconds=60 + LIMIT * 5,
                    address_space=ADDRESS_SPACE,
                )  # fmt: skip
                done += n
                if outcome.kind == "returned":
                    count_examples(counts, reader.name, outcome.value)
                else:
                    count_crash(counts, reader.name, outcome.kind, outcome.text, here)


def count_examples(counts: Counts, name: str, value: dict[str, Any]) -> None:
    counts.add(name, "expected", n=value["fine"])
    for place, (n, example) in value["internal"].items():
        counts.add(name, "internal", f"{place}: {example}", n=n)
    if value["hung"]:
        counts.add(name, "other", f"no end in {LIMIT} s: {value['hung'][0]}", n=len(value["hung"]))


def count_crash(counts: Counts, name: str, kind: str, text: str, here: Path) -> None:
    tried = int((here / "tried").read_text() or 0) if (here / "tried").exists() else 0
    if tried > 1:
        counts.add(name, "expected", n=tried - 1)
    content = (here / "example").read_bytes()[:200] if (here / "example").exists() else b""
    counts.add(name, "internal", f"{kind} {text}: {content!r}")


class SlowError(BaseException):
    """An example took too long."""


def run_examples(reader: Reader, here: Path, n: int, seed: int) -> dict[str, Any]:
    """Read `n` changed files in this process."""
    import hypothesis
    from hypothesis import strategies

    folder = here / "files"
    folder.mkdir(exist_ok=True)
    path = reader.write(folder)
    content = path.read_bytes()
    reader.read(path)  # the unchanged file must be valid
    result: dict[str, Any] = {"fine": 0, "internal": {}, "hung": []}

    def stop(*_: object) -> None:
        raise SlowError

    signal.signal(signal.SIGALRM, stop)

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=n, deadline=None, database=None, phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    @hypothesis.given(strategies.data())
    def check(data: Any) -> None:
        changed = change_content(data.draw, reader, content)
        (here / "example").write_bytes(changed)
        tried = result["fine"] + len(result["hung"]) + sum(entry[0] for entry in result["internal"].values())
        (here / "tried").write_text(str(tried + 1))
        restore(path, changed)
        read_example(reader, path, result)

    check()
    return result


def restore(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    os.utime(path, (1, 1))


def read_example(reader: Reader, path: Path, result: dict[str, Any]) -> None:
    signal.alarm(LIMIT)
    try:
        reader.read(path)
        result["fine"] += 1
    except SlowError:
        result["hung"].append(repr(path.read_bytes()[:200]))
    except Exception as error:
        if isinstance(getattr(error, "exit_code", None), int):
            result["fine"] += 1
            return
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/benchmarks/" not in frame.filename]
        ours = [
            one for one in frames if any(f"/{name}/" in one.filename for name in ("compress", "exporters", "profiles"))
        ]
        place = f"{type(error).__name__} at {Path((ours or frames)[-1].filename).name}:{(ours or frames)[-1].lineno}"
        number, example = result["internal"].get(place, (0, f"{str(error)[:150]}: {path.read_bytes()[:150]!r}"))
        result["internal"][place] = (number + 1, example)
    finally:
        signal.alarm(0)


def change_content(draw: Callable[..., Any], reader: Reader, content: bytes) -> bytes:
    """Draw a change of a valid file: of its structure, of its bytes, or both."""
    from hypothesis import strategies

    how = draw(strategies.sampled_from(["structure", "structure", "bytes"] if reader.form != "bytes" else ["bytes"]))
    if how == "bytes":
        return change_bytes(draw, content)
    if reader.form == "yaml":
        return change_yaml(draw, content)
    if reader.form == "lines":
        lines = content.splitlines(keepends=True)
        i = draw(strategies.integers(0, len(lines) - 1))
        lines[i] = dump_json(change_json(draw, json.loads(lines[i]))) + b"\n"
        return b"".join(lines)
    return dump_json(reader.reseal(change_json(draw, json.loads(content))))


def dump_json(content: Any) -> bytes:
    return json.dumps(content).encode(errors="surrogatepass")


def change_bytes(draw: Callable[..., Any], content: bytes) -> bytes:
    from hypothesis import strategies

    changed = bytearray(content)
    for _ in range(draw(strategies.integers(1, 6))):
        if not changed:
            break
        start = draw(strategies.integers(0, len(changed) - 1))
        kind = draw(strategies.sampled_from(["flip", "set", "insert", "delete", "cut", "copy", "word"]))
        if kind == "flip":
            changed[start] ^= 1 << draw(strategies.integers(0, 7))
        elif kind == "set":
            changed[start] = draw(strategies.sampled_from([0, 1, 127, 128, 255]))
        elif kind == "insert":
            changed[start:start] = draw(strategies.binary(min_size=1, max_size=16))
        elif kind == "delete":
            del changed[start : start + draw(strategies.integers(1, 64))]
        elif kind == "cut":
            del changed[start:]
        elif kind == "copy":
            changed[start:start] = changed[start : start + draw(strategies.integers(1, 64))]
        else:
            number = draw(strategies.sampled_from([0, 1, 2**15, 2**16 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]))
            size = draw(strategies.sampled_from([2, 4, 8]))
            changed[start : start + size] = (number % (1 << (8 * size))).to_bytes(size, "little")
    return bytes(changed)


def change_json(draw: Callable[..., Any], content: Any) -> Any:
    """Replace, remove, add or rename values at one to three places."""
    from hypothesis import strategies

    content = json.loads(json.dumps(content))
    for _ in range(draw(strategies.integers(1, 3))):
        places = list_places(content)
        if not places:
            return draw(strange_values())
        parent, key = places[draw(strategies.integers(0, len(places) - 1))]
        kind = draw(strategies.sampled_from(["replace", "replace", "replace", "remove", "add", "rename", "nest"]))
        if kind == "remove":
            del parent[key]
        elif kind == "nest":
            parent[key] = [parent[key]] if draw(strategies.booleans()) else {"a": parent[key]}
        elif kind == "add" and isinstance(parent, dict):
            parent[draw(strategies.text(max_size=8))] = draw(strange_values())
        elif kind == "rename" and isinstance(parent, dict):
            parent[draw(strategies.text(max_size=8))] = parent.pop(key)
        else:
            parent[key] = draw(strange_values())
    return content


def strange_values() -> Any:
    from hypothesis import strategies

    leaves = strategies.one_of(
        strategies.sampled_from(STRANGE), strategies.integers(), strategies.floats(), strategies.text(max_size=20)
    )  # fmt: skip
    return strategies.one_of(leaves, leaves, strategies.lists(leaves, max_size=4))


def list_places(content: Any) -> list[tuple[Any, Any]]:
    """All (container, key) of JSON, breadth first."""
    places: list[tuple[Any, Any]] = []
    waiting = [content]
    while waiting:
        one = waiting.pop(0)
        keys = list(one) if isinstance(one, dict) else range(len(one)) if isinstance(one, list) else []
        places += [(one, key) for key in keys]
        waiting += [one[key] for key in keys]
    return places


def change_yaml(draw: Callable[..., Any], content: bytes) -> bytes:
    import yaml

    changed = change_json(draw, yaml.safe_load(content))
    return yaml.safe_dump(changed, sort_keys=False, allow_unicode=True).encode(errors="surrogateescape")


# Readers.


def list_readers() -> list[Reader]:
    """Every reader of files and of answers."""
    from compress.files import add_hash

    return [
        Reader("recipe", write_recipe, read_recipe, "yaml", 800),
        Reader("sweep config", write_sweep, read_sweep, "yaml", 300),
        Reader("target file", write_target, read_target, "yaml", 300),
        Reader("card", write_card, read_model, "json", 500, lambda content: seal(content, "card_sha256")),
        Reader("manifest of a checkpoint", write_manifest, read_manifest, "json", 500, add_hash),
        Reader("state of a checkpoint", write_state, read_state, "bytes", 500),
        Reader("safetensors", write_safetensors, read_weights),
        Reader("PyTorch file", write_torch, read_weights),
        Reader("torch.export program", write_export, read_program, "bytes", 300),
        Reader("ONNX", write_onnx, read_onnx),
        Reader("image", write_image, read_image, "bytes", 800),
        Reader("tar shard", write_tar, read_shard),
        Reader("class names", write_classes, read_masks, "bytes", 200),
        Reader("overlays (npz)", write_overlays, read_overlays),
        Reader("record", write_record, read_record, "lines", 800),
        Reader("report of a record", write_record, read_report, "lines", 40),
        Reader("reply of another machine", write_reply, read_reply, "json", 500),
        Reader("metrics.jsonl", write_metrics, read_metrics, "lines", 500),
        Reader("index of a cache", write_cache, read_cache, "json", 300),
        Reader("metadata of an engine", write_engine, read_engine, "json", 300),
    ]


def seal(content: Any, key: str) -> Any:
    from compress.files import add_hash

    return add_hash(content, key) if isinstance(content, dict) else content


def write_recipe(folder: Path) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(**GOOD) + "  seed: 1\n  batch_size: 8\n  log_every: 10\n")
    return path


def read_recipe(path: Path) -> object:
    from compress.training.recipes import resolve_config

    return resolve_config(recipe=path)


def write_sweep(folder: Path) -> Path:
    from compress.training.recipes import find_recipe

    path = folder / "sweep.yaml"
    path.write_bytes(find_recipe(Path("sweep-fashion")).read_bytes())
    return path


def read_sweep(path: Path) -> object:
    from compress.config import load_yaml
    from compress.experiments.config import load_sweep_config

    return load_sweep_config(load_yaml(path))


def write_target(folder: Path) -> Path:
    shipped = Path(__file__).parents[2] / "docs" / "targets"
    source = sorted(shipped.glob("*.yaml"))[0] if shipped.is_dir() and sorted(shipped.glob("*.yaml")) else None
    path = folder / "target.yaml"
    path.write_text(source.read_text() if source else "address: ssh://board\nruntimes: [onnxruntime]\nthreads: 2\n")
    return path


def read_target(path: Path) -> object:
    from compress.targets import load_target_file

    return load_target_file(path)


def write_card(folder: Path) -> Path:
    import shutil

    from compress.models.loading import embedded_dir

    shutil.copytree(embedded_dir() / "fashion_wrn16_2", folder / "model", dirs_exist_ok=True)
    return folder / "model" / "config.json"


def read_model(path: Path) -> object:
    from compress.models.loading import load_model

    return load_model(path.parent)[1]


def small_state() -> dict[str, Any]:
    import torch

    from compress.models.registry import build_model

    torch.manual_seed(0)
    net = build_model("wrn16_1", classes=4)
    return {"state_dict": net.state_dict(), "epoch": 3, "classes": ["a", "b", "c", "d"]}


def write_manifest(folder: Path) -> Path:
    import tiny
    import torch

    from compress.engine.accelerator import Accelerator
    from compress.engine.checkpoint import CheckpointManager

    manager = CheckpointManager(folder / "checkpoints", Accelerator(tiny.CPU, "32"))
    return manager.save(3, {"a": torch.zeros(4), "n": 1}, {"random": torch.get_rng_state()})


def read_manifest(path: Path) -> object:
    import tiny

    from compress.engine.accelerator import Accelerator
    from compress.engine.checkpoint import CheckpointManager

    return CheckpointManager(path.parent, Accelerator(tiny.CPU, "32")).load()


def write_state(folder: Path) -> Path:
    return next(write_manifest(folder).parent.glob("*.pt"))


def read_state(path: Path) -> object:
    from compress.engine.checkpoint import read_state as read

    return read(path)


def write_safetensors(folder: Path) -> Path:
    from safetensors.torch import save_file

    path = folder / "net.safetensors"
    save_file({key: value.contiguous() for key, value in small_state()["state_dict"].items()}, path)
    return path


def write_torch(folder: Path) -> Path:
    import torch

    torch.save(small_state(), folder / "net.pt")
    return folder / "net.pt"


def read_weights(path: Path) -> object:
    from compress.models.loading import load_model
    from compress.models.overrides import ModelOverrides

    return load_model(path, ModelOverrides(image_size=(32, 32)))[1]


def write_export(folder: Path) -> Path:
    from benchmarks.reliability.hostile_weights import read_program as content

    (folder / "net.pt2").write_bytes(content())
    return folder / "net.pt2"


def read_program(path: Path) -> object:
    from compress.models import program_archive

    return program_archive.read_program(path)


def write_onnx(folder: Path) -> Path:
    from onnx_files import small, written

    return written(folder / "net.onnx", small(metadata={"classes": "4", "class_names": '["a", "b", "c", "d"]'}))


def read_onnx(path: Path) -> object:
    from exporters.onnx_validation import read_model

    return read_model(path)


def write_image(folder: Path) -> Path:
    kind = random.Random(os.getpid()).choice(["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "PPM", "TGA", "ICO"])
    noise = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "image.png", kind)
    return folder / "image.png"


def read_image(path: Path) -> object:
    from compress.data.dataset import ImageSet, UnreadableImageError

    images = ImageSet("images", ["image"], lambda _: path, identity="")
    try:
        list(images.iter_sizes())
        return images.read_image(0)
    except UnreadableImageError as error:
        return str(error)


def write_tar(folder: Path) -> Path:
    path = folder / "shard.tar"
    with tarfile.open(path, "w") as archive:
        for i in range(3):
            buffer = io.BytesIO()
            Image.new("RGB", (8, 8), (i, i, i)).save(buffer, "PNG")
            for name, content in ((f"{i}.png", buffer.getvalue()), (f"{i}.cls", str(i).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def read_shard(path: Path) -> object:
    from compress.data import open_images
    from compress.data.dataset import UnreadableImageError

    images = open_images(str(path), labeled=True)
    for i in range(len(images)):
        try:
            images.read_image(i)
        except UnreadableImageError:
            continue
    return images.labels


def write_classes(folder: Path) -> Path:
    for name in ("images", "masks"):
        (folder / "set" / name).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(folder / "set" / "images" / "a.png")
    Image.new("L", (8, 8), 1).save(folder / "set" / "masks" / "a.png")
    (folder / "set" / "classes.txt").write_text("sky\nroad\ncar\n")
    return folder / "set" / "classes.txt"


def read_masks(path: Path) -> object:
    from compress.data import open_images

    return open_images(str(path.parent), labeled=True).read_mask(0)


def write_overlays(folder: Path) -> Path:
    from profiles.report.overlays import ARRAYS, Overlays, save_overlays

    rng = np.random.default_rng(0)
    maps = rng.integers(0, 3, (2, 8, 8), dtype=np.uint8)
    save_overlays(
        folder, Overlays(rng.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8), maps, {"a": maps}, ["x", "y", "z"])
    )
    return folder / ARRAYS


def read_overlays(path: Path) -> object:
    from profiles.report.overlays import collect_overlays

    return collect_overlays([path.parent], path.parent / "out")[1]


def write_record(folder: Path) -> Path:
    from test_records import FULL

    from profiles.records import append_records

    path = folder / "records.jsonl"
    path.unlink(missing_ok=True)
    return append_records(folder, [FULL])


def read_record(path: Path) -> object:
    from profiles.record_sets import collect_records

    return collect_records([path.parent])


def read_report(path: Path) -> object:
    import compress

    return compress.report(path.parent, output_dir=path.parent / "report").summary


def write_reply(folder: Path) -> Path:
    from test_remote import LATENCY

    path = folder / "reply.json"
    reply = {
        "interleaved": {"latencies": [LATENCY], "medians": [[1.0, 1.0, 1.0, 1.0, 1.0]]},
        "scenarios": [],
        "failures": [],
        "machine": {
            "cpu": "x", "cores": 2, "instructions": [], "memory_bytes": 1, "gpus": [], "system": "x", "versions": {},
        },
    }  # fmt: skip
    path.write_text(json.dumps(reply))
    return path


def read_reply(path: Path) -> object:
    from test_remote import BOARD, CASE, request

    from profiles.latency import remote
    from profiles.latency.cases import BenchmarkCase
    from profiles.latency.remote_worker import BEGIN, END
    from profiles.latency.ssh import RemoteOutput

    content = f"noise\n{BEGIN}\n".encode() + path.read_bytes() + f"\n{END}\n".encode()
    reply = remote.parse_reply(BOARD, RemoteOutput(content, [], 0))
    case = BenchmarkCase(CASE.name, path, (8, 10), 2, "onnxruntime", "cpu", 1)
    return remote.validate_reply(BOARD, reply, [case], request())


def write_metrics(folder: Path) -> Path:
    from compress.engine.logging import MetricsLogger

    (folder / "metrics.jsonl").unlink(missing_ok=True)
    logger = MetricsLogger(folder, tensorboard=False)
    logger.log("train", 1, {"S": 0.5, "images_per_s": 10.0, "data_wait_share": 0.1, "seconds": 1.0})
    logger.log("evaluation", 2, {"accuracy": 0.5, "seconds": 2.0})
    return folder / "metrics.jsonl"


def read_metrics(path: Path) -> object:
    """As the end of a training reads it."""
    import tiny

    from compress.training.launch import summarize_training

    content = path.read_bytes()
    run = tiny.tiny_run(path.parent)
    assert run.metrics_logger is not None
    run.metrics = {"accuracy": 0.5}
    summary = summarize_training(run)
    json.dumps(summary.history)
    run.metrics_logger.truncate(len(content), 2)
    return summary


def write_cache(folder: Path) -> Path:
    from benchmarks.reliability.images import decode_folder
    from benchmarks.reliability.writers import save_noise

    images = save_noise(folder / "images", 3)
    decode_folder(images, folder / "cache", 1)
    return next((folder / "cache").glob("*/index.json"))


def read_cache(path: Path) -> object:
    from benchmarks.reliability.images import decode_folder

    return decode_folder(path.parents[2] / "images", path.parents[1], 1)


def write_engine(folder: Path) -> Path:
    from benchmarks.reliability.damaged import write_fake_engine
    from exporters.tensorrt.metadata import metadata_path

    write_fake_engine(folder / "net.engine")
    return metadata_path(folder / "net.engine")


def read_engine(path: Path) -> object:
    from exporters.tensorrt import metadata as engines

    _, facts = engines.read_engine(path.with_name("net.engine"))
    return engines.gpu_mismatch(facts, engines.Gpu("NVIDIA T4", "7.5"))
