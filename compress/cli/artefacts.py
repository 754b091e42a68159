"""What `compress export` makes: a verified file for each format and precision asked for, and why not for the others."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.cli.output import say, table
from compress.errors import UsageError

if TYPE_CHECKING:
    from compress.cli.calibrating import Calibration
    from compress.models.card import Card
    from exporters.comparison import Tolerance
    from exporters.lowering import Artefact, Format, Precision, Settings
    from exporters.onnx import Export, Question
    from exporters.runtime import Runner, Runtime

#: what the metadata of a file say beside the model's card, where it differs from the plain one
BYTES = "images: uint8 RGB, NHWC, any height and width; the graph cuts out the centre, scales and normalises it"
ANSWERS = {
    "argmax": "labels: uint8 [batch] or [batch, height, width], the class of the greatest logit",
    "softmax": "probabilities: float32 [batch, classes, ...], they sum to 1 over the classes",
    "topk": "labels: int32 [batch, k], best first; probabilities: float32 [batch, k]",
}
#: int8 beyond this share of the fp32 file's latency is not worth its loss
FASTER = 1.0


@dataclass(frozen=True)
class Order:
    """What is asked for."""

    formats: tuple[Format, ...]
    precisions: tuple[Precision, ...]
    out: Path  #: of one artefact the file, of several the folder
    opset: int
    exporter: Any

    @property
    def wanted(self) -> list[tuple[Format, Precision]]:
        return [(format, precision) for format in self.formats for precision in self.precisions]

    def path(self, format: Format, precision: Precision) -> Path:
        """Where an artefact goes: `model.onnx`, `model.int8.onnx`, `model.fp16.tensorrt-rtx.engine`."""
        return self.out if len(self.wanted) == 1 else self.out / file_name(format, precision)


def file_name(format: Format, precision: Precision) -> str:
    """What an artefact is called among others of its model."""
    from exporters.lowering import SUFFIX

    parts = ["model", *([] if precision == "fp32" else [precision])]
    return ".".join([*parts, *([format] if format.startswith("tensorrt") else [])]) + SUFFIX[format]


@dataclass
class Outcome:
    """What came of an order."""

    source: Export  #: the fp32 graph that all were made from
    made: list[Artefact] = field(default_factory=list)
    rejected: list[dict[str, str]] = field(default_factory=list)  #: format, precision, reason


def produce(question: Question, order: Order, metadata: dict[str, str], settings: Settings) -> Outcome:
    """Make all that is ordered. What is rejected does not stop the others.

    Raises ExportError where already the fp32 graph answers otherwise than PyTorch, UnwritableError where a file cannot
    be written.
    """
    from exporters.failure import ExportError, UnwritableError
    from exporters.lowering import make
    from exporters.onnx import write_onnx

    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "model.onnx"
        source = write_onnx(
            question, base, opset=order.opset, metadata=metadata, exporter=order.exporter, name=order.out,
            tolerance=settings.tolerances["fp32"].max_rel,
        )  # fmt: skip
        outcome = Outcome(source)
        for format, precision in order.wanted:
            path = order.path(format, precision)
            try:
                outcome.made.append(make(question, base, path, format, precision, settings))
            except UnwritableError:
                raise
            except ExportError as error:
                outcome.rejected.append({"format": format, "precision": precision, "reason": str(error)})
                say(f"Error: {error}")
    return outcome


def beyond_the_card(question: Question) -> dict[str, str]:
    """What the metadata say of the files beside what they say of their model."""
    source = question.source
    size = "any" if source.dynamic_size or source.framing is not None else "image_size"
    found = {"postprocess": source.postprocess, "input_size": size, "precision": "fp32"}
    if source.framing is not None:
        found["input"] = BYTES
    if source.postprocess != "none":
        found["output"] = ANSWERS[source.postprocess]
    return found


def tolerances(tolerance: float | None, min_agreement: float | None) -> dict[str, Tolerance]:
    """What each precision must keep to, with what the user says of it in the place of the usual."""
    from dataclasses import replace

    from exporters.comparison import TOLERANCES

    found = dict(TOLERANCES)
    for precision, usual in found.items():
        if tolerance is not None:
            found[precision] = usual = replace(usual, max_rel=tolerance, cosine=-1.0)
        if min_agreement is not None and precision != "fp32":
            found[precision] = replace(usual, disagreement=1 - min_agreement)
    return found


def refuse_slower(card: Card) -> Callable[[Path, Path, Runtime], None]:
    """A look at an int8 draft beside its fp32 file: raises RejectedError where it takes longer for one image."""

    def look(base: Path, draft: Path, runtime: Runtime) -> None:
        from compress.cli.measuring import candidate, threads_kept
        from exporters.failure import RejectedError
        from profiles.latency import measure_alternated

        named = {
            name: candidate(path, card, 1, runtime=runtime if path is base else None)
            for name, path in (("fp32", base), ("int8", draft))
        }
        with threads_kept():
            timed = measure_alternated(named, duration_s=1.0)
        whole, small = timed["fp32"].latency_ms_p50, timed["int8"].latency_ms_p50
        if small > FASTER * whole:
            raise RejectedError(
                f"slower: {small:.2f} ms an image, fp32 {whole:.2f} ms, in {timed['int8'].runtime} on this machine, in "
                "turns; --allow-slower keeps it all the same."
            )

    return look


def score_on(data: str, card: Card, root: Path | None) -> Callable[[Runner], float]:
    """The accuracy or mIoU of an exported file on labelled images."""
    from compress.cli.opening import answer_of_file, unchanged
    from compress.engine.place import open_place
    from compress.sources import cache_folder, scorer, validation_images

    images = validation_images(data, card, root=root, folder=cache_folder(), max_bad=0.01, say=say)
    score = scorer(images, card, open_place("cpu", "32"))
    return lambda runner: next(iter(score(answer_of_file(runner, unchanged)).values()))


def place_of(model: str, out: Path | None, wanted: list[tuple[Format, Precision]]) -> Path:
    """Where an order goes: of one artefact a file, of several a folder. Without --out beside the model.

    Raises UsageError for an --out of the wrong kind.
    """
    from exporters.lowering import SUFFIX

    several, suffix = len(wanted) > 1, SUFFIX[wanted[0][0]]
    if out is None:
        path = Path(model)
        folder = path if path.is_dir() else path.parent if path.exists() else Path()
        if several:
            return folder / "export" if path.is_dir() else folder / f"{path.stem}-export"
        precision = wanted[0][1]
        stem = "model" if path.is_dir() or not path.exists() else path.stem
        return folder / f"{stem}{'' if precision == 'fp32' else f'.{precision}'}{suffix}"
    if several and (out.suffix in SUFFIX.values() or out.is_file()):
        raise UsageError(f"--out {out}: {len(wanted)} files are asked for, expected a folder for them.")
    if not several and out.suffix.lower() != suffix:
        if out.is_dir() or not out.suffix:
            return out / f"model{suffix}"
        raise UsageError(f"--out {out}: expected a name that ends in {suffix}, as {wanted[0][0]} files do.")
    return out


def describe(made: list[Artefact], images: str, calibration: Calibration | None) -> str:
    """What was made, for people: one file in full, several as a table."""
    lines = [alone(made[0], images)] if len(made) == 1 else [tabulated(made, images)] if made else []
    if made and calibration is not None:
        lines.append(f"int8 was calibrated on {calibration.images} images of {calibration.name}")
    seen = dict.fromkeys(one.unverified for one in made if one.unverified is not None)
    return "\n".join([*lines, *(f"not run here: {why}" for why in seen)])


def alone(artefact: Artefact, images: str) -> str:
    parity, sizes = artefact.parity, ", ".join(map(str, artefact.batch_sizes))
    lines = [
        f"{artefact.path}: {artefact.format} {artefact.precision}, {artefact.bytes / 1e6:.2f} MB",
        f"compared with PyTorch on {parity.images} images of {images}, batch sizes {sizes}, in {artefact.verified_in}",
    ]
    if parity.max_abs is not None:
        limit = "" if artefact.tolerance.max_rel is None else f" (tolerance {artefact.tolerance.max_rel:g})"
        lines.append(
            f"greatest difference {parity.max_abs:.2e}, {parity.max_rel:.2e} of the greatest logit{limit}; "
            f"mean {parity.mean_abs:.2e}, cosine similarity {parity.cosine:.6f}"
        )
    if parity.miou is None:
        lines.append(f"top-1 agreement {parity.top1_agreement:.2%}")
    else:
        lines.append(f"same label for {parity.top1_agreement:.4%} of the pixels, mIoU of the two {parity.miou:.4%}")
    return "\n".join([*lines, f"sha256 {artefact.sha256}"])


def tabulated(made: list[Artefact], images: str) -> str:
    maps = made[0].parity.miou is not None
    header = ["file", "format", "precision", "MB", "greatest difference", "cosine", "same answer", "compared in"]
    rows = [
        [
            one.path,
            one.format,
            one.precision,
            f"{one.bytes / 1e6:.2f}",
            "-" if one.parity.max_rel is None else f"{one.parity.max_rel:.1e}",
            "-" if one.parity.cosine is None else f"{one.parity.cosine:.6f}",
            f"{one.parity.top1_agreement:.2%}",
            one.verified_in,
        ]
        for one in made
    ]
    of = "pixels of " if maps else ""
    sizes = ", ".join(map(str, made[0].batch_sizes))
    compared = f"{of}{made[0].parity.images} images of {images}, batch sizes {sizes}"
    below = f"compared with PyTorch on {compared}; differences as a share of the greatest logit"
    return f"{table(rows, header)}\n\n{below}"
