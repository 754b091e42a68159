"""Directories of images and masks."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compress.data import ImageSet, UnreadableImageError, open_images
from compress.errors import CompressError, UsageError


def write(folder: Path, name: str = "a", *, mask: np.ndarray | None = None, part: str = "", mode: str = "L") -> None:
    """Write `name`.jpg and its mask, by default 4x6."""
    values = np.zeros((4, 6), dtype=np.uint8) if mask is None else mask
    for kind in ("images", "masks"):
        (folder / part / kind / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", values.shape[::-1]).save(folder / part / "images" / f"{name}.jpg")
    image = Image.fromarray(values)
    if mode == "P":
        image = image.convert("P")
        image.putdata(values.ravel().tolist())
        image.putpalette([(7 * i) % 256 for i in range(768)])
    image.save(folder / part / "masks" / f"{name}.png")


def open_set(folder: Path, split: str = "train", *, labeled: bool = True) -> ImageSet:
    return open_images(str(folder), split=split, labeled=labeled)


VALUES = np.array([[0, 1, 2, 3, 255, 0]] * 4, dtype=np.uint8)


@pytest.mark.parametrize("mode", ["L", "P"])
def test_masks_from_gray_and_palette(tmp_path, mode):
    write(tmp_path, "img10", mode=mode)
    write(tmp_path, "img2", mask=VALUES, mode=mode)
    (tmp_path / "classes.txt").write_text("\ufefffloor\nwall \n bed\nlamp\n\n", encoding="utf-8")
    images = open_set(tmp_path)
    assert [Path(images.name_of(i)).name for i in range(2)] == ["img2.jpg", "img10.jpg"]
    assert np.array_equal(images.read_mask(0), VALUES)
    assert images.class_names == ["floor", "wall", "bed", "lamp"]
    assert images.labels is None
    assert images.read_image(0).size == (6, 4)


def png(values: list[list[int]], bits: int, colour: int = 0) -> bytes:
    """A PNG with few bits per pixel, which Pillow cannot write."""
    wide = len(values[0])
    rows = b""
    for row in values:
        joined = "".join(f"{value:0{bits}b}" for value in row).ljust(-(-wide * bits // 8) * 8, "0")
        rows += b"\0" + int(joined, 2).to_bytes(len(joined) // 8)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    palette = chunk(b"PLTE", bytes(range(3 << bits))) if colour == 3 else b""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", wide, len(values), bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + palette + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("colour", [0, 3])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_masks_of_few_bits(tmp_path, bits, colour):
    values = [[(x + 3 * y) % (1 << bits) for x in range(6)] for y in range(4)]
    write(tmp_path)
    (tmp_path / "masks" / "a.png").write_bytes(png(values, bits, colour))
    assert open_set(tmp_path).read_mask(0).tolist() == values


def test_masks_match_by_relative_name(tmp_path):
    for k, name in enumerate(["room/1", "room/2.left", "hall/1"]):
        write(tmp_path, name, mask=np.full((4, 6), k, dtype=np.uint8))
    images = open_set(tmp_path)
    assert [int(images.read_mask(i)[0, 0]) for i in range(3)] == [2, 0, 1]  # hall/1, room/1, room/2.left
    assert images.class_names is None


@pytest.mark.parametrize("layout", ["{split}/images", "images/{split}"])
@pytest.mark.parametrize("held_out", ["val", "test"])
def test_mask_folder_splits(tmp_path, layout, held_out):
    for k, split in enumerate(["train", held_out]):
        write(tmp_path / "made", split, mask=np.full((4, 6), k, dtype=np.uint8))
        for kind in ("images", "masks"):
            folder = tmp_path / "data" / layout.format(split=split).replace("images", kind)
            folder.parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "made" / kind).rename(folder)
    assert [int(open_set(tmp_path / "data", split).read_mask(0).max()) for split in ("train", "val")] == [0, 1]
    assert Path(open_set(tmp_path / "data", "val", labeled=False).name_of(0)).stem == held_out


@pytest.mark.parametrize("part", ["train", ""])
def test_unlabeled_mask_folder_ignores_masks(tmp_path, part):
    write(tmp_path, part=part)
    (tmp_path / part / "masks" / "a.png").write_text("whatever")
    (tmp_path / part / "masks" / "b.png").write_text("whatever")
    for split in ("train", "val"):
        images = open_set(tmp_path, split, labeled=False)
        assert [Path(item).name for item in images.names] == ["a.jpg"]
        assert images.open_mask is None


def test_missing_validation_split_is_refused(tmp_path):
    write(tmp_path, part="train")
    with pytest.raises(UsageError, match="val"):
        open_set(tmp_path, "val")


def test_mask_change_changes_fingerprint(tmp_path):
    write(tmp_path)
    first = open_set(tmp_path).fingerprint()
    Image.new("L", (6, 4), 3).save(tmp_path / "masks" / "a.png", compress_level=0)
    assert open_set(tmp_path).fingerprint() != first


def test_mask_of_rotated_image(tmp_path):
    write(tmp_path, mask=np.zeros((6, 4), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 4)).save(tmp_path / "images" / "a.jpg", exif=exif)
    images = open_set(tmp_path)
    assert images.read_image(0).size == images.read_mask(0).shape[::-1] == (4, 6)


# Refused masks.


def test_image_without_mask_is_refused(tmp_path):
    for name in "abc":
        write(tmp_path, name)
    (tmp_path / "masks" / "b.png").unlink()
    with pytest.raises(UsageError, match=rf"images/b.jpg: .*{tmp_path}/masks/b.png"):
        open_set(tmp_path)
    (tmp_path / "masks" / "c.png").unlink()
    with pytest.raises(UsageError, match=r"images/b.jpg: .*2 of 3"):
        open_set(tmp_path)


def test_mask_without_image_is_refused(tmp_path):
    for name in "ab":
        write(tmp_path, name)
    (tmp_path / "images" / "b.jpg").unlink()
    with pytest.raises(UsageError, match=r"masks/b.png"):
        open_set(tmp_path)


def test_duplicate_image_names_are_refused(tmp_path):
    write(tmp_path)
    Image.new("RGB", (6, 4)).save(tmp_path / "images" / "a.png")
    with pytest.raises(UsageError, match="images/a: 2 "):
        open_set(tmp_path)


def test_split_without_masks_is_refused(tmp_path):
    write(tmp_path, part="train")
    (tmp_path / "val" / "images").mkdir(parents=True)
    Image.new("RGB", (6, 4)).save(tmp_path / "val" / "images" / "a.png")
    with pytest.raises(UsageError, match=r"val: .* masks"):
        open_set(tmp_path, "val")


def test_mask_of_other_size_is_refused(tmp_path):
    write(tmp_path)
    Image.new("L", (6, 5)).save(tmp_path / "masks" / "a.png")
    with pytest.raises(CompressError, match=r"masks/a.png: 6x5 .* 6x4"):
        open_set(tmp_path)


@pytest.mark.parametrize(("mode", "found"), [("RGB", "RGB"), ("RGBA", "RGBA"), ("LA", "LA"), ("I;16", "16 bits")])
def test_mask_of_other_mode_is_refused(tmp_path, mode, found):
    write(tmp_path)
    Image.new(mode, (6, 4)).save(tmp_path / "masks" / "a.png")
    with pytest.raises(CompressError, match=rf"masks/a.png: .*{found}"):
        open_set(tmp_path)


def test_lossy_mask_is_refused(tmp_path):
    write(tmp_path)
    (tmp_path / "masks" / "a.png").unlink()
    Image.new("L", (6, 4)).save(tmp_path / "masks" / "a.jpg")
    with pytest.raises(UsageError, match=r"masks/a.jpg"):
        open_set(tmp_path)


def test_mask_value_beyond_classes(tmp_path):
    write(tmp_path, mask=VALUES)
    (tmp_path / "classes.txt").write_text("floor\nwall\nbed\n")
    images = open_set(tmp_path)
    with pytest.raises(CompressError, match=r"a.jpg.* 3; "):
        images.read_mask(0)


def test_damaged_mask_is_unreadable(tmp_path):
    write(tmp_path, "a", mask=np.random.default_rng(0).integers(0, 9, (40, 60), dtype=np.uint8))
    write(tmp_path, "b")
    whole = (tmp_path / "masks" / "a.png").read_bytes()
    for left in (0, 20, len(whole) // 2):
        (tmp_path / "masks" / "a.png").write_bytes(whole[:left])
        with pytest.raises(UnreadableImageError):
            open_set(tmp_path).read_mask(0)
    assert open_set(tmp_path).read_mask(1).max() == 0


@pytest.mark.parametrize(
    "content", [b"", b"floor\nfloor\n", b"floor\n\nwall\n", b"\xff\xfe", "\n".join(map(str, range(256))).encode()]
)
def test_invalid_class_names_are_refused(tmp_path, content):
    write(tmp_path)
    (tmp_path / "classes.txt").write_bytes(content)
    with pytest.raises(UsageError, match=r"classes.txt"):
        open_set(tmp_path)
