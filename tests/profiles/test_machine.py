"""Description of the machine."""

from __future__ import annotations

import getpass
import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from profiles.latency import machine
from profiles.latency.machine import GpuInfo, describe_machine, parse_gpu


def test_machine_description_is_json() -> None:
    result = json.loads(json.dumps(describe_machine()))
    assert result["cores"] >= 1
    assert result["cpu"]
    assert {"python", "torch", "onnxruntime"} <= set(result["versions"])


def test_machine_description_is_anonymous() -> None:
    text = json.dumps(describe_machine())
    assert str(Path.home()) not in text
    assert not platform.node() or platform.node() not in text
    assert getpass.getuser() == "root" or getpass.getuser() not in text


def test_parse_gpu_line() -> None:
    line = "NVIDIA H200, 143771, 570.86.15, 9.0"
    assert parse_gpu(line) == GpuInfo("NVIDIA H200", 143771 * 2**20, "570.86.15", "9.0")
    assert parse_gpu("No devices were found") is None


def test_machine_description_imports_no_torch() -> None:
    code = "import sys, profiles.latency.machine as m; m.describe_machine(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def processors(root: Path, clocks: dict[int, int], governor: str = "performance") -> Path:
    for number, clock in clocks.items():
        folder = root / f"cpu{number}" / "cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_governor").write_text(f"{governor}\n")
        (folder / "scaling_cur_freq").write_text(f"{clock}\n")
    return root


def test_clock_of_usable_processors(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {1, 2}, raising=False)
    root = processors(tmp_path, {0: 4_000_000, 1: 2_400_000, 2: 2_600_000})
    assert machine.clock_mhz(root=root) == 2600
    assert machine.cpu_governor(root) == "performance"
    (root / "cpu2" / "cpufreq" / "scaling_governor").write_text("powersave")
    assert machine.cpu_governor(root) == "performance and powersave"


def test_unknown_clock_is_none(tmp_path) -> None:
    assert machine.clock_mhz(root=tmp_path) is None
    assert machine.cpu_governor(tmp_path) is None


@pytest.mark.parametrize(
    ("full", "short"),
    [
        ("Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", "Intel Xeon Platinum 8481C"),
        ("AMD EPYC 9B14 96-Core Processor", "AMD EPYC 9B14"),
        ("Intel(R) Core(TM) i7-9700K CPU @ 3.60GHz", "Intel Core i7-9700K"),
        ("Apple M2", "Apple M2"),
    ],
)
def test_cpu_name_is_cleaned(monkeypatch, full: str, short: str) -> None:
    monkeypatch.setattr(machine, "cpu_model", lambda: full)
    monkeypatch.setattr(machine, "usable_cores", lambda: 2)
    assert machine.device_name() == f"{short}, 2 cores"


def test_device_name_of_gpu(monkeypatch) -> None:
    monkeypatch.setattr(machine, "open_gpu", lambda uuid=None: None)
    monkeypatch.setattr(machine, "list_gpus", lambda: (GpuInfo("NVIDIA T4", 1, "1", "7.5"),))
    assert machine.device_name("cuda") == machine.device_name("tensorrt") == "NVIDIA T4"
    assert "core" in machine.device_name("openvino")
