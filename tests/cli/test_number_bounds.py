"""Numbers that no machine can do are refused at once, in a sentence."""

from __future__ import annotations

import pytest
from invoking import read_error, run

from compress.errors import UsageError
from compress.experiments.config import Resources
from compress.experiments.runner import start_executor
from compress.training.launch import check_processes

DISTILL = ("distill", "--teacher", "embedded/fashion_wrn16_2", "--ood", "embedded/photos", "--method", "kd")
HUGE = "1" + "0" * 30


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("--seed", [str(2**64), str(2**48), "-1", "9" * 5000]),
        ("--steps", [HUGE, "0", "9" * 5000]),
        ("--batch-size", ["1000000000", HUGE]),
        ("--devices", ["1000000000", HUGE]),
        ("--restarts", ["1000000000", HUGE, "-1"]),
        ("--time-limit", ["inf", "nan", "1e400", "9" * 400 + "s", "9" * 12 + "h"]),
        ("--epochs", ["inf", "nan", "1e400", "1e300"]),
        ("--patch-size", [HUGE, "9" * 5000, "²"]),
        ("--classes", ["2000000000", HUGE]),
        ("--ood-subset", [HUGE]),
    ],
)
def test_absurd_option_of_distill_is_refused(tmp_path, option: str, values: list[str]):
    for value in values:
        length = () if option in ("--steps", "--time-limit", "--epochs") else ("--steps", "1")
        read_error(run(*DISTILL, *length, option, value, "--out", tmp_path / "out"), 2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("bench", "wrn16_1", "--duration", "9" * 400), ("bench", "wrn16_1", "--threads", HUGE),
        ("train", "--image-size", "9" * 5000), ("export", "wrn16_1", "--max-drop", "nan"),
        ("eval", "wrn16_1", "--data", "x", "--max-unreadable", "nan"), ("report", "x", "--max-latency", "inf"),
        ("demo", "--seed", str(2**64)), ("synthesize", "--count", HUGE), ("sweep", "--seeds", HUGE),
    ],
)  # fmt: skip
def test_absurd_option_of_other_commands_is_refused(arguments: tuple[str, ...]):
    read_error(run(*arguments), 2)


@pytest.mark.parametrize(("workers", "on"), [(10**9, None), (10**9, "auto"), (-1, None)])
def test_absurd_number_of_workers_is_refused(workers: int, on: str | None):
    with pytest.raises(UsageError), start_executor(workers, on, resources=Resources()):
        pass


@pytest.mark.parametrize("numbers", [(0, 0), (10**9, 0), (1, -1), (1, 10**9)])
def test_absurd_number_of_processes_is_refused(numbers: tuple[int, int]):
    with pytest.raises(UsageError):
        check_processes(*numbers)
