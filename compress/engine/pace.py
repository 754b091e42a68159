"""How long a run goes on, and how often it evaluates, saves and logs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from compress.engine.place import Precision

Count = Annotated[int, Field(gt=0)]
Positive = Annotated[float, Field(gt=0)]


@dataclass
class Pace:
    """The clock of a run. One of `steps`, `epochs`, `time_limit` ends it; the learning rates follow whichever it is."""

    steps: Count | None = None  #: iterations of the method
    epochs: Positive | None = None  #: passes over the unlabelled (or labelled) images, instead of steps
    time_limit: Positive | None = None  #: seconds, instead of steps; such a run cannot be repeated bit for bit
    batch_size: Count | None = None  #: images a batch over all processes; None: the method's own default
    evaluate: Count | None = None  #: steps between evaluations; None: ten times a run
    save: Count | None = None  #: steps between checkpoints; None: once a minute
    log: Count = 10  #: steps between lines of metrics.jsonl
    keep: Count = 2  #: checkpoints kept
    seed: Annotated[int, Field(ge=0)] = 0  #: of everything random
    precision: Precision = "auto"  #: 32, bf16 or 16; auto: bf16 where the processor computes in it
    device: str = "auto"  #: cpu, cuda or cuda:N
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0  #: decay of an averaged student, which is then the one kept; 0: none
