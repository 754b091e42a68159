"""int8 by NVIDIA's Model Optimizer (Apache-2.0) in the place of ONNX Runtime's quantiser, for NVIDIA's runtimes.

It lays Q and DQ where TensorRT wants them by rules of its own, symmetric and signed, and leaves the weights as fp32
with a Q behind them, which TensorRT folds, and small products in fp32. It knows names to leave out, so the accuracy
budget works with it; but it calibrates for every file. Its entropy calibrator lays its histograms by what comes first:
it is given images one by one, as it would do itself (in batches of eight WRN-16-2 departs twice as far).

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
from typing import cast

import numpy as np
import onnx
from onnx import ModelProto

from exporters.calibration import Batches, Calibration, Calibrator, Method, checked, no_images, taken
from exporters.failure import ExportError
from exporters.int8 import Quantizer, Subject, Target
from exporters.runtime import open_session

#: whose runtimes it lays Q and DQ for
TARGETS: tuple[Target, ...] = ("tensorrt", "tensorrt-rtx", "ort-cuda")
#: calibrator -> its name for it
METHODS: dict[Method, str] = {"entropy": "entropy", "minmax": "max"}
MISSING = 'NVIDIA Model Optimizer is not installed; install it with: pip install "compress[modelopt]".'


def objection(target: Target, calibrator: Calibrator) -> str | None:
    """What it cannot be asked for, and what can."""
    if target not in TARGETS:
        return f"modelopt quantises for NVIDIA's runtimes, not for {target}; expected one of {', '.join(TARGETS)}"
    if calibrator not in ("auto", *METHODS):
        return f"modelopt has no calibrator {calibrator}; expected one of auto, {', '.join(METHODS)}"
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
        subject = ModelOpt(source, Path(folder), target, batches)
        found: dict[Method, Calibration] = {method: Calibration(method, {}, subject.images) for method in METHODS}
        if calibrator == "auto":
            subject.choose(found, batches)
        else:
            subject.calibration = found[cast(Method, calibrator)]
        yield subject


class ModelOpt(Subject):
    """A file made ready, and images on disk, from which it makes int8 files that differ in the layers they keep."""

    quantizer: Quantizer = "modelopt"

    def __init__(self, source: Path, folder: Path, target: Target, batches: Batches) -> None:
        super().__init__(source, folder / source.name, target)
        self.folder, self.images = folder, 0
        (given,) = inputs = open_session(self.ready, "cpu", None).get_inputs()
        self.input, kind = taken(inputs)
        (folder / "images").mkdir()
        for batch in checked(batches, kind, self.ready):
            alone = not isinstance(given.shape[0], int) or given.shape[0] == 1
            for part in np.split(batch, len(batch)) if alone else [batch]:
                np.save(folder / "images" / f"{self.images:06d}.npy", part)
                self.images += len(part)
        if not self.images:
            raise no_images(source)

    @property
    def scheme(self) -> str:
        return f"Model Optimizer {version('nvidia-modelopt')}: symmetric, signed activations and weights"

    def lowered(self, layers: Collection[str]) -> ModelProto:
        out, wanted = self.ready.with_suffix(".int8.onnx"), set(layers)
        job = {
            "source": str(self.ready), "out": str(out), "images": str(self.folder / "images"), "input": self.input,
            "method": METHODS[self.calibration.method], "kept": [name for name in self.layers if name not in wanted],
        }  # fmt: skip
        # By its path, and with no folder put before the installed packages: neither this one nor the user's.
        words = [sys.executable, "-P", str(Path(__file__).with_name("modelopt_job.py"))]
        child = subprocess.run(words, input=json.dumps(job), capture_output=True, text=True, errors="replace")
        if child.returncode:
            said = [line.strip() for line in child.stderr.splitlines() if line.strip()]
            raise ExportError(f"{self.source.name}: Model Optimizer failed: {said[-1] if said else 'without a word'}.")
        return onnx.load(out)
