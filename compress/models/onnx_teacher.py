"""ONNX files as teachers: only their outputs are known, and no gradients pass.

A file that we exported contains its card and normalizes images itself. For other files, images in [0, 1] go in
unchanged unless the user gives a mean and a standard deviation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from jaxtyping import Float
from torch import Tensor, nn

from compress.errors import CompressError, UsageError, first_line
from compress.files import sha256
from compress.models.card import ModelCard, base_task
from compress.models.exported_programs import InputSignature, finish_card, probe_output
from compress.models.metadata import CARD_KEY, card_from_metadata
from compress.models.network import Network
from compress.models.outputs import (
    BOX_NAMES,
    OUTPUT_KEY,
    LastOperator,
    OutputRule,
    ToLogits,
    adapt_outputs,
    detector_message,
    find_adapter,
    list_outputs,
    select_output,
)
from compress.models.overrides import ModelOverrides
from exporters.onnx_source import OnnxSource, require_float32
from exporters.onnx_validation import model_metadata, model_opset, read_model

#: accepted types of images and logits
FLOAT_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
#: operators that only detectors have
BOX_OPERATORS = {"NonMaxSuppression", "RoiAlign", "EfficientNMS_TRT", "BatchedNMS_TRT", "NMSRotated"}
#: tasks of Ultralytics whose models predict boxes
BOX_TASKS = {"detect", "segment", "pose", "obb"}
#: name of a tensor in an edited graph
BEFORE_ACTIVATION = "compress.before_activation"


class OnnxTeacher(nn.Module):
    """An ONNX file as a network: images [n, c, h, w] -> its outputs, without gradients and without a training mode.

    ONNX Runtime computes on the CPU, wherever the images are. A file with a fixed batch size gets batches of that size,
    the last one padded. The module is immutable, so copies share it.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.training = path, False
        graph = read_model(path)  # refuses what ONNX Runtime would read from anywhere, and damaged weights
        reject_detector(path, graph)
        self.session = create_session(path, str(path))
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in FLOAT_TYPES:
            tensors = [f"{one.name} {one.type} {one.shape}" for one in (*inputs, *outputs)]
            raise CompressError(
                f"{path}: found {'; '.join(tensors)}, expected one float input [n, channels, height, width]."
            )
        if not any(one.type in FLOAT_TYPES for one in outputs):
            raise CompressError(
                f"{path}: found labels ({outputs[0].type}), expected logits; export the model without argmax."
            )
        self.input_name, self.dtype = inputs[0].name, FLOAT_TYPES[inputs[0].type]
        self.output_names = [one.name for one in outputs]
        sides = [side if isinstance(side, int) else None for side in inputs[0].shape]
        self.fixed_batch_size, channels, height, width = sides
        self.signature = InputSignature(channels, None if height is None or width is None else (height, width))
        self.metadata: dict[str, str] = self.session.get_modelmeta().custom_metadata_map
        adapter = adapt_outputs(self, str(path))
        adapter.operators, adapter.cut = graph_operators(graph), self.remove_activation

    @property
    def normalizes_input(self) -> bool:
        """Whether it reads RGB in [0, 1] and normalizes it, as files of our own export do."""
        return CARD_KEY in self.metadata

    def train(self, mode: bool = True) -> OnnxTeacher:
        return self

    def __deepcopy__(self, _: dict[int, Any]) -> OnnxTeacher:
        return self

    @torch.no_grad()
    def forward(self, x: Float[Tensor, "n c h w"]) -> dict[str, Any]:
        images = np.ascontiguousarray(x.detach().float().cpu().numpy(), dtype=self.dtype)
        columns = zip(*[self.run_batch(part) for part in self.split_batches(images)], strict=True)
        return {name: join_batches(parts, x) for name, parts in zip(self.output_names, columns, strict=True)}

    def remove_activation(self, rule: OutputRule) -> None:
        """Open the graph again without the activation of one output."""
        self.session = create_session(self.path, self.read_graph(rule).SerializeToString())

    def read_graph(self, rule: OutputRule) -> onnx.ModelProto:
        """The graph of the file, without the activation that a rule cuts off."""
        model = read_model(self.path)
        if not rule.is_cut:
            return model
        graph = model.graph
        output = graph.output[rule.index or 0]
        node = producer(model, output.name)
        assert node is not None
        graph.node.append(onnx.helper.make_node("Identity", [node.input[0]], [BEFORE_ACTIVATION]))
        output.name = BEFORE_ACTIVATION
        used = {name for other in graph.node for name in other.input} | {one.name for one in graph.output}
        if not used & set(node.output):
            graph.node.remove(node)
        return model

    def selected_graph(self, rule: OutputRule) -> onnx.ModelProto:
        """The graph with the output of a rule alone, and with all weights."""
        model = self.read_graph(rule)
        output = onnx.ValueInfoProto()
        output.CopyFrom(model.graph.output[rule.index or 0])
        del model.graph.output[:]
        model.graph.output.append(output)
        onnx.load_external_data_for_model(model, str(self.path.parent))
        return model

    def split_batches(self, images: np.ndarray) -> Iterator[np.ndarray]:
        """All images at once, or batches of the fixed size."""
        size = self.fixed_batch_size or len(images)
        for start in range(0, len(images), size):
            part = images[start : start + size]
            yield np.concatenate([part, np.repeat(part[:1], size - len(part), 0)])

    def run_batch(self, images: np.ndarray) -> list[Any]:
        try:
            return self.session.run(None, {self.input_name: images})
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
    if card is None and CARD_KEY in teacher.metadata:
        card = describe_teacher(teacher, overrides)
    else:
        card = finish_card(teacher, str(path), overrides, teacher.signature, card, gradients=False)
    return teacher, replace(card, sha256=sha256(path))


