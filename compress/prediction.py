"""Predictions for images of the user; the implementation of `compress.predict`."""

from __future__ import annotations

import glob
import io
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.errors import CompressError, UsageError
from compress.files import read_json_object, sanitize, write_bytes, write_json

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from torch import Tensor

    from compress.data.dataset import ImageSet
    from compress.data.decoding import View
    from compress.models.model_input import ModelInput
    from compress.predictor import Predictor

    Progress = Callable[[str], None]

#: files of `output_dir`: the result, overlays and label maps
RESULT, OVERLAYS, LABELS = "predictions.json", "overlays", "labels"
#: marks our files in their metadata, so that others are not overwritten
PRODUCER = "compress predict"
#: pixels of a label map that no prediction covers
NO_LABEL = 255
#: rows that are blended at a time; a multiple of the period of stripes
BLENDED_ROWS = 240


@dataclass(frozen=True)
class ClassPrediction:
    """A class that a model predicts for an image."""

    index: int  #: number of the class, from 0
    name: str  #: its name, or its number
    probability: float | None  #: in [0, 1]; None for segmentation, and for files that return labels only
    share: float | None  #: segmentation: share of the image's pixels, in [0, 1]; else None


@dataclass(frozen=True)
class ImagePrediction:
    """What a model predicts for an image."""

    image: str  #: path of the image, or its name in a data set
    classes: list[ClassPrediction]  #: the most probable classes; segmentation: all that occur, the largest first
    labels: Path | None  #: PNG with the class number of every pixel, at the size of the image
    overlay: Path | None  #: PNG of the image with its classes in color


@dataclass(frozen=True)
class UnreadableImage:
    """An image that has no prediction."""

    image: str  #: path of the image
    reason: str  #: why it cannot be read


@dataclass(frozen=True)
class PredictionResult:
    """Predictions of a model for images."""

    model: str  #: as given
    #: "classification", "multilabel_classification", "segmentation" or "binary_segmentation"
    task: str
    runtime: str  #: "torch", or the runtime of an exported file
    precision: str  #: precision that really ran: "fp32", "fp16", "bf16" or "int8"
    class_names: list[str]  #: names of the classes, or their numbers, in the order of the logits
    input: ModelInput  #: how the model reads images, and where these facts come from
    predictions: list[ImagePrediction]  #: one per readable image, in the order of the arguments
    unreadable: list[UnreadableImage] = field(default_factory=list)  #: images that could not be read

    def raise_failures(self) -> None:
        """Raise CompressError if an image could not be read."""
        if self.unreadable:
            first, total = self.unreadable[0], len(self.unreadable) + len(self.predictions)
            raise CompressError(
                f"{first.image}: {first.reason}; {len(self.unreadable)} of {total} images have no prediction."
            )


def predict(
    model: Any, images: Any, *, top_k: int, output_dir: str | Path | None, data_root: Path | None, runtime: Any,
    progress: Progress, **overrides: Any,
) -> PredictionResult:  # fmt: skip
    """Predict images; see `compress.predict`."""
    out = None if output_dir is None else Path(output_dir)
    image_set = collect_images(images, out, data_root)
    from compress.predictor import load_predictor

    predictor = load_predictor(model, runtime=runtime, progress=progress, **overrides)
    card = predictor.card
    writer = None if out is None else PredictionWriter(out, image_set, predictor)
    names = card.decision_names
    sizes: dict[int, tuple[int, int]] = {}
    unreadable: dict[int, str] = {}
    predictions = []
    view = choose_view(image_set, predictor)
    for indices, output in iter_outputs(image_set, predictor, view, sizes, unreadable):
        for i, one in zip(indices, output, strict=True):
            labels, overlay = None, None
            if card.predicts_maps:
                region = LabelRegion.of(view, sizes[i], predictor)
                class_map = region.cut(one)
                classes = count_classes(class_map, names)
                if writer is not None:
                    labels, overlay = writer.write_maps(i, region.paste(class_map, sizes[i]))
            elif card.decides_by_threshold:
                classes = list_labels(one, names, card.threshold)
            else:
                classes = most_probable(one, names, top_k)
            predictions.append(ImagePrediction(image_set.name_of(i), classes, labels, overlay))
    result = PredictionResult(
        predictor.spec, card.task, predictor.runtime, predictor.precision, names, predictor.input, predictions,
        [UnreadableImage(image_set.name_of(i), reason) for i, reason in sorted(unreadable.items())],
    )  # fmt: skip
    if writer is not None:
        writer.write_result(result)
    return result


