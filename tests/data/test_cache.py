"""The image cache: equal bytes for any number of workers, atomic, shared by processes."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as vision

from compress.data import cache, decoding, open_images
from compress.data.cache import ImageCache, build_cache, choose_view_count
from compress.data.dataset import ImageSet
from compress.data.decoding import View
from compress.errors import CompressError

SIZES = [(40, 60), (60, 40), (32, 32), (1, 1), (7, 300), (300, 7), (31, 33), (128, 100)]


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def image_dir(tmp_path) -> Path:
    """Eight images of noise of many shapes."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, size in enumerate(SIZES):
        noise(*size, seed=i).save(folder / f"{i}.png")
    return folder


def cache_of(image_dir: Path, folder: Path, **options) -> ImageCache:
    return build_cache(open_images(str(image_dir)), image_size=(32, 32), folder=folder, **options)


# Rows.


def test_center_view_matches_torchvision():
    for size, resize in (((60, 40), 32), ((40, 60), 32), ((64, 64), 40), ((100, 80), 40)):
        image = Image.fromarray(np.asarray(noise(4, 4).resize(size, Image.Resampling.BICUBIC)))
        mine = View((32, 32), resize).make_rows(image, 0, range(1))[0][0]
        small = vision.resize(vision.pil_to_tensor(image), [resize], antialias=True)
        reference = vision.center_crop(small, [32, 32]).permute(1, 2, 0).numpy()
        assert np.abs(mine.astype(int) - reference).mean() < 1.5


@pytest.mark.parametrize("image_size", [(32, 32), (24, 48), (48, 24), (1, 1)])
@pytest.mark.parametrize("views", [1, 5])
def test_view_of_every_image_shape(image_size, views):
    for size in [*SIZES, (3001, 2), (333, 333)]:
        for seed in range(5):
            rows, _ = View(image_size, None, views, seed).make_rows(noise(*size), 0, range(views))
            assert rows.shape == (views, *image_size, 3)


def test_view_enlarges_small_images():
    image = Image.new("RGB", (10, 20), "black")
    image.paste("white", (0, 10, 10, 20))
    pixels, _ = View((32, 32), 16).make_rows(image, 0, range(1))  # its short side would be 16, half of what is needed
    row = pixels[0, :, 0, 0]
    assert row[:14].max() == 0
    assert row[18:].min() == 255


def test_random_views_cover_all_scales(monkeypatch):
    result: list[tuple[float, float, float]] = []
    monkeypatch.setattr(
        decoding,
        "resize_box",
        lambda image, size, left, top, share, _: result.append((left, top, share)) or np.zeros((32, 32, 3)),
    )
    View((32, 32), None, 2000, 7).make_rows(noise(640, 320), 3, range(2000))
    left, top, share = np.array(result).T
    assert share.min() >= 1
    assert share.max() <= 10
    assert (left >= 0).all()
    assert (left + 32 * share <= 640 + 1e-9).all()
    assert (top + 32 * share <= 320 + 1e-9).all()
    uniform = np.log(share) / math.log(10)  # uniform in [0, 1] if the side is uniform in log scale
    assert abs(uniform.mean() - 0.5) < 0.03
    assert abs(uniform.std() - 12**-0.5) < 0.03
    assert len({tuple(row) for row in result}) == 2000


def test_row_depends_on_seed_image_view(tmp_path, image_dir):
    all_ = cache_of(image_dir, tmp_path / "a", views=6, seed=3)
    one, _ = View((32, 32), None, 6, 3).make_rows(open_images(str(image_dir)).read_image(4), 4, range(2, 3))
    assert np.array_equal(all_.pixels[4 * 6 + 2], one[0])
    assert all_.source_index.tolist() == [i for i in range(8) for _ in range(6)]
    assert not np.array_equal(all_.pixels, cache_of(image_dir, tmp_path / "a", views=6, seed=4).pixels)


def test_grayscale_rows_have_no_color(tmp_path, image_dir):
    pixels = cache_of(image_dir, tmp_path / "a", grayscale=True).pixels
    assert (pixels[..., 0] == pixels[..., 1]).all()
    assert (pixels[..., 1] == pixels[..., 2]).all()


