"""One int8 file by NVIDIA's Model Optimizer, in a process of its own, because it patches ONNX Runtime's quantizer.

Run by its path. It reads a JSON object from standard input: source, output, images (a directory of .npy files), input
(its name), method, and keep (names of layers to leave in fp32). It imports nothing of this package.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader


class DirectoryReader(CalibrationDataReader):
    """The batches of a directory, which can be read several times."""

    def __init__(self, directory: Path, name: str) -> None:
        self.files, self.name = sorted(directory.glob("*.npy")), name
        self.rewind()

    def rewind(self) -> None:
        self.remaining = iter(self.files)

    def get_first(self) -> dict[str, NDArray[np.generic]]:
        """Return the first batch, from which Model Optimizer reads the shapes."""
        return {self.name: np.load(self.files[0])}

    def get_next(self) -> dict[str, NDArray[np.generic]] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        file = next(self.remaining, None)
        return None if file is None else {self.name: np.load(file)}


def main(job: dict[str, Any]) -> None:
    from modelopt.onnx.quantization import quantize

    reader = DirectoryReader(Path(job["images"]), job["input"])
    quantize(
        job["source"], quantize_mode="int8", calibration_data_reader=reader, output_path=job["output"],
        calibration_method=job["method"], calibration_eps=["cpu"],
        nodes_to_exclude=[f"^{re.escape(name)}$" for name in job["keep"]], high_precision_dtype="fp32",
        log_level="ERROR",
    )  # fmt: skip


if __name__ == "__main__":
    main(json.load(sys.stdin))
