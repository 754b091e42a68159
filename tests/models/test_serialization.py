"""Model directories: saving, loading, and detection of damage."""

import json
import os
import random
import threading
from dataclasses import replace

import pytest
import tiny
import torch
from safetensors.torch import load_file

from compress.errors import CompressError, UsageError
from compress.files import add_hash, sha256
from compress.models.card import ModelCard
from compress.models.loading import load_model
from compress.models.overrides import ModelOverrides
from compress.models.registry import build_model_like, build_network
from compress.models.seal_card import seal_card
from compress.models.serialization import CARD_HASH, load_card, load_model_directory, package_versions, save_model


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
    (tmp_path / "config.json").write_text(json.dumps(add_hash(card.as_dict(), CARD_HASH)))
    with pytest.raises(CompressError, match=r"found \[10, 64\], expected \[7, 64\]"):
        load_model_directory(tmp_path)


def test_damaged_bytes_of_a_card_are_refused(tmp_path):
    card = a_card(metrics={"accuracy": 0.9}, class_names=[f"c{i}" for i in range(10)])
    save_model(tmp_path, trained_looking(a_card()), card)
    path, rng = tmp_path / "config.json", random.Random(3)
    whole = path.read_bytes()
    for _ in range(500):
        at = rng.randrange(len(whole))
        damaged = whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :]
        path.write_bytes(damaged)
        try:
            loaded = load_card(tmp_path)
        except CompressError:
            continue
        assert loaded == card
        assert json.loads(damaged) == json.loads(whole)  # only white space has changed


def test_edited_card_is_refused_until_sealed(tmp_path):
    save_model(tmp_path, trained_looking(a_card()), a_card())
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"resize": null', '"resize": 40'))
    with pytest.raises(CompressError):
        load_model_directory(tmp_path)
    seal_card(tmp_path)
    assert load_model_directory(tmp_path)[1].resize == 40


def test_card_of_older_release_is_loaded(tmp_path):
    save_model(tmp_path, trained_looking(a_card()), a_card())
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    del content[CARD_HASH]
    path.write_text(json.dumps(content))
    with pytest.raises(CompressError):
        load_card(tmp_path)
    path.write_text(json.dumps(content | {"format": 1}))
    assert load_card(tmp_path).architecture == "wrn16_1"


class Killed(BaseException):
    pass


@pytest.fixture
def file_calls(monkeypatch):
    """The calls of `os` that change files; call number `at` raises `error` before, or with `after` after it."""

    class FileCalls:
        at, count, after, error = -1, 0, False, Killed()

        def start(self, at: int, *, after: bool, error: BaseException | None = None) -> None:
            self.at, self.count, self.after, self.error = at, 0, after, error or Killed()

        def watch(self, call):
            def watched(*args, **options):
                here, self.count = self.count == self.at, self.count + 1
                if here and not self.after:
                    raise self.error
                try:
                    return call(*args, **options)
                finally:
                    if here:
                        raise self.error

            return watched

    calls = FileCalls()
    for name in ("fsync", "replace", "chmod", "mkdir", "open"):
        monkeypatch.setattr(os, name, calls.watch(getattr(os, name)))
    return calls


@pytest.mark.parametrize("after", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("error", [Killed(), OSError(28, "No space left on device")])
def test_interrupted_save_leaves_old_or_new_model(tmp_path, monkeypatch, file_calls, after, error):
    """Also if an interrupted save follows another one, and with files of the user in the directory."""
    models = [(tiny.random_network(i), replace(tiny.CARD, metrics={"accuracy": i / 4})) for i in range(3)]
    weights = [list(net.state_dict().values()) for net, _ in models]

    def save_interrupted(model: int, at: int) -> int:
        file_calls.start(at, after=after, error=error)
        monkeypatch.setattr(os, "unlink", os.unlink if isinstance(error, OSError) else refuse)  # a kill cleans nothing
        try:
            save_model(folder, *models[model])
        except (Killed, CompressError):
            return True
        finally:
            monkeypatch.setattr(os, "unlink", unlink)
            file_calls.at = -1
        return False

    def loaded() -> int:
        net, card = load_model_directory(folder, user_code=tiny.CARD.architecture)
        number = int(card.metrics["accuracy"] * 4)
        assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), weights[number], strict=True))
        return number

    unlink, at = os.unlink, 0
    while True:
        folder = tmp_path / str(at)
        save_model(folder, *models[0])
        (folder / "model-mine.safetensors").write_text("of the user")
        (folder / ".notes.tmp").write_text("of the user")
        if not save_interrupted(1, at):
            break
        assert loaded() in (0, 1)
        assert save_interrupted(2, at)
        assert loaded() in (0, 1, 2)
        save_model(folder, *models[0])
        assert loaded() == 0
        assert {p.name for p in folder.iterdir()} == {
            "config.json", "model.safetensors", "model-mine.safetensors", ".notes.tmp",
        }  # fmt: skip
        at += 1
    assert at > 10


def refuse(*_: object) -> None:
    raise OSError(1, "killed")


def test_first_save_that_is_interrupted_leaves_no_model(tmp_path, file_calls):
    file_calls.start(6, after=False)
    with pytest.raises(Killed):
        save_model(tmp_path / "best", trained_looking(a_card()), a_card())
    file_calls.at = -1
    save_model(tmp_path / "last", trained_looking(a_card()), a_card(metrics={"accuracy": 0.5}))
    assert load_model(str(tmp_path))[1].metrics == {"accuracy": 0.5}


def test_readers_see_old_or_new_model(tmp_path):
    """A reader that runs while a model is replaced gets card and weights of one model."""
    models = [(tiny.random_network(i), replace(tiny.CARD, metrics={"accuracy": i / 2})) for i in range(2)]
    save_model(tmp_path, *models[0])
    stop = threading.Event()

    def replace_model() -> None:
        while not stop.is_set():
            for model in reversed(models):
                save_model(tmp_path, *model)

    writer = threading.Thread(target=replace_model)
    writer.start()
    try:
        for _ in range(20):
            net, card = load_model_directory(tmp_path, user_code=tiny.CARD.architecture)
            expected = models[int(card.metrics["accuracy"] * 2)][0]
            assert all(torch.equal(a, b) for a, b in zip(net.parameters(), expected.parameters(), strict=True))
    finally:
        stop.set()
        writer.join()


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
    seal_card(tmp_path / "model")
    with pytest.raises(UsageError, match="--teacher-arch sly_factory:make"):
        load_model(str(tmp_path / "model"))
    assert not (tmp_path / "tripwire").exists()