def test_view_count_for_small_sets():
    assert [choose_view_count(n) for n in (1, 14, 4999, 5000, 50_000)] == [10_000, 715, 3, 1, 1]
    assert choose_view_count(0) == 10_000
    assert choose_view_count(7, target=70) == 10


# Workers.


@pytest.mark.parametrize("views", [1, 7])
def test_workers_do_not_change_the_bytes(tmp_path, image_dir, views, monkeypatch):
    monkeypatch.setattr(decoding, "PIECE_VIEWS", 3)  # several pieces a picture
    (image_dir / "broken.png").write_text("broken")
    made = []
    for workers in (1, 2, 5):
        cached = cache_of(image_dir, tmp_path / str(workers), views=views, workers=workers, max_unreadable=0.5)
        made.append((Path(cached.pixels.filename).read_bytes(), cached.source_index.tolist(), cached.unreadable))  # type: ignore[attr-defined]
    assert made[0] == made[1] == made[2]


def test_decoding_keeps_few_pieces_waiting():
    begun, taken = 0, 0

    def work(_):
        nonlocal begun
        begun += 1
        return ""

    for _ in decoding.map_in_order(work, View((32, 32), None, 4).iter_pieces(50), 2):
        taken += 1
        assert begun - taken <= decoding.PREFETCH * 2 + 1
    assert taken == 50


def test_pieces_fit_in_memory():
    pieces = list(View((512, 512), None, 100).iter_pieces(1))
    assert max(len(views) for _, views in pieces) * 512 * 512 * 3 <= decoding.PIECE_BYTES
    assert [v for _, views in pieces for v in views] == list(range(100))


# Unreadable images.


def broken(image_dir: Path, *names: str) -> None:
    for name in names:
        (image_dir / name).write_bytes(b"\x89PNG\r\n\x1a\n broken")


def test_unreadable_images_are_listed(tmp_path, image_dir):
    broken(image_dir, "1b.png", "5b.png")
    cached = cache_of(image_dir, tmp_path / "a", max_unreadable=0.2)
    assert len(cached) == 8
    assert cached.source_index.tolist() == [0, 1, 3, 4, 5, 6, 8, 9]
    assert [Path(name).name for name, _ in cached.unreadable] == ["1b.png", "5b.png"]
    (log,) = (tmp_path / "a").glob("*/quarantine.jsonl")
    assert [json.loads(line)["image"] for line in log.read_text().splitlines()] == [
        name for name, _ in cached.unreadable
    ]


def test_labels_skip_unreadable_images(tmp_path):
    for i, name in enumerate(["a/0.png", "a/1.png", "b/2.png", "c/3.png"]):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), i).save(tmp_path / "set" / name)
    broken(tmp_path / "set", "a/0.png")
    images = open_images(str(tmp_path / "set"), labeled=True)
    cached = build_cache(images, image_size=(4, 4), folder=tmp_path / "c", max_unreadable=0.5)
    assert cached.labels is not None
    assert list(zip(cached.pixels[:, 0, 0, 0].tolist(), cached.labels.tolist(), strict=True)) == [
        (1, 0),
        (2, 1),
        (3, 2),
    ]


def test_too_many_unreadable_images_fail(tmp_path, image_dir):
    broken(image_dir, "1b.png", "5b.png")
    for _ in range(2):  # decoded now, then from the cache
        with pytest.raises(CompressError, match=r"1b\.png.*quarantine\.jsonl"):
            cache_of(image_dir, tmp_path / "a")
    assert len(cache_of(image_dir, tmp_path / "a", max_unreadable=0.21)) == 8


def test_one_unreadable_image_is_allowed_in_a_small_folder(tmp_path, image_dir):
    broken(image_dir, "1b.png")
    assert len(cache_of(image_dir, tmp_path / "a")) == 8
    with pytest.raises(CompressError, match=r"1b\.png"):
        cache_of(image_dir, tmp_path / "a", max_unreadable=0.0)


