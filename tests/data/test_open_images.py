"""Where images come from: folders, names, the hub, shards, and what is embedded."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from compress.data import DATASETS, UnreadableImageError, open_images
from compress.data.dataset import ImageSet
from compress.data.folders import natural_sort_key
from compress.errors import CompressError, UsageError


def picture(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (value, value, value)).save(path)
    return path


def value(images: ImageSet, i: int) -> int:
    found = images.read_image(i).getpixel((0, 0))
    assert isinstance(found, tuple)
    return found[0]


def names(images: ImageSet) -> list[str]:
    return [Path(images.name_of(i)).name for i in range(len(images))]


# Folders.


def test_a_folder_is_read_at_any_depth_in_natural_order(tmp_path):
    for i, name in enumerate(["img10.png", "img2.png", "b/img1.jpg", "B/deep/er/x.bmp", "a.PNG"]):
        picture(tmp_path / name, i)
    (tmp_path / "notes.txt").write_text("not an image")
    picture(tmp_path / ".hidden.png")
    picture(tmp_path / ".thumbnails" / "x.png")
    images = open_images(str(tmp_path))
    assert names(images) == ["a.PNG", "x.bmp", "img1.jpg", "img2.png", "img10.png"]
    assert [value(images, i) for i in (0, 3, 4)] == [4, 1, 0]
    assert images.labels is None


def test_names_that_differ_in_zeros_or_case_only_have_an_order_of_their_own():
    same = ["a01.png", "a1.png", "A1.png", "a001.png", "a²3.png", "٣.png"]
    orders = [sorted(same[i:] + same[:i], key=lambda name: natural_sort_key(Path(name))) for i in range(len(same))]
    assert all(order == orders[0] for order in orders)


def test_a_pool_of_pictures_written_by_a_run_is_a_folder_like_any(tmp_path):
    for i in range(12):
        picture(tmp_path / "pool" / f"rank0-{i}.png", i)
    assert [value(open_images(f"{tmp_path}/pool"), i) for i in range(12)] == list(range(12))


def test_the_top_folders_are_the_classes_in_the_order_of_image_folder(tmp_path):
    for name in ("cat/1.png", "cat/deep/2.png", "10/3.png", "9/4.png"):
        picture(tmp_path / name)
    images = open_images(str(tmp_path), labeled=True)
    assert images.class_names == ImageFolder(str(tmp_path)).classes == ["10", "9", "cat"]
    assert images.labels is not None
    assert {item.split("/")[-2]: label for item, label in zip(images.names, images.labels.tolist(), strict=True)} == {
        "10": 0, "9": 1, "cat": 2, "deep": 2,
    }  # fmt: skip
    assert images.labels.dtype == np.int64


def test_pictures_without_a_class_folder_mean_no_labels(tmp_path):
    picture(tmp_path / "cat" / "1.png")
    picture(tmp_path / "2.png")
    assert open_images(str(tmp_path), labeled=True).labels is None


def test_a_folder_with_parts_is_taken_by_its_split(tmp_path):
    picture(tmp_path / "train" / "a" / "1.png", 1)
    picture(tmp_path / "test" / "a" / "2.png", 2)
    assert value(open_images(str(tmp_path)), 0) == 1
    assert value(open_images(str(tmp_path), split="val"), 0) == 2


def test_a_circle_of_links_ends_and_links_are_followed(tmp_path):
    picture(tmp_path / "data" / "1.png")
    picture(tmp_path / "elsewhere" / "2.png")
    (tmp_path / "data" / "again").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "more").symlink_to(tmp_path / "elsewhere")
    assert names(open_images(f"{tmp_path}/data")) == ["1.png", "2.png"]


def test_a_link_to_nowhere_is_a_bad_image_not_a_missing_one(tmp_path):
    picture(tmp_path / "1.png")
    (tmp_path / "2.png").symlink_to(tmp_path / "gone.png")
    images = open_images(str(tmp_path))
    assert len(images) == 2
    with pytest.raises(UnreadableImageError):
        images.read_image(1)


def test_names_with_spaces_and_broken_letters_are_read(tmp_path):
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9 \xff 1.png")
    Path(odd).write_bytes(picture(tmp_path / "ä ß 2.png", 7).read_bytes())
    images = open_images(str(tmp_path))
    assert [value(images, i) for i in range(2)] == [7, 7]
    assert len(images.fingerprint()) == 64


def test_a_folder_that_changed_has_another_fingerprint(tmp_path):
    path = picture(tmp_path / "1.png", 1)
    first = open_images(str(tmp_path)).fingerprint()
    assert open_images(str(tmp_path)).fingerprint() == first
    os.utime(path, (1, 1))
    touched = open_images(str(tmp_path)).fingerprint()
    picture(tmp_path / "2.png")
    assert len({first, touched, open_images(str(tmp_path)).fingerprint()}) == 3


@pytest.mark.parametrize("content", [None, "notes.txt", "paper.pdf", "film.mpg"])
def test_a_folder_without_images_says_so(tmp_path, content):
    if content:
        (tmp_path / content).write_bytes(b"x")
    with pytest.raises(UsageError, match="no images in this folder or below"):
        open_images(str(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_may_not_be_listed_is_not_passed_over(tmp_path):
    picture(tmp_path / "1.png")
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(CompressError, match="closed: this folder cannot be listed"):
        open_images(str(tmp_path))


def test_an_error_of_listing_is_told(monkeypatch, tmp_path):
    def walk(top, followlinks, onerror):
        onerror(PermissionError(13, "Permission denied", f"{top}/closed"))
        return iter(())

    monkeypatch.setattr(os, "walk", walk)
    with pytest.raises(CompressError, match=r"closed: this folder cannot be listed \(Permission denied\)"):
        open_images(str(tmp_path))


# Names.


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("cifra10", "did you mean 'cifar10'"),
        ("embedded/foto", r"embedded/foto: no such embedded data.*Known: fashion, fashion-scenes, photos\."),
        ("qqqqqqqq", r"no such folder or data set\. See `compress datasets`\."),
        ("embedded/qqqqqqq", r"no such embedded data\. Known"),
    ],
)
def test_an_unknown_name_is_told_its_nearest(spec, said):
    with pytest.raises(UsageError, match=said):
        open_images(spec)


def test_a_file_is_not_a_folder(tmp_path):
    with pytest.raises(UsageError, match="a file; expected a folder"):
        open_images(str(picture(tmp_path / "1.png")))


def test_missing_data_is_told_where_it_was_looked_for_and_how_to_get_it(tmp_path):
    with pytest.raises(CompressError, match=rf"imagenet: not found in {tmp_path}/imagenet.*--data-root"):
        open_images("imagenet", root=tmp_path)


def test_the_environment_names_the_data_root(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESS_DATA", str(tmp_path / "here"))
    with pytest.raises(CompressError, match=f"{tmp_path}/here/imagenet"):
        open_images("imagenet")


def test_a_download_that_fails_is_one_sentence(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(CompressError, match=rf"mnist: not found in {tmp_path}.*could not download it.*--data-root"):
        open_images("mnist", root=tmp_path)


def idx(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape) + values.tobytes()


def test_a_named_set_that_is_there_is_read_with_its_labels(tmp_path):
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


def test_imagenet_unpacked_by_hand_is_read_by_its_folders(tmp_path):
    for name in ("train/n01/a.png", "train/n02/b.png", "val/n01/c.png"):
        picture(tmp_path / "imagenet" / name)
    images = open_images("imagenet", root=tmp_path)
    assert names(images) == ["a.png", "b.png"]
    assert images.class_names == ["n01", "n02"]
    assert names(open_images("imagenet", root=tmp_path, split="val")) == ["c.png"]


class Torchvisions:
    """A data set as torchvision has them."""

    def __init__(self, root: str, split: str = "", **_: object) -> None:
        self.split, self.categories = split, ["aeroplane", "bird"]
        self.labels = [-1, -1] if split == "unlabeled" else [1, 0]
        self._image_files = [Path(root) / "0.png", Path(root) / "1.png"]
        self._labels = [1, 0]

    def __len__(self) -> int:
        return 2

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        return Image.new("L", (2, 2), len(self.split)), 0


def test_training_with_labels_takes_the_labeled_part_of_stl10(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.STL10", Torchvisions)
    strange, known = (open_images("stl10", root=tmp_path, labeled=labeled) for labeled in (False, True))
    assert (value(strange, 0), value(known, 0)) == (len("unlabeled"), len("train"))
    assert strange.labels is None
    assert known.labels is not None
    assert known.labels.tolist() == [1, 0]


def test_a_named_set_of_files_names_them_and_is_read_by_our_reader(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.Food101", Torchvisions)
    picture(tmp_path / "0.png", 9)
    (tmp_path / "1.png").write_text("broken")
    images = open_images("food101", root=tmp_path)
    assert names(images) == ["0.png", "1.png"]
    assert value(images, 0) == 9
    with pytest.raises(UnreadableImageError):
        images.read_image(1)


def test_a_set_without_a_part_for_measuring_says_so(tmp_path):
    with pytest.raises(UsageError, match="caltech101: has no images set apart"):
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


def test_shards_group_by_key_and_bring_their_labels(tmp_path):
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


def test_shards_agree_with_webdataset(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    members = [
        (f"{i:03}.{ext}", png(i) if ext == "png" else str(i % 4).encode()) for i in range(9) for ext in ("cls", "png")
    ]
    path = shard(tmp_path / "s.tar", members)
    with open(path, "rb") as file:
        samples = list(
            webdataset.tariterators.group_by_keys(
                webdataset.tariterators.tar_file_expander([{"stream": file, "url": ""}])
            )
        )
    theirs = [(sample["png"], int(sample["cls"])) for sample in samples]
    images = open_images(str(path))
    assert images.labels is not None
    mine = [(np.asarray(images.read_image(i))[0, 0, 0], int(images.labels[i])) for i in range(len(images))]
    assert mine == [(np.asarray(Image.open(io.BytesIO(content)))[0, 0], label) for content, label in theirs]


def test_a_sample_without_a_whole_number_means_no_labels(tmp_path):
    path = shard(tmp_path / "s.tar", [("1.png", png(1)), ("1.txt", b"a cat"), ("2.png", png(2)), ("2.cls", b"1")])
    assert open_images(str(path)).labels is None


def test_a_missing_shard_is_named(tmp_path):
    shard(tmp_path / "s-0.tar", [("1.png", png(1))])
    with pytest.raises(UsageError, match=r"s-1\.tar: no such file \(2 of 3 shards are missing\)"):
        open_images(f"{tmp_path}/s-{{0..2}}.tar")


def test_shards_without_images_say_so(tmp_path):
    with pytest.raises(UsageError, match="no images in these shards"):
        open_images(str(shard(tmp_path / "s.tar", [("1.txt", b"hello")])))


def test_a_compressed_or_a_broken_shard_is_refused_by_name(tmp_path):
    members = [(f"{i}.png", png(i)) for i in range(5)]
    packed = shard(tmp_path / "packed.tar", members, "w:gz")
    (tmp_path / "text.tar").write_text("hello" * 500)
    whole = shard(tmp_path / "whole.tar", members).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:2100])
    for path in (packed, tmp_path / "text.tar", tmp_path / "cut.tar"):
        with pytest.raises(CompressError, match=rf"{path.name}: not a whole"):
            open_images(str(path))


def test_a_damaged_image_in_a_shard_is_one_bad_image(tmp_path):
    images = open_images(str(shard(tmp_path / "s.tar", [("1.png", png(1)), ("2.png", png(2)[:40])])))
    assert value(images, 0) == 1
    with pytest.raises(UnreadableImageError):
        images.read_image(1)


# The hub.


@pytest.fixture
def local_set(tmp_path, monkeypatch) -> Path:
    """A small set as `datasets` reads it from a folder, without a network."""
    pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    for part, count in (("train", 6), ("test", 4)):
        for i in range(count):
            picture(tmp_path / "set" / part / f"class{i % 2}" / f"{i}.png", i)
    return tmp_path / "set"


@pytest.mark.filterwarnings("ignore")  # of third parties
def test_a_set_of_the_hub_is_read_by_our_reader_with_its_labels(local_set):
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
def test_a_set_of_the_hub_without_images_or_without_a_network_is_one_sentence(tmp_path, local_set):
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "train.jsonl").write_text(json.dumps({"text": "hello"}) + "\n")
    with pytest.raises(UsageError, match="no column of images; found text"):
        open_images(f"hf/{tmp_path}/words")
    with pytest.raises(CompressError, match=r"hf/nobody/nothing: cannot be had"):
        open_images("hf/nobody/nothing")


# What is embedded.


def test_embedded_fashion_is_balanced_and_needs_no_pickle():
    train, val = (open_images("embedded/fashion", split=split) for split in ("train", "val"))
    for images, each in ((train, 1000), (val, 200)):
        assert images.labels is not None
        assert np.bincount(images.labels).tolist() == [each] * 10
        assert images.class_names is not None
        assert len(images.class_names) == 10
    assert train.read_image(0).size == (28, 28)


ORIGINAL = Path("/usr/share/datasets/fashion-mnist")


@pytest.mark.skipif(not ORIGINAL.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_embedded_fashion_is_what_its_script_makes(tmp_path):
    from compress.data.embedded import FASHION
    from compress.embedded.make_fashion import write_fashion

    write_fashion(ORIGINAL, tmp_path / "made.npz")
    with np.load(FASHION, allow_pickle=False) as shipped, np.load(tmp_path / "made.npz", allow_pickle=False) as made:
        assert sorted(shipped.files) == sorted(made.files)
        assert sorted(shipped.files) == ["train_images", "train_labels", "val_images", "val_labels"]
        assert all(np.array_equal(shipped[name], made[name]) for name in made.files)


def test_embedded_photos_are_all_there_and_named_in_the_notice():
    from compress.data.embedded import PHOTOS

    images = open_images("embedded/photos")
    assert [images.name_of(i) for i in range(len(images))] == list(PHOTOS)
    assert all(min(images.read_image(i).size) >= 300 for i in range(len(images)))
    notice = (Path(__file__).parents[2] / "NOTICE").read_text(encoding="utf-8")
    assert all(name in notice for name in PHOTOS)


def test_the_photographs_are_found_without_importing_scikit_image():
    code = (
        "import sys; from compress.data import open_images as o; o('embedded/photos'); print('skimage' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_every_name_has_one_line_about_it():
    assert {"embedded/fashion", "embedded/photos", "imagenet", "places365", "cifar10", "svhn", "stl10"} <= set(DATASETS)
    assert all(about and "\n" not in about for about in DATASETS.values())
