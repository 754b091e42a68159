"""Energy meters with fake RAPL files and a fake NVML."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from profiles.latency import energy, gpu
from profiles.latency.gpu import NvmlDevice, select_device


def zone(root: Path, name: str, what: str, count: int = 0, limit: int = 1_000_000) -> Path:
    folder = root / name
    folder.mkdir()
    for file, text in {"name": what, "energy_uj": count, "max_energy_range_uj": limit}.items():
        (folder / file).write_text(f"{text}\n")
    return folder


def test_rapl_packages_are_summed(tmp_path: Path) -> None:
    zones = [zone(tmp_path, f"intel-rapl:{i}", f"package-{i}") for i in range(2)]
    zone(tmp_path, "intel-rapl:0:0", "core")
    zone(tmp_path, "intel-rapl:2", "psys")
    result = energy.open_energy_meter("cpu", root=tmp_path)
    assert result is not None
    assert (result.source, result.read_delta()) == ("RAPL package", None)
    for path, count in zip(zones, (300_000, 200_000), strict=True):
        (path / "energy_uj").write_text(str(count))
    assert result.read_delta() == pytest.approx(0.5)
    assert result.read_delta() == 0


def test_rapl_counter_may_wrap(tmp_path: Path) -> None:
    path = zone(tmp_path, "intel-rapl:0", "package-0", count=999_000, limit=999_999)
    result = energy.open_energy_meter("cpu", root=tmp_path)
    assert result is not None
    result.read_delta()
    (path / "energy_uj").write_text("1000")
    assert result.read_delta() == pytest.approx(0.002)


def test_failed_counter_gives_no_energy(tmp_path: Path) -> None:
    path = zone(tmp_path, "intel-rapl:0", "package-0")
    result = energy.open_energy_meter("cpu", root=tmp_path)
    assert result is not None
    result.read_delta()
    (path / "energy_uj").write_text("")
    assert result.read_delta() is None
    (path / "energy_uj").write_text("5")
    assert result.read_delta() is None
    assert result.read_delta() == 0


def test_unreadable_counters_are_no_meter(tmp_path: Path) -> None:
    assert energy.open_energy_meter("cpu", root=tmp_path / "gone") is None
    (zone(tmp_path, "intel-rapl:0", "package-0") / "energy_uj").unlink()
    assert energy.open_energy_meter("cpu", root=tmp_path) is None


class Refusal(Exception):
    pass


class Library(SimpleNamespace):
    """Stands in for NVIDIA's management library."""

    NVMLError = Refusal

    def __init__(self, count: int = 1, **outputs: Any) -> None:
        super().__init__(outputs=outputs, count=count)

    def nvmlDeviceGetCount(self) -> int:
        return self.count

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        return f"number {index}"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid == "GPU-unknown":
            raise Refusal
        return uuid

    def __getattr__(self, name: str) -> Any:
        if name.startswith("nvmlDeviceGet") and name not in self.outputs:
            raise AttributeError(name)

        def output(handle: str, *_: object) -> Any:
            result = self.outputs[name]
            if isinstance(result, Exception):
                raise result
            return next(result) if hasattr(result, "__next__") else result

        return output


def test_nvml_meter_reads_gpu_energy(monkeypatch) -> None:
    library = Library(nvmlDeviceGetTotalEnergyConsumption=iter([0, 1000, 3500]))
    monkeypatch.setattr(energy, "open_gpu", lambda uuid=None: NvmlDevice(library, "one"))
    result = energy.open_energy_meter("cuda")
    assert result is not None
    assert (result.source, result.read_delta()) == ("NVML", None)
    assert result.read_delta() == pytest.approx(2.5)


def test_gpu_without_counter_has_no_meter(monkeypatch) -> None:
    for library in (Library(nvmlDeviceGetTotalEnergyConsumption=Refusal()), Library()):
        monkeypatch.setattr(energy, "open_gpu", lambda uuid=None, library=library: NvmlDevice(library, "one"))
        assert energy.open_energy_meter("cuda") is None
    monkeypatch.setattr(energy, "open_gpu", lambda uuid=None: None)
    assert energy.open_energy_meter("cuda") is None


def test_nvml_device_queries() -> None:
    mask = 0x04 | 0x20 | 0x40 | 0x01  # the last is idleness
    outputs = {"nvmlDeviceGetCurrentClocksThrottleReasons": mask, "nvmlDeviceGetClockInfo": 1980}
    one = NvmlDevice(Library(nvmlDeviceGetName=b"NVIDIA H200", **outputs), "one")
    assert (one.read_name(), one.read_clock_mhz(), one.throttle_reason()) == (
        "NVIDIA H200",
        1980.0,
        "its power limit and its temperature",
    )
    silent = NvmlDevice(Library(), "one")
    assert (silent.read_name(), silent.read_clock_mhz(), silent.throttle_reason()) == (None, None, "")


def test_gpu_is_selected_by_uuid(monkeypatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)

    def handle(uuid: str | None, count: int) -> str | None:
        result = gpu.open_gpu(uuid, find=lambda: Library(count))
        return None if result is None else result.handle

    assert handle(None, 1) == "number 0"
    assert handle(None, 2) is None
    assert handle("a", 2) == handle("GPU-a", 2) == "GPU-a"
    assert handle("unknown", 2) is None
    assert gpu.open_gpu(find=lambda: None) is None


@pytest.mark.parametrize(
    ("environment", "count", "expected"),
    [
        ({}, 1, 0),
        ({}, 0, None),
        ({}, 4, None),
        ({"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, 4, 0),
        ({"CUDA_VISIBLE_DEVICES": "GPU-b,GPU-a"}, 4, "GPU-b"),
        ({"CUDA_VISIBLE_DEVICES": "3,1"}, 4, None),
        ({"CUDA_VISIBLE_DEVICES": "3,1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, 4, 3),
        ({"CUDA_VISIBLE_DEVICES": ""}, 1, None),
        ({"CUDA_VISIBLE_DEVICES": "7", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, 4, None),
    ],
)
def test_ambiguous_first_gpu_is_none(environment, count: int, expected) -> None:
    assert select_device(environment, count) == expected


@pytest.mark.gpu
def test_real_gpu_has_name_and_clock() -> None:
    result = gpu.open_gpu()
    assert result is not None
    assert result.read_name()
    assert (result.read_clock_mhz() or 0) > 0
