"""Images from folders, names, the hub, shards, and the embedded datasets."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from compress.data import DATASETS, UnreadableImageError, open_images
from compress.data.dataset import ImageSet
from compress.data.folders import natural_sort_key
from compress.data.shards import expand_braces
from compress.errors import CompressError, UsageError


def save_image(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (value, value, value)).save(path)
    return path


def value(images: ImageSet, i: int) -> int:
    result = images.read_image(i).getpixel((0, 0))
    assert isinstance(result, tuple)
    return result[0]


def names(images: ImageSet) -> list[str]:
    return [Path(images.name_of(i)).name for i in range(len(images))]


# Folders.


def test_folder_in_natural_order(tmp_path):
    for i, name in enumerate(["img10.png", "img2.png", "b/img1.jpg", "B/deep/er/x.bmp", "a.PNG"]):
        save_image(tmp_path / name, i)
    (tmp_path / "notes.txt").write_text("not an image")
    save_image(tmp_path / ".hidden.png")
    save_image(tmp_path / ".thumbnails" / "x.png")
    images = open_images(str(tmp_path))
    assert names(images) == ["a.PNG", "x.bmp", "img1.jpg", "img2.png", "img10.png"]
    assert [value(images, i) for i in (0, 3, 4)] == [4, 1, 0]
    assert images.labels is None


def test_natural_order_is_total():
    same = ["a01.png", "a1.png", "A1.png", "a001.png", "a²3.png", "٣.png"]
    orders = [sorted(same[i:] + same[:i], key=lambda name: natural_sort_key(Path(name))) for i in range(len(same))]
    assert all(order == orders[0] for order in orders)


def test_pool_folder_keeps_its_order(tmp_path):
    for i in range(12):
        save_image(tmp_path / "pool" / f"rank0-{i}.png", i)
    assert [value(open_images(f"{tmp_path}/pool"), i) for i in range(12)] == list(range(12))


def test_class_folders_match_image_folder(tmp_path):
    for name in ("cat/1.png", "cat/deep/2.png", "10/3.png", "9/4.png"):
        save_image(tmp_path / name)
    images = open_images(str(tmp_path), labeled=True)
    assert images.class_names == ImageFolder(str(tmp_path)).classes == ["10", "9", "cat"]
    assert images.labels is not None
    assert {item.split("/")[-2]: label for item, label in zip(images.names, images.labels.tolist(), strict=True)} == {
        "10": 0, "9": 1, "cat": 2, "deep": 2,
    }  # fmt: skip
    assert images.labels.dtype == np.int64


def test_folder_without_classes_is_unlabeled(tmp_path):
    save_image(tmp_path / "cat" / "1.png")
    save_image(tmp_path / "2.png")
    assert open_images(str(tmp_path), labeled=True).labels is None


def test_folder_split_directories(tmp_path):
    save_image(tmp_path / "train" / "a" / "1.png", 1)
    save_image(tmp_path / "test" / "a" / "2.png", 2)
    assert value(open_images(str(tmp_path)), 0) == 1
    assert value(open_images(str(tmp_path), split="val"), 0) == 2


def test_folder_links_are_followed_once(tmp_path):
    save_image(tmp_path / "data" / "1.png")
    save_image(tmp_path / "elsewhere" / "2.png")
    (tmp_path / "data" / "again").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "more").symlink_to(tmp_path / "elsewhere")
    assert names(open_images(f"{tmp_path}/data")) == ["1.png", "2.png"]


def test_broken_link_is_unreadable(tmp_path):
    save_image(tmp_path / "1.png")
    (tmp_path / "2.png").symlink_to(tmp_path / "gone.png")
    images = open_images(str(tmp_path))
    assert len(images) == 2
    with pytest.raises(UnreadableImageError):
        images.read_image(1)


def test_folder_with_odd_names(tmp_path):
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9 \xff 1.png")
    Path(odd).write_bytes(save_image(tmp_path / "ä ß 2.png", 7).read_bytes())
    images = open_images(str(tmp_path))
    assert [value(images, i) for i in range(2)] == [7, 7]
    assert len(images.fingerprint()) == 64


def test_folder_change_changes_fingerprint(tmp_path):
    path = save_image(tmp_path / "1.png", 1)
    first = open_images(str(tmp_path)).fingerprint()
    assert open_images(str(tmp_path)).fingerprint() == first
    os.utime(path, (1, 1))
    touched = open_images(str(tmp_path)).fingerprint()
    save_image(tmp_path / "2.png")
    assert len({first, touched, open_images(str(tmp_path)).fingerprint()}) == 3


@pytest.mark.parametrize("content", [None, "notes.txt", "paper.pdf", "film.mpg"])
def test_empty_folder_is_refused(tmp_path, content):
    if content:
        (tmp_path / content).write_bytes(b"x")
    with pytest.raises(UsageError, match=str(tmp_path)):
        open_images(str(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_unlistable_folder_fails(tmp_path):
    save_image(tmp_path / "1.png")
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(CompressError, match="closed"):
        open_images(str(tmp_path))


def test_listing_error_is_reported(monkeypatch, tmp_path):
    def walk(top, followlinks, onerror):
        onerror(PermissionError(13, "Permission denied", f"{top}/closed"))
        return iter(())

    monkeypatch.setattr(os, "walk", walk)
    with pytest.raises(CompressError, match=r"closed: .*Permission denied"):
        open_images(str(tmp_path))


# Names.


@pytest.mark.parametrize(
    ("spec", "datum"),
    [
        ("cifra10", "cifar10"),
        ("embedded/foto", "fashion, fashion-scenes, photos"),
        ("qqqqqqqq", "compress datasets"),
        ("embedded/qqqqqqq", "fashion"),
    ],
)
def test_unknown_name_suggests_nearest(spec, datum):
    with pytest.raises(UsageError, match=datum):
        open_images(spec)


def test_single_file_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"1\.png"):
        open_images(str(save_image(tmp_path / "1.png")))


def test_missing_dataset_names_its_path(tmp_path):
    with pytest.raises(CompressError, match=rf"{tmp_path}/imagenet.*--data-root"):
        open_images("imagenet", root=tmp_path)


def test_data_root_from_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESS_DATA", str(tmp_path / "here"))
    with pytest.raises(CompressError, match=f"{tmp_path}/here/imagenet"):
        open_images("imagenet")


def test_failed_download_is_reported(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(CompressError, match=rf"mnist: .*{tmp_path}.*--data-root"):
        open_images("mnist", root=tmp_path)


def idx(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape) + values.tobytes()


def test_named_dataset_with_labels(tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.arange(3, dtype=np.uint8).reshape(3, 1, 1).repeat(28, 1).repeat(28, 2)
    for part, labels in (("train", [5, 0, 9]), ("t10k", [1, 2, 3])):
        for kind, array in (("images-idx3", pixels), ("labels-idx1", np.array(labels, dtype=np.uint8))):
            (raw / f"{part}-{kind}-ubyte").write_bytes(idx(array))
            (raw / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(idx(array)))
    train, val = (open_images("fashion_mnist", root=tmp_path, split=split) for split in ("train", "val"))
    assert train.labels is not None
    assert val.labels is not None
    assert (train.labels.tolist(), val.labels.tolist()) == ([5, 0, 9], [1, 2, 3])
    assert train.class_names is not None
    assert train.class_names[9] == "Ankle boot"
    assert [value(train, i) for i in range(3)] == [0, 1, 2]
    assert train.fingerprint() != val.fingerprint()


def test_extracted_imagenet_folders(tmp_path):
    for name in ("train/n01/a.png", "train/n02/b.png", "val/n01/c.png"):
        save_image(tmp_path / "imagenet" / name)
    images = open_images("imagenet", root=tmp_path)
    assert names(images) == ["a.png", "b.png"]
    assert images.class_names == ["n01", "n02"]
    assert names(open_images("imagenet", root=tmp_path, split="val")) == ["c.png"]


class Torchvisions:
    """A dataset with the interface of torchvision."""

    def __init__(self, root: str, split: str = "", **_: object) -> None:
        self.split, self.categories = split, ["aeroplane", "bird"]
        self.labels = [-1, -1] if split == "unlabeled" else [1, 0]
        self._image_files = [Path(root) / "0.png", Path(root) / "1.png"]
        self._labels = [1, 0]

    def __len__(self) -> int:
        return 2

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        return Image.new("L", (2, 2), len(self.split)), 0


def test_stl10_labeled_part(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.STL10", Torchvisions)
    strange, known = (open_images("stl10", root=tmp_path, labeled=labeled) for labeled in (False, True))
    assert (value(strange, 0), value(known, 0)) == (len("unlabeled"), len("train"))
    assert strange.labels is None
    assert known.labels is not None
    assert known.labels.tolist() == [1, 0]


def test_named_dataset_decodes_files(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.Food101", Torchvisions)
    save_image(tmp_path / "0.png", 9)
    (tmp_path / "1.png").write_text("broken")
    images = open_images("food101", root=tmp_path)
    assert names(images) == ["0.png", "1.png"]
    assert value(images, 0) == 9
    with pytest.raises(UnreadableImageError):
        images.read_image(1)


def test_dataset_without_validation_part(tmp_path):
    with pytest.raises(UsageError, match="caltech101"):
        open_images("caltech101", root=tmp_path, split="val")


# Shards.


def shard(path: Path, members: list[tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as file:  # type: ignore[call-overload]
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (4, 4), value).save(file, "PNG")
    return file.getvalue()


def test_shards_group_samples_and_labels(tmp_path):
    shard(
        tmp_path / "s-000.tar", [("0001.png", png(1)), ("0001.cls", b"7"), ("0002.cls", b"3\n"), ("0002.png", png(2))]
    )
    shard(tmp_path / "s-001.tar", [("a/0001.png", png(3)), ("a/0001.json", b"{}"), ("a/0001.cls", b"0")])
    for spec in ("s-{000..001}.tar", "s-*.tar"):
        images = open_images(f"{tmp_path}/{spec}")
        assert [value(images, i) for i in range(len(images))] == [1, 2, 3]
        assert images.labels is not None
        assert images.labels.tolist() == [7, 3, 0]
    assert images.name_of(2) == f"{tmp_path}/s-001.tar:a/0001.png"


def test_shards_without_integer_labels(tmp_path):
    path = shard(tmp_path / "s.tar", [("1.png", png(1)), ("1.txt", b"a cat"), ("2.png", png(2)), ("2.cls", b"1")])
    assert open_images(str(path)).labels is None


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("a.tar", ["a.tar"]),
        ("{a,b}-{08..10}.tar", ["a-08.tar", "a-09.tar", "a-10.tar", "b-08.tar", "b-09.tar", "b-10.tar"]),
        ("{9..10}.tar", ["9.tar", "10.tar"]),
        ("{a,b{1..2}}.tar", ["a.tar", "b1.tar", "a.tar", "b2.tar"]),
        ("{1..-1}.tar", ["1.tar", "0.tar", "-1.tar"]),
        ("{1..010}.tar", [f"{i:03}.tar" for i in range(1, 11)]),
        ("{x..y}.tar", ["x..y.tar"]),
    ],
)
def test_shard_braces_expand(spec, expected):
    assert list(expand_braces(spec)) == expected


@pytest.mark.parametrize("spec", ["{0..2.tar", "0}.tar"])
def test_shard_braces_without_pair(spec):
    with pytest.raises(UsageError, match=r"\.tar"):
        list(expand_braces(spec))


@pytest.mark.parametrize("spec", ["{0..999999999}", "{0..9}" * 12, "{-5..999999999}", "{999999999..0}", "{a,b}" * 40])
def test_too_many_shards_are_refused_before_they_are_listed(spec):
    with pytest.raises(UsageError):
        open_images(f"{spec}.tar")


def test_missing_shard_is_named(tmp_path):
    shard(tmp_path / "s-0.tar", [("1.png", png(1))])
    with pytest.raises(UsageError, match=r"s-1\.tar: .*2 of 3"):
        open_images(f"{tmp_path}/s-{{0..2}}.tar")


def test_shards_without_images(tmp_path):
    with pytest.raises(UsageError, match=r"s\.tar"):
        open_images(str(shard(tmp_path / "s.tar", [("1.txt", b"hello")])))


def test_compressed_or_damaged_shard(tmp_path):
    members = [(f"{i}.png", png(i)) for i in range(5)]
    packed = shard(tmp_path / "packed.tar", members, "w:gz")
    (tmp_path / "text.tar").write_text("hello" * 500)
    whole = shard(tmp_path / "whole.tar", members).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:2100])
    for path in (packed, tmp_path / "text.tar", tmp_path / "cut.tar"):
        with pytest.raises(CompressError, match=path.name):
            open_images(str(path))


def test_damaged_image_in_shard(tmp_path):
    images = open_images(str(shard(tmp_path / "s.tar", [("1.png", png(1)), ("2.png", png(2)[:40])])))
    assert value(images, 0) == 1
    with pytest.raises(UnreadableImageError):
        images.read_image(1)


# The hub.


@pytest.fixture
def local_set(tmp_path, monkeypatch) -> Path:
    """A small dataset that `datasets` loads from a folder, offline."""
    pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    for part, count in (("train", 6), ("test", 4)):
        for i in range(count):
            save_image(tmp_path / "set" / part / f"class{i % 2}" / f"{i}.png", i)
    return tmp_path / "set"


@pytest.mark.filterwarnings("ignore")  # of third parties
def test_hub_dataset_with_labels(local_set):
    images = open_images(f"hf/{local_set}")
    assert images.labels is not None
    assert sorted(value(images, i) for i in range(len(images))) == list(range(6))
    assert [value(images, i) % 2 for i in range(6)] == images.labels.tolist()
    assert images.class_names == ["class0", "class1"]
    assert len(open_images(f"hf/{local_set}", split="val")) == 4  # it has no "validation"; "test" is next best
    assert len(open_images(f"hf/{local_set}@test")) == 4
    with pytest.raises(UsageError, match=r"hf/.*@nosuch.*@SPLIT"):
        open_images(f"hf/{local_set}@nosuch")


@pytest.mark.filterwarnings("ignore")
def test_hub_dataset_failures(tmp_path, local_set):
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "train.jsonl").write_text(json.dumps({"text": "hello"}) + "\n")
    with pytest.raises(UsageError, match="text"):
        open_images(f"hf/{tmp_path}/words")
    with pytest.raises(CompressError, match="hf/nobody/nothing"):
        open_images("hf/nobody/nothing")


# Embedded datasets.


def test_embedded_fashion_is_balanced():
    train, val = (open_images("embedded/fashion", split=split) for split in ("train", "val"))
    for images, each in ((train, 1000), (val, 200)):
        assert images.labels is not None
        assert np.bincount(images.labels).tolist() == [each] * 10
        assert images.class_names is not None
        assert len(images.class_names) == 10
    assert train.read_image(0).size == (28, 28)


ORIGINAL = Path("/usr/share/datasets/fashion-mnist")


@pytest.mark.skipif(not ORIGINAL.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_embedded_fashion_matches_its_script(tmp_path):
    from compress.data.embedded import FASHION
    from compress.embedded.make_fashion import write_fashion

    write_fashion(ORIGINAL, tmp_path / "made.npz")
    with np.load(FASHION, allow_pickle=False) as shipped, np.load(tmp_path / "made.npz", allow_pickle=False) as made:
        assert sorted(shipped.files) == sorted(made.files)
        assert sorted(shipped.files) == ["train_images", "train_labels", "val_images", "val_labels"]
        assert all(np.array_equal(shipped[name], made[name]) for name in made.files)


def test_embedded_photos_are_in_notice():
    from compress.data.embedded import PHOTOS

    images = open_images("embedded/photos")
    assert [images.name_of(i) for i in range(len(images))] == list(PHOTOS)
    assert all(min(images.read_image(i).size) >= 300 for i in range(len(images)))
    notice = (Path(__file__).parents[2] / "NOTICE").read_text(encoding="utf-8")
    assert all(name in notice for name in PHOTOS)


def test_datasets_have_descriptions():
    assert {"embedded/fashion", "embedded/photos", "imagenet", "places365", "cifar10", "svhn", "stl10"} <= set(DATASETS)
    assert all(about and "\n" not in about for about in DATASETS.values())
