"""Recognition of architectures, and checkpoints without a card."""

import json

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from compress.errors import CompressError, UsageError
from compress.models.architecture_index import (
    compute_fingerprint,
    compute_sketch,
    estimate_overlap,
    load_index,
    nearest_architectures,
    pack_index,
    read_shipped_index,
    recognize_architecture,
    tensor_shapes,
)
from compress.models.loading import load_model
from compress.models.make_architecture_index import group_equivalents, group_lookalikes
from compress.models.overrides import ModelOverrides
from compress.models.registry import MODELS, build_model, build_on_meta


@pytest.mark.parametrize("name", MODELS)
def test_built_in_architecture_is_recognized(name):
    with torch.device("meta"):
        match = recognize_architecture(build_model(name, classes=23, channels=1).state_dict())
    assert (match.candidates, match.classes, match.channels) == ((name,), 23, 1)


@pytest.mark.parametrize(
    "name",
    [
        "torchvision/mobilenet_v3_small", "torchvision/vgg11_bn", "torchvision/squeezenet1_1", "torchvision/vit_b_16",
        "torchvision/resnet101", "timm/vit_tiny_patch16_224", "timm/mobilenetv3_small_050", "timm/convnext_atto",
        "timm/deit_tiny_distilled_patch16_224",
    ],
)  # fmt: skip
def test_library_architecture_is_recognized(name):
    with torch.device("meta"):
        match = recognize_architecture(build_model(name, classes=17).state_dict())
    assert match.candidates == (name,)
    assert match.classes == 17


def test_equivalent_names_are_one_match():
    match = recognize_architecture(timm.create_model("densenet121", num_classes=3).state_dict())
    assert match.candidates == ("torchvision/densenet121",)
    assert match.equivalents == ("timm/densenet121",)


def test_equivalents_have_equal_outputs():
    torch.manual_seed(0)
    state = torchvision.models.resnet18(num_classes=3).state_dict()
    x = torch.rand(1, 3, 64, 64)
    outputs = []
    for name in ("torchvision/resnet18", "timm/resnet18", "timm/resnetblur18"):
        model = build_model(name, classes=3).eval()
        model.load_state_dict(state)
        outputs.append(model(x))
    torch.testing.assert_close(outputs[0], outputs[1])
    assert (outputs[0] - outputs[2]).abs().max() > 1e-3


def test_torchvision_is_preferred_over_lookalike(tmp_path):
    torch.save(torchvision.models.resnet18(num_classes=4).state_dict(), tmp_path / "w.pth")
    _, card = load_model(str(tmp_path / "w.pth"))
    assert (card.architecture, card.classes, card.image_size) == ("torchvision/resnet18", 4, (224, 224))
    assert card.provenance["also_fits"] == ["timm/resnetblur18"]


def test_stated_architecture_resolves_ambiguity(tmp_path):
    state = torchvision.models.resnet18(num_classes=4).state_dict()
    torch.save({"arch": "resnetblur18", "state_dict": state}, tmp_path / "w.pth")
    assert load_model(str(tmp_path / "w.pth"))[1].architecture == "timm/resnetblur18"


def test_auxiliary_heads_are_ignored(tmp_path):
    state = torchvision.models.googlenet(num_classes=8, aux_logits=True, init_weights=False).state_dict()
    torch.save(state, tmp_path / "w.pth")
    _, card = load_model(str(tmp_path / "w.pth"))
    assert (card.architecture, card.classes) == ("torchvision/googlenet", 8)


def test_nearest_architectures_are_named(tmp_path):
    model = torchvision.models.resnet34(num_classes=5)
    model.fc = nn.Sequential(nn.Linear(512, 64), nn.Linear(64, 5))
    torch.save(model.state_dict(), tmp_path / "w.pth")
    with pytest.raises(CompressError, match=r"torchvision/resnet34 \(about \d\d%") as caught:
        load_model(str(tmp_path / "w.pth"))
    assert str(caught.value).count("about") == 5


def test_overlap_estimate_is_close():
    here, there = (
        tensor_shapes(build_on_meta(name, classes=1000).state_dict())
        for name in ("timm/resnet26", "torchvision/resnet50")
    )
    a, b = set(here.items()), set(there.items())
    assert nearest_architectures(here, load_index())[0] == ("timm/resnet26", 1.0)
    assert estimate_overlap(compute_sketch(here), compute_sketch(there)) == pytest.approx(
        len(a & b) / len(a | b), abs=0.2
    )


def test_builder_groups_equivalents():
    names = ["torchvision/resnet18", "timm/resnet18", "timm/resnetblur18"]
    assert group_lookalikes([compute_fingerprint(name) for name in (*names, "timm/resnet10t")]) == [names]
    assert group_equivalents(names) == [frozenset(names[:2])]


def test_unknown_tensors_are_refused():
    with pytest.raises(CompressError, match="--teacher-arch"):
        recognize_architecture({"foo": torch.ones(3)})


def test_shipped_index_is_reproducible():
    shipped = {print_.name: print_ for print_ in read_shipped_index().fingerprints}
    for name in ("torchvision/mobilenet_v2", "timm/resnet10t"):
        assert compute_fingerprint(name) == shipped[name]


def test_index_packing_is_stable(tmp_path):
    shipped = read_shipped_index()
    assert len(shipped.fingerprints) > 1400
    packed = pack_index(shipped)
    assert packed == pack_index(shipped)
    assert len(packed) < 1_000_000


