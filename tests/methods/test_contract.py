"""Every method fulfills the same contract."""

from __future__ import annotations

import contract
import pytest
import tiny
from tiny import tiny_method, tiny_run

from compress.config import field_descriptions, setting_types
from compress.engine.trainer import train
from compress.methods import METHODS
from compress.tasks import TASKS
from compress.training.setup import TEACHER_SIGNALS, incompatibility_reason

PRECISIONS = ("32", pytest.param("bf16", marks=pytest.mark.slow))
#: every method with every task that it is made for
PAIRS = [(name, task) for name in METHODS for task in METHODS[name].tasks]
each = pytest.mark.parametrize("name", METHODS)
each_task = pytest.mark.parametrize(("name", "task"), PAIRS)


@pytest.mark.parametrize(
    ("name", "task", "precision"),
    [
        *((name, task, "32") for name, task in PAIRS),
        *((name, "classification", "bf16") for name in METHODS),
        *(
            pytest.param(name, task, precision, marks=pytest.mark.slow)
            for name, task in PAIRS
            for precision in ("bf16", "16")  # the latter is for GPUs, but tests its scaler
            if (task, precision) != ("classification", "bf16")
        ),
    ],
)
def test_run_resumes_bit_exactly(tmp_path, name, precision, task):
    contract.assert_resumes_exactly(tmp_path, name, precision, task=task)


@each
def test_run_with_ema_resumes_bit_exactly(tmp_path, name):
    contract.assert_resumes_exactly(tmp_path, name, "32", ema_decay=0.9, validate=tiny.score_class_0, evaluate_every=1)


@each
@pytest.mark.parametrize("precision", PRECISIONS)
def test_run_with_logit_cache_resumes_bit_exactly(tmp_path, name, precision):
    if "cache_teacher_logits" in setting_types(METHODS[name]):
        kept = {"augment": False, "cache_teacher_logits": True}
        contract.assert_resumes_exactly(tmp_path, name, precision, kept)


@pytest.mark.parametrize("precision", PRECISIONS)
@each_task
def test_student_moves_and_teacher_stays(tmp_path, name, precision, task):
    contract.assert_trains_student_only(tmp_path, name, precision, task)


@each_task
def test_run_with_color_jitter_resumes_bit_exactly(tmp_path, name, task):
    if "color_jitter" in setting_types(METHODS[name]):
        contract.assert_resumes_exactly(tmp_path, name, "32", {"color_jitter": True}, task=task)


@each
def test_saturated_teacher_gives_no_nan(tmp_path, name):
    """p log p is NaN if a probability underflows, as in the published code of several methods."""
    if METHODS[name].teachers:
        contract.assert_survives_saturated_teacher(tmp_path, name)


@each
def test_checkpoint_holds_plain_values(tmp_path, name):
    contract.assert_saves_plain_values(tmp_path, name)


@each
def test_seed_determines_run(tmp_path, name):
    ends = []
    for i, seed in enumerate((3, 3, 4)):
        run = tiny_run(tmp_path / str(i), name, steps=2, seed=seed)
        train(tiny_method(name), run)
        ends.append(tiny.final_state(run))
    assert tiny.state_differences(ends[0], ends[1], ignore=contract.CLOCK) == []
    assert any("trainables/S/net" in path for path in tiny.state_differences(ends[0], ends[2]))


@each
def test_settings_have_descriptions(name):
    assert field_descriptions(METHODS[name]).keys() == setting_types(METHODS[name]).keys()


@each
def test_method_declares_requirements(name):
    method = METHODS[name]
    assert method.__doc__
    assert method.__doc__.strip().endswith(".")
    assert method.teachers in (0, 1)
    assert set(method.needs) <= {"unlabeled", "labeled"}
    assert set(tiny_method(name).uses) <= TEACHER_SIGNALS.keys()
    assert method.batch_size > 0


@each
@pytest.mark.parametrize("task", TASKS)
def test_unsupported_task_is_rejected(name, task):
    problem = incompatibility_reason(name, tiny_method(name), task, None)
    assert (problem is None) == (task in METHODS[name].tasks)
    assert problem is None or name in problem
