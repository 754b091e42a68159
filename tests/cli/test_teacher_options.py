"""The two options that ask the teacher for less, by the command line."""

from __future__ import annotations

import pytest
import yaml
from invoking import answer, distill, refusal

KEEP = ("--set", "method.augment=false", "--set", "method.keep_answers=true")
FOLD = ("--set", "teachers.0.fold=true")


def test_both_together_train_and_the_recipe_remembers_them(photos, tmp_path) -> None:
    answer(distill(*KEEP, *FOLD, "--json", ood=photos, out=tmp_path / "run"))
    recipe = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert recipe["teachers"][0]["fold"] is True
    assert recipe["method"]["keep_answers"] is True


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (KEEP[2:], "method.keep_answers: every picture is changed anew"),
        ([*FOLD, "--set", "method.bn=1"], "teachers.fold: found with method.bn"),
    ],
)
def test_what_does_not_go_together_is_refused(photos, tmp_path, settings, said) -> None:
    talk = refusal(distill(*settings, ood=photos, out=tmp_path / "run"), 2)
    assert talk.startswith(said)


def test_the_cost_of_kept_answers_can_be_estimated(photos, tmp_path) -> None:
    plain, kept = (
        answer(distill("--set", "method.augment=false", *more, "--dry-run", "--json", ood=photos, out=tmp_path))
        for more in ((), KEEP[2:])
    )
    assert 0 < kept["flops_per_step"] < plain["flops_per_step"]
