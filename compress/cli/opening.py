"""From what a user calls a model to something that answers: a network, an exported file, or a bare architecture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from compress.cli.output import parse_size, say
from compress.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compress.models.card import Card
    from compress.models.wishes import Wishes
    from exporters.runtime import Runner, Runtime

Command = TypeVar("Command", bound=Callable[..., Any])
#: class counts of architectures named without weights: CIFAR-10's for our small ones, ImageNet's for the libraries',
#: VOC's for their segmenters
SMALL_CLASSES, LARGE_CLASSES, MAP_CLASSES = 10, 1000, 21


@dataclass(frozen=True)
class Opened:
    """A model, whatever it came from."""

    spec: str
    card: Card
    answer: Callable[
        [Tensor], Tensor
    ]  #: images [n, 3, h, w] in [0, 1] -> logits [n, classes, ...] or labels, on the CPU
    module: nn.Module | None = None  #: the network; None for an exported file
    file: Path | None = None  #: the exported file (.onnx, .xml, .engine); None for a network
    runtime: Runtime = "torch"  #: that answers
    precision: str = "fp32"  #: in which it really runs
    prepares: bool = False  #: a file that cuts and scales pictures itself
    trained: bool = True  #: False for an architecture with random weights

    @property
    def network(self) -> nn.Module:
        """The PyTorch network. Raises UsageError for a file that holds a graph for another runtime."""
        if self.module is None:
            raise UsageError(
                f"{self.spec}: an exported file; expected a PyTorch model (its folder, checkpoint or name)."
            )
        return self.module

    @property
    def name(self) -> str:
        """What to call it in a table: the last parts of its path, or its spec."""
        path = Path(self.spec)
        return "/".join(path.parts[-2:]) if path.exists() else self.spec


def options_with(sizes: Callable[..., Any], expected: str) -> Callable[[Command], Command]:
    arch = ("--teacher-arch", "--arch", "arch")
    size = ("--input-size", "--image-size", "image_size")
    options = [
        click.option(*arch, metavar="NAME", help="Of a bare state dict, if not recognised."),
        click.option("--classes", type=click.IntRange(min=2), help="Number of classes."),
        click.option(*size, callback=sizes, metavar=expected, help="In pixels."),
        click.option("--ema", is_flag=True, help="Take the averaged weights where the file has both."),
        click.option(
            "--trust-pickle",
            "--trust-engine",
            "trust_pickle",
            is_flag=True,
            help="Load a full pickle, TorchScript file or version-compatible engine. It can run any code.",
        ),
    ]

    def add(function: Command) -> Command:
        for option in reversed(options):
            function = option(function)
        return function

    return add


def parse_size_or_dynamic(context: click.Context, option: click.Parameter, value: str | None) -> Any:
    """`HxW` -> (height, width); "dynamic" stays."""
    return DYNAMIC if value == DYNAMIC else parse_size(context, option, value)


#: what --input-size may say to an export: any height and width
DYNAMIC = "dynamic"
#: Options for what a checkpoint may not say of itself, under the names that `open_model` takes.
model_options = options_with(parse_size, "HxW")
#: The same; `image_size` may be DYNAMIC.
export_options = options_with(parse_size_or_dynamic, "HxW|dynamic")


def open_model(spec: str, *, untrained: bool = False, runtime: Runtime | None = None, **wishes: Any) -> Opened:
    """The model that `spec` names, with the arguments of `load_model`; exported files too.

    `untrained`: a library's model by name comes with random weights (nothing is downloaded) and a built-in
    architecture may be named; enough to count and to time. `runtime`: what an exported file runs in, if not its own.
    Raises as `load_model` does, and RunnerError for a file that does not run.
    """
    from compress.models.loading import load_model
    from compress.models.wishes import Wishes
    from exporters.runtime import SUFFIXES

    if Path(spec).suffix.lower() in SUFFIXES:
        return open_file(spec, Wishes(**wishes), runtime)
    if runtime is not None:
        raise UsageError(f"{spec}: {runtime} runs exported files; write one with `compress export {spec}`.")
    if untrained and is_architecture(spec):
        return open_architecture(spec, Wishes(**wishes))
    module, card = load_model(spec, **wishes)
    say_what_was_chosen(spec, card)
    return Opened(spec, card, answer_of(module), module=module)


def say_what_was_chosen(spec: str, card: Card) -> None:
    """Print which architecture was taken for weights that fit several."""
    others = card.provenance.get("also_fits")
    if others:
        say(f"Assumed: {spec} is {card.architecture} (it also fits {', '.join(others)}). If wrong: --teacher-arch.")


def is_architecture(spec: str) -> bool:
    """Whether `spec` is a name of an architecture, known or misspelt, and nothing on the disk."""
    from compress.models import MODELS
    from compress.models.published import PREFIXES

    if Path(spec).exists() or spec.startswith("embedded/"):
        return False
    bare = Path(spec).name == spec and not Path(spec).suffix and ":" not in spec
    return spec in MODELS or spec.startswith(PREFIXES) or bare


def open_architecture(name: str, wishes: Wishes) -> Opened:
    """`name` with random weights, for the input and class count it is usually built for."""
    from compress.models import MODELS, network, task_of
    from compress.models.card import Card
    from compress.models.defaults import defaults

    usual = defaults(name, grey=bool(wishes.grey))
    large = MAP_CLASSES if task_of(name) == "segmentation" else LARGE_CLASSES
    classes = wishes.classes or (SMALL_CLASSES if name in MODELS else large)
    size = wishes.image_size or usual.image_size
    card = Card(name, classes, size, task_of(name), mean=usual.mean, std=usual.std, grey=bool(wishes.grey))
    card.resize = usual.resize
    module = network(card).eval()  # raises for a name that nobody knows
    return Opened(name, card, answer_of(module), module=module, trained=False)


def answer_of(module: nn.Module) -> Callable[[Tensor], Tensor]:
    def answer(images: Tensor) -> Tensor:
        import torch

        with torch.no_grad():
            return module(images)

    return answer


def open_file(spec: str, wishes: Wishes, runtime: Runtime | None) -> Opened:
    """An exported file where it runs: one of ours by its card, a stranger's by what the user says of it."""
    from exporters.runtime import load

    path = Path(spec).expanduser()
    return opened_as(load(path, runtime=runtime, trusted=wishes.trust_pickle), spec, path, wishes)


