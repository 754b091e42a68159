"""Domain shift of unlabeled images as a model sees them: its predictions, and the distance to a reference set."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compress.analysis.fid import FeatureExtractor, ImageSetComparison, compare_image_sets, sample_size
from compress.data import open_images
from compress.data.cache import ImageCache, build_cache, choose_view_count
from compress.data.dataset import ImageSet, UnreadableImageError
from compress.data.patches import check_patch_size
from compress.data.predictions import Predictions, predict
from compress.engine.hooks import capture_last_batchnorm
from compress.errors import UsageError
from compress.models.card import ModelCard
from compress.models.loading import load_model
from compress.models.network import Network
from compress.models.overrides import ModelOverrides
from compress.tasks import task_for_card

#: share of the predictions from which one class dominates
DOMINANT = 0.5
#: mean entropy, as a share of the largest possible, up to which a teacher is confident and from which it is uncertain
CONFIDENT, UNCERTAIN = 0.2, 0.6
#: shift from which images helped MosaicKD no more than none did (docs/methods/mosaic.md, Segmentation)
FAR = 0.18
#: crops to predict when there are few images, and images whose size is read
CROPS, SIZED = 1000, 32


@dataclass(frozen=True)
class DomainShift:
    """Predictions of a model for unlabeled images."""

    data: str  #: name of the images
    images: int  #: number of images
    sampled: int  #: images that were sampled, evenly spaced
    median_size: tuple[int, int] | None  #: (height, width) in pixels, before resizing
    unreadable: list[tuple[str, str]]  #: name and reason of each sampled image that cannot be read
    predictions: dict[str, Any]  #: entropy in nats, shares in [0, 1], histograms; `images` counts crops
    class_shares: dict[str, float]  #: share of the predictions by class, largest first
    shift: float | None  #: KL divergence at the last BatchNorm layer, nats per channel; null without BatchNorm
    recommendation: str  #: method that suits these images


@dataclass(frozen=True)
class DomainComparison:
    """Predictions for unlabeled images, and for a reference set if there is one."""

    unlabeled: DomainShift  #: the unlabeled images
    reference: DomainShift | None = None  #: the reference set
    distance: ImageSetComparison | None = None  #: distance of both sets


def compare_domains(
    checkpoint: Any, overrides: ModelOverrides, unlabeled: Any, *, reference: Any = None,
    patch_sizes: Sequence[int] = (), features: Any = None, samples: int | None = None, data_root: Path | None = None,
) -> DomainComparison:  # fmt: skip
    """Predict unlabeled images, and compare them with a reference set.

    Args:
        checkpoint: model as for `load_model`.
        overrides: what the checkpoint does not record.
        unlabeled: images as for `open_images`.
        reference: images to compare with, in-domain or generated.
        patch_sizes: sizes in pixels at which patches are compared.
        features: model whose features are compared; None: the checkpoint.
        samples: number of images to sample; None: `sample_size`.
        data_root: directory of data sets that are known by name.
    """
    if not reference and (patch_sizes or features):
        raise UsageError(f"--{'patch-sizes' if patch_sizes else 'features'}: found no --reference to compare with.")
    model, card = load_model(checkpoint, overrides)
    for size in patch_sizes:
        check_patch_size(size, *card.image_size)
    extractor = FeatureExtractor(*load_model(features), features) if features else None
    if reference and extractor is None:
        extractor = FeatureExtractor(model, card, checkpoint)
    with tempfile.TemporaryDirectory(prefix="compress-inspect-", ignore_cleanup_errors=True) as folder:
        options = {"samples": samples, "data_root": data_root, "folder": Path(folder)}
        shift, images = measure_domain_shift(model, card, unlabeled, **options)
        if extractor is None:
            return DomainComparison(shift)
        reference_shift, others = measure_domain_shift(model, card, reference, **options, is_reference=True)
        return DomainComparison(shift, reference_shift, compare_image_sets(extractor, images, others, patch_sizes))


def measure_domain_shift(
    model: Network, card: ModelCard, data: Any, *, samples: int | None, data_root: Path | None, folder: Path,
    is_reference: bool = False,
) -> tuple[DomainShift, ImageCache]:  # fmt: skip
    """Predict a sample of images, decoded into `folder`; also return the decoded images.

    A reference set is the validation split if there is one, and is not cropped at random.
    """
    images = open_images(data, root=data_root, split="val" if is_reference else "train").without_labels()
    count = samples or sample_size(card)
    sampled = sample_images(images, count)
    views = 1 if is_reference else choose_view_count(len(sampled), target=min(CROPS, count))
    cache = build_cache(
        sampled, image_size=card.image_size, resize=card.resize, views=views, folder=folder, max_unreadable=1.0
    )
    rows = task_for_card(card).rows
    names, what = card.class_names, "the pixels of these images" if card.predicts_maps else "these images"
    if card.task == "binary_segmentation":
        names = card.decision_names
    elif card.task == "multilabel_classification":
        names, what = ["absent", "present"], "the labels of these images"
    with capture_last_batchnorm(model) as statistics:
        predictions = predict(cache, lambda x: rows(model(x)), None if card.predicts_maps else 64)
    shift = statistics.kl_divergence() if statistics else None
    result = DomainShift(
        data=images.name if not isinstance(data, str) else data,
        images=len(images),
        sampled=len(sampled),
        median_size=median_image_size(sampled),
        unreadable=cache.unreadable,
        predictions=predictions.summary(),
        class_shares=shares_by_class(predictions, names),
        shift=shift,
        recommendation=recommend_method(predictions, names, what) + shift_advice(predictions, shift),
    )
    return result, cache


def shares_by_class(predictions: Predictions, names: list[str] | None) -> dict[str, float]:
    """Return the share of the predictions by class, largest first."""
    shares = predictions.summary()["class_shares"]
    order = sorted(range(predictions.classes), key=lambda i: -shares[i])
    return {names[i] if names else f"class {i}": shares[i] for i in order}


def recommend_method(predictions: Predictions, names: list[str] | None, what: str = "these images") -> str:
    """Recommend a method for these predictions of images, pixels or labels (`what`), in one sentence."""
    summary, remedy = predictions.summary(), "use --method mosaic and keep its balance term."
    largest = next(iter(shares_by_class(predictions, names)))
    share, missing = summary["largest_share"], summary["classes_never_predicted"]
    entropy = summary["entropy_mean"] / summary["entropy_max"]
    if share >= DOMINANT:
        return f"The teacher predicts {largest!r} for {share:.0%} of {what}: expect weak plain KD; {remedy}"
    if missing:
        classes = f"{missing} of its {predictions.classes} classes"
        return f"The teacher never predicts {classes}: expect weak plain KD; {remedy}"
    if entropy >= UNCERTAIN:
        return f"The teacher is uncertain about most of {what}: far from its domain; use --method mosaic."
    if entropy <= CONFIDENT:
        return f"The teacher is confident about {what} and predicts all its classes: plain KD will also work well."
    return "The teacher predicts all its classes with medium confidence: plain KD works, --method mosaic works better."


def shift_advice(predictions: Predictions, shift: float | None) -> str:
    """Add to the recommendation that far images may help MosaicKD less than no images."""
    if shift is None or shift < FAR or predictions.pixels is None:
        return ""
    return (
        " They are far from the training data: closer images would help more, and MosaicKD without images, "
        "--set method.local=0 --set method.ood_fraction=0, may do as well."
    )


def sample_images(images: ImageSet, count: int) -> ImageSet:
    """Return at most `count` of the images, evenly spaced."""
    if len(images) <= count:
        return images
    indices = [i * len(images) // count for i in range(count)]
    return replace(
        images,
        names=[images.name_of(i) for i in indices],
        open_image=lambda i: images.open_image(indices[i]),
        identity=f"{images.identity} {count} of {len(images)}",
        labels=None,
        open_mask=None,
    )


def median_image_size(images: ImageSet) -> tuple[int, int] | None:
    """Return the median (height, width) of a sample of the readable images."""
    sizes = []
    for i in range(0, len(images), max(1, len(images) // SIZED)):
        try:
            width, height = images.read_image(i).size
        except UnreadableImageError:
            continue
        sizes.append((height, width))
    return sorted(sizes, key=lambda size: size[0] * size[1])[len(sizes) // 2] if sizes else None
