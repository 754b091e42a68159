"""Runs whose batch does not fit into memory: micro-batches, warnings and refusals before anything is trained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_training import TEACHER, mosaic, train

from compress.config import json_schema, load_yaml
from compress.data.predictions import call_in_halves
from compress.engine.config import TrainingSchedule
from compress.errors import CompressError, UsageError, is_out_of_memory
from compress.experiments.config import resolve_comparison_config
from compress.training import memory
from compress.training.estimate import batch_size_of
from compress.training.launch import read_worker_error
from compress.training.memory import Memory, StepMemory, estimate_step, fit_memory
from compress.training.recipes import resolve_config
from compress.training.setup import TrainingSetup, prepare_training
from profiles.latency.tensor_memory import LiveTensorTracker

KD = {"teacher": TEACHER, "student": "wrn16_1", "method": "kd", "steps": 2, "device": "cpu", "precision": "32"}


def kd_setup(photos: Path, batch_size: int | str, **settings: object) -> TrainingSetup:
    return prepare_training(*resolve_config(unlabeled=str(photos), batch_size=batch_size, settings=settings, **KD))


@pytest.fixture
def limited(monkeypatch):
    """Return a function that sets the memory of the machine in bytes: free, and at most."""

    def limit(available: float, limit: float = 1e12) -> None:
        monkeypatch.setattr(memory, "device_memory", lambda *_: Memory(int(available), int(limit)))

    return limit


def fit(setup: TrainingSetup, run_dir: Path, **options: object) -> list[str]:
    messages: list[str] = []
    fit_memory(setup, run_dir, devices=1, resume=None, progress=messages.append)
    return messages


def estimated_bytes(setup: TrainingSetup, micro_batch: int | None = None) -> float:
    accelerator = memory.create_accelerator("cpu", "32")
    return estimate_step(setup, accelerator, micro_batch).total(batch_size_of(setup))


def test_estimate_contains_the_tensors_of_a_real_step(photos, tmp_path):
    setup = kd_setup(photos, 16)
    accelerator = memory.create_accelerator("cpu", "32")
    method, _ = memory.build_dry_run(setup, accelerator, images={"unlabeled": 16}, run_dir=tmp_path)
    with LiveTensorTracker() as live:
        method.step()
    tensors = (estimated_bytes(setup) - memory.PROCESS_BYTES) / memory.OVERHEAD
    assert tensors == pytest.approx(live.peak, rel=0.15)


def test_batch_that_fits_is_not_divided(photos, tmp_path, limited):
    limited(1e11)
    setup = kd_setup(photos, "auto")
    assert fit(setup, tmp_path) == []
    assert (setup.config.training.batch_size, setup.config.training.micro_batch) == (128, None)


@pytest.mark.parametrize(
    "share", [0.6, pytest.param(0.8, marks=pytest.mark.slow), pytest.param(0.999, marks=pytest.mark.slow)]
)
def test_batch_is_halved_until_it_fits(photos, tmp_path, limited, share):
    setup = kd_setup(photos, "auto")
    need = estimated_bytes(kd_setup(photos, 128))
    limited(share * need)
    assert len(fit(setup, tmp_path)) == 1
    micro_batch = setup.config.training.micro_batch
    assert setup.config.training.batch_size == 128
    assert isinstance(micro_batch, int)
    assert micro_batch in (64, 32, 16, 8)
    assert estimated_bytes(kd_setup(photos, 128), micro_batch) <= share * need * 1.05


def test_too_large_batch_is_refused_or_announced(photos, tmp_path, limited):
    setup = kd_setup(photos, 4096)
    need = estimated_bytes(setup)
    limited(need / 2, need * 2)
    assert len(fit(setup, tmp_path)) == 1
    limited(need / 2, need / 2)
    with pytest.raises(CompressError, match="--batch-size 1024 would fit") as error:
        fit(kd_setup(photos, 4096), tmp_path)
    assert not isinstance(error.value, UsageError)


def test_no_batch_fits(photos, tmp_path, limited):
    limited(1e6, 1e6)
    for batch_size in ("auto", 64):
        with pytest.raises(CompressError):
            fit(kd_setup(photos, batch_size), tmp_path)


def test_batch_too_small_to_halve_is_refused(photos, tmp_path, limited):
    limited(1e6, 1e6)
    setup = kd_setup(photos, "auto")
    setup.config.training.batch_size = 2
    with pytest.raises(CompressError):
        fit(setup, tmp_path)


def test_absurd_batch_is_estimated_without_its_memory(photos):
    setup = kd_setup(photos, 64)
    setup.config.training.batch_size = 10**9
    assert estimated_bytes(setup) > 1e15


@pytest.mark.slow
def test_run_in_micro_batches_is_recorded_and_continued(photos, tmp_path):
    """The second call would choose the whole batch, but the run has its micro-batch."""
    arguments = mosaic(photos, settings={"training.micro_batch": 4})
    result = train(tmp_path / "run", **arguments)
    assert load_yaml(tmp_path / "run" / "recipe.yaml").get("training.micro_batch") == result.micro_batch == 4
    record = json.loads((tmp_path / "run" / "records.jsonl").read_text().splitlines()[-1])
    assert record["run"]["micro_batch"] == 4
    again = train(tmp_path / "run", **mosaic(photos, settings={"training.micro_batch": "auto"}))
    assert again.steps == result.steps


def test_exhausted_memory_is_a_sentence(photos, tmp_path, monkeypatch):
    def exhaust(*_: object) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")

    monkeypatch.setattr("compress.methods.mosaic.MosaicKD.student_batch", exhaust)
    with pytest.raises(CompressError, match="--batch-size"):
        train(tmp_path / "run", **mosaic(photos))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(), torch.OutOfMemoryError("CUDA out of memory."), OSError(12, "Cannot allocate memory"),
        RuntimeError("std::bad_alloc"), RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)  # fmt: skip
def test_kinds_of_exhausted_memory(error):
    assert is_out_of_memory(error)
    assert not is_out_of_memory(ValueError("out of range"))
    assert is_out_of_memory(RuntimeError("could not create a primitive"))
    assert not is_out_of_memory(RuntimeError("could not create a primitive descriptor for a matmul primitive"))


def test_killed_process_names_the_memory(tmp_path):
    assert "memory" in str(read_worker_error(tmp_path, 0, -9))
    assert "memory" not in str(read_worker_error(tmp_path, 0, -15))


def test_comparisons_and_schemas_accept_auto():
    comparison = resolve_comparison_config(
        teacher=TEACHER, validation="embedded/fashion", methods=["kd"], steps=1, batch_size="auto"
    )
    assert (comparison.training.batch_size, comparison.training.micro_batch) == (None, "auto")
    assert {"const": "auto", "type": "string"} in json_schema(TrainingSchedule)["properties"]["batch_size"]["anyOf"]


def test_exhausted_memory_halves_what_is_predicted():
    sizes: list[int] = []

    def limited_net(x: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        if len(x) > 2:
            raise MemoryError
        return 2 * x

    x = torch.arange(7.0)
    assert torch.equal(call_in_halves(limited_net, x), 2 * x)
    assert sizes[0] == 7
    assert max(size for size in sizes if size <= 2) == 2
    with pytest.raises(ValueError, match="other"):
        call_in_halves(lambda _: (_ for _ in ()).throw(ValueError("other")), x)


def test_fitting_batch():
    need = StepMemory(100.0, 10.0)
    assert [need.fitting(available) for available in (50, 109, 110, 145, 100 + 640)] == [0, 0, 1, 4, 64]


LIMITED_RUN = """
import resource, sys, torch
torch.set_num_threads(1)
from pathlib import Path
from compress.cli import main
from compress.resources import ROOT, read_text
import compress.training.launch, compress.training.memory, compress.training.resolution  # their memory is in use
used = int(read_text(ROOT / "proc/self/statm").split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv.pop(1)),) * 2)
main()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="no limit of the address space")
@pytest.mark.parametrize("megabytes", [900, 1500])
def test_limited_process_ends_well(photos, tmp_path, megabytes):
    """60 to 100 % of what a batch of 512 needs: the run ends in micro-batches, or stops with one sentence."""
    command = [
        sys.executable, "-c", LIMITED_RUN, str(megabytes * 10**6), "distill", "--teacher", TEACHER, "--ood",
        str(photos), "--student", "wrn16_1", "--method", "kd", "--steps", "1", "--batch-size", "auto", "--out",
        str(tmp_path / "run"), "--set", "data.views=64", "--precision", "32",
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert "internal error" not in result.stderr
    assert result.returncode in (0, 1), result.stderr