# Images.


def collect_images(images: Any, output_dir: Path | None, data_root: Path | None) -> ImageSet:
    """Return the images of paths, folders, globs, names of data sets, PIL images, and sequences of them.

    Folders are read at any depth, without `output_dir`.

    Raises:
        UsageError: There are no such images; the message names all that are missing.
    """
    from PIL import Image

    sources = images if isinstance(images, list | tuple) else [images]
    missing = [str(one) for one in sources if isinstance(one, str | Path) and not may_exist(str(one))]
    if missing:
        raise UsageError(f"{', '.join(missing)}: no such file; give images, folders, globs or names of data sets.")
    from compress.data import ImageSet, open_images

    opened: list[tuple[str, Callable[[], Any]]] = []
    for source in sources:
        if isinstance(source, Image.Image):
            opened.append((f"image {len(opened)}", lambda source=source: source))
        elif isinstance(source, str | Path) and (paths := find_paths(str(source), output_dir)) is not None:
            opened += [(str(path), lambda path=path: path) for path in paths]
        else:
            data = open_images(source, root=data_root, split="val")
            opened += [(name, lambda data=data, i=i: data.open_image(i)) for i, name in enumerate(data.names)]
    if not opened:
        raise UsageError("images: found none, expected at least one image.")
    return ImageSet("images", [name for name, _ in opened], lambda i: opened[i][1](), identity="")


def may_exist(source: str) -> bool:
    """Return False for the path of an image file that does not exist; other texts may be names of data sets."""
    from PIL import Image

    path = os.path.expanduser(source)
    is_image = Path(path).suffix.lower() in Image.registered_extensions()
    return not is_image or glob.has_magic(path) or os.path.lexists(path)


def find_paths(source: str, output_dir: Path | None) -> list[Path] | None:
    """Return the image files of a path, a folder or a glob, in natural order; None for the name of a data set.

    Raises:
        UsageError: A folder or a glob has no images.
    """
    from compress.data.dataset import readable_extensions
    from compress.data.folders import list_files, natural_sort_key

    path = Path(os.path.expanduser(source))
    if os.path.lexists(path) and not path.is_dir():
        return None if path.suffix == ".tar" else [path]
    if path.is_dir():
        found = list_files(path)
    elif glob.has_magic(source) and not source.endswith(".tar"):
        found = [Path(one) for one in glob.glob(str(path), recursive=True) if os.path.isfile(one)]
    else:
        return None
    own = None if output_dir is None else output_dir.resolve()
    found = [one for one in found if own is None or not one.resolve().is_relative_to(own)]
    images = [one for one in found if one.suffix.lower() in readable_extensions()]
    if not images:
        raise UsageError(f"{source}: found no images, expected files such as .jpg or .png.")
    return sorted(images, key=natural_sort_key)


# Predictions.


def choose_view(images: ImageSet, predictor: Predictor) -> View | None:
    """Return how images are prepared, as for scores; None for a file that crops maps out of images of any size."""
    from compress.training.data import evaluation_view

    if predictor.preprocesses and predictor.card.predicts_maps:
        return None
    return evaluation_view(images, predictor.card, predictor.input_size)


