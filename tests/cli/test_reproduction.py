"""A run can be made again from what it left; and a rehearsal costs nothing and tells the truth."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from invoking import TEACHER, TINY, answer, distill, files, run

from compress.config import read_yaml


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "last" / "model.safetensors").read_bytes()).hexdigest()


def settings(folder: Path) -> dict[str, Any]:
    return read_yaml(folder / "recipe.yaml").data


def test_the_recipe_of_a_run_makes_the_same_weights_again(first_run, tmp_path) -> None:
    folder, found = first_run
    again = answer(run("distill", "--recipe", folder / "recipe.yaml", "--out", tmp_path / "again", "--json"))
    assert weights(tmp_path / "again") == weights(folder)
    assert settings(tmp_path / "again") == settings(folder)
    assert again["metrics"] == found["metrics"]


def test_another_seed_makes_other_weights(first_run, tmp_path) -> None:
    folder, _ = first_run
    answer(run("distill", "--recipe", folder / "recipe.yaml", "--seed", 1, "--out", tmp_path / "other", "--json"))
    assert weights(tmp_path / "other") != weights(folder)


def test_options_override_the_recipe_and_set_overrides_both(tmp_path, photos) -> None:
    (tmp_path / "my.yaml").write_text(
        f"teachers:\n- model: {TEACHER}\nstudent: {{model: wrn16_1}}\ndata: {{unlabelled: {photos}, views: 1}}\n"
        "method: {name: mosaic, width_G: 8, width_D: 8, local: 0.5, align: 0.5}\n"
        "pace: {steps: 9, seed: 5, batch_size: 8, precision: '32', log: 3}\n"
    )
    given = ["--recipe", tmp_path / "my.yaml", "--steps", 3, "--seed", 6, "--batch-size", 4]
    sets = ["--set", "pace.steps=1", "--set", "method.local=2"]
    answer(run("distill", *given, *sets, "--out", tmp_path / "run", "--json"))
    found = settings(tmp_path / "run")
    pace, method = found["pace"], found["method"]
    assert (pace["steps"], pace["seed"], pace["batch_size"], pace["log"]) == (1, 6, 4, 3)
    assert (method["local"], method["align"], method["adv"]) == (2.0, 0.5, 1.0)
    task = {"kind": "classification", "classes": 10, "image_size": [32, 32], "grey": True, "resize": None}
    assert found["task"] == task


def test_a_time_limit_given_as_an_option_takes_the_place_of_the_recipes_steps(first_run, tmp_path) -> None:
    folder, _ = first_run
    arguments = ["--recipe", folder / "recipe.yaml", "--time-limit", "1s", "--out", tmp_path / "run", "--json"]
    assert answer(run("distill", *arguments))["steps"] > 0
    assert settings(tmp_path / "run")["pace"]["steps"] is None


# --dry-run


def test_a_rehearsal_writes_nothing(tmp_path, photos, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "cache"))
    answer(distill("--dry-run", "--json", ood=photos, out="run"))
    assert files(tmp_path) == set()
    assert list(tmp_path.iterdir()) == []


def macs(net: Any, *shape: int) -> int:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.eval()(torch.zeros(1, *shape))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("moves", [1, 5])
def test_the_flops_of_a_rehearsal_are_the_closed_form(tmp_path, photos, moves) -> None:
    """2 B ((3+k)G + 8D + (2+2k)T + (2+6k)S), from each network's own forward MACs."""
    from compress.models.discriminators import discriminator
    from compress.models.generators import generator
    from compress.models.loading import load_model, new_model

    teacher, card = load_model(TEACHER)
    student, _ = new_model("wrn16_1", like=card)
    image = (3, 32, 32)
    G, D = macs(generator(32, z_dim=100, width=8), 100), macs(discriminator(8, 32, width=8), *image)
    T, S = macs(teacher, *image), macs(student, *image)
    k, B = moves, 8
    closed = 2 * B * ((3 + k) * G + 8 * D + (2 + 2 * k) * T + (2 + 6 * k) * S)
    found = answer(distill("--dry-run", "--set", f"method.moves={k}", "--json", ood=photos, out=tmp_path / "x"))
    assert found["flops_per_step"] == pytest.approx(closed, rel=0.02)


