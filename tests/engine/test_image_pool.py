"""The image pool, and runs that use it: lossless, resumable, detects damage, ignores stale files."""

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
from compress.engine.accelerator import Accelerator
from compress.engine.image_pool import ImagePool, slugify
from compress.engine.memory_bank import MemoryBank
from compress.engine.synthesis import BestBatch, SynthesisOnly
from compress.engine.trainer import train
from compress.errors import CompressError

CPU = Accelerator(tiny.CPU, "32")
NAMES = ["T-shirt/top", "Trouser", "*", "Bag"]


def pool(folder, accelerator=CPU, names=NAMES) -> ImagePool:
    return ImagePool(folder / "compress-pool", accelerator, names)


def bytes_of(n, size=8, seed=0):
    return torch.randint(0, 256, (n, 3, size, size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def filled(folder, n=6, **options) -> tuple[ImagePool, torch.Tensor]:
    made, pixels = pool(folder, **options), bytes_of(n)
    made.add(pixels / 255, torch.arange(n) % 4)
    return made, pixels


def names_in(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*.png")}


def test_pool_images_are_lossless(tmp_path):
    made, pixels = filled(tmp_path)
    assert torch.equal(made.pixels, pixels)
    for i, label in enumerate(made.labels.tolist()):
        stored = np.asarray(Image.open(made.image_path(i, label)))
        assert np.array_equal(stored, pixels[i].permute(1, 2, 0).numpy())


def test_pool_rounds_and_clamps_values(tmp_path):
    made, row = pool(tmp_path), torch.tensor([-0.2, 0.4 / 255, 0.6 / 255, 0.5, 1.7])
    made.add(row.expand(1, 3, 2, 5), torch.tensor([3]))
    assert made.pixels[0, 0, 0].tolist() == [0, 0, 1, 128, 255]


def test_pool_folders_have_safe_names(tmp_path):
    made, _ = filled(tmp_path)
    assert made.class_dirs == ["0 T-shirt-top", "1 Trouser", "2", "3 Bag"]
    assert names_in(tmp_path / "compress-pool") == {
        "0 T-shirt-top/0-0000000.png", "0 T-shirt-top/0-0000004.png", "1 Trouser/0-0000001.png",
        "1 Trouser/0-0000005.png", "2/0-0000002.png", "3 Bag/0-0000003.png",
    }  # fmt: skip
    assert slugify("../../x") == "x"
    assert len(slugify("tench, Tinca tinca " * 20)) <= 60
    assert ImagePool(tmp_path, CPU, [""] * 11).class_dirs[:2] == ["00", "01"]


def test_pool_reads_as_image_folder(tmp_path):
    made, pixels = filled(tmp_path, n=11)
    with_labels = open_images(str(tmp_path / "compress-pool"), labeled=True)
    assert with_labels.class_names == made.class_dirs
    assert sorted(with_labels.labels.tolist()) == sorted(made.labels.tolist())
    for i, item in enumerate(with_labels.names):
        number = int(item.rpartition("-")[2].removesuffix(".png"))
        assert with_labels.labels[i] == made.labels[number]
        assert np.array_equal(np.asarray(with_labels.read_image(i)), pixels[number].permute(1, 2, 0).numpy())
    assert len(open_images(str(tmp_path / "compress-pool"))) == 11


def test_pool_samples_are_augmented(tmp_path):
    made = pool(tmp_path)
    made.add(torch.full((2, 3, 8, 8), 0.2), torch.tensor([0, 1]))
    made.add(torch.full((1, 3, 8, 8), 0.8), torch.tensor([2]))
    drawn = made.sample(200)
    assert drawn.shape == (200, 3, 8, 8)
    share = (drawn.mean((1, 2, 3)) > 0.5).double().mean()
    assert 0.2 < share < 0.47
    assert drawn.unique().numel() < 20


def test_pool_grows_and_keeps_images(tmp_path):
    made, pixels = pool(tmp_path), bytes_of(23)
    for part in pixels.split([1, 2, 7, 13]):
        made.add(part / 255, torch.zeros(len(part), dtype=torch.int64))
    assert torch.equal(made.pixels, pixels)
    assert len(made) == len(names_in(tmp_path / "compress-pool")) == 23


def test_pool_capacity_is_respected(tmp_path):
    made = pool(tmp_path)
    made.capacity = 5
    for seed in range(3):
        made.add(bytes_of(3, seed=seed) / 255, torch.zeros(3, dtype=torch.int64))
    assert torch.equal(made.pixels, torch.cat([bytes_of(3, seed=0), bytes_of(3, seed=1)])[:5])
    assert len(names_in(tmp_path / "compress-pool")) == 5


# Resuming.


def test_pool_restores_and_removes_later_images(tmp_path):
    made, pixels = filled(tmp_path)
    state = made.state_dict()
    made.add(bytes_of(3, seed=1) / 255, torch.tensor([0, 1, 2]))
    again = pool(tmp_path)
    again.load_state_dict(state)
    assert torch.equal(again.pixels, pixels)
    assert len(names_in(tmp_path / "compress-pool")) == 6
    again.add(bytes_of(3, seed=2) / 255, torch.tensor([0, 1, 2]))
    assert again.state_dict()["sha256"] != state["sha256"]
    assert len(names_in(tmp_path / "compress-pool")) == 9


def test_pool_empty_restore_removes_old_images(tmp_path):
    state = pool(tmp_path / "new").state_dict()
    filled(tmp_path)
    made = pool(tmp_path)
    made.load_state_dict(state)
    assert len(made) == 0
    assert names_in(tmp_path / "compress-pool") == set()


@pytest.mark.parametrize("damage", ["gone", "cut", "rubbish", "a bit", "another size", "empty"])
def test_pool_damage_raises(tmp_path, damage):
    made, _ = filled(tmp_path)
    state, victim = made.state_dict(), made.image_path(2, 2)
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
    with pytest.raises(CompressError, match="--fresh"):
        pool(tmp_path).load_state_dict(state)


def test_pool_syncs_files_before_checkpoint(tmp_path, monkeypatch):
    made, _ = filled(tmp_path)
    synced = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.readlink(f"/proc/self/fd/{handle}")))
    made.state_dict()
    assert {path for path in synced if path.endswith(".png")} == {
        str(p) for p in (tmp_path / "compress-pool").rglob("*.png")
    }
    synced.clear()
    made.state_dict()
    assert synced == []


def test_pool_write_failure_raises(tmp_path, monkeypatch):
    made, _ = filled(tmp_path)
    (tmp_path / "compress-pool" / "0 T-shirt-top").rename(tmp_path / "moved")
    with pytest.raises(CompressError, match="pool"):
        made.add(bytes_of(1) / 255, torch.tensor([0]))


def test_pool_blocked_folder_raises(tmp_path):
    (tmp_path / "compress-pool").write_text("a file is in the way")
    with pytest.raises(CompressError, match="pool"):
        filled(tmp_path)


# Earlier runs and other processes.


def test_pool_ignores_stale_and_foreign_files(tmp_path):
    filled(tmp_path, n=20)
    (tmp_path / "compress-pool" / "2" / "holiday-2024.png").write_bytes(b"mine")
    made = pool(tmp_path)
    assert len(made) == 0
    made.add(torch.ones(2, 3, 8, 8), torch.tensor([1, 1]))
    assert made.sample(50).min() == 1
    expected = {"1 Trouser/0-0000000.png", "1 Trouser/0-0000001.png", "2/holiday-2024.png"}
    assert names_in(tmp_path / "compress-pool") == expected


def test_pool_processes_own_separate_files(tmp_path):
    parts = [filled(tmp_path, n=3 + rank, accelerator=Accelerator(tiny.CPU, "32", rank, 2))[0] for rank in range(2)]
    assert len(names_in(tmp_path / "compress-pool")) == 7
    parts[1].remove_images_from(1)
    assert {name.rpartition("/")[2][0] for name in names_in(tmp_path / "compress-pool")} == {"0", "1"}
    assert len(names_in(tmp_path / "compress-pool")) == 4
    pool(tmp_path).remove_images_from(0)
    assert names_in(tmp_path / "compress-pool") == set()


# The contact sheet.


def test_contact_sheet_shows_newest_per_class(tmp_path):
    made = pool(tmp_path)
    grays = torch.arange(12) / 20
    made.add(grays.view(12, 1, 1, 1).expand(12, 3, 8, 8), torch.tensor([0] * 11 + [3]))
    made.save_contact_sheet(tmp_path / "compress-pool.png")
    sheet = np.asarray(Image.open(tmp_path / "compress-pool.png").convert("L")).astype(float) / 255
    middle = [sheet[2 * (2 + 10 * row + 4), 2 * (2 + 10 * column + 4)] for row in (0, 1, 3) for column in range(10)]
    assert middle[:10] == pytest.approx(grays[1:11].tolist(), abs=0.01)
    assert middle[10:20] == [1.0] * 10
    assert middle[20] == pytest.approx(11 / 20, abs=0.01)


def test_contact_sheet_of_many_classes_small(tmp_path):
    made = pool(tmp_path, names=[""] * 1000)
    made.add(torch.rand(4, 3, 200, 200), torch.tensor([0, 1, 500, 999]))
    made.save_contact_sheet(tmp_path / "compress-pool.png")
    with Image.open(tmp_path / "compress-pool.png") as sheet:
        width, height = sheet.size
    assert width <= 2000
    assert height <= 2 * 100 * 66 + 4


def test_contact_sheet_of_empty_pool_missing(tmp_path):
    pool(tmp_path).save_contact_sheet(tmp_path / "compress-pool.png")
    assert not (tmp_path / "compress-pool.png").exists()


# Runs.


def test_contact_sheet_saving_changes_nothing(tmp_path):
    seen, unseen = (
        tiny_run(tmp_path / "a", "fastdfkd", evaluate_every=1),
        tiny_run(tmp_path / "b", "fastdfkd", evaluate_every=4),
    )
    for run in (seen, unseen):
        train(tiny_method("fastdfkd"), run)
        assert (run.run_dir / "compress-pool.png").is_file()
    assert tiny.state_differences(*(tiny.final_state(run)["shared"]["trainables"] for run in (seen, unseen))) == []


@pytest.mark.parametrize("name", ["deepinversion", "cmi", "fastdfkd"])
def test_pool_of_unsaved_run_is_discarded(tmp_path, name):
    def die_at(step):
        with pytest.raises(contract.Killed):
            train(contract.FailingMethod(tiny_method(name), step), tiny_run(tmp_path / "cut", name, seed=1))

    die_at(3)
    assert names_in(tmp_path / "cut" / "compress-pool")
    ends = []
    for folder in ("cut", "new"):
        run = tiny_run(tmp_path / folder, name)
        train(tiny_method(name), run)
        ends.append(tiny.final_state(run))
        assert len(names_in(tmp_path / folder / "compress-pool")) == len(
            ends[-1]["per_rank"]["registered"]["pool"]["labels"]
        )
    assert tiny.state_differences(*ends, ignore=contract.CLOCK) == []


def test_synthesis_loss_logged_when_computed(tmp_path):
    run = tiny_run(tmp_path, "deepinversion", steps=8, log_every=5)
    train(tiny_method("deepinversion", student_steps=3), run)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses_by_step = {line["step"]: {"G", "S"} & line.keys() for line in lines if line["kind"] == "train"}
    assert losses_by_step == {1: {"G", "S"}, 4: {"G", "S"}, 5: {"S"}, 7: {"G", "S"}, 8: {"S"}}


def test_synthesis_progress_is_displayed(tmp_path, monkeypatch):
    run, shown = tiny_run(tmp_path, "deepinversion", steps=10), []
    monkeypatch.setattr(run.display, "update", lambda progress, step, facts: shown.append((progress, facts)))
    run.step = 5
    assert list(run.progress_range(4, "synthesis")) == [0, 1, 2, 3]
    assert [facts for _, facts in shown] == [f"synthesis {i} of 4" for i in range(4)]
    assert [progress for progress, _ in shown] == pytest.approx([0.5, 0.525, 0.55, 0.575])


def test_synthesis_only_leaves_student_alone(tmp_path):
    method = tiny_method("fastdfkd", adv=0.0, student_steps=1)
    run = tiny_run(tmp_path, "fastdfkd", steps=3, save_models=True)
    student = {k: v.clone() for k, v in run.student.state_dict().items()}
    run.student.register_forward_pre_hook(lambda *_: pytest.fail("the student is used"))
    train(SynthesisOnly(method, 21), run)
    assert tiny.state_differences(student, run.student.state_dict()) == []
    assert len(names_in(tmp_path / "compress-pool")) == 21
    assert not (tmp_path / "best").exists()
    assert not (tmp_path / "last").exists()


@pytest.mark.parametrize("count", [21, 24])
def test_synthesis_only_splits_images_over_processes(tmp_path, count):
    shares = []
    for rank in range(2):
        run = tiny_run(tmp_path / str(rank), "deepinversion", accelerator=Accelerator(tiny.CPU, "32", rank, 2))
        method = tiny_method("deepinversion")
        SynthesisOnly(method, count).setup(run)
        shares.append(method.pool.capacity)
    assert sum(shares) == count
    assert abs(shares[0] - shares[1]) <= 1


def test_pool_resumes_from_last_checkpoint(tmp_path, monkeypatch):
    """After a kill, a run resumes with the images of its last checkpoint."""
    monkeypatch.setattr(run_module, "SECONDS_BETWEEN_SAVES", 0.0)
    with pytest.raises(contract.Killed):
        train(contract.FailingMethod(tiny_method("cmi"), 4), tiny_run(tmp_path, "cmi", steps=6))
    before = {
        name: (tmp_path / "compress-pool" / name).stat().st_mtime_ns for name in names_in(tmp_path / "compress-pool")
    }
    train(tiny_method("cmi"), tiny_run(tmp_path, "cmi", steps=6))
    after = {
        name: (tmp_path / "compress-pool" / name).stat().st_mtime_ns for name in names_in(tmp_path / "compress-pool")
    }
    assert before.items() <= after.items()
    assert len(after) == 24


# Memory bank and best batch.


def test_memory_bank_keeps_newest_rows():
    bank, rows = MemoryBank(5, 2, CPU), torch.arange(26.0).view(13, 2)
    assert bank.sample(4).shape == (0, 2)
    for part in rows.split([2, 2, 3, 6]):
        bank.add(part)
    assert sorted(bank.sample(9)[:, 0].tolist()) == rows[-5:, 0].tolist()
    assert bank.sample(3).unique(dim=0).shape == (3, 2)
    bank.add(rows)
    assert sorted(bank.sample(5)[:, 0].tolist()) == rows[-5:, 0].tolist()


@pytest.mark.parametrize("parts", [[3], [3, 4], [13]])
def test_memory_bank_restores(parts):
    bank, again, rows = MemoryBank(5, 2, CPU), MemoryBank(5, 2, CPU), torch.rand(sum(parts), 2)
    for part in rows.split(parts):
        bank.add(part)
    again.load_state_dict(bank.state_dict())
    for one in (bank, again):
        one.add(torch.ones(2, 2))
    assert torch.equal(bank.table, again.table)
    assert len(bank) == len(again)
    assert bank.state_dict()["rows"].untyped_storage().nbytes() == 4 * 2 * len(bank)


def test_best_batch_keeps_copy():
    best, x = BestBatch(), torch.zeros(2)
    for loss in (3.0, 1.0, 2.0, 1.0):
        x += 1
        best.update(torch.tensor(loss), x)
    assert best.loss.item() == 1.0
    assert best.tensors[0].tolist() == [2.0, 2.0]
