"""Writers of files other than checkpoints, for the rows that disturb the disk."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from compress.files import write_text

TEACHER = "embedded/fashion_wrn16_2"
Writer = Callable[[Path], Path]


def write_export(folder: Path) -> Path:
    import compress

    compress.export(TEACHER, folder / "net.onnx")
    return folder / "net.onnx"


def write_model(folder: Path) -> Path:
    import tiny

    from compress.models.card import ModelCard
    from compress.models.serialization import load_model_directory, save_model

    network = tiny.random_network(3)
    save_model(folder / "model", network, ModelCard(**tiny.CARD.as_dict()))
    load_model_directory(folder / "model", user_code="tiny:small")
    return folder / "model"


def write_records(folder: Path) -> Path:
    """One line; a line of an earlier, failed try may precede it."""
    from profiles.records import Record, append_records, read_records

    append_records(folder, [Record("a", macs=1, at="then")])
    write_text(folder / "merged", str(read_records(folder)))
    return folder / "merged"


def write_report(folder: Path) -> Path:
    import compress
    from profiles.records import Record, append_records

    append_records(folder / "run", [Record("a", macs=1, params=2, at="then", metrics={"accuracy": 0.5})])
    result = compress.report(folder / "run", output_dir=folder)
    assert Path(result.html).stat().st_size > 1000
    write_text(folder / "summary", result.summary)
    return folder / "summary"


def write_cache(folder: Path) -> Path:
    from compress.data import open_images
    from compress.data.cache import build_cache

    images = save_noise(folder.parent / "noise", 12)
    cache = build_cache(open_images(str(images)), image_size=(16, 16), folder=folder, workers=1)
    write_text(folder / "digest", hashlib.sha256(np.ascontiguousarray(cache.pixels).tobytes()).hexdigest())
    return folder / "digest"


WRITERS: dict[str, Writer] = {
    "model directory": write_model,
    "records": write_records,
    "cache of images": write_cache,
    "report": write_report,
    "ONNX export": write_export,
}


def write_with_error(write: Writer, folder: Path, touch: int | None, code: str = "ENOSPC") -> list[object]:
    """Write with an error at a disk access; return the number of accesses and the digest of what was written."""
    from killable_runs import DiskAccesses

    folder.mkdir(parents=True, exist_ok=True)
    (folder.parent / "noise").exists() or save_noise(folder.parent / "noise", 12)
    accesses = DiskAccesses({"folder": str(folder), "touch": touch, "errno": code})
    path = write(folder)
    touches, accesses.at = accesses.count, None
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        if file.is_file():
            digest.update(file.name.encode() + file.read_bytes())
    return [touches, digest.hexdigest()]


def save_noise(folder: Path, n: int, size: tuple[int, int] = (40, 48)) -> Path:
    """Save `n` images of noise, once."""
    if not folder.exists():
        work = folder.with_name(f".{folder.name}.work")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        rng = np.random.default_rng(0)
        for i in range(n):
            Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(work / f"{i:04d}.png")
        work.rename(folder)
    return folder
