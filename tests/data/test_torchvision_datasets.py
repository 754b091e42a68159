"""torchvision's segmentation datasets, on small directories of their layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from compress.data import DATASETS, ImageSet, UnreadableImageError, open_images
from compress.errors import CompressError

#: every pixel another number from 0 up, in a picture of 5x7
NUMBERS = np.arange(35, dtype=np.uint8).reshape(5, 7)


def photo(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (7, 5), (shade, shade, shade)).save(path)


def voc(root: Path) -> None:
    top = root / "VOCdevkit" / "VOC2012"
    lists = top / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (top / "SegmentationClass").mkdir()
    lists.joinpath("train.txt").write_text("b\na\n")
    lists.joinpath("val.txt").write_text("c\n")
    for k, name in enumerate("abc"):
        photo(top / "JPEGImages" / f"{name}.jpg", 100 * k)
        mask = Image.fromarray(np.where(NUMBERS > 20, 255, NUMBERS).astype(np.uint8))
        mask.putpalette([(5 * i) % 256 for i in range(768)])
        mask.save(top / "SegmentationClass" / f"{name}.png")


def sbd(root: Path) -> None:
    (root / "sbd" / "cls").mkdir(parents=True)
    for split, names in (("train", "ba"), ("val", "c")):
        (root / "sbd" / f"{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            photo(root / "sbd" / "img" / f"{name}.jpg", 100 * "abc".index(name))
            mask = {"GTcls": {"Boundaries": np.zeros(3), "Segmentation": np.minimum(NUMBERS, 20)}}
            savemat(root / "sbd" / "cls" / f"{name}.mat", mask)


def cityscapes(root: Path) -> None:
    top = root / "cityscapes"
    for split, names in (("train", ["ulm/b", "aachen/a"]), ("val", ["bonn/c"])):
        for name in names:
            photo(top / "leftImg8bit" / split / f"{name}_leftImg8bit.png", 100 * "abc".index(name[-1]))
            path = top / "gtFine" / split / f"{name}_gtFine_labelIds.png"
            path.parent.mkdir(parents=True)
            Image.fromarray(NUMBERS).save(path)


SETS = {"voc": voc, "sbd": sbd, "cityscapes": cityscapes}


def open_set(name: str, root: Path, split: str = "train", *, labeled: bool = True) -> ImageSet:
    return open_images(name, root=root, split=split, labeled=labeled)


def shade(images: ImageSet, i: int) -> int:
    return int(np.asarray(images.read_image(i))[0, 0, 0])


@pytest.mark.parametrize("name", SETS)
def test_segmentation_pairs_in_name_order(tmp_path, name):
    SETS[name](tmp_path)
    train, val = open_set(name, tmp_path), open_set(name, tmp_path, "val")
    assert [shade(train, i) for i in range(len(train))] == pytest.approx([0, 100], abs=3)
    assert [shade(val, i) for i in range(len(val))] == pytest.approx([200], abs=3)
    assert train.read_mask(1).shape == (5, 7)
    assert train.fingerprint() != val.fingerprint()
    assert "segmentation" in DATASETS[name]


def test_voc_masks_keep_indices(tmp_path):
    voc(tmp_path)
    images = open_set("voc", tmp_path)
    assert np.array_equal(images.read_mask(0), np.where(NUMBERS > 20, 255, NUMBERS))
    assert images.class_names is not None
    assert (len(images.class_names), images.class_names[0], images.class_names[15]) == (21, "background", "person")


def test_voc_names_match_torchvision(tmp_path):
    from torchvision.models.segmentation import DeepLabV3_ResNet50_Weights

    voc(tmp_path)
    reference = DeepLabV3_ResNet50_Weights.DEFAULT.meta["categories"]
    assert open_set("voc", tmp_path).class_names == ["background", *reference[1:]]


def test_sbd_masks_match_torchvision(tmp_path):
    from torchvision.datasets import SBDataset

    sbd(tmp_path)
    images = open_set("sbd", tmp_path)
    reference = np.asarray(SBDataset(str(tmp_path / "sbd"), "train", "segmentation")[0][1])
    assert np.array_equal(images.read_mask(1), reference)
    assert np.array_equal(images.read_mask(1), np.minimum(NUMBERS, 20))
    whole = (tmp_path / "sbd" / "cls" / "a.mat").read_bytes()
    for left in (0, 60, 200):
        (tmp_path / "sbd" / "cls" / "a.mat").write_bytes(whole[:left])
        with pytest.raises(UnreadableImageError):
            images.read_mask(0)


def test_cityscapes_masks_have_19_classes(tmp_path):
    cityscapes(tmp_path)
    images = open_set("cityscapes", tmp_path)
    trained = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    expected = np.full(35, 255)
    expected[trained] = np.arange(19)
    assert images.read_mask(0).ravel().tolist() == expected.tolist()
    assert images.class_names is not None
    assert (len(images.class_names), images.class_names[0], images.class_names[18]) == (19, "road", "bicycle")


@pytest.mark.parametrize("name", SETS)
def test_unlabeled_segmentation_needs_no_masks(tmp_path, name):
    SETS[name](tmp_path)
    for path in [*tmp_path.rglob("*.mat"), *tmp_path.rglob("*labelIds.png"), *tmp_path.rglob("SegmentationClass/*")]:
        path.unlink()
    images = open_set(name, tmp_path, labeled=False)
    assert (len(images), images.open_mask) == (2, None)
    with pytest.raises(CompressError, match=rf"{name}: .*2 of 4"):
        open_set(name, tmp_path)


@pytest.mark.parametrize("name", SETS)
def test_missing_segmentation_dataset(tmp_path, monkeypatch, name):
    def refuse(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(CompressError, match=rf"{name}: .*{tmp_path}.*--data-root"):
        open_set(name, tmp_path)


def test_cityscapes_without_images(tmp_path):
    for kind in ("leftImg8bit", "gtFine"):
        (tmp_path / "cityscapes" / kind / "train").mkdir(parents=True)
    with pytest.raises(CompressError, match="cityscapes"):
        open_set("cityscapes", tmp_path)
