"""Segmentation networks: the paper's pair, torchvision's and smp's."""

from __future__ import annotations

import sys

import pytest
import segmentation_models_pytorch as smp
import torch
import torchvision
from torch import nn

import compress
from compress.errors import CompressError, UsageError
from compress.models.architecture_index import recognize_architecture
from compress.models.card import ModelCard
from compress.models.catalog import list_models
from compress.models.inspection import inspect_model
from compress.models.loading import load_model
from compress.models.overrides import ModelOverrides
from compress.models.pretrained import default_preprocessing
from compress.models.registry import MODELS, build_model, build_model_like, build_network, build_on_meta, infer_task
from compress.models.serialization import load_model_directory, save_model
from compress.profiling import ModelProfile

PAIR = ("deeplabv3_resnet50", "deeplabv3_mobilenet_v2")
NAMES = torchvision.models.list_models(module=torchvision.models.segmentation)
ODD = (1, 3, 65, 70)


def published(name, classes, **options):
    torch.manual_seed(0)
    return torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=classes, **options)


@pytest.fixture(scope="module")
def lraspp():
    """The smallest of torchvision, with BatchNorm statistics that are not the initial ones."""
    model = published("lraspp_mobilenet_v3_large", 5)
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "gigamacs", "convolutions", "millions"),
    [("deeplabv3_resnet50", 40.97, 40.89, 39.64), ("deeplabv3_mobilenet_v2", 5.54, 5.55, 5.11)],
)
def test_paper_pair_has_published_macs(name, gigamacs, convolutions, millions):
    result = compress.profile(name, classes=13, image_size=(256, 256))
    assert isinstance(result, ModelProfile)
    assert result.macs / 1e9 == pytest.approx(gigamacs, rel=0.02)
    assert result.by_operator["conv"] / 1e9 == pytest.approx(convolutions, abs=0.005)
    assert result.params / 1e6 == pytest.approx(millions, abs=0.005)
    assert (result.counter, result.unsupported, result.is_trained) == ("fvcore", {}, False)


def test_deeplab_resnet50_matches_torchvision():
    reference = published("deeplabv3_resnet50", 13, aux_loss=False).eval()
    network = build_model("deeplabv3_resnet50", classes=13).eval()
    network.load_state_dict(reference.state_dict())
    x = torch.rand(ODD)
    with torch.no_grad():
        assert torch.equal(network(x), reference(x)["out"])


def test_deeplab_mobilenet_matches_torchvision():
    network = build_model("deeplabv3_mobilenet_v2", classes=4).eval()
    own = {
        key.removeprefix("backbone."): value.shape for key, value in network.state_dict().items() if "backbone" in key
    }
    library = torchvision.models.mobilenet_v2(weights=None).features[:-1].state_dict()
    assert own == {key: value.shape for key, value in library.items()}
    with torch.no_grad():
        assert network.get_submodule("backbone")(torch.rand(1, 3, 64, 96))["out"].shape == (1, 320, 8, 12)
        assert network(torch.rand(ODD)).shape == (1, 4, 65, 70)
    rates = [
        m.dilation[0] for m in network.get_submodule("backbone").modules() if isinstance(m, nn.Conv2d) and m.groups > 1
    ]
    assert rates == [1] * 7 + [2] * 7 + [4] * 3


def test_undilated_mobilenet_matches_torchvision():
    """Both backbones agree away from the border, up to the first dilated stride."""
    network = build_model("deeplabv3_mobilenet_v2", classes=4).eval().get_submodule("backbone")
    library = torchvision.models.mobilenet_v2(weights=None).features[:7].eval()
    library.load_state_dict({k: v for k, v in network.state_dict().items() if k in library.state_dict()})
    x = torch.rand(1, 3, 160, 160)
    with torch.no_grad():
        deep, expected = x, library(x)
        for index in range(7):
            deep = network.get_submodule(str(index))(deep)
    torch.testing.assert_close(deep[..., 8:-8, 8:-8], expected[..., 8:-8, 8:-8])


