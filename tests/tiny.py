"""Small runs for tests: networks of a few hundred weights, images in memory, few steps."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compress import config
from compress.engine.accelerator import Accelerator
from compress.engine.config import TrainingSchedule
from compress.engine.logging import ProgressDisplay
from compress.engine.method import Method
from compress.engine.run import Run
from compress.engine.stream import Repeats
from compress.engine.trainable import FrozenModel
from compress.methods import METHODS
from compress.models.card import ModelCard
from compress.models.network import Network
from compress.models.registry import build_network
from compress.models.serialization import save_model
from compress.tasks import task_for_card
from compress.training.recipes import find_recipe
from compress.training.setup import TrainConfig, load_config

CLASSES, SIZE, IMAGES, BATCH = 4, 16, 48, 8
CARD = ModelCard("tiny:small", classes=CLASSES, image_size=(SIZE, SIZE))
SIDES = (SIZE, SIZE)
CARDS = {
    "classification": CARD,
    "multilabel_classification": ModelCard("tiny:small", CLASSES, SIDES, task="multilabel_classification"),
    "segmentation": ModelCard("tiny:dense", CLASSES, SIDES, task="segmentation"),
    "binary_segmentation": ModelCard("tiny:dense", 1, SIDES, task="binary_segmentation"),
}
CPU = torch.device("cpu")

#: settings that make a method's own networks small
SETTINGS: dict[str, dict[str, Any]] = {
    "mosaic": {"width_G": 8, "width_D": 8, "z_dim": 8, "student_steps": 2},
    "crd": {"negatives": 16, "embedding_dim": 8},
    "sskd": {"head_fraction": 0.25},
    "dafl": {"width_G": 8, "z_dim": 8},
    "zskt": {"width_G": 8, "z_dim": 8, "student_steps": 2},
    "dfad": {"width_G": 8, "z_dim": 8, "student_steps": 2},
    "dfq": {"width_G": 8, "z_dim": 8, "student_steps": 2},
    "deepinversion": {"iterations": 3, "images_per_synthesis": 8, "student_steps": 2},
    "cmi": {
        "width_G": 8, "z_dim": 8, "embedding_dim": 8, "bank_size": 24, "negatives": 6, "iterations": 2,
        "images_per_synthesis": 8, "student_steps": 2,
    },
    "fastdfkd": {
        "width_G": 8, "z_dim": 8, "iterations": 2, "images_per_synthesis": 8, "student_steps": 2,
        "warmup": 1, "reset": 1,
    },
}  # fmt: skip


def small(classes: int) -> nn.Module:
    """Build two convolutions with BatchNorm, and a linear layer."""
    down = [nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    more = [nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*down, *more, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes))


def dense(classes: int) -> nn.Module:
    """Build a convolution with BatchNorm whose logits have the size of the images."""
    down = [nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*down, nn.Conv2d(8, classes, 1), nn.Upsample(scale_factor=2, mode="bilinear"))


def random_network(seed: int, card: ModelCard = CARD) -> Network:
    """Build a network with random weights and BatchNorm statistics that differ from the initial ones."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = build_network(card)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return net


def balance_predictions(teacher: FrozenModel) -> None:
    """Make a teacher predict several classes for the images of a tiny run; a random network predicts one."""
    with torch.no_grad():
        last = [m for m in teacher.net.modules() if isinstance(m, nn.Linear)][-1]
        last.bias -= teacher.net(InMemoryImages(seed=5).pixels / 255).mean(0)


