"""Cost of networks: FLOPs, latency, memory and energy; records of measurements and reports of them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from profiles.flops.counter import FlopCount, count_flops
    from profiles.flops.input_size import InputSizeCost, count_flops_by_size
    from profiles.flops.onnx import OnnxCost, count_onnx_flops
    from profiles.latency.benchmark import Latency
    from profiles.latency.cases import benchmark
    from profiles.latency.machine import describe_machine
    from profiles.latency.tensor_memory import MemoryUse, measure_memory
    from profiles.records import Record, append_records, read_records
    from profiles.report.build import ReportResult, write_report
    from profiles.report.recommendation import Limits

#: public name -> its module; modules are imported on first use, so `import profiles` is fast
PUBLIC = {
    "FlopCount": "profiles.flops.counter",
    "InputSizeCost": "profiles.flops.input_size",
    "Latency": "profiles.latency.benchmark",
    "Limits": "profiles.report.recommendation",
    "MemoryUse": "profiles.latency.tensor_memory",
    "OnnxCost": "profiles.flops.onnx",
    "Record": "profiles.records",
    "ReportResult": "profiles.report.build",
    "append_records": "profiles.records",
    "benchmark": "profiles.latency.cases",
    "count_flops": "profiles.flops.counter",
    "count_flops_by_size": "profiles.flops.input_size",
    "count_onnx_flops": "profiles.flops.onnx",
    "describe_machine": "profiles.latency.machine",
    "measure_memory": "profiles.latency.tensor_memory",
    "read_records": "profiles.records",
    "write_report": "profiles.report.build",
}
__all__ = [
    "FlopCount",
    "InputSizeCost",
    "Latency",
    "Limits",
    "MemoryUse",
    "OnnxCost",
    "Record",
    "ReportResult",
    "append_records",
    "benchmark",
    "count_flops",
    "count_flops_by_size",
    "count_onnx_flops",
    "describe_machine",
    "measure_memory",
    "read_records",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name in PUBLIC:
        return getattr(importlib.import_module(PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *PUBLIC})
