"""`compress inspect`: what is in a checkpoint, and how far some data is from what it was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compress.cli.comparison import parse_sides
from compress.cli.old_options import common, emit, parse_size
from compress.errors import UsageError

if TYPE_CHECKING:
    from compress.models.inspection import Inspection


@click.command()
@click.argument("checkpoint")
@click.option("--teacher-arch", metavar="NAME", help="The architecture, where it is not recognised.")
@click.option("--ood", metavar="DATA", help="Out-of-domain data to ask the model about: a folder or a name.")
@click.option(
    "--ood-samples",
    type=click.IntRange(min=1),
    help="Images to ask about.  [default: 2000, fewer where answers are large maps]",
)
@click.option("--reference", metavar="DATA", help="Images to compare those with: of the model's own domain, or made.")
@click.option(
    "--patch-sizes", "sides", callback=parse_sides, metavar="1,2,4", help="Compare patches of so many pixels."
)
@click.option("--features", metavar="MODEL", help="Whose features they are compared by.  [default: the checkpoint's]")
@click.option("--data-root", type=click.Path(path_type=Path), help="Where data sets with a name lie.")
@click.option("--image-size", callback=parse_size, metavar="HxW", help="Image size, where the checkpoint does not say.")
@click.option("--ema", is_flag=True, help="Take the averaged weights where the file has both.")
@click.option("--trust-pickle", is_flag=True, help="Load a full pickle or TorchScript file. It can run any code.")
@common
def inspect(
    checkpoint: str,
    teacher_arch: str | None,
    ood: str | None,
    ood_samples: int | None,
    reference: str | None,
    sides: list[int] | None,
    features: str | None,
    data_root: Path | None,
    image_size: tuple[int, int] | None,
    ema: bool,
    trust_pickle: bool,
    as_json: bool,
) -> None:
    """Say what is in CHECKPOINT: format, architecture, classes, input, health; with --ood, how it sees that data.

    With --reference too, how far the two sets are apart: FID, of patches as well, and the classes side by side.

    \b
    Example:
      compress inspect embedded/fashion_wrn16_2
      compress inspect embedded/fashion_wrn16_2 --ood embedded/photos --ood-samples 200 \\
          --reference embedded/fashion --patch-sizes 8,18
    """
    from compress.models.inspection import inspect_model
    from compress.models.wishes import ModelOverrides

    wishes = ModelOverrides(architecture=teacher_arch, image_size=image_size, ema=ema, trust_pickle=trust_pickle)
    found = inspect_model(checkpoint, wishes)
    result: dict[str, Any] = found.as_dict()
    text = describe(found)
    if ood is not None:
        from compress.cli.comparison import compare

        seen = compare(
            checkpoint, wishes, ood, data_root, ood_samples, reference=reference, sides=sides, features=features
        )
        result |= seen.as_dict()
        text += "\n\n" + seen.describe()
    elif reference or sides or features:
        raise UsageError("--reference, --patch-sizes, --features: these compare the images of --ood; give that too.")
    emit(result, as_json=as_json, text=text)


def describe(found: Inspection) -> str:
    """The inspection for people: a name and a value a line, only what is known."""
    rows = [
        ("model", found.model),
        ("format", ", in ".join([found.format, " / ".join(found.wrapping)]).removesuffix(", in ")),
    ]
    rows += architecture(found) + reads(found) + health(found)
    if found.card is not None:
        rows += [(f"metrics.{key}", f"{value:.4f}") for key, value in found.card.metrics.items()]
        rows += [(key, short(value)) for key, value in found.card.provenance.items() if key != "assumed"]
    rows += [(key, short(value)) for key, value in found.metadata.items()]
    if found.sha256:
        rows.append(("sha256", found.sha256))
    if found.problem:
        rows.append(("problem", found.problem))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in rows)


def architecture(found: Inspection) -> list[tuple[str, str]]:
    if found.candidates:
        return [("architecture", f"one of {len(found.candidates)}: {', '.join(found.candidates)}")]
    also = f" (the same function: {', '.join(found.same_as)})" if found.same_as else ""
    return [("architecture", f"{found.architecture or 'not match_recognized'}{also}")]


def reads(found: Inspection) -> list[tuple[str, str]]:
    """What goes in and comes out."""
    card = found.card
    if card is None:
        return []
    names = card.class_names or []
    listed = f" ({', '.join(names[:10])}{', …' if len(names) > 10 else ''})" if names else ""
    assumed = card.provenance.get("assumed") or []
    note = f" (assumed: {', '.join(assumed)})" if assumed else ""
    height, width = card.image_size
    return [
        ("task", card.task),
        ("classes", f"{card.classes}{listed}"),
        ("input", f"{'grey' if card.grayscale else 'colour'} images of {height}x{width}{note}"),
        ("normalisation", f"mean {triple(card.mean)}, std {triple(card.std)}"),
    ]


def health(found: Inspection) -> list[tuple[str, str]]:
    if not found.dtypes:
        return []
    rows = [("tensors", ", ".join(f"{number} of {kind}" for kind, number in found.dtypes.items()))]
    if found.params is not None:
        rows.insert(0, ("parameters", f"{found.params:,}"))
    bad = ", ".join(found.non_finite)
    rows.append(("numbers", f"NaN or infinity in {bad}: this checkpoint is broken" if bad else "all finite"))
    if found.has_ema:
        rows.append(("averaged weights", "beside the plain ones; take them with --ema"))
    return rows


def triple(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 100 else text[:99] + "…"
