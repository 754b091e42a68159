"""Where a low-precision graph departs from the float32 one: the first operator whose output does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from exporters.precision import TYPES, float_tensors, twin

#: operators whose outputs are kept at a time: all of a large network's at once do not fit into memory
AT_ONCE = 16
#: signal over noise, in decibels, below which an output has departed: the difference is a tenth of its size
DEPARTED_DB = 20.0


@dataclass(frozen=True)
class Departure:
    """One operator's output in both graphs."""

    operator: str  #: its name and type
    tensor: str
    signal_to_noise_db: float  #: power of the float32 output over that of the difference; -inf if not finite
    greatest: float  #: |value| in the float32 graph

    def __str__(self) -> str:
        apart = f"{self.signal_to_noise_db:.0f} dB" if np.isfinite(self.signal_to_noise_db) else "not finite"
        return f"{self.operator}, whose output is {apart} of signal to noise and reaches {self.greatest:.3g}"


class Probe:
    """A graph whose inner tensors can be seen."""

    def __init__(self, path: Path) -> None:
        self.model = onnx.load(path)
        self.floats = float_tensors(self.model)
        self.makers = {name: node for node in self.model.graph.node for name in node.output}

    @property
    def names(self) -> list[str]:
        """The float32 tensors that operators make, in the graph's order."""
        return [name for name in self.makers if name in self.floats]

    def values(self, names: list[str], batch: NDArray[Any]) -> dict[str, NDArray[Any]]:
        del self.model.graph.output[:]
        self.model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # What is fused has no output of its own, and an operator beside a fusion would be computed otherwise.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(
            self.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        answers = session.run(names, {session.get_inputs()[0].name: batch})
        return {name: np.asarray(answer) for name, answer in zip(names, answers, strict=True)}


def ranges(path: Path, batch: NDArray[Any]) -> dict[str, float]:
    """Greatest |value| of every float tensor of a graph for one batch of images."""
    probe, found = Probe(path), {}
    for start in range(0, len(probe.names), AT_ONCE):
        values = probe.values(probe.names[start : start + AT_ONCE], batch)
        found |= {name: float(np.abs(value).max(initial=0.0)) for name, value in values.items()}
    return found


def departures(reference: Path, candidate: Path, batch: NDArray[Any]) -> Iterator[Departure]:
    """The operators of `reference` that `candidate` has too, with how far their outputs are apart, in their order."""
    ours, theirs = Probe(reference), Probe(candidate)
    twins = {name: found for name in ours.names if (found := twin_in(theirs, name)) is not None}
    names = list(twins)
    for start in range(0, len(names), AT_ONCE):
        part = names[start : start + AT_ONCE]
        right = ours.values(part, batch)
        found = theirs.values([twins[name] for name in part], batch)
        for name in part:
            node, value = ours.makers[name], right[name]
            apart = decibels(value, found[twins[name]].astype(np.float32))
            yield Departure(f"{node.name} ({node.op_type})", name, apart, float(np.abs(value).max(initial=0.0)))


def first_departure(reference: Path, candidate: Path, batch: NDArray[Any]) -> Departure | None:
    """The first operator whose output has departed; None where none has."""
    found = departures(reference, candidate, batch)
    return next((one for one in found if one.signal_to_noise_db < DEPARTED_DB), None)


def twin_in(probe: Probe, name: str) -> str | None:
    """The tensor of a low-precision graph that stands for a float32 graph's."""
    return next((one for one in (*(twin(name, low) for low in TYPES), name) if one in probe.makers), None)


def decibels(value: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    if value.shape != other.shape or not np.isfinite(other).all():
        return -np.inf
    signal, noise = float((value.astype(np.float64) ** 2).sum()), float(((value.astype(np.float64) - other) ** 2).sum())
    if noise == 0:
        return np.inf
    return 10 * float(np.log10(signal / noise)) if signal > 0 else -np.inf
