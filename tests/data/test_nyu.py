"""NYUv2 from the files that are distributed: here in miniature, of exactly their structure."""

from __future__ import annotations

import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from miniature import FORTY, IN_13, MAPPED, RAW, frames, write_frames, write_mappings, write_nyu, write_splits
from scipy.io import savemat

from compress.data import DATASETS, ImageSet, open_images
from compress.data.nyu import CLASS_OF_40_IN_13, CLASSES
from compress.errors import CompressError, UsageError

FRAMES = "nyu_depth_v2_labeled.mat"


def opened(root: Path, name: str = "nyuv2", split: str = "train", labeled: bool = True) -> ImageSet:
    return open_images(name, root=root, split=split, labeled=labeled)


def test_frames_are_read_upright_with_the_thirteen_classes(tmp_path):
    images, labels = write_nyu(tmp_path)
    table = np.array([255, *IN_13], dtype=np.uint8)
    for split, first in (("train", 0), ("val", 1)):
        found = opened(tmp_path, split=split)
        assert found.class_names == CLASSES
        assert found.labels is None
        for i, frame in enumerate(range(first, 7, 2)):
            assert found.name_of(i) == f"nyuv2/{frame + 1:04}"
            assert np.array_equal(np.asarray(found.read_image(i)), images[frame])
            assert np.array_equal(found.read_mask(i), table[labels[frame]])


def test_forty_classes_are_the_mapping_itself_counted_from_nought(tmp_path):
    _, labels = write_nyu(tmp_path / "nyuv2")
    found = opened(tmp_path, "nyuv2-40")
    assert found.class_names == FORTY
    expected = np.array([255, *[number - 1 if number else 255 for number in MAPPED]], dtype=np.uint8)
    assert np.array_equal(found.read_mask(1), expected[labels[2]])


def test_the_thirteen_classes_agree_with_the_names_of_the_forty():
    """Whose name is among the thirteen, or nearly, is mapped to it."""
    same = {name: name for name in ("bed", "books", "ceiling", "chair", "floor", "picture", "sofa", "table", "wall")}
    for name, its in {**same, "window": "window", "television": "tv", "lamp": "objects", "desk": "table"}.items():
        assert CLASSES[CLASS_OF_40_IN_13[FORTY.index(name)] - 1] == its
    assert sorted(set(CLASS_OF_40_IN_13)) == list(range(1, 14))


def test_the_file_of_the_thirteen_classes_is_read_where_it_is_there(tmp_path):
    _, labels = write_nyu(tmp_path)
    other = np.array([list(CLASS_OF_40_IN_13)], dtype=np.uint8)
    other[0, 0] = 13  # walls become windows
    savemat(tmp_path / "class13Mapping.mat", {"classMapping13": {"labels13": other, "class13": CLASSES}})
    masks = opened(tmp_path).read_mask(0)
    assert set(masks[labels[0] == 1]) == {12}
    savemat(tmp_path / "class13Mapping.mat", {"classMapping13": {"labels13": other[:, :39]}})
    with pytest.raises(CompressError, match=r"class13Mapping\.mat: labels13: expected 40 classes"):
        opened(tmp_path)
    savemat(tmp_path / "class13Mapping.mat", {"classMapping13": other})
    with pytest.raises(CompressError, match=r"class13Mapping\.mat: classMapping13: expected a struct"):
        opened(tmp_path)


def test_only_the_frames_that_are_asked_for_are_read(tmp_path, monkeypatch):
    import h5py

    write_nyu(tmp_path)
    read: list[object] = []
    get = h5py.Dataset.__getitem__

    def watched(self, key, **kwargs):
        if self.name in ("/images", "/labels"):
            read.append((self.name, key))
        return get(self, key, **kwargs)

    monkeypatch.setattr(h5py.Dataset, "__getitem__", watched)
    found = opened(tmp_path, split="val")
    assert read == []
    found.read_image(1)
    found.read_mask(2)
    assert read == [("/images", 3), ("/labels", 5)]


