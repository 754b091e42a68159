"""Rows of images: corrupt files, killed decoders, other numbers of decoders."""

from __future__ import annotations

import hashlib
import io
import os
import random
import signal
import struct
import time
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.reliability.counts import Counts, Scale
from benchmarks.reliability.isolated import call_isolated, expect_no_crash, expect_same
from benchmarks.reliability.writers import save_noise

IMAGE_SIZE = (16, 16)


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def bomb_png(width: int, height: int) -> bytes:
    """A PNG of a few kilobytes whose header announces width x height pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10_000)))
        + chunk(b"IEND", b"")
    )


def write_strange_images(folder: Path, rng: random.Random, truncated: int) -> tuple[set[str], set[str]]:
    """Write images of all kinds; return the names that must be read, and those that must be listed as unreadable."""
    noise = Image.fromarray(np.random.default_rng(rng.randrange(1 << 30)).integers(0, 256, (40, 48, 3), dtype=np.uint8))
    rotated = Image.Exif()
    rotated[0x0112] = 6
    good = {
        "cmyk.jpg": encode(noise.convert("CMYK"), "JPEG"),
        "16bit.png": encode(Image.fromarray((np.arange(1600, dtype=np.uint16) * 40).reshape(40, 40)), "PNG"),
        "float.tif": encode(Image.fromarray(np.random.default_rng(0).random((40, 40), dtype=np.float32)), "TIFF"),
        "alpha.png": encode(noise.convert("RGBA"), "PNG"),
        "palette.gif": encode(noise.convert("P"), "GIF"),
        "rotated.jpg": encode(noise, "JPEG", exif=rotated),
        "bad-exif.jpg": encode(noise, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"),
        "1x1.png": encode(noise.resize((1, 1)), "PNG"),
        "long.png": encode(Image.new("L", (30_000, 2)), "PNG"),
        "jpeg-in.png": encode(noise, "JPEG"),
        "süß 🎓.png": encode(noise, "PNG"),
        "new\nline.png": encode(noise, "PNG"),
        "webp.webp": encode(noise, "WEBP"),
    }
    bad = {
        "empty.png": b"",
        "text.jpg": b"not an image",
        "bomb.png": bomb_png(30_000, 30_000),
        "postscript.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) (w) file\n%%EOF\n",
        "pdf.jpg": b"%PDF-1.4\n%%EOF",
        "header-only.png": encode(noise, "PNG")[:33],
    }
    for i in range(truncated):
        content = encode(noise.rotate(i), "PNG" if i % 2 else "JPEG")
        bad[f"cut{i}.{'png' if i % 2 else 'jpg'}"] = content[: rng.randrange(1, len(content) // 2)]
    for name, content in (good | bad).items():
        (folder / name).write_bytes(content)
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "broken-link.png").symlink_to("nowhere.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.png")
    (folder / "directory.png").mkdir()
    for i in range(truncated):  # may be read or not, but always equally
        content = bytearray(encode(noise.rotate(-i), "JPEG"))
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        (folder / f"flipped{i}.jpg").write_bytes(content)
    return set(good), set(bad)


def decode_folder(images: Path, folder: Path, workers: int) -> dict[str, Any]:
    """Build a cache; return its digest and the names of unreadable images."""
    from compress.data import open_images
    from compress.data.cache import build_cache

    cache = build_cache(
        open_images(str(images)), image_size=IMAGE_SIZE, folder=folder, workers=workers, max_unreadable=1
    )
    digest = hashlib.sha256(np.ascontiguousarray(cache.pixels).tobytes() + cache.source_index.tobytes()).hexdigest()
    return {"digest": digest, "unreadable": sorted(Path(name).name for name, _ in cache.unreadable)}


def run_corrupt_images(scale: Scale, counts: Counts) -> None:
    """Corrupt and unusual images: none stops a run, each is listed, any number of decoders gives the same rows."""
    rng = random.Random(scale.seed)
    for _ in range(scale.count(5)):
        with TemporaryDirectory(prefix="reliability-") as name:
            here = Path(name)
            (here / "images").mkdir()
            good, bad = write_strange_images(here / "images", rng, truncated=10)
            outcomes = {n: call_isolated(decode_folder, here / "images", here / f"cache{n}", n) for n in (1, 2, 4)}
            for workers, outcome in outcomes.items():
                if not expect_no_crash(counts, "folders decoded", outcome, f"{workers} decoders"):
                    continue
                if outcome.kind == "refused":
                    counts.add("images", "other", f"the folder is refused: {outcome.text}")
                elif outcome.value != outcomes[1].value:
                    counts.add("images", "silent", f"{workers} decoders: other rows", n=len(good | bad))
                else:
                    listed = set(outcome.value["unreadable"])
                    for one in sorted(good | bad):
                        is_right = (one in listed) == (one in bad)
                        counts.add(
                            "images",
                            "expected" if is_right else "silent",
                            f"{one} {'listed' if one in listed else 'used'}",
                        )


def compare_decoder_counts(scale: Scale, counts: Counts) -> None:
    """The rows of a cache for 1 to 8 decoders."""
    with TemporaryDirectory(prefix="reliability-") as name:
        here = Path(name)
        images = save_noise(here / "images", 40)
        first = decode_folder(images, here / "first", 1)
        for i in range(scale.count(6)):
            workers = (2, 3, 4, 8, 1, 5)[i % 6]
            outcome = call_isolated(decode_folder, images, here / f"cache{i}", workers)
            kind = "expected" if outcome.value == first else "silent"
            counts.add("decoders", kind, f"{workers} decoders: {outcome.text or 'other rows'}")


def run_killed_decoders(scale: Scale, counts: Counts) -> None:
    """SIGKILL while images are decoded, also with a second process that waits; the next build has the same rows."""
    rng = random.Random(scale.seed)
    with TemporaryDirectory(prefix="reliability-") as name:
        here = Path(name)
        images = save_noise(here / "images", 300, (80, 96))
        begin = time.monotonic()
        whole = call_isolated(decode_folder, images, here / "whole", 2)
        seconds = time.monotonic() - begin
        for i in range(scale.count(20)):
            folder = here / f"cache{i}"
            children = [fork_decoder(images, folder) for _ in range(rng.choice([1, 2]))]
            time.sleep(rng.uniform(0.02, 1.0) * seconds)
            os.kill(children[0], signal.SIGKILL)
            codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
            again = call_isolated(decode_folder, images, folder, 2)
            if len(codes) > 1 and codes[1]:
                counts.add("killed decoders", "other", f"the process that waited ended with {codes[1]}")
            elif again.kind != "returned":
                counts.add("killed decoders", "other", f"not decoded again: {again.text}")
            elif again.value != whole.value:
                counts.add("killed decoders", "silent", "other rows")
            else:
                left = [path.name for path in folder.iterdir() if ".work" in path.name]
                counts.add("killed decoders", "other" if left else "expected", f"left {left}")
    counts.note("there are no DataLoader workers and no shared memory: threads decode, so /dev/shm is not used")


def fork_decoder(images: Path, folder: Path) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            decode_folder(images, folder, 2)
            code = 0
        finally:
            os._exit(code)
    return pid


def damage_caches(scale: Scale, counts: Counts) -> None:
    """Truncations, flipped bits and zeros in a cache: it is rebuilt or refused, and never used."""
    from benchmarks.reliability.damaged import DAMAGES, damage_file

    rng = random.Random(scale.seed)
    with TemporaryDirectory(prefix="reliability-") as name:
        here = Path(name)
        images = save_noise(here / "images", 12)
        whole = call_isolated(decode_folder, images, here / "cache", 1).value
        (folder,) = [path for path in (here / "cache").iterdir() if path.is_dir()]
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        for _ in range(scale.count(60)):
            kind, file = rng.choice(list(DAMAGES)), rng.choice([name for name in sorted(files) if files[name]])
            damaged = damage_file(files[file], kind, rng)
            (folder / file).write_bytes(damaged)
            outcome = call_isolated(decode_folder, images, here / "cache", 1)
            expect_same(counts, "cache of images", outcome, whole, f"{kind} in {file}")
            folder.mkdir(exist_ok=True)
            for one, content in files.items():
                (folder / one).write_bytes(content)
