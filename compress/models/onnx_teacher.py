"""ONNX files as teachers: only their outputs are known, and no gradients pass.

A file that we exported contains its card and normalizes images itself. For other files, images in [0, 1] go in
unchanged unless the user gives a mean and a standard deviation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from compress.errors import CompressError, UsageError, first_line
from compress.files import sha256
from compress.models.card import ModelCard
from compress.models.exported_programs import InputSignature, infer_card, probe_output
from compress.models.metadata import CARD_KEY, card_from_metadata
from compress.models.overrides import ModelOverrides
from compress.models.segmentation import extract_logits
from exporters.onnx_validation import read_model

#: accepted types of images and logits
FLOAT_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class OnnxTeacher(nn.Module):
    """An ONNX file as a network: images [n, c, h, w] -> logits, without gradients and without a training mode.

    ONNX Runtime computes on the CPU, wherever the images are. A file with a fixed batch size gets batches of that size,
    the last one padded. The module is immutable, so copies share it.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        read_model(path)  # refuses what ONNX Runtime would read from anywhere, and damaged weights
        self.path, self.session, self.training = path, create_session(path), False
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in FLOAT_TYPES:
            tensors = [f"{one.name} {one.type} {one.shape}" for one in (*inputs, *outputs)]
            raise CompressError(
                f"{path}: found {'; '.join(tensors)}, expected one float input [n, channels, height, width] and one "
                "output of logits."
            )
        if outputs[0].type not in FLOAT_TYPES:
            raise CompressError(
                f"{path}: found labels ({outputs[0].type}), expected logits; export the model without argmax."
            )
        self.input_name, self.dtype = inputs[0].name, FLOAT_TYPES[inputs[0].type]
        sides = [side if isinstance(side, int) else None for side in inputs[0].shape]
        self.fixed_batch_size, channels, height, width = sides
        self.signature = InputSignature(channels, None if height is None or width is None else (height, width))
        self.metadata: dict[str, str] = self.session.get_modelmeta().custom_metadata_map
        self.outputs_probabilities = False  #: it ends in a softmax; the logarithm makes logits of its output

    @property
    def normalizes_input(self) -> bool:
        """Whether it reads RGB in [0, 1] and normalizes it, as files of our own export do."""
        return CARD_KEY in self.metadata

    def train(self, mode: bool = True) -> OnnxTeacher:
        return self

    def __deepcopy__(self, _: dict[int, Any]) -> OnnxTeacher:
        return self

    @torch.no_grad()
    def forward(self, x: Float[Tensor, "n c h w"]) -> Tensor:
        images = np.ascontiguousarray(x.detach().float().cpu().numpy(), dtype=self.dtype)
        outputs = np.concatenate([self.run_batch(part) for part in self.split_batches(images)])
        logits = extract_logits(torch.from_numpy(outputs)[: len(x)].float().to(x.device), x)
        return logits.clamp_min(torch.finfo(logits.dtype).tiny).log() if self.outputs_probabilities else logits

    def split_batches(self, images: np.ndarray) -> Iterator[np.ndarray]:
        """All images at once, or batches of the fixed size."""
        size = self.fixed_batch_size or len(images)
        for start in range(0, len(images), size):
            part = images[start : start + size]
            yield np.concatenate([part, np.repeat(part[:1], size - len(part), 0)])

    def run_batch(self, images: np.ndarray) -> np.ndarray:
        try:
            return self.session.run(None, {self.input_name: images})[0]
        except Exception as error:  # the errors of ONNX Runtime have no other common base
            raise CompressError(
                f"{self.path}: does not run on images {list(images.shape)} ({session_error_reason(error)}); give the "
                "size that it expects, or export it again with a dynamic batch."
            ) from error


def load_onnx_teacher(
    path: Path, overrides: ModelOverrides, *, card: ModelCard | None = None
) -> tuple[OnnxTeacher, ModelCard]:
    """Load an `.onnx` file and its card: the one in the file, else what its signature and the user say.

    Args:
        path: The file.
        overrides: Facts from the user.
        card: The card that another call returned for this file. None: run it and infer the card.

    Raises:
        CompressError: It is damaged or not a network of images.
        UsageError: The facts do not fit the file.
    """
    teacher = OnnxTeacher(path)
    card = card or describe_teacher(teacher, overrides)
    teacher.outputs_probabilities = detect_probabilities(teacher, card)
    return teacher, replace(card, sha256=sha256(path))


def describe_teacher(teacher: OnnxTeacher, overrides: ModelOverrides) -> ModelCard:
    """The card in the file, compared with its outputs, else what its signature and the user say."""
    path = teacher.path
    card = card_from_metadata(teacher.metadata, path)
    if card is None:
        return infer_card(teacher, str(path), overrides, teacher.signature, gradients=False)
    reject_overrides(path, overrides, teacher.signature)
    size = overrides.image_size or card.image_size
    if probe_output(teacher, str(path), size, 3, gradients=False) != (card.classes, card.task):
        raise CompressError(f"{path}: its card and its outputs belong to different models; export it again.")
    return card


def reject_overrides(path: Path, overrides: ModelOverrides, signature: InputSignature) -> None:
    """Refuse overrides of what is fixed inside a file of our own export."""
    if overrides.mean is not None or overrides.std is not None:
        raise UsageError(f"{path}: normalizes images itself; leave out mean and std.")
    if overrides.image_size is not None and signature.image_size not in (None, overrides.image_size):
        height, width = signature.image_size
        raise UsageError(f"{path}: found images of {height}x{width}, expected {overrides.image_size}.")


def detect_probabilities(teacher: OnnxTeacher, card: ModelCard) -> bool:
    """Whether the outputs for noise are distributions over the classes, so that the file ends in a softmax."""
    channels = 3 if teacher.normalizes_input else card.channels
    output = teacher(torch.rand(3, channels, *card.image_size, generator=torch.Generator().manual_seed(0)))
    sums = output.sum(1)
    return bool((output >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)


def is_black_box(net: nn.Module) -> bool:
    """Whether `net` has neither gradients nor layers, only outputs."""
    return any(isinstance(module, OnnxTeacher) for module in net.modules())


def create_session(path: Path) -> Any:
    """An ONNX Runtime session on the CPU, with as many threads as PyTorch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # as above
        raise CompressError(
            f"{path}: cannot be loaded as ONNX ({session_error_reason(error)}); the file is damaged or of another "
            "kind: export it again."
        ) from error


def session_error_reason(error: Exception) -> str:
    """The message of ONNX Runtime, without the path that it repeats."""
    return first_line(RuntimeError(str(error).rsplit(" failed:", 1)[-1]))
