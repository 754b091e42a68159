"""One door for every teacher: name, folder, run, a stranger's checkpoint, program -> a network and its card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

from torch import nn

from compress.errors import CompressError, UsageError, nearest
from compress.files import sha256
from compress.models import body, is_own, network, task_of
from compress.models.archive import kind_of
from compress.models.blackbox import OnnxProgram, load_onnx
from compress.models.card import Card
from compress.models.fingerprint import CLASSES
from compress.models.folder import is_model_folder, load_model_folder
from compress.models.foreign import from_weights
from compress.models.network import Network
from compress.models.programs import load_program, load_script, unknown
from compress.models.published import PREFIXES, published
from compress.models.segmenters import answer_hook
from compress.models.weights import read_weights
from compress.models.wishes import Wishes, settle

#: where a run folder keeps its models, the first found is taken
RUN_PARTS = ("best", "student", "last")


def load_model(
    spec: str,
    *,
    arch: str | None = None,
    classes: int | None = None,
    image_size: tuple[int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    grey: bool | None = None,
    class_names: Sequence[str] | None = None,
    trust_pickle: bool = False,
    ema: bool = False,
    resize: int | None = None,
) -> tuple[Network, Card]:
    """The model that `spec` names, in eval mode on the CPU: images [n, 3, h, w] in [0, 1] -> logits [n, classes], or
    [n, classes, h, w] where the card's task is segmentation.

    `spec`: `embedded/NAME`, a model folder, a run folder, a .pt/.pth/.safetensors file, a `torch.export` program
    (.pt2), a TorchScript file, an .onnx file (which gives answers, no gradients), `torchvision/NAME` or `timm/NAME`
    (with their published weights), or the user's own `package.module:factory`. The other arguments fill in, or
    override, what the model does not say of itself.

    Raises UsageError for a request that cannot be right (no such file or name, another class count), CompressError for
    a file that is damaged, hostile or does not fit.
    """
    wishes = Wishes(arch, classes, image_size, mean, std, grey, class_names, trust_pickle, ema, resize)
    if spec.startswith(PREFIXES):
        inner, card = published(spec)
    elif is_own(spec) and not Path(spec).exists():
        inner, card = own(spec, wishes)
    else:
        path = find(spec)
        inner, card = load_folder(path, wishes) if path.is_dir() else load_file(path, wishes)
    card = settle(card, wishes, spec)
    return Network(inner, seen(inner, card)).eval(), card


def seen(inner: nn.Module, card: Card) -> Card:
    """The card by which a network prepares the images for `inner`: an ONNX file of our own export does that itself."""
    if isinstance(inner, OnnxProgram) and inner.normalises:
        return replace(card, mean=(0.0,) * 3, std=(1.0,) * 3, grey=False)
    return card


def find(spec: str) -> Path:
    """The file or folder that `spec` means. Raises UsageError where there is none."""
    if spec.startswith("embedded/"):
        name, known = spec.removeprefix("embedded/"), embedded_names()
        if name not in known:
            raise UsageError(
                f"{spec}: no such embedded model{nearest(name, known)}; known: {', '.join(known) or 'none'}."
            )
        return embedded_root() / name
    path = Path(spec).expanduser()
    if not path.exists():
        raise UsageError(f"{spec}: no such file or folder; see `compress models` for models known by name.")
    return path


def embedded_root() -> Path:
    return Path(str(resources.files("compress"))) / "embedded"


def embedded_names() -> list[str]:
    """Models shipped with the package: what may follow `embedded/`."""
    return sorted(folder.name for folder in embedded_root().iterdir() if folder.is_dir() and is_model_folder(folder))


def load_folder(folder: Path, wishes: Wishes) -> tuple[nn.Module, Card]:
    """The body in a model folder, or of the best model in a run folder."""
    places = (folder, *(folder / part for part in RUN_PARTS))
    found = next((place for place in places if is_model_folder(place)), None)
    if found is None:
        raise UsageError(f"{folder}: neither a model folder (config.json) nor a run with {', '.join(RUN_PARTS)} in it.")
    model, card = load_model_folder(found, own=wishes.arch)
    return model.body, card


def own(spec: str, wishes: Wishes) -> tuple[nn.Module, Card]:
    """A network that the user's own factory makes, weights and all."""
    model = body(spec, classes=wishes.classes or CLASSES).eval()
    return model, replace(unknown(model, spec, wishes), architecture=spec)


def load_file(path: Path, wishes: Wishes) -> tuple[nn.Module, Card]:
    """The body in a file: a program, weights of some architecture, or a module from a trusted pickle."""
    kind = kind_of(path)
    if kind == "onnx":
        return load_onnx(path, wishes)
    if kind == "script" and not wishes.trust_pickle:
        raise CompressError(
            f"{path}: TorchScript can write any file when it runs; export it with torch.export (.pt2), or load it "
            "with --trust-pickle if you trust it."
        )
    if kind != "weights":
        program, signature = load_program(path) if kind == "program" else load_script(path)
        return program, replace(unknown(program, str(path), wishes, signature), sha256=sha256(path))
    weights = read_weights(path, trust_pickle=wishes.trust_pickle, ema=wishes.ema)
    if weights.module is None or wishes.arch is not None:
        return from_weights(path, weights, wishes)
    weights.module.register_forward_hook(answer_hook)
    card = unknown(weights.module, str(path), wishes)
    return weights.module, replace(card, sha256=sha256(path), class_names=weights.class_names)


def new_model(architecture: str, *, like: Card) -> tuple[Network, Card]:
    """A fresh network with random weights for the task, classes, image size and normalisation of `like`.

    Raises UsageError for an architecture that is for another task.
    """
    task = task_of(architecture)
    if task != like.task:
        raise UsageError(
            f"{architecture}: a network for {task}, expected one for {like.task}, as the teacher (or the data) is; "
            "see `compress models`."
        )
    card = replace(like, architecture=architecture, metrics={}, provenance={}, sha256=None)
    return network(card), card
