"""int8 by NVIDIA's Model Optimizer (Apache-2.0) in the place of ONNX Runtime's quantiser, for NVIDIA's runtimes.

It lays Q and DQ where TensorRT wants them by rules of its own, symmetric and signed, and leaves the weights as fp32
with a Q behind them, which TensorRT folds, and small products in fp32. Its ranges are the entropy calibrator's unless
told otherwise. It knows names to leave out, so the accuracy budget works with it; but it calibrates for every file.

Its extra for ONNX pins older versions of ONNX and ONNX Runtime than it needs: ours names its parts without them.
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

import numpy as np
import onnx
from onnx import ModelProto

from exporters.calibration import Batches, Calibration, Calibrator, Method, checked, taken
from exporters.failure import ExportError
from exporters.int8 import Quantizer, Subject, Target
from exporters.runtime import open_session

#: whose runtimes it lays Q and DQ for
TARGETS: tuple[Target, ...] = ("tensorrt", "tensorrt-rtx", "ort-cuda")
#: calibrator -> ours by that name, and its own
METHODS: dict[Calibrator, tuple[Method, str]] = {
    "auto": ("entropy", "entropy"), "entropy": ("entropy", "entropy"), "minmax": ("minmax", "max"),
}  # fmt: skip
MISSING = 'NVIDIA Model Optimizer is not installed; install it with: pip install "compress[modelopt]".'


def objection(target: Target, calibrator: Calibrator) -> str | None:
    """What it cannot be asked for, and what can."""
    if target not in TARGETS:
        return f"modelopt quantises for NVIDIA's runtimes, not for {target}; expected one of {', '.join(TARGETS)}"
    if calibrator not in METHODS:
        return f"modelopt has no calibrator {calibrator}; expected one of {', '.join(METHODS)}"
    return None


@contextlib.contextmanager
def calibrated(source: Path, batches: Batches, *, target: Target, calibrator: Calibrator) -> Iterator[Subject]:
    """As `int8.calibrated`. Raises ExportError where it is not installed, and for what it has not."""
    if importlib.util.find_spec("modelopt") is None:
        raise ExportError(MISSING)
    reason = objection(target, calibrator)
    if reason is not None:
        raise ExportError(f"{reason}.")
    with tempfile.TemporaryDirectory() as folder:
        yield ModelOpt(source, Path(folder), target, batches, calibrator)


class ModelOpt(Subject):
    """A file made ready, and images on disk, from which it makes int8 files that differ in the layers they keep."""

    quantizer: Quantizer = "modelopt"

    def __init__(self, source: Path, folder: Path, target: Target, batches: Batches, calibrator: Calibrator) -> None:
        super().__init__(source, folder / source.name, target)
        self.folder = folder
        self.input, kind = taken(open_session(self.ready, "cpu", None).get_inputs())
        (folder / "images").mkdir()
        images = 0
        for number, batch in enumerate(checked(batches, kind, self.ready)):
            np.save(folder / "images" / f"{number:06d}.npy", batch)
            images += len(batch)
        if not images:
            raise ExportError(f"{source.name}: found no images to calibrate on; expected some dozen, at least one.")
        method, self.method = METHODS[calibrator]
        self.calibration = Calibration(method, {}, images)

    @property
    def scheme(self) -> str:
        return f"Model Optimizer {version('nvidia-modelopt')}: symmetric, signed activations and weights"

    def lowered(self, layers: Collection[str]) -> ModelProto:
        out = self.folder / "int8.onnx"
        job = {
            "source": str(self.ready), "out": str(out), "images": str(self.folder / "images"), "input": self.input,
            "method": self.method, "kept": [name for name in self.layers if name not in set(layers)],
        }  # fmt: skip
        words = [sys.executable, "-m", "exporters.modelopt_job", json.dumps(job)]
        child = subprocess.run(words, capture_output=True, text=True, errors="replace")
        if child.returncode:
            said = [line.strip() for line in child.stderr.splitlines() if line.strip()]
            raise ExportError(f"{self.source.name}: Model Optimizer failed: {said[-1] if said else 'without a word'}.")
        return onnx.load(out)
