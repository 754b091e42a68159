"""Which images an engine is for: ranges of batch and size, against what the ONNX file leaves open."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from exporters.failure import ExportError
from exporters.sidecar import Port, Profile

Size = tuple[int, int]
Range = tuple[int, int, int]


@dataclass(frozen=True)
class Shapes:
    """What an engine takes. Raises ExportError for ranges that are none."""

    batch: Range = (1, 1, 1)  #: fewest images at a time, how many it is fastest for, most
    size: Size | tuple[Size, Size, Size] | None = (
        None  #: (height, width), or least, fastest, greatest; None: the file's
    )

    def __post_init__(self) -> None:
        named = {"batch": self.batch}
        if self.sizes is not None:
            named |= {"height": self.sizes[0], "width": self.sizes[1]}
        for name, (low, best, high) in named.items():
            if not 1 <= low <= best <= high:
                raise ExportError(f"{name}: found {low}:{best}:{high}, expected least:best:most from 1 on, as 1:8:64.")

    @property
    def sizes(self) -> tuple[Range, Range] | None:
        """Ranges of height and width."""
        match self.size:
            case None:
                return None
            case (int(height), int(width)):
                return (height, height, height), (width, width, width)
            case (least, best, most):
                return (least[0], best[0], most[0]), (least[1], best[1], most[1])


def profile_of(source: Path, port: Port, shapes: Shapes) -> Profile:
    """The shapes for the images of an ONNX file, float [n, 3, h, w] or uint8 [n, h, w, 3].

    Raises ExportError where the file fixes an axis to something else, or leaves one open that no range was given for.
    """
    high = 1 if port.type == "uint8" else 2
    names = {0: "batch", high: "height", high + 1: "width"}
    ranges = {0: shapes.batch} | dict(enumerate(shapes.sizes or (), start=high))
    axes: list[Range] = []
    for axis, extent in enumerate(port.shape):
        name, wanted = names.get(axis, "channels"), ranges.get(axis)
        if isinstance(extent, int):
            if wanted is not None and set(wanted) != {extent}:
                raise ExportError(
                    f"{source}: its {name} is fixed to {extent}, asked for {text(wanted)}; ask for {extent}, or "
                    f"export an ONNX file that leaves the {name} open."
                )
            wanted = (extent, extent, extent)
        if wanted is None:
            raise ExportError(
                f"{source}: it leaves the {name} open, and no range was given for it; "
                + ("an engine needs a fixed one." if name == "channels" else "give the size of the images, or a range.")
            )
        axes.append(wanted)
    least, best, most = zip(*axes, strict=True)
    return Profile(least, best, most)


def text(wanted: Range) -> str:
    low, best, high = wanted
    return str(low) if low == high else f"{low}:{best}:{high}"
