"""Files that are no files, damaged archives and absurd labels: one sentence or a quarantined picture, never a crash."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import socket
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from compress.data import open_images
from compress.data.cache import ImageCache, build_cache
from compress.data.dataset import ImageSet, UnreadableImageError
from compress.data.folders import read_class_names
from compress.data.shards import MAX_HEADER
from compress.errors import CompressError, UsageError
from profiles.records import Record, append_records, read_records


def png(value: int = 0, size: tuple[int, int] = (4, 4)) -> bytes:
    file = io.BytesIO()
    Image.new("L", size, value).save(file, "PNG")
    return file.getvalue()


def decode(data: Path | str | ImageSet, folder: Path, **options) -> ImageCache:
    images = data if isinstance(data, ImageSet) else open_images(str(data))
    return build_cache(images, image_size=(4, 4), folder=folder, max_unreadable=0.99, **options)


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    server = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(path.parent)  # the address of a socket has at most 107 bytes
    server.bind(path.name)
    os.chdir(here)
    server.close()


def link_to_zero(path: Path) -> None:
    path.symlink_to("/dev/zero")


def link_to_itself(path: Path) -> None:
    path.symlink_to(path)


NO_FILES = [make_pipe, make_socket, link_to_zero, link_to_itself]
no_file = pytest.mark.parametrize("make", NO_FILES, ids=lambda make: make.__name__)


# Files that are no files.


@no_file
def test_picture_that_is_no_file_is_quarantined(tmp_path: Path, make: Callable[[Path], None]) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "1.png").write_bytes(png(7))
    make(tmp_path / "set" / "2.png")
    cached = decode(tmp_path / "set", tmp_path / "cache")
    assert (len(cached), [Path(name).name for name, _ in cached.unreadable]) == (1, ["2.png"])
    assert list(open_images(str(tmp_path / "set")).iter_sizes()) == [(4, 4)]


@no_file
def test_mask_that_is_no_file_is_quarantined(tmp_path: Path, make: Callable[[Path], None]) -> None:
    for name in ("images", "masks"):
        (tmp_path / "set" / name).mkdir(parents=True)
    for number in (1, 2):
        (tmp_path / "set" / "images" / f"{number}.png").write_bytes(png())
    (tmp_path / "set" / "masks" / "1.png").write_bytes(png())
    make(tmp_path / "set" / "masks" / "2.png")
    cached = decode(open_images(str(tmp_path / "set"), labeled=True), tmp_path / "cache")
    assert [Path(name).name for name, _ in cached.unreadable] == ["2.png"]


@no_file
@pytest.mark.parametrize("name", ["data", "shard.tar", "model.onnx"])
def test_data_that_is_no_file_is_refused(tmp_path: Path, make: Callable[[Path], None], name: str) -> None:
    make(tmp_path / name)
    with pytest.raises(UsageError):
        open_images(str(tmp_path / name))


@pytest.mark.parametrize("make", [make_pipe, link_to_zero], ids=lambda make: make.__name__)
def test_list_of_classes_that_is_no_file_is_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "classes.txt")
    with pytest.raises(UsageError):
        read_class_names(tmp_path)


@pytest.mark.parametrize("content", [b"a\0b\nc", b"\x1b[2J\nb", b"\xff\xfea\0", b"x" * (1 << 20), b"\xff" * 9])
def test_strange_list_of_classes_is_refused_or_short(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "classes.txt").write_bytes(content)
    with contextlib.suppress(UsageError):
        assert len(read_class_names(tmp_path) or []) == 1


@pytest.mark.parametrize(
    "spec", ["x" * 5000, "a\0b", "\udcff", "~nobody-of-this-name/x", "", "/dev/null", "\n", "a" * 300 + ".tar"]
)
def test_text_that_names_no_data_is_refused(spec: str) -> None:
    with pytest.raises(UsageError):
        open_images(spec)


# Pictures.


def test_corrupt_pictures_are_named_and_the_rest_is_used(tmp_path: Path) -> None:
    """One of each kind of anchor R6, with one and with three workers."""
    folder = tmp_path / "set"
    folder.mkdir()
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    noise.save(folder / "01-rgb.png")
    noise.convert("CMYK").save(folder / "02-cmyk.jpg")
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000).save(folder / "03-16bit.png")
    noise.convert("RGBA").save(folder / "04-alpha.png")
    noise.save(folder / "05-exif.jpg", exif=exif)
    Image.new("RGB", (1, 1)).save(folder / "06-pixel.png")
    Image.new("RGB", (30_000, 2)).save(folder / "07-wide.png")
    noise.save(folder / "08-extension.gif", "PNG")
    readable = sorted(path.name for path in folder.iterdir())
    whole = (folder / "01-rgb.png").read_bytes()
    (folder / "11-truncated.png").write_bytes(whole[: len(whole) // 2])
    (folder / "12-flipped.png").write_bytes(whole[:900] + bytes([whole[900] ^ 4]) + whole[901:])
    (folder / "13-empty.png").write_bytes(b"")
    (folder / "14-bomb.png").write_bytes(bomb())
    (folder / "15-loop.png").symlink_to(folder / "15-loop.png")
    (folder / "16-gone.png").symlink_to(folder / "nowhere")
    (folder / "17-eps.png").write_bytes(EPS)
    (folder / "18-svg.png").write_bytes(b"<svg xmlns='http://www.w3.org/2000/svg'/>")
    (folder / "19-pdf.jpg").write_bytes(b"%PDF-1.4\n")
    (folder / "loop").symlink_to(folder)
    unreadable = sorted({path.name for path in folder.iterdir()} - set(readable) - {"loop"})
    caches = [decode(folder, tmp_path / str(workers), workers=workers) for workers in (1, 3)]
    for workers, cached in zip((1, 3), caches, strict=True):
        assert len(cached) == len(readable)
        assert [Path(name).name for name, _ in cached.unreadable] == unreadable
        (file,) = (tmp_path / str(workers)).glob("*/quarantine.jsonl")
        entries = [json.loads(line) for line in file.read_text().splitlines()]
        assert [Path(entry["image"]).name for entry in entries] == unreadable
        assert all(entry["reason"] for entry in entries)
    assert np.array_equal(caches[0].pixels, caches[1].pixels)


def bomb() -> bytes:
    """A PNG with 900 million pixels in its header."""
    import struct
    import zlib

    head = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head)) + png()[33:]


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"


def test_no_program_is_started_for_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    monkeypatch.setattr(subprocess, "Popen", lambda *arguments, **_: started.append(arguments))
    monkeypatch.setattr(shutil, "which", lambda name, *_, **__: f"/usr/bin/{name}")
    (tmp_path / "a.png").write_bytes(EPS)
    sources = [tmp_path / "a.png", io.BytesIO(EPS), Image.open(io.BytesIO(EPS))]  # torchvision returns opened images
    images = ImageSet("some", ["a", "b", "c"], lambda i: sources[i], "some")
    for i in range(3):
        with pytest.raises(UnreadableImageError):
            images.read_image(i)
    assert started == []


@pytest.mark.parametrize(
    "mask", [np.full((4, 4), np.nan), np.zeros((4, 4), dtype=object), np.zeros((2, 4, 4), np.uint8)]
)
def test_mask_that_is_no_map_of_numbers_is_quarantined(tmp_path: Path, mask: np.ndarray) -> None:
    masks = [np.zeros((4, 4), dtype=np.uint8), mask]
    images = ImageSet("some", ["a", "b"], lambda _: Image.new("RGB", (4, 4)), "some", open_mask=lambda i: masks[i])
    assert [name for name, _ in decode(images, tmp_path).unreadable] == ["b"]


def test_damaged_directory_of_the_hub_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    files = {
        "README.md": b"---\n!!python/object/apply:os.mkdir ['planted']\n---\n",
        "a.json": b"[" * 10**5,
        "a.pkl": b"cos\nmkdir\n(S'planted'\ntR.",
    }
    monkeypatch.chdir(tmp_path)
    for name, content in files.items():
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        (folder / name).write_bytes(content)
        with pytest.raises(CompressError):
            open_images(f"hf/{folder}")
    assert not (tmp_path / "planted").exists()


# Shards.


def member(name: str, content: bytes = b"", **fields) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


def write_shard(path: Path, *members: tuple[tarfile.TarInfo, bytes], **options) -> Path:
    with tarfile.open(path, "w", **options) as file:
        for info, content in members:
            file.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("label", [b"-1", b"True", b"1.0", b"1e3", b"1_0", b"cat", b"", b"9" * 5000, b"[" * 10**6])
def test_label_that_is_no_class_leaves_the_shard_without_labels(tmp_path: Path, label: bytes) -> None:
    path = write_shard(tmp_path / "s.tar", member("1.png", png()), member("1.cls", label))
    assert open_images(str(path)).labels is None


@pytest.mark.parametrize("label", [10**30, 2**63, 10**7])
def test_absurd_label_is_refused(tmp_path: Path, label: int) -> None:
    path = write_shard(tmp_path / "s.tar", member("1.png", png()), member("1.cls", str(label).encode()))
    with pytest.raises(CompressError):
        open_images(str(path))
    with pytest.raises(CompressError):
        open_images([(Image.new("RGB", (4, 4)), label)])


def test_label_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "s.tar", member("1.png", png()), member("1.cls"))
    content = bytearray(path.read_bytes())
    header = member("1.cls", size=1 << 30)[0].tobuf()
    start = 512 + 512
    with open(path, "wb") as file:
        file.write(content[:start] + header)
        file.truncate(start + 512 + (1 << 30) + 1024)  # a hole
    assert open_images(str(path)).labels is None


def test_members_outside_links_and_devices_are_only_names(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png(9))
    path = write_shard(
        tmp_path / "s.tar",
        member("/etc/1.png", png(1)),
        member("../../2.png", png(2)),
        member("3.png", type=tarfile.SYMTYPE, linkname=str(tmp_path / "secret.png")),
        member("4.png", type=tarfile.CHRTYPE, devmajor=1, devminor=5),
        member("5.png", type=tarfile.FIFOTYPE),
        member("6.png", png(6), type=tarfile.GNUTYPE_SPARSE),
        member("7\udcff.png", png(7)),
        format=tarfile.GNU_FORMAT,
    )
    before = sorted(tmp_path.iterdir())
    cached = decode(path, tmp_path / "cache")
    assert cached.pixels[:, 0, 0, 0].tolist() == [1, 2, 7]
    assert [name.rpartition("/")[2][-5:] for name, _ in cached.unreadable] == ["3.png", "4.png", "5.png", "6.png"]
    assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "cache"])


def test_archives_that_never_end_are_refused(tmp_path: Path) -> None:
    long_name = member("x" * (2 * MAX_HEADER), png())
    negative = member("1.png")[0].tobuf()[:124] + b"\xff" * 12 + member("1.png")[0].tobuf()[136:]
    checksum = 256 + sum(negative[:148]) + sum(negative[156:])
    negative = negative[:148] + b"%06o\0 " % checksum + negative[156:]
    sparse = member("2.png", b"1" * 512, pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0"})
    paths = [
        write_shard(tmp_path / "a.tar", long_name, format=tarfile.GNU_FORMAT),
        write_shard(tmp_path / "b.tar", long_name, format=tarfile.PAX_FORMAT),
        write_shard(tmp_path / "c.tar", sparse, format=tarfile.PAX_FORMAT),
    ]
    (tmp_path / "d.tar").write_bytes(negative * 3 + bytes(1024))
    (tmp_path / "e.tar").write_bytes(paths[2].read_bytes()[:2048])
    for path in (*paths[:2], tmp_path / "d.tar", tmp_path / "e.tar"):
        with pytest.raises(CompressError):
            open_images(str(path))
    with pytest.raises(CompressError):
        decode(paths[2], tmp_path / "cache")


def test_names_that_are_not_utf_8_work(tmp_path: Path) -> None:
    top = tmp_path / "set\udcff"
    for name in ("a\udcff", "b\udcfe"):
        (top / name).mkdir(parents=True)
        (top / name / "x\udcfd.png").write_bytes(png(1))
        (top / name / "y\udcfd.png").write_bytes(b"broken")
    images = open_images(str(top), labeled=True)
    assert images.class_names == ["a\\xff", "b\\xfe"]
    cached = decode(images, tmp_path / "cache\udcff")
    assert (len(cached), len(cached.unreadable)) == (2, 2)
    assert len(decode(images, tmp_path / "cache\udcff").unreadable) == 2
    (file,) = (tmp_path / "cache\udcff").glob("*/quarantine.jsonl")
    assert all(os.path.exists(json.loads(line)["image"]) for line in file.read_bytes().splitlines())


def test_names_that_are_not_utf_8_are_recorded(tmp_path: Path) -> None:
    record = Record(name="x\udcff", run={"val": "set\ud800", "key\udcff": ["\udcff"]})
    append_records(tmp_path, [record])
    (read,) = read_records(tmp_path)
    assert (read.name, read.run) == ("x\\udcff", {"val": "set\\ud800", "key\\udcff": ["\\udcff"]})


# Mutations: whatever the bytes are, a picture is read or quarantined, and an archive is read or refused.


FORMATS = [
    "PNG",
    "JPEG",
    "GIF",
    "BMP",
    "TIFF",
    "WEBP",
    "PPM",
    "ICO",
    "TGA",
    "JPEG2000",
    "PCX",
    "SGI",
    "QOI",
    "DDS",
    "AVIF",
]
EXAMPLES = int(os.environ.get("COMPRESS_FUZZ_EXAMPLES", "40"))
fuzz = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)


def encode_pictures() -> list[bytes]:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 9, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    files = [io.BytesIO() for _ in range(len(FORMATS) + 3)]
    for file, name in zip(files, FORMATS, strict=False):
        noise.save(file, name, **({"exif": exif} if name == "JPEG" else {}))
    noise.convert("P").save(files[-1], "PNG", transparency=3)
    noise.convert("L").save(files[-2], "TIFF", compression="tiff_lzw")
    noise.convert("RGBA").save(files[-3], "GIF", save_all=True, append_images=[noise.convert("P")])
    return [file.getvalue() for file in files]


def encode_archives() -> list[bytes]:
    files = []
    for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=kind) as shard:
            for name in ("1.png", "1.cls", "a/2.png", ("long" * 30 + "/" + "n" * 90) + ".png"):
                info, content = member(name, b"3" if name.endswith("cls") else png(), mtime=1.5)
                shard.addfile(info, io.BytesIO(content))
        files.append(file.getvalue()[: -tarfile.RECORDSIZE + 4096])
    return files


@st.composite
def mutations(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """Cut, flip, repeat or replace parts of one of the seeds."""
    content = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 6))):
        where = draw(st.integers(0, len(content)))
        match draw(st.sampled_from(["flip", "write", "cut", "copy"])):
            case "flip" if where < len(content):
                content[where] ^= 1 << draw(st.integers(0, 7))
            case "write":
                new = draw(
                    st.one_of(st.binary(max_size=12), st.sampled_from([b"\xff" * 8, bytes(8), b"\x80" + b"\xff" * 11]))
                )
                content[where : where + len(new)] = new
            case "cut":
                del content[where : where + draw(st.integers(0, 600))]
            case _:
                content[where:where] = content[: draw(st.integers(0, 600))]
    return bytes(content)


@fuzz
@given(mutations(encode_pictures()))
def test_mutated_picture_is_read_or_quarantined(content: bytes) -> None:
    images = ImageSet("some", ["a"], lambda _: io.BytesIO(content), "some")
    with contextlib.suppress(UnreadableImageError):
        assert images.read_image(0).mode == "RGB"
    list(images.iter_sizes())


@fuzz
@given(mutations(encode_archives()))
def test_mutated_shard_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated.tar"
    path.write_bytes(content)
    try:
        images = open_images(str(path))
    except CompressError:
        return
    for i in range(len(images)):
        with contextlib.suppress(UnreadableImageError):
            images.read_image(i)


@fuzz
@given(st.one_of(st.binary(max_size=60), mutations(["bed\nsofa\nTür\n".encode(), "\ufeffbed\r\nsofa".encode()])))
def test_mutated_list_of_classes_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / "classes.txt").write_bytes(content)
    try:
        names = read_class_names(folder)
    except CompressError:
        return
    assert names is not None
    assert all(names)


@fuzz
@given(st.text(alphabet="{}.,-019*?[]/a", max_size=30))
def test_any_range_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, spec: str) -> None:
    with pytest.raises(CompressError):
        open_images(f"{tmp_path_factory.getbasetemp()}/none/{spec}.tar")
