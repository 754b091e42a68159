"""Cached teacher logits and folded BatchNorm, from the command line."""

from __future__ import annotations

import pytest
import yaml
from invoking import distill, read_error, read_result

KEEP = ("--set", "method.augment=false", "--set", "method.cache_teacher_logits=true")
FOLD = ("--set", "teachers.0.fold_batchnorm=true")


def test_both_options_train_and_are_recorded(photos, tmp_path) -> None:
    read_result(distill(*KEEP, *FOLD, "--json", ood=photos, out=tmp_path / "run"))
    recipe = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert recipe["teachers"][0]["fold_batchnorm"] is True
    assert recipe["method"]["cache_teacher_logits"] is True


@pytest.mark.parametrize(
    ("settings", "key"),
    [(KEEP[2:], "method.cache_teacher_logits"), ([*FOLD, "--set", "method.bn=1"], "teachers.fold_batchnorm")],
)
def test_incompatible_settings_are_refused(photos, tmp_path, settings, key) -> None:
    assert key in read_error(distill(*settings, ood=photos, out=tmp_path / "run"), 2)


@pytest.mark.slow
def test_cached_logits_lower_estimated_flops(photos, tmp_path) -> None:
    plain, kept = (
        read_result(distill("--set", "method.augment=false", *more, "--dry-run", "--json", ood=photos, out=tmp_path))
        for more in ((), KEEP[2:])
    )
    assert 0 < kept["flops_per_step"] < plain["flops_per_step"]