def test_many_threads_read_what_one_reads(tmp_path):
    images, _ = write_nyu(tmp_path, 24)
    found = opened(tmp_path)
    alone = [found.read_mask(i) for i in range(12)]
    start = threading.Barrier(8)

    def work(k: int) -> bool:
        start.wait()
        order = np.random.default_rng(k).permutation(12)
        return all(
            np.array_equal(found.read_image(int(i)), images[2 * i])
            and np.array_equal(found.read_mask(int(i)), alone[i])
            for i in order
        )

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_a_process_that_forked_reads_what_its_parent_reads(tmp_path):
    images, _ = write_nyu(tmp_path)
    found = opened(tmp_path)
    found.read_image(0)
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    # As few threads as possible may run where a process forks.
    child = context.Process(target=lambda: answers.put([np.asarray(found.read_image(i)) for i in range(4)]))
    child.start()
    for i, pixels in enumerate(answers.get(timeout=60)):
        assert np.array_equal(pixels, images[2 * i])
        assert np.array_equal(found.read_image(i), images[2 * i])
    child.join()


def test_unlabeled_frames_need_no_mapping(tmp_path):
    write_nyu(tmp_path)
    (tmp_path / "classMapping40.mat").unlink()
    found = opened(tmp_path, labeled=False)
    assert (len(found), found.open_mask, found.class_names) == (4, None, None)


def test_other_classes_splits_and_files_have_another_fingerprint(tmp_path):
    write_nyu(tmp_path)
    prints = {
        opened(tmp_path, name, split).fingerprint() for name in ("nyuv2", "nyuv2-40") for split in ("train", "val")
    }
    assert opened(tmp_path).fingerprint() in prints
    write_mappings(tmp_path, [1, 2, 5, 22, 4, 35, 40, 25])
    assert len({*prints, opened(tmp_path).fingerprint()}) == 5


def test_a_folder_of_that_name_is_not_taken_for_pictures(tmp_path, monkeypatch):
    write_nyu(tmp_path / "nyuv2")
    monkeypatch.chdir(tmp_path)
    assert len(open_images("nyuv2", root=tmp_path)) == 4


@pytest.mark.parametrize("name", ["nyuv2", "nyuv2-40"])
def test_the_names_are_listed_as_segmentation(name):
    assert "segmentation" in DATASETS[name]


# What is missing or not what it should be.


