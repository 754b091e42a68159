"""Teacher outputs that are computed once and reused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from compress.errors import CompressError, UsageError

if TYPE_CHECKING:
    from compress.engine.run import Run
    from compress.engine.trainable import FrozenModel


class TeacherLogitCache:
    """Cache of a frozen network's logits by image index.

    Logits are computed with the first batch that contains an image. Memory: 4 * images * classes bytes on the device.
    Checkpoints contain the cache, because the last bits of logits depend on the batch.
    """

    def __init__(self, net: FrozenModel, images: int, classes: int) -> None:
        self.net = net
        self.table: Float[Tensor, "m c"] = torch.zeros(images, classes, device=net.accelerator.device)
        self.is_cached: Bool[Tensor, " m"] = torch.zeros(images, dtype=torch.bool)  # on the CPU, like stream indices

    def __call__(self, x: Float[Tensor, "n 3 h w"], indices: Int64[Tensor, " n"]) -> Float[Tensor, "n c"]:
        """Return the logits of images `x` with the given indices.

        Raises:
            UsageError: If the network predicts every pixel.
        """
        first = torch.from_numpy(np.unique(indices.numpy(), return_index=True)[1])  # a batch can repeat images
        new = first[~self.is_cached[indices[first]]]
        if len(new):
            logits = self.net(x)  # whole batches: every other batch size would select its kernels again
            if logits.ndim != 2:
                raise UsageError(
                    "method.cache_teacher_logits: found a teacher that predicts every pixel, expected a classifier; "
                    "remove the setting."
                )
            self.table[indices[new].to(self.table.device)] = logits.float()[new.to(logits.device)]
            self.is_cached[indices[new]] = True
        return self.table[indices.to(self.table.device)]

    def state_dict(self) -> dict[str, Tensor]:
        return {"table": self.table, "is_cached": self.is_cached}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.table.copy_(state["table"])
        self.is_cached.copy_(state["is_cached"])


def cache_teacher_logits(run: Run, source: str, *, is_augmented: bool) -> TeacherLogitCache:
    """Create a cache of the teacher's logits for the images of a source, and register it.

    Raises:
        UsageError: If the images are augmented, because then no image occurs twice.
    """
    if is_augmented:
        raise UsageError(
            "method.cache_teacher_logits: found augmented images, whose logits differ each time; set "
            "method.augment=false and method.color_jitter=false, or remove cache_teacher_logits."
        )
    images, classes = len(run.sources[source]), run.task.classes
    run.display.print_line(f"Caching teacher logits of {images} images: {images * classes * 4 / 1e6:.1f} MB.")
    cache = TeacherLogitCache(run.teacher, images, classes)
    run.register(f"teacher logits {source}", cache, per_rank=True)
    return cache


class TeacherPredictions:
    """The teacher's class of every image of a source, and its probability.

    Checkpoints contain them, because the last bits differ on another machine, and so could a selection based on them.
    """

    def __init__(self, images: int) -> None:
        self.labels: Int64[Tensor, " m"] = torch.zeros(images, dtype=torch.int64)
        self.confidence: Float64[Tensor, " m"] = torch.zeros(images, dtype=torch.float64)

    def state_dict(self) -> dict[str, Tensor]:
        return {"labels": self.labels, "confidence": self.confidence}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the predictions.

        Raises:
            CompressError: If the number of images has changed.
        """
        if len(state["labels"]) != len(self.labels):
            raise CompressError(
                f"found {len(self.labels)} images, expected {len(state['labels'])} as in the checkpoint; restore the "
                "original images, or start again with --fresh."
            )
        self.labels, self.confidence = state["labels"], state["confidence"]


def predict_with_teacher(run: Run, source: str) -> TeacherPredictions:
    """Predict all images of a source with the teacher; rank 0's predictions, or the checkpoint's when resuming."""
    images = run.sources[source]
    predictions = TeacherPredictions(len(images))
    name = f"teacher predictions {source}"
    run.register(name, predictions)
    if not run.restore_early(name):
        run.display.print_line(f"Predicting {len(images):,} images with the teacher, once.")
        labels, confidence = images.predict_all(run.teacher)
        predictions.labels = run.accelerator.broadcast(labels)
        predictions.confidence = run.accelerator.broadcast(confidence)
    return predictions
