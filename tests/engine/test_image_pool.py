"""The pool of images: lossless, resumable, damage noticed, stale images never used, readable as a folder data set."""

from __future__ import annotations

import json
import os

import contract
import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from tiny import tiny_method, tiny_run

from compress.data import open_images
from compress.engine import run as run_module
from compress.engine.place import Place
from compress.engine.play import play
from compress.engine.pool import ImagePool, slug
from compress.engine.ring import Ring
from compress.engine.synthesis import Best, ImagesOnly
from compress.errors import CompressError

CPU = Place(tiny.CPU, "32")
NAMES = ["T-shirt/top", "Trouser", "*", "Bag"]


def pool(folder, place=CPU, names=NAMES) -> ImagePool:
    return ImagePool(folder / "pool", place, names)


def bytes_of(n, size=8, seed=0):
    return torch.randint(0, 256, (n, 3, size, size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def filled(folder, n=6, **options) -> tuple[ImagePool, torch.Tensor]:
    made, pixels = pool(folder, **options), bytes_of(n)
    made.add(pixels / 255, torch.arange(n) % 4)
    return made, pixels


def names_in(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*.png")}


def test_every_value_of_a_pixel_comes_back(tmp_path):
    made, pixels = filled(tmp_path)
    assert torch.equal(made.pixels, pixels)
    for i, label in enumerate(made.labels.tolist()):
        stored = np.asarray(Image.open(made.path(i, label)))
        assert np.array_equal(stored, pixels[i].permute(1, 2, 0).numpy())


def test_colours_are_rounded_and_what_lies_outside_is_cut(tmp_path):
    made, row = pool(tmp_path), torch.tensor([-0.2, 0.4 / 255, 0.6 / 255, 0.5, 1.7])
    made.add(row.expand(1, 3, 2, 5), torch.tensor([3]))
    assert made.pixels[0, 0, 0].tolist() == [0, 0, 1, 128, 255]


def test_it_is_a_folder_a_class_whose_names_a_file_system_takes(tmp_path):
    made, _ = filled(tmp_path)
    assert made.classes == ["0 T-shirt-top", "1 Trouser", "2", "3 Bag"]
    assert names_in(tmp_path / "pool") == {
        "0 T-shirt-top/0-0000000.png", "0 T-shirt-top/0-0000004.png", "1 Trouser/0-0000001.png",
        "1 Trouser/0-0000005.png", "2/0-0000002.png", "3 Bag/0-0000003.png",
    }  # fmt: skip
    assert slug("../../x") == "x"
    assert len(slug("tench, Tinca tinca " * 20)) <= 60
    assert ImagePool(tmp_path, CPU, [""] * 11).classes[:2] == ["00", "01"]


def test_another_run_reads_it_with_its_labels_and_without(tmp_path):
    made, pixels = filled(tmp_path, n=11)
    with_labels = open_images(str(tmp_path / "pool"), labelled=True)
    assert with_labels.class_names == made.classes
    assert sorted(with_labels.labels.tolist()) == sorted(made.labels.tolist())
    for i, item in enumerate(with_labels.items):
        number = int(item.rpartition("-")[2].removesuffix(".png"))
        assert with_labels.labels[i] == made.labels[number]
        assert np.array_equal(np.asarray(with_labels.read(i)), pixels[number].permute(1, 2, 0).numpy())
    assert len(open_images(str(tmp_path / "pool"))) == 11


def test_samples_are_its_images_shifted_and_mirrored_drawn_with_replacement(tmp_path):
    made = pool(tmp_path)
    made.add(torch.full((2, 3, 8, 8), 0.2), torch.tensor([0, 1]))
    made.add(torch.full((1, 3, 8, 8), 0.8), torch.tensor([2]))
    drawn = made.sample(200)
    assert drawn.shape == (200, 3, 8, 8)
    share = (drawn.mean((1, 2, 3)) > 0.5).double().mean()
    assert 0.2 < share < 0.47, "each image as often as any other"
    assert drawn.unique().numel() < 20, "of a plain image nothing else comes"


def test_it_grows_and_keeps_what_it_had(tmp_path):
    made, pixels = pool(tmp_path), bytes_of(23)
    for part in pixels.split([1, 2, 7, 13]):
        made.add(part / 255, torch.zeros(len(part), dtype=torch.int64))
    assert torch.equal(made.pixels, pixels)
    assert len(made) == len(names_in(tmp_path / "pool")) == 23


def test_no_more_are_taken_than_it_may_hold(tmp_path):
    made = pool(tmp_path)
    made.most = 5
    for seed in range(3):
        made.add(bytes_of(3, seed=seed) / 255, torch.zeros(3, dtype=torch.int64))
    assert torch.equal(made.pixels, torch.cat([bytes_of(3, seed=0), bytes_of(3, seed=1)])[:5])
    assert len(names_in(tmp_path / "pool")) == 5


# Resuming.


def test_a_restored_pool_is_the_same_and_later_images_are_gone(tmp_path):
    made, pixels = filled(tmp_path)
    state = made.state_dict()
    made.add(bytes_of(3, seed=1) / 255, torch.tensor([0, 1, 2]))
    again = pool(tmp_path)
    again.load_state_dict(state)
    assert torch.equal(again.pixels, pixels)
    assert len(names_in(tmp_path / "pool")) == 6
    again.add(bytes_of(3, seed=2) / 255, torch.tensor([0, 1, 2]))
    assert again.state_dict()["sha256"] != state["sha256"]
    assert len(names_in(tmp_path / "pool")) == 9


def test_an_empty_pool_is_restored_and_the_images_of_a_run_before_it_are_gone(tmp_path):
    state = pool(tmp_path / "new").state_dict()
    filled(tmp_path)
    made = pool(tmp_path)
    made.load_state_dict(state)
    assert len(made) == 0
    assert names_in(tmp_path / "pool") == set()


@pytest.mark.parametrize("damage", ["gone", "cut", "rubbish", "a bit", "another size", "empty"])
def test_damage_is_noticed_and_named(tmp_path, damage):
    made, _ = filled(tmp_path)
    state, victim = made.state_dict(), made.path(2, 2)
    content = victim.read_bytes()
    if damage == "gone":
        victim.unlink()
    elif damage == "another size":
        Image.new("RGB", (5, 5)).save(victim)
    elif damage == "a bit":
        pixels = np.array(Image.open(victim))
        pixels[0, 0, 0] ^= 1
        Image.fromarray(pixels).save(victim)
    else:
        victim.write_bytes({"cut": content[: len(content) // 2], "rubbish": b"x" * 99, "empty": b""}[damage])
    with pytest.raises(CompressError, match=r"pool.*begin with --fresh\.$"):
        pool(tmp_path).load_state_dict(state)


def test_images_that_a_checkpoint_counts_on_are_on_the_disk_before_it_says_so(tmp_path, monkeypatch):
    made, _ = filled(tmp_path)
    synced = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.readlink(f"/proc/self/fd/{handle}")))
    made.state_dict()
    assert {path for path in synced if path.endswith(".png")} == {str(p) for p in (tmp_path / "pool").rglob("*.png")}
    synced.clear()
    made.state_dict()
    assert synced == []


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    made, _ = filled(tmp_path)
    (tmp_path / "pool" / "0 T-shirt-top").rename(tmp_path / "elsewhere")
    with pytest.raises(CompressError, match="cannot be written"):
        made.add(bytes_of(1) / 255, torch.tensor([0]))


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "pool").write_text("a file is in the way")
    with pytest.raises(CompressError, match="cannot be written"):
        filled(tmp_path)


# Runs before this one, and processes beside it.


def test_stale_images_of_a_run_before_are_never_used_and_a_strangers_files_stay(tmp_path):
    filled(tmp_path, n=20)
    (tmp_path / "pool" / "2" / "holiday-2024.png").write_bytes(b"mine")
    made = pool(tmp_path)
    assert len(made) == 0
    made.add(torch.ones(2, 3, 8, 8), torch.tensor([1, 1]))
    assert made.sample(50).min() == 1
    expected = {"1 Trouser/0-0000000.png", "1 Trouser/0-0000001.png", "2/holiday-2024.png"}
    assert names_in(tmp_path / "pool") == expected


def test_each_process_has_its_own_part_and_clears_its_own(tmp_path):
    parts = [filled(tmp_path, n=3 + rank, place=Place(tiny.CPU, "32", rank, 2))[0] for rank in range(2)]
    assert len(names_in(tmp_path / "pool")) == 7
    parts[1].clear(1)
    assert {name.rpartition("/")[2][0] for name in names_in(tmp_path / "pool")} == {"0", "1"}
    assert len(names_in(tmp_path / "pool")) == 4
    pool(tmp_path).clear(0)
    assert names_in(tmp_path / "pool") == set(), "one process alone removes what a second one left"


# The contact sheet.


def test_the_sheet_has_a_row_a_class_the_newest_images_last(tmp_path):
    made = pool(tmp_path)
    greys = torch.arange(12) / 20
    made.add(greys.view(12, 1, 1, 1).expand(12, 3, 8, 8), torch.tensor([0] * 11 + [3]))
    made.sheet(tmp_path / "pool.png")
    sheet = np.asarray(Image.open(tmp_path / "pool.png").convert("L")).astype(float) / 255
    middle = [sheet[2 * (2 + 10 * row + 4), 2 * (2 + 10 * column + 4)] for row in (0, 1, 3) for column in range(10)]
    assert middle[:10] == pytest.approx(greys[1:11].tolist(), abs=0.01)
    assert middle[10:20] == [1.0] * 10
    assert middle[20] == pytest.approx(11 / 20, abs=0.01)


def test_a_sheet_of_many_classes_and_large_images_stays_small(tmp_path):
    made = pool(tmp_path, names=[""] * 1000)
    made.add(torch.rand(4, 3, 200, 200), torch.tensor([0, 1, 500, 999]))
    made.sheet(tmp_path / "pool.png")
    with Image.open(tmp_path / "pool.png") as sheet:
        width, height = sheet.size
    assert width <= 2000
    assert height <= 2 * 100 * 66 + 4


def test_no_sheet_of_nothing(tmp_path):
    pool(tmp_path).sheet(tmp_path / "pool.png")
    assert not (tmp_path / "pool.png").exists()


# Runs.


def test_a_run_shows_its_pool_at_every_evaluation_and_that_changes_nothing(tmp_path):
    seen, unseen = tiny_run(tmp_path / "a", "fastdfkd", evaluate=1), tiny_run(tmp_path / "b", "fastdfkd", evaluate=4)
    for run in (seen, unseen):
        play(tiny_method("fastdfkd"), run)
        assert (run.folder / "pool.png").is_file()
    assert tiny.differences(*(tiny.finished(run)["shared"]["players"] for run in (seen, unseen))) == []


@pytest.mark.parametrize("name", ["deepinversion", "cmi", "fastdfkd"])
def test_images_left_by_a_run_without_a_checkpoint_are_not_those_of_the_next(tmp_path, name):
    def die_at(step):
        with pytest.raises(contract.Killed):
            play(contract.Dying(tiny_method(name), step), tiny_run(tmp_path / "cut", name, seed=1))

    die_at(3)
    assert names_in(tmp_path / "cut" / "pool")
    ends = []
    for folder in ("cut", "new"):
        run = tiny_run(tmp_path / folder, name)
        play(tiny_method(name), run)
        ends.append(tiny.finished(run))
        assert len(names_in(tmp_path / folder / "pool")) == len(ends[-1]["own"]["kept"]["pool"]["labels"])
    assert tiny.differences(*ends, ignore=contract.CLOCK) == []


def test_the_loss_of_the_images_is_logged_whenever_they_are_made_and_only_then(tmp_path):
    run = tiny_run(tmp_path, "deepinversion", steps=8, log=5)
    play(tiny_method("deepinversion", moves=3), run)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    found = {line["step"]: {"G", "S"} & line.keys() for line in lines if line["kind"] == "train"}
    assert found == {1: {"G", "S"}, 4: {"G", "S"}, 5: {"S"}, 7: {"G", "S"}, 8: {"S"}}


def test_a_synthesis_is_shown_as_it_goes(tmp_path, monkeypatch):
    run, shown = tiny_run(tmp_path, "deepinversion", steps=10), []
    monkeypatch.setattr(run.display, "update", lambda progress, step, facts: shown.append((progress, facts)))
    run.step = 5
    assert list(run.rounds(4, "synthesis")) == [0, 1, 2, 3]
    assert [facts for _, facts in shown] == [f"synthesis {i} of 4" for i in range(4)]
    assert [progress for progress, _ in shown] == pytest.approx([0.5, 0.525, 0.55, 0.575])


def test_images_alone_are_made_without_moving_asking_or_keeping_a_student(tmp_path):
    method = tiny_method("fastdfkd", adv=0.0, moves=1)
    run = tiny_run(tmp_path, "fastdfkd", steps=3, keep=True)
    student = {k: v.clone() for k, v in run.student.state_dict().items()}
    run.student.register_forward_pre_hook(lambda *_: pytest.fail("the student is asked"))
    play(ImagesOnly(method, 21), run)
    assert tiny.differences(student, run.student.state_dict()) == []
    assert len(names_in(tmp_path / "pool")) == 21
    assert not (tmp_path / "best").exists()
    assert not (tmp_path / "last").exists()


@pytest.mark.parametrize("count", [21, 24])
def test_processes_share_what_is_to_be_made(tmp_path, count):
    shares = []
    for rank in range(2):
        run = tiny_run(tmp_path / str(rank), "deepinversion", place=Place(tiny.CPU, "32", rank, 2))
        method = tiny_method("deepinversion")
        ImagesOnly(method, count).setup(run)
        shares.append(method.pool.most)
    assert sum(shares) == count
    assert abs(shares[0] - shares[1]) <= 1


def test_the_number_of_seconds_between_saves_is_what_a_pool_may_lose(tmp_path, monkeypatch):
    """Killed without a word, a run goes on from its last checkpoint, with the images that were made before that."""
    monkeypatch.setattr(run_module, "SECONDS_BETWEEN_SAVES", 0.0)
    with pytest.raises(contract.Killed):
        play(contract.Dying(tiny_method("cmi"), 4), tiny_run(tmp_path, "cmi", steps=6))
    before = {name: (tmp_path / "pool" / name).stat().st_mtime_ns for name in names_in(tmp_path / "pool")}
    play(tiny_method("cmi"), tiny_run(tmp_path, "cmi", steps=6))
    after = {name: (tmp_path / "pool" / name).stat().st_mtime_ns for name in names_in(tmp_path / "pool")}
    assert before.items() <= after.items()
    assert len(after) == 24


# What goes with it.


def test_a_ring_holds_the_rows_that_came_last_whatever_the_batches():
    ring, rows = Ring(5, 2, CPU), torch.arange(26.0).view(13, 2)
    assert ring.sample(4).shape == (0, 2)
    for part in rows.split([2, 2, 3, 6]):
        ring.add(part)
    assert sorted(ring.sample(9)[:, 0].tolist()) == rows[-5:, 0].tolist()
    assert ring.sample(3).unique(dim=0).shape == (3, 2), "no row twice"
    ring.add(rows)
    assert sorted(ring.sample(5)[:, 0].tolist()) == rows[-5:, 0].tolist()


@pytest.mark.parametrize("parts", [[3], [3, 4], [13]])
def test_a_restored_ring_goes_on_where_it_was(parts):
    ring, again, rows = Ring(5, 2, CPU), Ring(5, 2, CPU), torch.rand(sum(parts), 2)
    for part in rows.split(parts):
        ring.add(part)
    again.load_state_dict(ring.state_dict())
    for one in (ring, again):
        one.add(torch.ones(2, 2))
    assert torch.equal(ring.table, again.table)
    assert len(ring) == len(again)
    assert ring.state_dict()["rows"].untyped_storage().nbytes() == 4 * 2 * len(ring), "no more is saved than there is"


def test_the_best_batch_is_kept_as_it_was():
    best, x = Best(), torch.zeros(2)
    for loss in (3.0, 1.0, 2.0, 1.0):
        x += 1
        best.offer(torch.tensor(loss), x)
    assert best.loss.item() == 1.0
    assert best.kept[0].tolist() == [2.0, 2.0], "the first of equals, though x went on"