@pytest.mark.parametrize(
    ("file", "source"),
    [
        (FRAMES, "cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html"),
        ("splits.mat", "indoor_seg_sup/splits.mat"),
        ("classMapping40.mat", "nyuv2-meta-data"),
    ],
)
def test_a_missing_file_is_named_with_where_it_is_had(tmp_path, file, source):
    write_nyu(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(
        CompressError, match=f"nyuv2: {file} not found in {tmp_path} or {tmp_path}/nyuv2: {file} .*{source}"
    ):
        opened(tmp_path)


def test_all_that_is_missing_is_named_at_once(tmp_path):
    with pytest.raises(CompressError, match=rf"{FRAMES} and splits.mat and classMapping40.mat not found.*--data-root"):
        opened(tmp_path)


def test_without_h5py_the_extra_is_named(tmp_path, monkeypatch):
    write_nyu(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(UsageError, match=r"compress\[nyu\]"):
        opened(tmp_path)


@pytest.mark.parametrize("left", [0, 100, 600, 5000, -1])
def test_a_file_cut_short_is_one_sentence(tmp_path, left):
    write_nyu(tmp_path)
    whole = (tmp_path / FRAMES).read_bytes()
    (tmp_path / FRAMES).write_bytes(whole[:left])
    with pytest.raises(CompressError, match=rf"{FRAMES}: not a whole MATLAB 7.3 file \(.*\); fetch it again"):
        opened(tmp_path)


def test_a_damaged_frame_is_one_bad_image(tmp_path):
    from compress.data import UnreadableImageError

    images, _ = write_nyu(tmp_path)
    import h5py

    with h5py.File(tmp_path / FRAMES) as file:
        place = file["images"].id.get_chunk_info(0)
    content = bytearray((tmp_path / FRAMES).read_bytes())
    content[512 + place.byte_offset + 10 : 512 + place.byte_offset + 200] = bytes(190)
    (tmp_path / FRAMES).write_bytes(content)
    found = opened(tmp_path)
    with pytest.raises(UnreadableImageError):
        found.read_image(0)
    assert np.array_equal(found.read_image(1), images[2])


def test_a_file_of_another_structure_is_refused_by_what_was_found(tmp_path):
    import h5py

    write_nyu(tmp_path)
    images, labels = frames(7)

    def refused(said: str, **content: np.ndarray) -> None:
        with h5py.File(tmp_path / FRAMES, "w") as file:
            for name, values in content.items():
                file[name] = values
        with pytest.raises(CompressError, match=said):
            opened(tmp_path)

    good = {"images": images.transpose(0, 3, 2, 1), "labels": labels.transpose(0, 2, 1)}
    refused(r"images: found nothing of that name, expected uint8")
    refused(r"images: found uint8 \[7, 48, 64, 3\], expected uint8", images=images)
    refused(r"images: found float64", images=good["images"] / 255)
    refused(r"labels: found uint16 \[7, 48, 64\], expected uint16 \[7, 64, 48\]", **{**good, "labels": labels})
    refused(r"names: found nothing", **good)
    refused(r"names: found uint16 \[3\], expected a cell array", **good, names=np.zeros(3, dtype=np.uint16))


def test_a_label_beyond_the_names_is_told_with_its_frame(tmp_path):
    write_nyu(tmp_path)
    images, labels = frames(7)
    labels[2, 3, 3] = 900
    write_frames(tmp_path / FRAMES, images, labels)
    found = opened(tmp_path)
    found.read_mask(0)
    with pytest.raises(CompressError, match=r"frame 3 has the label 900; expected 0 to 8"):
        found.read_mask(1)


def test_a_split_that_is_none_is_refused(tmp_path):
    write_nyu(tmp_path)
    for train in ([1, 8], [0, 1], [1, 1], []):
        write_splits(tmp_path, train, [2])
        with pytest.raises(
            CompressError, match=r"splits.mat: trainNdxs: found .* expected different numbers from 1 to 7"
        ):
            opened(tmp_path)
    savemat(tmp_path / "splits.mat", {"trainNdxs": np.array([[1.5]])})
    with pytest.raises(CompressError, match=r"trainNdxs: found float64 values, expected whole numbers"):
        opened(tmp_path)
    savemat(tmp_path / "splits.mat", {"train": [1]})
    with pytest.raises(CompressError, match=r"splits.mat: holds no trainNdxs"):
        opened(tmp_path)


@pytest.mark.parametrize("file", ["splits.mat", "classMapping40.mat"])
def test_a_matlab_file_that_is_none_is_one_sentence(tmp_path, file):
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
        with pytest.raises(CompressError, match=rf"{file}: (not a whole MATLAB file|holds no)"):
            opened(tmp_path)


def test_a_mapping_for_other_labels_is_refused(tmp_path):
    write_nyu(tmp_path)
    write_mappings(tmp_path, MAPPED[:-1])
    with pytest.raises(CompressError, match=rf"found 7 labels mapped to 40 classes, expected the {len(RAW)} of"):
        opened(tmp_path)
    write_mappings(tmp_path, [*MAPPED[:-1], 41])
    with pytest.raises(CompressError, match=r"classMapping40.mat: found 8 labels"):
        opened(tmp_path)
    write_mappings(tmp_path, [2, 1, *MAPPED[2:]])
    with pytest.raises(CompressError, match=r"classMapping40.mat: maps wall to another class"):
        opened(tmp_path)