def test_no_readable_images_fail(tmp_path):
    (tmp_path / "set").mkdir()
    broken(tmp_path / "set", "1.png", "2.png")
    with pytest.raises(CompressError, match=r"1\.png"):
        cache_of(tmp_path / "set", tmp_path / "a", max_unreadable=1.0)


# Cache directories.


def test_cache_is_built_once(tmp_path, image_dir):
    messages: list[str] = []
    first = cache_of(image_dir, tmp_path / "a", views=10, progress=messages.append)
    again = cache_of(image_dir, tmp_path / "a", views=10, progress=messages.append)
    assert len(messages) == 1
    assert "80 images of 32x32, 0 MB, into" in messages[0]
    assert np.array_equal(first.pixels, again.pixels)
    assert first.fingerprint == again.fingerprint


def test_cache_key_covers_settings_and_data(tmp_path, image_dir):
    options = [{}, {"views": 2}, {"views": 2, "seed": 1}, {"resize": 40}, {"grayscale": True}, {"limit": 3}]
    result = {cache_of(image_dir, tmp_path / "a", **option).fingerprint for option in options}
    noise(9, 9).save(image_dir / "9.png")
    result.add(cache_of(image_dir, tmp_path / "a").fingerprint)
    assert len(result) == 7
    assert cache_of(image_dir, tmp_path / "a", seed=5).fingerprint in result  # the seed is of crops only


def test_subset_keeps_order_and_labels(tmp_path):
    images = open_images("embedded/fashion", split="val").subsample(50)
    cached = build_cache(images, image_size=(28, 28), folder=tmp_path)
    part = cached.subset(np.array([7, 3, 40]))
    again = part.subset(np.array([2, 0]))
    assert (len(part), len(again)) == (3, 2)
    assert np.array_equal(again.gather(np.array([0, 1])), cached.pixels[[40, 7]])
    assert cached.labels is not None
    result = again.gather_targets(np.array([0, 1]))
    assert result is not None
    assert result.tolist() == cached.labels[[40, 7]].tolist()
    assert len({cached.fingerprint, part.fingerprint, again.fingerprint}) == 3


@pytest.mark.parametrize("damage", ["pixels.npy", "origin.npy", "index.json"])
@pytest.mark.parametrize("how", ["cut", "gone", "empty"])
def test_damaged_cache_is_rebuilt(tmp_path, image_dir, damage, how):
    first = np.array(cache_of(image_dir, tmp_path / "a").pixels)
    (file,) = (tmp_path / "a").glob(f"*/{damage}")
    content = file.read_bytes()
    file.unlink()
    if how != "gone":
        file.write_bytes(content[: len(content) // 2 if how == "cut" else 0])
    assert np.array_equal(cache_of(image_dir, tmp_path / "a").pixels, first)


@pytest.mark.parametrize("damage", ["pixels.npy", "origin.npy", "index.json"])
def test_flipped_bit_is_found_and_the_images_are_decoded_again(tmp_path, image_dir, damage):
    first = np.array(cache_of(image_dir, tmp_path / "a").pixels)
    (file,) = (tmp_path / "a").glob(f"*/{damage}")
    before, times = file.read_bytes(), file.stat()
    content = bytearray(before)
    content[-20] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    messages: list[str] = []
    again = cache_of(image_dir, tmp_path / "a", progress=messages.append)
    assert np.array_equal(again.pixels, first)
    assert file.read_bytes() == before
    assert len(messages) == 2  # damaged, and decoding


def test_mask_cache_is_verified(tmp_path):
    images = open_images("embedded/fashion-scenes", split="val").subsample(3)
    build_cache(images, image_size=(16, 16), folder=tmp_path)
    (file,) = tmp_path.glob("*/masks.npy")
    before = file.read_bytes()
    file.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    build_cache(images, image_size=(16, 16), folder=tmp_path)
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [b"[]", b"{}", b"[" * 100_000, b'{"unreadable": 1, "sha256": [], "seal": 3}', b"\xff\x00", b'{"seal": NaN}'],
)
def test_strange_index_is_replaced(tmp_path, image_dir, content):
    cache_of(image_dir, tmp_path / "a")
    (file,) = (tmp_path / "a").glob("*/index.json")
    file.write_bytes(content)
    assert len(cache_of(image_dir, tmp_path / "a")) == 8


def test_pipe_in_a_cache_is_replaced(tmp_path, image_dir):
    cache_of(image_dir, tmp_path / "a")
    for name in ("index.json", "pixels.npy"):
        (file,) = (tmp_path / "a").glob(f"*/{name}")
        file.unlink()
        os.mkfifo(file)
        assert len(cache_of(image_dir, tmp_path / "a")) == 8


def test_unchanged_cache_is_hashed_once(tmp_path, image_dir, monkeypatch):
    cache_of(image_dir, tmp_path / "a")
    hashed: list[Path] = []
    monkeypatch.setattr(cache, "sha256", hashed.append)
    cache_of(image_dir, tmp_path / "a")
    assert hashed == []


def test_failed_decoding_leaves_nothing(tmp_path, image_dir, monkeypatch):
    def fail(*_):
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(decoding, "center_box", fail)
        with pytest.raises(RuntimeError, match="a bug"):
            cache_of(image_dir, tmp_path / "a")
    assert [path.name for path in (tmp_path / "a").iterdir() if path.is_dir()] == []
    assert len(cache_of(image_dir, tmp_path / "a")) == 8


def test_full_disk_stops_before_decoding(tmp_path, image_dir, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 1000))
    monkeypatch.setattr(ImageSet, "read_image", lambda *_: pytest.fail("decoded"))
    with pytest.raises(CompressError, match=r"0\.1 MB"):
        cache_of(image_dir, tmp_path / "a")