def test_bare_checkpoint_is_enough(tmp_path):
    torch.manual_seed(0)
    model = build_model("wrn16_1", classes=10, channels=1).eval()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    net, card = load_model(str(tmp_path / "w.safetensors"), ModelOverrides(mean=[0.2], std=[0.4]))
    assert (card.architecture, card.classes, card.grayscale, card.image_size) == ("wrn16_1", 10, True, (32, 32))
    gray = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(net(gray.expand(-1, 3, -1, -1)), model((gray - 0.2) / 0.4))


def test_half_precision_becomes_full(tmp_path):
    model = build_model("wrn16_1", classes=10)
    torch.save(model.half().state_dict(), tmp_path / "w.pth")
    net, _ = load_model(str(tmp_path / "w.pth"))
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float32}


def test_batchnorm_counters_may_be_missing(tmp_path):
    state = {k: v for k, v in build_model("wrn16_1", classes=10).state_dict().items() if "num_batches" not in k}
    torch.save(state, tmp_path / "w.pth")
    assert load_model(str(tmp_path / "w.pth"))[1].architecture == "wrn16_1"


@pytest.mark.parametrize("arch", [None, "wrn16_1"])
def test_loss_tensors_are_dropped(tmp_path, arch):
    state = {"model." + key: value for key, value in build_model("wrn16_1", classes=10).state_dict().items()}
    torch.save({"state_dict": {**state, "criterion.weight": torch.ones(10)}}, tmp_path / "w.ckpt")
    _, card = load_model(str(tmp_path / "w.ckpt"), ModelOverrides(architecture=arch))
    assert (card.architecture, card.classes) == ("wrn16_1", 10)


def test_class_count_mismatch_is_refused(tmp_path):
    torch.save(build_model("wrn16_1", classes=10).state_dict(), tmp_path / "w.pth")
    with pytest.raises(UsageError, match=r"10 .*100"):
        load_model(str(tmp_path / "w.pth"), ModelOverrides(classes=100))


def test_wrong_architecture_lists_differences(tmp_path):
    torch.save(build_model("wrn16_1", classes=10).state_dict(), tmp_path / "w.pth")
    with pytest.raises(CompressError, match=r"w\.pth") as caught:
        load_model(str(tmp_path / "w.pth"), ModelOverrides(architecture="resnet18"))
    lines = str(caught.value).splitlines()
    assert len(lines) == 7
    assert "more" in lines[-1]
    assert "missing" in lines[1]


def test_unknown_architecture_suggests_nearest(tmp_path):
    torch.save(build_model("wrn16_1", classes=10).state_dict(), tmp_path / "w.pth")
    with pytest.raises(UsageError, match="wrn16_1"):
        load_model(str(tmp_path / "w.pth"), ModelOverrides(architecture="wrn16_11"))


def test_user_factory_builds_the_network(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, classes):\n"
        "        super().__init__()\n"
        "        pool = nn.AdaptiveAvgPool2d(1), nn.Flatten()\n"
        "        self.model = nn.Sequential(nn.Conv2d(3, 4, 3), *pool, nn.Linear(4, classes))\n"
        "    def forward(self, x):\n"
        "        return self.model(x)\n"
        "def net(classes=5):\n"
        "    return Net(classes)\n"
        "def fixed():\n"
        "    return Net(6)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    torch.save(build_model("mine:net", classes=6).state_dict(), tmp_path / "w.pth")
    _, card = load_model(str(tmp_path / "w.pth"), ModelOverrides(architecture="mine:net", image_size=(16, 16)))
    assert (card.classes, card.architecture, card.image_size) == (6, "mine:net", (16, 16))
    _, card = load_model("mine:net", ModelOverrides(image_size=(16, 16), classes=6))
    assert card.classes == 6
    _, card = load_model(str(tmp_path / "w.pth"), ModelOverrides(architecture="mine:fixed", image_size=(16, 16)))
    assert card.classes == 6


def test_trusted_module_is_a_teacher(tmp_path):
    torch.save(build_model("wrn16_1", classes=10), tmp_path / "m.pth")
    with pytest.raises(CompressError, match="refused"):
        load_model(str(tmp_path / "m.pth"))
    _, card = load_model(str(tmp_path / "m.pth"), ModelOverrides(trust_pickle=True, image_size=(32, 32)))
    assert (card.architecture, card.classes) == ("exported", 10)


def test_assumptions_are_in_the_card(tmp_path):
    torch.save(build_model("wrn16_1", classes=10).state_dict(), tmp_path / "w.pth")
    _, card = load_model(str(tmp_path / "w.pth"), ModelOverrides(image_size=(32, 32)))
    sources = {"image_size": "option", "resize": "option", "mean": "assumed", "std": "assumed"}
    assert card.provenance == {"source": "w.pth", "field_sources": sources}
    json.dumps(card.as_dict())


@pytest.mark.parametrize("spec", ["torchvision/resnet19", "timm/resnet19"])
def test_unknown_pretrained_name_suggests_nearest(spec):
    with pytest.raises(UsageError, match="resnet"):
        load_model(spec)


def test_failed_download_names_the_reason(monkeypatch):
    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(CompressError, match=r"no route to host"):
        load_model("torchvision/resnet18")
