"""Export of networks to ONNX, OpenVINO and TensorRT, with verification, and runners for the exported files."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exporters.api import export
    from exporters.artifacts import AccuracyBudget, ExportResult, ExportSettings, Int8Options
    from exporters.errors import ExportError, RejectedError, RunnerError, RuntimeUnavailableError
    from exporters.loading import load
    from exporters.onnx_export import OnnxExportResult, export_onnx
    from exporters.parity import Parity, Tolerance
    from exporters.pre_post import Preprocessing
    from exporters.runtimes import Runner
    from exporters.tensorrt.options import BuildOptions, ShapeRanges

#: public name -> its module; modules are imported on first use, so `import exporters` is fast
PUBLIC = {
    "AccuracyBudget": "exporters.artifacts",
    "BuildOptions": "exporters.tensorrt.options",
    "ExportError": "exporters.errors",
    "ExportResult": "exporters.artifacts",
    "ExportSettings": "exporters.artifacts",
    "Int8Options": "exporters.artifacts",
    "OnnxExportResult": "exporters.onnx_export",
    "Parity": "exporters.parity",
    "Preprocessing": "exporters.pre_post",
    "RejectedError": "exporters.errors",
    "Runner": "exporters.runtimes",
    "RunnerError": "exporters.errors",
    "RuntimeUnavailableError": "exporters.errors",
    "ShapeRanges": "exporters.tensorrt.options",
    "Tolerance": "exporters.parity",
    "export": "exporters.api",
    "export_onnx": "exporters.onnx_export",
    "load": "exporters.loading",
}
__all__ = [
    "AccuracyBudget",
    "BuildOptions",
    "ExportError",
    "ExportResult",
    "ExportSettings",
    "Int8Options",
    "OnnxExportResult",
    "Parity",
    "Preprocessing",
    "RejectedError",
    "Runner",
    "RunnerError",
    "RuntimeUnavailableError",
    "ShapeRanges",
    "Tolerance",
    "export",
    "export_onnx",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module 'exporters' has no attribute {name!r}")
    return getattr(importlib.import_module(PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
