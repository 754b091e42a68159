"""Model directories: saving, loading, and detection of damage."""

import json

import pytest
import torch
from safetensors.torch import load_file

from compress.errors import CompressError, UsageError
from compress.files import sha256
from compress.models.card import ModelCard
from compress.models.loading import load_model
from compress.models.overrides import ModelOverrides
from compress.models.registry import build_model_like, build_network
from compress.models.serialization import load_model_directory, package_versions, save_model


def a_card(**changes) -> ModelCard:
    return ModelCard("wrn16_1", 10, (32, 32), **changes)


def trained_looking(card: ModelCard):
    """A network whose BatchNorm statistics are not the initial ones."""
    net = build_network(card)
    with torch.no_grad():
        for value in net.body.buffers():
            if value.is_floating_point():
                value.uniform_(0.5, 1.5)
    return net.eval()


def test_saved_model_is_unchanged(tmp_path):
    card = a_card(
        metrics={"accuracy": 0.9}, class_names=[f"c{i}" for i in range(10)], provenance=dict(package_versions())
    )
    net = trained_looking(card)
    save_model(tmp_path / "m", net, card)
    again, result = load_model_directory(tmp_path / "m")
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(again(x), net(x))
    assert result == card
    assert not again.training


def test_saved_files_contain_state_and_hash(tmp_path):
    card = a_card()
    net = trained_looking(card)
    save_model(tmp_path, net, card)
    assert load_file(tmp_path / "model.safetensors").keys() == net.body.state_dict().keys()
    assert json.loads((tmp_path / "config.json").read_text())["sha256"] == sha256(tmp_path / "model.safetensors")


def test_channels_last_weights_are_saved(tmp_path):
    card = a_card()
    net = trained_looking(card).to(memory_format=torch.channels_last)
    save_model(tmp_path, net, card)
    again, _ = load_model_directory(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))


def test_grayscale_model_is_saved(tmp_path):
    card = a_card(grayscale=True, mean=(0.3,), std=(0.3,))
    net = trained_looking(card)
    save_model(tmp_path, net, card)
    again, result = load_model_directory(tmp_path)
    x = torch.rand(2, 3, 32, 32)
    assert result.grayscale
    assert torch.equal(again(x), net(x))


def test_flipped_bit_is_detected(tmp_path):
    save_model(tmp_path, trained_looking(a_card()), a_card())
    path = tmp_path / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(CompressError, match="sha256"):
        load_model_directory(tmp_path)


@pytest.mark.parametrize(
    ("content", "datum"),
    [
        ("{", "config.json"),
        ("[]", "list"),
        ('{"architecture": 3}', "architecture"),
        ("\x00", "config.json"),
    ],
)
def test_damaged_card_is_refused(tmp_path, content, datum):
    save_model(tmp_path, trained_looking(a_card()), a_card())
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CompressError, match=datum):
        load_model_directory(tmp_path)


def test_missing_weights_are_named(tmp_path):
    save_model(tmp_path, trained_looking(a_card()), a_card())
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CompressError, match=r"model\.safetensors"):
        load_model_directory(tmp_path)


def test_class_mismatch_lists_shapes(tmp_path):
    card = a_card()
    save_model(tmp_path, trained_looking(card), card)
    card.classes = 7
    (tmp_path / "config.json").write_text(json.dumps(card.as_dict()))
    with pytest.raises(CompressError, match=r"found \[10, 64\], expected \[7, 64\]"):
        load_model_directory(tmp_path)


def test_failed_save_keeps_old_model(tmp_path, monkeypatch):
    card = a_card()
    net = trained_looking(card)
    save_model(tmp_path, net, card)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CompressError, match=r"model\.safetensors"):
        save_model(tmp_path, build_network(card), a_card())
    monkeypatch.undo()
    again, _ = load_model_directory(tmp_path)
    assert torch.equal(next(again.parameters()), next(net.parameters()))
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", "model.safetensors"}


def test_run_directory_loads_best_model(tmp_path):
    save_model(tmp_path / "student", trained_looking(a_card()), a_card())
    best = a_card(metrics={"accuracy": 0.5})
    save_model(tmp_path / "best", trained_looking(best), best)
    _, card = load_model(str(tmp_path))
    assert card.metrics == {"accuracy": 0.5}


def test_empty_directory_is_refused(tmp_path):
    with pytest.raises(UsageError, match=str(tmp_path)):
        load_model(str(tmp_path))


def test_missing_path_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"nothing\.pth"):
        load_model(str(tmp_path / "nothing.pth"))


def test_unknown_embedded_model_lists_known():
    with pytest.raises(UsageError, match="fashion_wrn16_2"):
        load_model("embedded/nothing_of_the_kind")


def test_student_copies_teacher_input():
    teacher = a_card(grayscale=True, mean=(0.3,), std=(0.3,), metrics={"accuracy": 1.0}, sha256="x")
    student, card = build_model_like("wrn40_1", like=teacher)
    assert (card.architecture, card.classes, card.grayscale, card.mean) == ("wrn40_1", 10, True, (0.3,))
    assert card.metrics == {}
    assert card.sha256 is None
    assert student.eval()(torch.rand(1, 3, 32, 32)).shape == (1, 10)


def test_overrides_are_applied_and_checked(tmp_path):
    save_model(tmp_path, trained_looking(a_card()), a_card())
    model, card = load_model(
        str(tmp_path), ModelOverrides(mean=[0.5], std=[0.25], image_size=(24, 24), class_names=list("abcdefghij"))
    )
    assert card.mean == (0.5, 0.5, 0.5)
    assert model.normalize.std.flatten().tolist() == [0.25] * 3
    assert card.image_size == (24, 24)
    for wrong in (
        {"classes": 9},
        {"mean": [128.0]},
        {"std": [0.0]},
        {"mean": [0.1, 0.2]},
        {"class_names": ["a"]},
        {"grayscale": True},
    ):
        with pytest.raises(UsageError):
            load_model(str(tmp_path), ModelOverrides(**wrong))


def test_code_in_card_is_not_imported(tmp_path, monkeypatch):
    module = tmp_path / "sly_factory.py"
    module.write_text("import pathlib\npathlib.Path('tripwire').touch()\ndef make(classes=10):\n    raise SystemExit\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    card = ModelCard("wrn16_1", 10, (32, 32))
    save_model(tmp_path / "model", build_network(card), card)
    config = tmp_path / "model" / "config.json"
    config.write_text(config.read_text().replace('"wrn16_1"', '"sly_factory:make"'))
    with pytest.raises(UsageError, match="--teacher-arch sly_factory:make"):
        load_model(str(tmp_path / "model"))
    assert not (tmp_path / "tripwire").exists()