@pytest.mark.parametrize("done", range(4))
def test_disk_filling_up_leaves_nothing(tmp_path, image_dir, monkeypatch, done):
    calls = iter(range(100))
    real = os.fsync

    def fsync(handle):
        if next(calls) >= done:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(CompressError, match=f"{tmp_path / 'a'}:.*COMPRESS_CACHE"):
            cache_of(image_dir, tmp_path / "a")
    assert [path for path in (tmp_path / "a").iterdir() if path.is_dir()] == []


def test_cache_dir_that_cannot_exist(tmp_path, image_dir):
    (tmp_path / "file").write_text("")
    with pytest.raises(CompressError, match="COMPRESS_CACHE"):
        cache_of(image_dir, tmp_path / "file" / "a")


def test_parallel_builds_decode_once(tmp_path, image_dir):
    lines: list[str] = []
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: cache_of(image_dir, tmp_path / "a", views=200, progress=lines.append), range(4)))
    assert sum(line.startswith("decoding") for line in lines) == 1
    assert all(np.array_equal(cached.pixels, made[0].pixels) for cached in made)


def test_parallel_builds_without_locks(tmp_path, image_dir, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: cache_of(image_dir, tmp_path / "a", views=50), range(4)))
    assert all(np.array_equal(cached.pixels, made[0].pixels) for cached in made)
    assert len([path for path in (tmp_path / "a").iterdir() if path.is_dir()]) == 1


def test_killed_build_is_cleaned_up(tmp_path, image_dir):
    code = (
        "import sys; from pathlib import Path; from compress.data import open_images\n"
        "from compress.data.cache import build_cache\n"
        "build_cache(open_images(sys.argv[1]), image_size=(32, 32), views=500_000, folder=Path(sys.argv[2]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(image_dir), str(tmp_path / "a")])
    while not list((tmp_path / "a").glob(".*.work*/pixels.npy")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (left,) = (tmp_path / "a").glob(".*.work*")
    place = tmp_path / "a" / left.name[1:].partition(".work")[0]
    with cache.scratch_dir(place, clean=True):
        assert not left.exists()
    assert len(cache_of(image_dir, tmp_path / "a")) == 8


def test_rows_are_channels_last_and_readonly(tmp_path, image_dir):
    cached = cache_of(image_dir, tmp_path / "a")
    assert cached.pixels.dtype == np.uint8
    assert not cached.pixels.flags.writeable
    batch = torch.from_numpy(cached.gather(np.array([1, 0]))).permute(0, 3, 1, 2)
    assert batch.is_contiguous(memory_format=torch.channels_last)