def test_a_rehearsal_plays_every_stage_of_a_method(tmp_path, photos, monkeypatch) -> None:
    """SSKD asks T about 4 images a step; in its second stage S learns of them too, 3 S each."""
    from compress import rehearsal
    from compress.models.loading import load_model, new_model

    teacher, card = load_model(TEACHER)
    student, _ = new_model("wrn16_1", like=card)
    T, S = (macs(net, 3, 32, 32) for net in (teacher, student))
    first, second = (2 * 8 * 4 * each for each in (T, T + 3 * S))
    seconds = iter([rehearsal.Seconds(1.0, 0.0), rehearsal.Seconds(3.0, 0.0)] * 2)
    monkeypatch.setattr(rehearsal, "timed", lambda method, run: next(seconds))
    words = ["--teacher", TEACHER, "--student", "wrn16_1", "--ood", photos, "--method", "sskd", "--batch-size", 8]
    words += ["--set", "data.views=1", "--out", tmp_path / "x", "--dry-run", "--json"]
    by_steps = answer(run("distill", *words, "--steps", 100))
    assert by_steps["flops_per_step"] == pytest.approx(0.2 * first + 0.8 * second, rel=0.02)
    assert by_steps["seconds"] == pytest.approx(0.2 * 100 + 0.8 * 300)
    by_time = answer(run("distill", *words, "--time-limit", "30s"))
    assert by_time["steps"] == pytest.approx(6 + 24 / 3, abs=1), "6 s of stage 1, 24 s of stage 2"
    assert by_time["flops_per_step"] == pytest.approx((6 * first + 8 * second) / 14, rel=0.02)


def test_a_heavy_step_is_timed_with_fewer_images_and_reckoned_in_proportion(tmp_path, photos, monkeypatch) -> None:
    """A step of the paper's NYUv2 recipe has 64 images and is minutes long on a CPU: four tell as much."""
    from compress import rehearsal

    seen: list[int] = []

    def timed(method, run) -> rehearsal.Seconds:
        seen.append(run.batch_size)
        return rehearsal.Seconds(3.0, 0.0)

    monkeypatch.setattr(rehearsal, "timed", timed)
    light = answer(distill("--dry-run", "--json", ood=photos, out=tmp_path / "x"))
    monkeypatch.setattr(rehearsal, "HEAVY", light["flops_per_step"] * 0.6)
    heavy = answer(distill("--dry-run", "--json", ood=photos, out=tmp_path / "x"))
    assert seen == [8, 4]
    assert (light["timed_images"], heavy["timed_images"]) == (8, 4)
    assert (light["seconds_per_step"], heavy["seconds_per_step"]) == (3.0, 6.0)
    assert heavy["flops_per_step"] == light["flops_per_step"]
    assert "reckoned from 4 of its 8 images" in distill("--dry-run", ood=photos, out=tmp_path / "x").stdout


def test_a_heavy_synthesis_is_timed_with_fewer_images_too(tmp_path, monkeypatch) -> None:
    from compress import rehearsal

    seen: list[int] = []

    def timed(method, run) -> rehearsal.Seconds:
        seen.append(method.images)
        return rehearsal.Seconds(1.0, 2.0)

    monkeypatch.setattr(rehearsal, "timed", timed)
    sets = ["--set", "method.images=32", "--set", "method.width_G=8", "--steps", 25, "--batch-size", 4]
    words = ["distill", "--teacher", TEACHER, "--student", "wrn16_1", "--method", "fastdfkd", *sets]
    words += ["--out", tmp_path / "x", "--dry-run", "--json"]
    light = answer(run(*words))
    monkeypatch.setattr(rehearsal, "HEAVY", light["flops_per_synthesis"] / 10 / 4)  # of its ten iterations
    heavy = answer(run(*words))
    assert seen == [32, 8]
    assert (light["seconds_per_synthesis"], heavy["seconds_per_synthesis"]) == (2.0, 8.0)


def test_a_rehearsal_refuses_what_the_run_would_refuse(tmp_path, photos) -> None:
    result = distill("--dry-run", "--set", "method.patch=3", ood=photos, out=tmp_path / "x")
    assert result.exit_code == 2, result.output
    assert "patch" in result.stderr


def test_a_rehearsal_speaks_to_people(tmp_path, photos) -> None:
    text = distill("--dry-run", ood=photos, out=tmp_path / "x").stdout
    for word in ("GFLOP a step", "MB of activations", "2 steps", "training images at 32x32"):
        assert word in text
    assert TINY[1] == "2"
