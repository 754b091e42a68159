"""Folders of Hugging Face's transformers and of timm, compared with the network that was saved."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from compress.errors import CompressError, UsageError
from compress.models import ModelOverrides, load_model

NAMES = ["cat", "dog", "eel"]
MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)


@pytest.fixture(scope="module")
def vit() -> Any:
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8,
        id2label=dict(enumerate(NAMES)), label2id={name: index for index, name in enumerate(NAMES)},
    )  # fmt: skip
    return transformers.ViTForImageClassification(config).eval()


@pytest.fixture
def folder(tmp_path: Path, vit: Any) -> Path:
    vit.save_pretrained(tmp_path / "vit")
    size = {"height": 32, "width": 32}
    transformers.ViTImageProcessor(size=size, image_mean=list(MEAN), image_std=list(STD)).save_pretrained(
        tmp_path / "vit"
    )
    return tmp_path / "vit"


def normalize(images: Tensor, mean=MEAN, std=STD) -> Tensor:
    return (images - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)


def images(size: int) -> Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def compare(spec: Path, expected: Tensor, x: Tensor, **options: Any) -> Any:
    network, card = load_model(spec, ModelOverrides(**options))
    torch.testing.assert_close(network(x), expected, rtol=1e-5, atol=1e-5)
    return card


def test_classifier(folder, vit):
    x = images(32)
    for spec in (folder, folder / "model.safetensors"):
        card = compare(spec, vit(normalize(x)).logits, x)
        assert (card.classes, card.class_names, card.image_size) == (3, NAMES, (32, 32))
        assert set(card.provenance["field_sources"].values()) == {"the file"}


@pytest.mark.slow  # a process that imports torch and transformers
def test_classifier_in_another_process(folder, vit, monkeypatch):
    monkeypatch.setenv("COMPRESS_PROBE_SECONDS", "300")
    x = images(32)
    assert compare(folder, vit(normalize(x)).logits, x).class_names == NAMES


def test_processor_does_the_same(folder, vit):
    pixels = (255 * images(32)).round().byte()
    prepared = transformers.AutoImageProcessor.from_pretrained(folder)(list(pixels), return_tensors="pt")
    compare(folder, vit(**prepared).logits, pixels / 255)


def test_classifier_without_processor(folder, vit):
    for name in ("preprocessor_config.json", "processor_config.json"):
        (folder / name).unlink(missing_ok=True)
    x = images(32)
    card = compare(folder, vit((x - 0.5) / 0.5).logits, x)
    assert card.provenance["field_sources"]["mean"] == "assumed"


def test_pickled_weights(folder, vit):
    (folder / "model.safetensors").unlink()
    torch.save(vit.state_dict(), folder / "pytorch_model.bin")
    x = images(32)
    compare(folder, vit(normalize(x)).logits, x)


class Tripwire:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_code_in_a_folder_is_not_executed(folder, vit, tmp_path):
    tripwire = tmp_path / "executed"
    (folder / "modeling_evil.py").write_text(f"open({str(tripwire)!r}, 'w')\n")
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "modeling_evil.Config", "AutoModelForImageClassification": "modeling_evil.Model"}
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": names}))
    x = images(32)
    compare(folder, vit(normalize(x)).logits, x)
    evil = {**config, "auto_map": names, "model_type": "evil", "architectures": ["EvilForImageClassification"]}
    (folder / "config.json").write_text(json.dumps(evil))
    with pytest.raises(UsageError):
        load_model(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").unlink()
    torch.save({**vit.state_dict(), "note": Tripwire(tripwire)}, folder / "pytorch_model.bin")
    with pytest.raises(CompressError):
        load_model(folder)
    assert not tripwire.exists()


def test_weights_that_do_not_fit(folder, vit):
    state = {key: value.contiguous() for key, value in vit.state_dict().items() if "classifier" not in key}
    save_file(state, folder / "model.safetensors")
    with pytest.raises(CompressError, match="classifier"):
        load_model(folder)


def test_segmenter(tmp_path):
    torch.manual_seed(0)
    config = transformers.SegformerConfig(
        depths=[1] * 4, hidden_sizes=[8, 16, 16, 16], num_attention_heads=[1] * 4, decoder_hidden_size=16, num_labels=4
    )
    net = transformers.SegformerForSemanticSegmentation(config).eval()
    net.save_pretrained(tmp_path / "seg")
    transformers.SegformerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "seg")
    x = images(64)
    small = net(normalize(x, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))).logits
    expected = torch.nn.functional.interpolate(small, size=(64, 64), mode="bilinear", align_corners=False)
    card = compare(tmp_path / "seg", expected, x)
    assert (card.task, card.classes, card.image_size, card.class_names) == ("segmentation", 4, (64, 64), None)


def test_colors_in_another_order(tmp_path):
    torch.manual_seed(0)
    config = transformers.MobileViTConfig(
        hidden_sizes=[16] * 3, neck_hidden_sizes=[8] * 7, image_size=64, num_labels=3, num_attention_heads=1
    )
    net = transformers.MobileViTForImageClassification(config).eval()
    net.save_pretrained(tmp_path / "net")
    processor = transformers.MobileViTImageProcessor(size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64})
    processor.save_pretrained(tmp_path / "net")
    x = images(64)
    card = compare(tmp_path / "net", net(x.flip(1)).logits, x)
    assert (card.image_size, card.resize) == ((64, 64), 72)


def test_other_tasks_are_refused(tmp_path):
    config = transformers.YolosConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=[32, 32]
    )
    transformers.YolosForObjectDetection(config).save_pretrained(tmp_path / "net")
    with pytest.raises(UsageError, match="ObjectDetection"):
        load_model(tmp_path / "net")


def save_timm(path: Path, net: Any, **config: Any) -> None:
    """A folder as timm's `save_for_hf` writes it."""
    published = {"input_size": [3, 48, 48], "crop_pct": 0.75, "mean": list(MEAN), "std": list(STD)}
    path.mkdir()
    save_file(net.state_dict(), path / "model.safetensors")
    content = {"architecture": "resnet18", "num_classes": 3, "pretrained_cfg": published, **config}
    (path / "config.json").write_text(json.dumps(content))


def test_folder_of_timm(tmp_path):
    net = timm.create_model("resnet18", num_classes=3).eval()
    arguments = {"num_classes": 3, "in_chans": 3, "global_pool": "avg"}
    save_timm(tmp_path / "net", net, label_names=NAMES, model_args=arguments)
    x = images(48)
    for spec in (tmp_path / "net", tmp_path / "net" / "model.safetensors"):
        card = compare(spec, net(normalize(x)), x)
        assert (card.image_size, card.resize, card.class_names) == ((48, 48), 64, NAMES)
        assert card.architecture == "timm/resnet18"
    shutil.rmtree(tmp_path / "net")
    save_timm(tmp_path / "net", net, model_args={"act_layer": "gelu"})
    with pytest.raises(UsageError, match="act_layer"):
        load_model(tmp_path / "net")
