"""NYUv2 files: small ones with the distributed structure."""

from __future__ import annotations

import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from nyu_files import FORTY, IN_13, MAPPED, RAW, create_frames, write_frames, write_mappings, write_nyu, write_splits
from scipy.io import savemat

from compress.data import DATASETS, ImageSet, open_images
from compress.data.nyu import CLASS_OF_40_IN_13, CLASSES
from compress.errors import CompressError, UsageError

FRAMES = "nyu_depth_v2_labeled.mat"


def open_set(root: Path, name: str = "nyuv2", split: str = "train", labeled: bool = True) -> ImageSet:
    return open_images(name, root=root, split=split, labeled=labeled)


def test_nyu_frames_and_13_classes(tmp_path):
    images, labels = write_nyu(tmp_path)
    table = np.array([255, *IN_13], dtype=np.uint8)
    for split, first in (("train", 0), ("val", 1)):
        result = open_set(tmp_path, split=split)
        assert result.class_names == CLASSES
        assert result.labels is None
        for i, frame in enumerate(range(first, 7, 2)):
            assert result.name_of(i) == f"nyuv2/{frame + 1:04}"
            assert np.array_equal(np.asarray(result.read_image(i)), images[frame])
            assert np.array_equal(result.read_mask(i), table[labels[frame]])


def test_nyu_40_classes_follow_mapping(tmp_path):
    _, labels = write_nyu(tmp_path / "nyuv2")
    result = open_set(tmp_path, "nyuv2-40")
    assert result.class_names == FORTY
    expected = np.array([255, *[number - 1 if number else 255 for number in MAPPED]], dtype=np.uint8)
    assert np.array_equal(result.read_mask(1), expected[labels[2]])


def test_nyu_13_class_names_agree():
    """Equal or similar names map to each other."""
    same = {name: name for name in ("bed", "books", "ceiling", "chair", "floor", "picture", "sofa", "table", "wall")}
    for name, its in {**same, "window": "window", "television": "tv", "lamp": "objects", "desk": "table"}.items():
        assert CLASSES[CLASS_OF_40_IN_13[FORTY.index(name)] - 1] == its
    assert sorted(set(CLASS_OF_40_IN_13)) == list(range(1, 14))


def test_nyu_13_mapping_file_is_used(tmp_path):
    _, labels = write_nyu(tmp_path)
    other = np.array([list(CLASS_OF_40_IN_13)], dtype=np.uint8)
    other[0, 0] = 13  # walls become windows
    savemat(tmp_path / "class13Mapping.mat", {"classMapping13": {"labels13": other, "class13": CLASSES}})
    masks = open_set(tmp_path).read_mask(0)
    assert set(masks[labels[0] == 1]) == {12}
    savemat(tmp_path / "class13Mapping.mat", {"classMapping13": {"labels13": other[:, :39]}})
    with pytest.raises(CompressError, match="labels13"):
        open_set(tmp_path)
    savemat(tmp_path / "class13Mapping.mat", {"classMapping13": other})
    with pytest.raises(CompressError, match="classMapping13"):
        open_set(tmp_path)


def test_nyu_reads_requested_frames_only(tmp_path, monkeypatch):
    import h5py

    write_nyu(tmp_path)
    read: list[object] = []
    get = h5py.Dataset.__getitem__

    def watched(self, key, **kwargs):
        if self.name in ("/images", "/labels"):
            read.append((self.name, key))
        return get(self, key, **kwargs)

    monkeypatch.setattr(h5py.Dataset, "__getitem__", watched)
    result = open_set(tmp_path, split="val")
    assert read == []
    result.read_image(1)
    result.read_mask(2)
    assert read == [("/images", 3), ("/labels", 5)]


def test_nyu_reads_from_many_threads(tmp_path):
    images, _ = write_nyu(tmp_path, 24)
    result = open_set(tmp_path)
    alone = [result.read_mask(i) for i in range(12)]
    start = threading.Barrier(8)

    def work(k: int) -> bool:
        start.wait()
        order = np.random.default_rng(k).permutation(12)
        return all(
            np.array_equal(result.read_image(int(i)), images[2 * i])
            and np.array_equal(result.read_mask(int(i)), alone[i])
            for i in order
        )

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_nyu_reads_after_fork(tmp_path):
    images, _ = write_nyu(tmp_path)
    result = open_set(tmp_path)
    result.read_image(0)
    context = multiprocessing.get_context("fork")
    outputs = context.Queue()
    # As few threads as possible may run where a process forks.
    child = context.Process(target=lambda: outputs.put([np.asarray(result.read_image(i)) for i in range(4)]))
    child.start()
    for i, pixels in enumerate(outputs.get(timeout=60)):
        assert np.array_equal(pixels, images[2 * i])
        assert np.array_equal(result.read_image(i), images[2 * i])
    child.join()


def test_nyu_unlabeled_needs_no_mapping(tmp_path):
    write_nyu(tmp_path)
    (tmp_path / "classMapping40.mat").unlink()
    result = open_set(tmp_path, labeled=False)
    assert (len(result), result.open_mask, result.class_names) == (4, None, None)


def test_nyu_fingerprint_covers_all_files(tmp_path):
    write_nyu(tmp_path)
    prints = {
        open_set(tmp_path, name, split).fingerprint() for name in ("nyuv2", "nyuv2-40") for split in ("train", "val")
    }
    assert open_set(tmp_path).fingerprint() in prints
    write_mappings(tmp_path, [1, 2, 5, 22, 4, 35, 40, 25])
    assert len({*prints, open_set(tmp_path).fingerprint()}) == 5