@pytest.mark.parametrize("name", PAIR)
def test_paper_pair_reads_grayscale(name):
    card = ModelCard(name, 3, (64, 64), "segmentation", mean=(0.5,), std=(0.5,), grayscale=True)
    with torch.device("meta"):
        assert build_network(card).eval()(torch.rand(2, 3, 64, 64)).shape == (2, 3, 64, 64)


def test_task_of_architectures():
    for name in MODELS:
        assert infer_task(name) == ("segmentation" if name.startswith("deeplab") else "classification")
    assert {infer_task(f"torchvision/{name}") for name in NAMES} == {"segmentation"}
    assert infer_task("torchvision/resnet18") == infer_task("timm/resnet18") == "classification"
    assert infer_task("smp/unet:resnet18") == "segmentation"
    with pytest.raises(UsageError):
        infer_task("nothing_of_the_kind")


@pytest.mark.parametrize("name", NAMES)
def test_torchvision_segmenters_have_our_interface(name):
    with torch.device("meta"):
        model = build_model(f"torchvision/{name}", classes=7).eval()
        assert model(torch.rand(2, 3, 66, 70)).shape == (2, 7, 66, 70)
        match = recognize_architecture(published(name, 9, aux_loss=None if "lraspp" in name else True).state_dict())
    expected = name if name in MODELS else f"torchvision/{name}"
    assert (match.candidates, match.classes) == ((expected,), 9)
    usual = default_preprocessing(f"torchvision/{name}")
    assert (usual.image_size, usual.resize) == ((520, 520), 520)


@pytest.mark.parametrize("arch", sorted(smp.MODEL_ARCHITECTURES_MAPPING))
def test_smp_architectures_keep_image_size(arch):
    encoder = "tu-vit_tiny_patch16_224" if arch == "dpt" else "mobilenet_v2"
    name, size = f"smp/{arch}:{encoder}", (2, 3, 150, 170)
    with torch.device("meta"):
        assert build_model(name, classes=6).eval()(torch.rand(size)).shape == (2, 6, 150, 170)
        reference = smp.create_model(arch, encoder, encoder_weights=None, classes=6)
    assert build_model(name, classes=6).state_dict().keys() == reference.state_dict().keys()
    if arch != "dpt":
        match = recognize_architecture(reference.state_dict())
        assert (match.candidates, match.classes) == ((name,), 6)


@pytest.mark.parametrize("name", ["unet:resnet34", "deeplabv3plus:tu-resnet50", "upernet:mit_b0"])
def test_smp_pairs_are_recognized(name):
    match = recognize_architecture(build_on_meta(f"smp/{name}", classes=8, channels=1).state_dict())
    assert (match.candidates, match.classes, match.channels) == ((f"smp/{name}",), 8, 1)


@pytest.mark.parametrize("arch", ["unet", "deeplabv3plus", "fpn"])
def test_smp_outputs_match_the_library(arch):
    torch.manual_seed(0)
    reference = smp.create_model(arch, "resnet18", encoder_weights=None, classes=3).eval()
    network = build_model(f"smp/{arch}:resnet18", classes=3).eval()
    network.load_state_dict(reference.state_dict())
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(network(x), reference(x))


def test_smp_pads_odd_sizes():
    network = build_model("smp/fpn:resnet18", classes=3).eval()
    x = torch.rand(1, 3, 50, 60)
    padded = torch.zeros(1, 3, 64, 64)
    padded[:, :, :50, :60] = x
    with torch.no_grad():
        torch.testing.assert_close(network(x), network(padded)[:, :, :50, :60])


