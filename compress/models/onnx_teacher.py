"""ONNX files as teachers: nothing of them is known but their answers, and no gradient passes.

A file that we exported carries its card and normalises images itself. A stranger's gets them in [0, 1], as they are,
unless the user gives a mean and a standard deviation.
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

from compress.errors import CompressError, UsageError
from compress.files import sha256
from compress.models.card import ModelCard
from compress.models.exported_programs import InputSignature, first_line, infer_card, probe_output
from compress.models.metadata import CARD_KEY, card_from_metadata
from compress.models.overrides import ModelOverrides
from compress.models.segmentation import extract_logits

#: types of numbers that images and answers may have
FLOAT_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class OnnxTeacher(nn.Module):
    """An ONNX file as a network: images [n, c, h, w] -> logits, without gradients. It knows no training mode.

    ONNX Runtime computes on the CPU, wherever the images are. A file of one batch size gets the images in parts of that
    size, the last one filled up. Nothing in it ever changes, so it is its own copy.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.session, self.training = path, create_session(path), False
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in FLOAT_TYPES:
            found = [f"{one.name} {one.type} {one.shape}" for one in (*inputs, *outputs)]
            raise CompressError(
                f"{path}: expected one float input [n, channels, height, width] and one output of logits, found "
                f"{'; '.join(found)}."
            )
        if outputs[0].type not in FLOAT_TYPES:
            raise CompressError(
                f"{path}: answers with labels ({outputs[0].type}), in which there is too little to imitate; export the "
                "logits, without argmax."
            )
        self.input_name, self.dtype = inputs[0].name, FLOAT_TYPES[inputs[0].type]
        fixed = [side if isinstance(side, int) else None for side in inputs[0].shape]
        self.fixed_batch_size, channels, height, width = fixed
        self.signature = InputSignature(channels, None if height is None or width is None else (height, width))
        self.metadata: dict[str, str] = self.session.get_modelmeta().custom_metadata_map
        self.outputs_probabilities = False  #: it ends in a softmax, of which the logarithm is taken

    @property
    def normalizes_input(self) -> bool:
        """Whether it takes RGB in [0, 1] and prepares it itself: a file of our own export."""
        return CARD_KEY in self.metadata

    def train(self, mode: bool = True) -> OnnxTeacher:
        return self

    def __deepcopy__(self, _: dict[int, Any]) -> OnnxTeacher:
        return self

    @torch.no_grad()
    def forward(self, x: Float[Tensor, "n c h w"]) -> Tensor:
        images = np.ascontiguousarray(x.detach().float().cpu().numpy(), dtype=self.dtype)
        answers = np.concatenate([self.run_batch(part) for part in self.split_batches(images)])
        logits = extract_logits(torch.from_numpy(answers)[: len(x)].float().to(x.device), x)
        return logits.clamp_min(torch.finfo(logits.dtype).tiny).log() if self.outputs_probabilities else logits

    def split_batches(self, images: np.ndarray) -> Iterator[np.ndarray]:
        """The images as the file takes them: all at once, or in batches of its own size."""
        size = self.fixed_batch_size or len(images)
        for start in range(0, len(images), size):
            part = images[start : start + size]
            yield np.concatenate([part, np.repeat(part[:1], size - len(part), 0)])

    def run_batch(self, images: np.ndarray) -> np.ndarray:
        try:
            return self.session.run(None, {self.input_name: images})[0]
        except Exception as error:  # ONNX Runtime's own errors share no other base
            raise CompressError(
                f"{self.path}: does not run on images {list(images.shape)} ({session_error_reason(error)}); give the size that it "
                "expects, or export it again with a free batch."
            ) from error


def load_onnx_teacher(path: Path, wishes: ModelOverrides) -> tuple[OnnxTeacher, ModelCard]:
    """An `.onnx` file and its card: its own where we exported it, else what it shows and the user says.

    Raises CompressError for a file that is damaged or is not a network of images, UsageError for wishes that do not fit
    it.
    """
    program = OnnxTeacher(path)
    card = card_from_metadata(program.metadata, path)
    if card is None:
        card = infer_card(program, str(path), wishes, program.signature, gradients=False)
    else:
        reject_overrides(path, wishes, program.signature)
        size = wishes.image_size or card.image_size
        found = probe_output(program, str(path), size, 3, gradients=False)
        if found != (card.classes, card.task):
            raise CompressError(f"{path}: its card and its answers are of different models; export it again.")
    program.outputs_probabilities = detect_probabilities(program, card)
    return program, replace(card, sha256=sha256(path))


def reject_overrides(path: Path, wishes: ModelOverrides, signature: InputSignature) -> None:
    """What a file of ours has settled when it was exported."""
    if wishes.mean is not None or wishes.std is not None:
        raise UsageError(f"{path}: normalises images itself; leave out mean and std.")
    if wishes.image_size is not None and signature.image_size not in (None, wishes.image_size):
        height, width = signature.image_size
        raise UsageError(f"{path}: reads images of {height}x{width}, found {wishes.image_size} asked for.")


def detect_probabilities(program: OnnxTeacher, card: ModelCard) -> bool:
    """Whether the answers to noise are distributions over the classes: then it ends in a softmax."""
    channels = 3 if program.normalizes_input else card.channels
    answer = program(torch.rand(3, channels, *card.image_size, generator=torch.Generator().manual_seed(0)))
    sums = answer.sum(1)
    return bool((answer >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)


def is_black_box(net: nn.Module) -> bool:
    """Whether `net` lets no gradient through and shows no layers: it answers, no more."""
    return any(isinstance(module, OnnxTeacher) for module in net.modules())


def create_session(path: Path) -> Any:
    """The file in ONNX Runtime on the CPU, with as many threads as PyTorch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # as above
        raise CompressError(
            f"{path}: cannot be loaded as ONNX ({session_error_reason(error)}); the file is damaged or another kind: export it again."
        ) from error


def session_error_reason(error: Exception) -> str:
    """What ONNX Runtime says, without the path that it repeats."""
    return first_line(RuntimeError(str(error).rsplit(" failed:", 1)[-1]))
