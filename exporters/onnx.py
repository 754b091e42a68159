"""A network as one ONNX file that has proven, on images, that it answers as PyTorch does.

Two exporters are tried in turn: torch.export's graph ("dynamo"), then the tracer ("torchscript"). Each result goes
through the ONNX checker and runs in ONNX Runtime at several batch sizes. A file that fails never gets its name.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from exporters.comparison import BATCHES, TOLERANCES, Tolerance, batches_of, framed, odd_batches, verify
from exporters.failure import ExportError, RunnerError, first_line
from exporters.graph import WRITERS, Signature, finish, silence
from exporters.parity import Parity
from exporters.publishing import drafting, publish, sha256, size_of
from exporters.runner import Answer, Images, Runner
from exporters.runtime import load
from exporters.wrapping import OUTPUTS, Framing, Postprocess, Prepared, answering

__all__ = ["BATCHES", "Export", "Exporter", "Framing", "Postprocess", "Question", "Source", "export", "source"]

Exporter = Literal["auto", "dynamo", "torchscript"]
Batches = Sequence[NDArray[Any]]
TRACED_BATCH = 3
#: size of the picture that a graph with preparation is traced with; no picture that it is compared on has it
TRACED_FRAME = (45, 61)
LOWEST_OPSET = 18
#: what exporters, the checker and serialisation raise for a network that they cannot write
FAILURES = (
    ExportError,
    RunnerError,
    onnx.checker.ValidationError,
    onnx.shape_inference.InferenceError,
    torch.onnx.errors.OnnxExporterError,
    *(RuntimeError, ValueError, TypeError, AssertionError, AttributeError, KeyError, IndexError, ImportError, OSError),
)


@dataclass(frozen=True)
class Source:
    """A network to export, and all that its files shall have around it."""

    network: nn.Module  #: images [n, 3, h, w] -> logits [n, classes, ...], a copy of the user's
    example: Tensor  #: [n, 3, h, w]; gives the image size, and the batch size unless it is open
    dynamic_batch: bool = True
    dynamic_size: bool = False  #: images of any height and width
    framing: Framing | None = None  #: pictures as bytes of any size go in, and are prepared in the graph
    postprocess: Postprocess = "none"

    @property
    def signature(self) -> Signature:
        size = 1 if self.framing is not None else 2 if self.dynamic_size else None
        return Signature(self.dynamic_batch, size, OUTPUTS[self.postprocess])

    def graph(self) -> nn.Module:
        """What is exported: preparation, network, decision."""
        inner = self.network if self.framing is None else Prepared(self.network, self.framing).eval()
        return answering(inner, self.traced(), self.postprocess)

    def traced(self) -> Tensor:
        """What the exporter sees: a batch size that the comparison does not use, unless the example's is the only one.

        Of pictures a size that it does not use either.
        """
        count = TRACED_BATCH if self.dynamic_batch else len(self.example)
        if self.framing is not None:
            generator = torch.Generator().manual_seed(0)
            return torch.randint(0, 256, (count, *TRACED_FRAME, 3), dtype=torch.uint8, generator=generator)
        return self.example[:1].expand(count, -1, -1, -1).contiguous()


@dataclass(frozen=True)
class Question:
    """What every artefact of a source is asked, and what PyTorch answers."""

    source: Source
    batches: Batches  #: as the file takes them
    real: bool  #: images that were given, not noise

    @cached_property
    def expected(self) -> list[Answer]:
        """PyTorch's logits (with "softmax" probabilities) for each batch, asked once for all artefacts."""
        source = self.source
        inner = source.network if source.framing is None else Prepared(source.network, source.framing)
        if source.postprocess == "softmax":
            inner = answering(inner, source.traced(), source.postprocess)
        runner = load(inner)
        return [runner(batch) for batch in self.batches]

    def put(self, artefact: Runner, tolerance: Tolerance) -> Parity:
        """How far an artefact's answers are from PyTorch's. Raises ExportError if that is further than `tolerance`."""
        answers = iter(self.expected)
        parity = verify(lambda _: next(answers), artefact, self.batches, tolerance)
        if self.source.postprocess != "topk":
            return parity
        whole = self.source.graph()

        def right(images: Images) -> Answer:
            with torch.inference_mode():
                return whole(torch.as_tensor(images))[1].numpy()

        best = verify(
            right, lambda x: artefact.run(x)["probabilities"], self.batches, replace(tolerance, disagreement=None)
        )
        return replace(best, top1_agreement=parity.top1_agreement)

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        return tuple(sorted({len(batch) for batch in self.batches}))


@dataclass(frozen=True)
class Export:
    """What was written, and how far it is from PyTorch."""

    path: str
    opset: int
    bytes: int
    sha256: str
    exporter: str  #: "dynamo" or "torchscript"
    parity: Parity
    tolerance: float  #: greatest parity.max_rel that would have passed; of maps, greatest share of other labels too
    postprocess: Postprocess  #: what the file answers with: OUTPUTS
    preprocess: bool  #: takes uint8 pictures [n, h, w, 3] of any size, and prepares them itself
    dynamic_size: bool  #: takes images of any height and width
    real_images: bool  #: compared on images that were given, not on noise
    batch_sizes: tuple[int, ...]  #: that were run
    refused: dict[str, str]  #: exporter that was tried first and failed -> why


