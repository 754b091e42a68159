"""Predictor: a network or an exported file that maps images to logits."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compress.models.card import ModelCard
    from compress.models.model_input import ModelInput
    from compress.models.overrides import ModelOverrides
    from exporters.runtimes import Runtime
    from exporters.runtimes.base import Images, ModelInfo, OutputArray, Runner

#: class counts of architectures without weights: CIFAR-10 for built-in ones, ImageNet and VOC for the libraries'
BUILT_IN_CLASSES, LIBRARY_CLASSES, SEGMENTATION_CLASSES = 10, 1000, 21
#: source of the input of an architecture without weights
USUAL = "the usual input of the architecture"
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Predictor:
    """A model that predicts, whatever it was loaded from."""

    spec: str
    card: ModelCard
    predict: Callable[
        [Tensor], Tensor
    ]  #: images [n, 3, h, w] in [0, 1] -> logits [n, classes, ...] or labels, on the CPU
    module: nn.Module | None = None  #: the network; None for an exported file
    file: Path | None = None  #: the exported file (.onnx, .xml, .engine); None for a network
    runtime: Runtime = "torch"
    precision: str = "fp32"  #: precision that really runs
    preprocesses: bool = False  #: whether the file crops and resizes images itself
    input_size: tuple[int, int] | None = None  #: the only (height, width) that the file accepts; None: any
    returns_probabilities: bool = False  #: whether `predict` returns probabilities, not logits
    is_trained: bool = True  #: False for an architecture with random weights

    @property
    def network(self) -> nn.Module:
        """The PyTorch network. Raises UsageError for an exported file."""
        if self.module is None:
            raise UsageError(
                f"{self.spec}: found an exported file, expected a PyTorch model (its directory, checkpoint or name)."
            )
        return self.module

    @property
    def input(self) -> ModelInput:
        """How it reads images, and where these facts come from."""
        from compress.models.model_input import describe_input

        return describe_input(self.spec, self.card)

    @property
    def name(self) -> str:
        """Name in tables: the last parts of its path, or its spec."""
        path = Path(self.spec)
        return "/".join(path.parts[-2:]) if os.path.exists(path) else self.spec


def load_predictor(
    spec: Any, *, untrained: bool = False, runtime: Runtime | None = None, progress: Progress = lambda _: None,
    arch: str | None = None, onnx_as_network: bool = False, **overrides: Any,
) -> Predictor:  # fmt: skip
    """Load a model or an exported file, and report what was read from it and what is assumed.

    Args:
        spec: What `load_model` accepts, or an .onnx, .xml or .engine file.
        untrained: Load library models by name with random weights (nothing is downloaded), and built-in architectures.
        runtime: Runtime of an exported file; None: its own.
        progress: Called with a line about the model's input, and with warnings.
        arch: Architecture of a state dict that is not recognized.
        onnx_as_network: Load an .onnx file as `load_model` does: a network that returns logits.
        **overrides: Other fields of `ModelOverrides`.

    Raises:
        UsageError: There is no such model, or `runtime` was given for a network.
        RunnerError: The file does not run.
    """
    from compress.models.overrides import ModelOverrides

    predictor = open_predictor(
        spec, ModelOverrides(architecture=arch, **overrides), untrained=untrained, runtime=runtime, progress=progress,
        onnx_as_network=onnx_as_network,
    )  # fmt: skip
    progress(predictor.input.summary)
    return predictor


def open_predictor(
    spec: Any, model_overrides: ModelOverrides, *, untrained: bool, runtime: Runtime | None, progress: Progress,
    onnx_as_network: bool,
) -> Predictor:  # fmt: skip
    from compress.models.loading import load_model
    from exporters.runtimes import SUFFIXES

    if not isinstance(spec, str | Path):
        module, card = load_model(spec, model_overrides)
        return Predictor(spec_name(spec), card, module_predict(module), module=module)
    spec = str(spec)
    suffix = Path(spec).suffix.lower()
    if suffix in SUFFIXES and not (onnx_as_network and suffix == ".onnx"):
        return load_file(spec, model_overrides, runtime, progress)
    if runtime is not None:
        raise UsageError(f"{spec}: {runtime} runs exported files; create one with `compress export {spec}`.")
    if untrained and is_architecture_name(spec):
        return untrained_predictor(spec, model_overrides)
    module, card = load_model(spec, model_overrides)
    return Predictor(spec, card, module_predict(module), module=module)


def spec_name(spec: Any) -> str:
    """Return a name or path as text, and the class name of an object."""
    return str(spec) if isinstance(spec, str | Path) else type(spec).__name__


def is_architecture_name(spec: str) -> bool:
    """Return whether `spec` is the name of an architecture, known or misspelled, and no file."""
    from compress.models.pretrained import PRETRAINED_PREFIXES
    from compress.models.registry import MODELS

    if os.path.exists(spec) or spec.startswith("embedded/"):
        return False
    is_bare = Path(spec).name == spec and not Path(spec).suffix and ":" not in spec
    return spec in MODELS or spec.startswith(PRETRAINED_PREFIXES) or is_bare


def untrained_predictor(name: str, overrides: ModelOverrides) -> Predictor:
    """Build an architecture with random weights, for its usual input size and class count."""
    from compress.models.card import ModelCard, with_sources
    from compress.models.overrides import apply_overrides
    from compress.models.pretrained import default_preprocessing
    from compress.models.registry import MODELS, build_network, infer_task

    grayscale = bool(overrides.grayscale)
    usual = default_preprocessing(name, grayscale=grayscale)
    library = SEGMENTATION_CLASSES if infer_task(name) == "segmentation" else LIBRARY_CLASSES
    classes = overrides.classes or (BUILT_IN_CLASSES if name in MODELS else library)
    card = ModelCard(
        name, classes, usual.image_size, infer_task(name), mean=usual.mean, std=usual.std, grayscale=grayscale,
        resize=usual.resize, provenance=with_sources({}, USUAL, "image_size", "resize", "mean", "std"),
    )  # fmt: skip
    card = apply_overrides(card, overrides, name)
    module = build_network(card).eval()  # raises for an unknown name
    return Predictor(name, card, module_predict(module), module=module, is_trained=False)


def module_predict(module: nn.Module) -> Callable[[Tensor], Tensor]:
    def predict(images: Tensor) -> Tensor:
        import torch

        with torch.no_grad():
            return module(images)

    return predict


def load_file(spec: str, overrides: ModelOverrides, runtime: Runtime | None, progress: Progress) -> Predictor:
    """Load an exported file in its runtime; a file without our card is described by `overrides`."""
    from compress.models.loading import load_model
    from exporters.loading import load

    path = Path(spec).expanduser()
    runner = load(path, runtime=runtime, trust_engine=overrides.trust_pickle)
    if runner.warning is not None:
        progress(f"Warning: {runner.warning}")
    if is_unknown_onnx(runner, path):
        module, card = load_model(spec, overrides)
        return Predictor(
            spec, card, module_predict(module), file=path, runtime=runner.runtime, precision=runner.precision,
            input_size=runner.input_size,
        )  # fmt: skip
    return predictor_from_runner(runner, spec, path, overrides)


def is_unknown_onnx(runner: Runner, path: Path) -> bool:
    """Whether a file is an ONNX file of another tool, of which `load_model` finds out what its output is."""
    from compress.models.metadata import CARD_KEY

    return (
        path.suffix.lower() == ".onnx"
        and runner.runtime == "onnxruntime"
        and CARD_KEY not in runner.metadata
        and not runner.expects_uint8
        and not runner.returns_labels
    )


def predictor_from_runner(runner: Runner, spec: str, path: Path, overrides: ModelOverrides) -> Predictor:
    """Wrap `runner` with the card of its file, or with a card from `overrides`."""
    from compress.models.metadata import card_from_metadata
    from compress.models.network import Normalize
    from compress.models.overrides import apply_overrides

    card = card_from_metadata(runner.metadata, path)
    normalizes = card is not None or runner.expects_uint8
    if normalizes and (overrides.mean is not None or overrides.std is not None):
        raise UsageError(f"{spec}: normalizes images itself; remove --mean and --std.")
    if card is None and len(runner.outputs) > 1:
        names = ", ".join(f"{name} {shape}" for name, shape in runner.outputs.items())
        raise UsageError(
            f"{spec}: found several outputs: {names}; run the .onnx file in onnxruntime with --output NAME|INDEX, or "
            "export the logits alone."
        )
    card = full_image_card(card, runner) if card is not None else card_from_runner(runner, spec, overrides)
    card = apply_overrides(card, overrides, spec)
    normalize: Callable[[Tensor], Tensor] = (
        identity if normalizes else Normalize(card.mean, card.std, grayscale=card.grayscale)
    )
    kind = runner.metadata.get("postprocess")
    return Predictor(
        spec, card, batched_predict(runner, normalize, card.classes if kind == "topk" else None), file=path,
        runtime=runner.runtime, precision=runner.precision, preprocesses=runner.expects_uint8,
        input_size=runner.input_size, returns_probabilities=kind in ("softmax", "topk"),
    )  # fmt: skip


def full_image_card(card: ModelCard, runner: ModelInfo) -> ModelCard:
    """Return the card with the size before the center crop, for files that crop images themselves."""
    if not runner.expects_uint8 or card.predicts_maps:
        return card
    side = card.resize or max(card.image_size)
    return replace(card, image_size=(side, side), resize=side)


def batched_predict(
    runner: Runner, normalize: Callable[[Tensor], Tensor], classes: int | None = None
) -> Callable[[Tensor], Tensor]:
    """Return a function that splits images into batches the file accepts and pads the last one.

    Probabilities by a sigmoid become logits. `classes` is the number of classes of a file that returns labels and
    probabilities of the best ones.
    """
    import numpy as np
    import torch

    from exporters.runtimes.base import to_uint8_images

    least, most = runner.batch_range
    call = runner if classes is None else partial(expand_top_k, runner, classes)
    has_probabilities = runner.metadata.get("postprocess") == "sigmoid"

    def predict(images: Tensor) -> Tensor:
        outputs = []
        for part in normalize(images.float()).split(most or len(images)):
            part = torch.cat([part, part[:1].expand(max(0, least - len(part)), -1, -1, -1)])
            outputs.append(call(to_uint8_images(part) if runner.expects_uint8 else part.numpy()))
        output = torch.from_numpy(np.concatenate(outputs)[: len(images)])
        return output.double().logit() if has_probabilities else output

    return predict


def expand_top_k(runner: Runner, classes: int, images: Images) -> OutputArray:
    """Return probabilities [n, classes] of a file that returns the best ones; 0 for the others."""
    import numpy as np

    labels, probabilities = runner.run(images).values()
    expanded = np.zeros((len(labels), classes), np.float32)
    np.put_along_axis(expanded, labels.astype(np.int64), probabilities.astype(np.float32), 1)
    return expanded


def identity(images: Tensor) -> Tensor:
    return images


def card_from_runner(runner: ModelInfo, spec: str, overrides: ModelOverrides) -> ModelCard:
    """Return a card for an exported file without one. Without mean and std, images are not normalized."""
    from compress.models.card import ASSUMED, ModelCard, with_sources
    from compress.models.exported_programs import EXPORTED

    size = runner.input_size or overrides.image_size
    classes = runner.classes or overrides.classes
    if size is None:
        raise UsageError(f"{spec}: the file does not contain its image size; give it with --image-size HxW.")
    if classes is None:
        raise UsageError(f"{spec}: the file does not contain its class count; give it with --classes.")
    if overrides.image_size not in (None, size):
        raise UsageError(f"{spec}: found --image-size {overrides.image_size}, expected {size[0]}x{size[1]}.")
    grayscale = bool(overrides.grayscale)
    channels = 1 if grayscale else 3
    task = "segmentation" if runner.predicts_maps else "classification"
    card = ModelCard(EXPORTED, classes, size, task=task, mean=(0.0,) * channels, std=(1.0,) * channels)
    assumed = () if runner.expects_uint8 else ("mean", "std")
    return replace(card, grayscale=grayscale, provenance=with_sources({}, ASSUMED, *assumed))
