"""Length of a training run, and how often it evaluates, saves and logs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, TypeAdapter, WithJsonSchema

from compress.config import setting
from compress.config.quantities import BatchSize, Count, CountOrZero, Duration, Epochs, Seed
from compress.engine.accelerator import Precision

#: a recipe may also contain `auto`, which `load_config` replaces
BATCH_SIZE_SCHEMA = TypeAdapter(BatchSize | Literal["auto"] | None).json_schema()


@dataclass
class TrainingSchedule:
    """The schedule of a run.

    Exactly one of `steps`, `epochs` and `time_limit` ends the run. Learning rates follow the same measure.
    """

    steps: Count | None = setting(None, "Number of iterations of the method.")
    epochs: Epochs | None = setting(None, "Number of epochs over the training images (instead of steps).")
    time_limit: Duration | None = setting(
        None,
        "Time limit in seconds or with a unit, as 10m (instead of steps); not reproducible bit for bit.",
    )
    batch_size: Annotated[BatchSize | None, WithJsonSchema(BATCH_SIZE_SCHEMA)] = setting(
        None, "Batch size per step, summed over processes; default: the method's own."
    )
    micro_batch: BatchSize | Literal["auto"] | None = setting(
        None,
        "Images per forward pass of a process: the batch in parts, with the same result except for BatchNorm and "
        "Dropout; auto (or batch_size: auto): halved until a step fits into memory; null: the whole batch.",
    )
    evaluate_every: Count | None = setting(None, "Steps between evaluations; default: ten evaluations per run.")
    save_every: Count | None = setting(None, "Steps between checkpoints; default: one per minute.")
    log_every: Count = setting(10, "Steps between lines of metrics.jsonl.")
    keep_checkpoints: Count = setting(2, "Number of checkpoints to keep.")
    max_rollbacks: CountOrZero = setting(
        3, "How often a diverged run returns to its last good state with lower learning rates; 0: it stops at once."
    )
    rollback_factor: Annotated[float, Field(gt=0, lt=1)] = setting(
        0.5, "Factor of the learning rates at each return to the last good state."
    )
    seed: Seed = setting(0, "Random seed.")
    precision: Annotated[Precision, BeforeValidator(str)] = setting(
        "auto",
        "Precision: 32, bf16, 16 or auto (bf16 if the processor computes in it).",
    )
    device: str = setting("auto", "Device: cpu, cuda or cuda:N.")
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = setting(
        0.0,
        "Decay of the exponential moving average of the student, which is then evaluated and saved; 0: none.",
    )
