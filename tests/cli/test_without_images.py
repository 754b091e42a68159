"""Methods without images, from the command line to the student."""

from __future__ import annotations

import pytest
from invoking import TEACHER, read_result, run

SMALL = (
    "--student", "wrn16_1", "--batch-size", 8, "--precision", 32, "--device", "cpu",
    "--set", "method.width_G=8", "--set", "method.z_dim=8",
)  # fmt: skip
METHODS = ("dafl", "zskt", "dfad", "dfq")


@pytest.mark.parametrize("method", METHODS)
def test_distill_without_images_trains_student(tmp_path, clothes, method) -> None:
    student_steps = () if method == "dafl" else ("--set", "method.student_steps=1")
    command = ("distill", "--teacher", TEACHER, "--method", method, *SMALL, *student_steps)
    found = read_result(run(*command, "--steps", 2, "--val", clothes, "--out", tmp_path / "out", "--json"))
    assert found["steps"] == 2
    assert 0 <= found["metrics"]["accuracy"] <= 1
    assert (tmp_path / "out" / "best" / "model.safetensors").exists()
    assert (tmp_path / "out" / "compress-synthetic.png").exists()
    assert "unlabeled: null" in (tmp_path / "out" / "recipe.yaml").read_text()


@pytest.mark.parametrize(
    "method", [METHODS[0], *(pytest.param(method, marks=pytest.mark.slow) for method in METHODS[1:])]
)
def test_dry_run_without_images_estimates_cost(tmp_path, method) -> None:
    for ending in (("--steps", 7), ("--time-limit", "60s")):
        command = ("distill", "--teacher", TEACHER, "--method", method, *SMALL, *ending)
        found = read_result(run(*command, "--dry-run", "--json"))
        assert found["training_images"] == 0
        assert found["steps"] >= 1
        assert found["flops_per_step"] > 0