def source(
    module: nn.Module,
    example: Tensor,
    *,
    images: Tensor | None = None,
    dynamic_batch: bool = True,
    dynamic_size: bool = False,
    framing: Framing | None = None,
    postprocess: Postprocess = "none",
) -> Question:
    """A module ready to be exported, and what its artefacts will be compared on; arguments as of `export`.

    Raises ExportError for a network that cannot be copied or does not take what it shall.
    """
    if dynamic_size and framing is not None:
        raise ExportError("pictures of any size are already taken where they are prepared in the graph; choose one.")
    network, example = copied(module), example.detach().float().cpu()
    given = Source(network, example, dynamic_batch, dynamic_size, framing, postprocess)
    answering(network, example, postprocess)
    floats = batches_of(example if images is None else images, example, dynamic_batch, noise=images is None)
    if dynamic_size:
        floats += odd_batches(network, floats[-1])
    batches: Batches = floats if framing is None else framed(floats)
    return Question(given, batches, images is not None)


def export(
    module: nn.Module,
    example: Tensor,
    path: str | Path,
    *,
    opset: int = LOWEST_OPSET,
    dynamic_batch: bool = True,
    metadata: Mapping[str, str] | None = None,
    images: Tensor | None = None,
    tolerance: float | None = None,
    exporter: Exporter = "auto",
    postprocess: Postprocess = "none",
    dynamic_size: bool = False,
    framing: Framing | None = None,
) -> Export:
    """Write `module` (float32 images [n, 3, h, w] -> logits) to `path` as one ONNX file, verified in ONNX Runtime.

    `example`: [n, 3, h, w], gives the image size (and the batch size unless `dynamic_batch`). `images`: [m, 3, h, w],
    real ones to compare on; noise in [0, 1] without. `tolerance`: greatest difference of a logit as a share of the
    greatest |logit|, and greatest share of the labels that may differ where the network answers with maps or the file
    with labels; 0.001 unless given. `framing`: the file takes uint8 pictures [n, h, w, 3] of any size, and prepares
    them.
    `postprocess`: "argmax" for uint8 labels, [n, h, w] of maps; "softmax" for probabilities; "topk" for the best five
    labels (int32) and their probabilities, [n, 5] each. `dynamic_size`: it takes images of any size, which two odd ones
    prove. `metadata` goes into the file. The module is left as it was.

    Raises ExportError, leaving what was at `path` untouched, if no exporter writes a file that passes.
    """
    question = source(
        module, example, images=images, dynamic_batch=dynamic_batch, dynamic_size=dynamic_size, framing=framing,
        postprocess=postprocess,
    )  # fmt: skip
    path = Path(path)
    with drafting(path) as draft:
        found = write_onnx(
            question, draft, opset=opset, metadata=metadata, tolerance=tolerance, exporter=exporter, name=path
        )
        publish(draft, path)
    return replace(found, path=str(path))


def write_onnx(
    question: Question,
    draft: Path,
    *,
    opset: int = LOWEST_OPSET,
    metadata: Mapping[str, str] | None = None,
    tolerance: float | None = None,
    exporter: Exporter = "auto",
    name: Path | None = None,
) -> Export:
    """Write the fp32 graph to `draft`, verified; what to do with it is the caller's. `name`: what errors call it."""
    if opset < LOWEST_OPSET:
        raise ExportError(f"opset {opset}: expected {LOWEST_OPSET} or more.")
    graph, images, given = question.source.graph(), question.source.traced(), question.source
    keeping = TOLERANCES["fp32"] if tolerance is None else Tolerance(tolerance, None)
    refused: dict[str, str] = {}
    for kind in exporters_for(given, exporter):
        try:
            finish(WRITERS[kind](graph, images, opset, given.signature), draft, opset, metadata or {})
            with load(draft) as runner:
                parity = question.put(runner, keeping)
        except FAILURES as error:
            refused[kind] = first_line(error)
            continue
        return Export(
            path=str(draft),
            opset=opset,
            bytes=size_of(draft),
            sha256=sha256(draft),
            exporter=kind,
            parity=parity,
            tolerance=keeping.max_rel or 0.0,
            postprocess=given.postprocess,
            preprocess=given.framing is not None,
            dynamic_size=given.dynamic_size,
            real_images=question.real,
            batch_sizes=question.batch_sizes,
            refused=refused,
        )
    why = "; ".join(f"{kind}: {reason}" for kind, reason in refused.items())
    raise ExportError(
        f"{name or draft}: not written, for no exporter gives a file that answers as PyTorch does ({why})."
    )


def exporters_for(given: Source, wanted: Exporter) -> tuple[str, ...]:
    """The exporters to try. Raises ExportError for one that cannot write what is asked for."""
    if given.framing is None:
        return ("dynamo", "torchscript") if wanted == "auto" else (wanted,)
    if wanted == "torchscript":
        raise ExportError(
            "the tracer writes the size of one picture into the graph; for pictures of any size take dynamo."
        )
    return ("dynamo",)


def copied(module: nn.Module) -> nn.Module:
    """A copy on the CPU, in float32 and eval mode throughout: the caller's module keeps its modes and device."""
    try:
        with torch.no_grad(), silence():
            return copy.deepcopy(module).float().cpu().eval()
    except (RuntimeError, TypeError) as error:
        raise ExportError(f"the network cannot be copied for the export ({first_line(error)}).") from error
