"""Recipes of sweeps and settings of comparisons."""

from __future__ import annotations

import re
from typing import Any

import pytest

from compress import config
from compress.errors import UsageError
from compress.experiments.config import SweepConfig, load_sweep_config, resolve_comparison_config, resolve_sweep_config

RECIPE = """
teachers: [{model: embedded/fashion_wrn16_2}]
data: {validation: embedded/fashion, unlabeled: embedded/photos}
students: [wrn16_1, wrn16_2]
methods:
  kd:
  mosaic: {bn: 10}
training: {time_limit: 1.5m}
precisions: [fp32, int8]
"""


def load(more: str = "", *, without: str = "") -> SweepConfig:
    text = re.sub(f"^{without}:.*\n", "", RECIPE, flags=re.M) if without else RECIPE
    return load_sweep_config(config.parse_yaml(text + more, "mine.yaml"))


def test_sweep_config_round_trip() -> None:
    sweep = load("seeds: [3, 1]\nlimits: {size: 1.5MB}\nduration: 2s\nresources: {cpus: 4, gpus: 0.5}\n")
    assert sweep.training.time_limit == 90
    assert sweep.limits.size == 1_500_000
    assert sweep.duration == 2
    assert sweep.seed_list == [3, 1]
    assert sweep.method_settings == {"kd": {}, "mosaic": {"bn": 10}}
    assert sweep.file_types == [("onnx", "fp32"), ("onnx", "int8")]
    assert load_sweep_config(config.parse_yaml(config.dump_yaml(sweep))) == sweep


def test_methods_as_list() -> None:
    text = RECIPE.replace("methods:\n  kd:\n  mosaic: {bn: 10}", "methods: [kd, mosaic, kd]")
    sweep = load_sweep_config(config.parse_yaml(text + "seeds: 2\n"))
    assert sweep.method_settings == {"kd": {}, "mosaic": {}}
    assert sweep.seed_list == [0, 1]


@pytest.mark.parametrize(
    ("more", "without", "named"),
    [
        ("", "teachers", "teachers"),
        ("stundents: [wrn16_1]\n", "", "mine.yaml:10: stundents"),
        ("students: [wrn16_1, wrn16_l]\n", "students", "students.1"),
        ("students: []\n", "students", "mine.yaml:9: students"),
        ("precisions: [int4]\n", "precisions", "'int4'"),
        ("formats: [onxx]\n", "", "mine.yaml:10: formats.0"),
        ("formats: []\n", "", "formats"),
        ("seeds: 0\n", "", "seeds"),
        ("training: {time_limit: 90x}\n", "training", "'90x'"),
        ("training: {steps: 5, time_limit: 90s}\n", "training", "mine.yaml:9: training"),
        ("training: {}\n", "training", "training"),
        ("training: {step: 5}\n", "training", "training.step"),
        ("training: {steps: 5, seed: 3}\n", "training", "training.seed"),
        ("training: {epochs: 5, steps: 1}\n", "training", "training.epochs"),
        ("pruning: {kind: medan}\n", "", "'medan'"),
        ("limits: {size: 1 apple}\n", "", "limits.size"),
        ("resources: {gpus: -1}\n", "", "resources.gpus"),
        ("data: {unlabeled: embedded/photos}\n", "data", "data.validation"),
    ],
)
def test_invalid_recipe_names_setting(more: str, without: str, named: str) -> None:
    with pytest.raises(UsageError, match=re.escape(named)):
        load(more, without=without)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [("mosaic: {bn", "mosiac: {bn", "'mosaic'"), ("{bn: 10}", "{bm: 10}", "methods.mosaic.bm"), ("10", "-1", "-1")],
)
def test_invalid_method_names_line(old: str, new: str, named: str) -> None:
    with pytest.raises(UsageError, match=re.escape(named)) as caught:
        load_sweep_config(config.parse_yaml(RECIPE.replace(old, new), "mine.yaml"))
    assert "mine.yaml:7" in str(caught.value)


def test_settings_replace_recipe(tmp_path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE)
    arguments = {
        "students": ["wrn40_1"], "methods": ["mosaic", "dafl"], "precisions": ["fp16"], "steps": 7,
        "seeds": 2, "max_size": 1000, "prune": "asha", "formats": None, "teacher": "mine.pt",
    }  # fmt: skip
    sweep = resolve_sweep_config(path, settings=["dafl.z_dim=64", "data.views=1"], **arguments)
    assert sweep.method_settings == {"mosaic": {"bn": 10}, "dafl": {"z_dim": 64}}
    assert (sweep.students, sweep.precisions, sweep.seeds) == (["wrn40_1"], ["fp16"], 2)
    assert (sweep.training.steps, sweep.training.time_limit) == (7, None)
    assert (sweep.data.views, sweep.limits.size, sweep.pruning.kind) == (1, 1000, "asha")
    assert sweep.teachers[0].model == "mine.pt"


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("mosiac.bn=1", "'mosaic'"),
        ("fitnet.hint=1", "fitnet"),
        ("kd.tempreature=1", "'temperature'"),
        ("kd.temperature=-1", "kd.temperature"),
        ("data.veiws=1", "'views'"),
        ("method.bn=1", "METHOD"),
        ("training.seed=3", "training.seed"),
    ],
)
def test_invalid_override_is_refused(override: str, named: str) -> None:
    arguments: dict[str, Any] = {"teacher": "x", "validation": "y", "steps": 2, "methods": "kd,mosaic"}
    assert resolve_comparison_config(**arguments).method_settings == {"kd": {}, "mosaic": {}}
    with pytest.raises(UsageError, match=re.escape(named)):
        resolve_comparison_config(settings=[override], **arguments)


def test_same_steps_needs_time_limit() -> None:
    arguments: dict[str, Any] = {"teacher": "x", "validation": "y", "methods": ["kd"], "same_steps": True}
    with pytest.raises(UsageError, match="same_steps"):
        resolve_comparison_config(**arguments, steps=2)
    assert resolve_comparison_config(**arguments, time_limit=2.0).same_steps


def test_benchmark_settings_are_valid() -> None:
    from benchmarks.compare import SETTINGS, format_settings

    arguments: dict[str, Any] = {"teacher": "x", "validation": "y", "steps": 2, "methods": list(SETTINGS)}
    comparison = resolve_comparison_config(settings=format_settings(list(SETTINGS))[1::2], **arguments)
    assert comparison.method_settings == SETTINGS