def test_nyu_folder_is_no_image_folder(tmp_path, monkeypatch):
    write_nyu(tmp_path / "nyuv2")
    monkeypatch.chdir(tmp_path)
    assert len(open_images("nyuv2", root=tmp_path)) == 4


@pytest.mark.parametrize("name", ["nyuv2", "nyuv2-40"])
def test_nyu_names_are_listed(name):
    assert "segmentation" in DATASETS[name]


# Missing and unexpected files.


@pytest.mark.parametrize(
    ("file", "source"),
    [
        (FRAMES, "cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html"),
        ("splits.mat", "indoor_seg_sup/splits.mat"),
        ("classMapping40.mat", "nyuv2-meta-data"),
    ],
)
def test_nyu_missing_file_names_its_source(tmp_path, file, source):
    write_nyu(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(CompressError, match=f"{file} .*{tmp_path}.*{source}"):
        open_set(tmp_path)


def test_nyu_missing_files_are_all_named(tmp_path):
    with pytest.raises(CompressError, match=rf"{FRAMES} and splits.mat and classMapping40.mat"):
        open_set(tmp_path)


def test_nyu_without_h5py(tmp_path, monkeypatch):
    write_nyu(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(UsageError, match=r"\[nyu\]"):
        open_set(tmp_path)


@pytest.mark.parametrize("left", [0, 100, 600, 5000, -1])
def test_nyu_truncated_file_is_refused(tmp_path, left):
    write_nyu(tmp_path)
    whole = (tmp_path / FRAMES).read_bytes()
    (tmp_path / FRAMES).write_bytes(whole[:left])
    with pytest.raises(CompressError, match=FRAMES):
        open_set(tmp_path)


def test_nyu_damaged_frame_is_unreadable(tmp_path):
    from compress.data import UnreadableImageError

    images, _ = write_nyu(tmp_path)
    import h5py

    with h5py.File(tmp_path / FRAMES) as file:
        place = file["images"].id.get_chunk_info(0)
    content = bytearray((tmp_path / FRAMES).read_bytes())
    content[512 + place.byte_offset + 10 : 512 + place.byte_offset + 200] = bytes(190)
    (tmp_path / FRAMES).write_bytes(content)
    result = open_set(tmp_path)
    with pytest.raises(UnreadableImageError):
        result.read_image(0)
    assert np.array_equal(result.read_image(1), images[2])


def test_nyu_other_structure_is_refused(tmp_path):
    import h5py

    write_nyu(tmp_path)
    images, labels = create_frames(7)

    def refused(datum: str, **content: np.ndarray) -> None:
        with h5py.File(tmp_path / FRAMES, "w") as file:
            for name, values in content.items():
                file[name] = values
        with pytest.raises(CompressError, match=datum):
            open_set(tmp_path)

    good = {"images": images.transpose(0, 3, 2, 1), "labels": labels.transpose(0, 2, 1)}
    refused("images")
    refused(r"images: .*\[7, 48, 64, 3\]", images=images)
    refused("images: .*float64", images=good["images"] / 255)
    refused(r"labels: .*\[7, 48, 64\]", **{**good, "labels": labels})
    refused("names", **good)
    refused(r"names: .*uint16", **good, names=np.zeros(3, dtype=np.uint16))


def test_nyu_unknown_label_names_its_frame(tmp_path):
    write_nyu(tmp_path)
    images, labels = create_frames(7)
    labels[2, 3, 3] = 900
    write_frames(tmp_path / FRAMES, images, labels)
    result = open_set(tmp_path)
    result.read_mask(0)
    with pytest.raises(CompressError, match=r"frame 3: .*900"):
        result.read_mask(1)


def test_nyu_invalid_split_is_refused(tmp_path):
    write_nyu(tmp_path)
    for train in ([1, 8], [0, 1], [1, 1], []):
        write_splits(tmp_path, train, [2])
        with pytest.raises(CompressError, match=r"splits.mat: trainNdxs"):
            open_set(tmp_path)
    savemat(tmp_path / "splits.mat", {"trainNdxs": np.array([[1.5]])})
    with pytest.raises(CompressError, match=r"trainNdxs: .*float64"):
        open_set(tmp_path)
    savemat(tmp_path / "splits.mat", {"train": [1]})
    with pytest.raises(CompressError, match=r"splits.mat: .*trainNdxs"):
        open_set(tmp_path)


@pytest.mark.parametrize("file", ["splits.mat", "classMapping40.mat"])
def test_nyu_invalid_matlab_file_is_refused(tmp_path, file):
    write_nyu(tmp_path)
    whole = (tmp_path / file).read_bytes()
    for content in (
        b"",
        b"<html>404</html>" * 20,
        whole[:60],
        whole[: len(whole) // 2],
        (tmp_path / FRAMES).read_bytes(),
    ):
        (tmp_path / file).write_bytes(content)
        with pytest.raises(CompressError, match=file):
            open_set(tmp_path)


def test_nyu_foreign_mapping_is_refused(tmp_path):
    write_nyu(tmp_path)
    write_mappings(tmp_path, MAPPED[:-1])
    with pytest.raises(CompressError, match=rf"7 labels .*{len(RAW)}"):
        open_set(tmp_path)
    write_mappings(tmp_path, [*MAPPED[:-1], 41])
    with pytest.raises(CompressError, match=r"classMapping40.mat"):
        open_set(tmp_path)
    write_mappings(tmp_path, [2, 1, *MAPPED[2:]])
    with pytest.raises(CompressError, match=r"classMapping40.mat: .*wall"):
        open_set(tmp_path)