def iter_outputs(
    images: ImageSet, predictor: Predictor, view: View | None, sizes: dict[int, tuple[int, int]],
    unreadable: dict[int, str],
) -> Iterator[tuple[list[int], Tensor]]:  # fmt: skip
    """Decode images in parallel and yield indices and outputs of batches: probabilities, or labels.

    Fills in `sizes`, the (width, height) of each image, and `unreadable`, the reason for each image without output.
    """
    import numpy as np
    import torch

    from compress.data.dataset import UnreadableImageError
    from compress.data.decoding import Piece, Rows, map_in_order
    from compress.data.predictions import call_in_halves
    from compress.engine.accelerator import create_accelerator
    from compress.resources import usable_cores
    from compress.training.data import evaluation_batch_size

    accelerator = create_accelerator("cpu", "32")

    def decode(piece: Piece) -> Rows | str:
        try:
            image = images.read_image(piece[0])
        except UnreadableImageError as error:
            return str(error)
        sizes[piece[0]] = image.size
        return (np.asarray(image)[None], None) if view is None else view.make_rows(image, *piece)

    def forward(rows: list[np.ndarray]) -> Tensor:
        pixels = torch.from_numpy(np.concatenate(rows)).permute(0, 3, 1, 2)
        output = call_in_halves(predictor.predict, accelerator.to_float_images(pixels)).cpu()
        return to_decisions(output, predictor)

    batch_size = 1 if view is None else evaluation_batch_size(view.image_size)
    indices: list[int] = []
    rows: list[np.ndarray] = []
    for (i, _), result in map_in_order(decode, ((i, range(1)) for i in range(len(images))), usable_cores()):
        if isinstance(result, str):
            unreadable[i] = result
            continue
        indices.append(i)
        rows.append(result[0])
        if len(rows) == batch_size:
            yield indices, forward(rows)
            indices, rows = [], []
    if rows:
        yield indices, forward(rows)


def to_decisions(output: Tensor, predictor: Predictor) -> Tensor:
    """Return probabilities [n, classes], or label maps [n, h, w], or labels if the file returns nothing else.

    Labels are [n], or 0 and 1 [n, classes] of a model with a threshold.
    """
    from compress.tasks.decisions import decide

    if predictor.card.decides_by_threshold:
        if not predictor.card.predicts_maps:
            return output.float().sigmoid() if output.is_floating_point() else output.long()
        decisions = decide(output, predictor.card.threshold)
        return (decisions[:, 0] if output.ndim == 4 else decisions).long()
    if predictor.card.predicts_maps:
        return output.argmax(1) if output.ndim == 4 else output.long()
    if output.ndim == 1:
        return output.long()
    return output.float() if predictor.returns_probabilities else output.float().softmax(1)


def most_probable(output: Tensor, names: list[str], top_k: int) -> list[ClassPrediction]:
    """Return the classes of largest probability, the largest first; for a label, that class."""
    if output.ndim == 0:
        return [ClassPrediction(int(output), names[int(output)], None, None)]
    values, labels = output.topk(min(top_k, len(output)))
    return [
        ClassPrediction(c, names[c], value, None) for c, value in zip(labels.tolist(), values.tolist(), strict=True)
    ]


def list_labels(output: Tensor, names: list[str], threshold: float) -> list[ClassPrediction]:
    """Return the labels of an image, the most probable first; without probabilities if the file returns none."""
    if not output.is_floating_point():
        return [ClassPrediction(c, names[c], None, None) for c in output.nonzero()[:, 0].tolist()]
    values = enumerate(output.tolist())
    chosen = sorted(((value, c) for c, value in values if value > threshold), reverse=True)
    return [ClassPrediction(c, names[c], value, None) for value, c in chosen]


def count_classes(class_map: np.ndarray, names: list[str]) -> list[ClassPrediction]:
    """Return the classes of a label map with their share of its pixels, the largest first."""
    import numpy as np

    classes, counts = np.unique(class_map, return_counts=True)
    order = sorted(zip(counts.tolist(), classes.tolist(), strict=True), key=lambda pair: (-pair[0], pair[1]))
    return [ClassPrediction(c, names[c], None, count / class_map.size) for count, c in order]


