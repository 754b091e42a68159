"""`compress synthesize`: images from a teacher alone, and the estimated cost of synthesis."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from invoking import TEACHER, list_files, read_error, read_result, run

from compress.data import open_images
from compress.engine import run as engine
from compress.methods.cmi import CMI
from compress.methods.fastdfkd import FastDFKD

#: small enough for a second
QUICK = (
    "--set",
    "method.images_per_synthesis=10",
    "--set",
    "method.iterations=2",
    "--device",
    "cpu",
    "--precision",
    "32",
)
SMALL = (*QUICK, "--set", "method.width_G=8", "--set", "method.z_dim=8")


def synthesize(*arguments: object, out: object, count: int = 25, method: str = "fastdfkd", small=SMALL):
    command = ["synthesize", "--teacher", TEACHER, "--method", method, "--count", count, "--out", out]
    return run(*command, *small, *arguments)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Directory of 25 images, and the printed result."""
    folder = tmp_path_factory.mktemp("runs") / "images"
    return folder, read_result(synthesize("--json", out=folder))


def test_synthesize_writes_images_and_preview(made) -> None:
    folder, found = made
    assert (
        found["images"] == sum(found["by_class"].values()) == len(list((folder / "compress-pool").rglob("*.png"))) == 25
    )
    assert found["by_class"].keys() >= {"Trouser", "Ankle boot"}
    assert (found["classes"], found["syntheses"], found["method"]) == (10, 3, "fastdfkd")
    assert Path(found["pool"]) == folder / "compress-pool"
    assert Path(found["preview"]).read_bytes().startswith(b"\x89PNG")


def test_pool_is_labeled_data_set(made) -> None:
    folder, found = made
    images = open_images(str(folder / "compress-pool"), labeled=True)
    assert len(images) == 25
    by_name = {name.partition(" ")[2]: 0 for name in images.class_names or []}
    assert len(by_name) == sum(n > 0 for n in found["by_class"].values())
    assert images.read_image(0).size == (32, 32)


def test_recipe_turns_student_terms_off(made) -> None:
    folder, _ = made
    assert not (folder / "best").exists()
    assert not (folder / "last").exists()
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert recipe["method"]["adv"] == 0
    assert recipe["training"]["steps"] == 3
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all("S" not in line for line in lines)


@pytest.mark.parametrize(
    ("method", "small"), [("deepinversion", QUICK), ("cmi", (*SMALL, "--set", "method.bank_size=20"))]
)
def test_every_synthesizer_works_alone(tmp_path, monkeypatch, method, small) -> None:
    from compress.engine.trainable import TrainableModel

    monkeypatch.setattr(TrainableModel, "forward_eval", lambda *_: pytest.fail("the student was called"))
    found = read_result(synthesize("--json", out=tmp_path / "run", count=12, method=method, small=small))
    assert found["images"] == 12


def test_default_method_is_cmi(tmp_path) -> None:
    arguments = ["--count", 10, *SMALL, "--set", "method.bank_size=20", "--out", tmp_path / "run"]
    result = run("synthesize", "--teacher", TEACHER, *arguments)
    assert result.exit_code == 0, result.stderr
    assert "cmi" in result.stdout
    assert f"--ood {tmp_path / 'run' / 'compress-pool'}" in result.stdout
    assert "100%" in result.stderr


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def test_finished_synthesis_is_not_repeated(made) -> None:
    folder, found = made
    before = {
        name: (folder / name).stat().st_mtime_ns for name in list_files(folder) if name.startswith("compress-pool/")
    }
    assert read_result(synthesize("--json", out=folder))["images"] == found["images"]
    assert before == {name: (folder / name).stat().st_mtime_ns for name in before}