def describe_teacher(teacher: OnnxTeacher, overrides: ModelOverrides) -> ModelCard:
    """The card in a file of our own export, compared with its outputs."""
    path = teacher.path
    card = card_from_metadata(teacher.metadata, path)
    assert card is not None
    reject_overrides(path, overrides, teacher.signature)
    size = overrides.image_size or card.image_size
    classes, task, rule = probe_output(teacher, str(path), size, 3, overrides, gradients=False)
    if (classes, base_task(task)) != (card.classes, base_task(card.task)):
        raise CompressError(f"{path}: its card and its outputs belong to different models; export it again.")
    provenance = {key: value for key, value in card.provenance.items() if key != OUTPUT_KEY}
    return replace(card, provenance={**provenance, **rule.as_provenance()})


def create_onnx_source(network: Network) -> OnnxSource:
    """The graph of a network that `load_model` made of an ONNX file, for an export.

    Raises:
        ExportError: The graph is not in fp32.
    """
    teacher, normalize = network.body, network.normalize
    adapter = find_adapter(network)
    assert isinstance(teacher, OnnxTeacher)
    assert adapter is not None
    rule = adapter.rule

    def run_graph(value: Tensor) -> Tensor:
        return select_output(list_outputs(adapter.forward(value)), rule.index, None, adapter.source)

    example = network.card.example_input()
    after = ToLogits(rule, run_graph(normalize(example)), network(example))
    is_plain = not normalize.grayscale and bool((normalize.mean == 0).all()) and bool((normalize.std == 1).all())
    graph = teacher.selected_graph(rule)
    require_float32(graph)
    return OnnxSource(graph, run_graph, None if is_plain else normalize, None if after.is_identity else after)


def join_batches(parts: Sequence[Any], x: Tensor) -> Any:
    """One output for all images `x`, without padding, as a tensor where they are; another type as it is."""
    if not all(isinstance(part, np.ndarray) and part.ndim > 0 for part in parts):
        return parts[0]
    output = torch.from_numpy(np.concatenate(parts)[: len(x)])
    return (output.float() if output.is_floating_point() else output).to(x.device)


def producer(model: onnx.ModelProto, name: str) -> onnx.NodeProto | None:
    """The node that computes a tensor, before nodes that pass it on."""
    by_output = {output: node for node in model.graph.node for output in node.output}
    node = by_output.get(name)
    while node is not None and node.op_type == "Identity":
        node = by_output.get(node.input[0])
    return node


def graph_operators(model: onnx.ModelProto) -> dict[int, LastOperator]:
    """The activations that compute the outputs of a graph, by index."""
    operators = {}
    for index, output in enumerate(model.graph.output):
        node = producer(model, output.name)
        if node is not None and node.op_type == "Sigmoid":
            operators[index] = LastOperator("sigmoid")
        elif node is not None and node.op_type == "Softmax":
            default = -1 if model_opset(model) >= 13 else 1
            axis = next((one.i for one in node.attribute if one.name == "axis"), default)
            operators[index] = LastOperator("softmax", axis)
    return operators


def reject_detector(path: Path, model: onnx.ModelProto) -> None:
    """Raise CompressError for a graph that predicts boxes: by its operators, its outputs, or Ultralytics' metadata."""
    operators = {node.op_type for node in model.graph.node}
    names = {output.name.lower() for output in model.graph.output}
    task = model_metadata(model).get("task")
    if operators & BOX_OPERATORS or names & BOX_NAMES or task in BOX_TASKS:
        raise CompressError(detector_message(str(path)))


def reject_overrides(path: Path, overrides: ModelOverrides, signature: InputSignature) -> None:
    """Refuse overrides of what is fixed inside a file of our own export."""
    if overrides.mean is not None or overrides.std is not None:
        raise UsageError(f"{path}: normalizes images itself; leave out mean and std.")
    if overrides.image_size is not None and signature.image_size not in (None, overrides.image_size):
        height, width = signature.image_size
        raise UsageError(f"{path}: found images of {height}x{width}, expected {overrides.image_size}.")


def is_black_box(net: nn.Module) -> bool:
    """Whether `net` has neither gradients nor layers, only outputs."""
    return any(isinstance(module, OnnxTeacher) for module in net.modules())


def create_session(path: Path, model: str | bytes) -> Any:
    """An ONNX Runtime session on the CPU, with as many threads as PyTorch has.

    Args:
        path: The file, for errors, and for weights beside it.
        model: The file or its edited content.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # as above
        raise CompressError(
            f"{path}: cannot be loaded as ONNX ({session_error_reason(error)}); the file is damaged or of another "
            "kind: export it again."
        ) from error


def session_error_reason(error: Exception) -> str:
    """The message of ONNX Runtime, without the path that it repeats."""
    return first_line(RuntimeError(str(error).rsplit(" failed:", 1)[-1]))