@dataclass(frozen=True)
class LabelRegion:
    """Where a label map lies in its image."""

    height: int  #: rows of the map that show the image; the rest is padding
    width: int
    box: tuple[int, int, int, int]  #: left, top, right, bottom in pixels of the image

    @staticmethod
    def of(view: View | None, size: tuple[int, int], predictor: Predictor) -> LabelRegion:
        """Return the region of an image of (width, height) pixels."""
        from compress.data.decoding import center_box, full_image_scale, scaled_size

        if view is None:  # the file has cropped the center
            height, width = predictor.card.image_size
            left, top, scale = center_box(size, (height, width), predictor.card.resize)
            box = (round(left), round(top), round(left + width * scale), round(top + height * scale))
            return LabelRegion(height, width, box)
        width, height = scaled_size(size, full_image_scale(size, view.image_size, view.resize))
        return LabelRegion(height, width, (0, 0, *size))

    def cut(self, class_map: Tensor) -> np.ndarray:
        """Return the part of a label map [h, w] that shows the image."""
        return class_map[: self.height, : self.width].numpy()

    def paste(self, class_map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Return the labels uint8 [h, w] at the (width, height) of the image; NO_LABEL outside of the box."""
        import numpy as np
        from PIL import Image

        left, top, right, bottom = self.box
        image = Image.new("L", size, NO_LABEL)
        part = Image.fromarray(class_map.astype(np.uint8))
        image.paste(part.resize((right - left, bottom - top), Image.Resampling.NEAREST), (left, top))
        return np.asarray(image)


# Files.


class PredictionWriter:
    """Write predictions into a directory. Files of others are never replaced.

    Raises:
        UsageError: There is a file of others, two images have one name, or the classes do not fit a label map.
    """

    def __init__(self, output_dir: Path, images: ImageSet, predictor: Predictor) -> None:
        from profiles.report.colors import class_colors

        self.output_dir, self.images = output_dir, images
        card = predictor.card
        if not card.predicts_maps:
            self.names = []
        else:
            if len(card.decision_names) > NO_LABEL:
                raise UsageError(f"--out: found {card.classes} classes, expected at most {NO_LABEL} for label PNGs.")
            self.names = name_outputs(list(images.names))
            self.palette = class_colors(card.decision_names)
        check_own_files(output_dir, self.names)

    def write_maps(self, i: int, labels: np.ndarray) -> tuple[Path, Path]:
        """Write the label map of image `i` and its overlay; return their paths."""
        import numpy as np
        from PIL import Image

        from profiles.report.overlays import blend_labels

        pixels = np.asarray(self.images.read_image(i))
        parts = [slice(start, start + BLENDED_ROWS) for start in range(0, len(pixels), BLENDED_ROWS)]
        blended = np.concatenate([blend_labels(pixels[part], labels[part], self.palette) for part in parts])
        indexed = Image.fromarray(labels)
        # Palette indices are the class numbers. A palette of fewer than 256 colors would be saved with fewer bits.
        indexed.putpalette(self.palette.tobytes().ljust(3 * 256, b"\xff"))
        paths = [self.output_dir / kind / f"{self.names[i]}.png" for kind in (LABELS, OVERLAYS)]
        for path, image in zip(paths, (indexed, Image.fromarray(blended)), strict=True):
            write_png(path, image)
        return paths[0], paths[1]

    def write_result(self, result: PredictionResult) -> None:
        """Write all predictions as JSON."""
        content = {"producer": PRODUCER, **json.loads(json.dumps(asdict(result), default=str))}
        write_json(self.output_dir / RESULT, content)


def name_outputs(names: list[str]) -> list[str]:
    """Return the path of each output without its suffix, relative to the folder that contains all images.

    Raises UsageError if two images have the same one.
    """
    paths = [Path(os.path.abspath(name)) for name in names]
    top = os.path.commonpath([path.parent for path in paths])
    outputs = [sanitize(os.path.relpath(path.with_suffix(""), top), "_") for path in paths]
    seen: dict[str, str] = {}
    for name, output in zip(names, outputs, strict=True):
        if output in seen:
            raise UsageError(f"{name}: its output has the name of that of {seen[output]}; predict them separately.")
        seen[output] = name
    return outputs


def check_own_files(output_dir: Path, names: list[str]) -> None:
    """Raise UsageError for the first existing file that `compress predict` did not write."""
    from PIL import Image

    path = output_dir / RESULT
    if os.path.lexists(path) and read_json_object(path).get("producer") != PRODUCER:
        raise UsageError(f"{path}: exists and was not written by this command; choose another --out.")
    for name in names:
        for kind in (LABELS, OVERLAYS):
            path = output_dir / kind / f"{name}.png"
            if not os.path.lexists(path):
                continue
            try:
                with Image.open(path, formats=("PNG",)) as image:
                    is_own = image.info.get("Software") == PRODUCER
            except (OSError, ValueError, SyntaxError):
                is_own = False
            if not is_own:
                raise UsageError(f"{path}: exists and was not written by this command; choose another --out.")


def write_png(path: Path, image: Image.Image) -> None:
    """Write a PNG atomically, marked as ours."""
    from PIL.PngImagePlugin import PngInfo

    words = PngInfo()
    words.add_text("Software", PRODUCER)
    file = io.BytesIO()
    image.save(file, "PNG", pnginfo=words)
    write_bytes(path, file.getvalue())
