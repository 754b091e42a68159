"""Decoding of unusual and damaged images."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from compress.data import dataset as module
from compress.data.dataset import ImageSet, UnreadableImageError, to_uint8


def of(*sources) -> ImageSet:
    return ImageSet("some", [str(i) for i in range(len(sources))], lambda i: sources[i], "some")


def pixel(image, at=(0, 0)) -> tuple[int, ...]:
    return image.getpixel(at)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))


# Readable images.


def test_grayscale_image_becomes_rgb():
    read = of(Image.new("L", (3, 2), 77)).read_image(0)
    assert (read.mode, read.size, pixel(read)) == ("RGB", (3, 2), (77, 77, 77))


def test_palette_image_becomes_rgb(tmp_path):
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    image.save(tmp_path / "p.png")
    assert pixel(of(tmp_path / "p.png").read_image(0)) == (10, 200, 30)


def test_transparency_becomes_white(tmp_path):
    image = Image.new("RGBA", (3, 1), (200, 0, 0, 0))
    image.putpixel((1, 0), (200, 0, 0, 255))
    image.putpixel((2, 0), (0, 0, 0, 51))
    image.save(tmp_path / "a.png")
    read = of(tmp_path / "a.png").read_image(0)
    assert [pixel(read, (x, 0)) for x in range(3)] == [(255, 255, 255), (200, 0, 0), (204, 204, 204)]


def test_palette_transparency_becomes_white(tmp_path):
    palette = Image.new("P", (1, 1), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    palette.save(tmp_path / "p.png", transparency=1)
    Image.new("LA", (1, 1), (0, 0)).save(tmp_path / "la.png")
    images = of(tmp_path / "p.png", tmp_path / "la.png")
    assert pixel(images.read_image(0)) == pixel(images.read_image(1)) == (255, 255, 255)


def test_sixteen_bit_image_keeps_high_byte(tmp_path):
    values = np.array([[0, 255, 256, 0x8000, 65535]], dtype=np.uint16)
    for name in ("d.png", "d.tif"):
        Image.fromarray(values).save(tmp_path / name)
        read = np.asarray(of(tmp_path / name).read_image(0))
        assert read[0, :, 0].tolist() == [0, 0, 1, 128, 255]


@pytest.mark.parametrize(
    ("values", "declared", "expected"),
    [
        ([0.0, 0.5, 1.0], None, [0, 127, 255]),
        ([-5.0, 0.0, 5.0], (-5, 5), [0, 127, 255]),
        ([0.0, 500.0, 2000.0], (0, 1000), [0, 127, 255]),
        ([np.nan, np.inf, 1.0], (0, 1), [0, 255, 255]),
    ],
)
def test_float_image_fills_byte_range(values, declared, expected):
    assert to_uint8(np.array(values, dtype=np.float32), declared).tolist() == expected


@pytest.mark.parametrize("values", [[0.0, 128.0, 255.0], [np.nan, 1.0], [np.inf, 1.0], [-0.1, 1.0]])
def test_float_image_of_unknown_range_is_unreadable(values):
    with pytest.raises(UnreadableImageError):
        to_uint8(np.array(values, dtype=np.float32))


def test_integer_image_uses_its_depth():
    assert to_uint8(np.array([0, 7, 255], dtype=np.int32)).tolist() == [0, 7, 255]
    assert to_uint8(np.array([0, 256, 65535], dtype=np.int32)).tolist() == [0, 1, 255]
    assert to_uint8(np.array([0, 0], dtype=np.uint16)).tolist() == [0, 0]
    assert to_uint8(np.array([0, 2048, 4095], dtype=np.uint16), (0, 4095)).tolist() == [0, 127, 255]


@pytest.mark.parametrize("values", [[0, 100, 255], [0, 4095]])
def test_12_bits_in_16_are_unreadable_if_undeclared(values):
    with pytest.raises(UnreadableImageError):
        to_uint8(np.array(values, dtype=np.uint16))


def test_cmyk_image_becomes_rgb(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "c.jpg", quality=95)
    red, green, blue = pixel(of(tmp_path / "c.jpg").read_image(0), (8, 8))
    assert red > 240
    assert green < 15
    assert blue < 15


def test_exif_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (30, 20), "black")
    image.paste("white", (0, 0, 30, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise: what is on top goes to the right
    image.save(tmp_path / "e.jpg", exif=exif, quality=95)
    read = of(tmp_path / "e.jpg").read_image(0)
    assert read.size == (20, 30)
    assert pixel(read, (18, 15))[0] > 240
    assert pixel(read, (2, 15))[0] < 15


def test_broken_exif_is_ignored(noise):
    whole = encoded(noise, "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff" + b"\xff" * 40)
    assert of(io.BytesIO(whole)).read_image(0).size == noise.size


@pytest.mark.parametrize("size", [(1, 1), (30_000, 1), (1, 30_000)])
def test_extreme_shapes_are_read(tmp_path, size):
    Image.new("RGB", size, (1, 2, 3)).save(tmp_path / "x.png")
    assert of(tmp_path / "x.png").read_image(0).size == size


def test_content_decides_the_format(tmp_path, noise):
    (tmp_path / "really_png.jpg").write_bytes(encoded(noise, "PNG"))
    assert np.array_equal(np.asarray(of(tmp_path / "really_png.jpg").read_image(0)), np.asarray(noise))


# Refused files.


def png_of(width: int, height: int) -> bytes:
    """A PNG header of some size without pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [9_500, 20_000, 65_000])
