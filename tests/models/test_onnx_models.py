"""ONNX files as teachers, compared with PyTorch."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path

import onnx
import pytest
import tiny
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from unsealed import load_unsealed

from compress.engine.accelerator import Accelerator
from compress.engine.trainable import FrozenModel
from compress.errors import CompressError, UsageError
from compress.methods import METHODS
from compress.models.card import ModelCard
from compress.models.inspection import inspect_model
from compress.models.loading import load_model
from compress.models.metadata import card_to_metadata
from compress.models.onnx_teacher import OnnxTeacher, is_black_box
from compress.models.overrides import ModelOverrides
from compress.training.setup import incompatibility_reason
from exporters.onnx_export import export_onnx

SIZE, CLASSES = tiny.SIZE, tiny.CLASSES
#: gray, with statistics of its own, and names
CARD = ModelCard(
    "tiny:small", CLASSES, (SIZE, SIZE), mean=(0.3,), std=(0.2,), grayscale=True, class_names=["a", "b", "c", "d"],
    metrics={"accuracy": 0.5},
)  # fmt: skip


def images(n: int = 5, size: int = SIZE) -> Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(n))


def export_own(path: Path, card: ModelCard = CARD, **options) -> nn.Module:
    """Export a network as `compress export` does."""
    net = tiny.random_network(4, card).eval()
    example = torch.zeros(1, 3, *card.image_size)
    export_onnx(net, example, path, exporter="torchscript", metadata=card_to_metadata(card), **options)
    return net


def reference(path: Path, net: nn.Module | None = None, **options) -> nn.Module:
    """Export a network without card and normalization."""
    net = net or tiny.random_network(5).get_submodule("body").eval()
    export_onnx(net, torch.zeros(1, 3, SIZE, SIZE), path, exporter="torchscript", **options)
    return net


def equal(one: nn.Module, other: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(one(x), other(x), rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> tuple[Path, nn.Module]:
    path = tmp_path_factory.mktemp("own") / "teacher.onnx"
    return path, export_own(path)


# Outputs.


@pytest.mark.parametrize("n", [1, 5, 8])
def test_own_onnx_file_has_its_card(own, n):
    path, net = own
    model, card = load_model(str(path))
    equal(model, net, images(n))
    assert (card.classes, card.image_size, card.task, card.grayscale) == (CLASSES, (SIZE, SIZE), "classification", True)
    assert (card.mean, card.std) == (CARD.mean, CARD.std)
    assert (card.class_names, card.metrics) == (CARD.class_names, CARD.metrics)
    assert card.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_foreign_onnx_file_with_normalization(tmp_path):
    net = reference(tmp_path / "t.onnx")
    model, card = load_model(str(tmp_path / "t.onnx"))
    equal(model, net, images())
    assert (card.architecture, card.classes, card.image_size) == ("exported", CLASSES, (SIZE, SIZE))
    model, card = load_model(str(tmp_path / "t.onnx"), ModelOverrides(mean=[0.5], std=[0.25], class_names=list("abcd")))
    with torch.no_grad():
        torch.testing.assert_close(model(images()), net((images() - 0.5) / 0.25), rtol=1e-4, atol=1e-5)
    assert card.class_names == list("abcd")


@pytest.mark.parametrize("n", [1, 4, 5, 12])
def test_fixed_batch_onnx_file_is_padded(tmp_path, n):
    net = tiny.random_network(5).get_submodule("body").eval()
    export_onnx(net, torch.zeros(4, 3, SIZE, SIZE), tmp_path / "t.onnx", exporter="torchscript", dynamic_batch=False)
    model, _ = load_model(str(tmp_path / "t.onnx"))
    assert model.body.fixed_batch_size == 4
    equal(model, net, images(n))


def test_onnx_segmenter_is_a_teacher(tmp_path):
    card = tiny.CARDS["segmentation"]
    net = export_own(tmp_path / "t.onnx", card)
    model, result = load_model(str(tmp_path / "t.onnx"))
    assert (result.task, result.classes) == ("segmentation", CLASSES)
    equal(model, net, images())


def test_coarse_onnx_segmenter_is_resized(tmp_path):
    coarse = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 5, 1)).eval()
    reference(tmp_path / "t.onnx", coarse, dynamic_size=True)
    with pytest.raises(UsageError, match="--image-size"):
        load_model(str(tmp_path / "t.onnx"))
    model, card = load_model(str(tmp_path / "t.onnx"), ModelOverrides(image_size=(24, 24)))
    assert (card.task, card.classes, card.image_size) == ("segmentation", 5, (24, 24))
    x = images(2, 24)
    with torch.no_grad():
        large = nn.functional.interpolate(coarse(x), (24, 24), mode="bilinear")
    torch.testing.assert_close(model(x), large, rtol=1e-4, atol=1e-5)


def test_grayscale_onnx_file_is_detected(tmp_path):
    net = nn.Sequential(nn.Conv2d(1, 6, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    export_onnx(net, torch.zeros(1, 1, SIZE, SIZE), tmp_path / "t.onnx", exporter="torchscript")
    model, card = load_model(str(tmp_path / "t.onnx"))
    assert card.grayscale
    luma = (images() * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    with torch.no_grad():
        torch.testing.assert_close(model(images()), net(luma), rtol=1e-4, atol=1e-5)


def test_probabilities_become_logits(tmp_path):
    """softmax(log p / T) = softmax(t / T): log p are logits up to a constant per image."""
    net = tiny.random_network(5).get_submodule("body").eval()
    reference(tmp_path / "t.onnx", nn.Sequential(net, nn.Softmax(1)).eval())
    model, _ = load_model(str(tmp_path / "t.onnx"))
    with torch.no_grad():
        result, expected = model(images()), net(images())
    for T in (1.0, 5.0):
        torch.testing.assert_close((result / T).softmax(1), (expected / T).softmax(1), rtol=1e-4, atol=1e-5)


def test_half_precision_onnx_file(tmp_path):
    pooled = write_graph(tmp_path / "t.onnx", kind=TensorProto.FLOAT16)
    model, _ = load_model(str(pooled), ModelOverrides(image_size=(SIZE, SIZE)))
    result = model(images())
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, images().mean((2, 3)), rtol=1e-2, atol=1e-2)


# Black boxes in training.


def test_onnx_teacher_has_no_gradients(own):
    model, _ = load_model(str(own[0]))
    x = images().requires_grad_(True)
    assert not model(x).requires_grad
    before = model(images())
    assert torch.equal(model.train()(images()), before)
    other = copy.deepcopy(model)
    assert other.body is model.body
    assert torch.equal(other(images()), before)
    assert isinstance(model.body, OnnxTeacher)
    assert is_black_box(model)
    assert not is_black_box(own[1])


def test_onnx_teacher_is_frozen(own):
    model, _ = load_model(str(own[0]))
    for precision in ("32", "bf16"):
        output = FrozenModel(model, Accelerator(tiny.CPU, precision))(images().to(memory_format=torch.channels_last))
        torch.testing.assert_close(output, own[1](images()).detach(), rtol=1e-4, atol=1e-5)


def test_onnx_teacher_refuses_meta_device(own):
    model, _ = load_model(str(own[0]))
    with pytest.raises(NotImplementedError):
        copy.deepcopy(model).to("meta")(images().to("meta"))


@pytest.mark.parametrize("name", METHODS)
def test_methods_requiring_gradients_are_refused(own, name):
    model, card = load_model(str(own[0]))
    method = tiny.tiny_method(name)
    problem = incompatibility_reason(name, method, card.task, model)
    assert (problem is not None) == bool(method.uses)


def test_onnx_inspection_counts_nothing(own):
    result = inspect_model(str(own[0]), ModelOverrides())
    assert (result.format, result.architecture, result.params, result.dtypes) == ("ONNX", "tiny:small", None, {})
    assert result.card is not None
    assert result.sha256 == hashlib.sha256(own[0].read_bytes()).hexdigest()


# Refused files.


def write_graph(
    path: Path, shape=("n", 3, SIZE, SIZE), *, kind=TensorProto.FLOAT, inputs=1, outputs=1, labels=False
) -> Path:
    """Write a graph that outputs channel means, or the argmax of them."""
    names = [f"in{i}" for i in range(inputs)]
    axes = numpy_helper.from_array(torch.tensor([2, 3]).numpy(), "axes")
    nodes = [helper.make_node("ReduceMean", [names[0], "axes"], ["mean"], keepdims=0)]
    nodes += [helper.make_node("ArgMax", ["mean"], ["label"], axis=1, keepdims=0)] if labels else []
    output = ("label", TensorProto.INT64, ["n"]) if labels else ("mean", kind, ["n", "c"])
    more = [helper.make_node("Identity", ["mean"], [f"more{i}"]) for i in range(outputs - 1)]
    given = [helper.make_tensor_value_info(name, kind, list(shape)) for name in names]
    made = [output, *((f"more{i}", kind, ["n", "c"]) for i in range(outputs - 1))]
    graph = helper.make_graph(nodes + more, "g", given, [helper.make_tensor_value_info(*one) for one in made], [axes])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


@pytest.mark.parametrize(
    ("file", "error", "datum"),
    [
        ({"labels": True}, CompressError, "argmax"),
        ({"inputs": 2}, CompressError, "in0 .*; in1 "),
        ({"outputs": 2}, CompressError, "more0"),
        ({"shape": ("n", SIZE, SIZE, 3)}, UsageError, "16 .*3"),
        ({"kind": TensorProto.DOUBLE}, CompressError, "double"),
    ],
)
def test_other_onnx_graphs_are_refused(tmp_path, file, error, datum):
    path = write_graph(tmp_path / "t.onnx", **file)
    with pytest.raises(error, match=datum) as caught:
        load_model(str(path))
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"x" * 100, "half"])
def test_damaged_onnx_file_is_refused(own, tmp_path, content):
    whole = own[0].read_bytes()
    (tmp_path / "t.onnx").write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    with pytest.raises(CompressError, match=r"t\.onnx") as caught:
        load_model(str(tmp_path / "t.onnx"))
    assert "\n" not in str(caught.value)


def test_unsupported_image_size_is_reported(tmp_path):
    """A graph with dynamic size and a linear layer for one size."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 4)).eval()
    reference(tmp_path / "t.onnx", net)
    model = load_unsealed(tmp_path / "t.onnx")
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"side{axis}"
    onnx.save(model, tmp_path / "t.onnx")
    with pytest.raises(CompressError, match=r"\[1, 3, 24, 24\]") as caught:
        load_model(str(tmp_path / "t.onnx"), ModelOverrides(image_size=(24, 24)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "datum"),
    [
        ({"mean": [0.5]}, "mean"),
        ({"image_size": (32, 32)}, "16x16"),
        ({"classes": 10}, "4 .*10"),
        ({"grayscale": False}, "grayscale"),
    ],
)
def test_onnx_overrides_are_checked(own, overrides, datum):
    with pytest.raises(UsageError, match=datum):
        load_model(str(own[0]), ModelOverrides(**overrides))


def test_foreign_card_is_detected(own, tmp_path):
    model = onnx.load(own[0])
    wrong = card_to_metadata(ModelCard(**CARD.as_dict() | {"classes": 7, "class_names": None}))
    onnx.helper.set_model_props(model, wrong)
    onnx.save(model, tmp_path / "t.onnx")
    with pytest.raises(CompressError, match=r"t\.onnx"):
        load_model(str(tmp_path / "t.onnx"))