WRAPPINGS = {
    "bare": lambda s: s,
    "parallel": lambda s: {f"module.{key}": value for key, value in s.items()},
    "checkpoint": lambda s: {"model": s, "epoch": 3},
    "lightning": lambda s: {"state_dict": {f"model.{key}": value for key, value in s.items()}},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_torchvision_segmenter_checkpoint(tmp_path, lraspp, wrapping):
    torch.save(WRAPPINGS[wrapping](lraspp.state_dict()), tmp_path / "t.pth")
    model, card = load_model(str(tmp_path / "t.pth"), ModelOverrides(image_size=(64, 64)))
    assert (card.architecture, card.task, card.classes) == (
        "torchvision/lraspp_mobilenet_v3_large", "segmentation", 5,
    )  # fmt: skip
    x = torch.rand(ODD)
    with torch.no_grad():
        torch.testing.assert_close(model(x), lraspp(model.normalize(x))["out"])


@pytest.mark.parametrize("arch", [None, "deeplabv3_mobilenet_v2"])
def test_auxiliary_head_is_dropped(tmp_path, arch):
    state = build_model("deeplabv3_mobilenet_v2", classes=4).state_dict()
    side = {"aux_classifier.4.weight": torch.rand(4, 10, 1, 1), "aux_classifier.4.bias": torch.rand(4)}
    torch.save(state | side, tmp_path / "t.pth")
    _, card = load_model(str(tmp_path / "t.pth"), ModelOverrides(architecture=arch))
    assert (card.architecture, card.task, card.classes) == ("deeplabv3_mobilenet_v2", "segmentation", 4)
    assert card.provenance["dropped"] == ["aux_classifier"]


@pytest.mark.parametrize("arch", [None, "smp/unet:mobilenet_v2"])
def test_smp_checkpoint(tmp_path, arch):
    reference = smp.Unet("mobilenet_v2", encoder_weights=None, classes=3).eval()
    torch.save(reference.state_dict(), tmp_path / "t.pth")
    model, card = load_model(str(tmp_path / "t.pth"), ModelOverrides(architecture=arch))
    assert (card.architecture, card.task, card.classes) == ("smp/unet:mobilenet_v2", "segmentation", 3)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), reference(model.normalize(x)))
    actual = inspect_model(str(tmp_path / "t.pth"), ModelOverrides()).card
    assert (actual.task, actual.classes) == ("segmentation", 3)


def test_saved_segmenter_is_unchanged(tmp_path):
    card = ModelCard("smp/linknet:mobilenet_v2", 3, (64, 64), "segmentation")
    net = build_network(card).eval()
    save_model(tmp_path, net, card)
    again, actual = load_model_directory(tmp_path)
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(again(x), net(x))
    assert actual == card


def test_pretrained_segmenter_has_class_names(monkeypatch, lraspp):
    state = published("lraspp_mobilenet_v3_large", 21).state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: state)
    model, card = load_model("torchvision/lraspp_mobilenet_v3_large")
    assert (card.task, card.classes, card.image_size) == ("segmentation", 21, (520, 520))
    assert card.class_names is not None
    assert card.class_names[:2] == ["__background__", "aeroplane"]
    assert torch.equal(
        model.body.state_dict()["classifier.low_classifier.bias"], state["classifier.low_classifier.bias"]
    )


def test_student_of_another_task_is_refused():
    teacher = ModelCard("deeplabv3_resnet50", 3, (64, 64), "segmentation")
    student, card = build_model_like("deeplab_wrn16_1", like=teacher)
    assert card.task == "segmentation"
    assert student.eval()(torch.rand(1, 3, 64, 64)).shape == (1, 3, 64, 64)
    with pytest.raises(UsageError, match="wrn16_1"):
        build_model_like("wrn16_1", like=teacher)


@pytest.mark.parametrize(
    ("name", "datum"),
    [
        ("torchvision/deeplabv3_resnet51", "deeplabv3_resnet50"),
        ("smp/unett:resnet18", "unet"),
        ("smp/unet:resnet19", "resnet1"),
        ("smp/unet", "smp/unet:resnet18"),
        ("smp/deeplabv3:vgg11", "vgg11"),
        ("deeplabv3_resnet", "deeplabv3_resnet50"),
    ],
)
def test_unknown_segmenter_suggests_nearest(name, datum):
    with pytest.raises(UsageError, match=datum):
        build_model(name, classes=2)


def test_smp_name_has_no_weights():
    with pytest.raises(UsageError, match="--teacher-arch"):
        load_model("smp/unet:resnet18")


def test_missing_smp_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(UsageError, match=r"\[smp\]"):
        build_model("smp/unet:resnet18", classes=2)
    assert list_models()["smp/"] == []


