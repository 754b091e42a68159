"""int8 by NVIDIA's Model Optimizer (Apache-2.0) instead of ONNX Runtime's quantizer, for NVIDIA's runtimes.

It places Q and DQ for TensorRT by its own rules, symmetric and signed. It leaves weights as fp32 with a Q behind them,
which TensorRT folds, and small products in fp32. It can exclude layers by name, so the accuracy budget works with it;
but it calibrates again for every file. Its entropy calibrator lays out its histograms by the first input: it gets
images one by one, as by its own default (in batches of eight, the error of WRN-16-2 is twice as large).

Its ONNX extra pins older versions of ONNX and ONNX Runtime than it needs, so our extra lists its parts without them.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import cast

import numpy as np
import onnx
from onnx import ModelProto

from exporters.errors import ExportError
from exporters.quantization.calibration import (
    BatchFunction,
    Calibration,
    CalibrationMethod,
    Calibrator,
    image_input,
    no_images_error,
    validated_batches,
)
from exporters.quantization.static import QuantizationSession, Quantizer, Target
from exporters.runtimes.onnxruntime import create_session

#: targets that it places Q and DQ for
TARGETS: tuple[Target, ...] = ("tensorrt", "tensorrt-rtx", "ort-cuda")
#: calibrator -> Model Optimizer's name for it
METHODS: dict[CalibrationMethod, str] = {"entropy": "entropy", "minmax": "max"}
MISSING = 'NVIDIA Model Optimizer is not installed; install it with: pip install "compress-distill[modelopt]".'


def unsupported_reason(target: Target, calibrator: Calibrator) -> str | None:
    """Return why Model Optimizer does not support a target or calibrator, or None."""
    if target not in TARGETS:
        return f"modelopt: found target {target}, expected one of {', '.join(TARGETS)}"
    if calibrator not in ("auto", *METHODS):
        return f"modelopt: found calibrator {calibrator}, expected one of auto, {', '.join(METHODS)}"
    return None


@contextlib.contextmanager
def calibrated_session(
    source: Path, batches: BatchFunction, *, target: Target, calibrator: Calibrator
) -> Iterator[QuantizationSession]:
    """Yield a session as `static.calibrated_session` does. Raise ExportError if it is not installed or supported."""
    if importlib.util.find_spec("modelopt") is None:
        raise ExportError(MISSING)
    reason = unsupported_reason(target, calibrator)
    if reason is not None:
        raise ExportError(f"{reason}.")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        session = ModelOptSession(source, Path(directory), target, batches)
        calibrations: dict[CalibrationMethod, Calibration] = {
            method: Calibration(method, {}, session.images) for method in METHODS
        }
        if calibrator == "auto":
            session.choose_calibration(calibrations, batches)
        else:
            session.calibration = calibrations[cast(CalibrationMethod, calibrator)]
        yield session


class ModelOptSession(QuantizationSession):
    """A preprocessed file with images on disk, to make int8 files that keep different layers in fp32."""

    quantizer: Quantizer = "modelopt"

    def __init__(self, source: Path, directory: Path, target: Target, batches: BatchFunction) -> None:
        super().__init__(source, directory / source.name, target)
        self.directory, self.images = directory, 0
        (model_input,) = inputs = create_session(self.preprocessed).get_inputs()
        self.input, dtype = image_input(inputs)
        (directory / "images").mkdir()
        for batch in validated_batches(batches, dtype, self.preprocessed):
            takes_single = not isinstance(model_input.shape[0], int) or model_input.shape[0] == 1
            for part in np.split(batch, len(batch)) if takes_single else [batch]:
                np.save(directory / "images" / f"{self.images:06d}.npy", part)
                self.images += len(part)
        if not self.images:
            raise no_images_error(source)

    @property
    def scheme(self) -> str:
        return f"Model Optimizer {version('nvidia-modelopt')}: symmetric, signed activations and weights"

    def quantize_graph(self, layers: Collection[str]) -> ModelProto:
        output, quantized = self.preprocessed.with_suffix(".int8.onnx"), set(layers)
        job = {
            "source": str(self.preprocessed), "output": str(output), "images": str(self.directory / "images"),
            "input": self.input, "method": METHODS[self.calibration.method],
            "keep": [name for name in self.layers if name not in quantized],
        }  # fmt: skip
        # Run by path and with -P, so that no directory of the user precedes the installed packages.
        command = [sys.executable, "-P", str(Path(__file__).with_name("modelopt_worker.py"))]
        worker = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, errors="replace")
        if worker.returncode:
            lines = [line.strip() for line in worker.stderr.splitlines() if line.strip()]
            reason = lines[-1] if lines else f"exit code {worker.returncode}"
            raise ExportError(f"{self.source.name}: Model Optimizer failed: {reason}.")
        return onnx.load(output)