def test_interrupted_synthesis_resumes_exactly(made, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(engine, "SECONDS_BETWEEN_SAVES", 0.0)
    whole, calls = FastDFKD.synthesize, []

    def dying(self):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("power cut")
        return whole(self)

    with monkeypatch.context() as patch:
        patch.setattr(FastDFKD, "synthesize", dying)
        assert synthesize(out=tmp_path / "run").exit_code == 1
    assert len(content(tmp_path / "run" / "compress-pool")) == 20
    calls.clear()
    monkeypatch.setattr(FastDFKD, "synthesize", lambda self: calls.append(1) or whole(self))
    assert read_result(synthesize("--json", "--resume", out=tmp_path / "run"))["images"] == 25
    assert len(calls) == 1
    assert content(tmp_path / "run" / "compress-pool") == content(made[0] / "compress-pool")


@pytest.mark.slow
def test_other_image_count_needs_fresh(tmp_path) -> None:
    read_result(synthesize("--json", out=tmp_path / "run", count=15))
    more = read_error(synthesize(out=tmp_path / "run", count=35), 2)
    assert "training.steps" in more
    same_steps = synthesize(out=tmp_path / "run", count=20)
    assert same_steps.exit_code == 2
    assert "15" in same_steps.stderr
    assert read_result(synthesize("--json", "--fresh", "--seed", 1, out=tmp_path / "run", count=5))["images"] == 5


@pytest.mark.parametrize("method", ["mosaic", "kd", "dafl", "supervised"])
def test_method_without_pool_is_refused(tmp_path, method) -> None:
    error = read_error(synthesize(out=tmp_path / "run", method=method, small=()), 2)
    assert all(name in error for name in (method, "deepinversion", "cmi", "fastdfkd"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--set", "method.adv=1"], "method.adv"),
        (["--set", "method.student_steps=2"], "method.student_steps"),
        (["--method", "nonsense"], "nonsense"),
        (["--set", "method.iteration=3"], "iteration"),
        (["--teacher", "embedded/scenes_deeplab"], "classification"),
    ],
)
def test_wrong_synthesis_setting_is_named(tmp_path, arguments, expected) -> None:
    command = ["--teacher", TEACHER, "--method", "fastdfkd", "--out", tmp_path / "run", *arguments]
    assert expected in read_error(run("synthesize", *command), 2)
    assert not (tmp_path / "run").exists()


def test_distillation_recipe_can_synthesize(tmp_path) -> None:
    arguments = ["--recipe", "fastdfkd-cifar100", "--teacher", TEACHER, "--count", 10, *SMALL]
    read_result(run("synthesize", *arguments, "--out", tmp_path / "run", "--json"))
    recipe = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert recipe["data"]["validation"] is None
    assert recipe["training"]["save_every"] is None
    assert recipe["method"]["bn_momentum"] == 0.9


def test_student_learns_from_pool(made, tmp_path) -> None:
    folder, _ = made
    common = ["--student", "wrn16_1", "--steps", 1, "--batch-size", 8, "--out", tmp_path / "run", "--json"]
    command = ["distill", "--teacher", TEACHER, "--method", "kd", "--ood", folder / "compress-pool"]
    assert read_result(run(*command, *common))["steps"] == 1


@pytest.mark.slow
def test_two_processes_share_synthesis(tmp_path) -> None:
    from test_processes import finish

    arguments = ["synthesize", "--teacher", TEACHER, "--method", "fastdfkd", "--count", 25, "--out", "run", *SMALL]
    finish(*arguments, "--devices", 2, cwd=tmp_path)
    names = [path.name for path in (tmp_path / "run" / "compress-pool").rglob("*.png")]
    assert sorted(name[0] for name in names) == ["0"] * 13 + ["1"] * 12


# What a run with a pool will cost.


def dry_run(tmp_path, *arguments: object, method: str = "fastdfkd", steps: tuple = ("--steps", 20)) -> dict:
    small = QUICK if method == "deepinversion" else SMALL
    command = ["distill", "--teacher", TEACHER, "--student", "wrn16_1", "--method", method, "--batch-size", 8]
    bank = ("--set", "method.bank_size=20", "--set", "method.negatives=10") if method == "cmi" else ()
    return read_result(run(*command, *small, *bank, *steps, *arguments, "--out", tmp_path / "x", "--dry-run", "--json"))


@pytest.mark.parametrize(
    "method", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("deepinversion", "cmi")), "fastdfkd"]
)
def test_dry_run_counts_syntheses(tmp_path, monkeypatch, method) -> None:
    monkeypatch.chdir(tmp_path)
    found = dry_run(tmp_path, "--set", "method.student_steps=8", method=method)
    assert list(tmp_path.iterdir()) == []
    assert found["syntheses"] == (20 if method == "fastdfkd" else 3)  # FastDFKD's warm-up is twenty of them
    learned = 0 if method == "fastdfkd" else 20
    expected = learned * found["seconds_per_step"] + found["syntheses"] * found["seconds_per_synthesis"]
    assert found["seconds"] == pytest.approx(expected)
    assert found["flops_per_synthesis"] > 0


@pytest.mark.slow
def test_dry_run_flops_match_formula(tmp_path) -> None:
    """A step: T + 3S an image. An iteration on pixels: T forward, and back to the image; of S the same.

    Without the statistics, whose matrix products are work too.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from compress.models.loading import load_model
    from compress.models.registry import build_model_like

    def macs(net: torch.nn.Module) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net.eval()(torch.zeros(1, 3, 32, 32))
        return counter.get_total_flops() // 2

    teacher, card = load_model(TEACHER)
    T, S = macs(teacher), macs(build_model_like("wrn16_1", like=card)[0])
    for iterations in (2, 1000):
        options = ["--set", f"method.iterations={iterations}", "--set", "method.bn=0"]
        found = dry_run(tmp_path, *options, method="deepinversion")
        assert found["flops_per_step"] == pytest.approx(2 * 8 * (T + 3 * S), rel=0.02)
        assert found["flops_per_synthesis"] == pytest.approx(2 * 10 * iterations * 2 * (T + S), rel=0.05)


@pytest.mark.slow
def test_dry_run_fills_memory_bank(tmp_path) -> None:
    """The projection of what is remembered is most of the work, and none of it at the beginning of a run."""
    small, large = (
        dry_run(tmp_path, "--set", "method.bank_size=900", "--set", f"method.negatives={n}", method="cmi")
        for n in (1, 900)
    )
    assert large["flops_per_synthesis"] > 1.2 * small["flops_per_synthesis"]
    assert small["state_bytes"] == large["state_bytes"] > 4 * 900 * 2


def test_time_limit_counts_both_steps(tmp_path) -> None:
    options = ["--set", "method.warmup=2", "--set", "method.student_steps=5"]
    found = dry_run(tmp_path, *options, steps=("--time-limit", "20s"))
    after = found["steps"] - 2
    assert found["syntheses"] == 2 + -(-after // 5)
    expected = after * found["seconds_per_step"] + found["syntheses"] * found["seconds_per_synthesis"]
    assert found["seconds"] == pytest.approx(expected)
    last = found["seconds_per_step"] + found["seconds_per_synthesis"]
    assert 20 <= found["seconds"] <= 20 + last


def test_folded_batchnorm_is_refused(tmp_path) -> None:
    command = [
        "distill",
        "--teacher",
        TEACHER,
        "--steps",
        1,
        "--out",
        tmp_path / "x",
        "--set",
        "teachers.0.fold_batchnorm=true",
    ]
    error = read_error(run(*command, "--method", "cmi", "--set", "method.bn=0"), 2)
    assert "teachers.fold_batchnorm" in error
    assert CMI.uses[-1] == "batchnorm"