def test_segmenters_are_listed():
    actual = {model.name: model.description for models in list_models().values() for model in models}
    assert "256x256 images, segmentation" in actual["deeplabv3_mobilenet_v2"]
    assert "64x64 images, segmentation" in actual["deeplab_wrn16_1"]
    assert actual["torchvision/lraspp_mobilenet_v3_large"] == "torchvision, segmentation"
    assert "smp/deeplabv3plus:mobilenet_v2" in actual


class Whole(nn.Module):
    """Logits at half the size, as a tensor, tuple or dict."""

    def __init__(self, classes: int, form: str = "plain") -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, classes, 3, 2, 1)
        self.form = form

    def forward(self, x):
        small = self.conv(x)
        return {"out": small} if self.form == "dict" else (small, x) if self.form == "tuple" else small


@pytest.mark.parametrize("form", ["plain", "dict", "tuple"])
def test_user_segmenter_is_detected(tmp_path, monkeypatch, form):
    (tmp_path / f"mine_{form}.py").write_text(
        f"from test_segmenters import Whole\ndef net(classes=5):\n    return Whole(classes, {form!r})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "test_segmenters", sys.modules[__name__])
    spec = f"mine_{form}:net"
    assert infer_task(spec) == "segmentation"
    model, card = load_model(spec, ModelOverrides(image_size=(16, 16), classes=4))
    assert (card.task, card.classes) == ("segmentation", 4)
    x = torch.rand(2, 3, 16, 16)
    assert model(x).shape == (2, 4, 16, 16)
    torch.save(Whole(6, form).state_dict(), tmp_path / "w.pth")
    _, card = load_model(str(tmp_path / "w.pth"), ModelOverrides(architecture=spec, image_size=(16, 16)))
    assert (card.task, card.classes, card.architecture) == ("segmentation", 6, spec)


def test_trusted_segmenter_is_a_teacher(tmp_path, lraspp):
    torch.save(lraspp, tmp_path / "t.pth")
    model, card = load_model(str(tmp_path / "t.pth"), ModelOverrides(trust_pickle=True, image_size=(64, 64)))
    assert (card.task, card.classes) == ("segmentation", 5)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), lraspp(x)["out"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param("deeplabv3_mobilenet_v2", marks=pytest.mark.slow), "torchvision/lraspp_mobilenet_v3_large"]
)
def test_segmenter_exports_any_size(name):
    model, side = build_model(name, classes=3).eval(), {"min": 32, "max": 999}
    n, h, w = torch.export.Dim("n"), torch.export.Dim("h", **side), torch.export.Dim("w", **side)
    example = torch.rand(2, 3, 64, 96)
    program = torch.export.export(model, (example,), dynamic_shapes=({0: n, 2: h, 3: w},)).module()
    x = torch.rand(1, 3, 65, 70)
    with torch.no_grad():
        torch.testing.assert_close(program(x), model(x))


def test_exported_segmenter_is_detected(tmp_path):
    module, dim = Whole(3).eval(), torch.export.Dim("batch")
    torch.export.save(
        torch.export.export(module, (torch.rand(2, 3, 16, 16),), dynamic_shapes=({0: dim},)), tmp_path / "t.pt2"
    )
    model, card = load_model(str(tmp_path / "t.pt2"))
    assert (card.task, card.classes) == ("segmentation", 3)
    x = torch.rand(3, 3, 16, 16)
    enlarged = nn.functional.interpolate(module(x), size=(16, 16), mode="bilinear", align_corners=False)
    torch.testing.assert_close(model(x), enlarged)


def test_other_output_shape_is_refused(tmp_path):
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(2)).eval()
    dim = torch.export.Dim("batch")
    torch.export.save(
        torch.export.export(module, (torch.rand(2, 3, 8, 8),), dynamic_shapes=({0: dim},)), tmp_path / "t.pt2"
    )
    with pytest.raises(CompressError, match=r"\[3, 4, 36\]"):
        load_model(str(tmp_path / "t.pt2"))