def test_decompression_bomb_is_refused(side):
    with pytest.raises(UnreadableImageError, match=r"bomb|limit"):
        of(io.BytesIO(png_of(side, side))).read_image(0)


def test_opened_bomb_is_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = Image.open(io.BytesIO(png_of(9_500, 9_500)))
    with pytest.raises(UnreadableImageError, match="bomb"):
        of(image).read_image(0)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00" * 500, b"hello", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\x00", b"%!PS-Adobe-3.0 EPSF-3.0\n"],
)
def test_other_files_are_refused(content):
    with pytest.raises(UnreadableImageError):
        of(io.BytesIO(content)).read_image(0)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_truncated_image_is_refused(noise, kind):
    whole = encoded(noise, kind)
    cuts = np.random.default_rng(1).integers(1, len(whole) * 9 // 10, 15)
    for cut in cuts:
        with pytest.raises(UnreadableImageError):
            of(io.BytesIO(whole[:cut])).read_image(0)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "TGA", "JPEG2000"])
def test_damaged_image_is_read_or_refused(noise, kind):
    whole = bytearray(encoded(noise, kind))
    rng = np.random.default_rng(2)
    for _ in range(60):
        damaged = bytearray(whole)
        for place in rng.integers(0, min(len(whole), 400), 4):
            damaged[place] ^= 1 << int(rng.integers(8))
        with contextlib.suppress(UnreadableImageError):
            assert of(io.BytesIO(bytes(damaged))).read_image(0).mode == "RGB"


def test_png_bit_flip_is_detected(noise):
    whole = bytearray(encoded(noise, "PNG"))
    for place in np.random.default_rng(3).integers(60, len(whole) - 20, 20):
        damaged = bytearray(whole)
        damaged[place] ^= 4
        with pytest.raises(UnreadableImageError):
            of(io.BytesIO(bytes(damaged))).read_image(0)


def test_postscript_is_never_executed(tmp_path, noise, monkeypatch):
    noise.save(tmp_path / "x.eps")
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("ran a program"))
    with pytest.raises(UnreadableImageError):
        of(tmp_path / "x.eps").read_image(0)
    assert not {".eps", ".ps", ".pdf", ".wmf", ".mpg", ".h5"} & module.readable_extensions()
    assert {".jpg", ".jpeg", ".png", ".webp", ".tif", ".bmp", ".gif"} <= module.readable_extensions()


def test_special_files_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    images = of(tmp_path / "none.png", tmp_path, tmp_path / "pipe.png")
    for i in range(3):
        with pytest.raises(UnreadableImageError):
            images.read_image(i)


# Warnings.


def test_warning_filters_survive_threads(noise):
    before = list(warnings.filters)
    content = encoded(noise, "PNG")
    images = ImageSet("many", ["x"] * 200, lambda i: io.BytesIO(content), "many")
    start = threading.Barrier(4)

    def read(i: int) -> None:
        if i < 4:
            start.wait()
        images.read_image(i)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, range(200)))
    assert warnings.filters == before


# Sets of images.


def test_subsample_is_evenly_spaced(tmp_path):
    image_dir = [Image.new("L", (1, 1), i) for i in range(10)]
    images = ImageSet("ten", [f"{i}" for i in range(10)], lambda i: image_dir[i], "ten", np.arange(10), ["a"] * 10)
    part = images.subsample(4)
    assert [part.name_of(i) for i in range(4)] == ["0", "3", "6", "9"]
    assert [pixel(part.read_image(i))[0] for i in range(4)] == [0, 3, 6, 9]
    assert part.labels is not None
    assert part.labels.tolist() == [0, 3, 6, 9]
    assert images.subsample(10) is images
    assert part.fingerprint() != images.fingerprint()
