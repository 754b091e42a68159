"""One file by NVIDIA's Model Optimizer, in a process of its own, for it replaces parts of ONNX Runtime's quantiser.

Run by its path, it reads on standard input what `modelopt` asks for: source, out, images (a folder of .npy files),
input (its name), method, and kept, the names of layers to leave alone. Imports nothing of ours.
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


class Images(CalibrationDataReader):
    """The batches of a folder one by one, and from the start again."""

    def __init__(self, folder: Path, name: str) -> None:
        self.files, self.name = sorted(folder.glob("*.npy")), name
        self.rewind()

    def rewind(self) -> None:
        self.left = iter(self.files)

    def get_first(self) -> dict[str, NDArray[np.generic]]:
        """What it looks at the shapes of."""
        return {self.name: np.load(self.files[0])}

    def get_next(self) -> dict[str, NDArray[np.generic]] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        file = next(self.left, None)
        return None if file is None else {self.name: np.load(file)}


def main(job: dict[str, Any]) -> None:
    from modelopt.onnx.quantization import quantize

    quantize(
        job["source"], quantize_mode="int8", calibration_data_reader=Images(Path(job["images"]), job["input"]),
        output_path=job["out"], calibration_method=job["method"], calibration_eps=["cpu"],
        nodes_to_exclude=[f"^{re.escape(name)}$" for name in job["kept"]], high_precision_dtype="fp32",
        log_level="ERROR",
    )  # fmt: skip


if __name__ == "__main__":
    main(json.load(sys.stdin))
