"""The first operator of a low-precision graph whose output differs from that of the fp32 graph."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from exporters.quantization.float16 import ONNX_TYPES, float_tensors, low_precision_name

#: operators whose outputs are kept at a time, because all outputs of a large network do not fit into memory
TENSORS_PER_PASS = 16
#: signal-to-noise ratio in dB below which an output diverges: the difference is a tenth of its size
DIVERGENCE_DB = 20.0


@dataclass(frozen=True)
class Divergence:
    """One operator's output in both graphs."""

    operator: str  #: name and type
    tensor: str  #: name of the output
    signal_to_noise_db: float  #: power of the fp32 output over that of the difference; -inf if not finite
    max_abs: float  #: largest |value| in the fp32 graph

    def __str__(self) -> str:
        ratio = f"{self.signal_to_noise_db:.0f} dB" if np.isfinite(self.signal_to_noise_db) else "not finite"
        return f"{self.operator} (signal-to-noise ratio {ratio}, largest value {self.max_abs:.3g})"


class GraphProbe:
    """A graph whose inner tensors can be computed."""

    def __init__(self, path: Path) -> None:
        self.model = onnx.load(path)
        self.floats = float_tensors(self.model)
        self.producers = {name: node for node in self.model.graph.node for name in node.output}

    @property
    def names(self) -> list[str]:
        """Names of the float32 outputs of operators, in the graph's order."""
        return [name for name in self.producers if name in self.floats]

    def compute_tensors(self, names: list[str], batch: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return the values of tensors for a batch of images."""
        del self.model.graph.output[:]
        self.model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # A fused operator has no output of its own, and operators beside a fusion would be computed differently.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(
            self.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        values = session.run(names, {session.get_inputs()[0].name: batch})
        return {name: np.asarray(value) for name, value in zip(names, values, strict=True)}


def max_magnitudes(path: Path, batch: NDArray[Any]) -> dict[str, float]:
    """Return the largest |value| of every float tensor of a graph for one batch of images."""
    probe = GraphProbe(path)
    magnitudes: dict[str, float] = {}
    for start in range(0, len(probe.names), TENSORS_PER_PASS):
        values = probe.compute_tensors(probe.names[start : start + TENSORS_PER_PASS], batch)
        magnitudes |= {name: float(np.abs(value).max(initial=0.0)) for name, value in values.items()}
    return magnitudes


def operator_divergences(reference: Path, candidate: Path, batch: NDArray[Any]) -> Iterator[Divergence]:
    """Yield the differences of all operators that both graphs have, in the order of `reference`."""
    first, second = GraphProbe(reference), GraphProbe(candidate)
    matches = {name: match for name in first.names if (match := matching_tensor(second, name)) is not None}
    names = list(matches)
    for start in range(0, len(names), TENSORS_PER_PASS):
        part = names[start : start + TENSORS_PER_PASS]
        expected = first.compute_tensors(part, batch)
        actual = second.compute_tensors([matches[name] for name in part], batch)
        for name in part:
            node, value = first.producers[name], expected[name]
            ratio = signal_to_noise_db(value, actual[matches[name]].astype(np.float32))
            yield Divergence(f"{node.name} ({node.op_type})", name, ratio, float(np.abs(value).max(initial=0.0)))


def first_divergent_operator(reference: Path, candidate: Path, batch: NDArray[Any]) -> Divergence | None:
    """Return the first operator whose output diverges, or None."""
    divergences = operator_divergences(reference, candidate, batch)
    return next((one for one in divergences if one.signal_to_noise_db < DIVERGENCE_DB), None)


def matching_tensor(probe: GraphProbe, name: str) -> str | None:
    """Return the tensor of a low-precision graph that corresponds to one of the fp32 graph."""
    names = (*(low_precision_name(name, precision) for precision in ONNX_TYPES), name)
    return next((one for one in names if one in probe.producers), None)


def signal_to_noise_db(value: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    if value.shape != other.shape or not np.isfinite(other).all():
        return -np.inf
    signal, noise = float((value.astype(np.float64) ** 2).sum()), float(((value.astype(np.float64) - other) ** 2).sum())
    if noise == 0:
        return np.inf
    return 10 * float(np.log10(signal / noise)) if signal > 0 else -np.inf