def opened_as(runner: Runner, spec: str, path: Path, wishes: Wishes) -> Opened:
    """What answers in `runner`, with the card that its file carries or the user describes."""
    from compress.models.metadata import from_metadata
    from compress.models.network import Normalise
    from compress.models.wishes import settle

    if runner.caution is not None:
        say(f"Warning: {runner.caution}")
    card = from_metadata(runner.metadata, path)
    prepares = card is not None or runner.takes_bytes
    if prepares and (wishes.mean is not None or wishes.std is not None):
        raise UsageError(f"{spec}: normalises images itself; leave out --mean and --std.")
    card = settle(uncut(card, runner) if card is not None else stranger(runner, spec, wishes), wishes, spec)
    normalise: Callable[[Tensor], Tensor] = unchanged if prepares else Normalise(card.mean, card.std, grey=card.grey)
    return Opened(
        spec,
        card,
        answer_of_file(runner, normalise),
        file=path,
        runtime=runner.runtime,
        precision=runner.precision,
        prepares=runner.takes_bytes,
    )


def uncut(card: Card, runner: Runner) -> Card:
    """What to give a file that prepares pictures: as much of them as it looks at, for it cuts the centre itself."""
    if not runner.takes_bytes or card.task != "classification":
        return card
    side = card.resize or max(card.image_size)
    return replace(card, image_size=(side, side), resize=side)


def answer_of_file(runner: Runner, normalise: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Images in batches as large as the file takes them; a batch that is too small for it is filled up."""
    import numpy as np
    import torch

    from exporters.runner import to_bytes

    fewest, most = runner.batches

    def answer(images: Tensor) -> Tensor:
        answers = []
        for part in normalise(images.float()).split(most or len(images)):
            part = torch.cat([part, part[:1].expand(max(0, fewest - len(part)), -1, -1, -1)])
            answers.append(runner(to_bytes(part) if runner.takes_bytes else part))
        return torch.from_numpy(np.concatenate(answers)[: len(images)])

    return answer


def unchanged(images: Tensor) -> Tensor:
    return images


def stranger(runner: Runner, spec: str, wishes: Wishes) -> Card:
    """The card of an exported file that carries none. Images go in as they are unless the user gives mean and std."""
    from compress.models.card import Card
    from compress.models.programs import EXPORTED

    size = runner.input_size or wishes.image_size
    classes = runner.classes or wishes.classes
    if size is None or classes is None:
        missing = "image size; give it with --image-size HxW" if size is None else "class count; give it with --classes"
        raise UsageError(f"{spec}: the file does not say its {missing}.")
    if wishes.image_size not in (None, size):
        raise UsageError(f"{spec}: reads images of {size[0]}x{size[1]}, found {wishes.image_size} asked for.")
    grey = bool(wishes.grey)
    channels = 1 if grey else 3
    task = "segmentation" if runner.dense else "classification"
    card = Card(EXPORTED, classes, size, task=task, mean=(0.0,) * channels, std=(1.0,) * channels)
    return replace(card, grey=grey)