class InMemoryImages:
    """Labeled uint8 images; every batch is a pure function of (seed, position, rank).

    In segmentation, every pixel has its label, or 255. `predict_calls` counts the calls of `predict_all`.
    """

    predict_calls = 0

    def __init__(self, n: int = IMAGES, size: int = SIZE, seed: int = 0, *, task: str = "classification") -> None:
        rng = np.random.default_rng(seed)
        coarse = rng.integers(0, 256, (n, 3, size // 4, size // 4), dtype=np.uint8)
        self.pixels = torch.from_numpy(coarse.repeat(4, 2).repeat(4, 3))
        masks = task.endswith("segmentation")
        shape = (n, size, size) if masks else (n, CLASSES) if task.startswith("multilabel") else n
        values = CLASSES if task in ("classification", "segmentation") else 2
        self.labels = torch.from_numpy(rng.integers(0, values, shape))
        if masks:
            self.labels[:, 0] = 255

    def __len__(self) -> int:
        return len(self.pixels)

    def batches(
        self, batch_size: int, *, seed: tuple[int, ...], rank: int, world_size: int, augment: bool,
        repeats: Repeats = None,
    ) -> InMemoryBatches:  # fmt: skip
        return InMemoryBatches(self, batch_size, (*seed, rank), augment, repeats)

    def predict_all(self, teacher: FrozenModel) -> tuple[Tensor, Tensor]:
        self.predict_calls += 1
        with torch.no_grad():
            p = teacher(self.pixels / 255).double().softmax(1)
        return p.argmax(1), p.amax(1)


class InMemoryBatches:
    def __init__(
        self, source: InMemoryImages, n: int, seed: tuple[int, ...], augment: bool, repeats: Repeats = None
    ) -> None:
        self.source, self.n, self.seed, self.augment = source, n, seed, augment
        self.odds = None if repeats is None else (repeats / repeats.sum()).numpy()

    def batch_at(self, position: int) -> tuple[Tensor, Tensor, Tensor]:
        rng = np.random.default_rng([*self.seed, position])
        images = len(self.source)
        drawn = rng.integers(0, images, self.n) if self.odds is None else rng.choice(images, self.n, p=self.odds)
        indices = torch.from_numpy(drawn)
        pixels, labels = self.source.pixels[indices], self.source.labels[indices]
        if self.augment and rng.random() < 0.5:
            return pixels.flip(3), labels.flip(2) if labels.ndim == 3 else labels, indices
        return pixels, labels, indices


def tiny_method(name: str, **settings: Any) -> Method:
    return METHODS[name](**SETTINGS.get(name, {}) | settings)


def tiny_run(
    folder: Path,
    name: str = "mosaic",
    *,
    steps: int | None = 4,
    accelerator: Accelerator | None = None,
    precision: str = "32",
    batch_size: int = BATCH,
    validate: Callable[[nn.Module], dict[str, float]] | None = None,
    save_models: bool = False,
    task: str = "classification",
    **schedule: Any,
) -> Run:
    """Create a run for a method, as `compress.training.setup` does; `save_models` writes students to the folder."""
    accelerator = accelerator or Accelerator(CPU, precision)  # pyright: ignore[reportArgumentType]
    folder.mkdir(parents=True, exist_ok=True)
    card = CARDS[task]
    teachers = [FrozenModel(random_network(1, card), accelerator)] if METHODS[name].teachers else []
    sources = {need: InMemoryImages(seed=5, task=task) for need in METHODS[name].needs}

    def save_student(which: str, net: nn.Module, metrics: dict[str, float], step: int) -> None:
        assert isinstance(net, Network)
        updates = {"metrics": metrics, "provenance": {"step": step}}
        save_model(folder / which, net, ModelCard(**card.as_dict() | updates))

    return Run(
        run_dir=folder,
        accelerator=accelerator,
        schedule=TrainingSchedule(steps=steps, precision=accelerator.precision, **schedule),
        task=task_for_card(card),
        student=random_network(2, card),
        teachers=teachers,
        sources=sources,
        batch_size=batch_size,
        steps=steps,
        display=ProgressDisplay(name, quiet=True),
        validate=validate,
        save_student=save_student if save_models else None,
    )


def read_recipe(name: str, teacher: str = "x") -> tuple[TrainConfig, Any]:
    """Load a shipped recipe, with some teacher."""
    document = config.load_yaml(find_recipe(Path(name)))
    return load_config(document.merge({"teachers": [{"model": teacher}]}, source=""))


def score_class_0(net: nn.Module) -> dict[str, float]:
    """Score a network without labels: a pure function of its weights."""
    return {"accuracy": float((net(InMemoryImages(16, seed=9).pixels / 255).softmax(1)[:, 0]).mean())}


def flatten_state(state: Any, path: str = "") -> dict[str, Any]:
    """Flatten a nested state to path -> leaf."""
    if isinstance(state, dict):
        return {k: v for key, inner in state.items() for k, v in flatten_state(inner, f"{path}/{key}").items()}
    if isinstance(state, list | tuple):
        return flatten_state(dict(enumerate(state)), path)
    return {path: state}


def state_differences(one: Any, other: Any, *, ignore: tuple[str, ...] = ()) -> list[str]:
    """Return the paths at which two nested states are not bit-identical."""
    a, b = flatten_state(one), flatten_state(other)
    changed = [p for p in a.keys() & b.keys() if not p.startswith(ignore) and not is_identical(a[p], b[p])]
    return sorted(a.keys() ^ b.keys()) + changed


def is_identical(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and hash_tensor(a) == hash_tensor(b)
    return type(a) is type(b) and a == b


def hash_tensor(tensor: Tensor) -> str:
    """Hash the bytes of a tensor: unlike ==, distinguishes -0 from 0 and finds NaN equal to NaN."""
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(raw.numpy().tobytes()).hexdigest()


def final_state(run: Run) -> dict[str, Any]:
    """Return everything in the newest checkpoint of the run."""
    checkpoint = run.checkpoints.load()
    assert checkpoint is not None
    return dict(zip(("step", "shared", "per_rank"), checkpoint, strict=True))


def assert_weights_near(net: nn.Module, reference: nn.Module, *, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    """Compare all weights and buffers with a float64 reference."""
    expected = reference.state_dict()
    for key, value in net.state_dict().items():
        assert torch.allclose(value.double(), expected[key].double(), rtol=rtol, atol=atol), key
