"""What a checkpoint contains and how far data is from its domain; the implementation of `compress.inspect`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.analysis.domain_shift import DomainShift, compare_domains
from compress.analysis.fid import ImageSetComparison
from compress.errors import UsageError
from compress.models.inspection import Inspection, inspect_model
from compress.models.model_input import ModelInput, describe_input
from compress.models.overrides import ModelOverrides
from compress.predictor import spec_name


@dataclass
class InspectionResult(Inspection):
    """A checkpoint, and its predictions for unlabeled images."""

    input: ModelInput | None = None  #: how the model reads images, and where these facts come from
    unlabeled: DomainShift | None = None  #: with `unlabeled`: predictions for these images
    reference: DomainShift | None = None  #: with `reference`: predictions for the images to compare with
    distance: ImageSetComparison | None = None  #: with `reference`: distance of both sets


def inspect(
    checkpoint: Any, *, unlabeled: Any, samples: int | None, reference: Any, patch_sizes: Sequence[int], features: Any,
    data_root: Path | None, progress: Callable[[str], None], arch: str | None = None, **options: Any,
) -> InspectionResult:  # fmt: skip
    """Describe a checkpoint; see `compress.inspect`."""
    overrides = ModelOverrides(architecture=arch, **options)
    if unlabeled is None and (reference or patch_sizes or features):
        raise UsageError("--reference, --patch-sizes, --features: need images to compare; give --ood too.")
    result = InspectionResult(**vars(inspect_model(checkpoint, overrides)))
    if result.card is not None:
        result.input = describe_input(spec_name(checkpoint), result.card)
        progress(result.input.summary)
    if unlabeled is not None:
        shift = compare_domains(
            checkpoint, overrides, unlabeled, reference=reference, patch_sizes=sorted(set(patch_sizes)),
            features=features, samples=samples, data_root=data_root,
        )  # fmt: skip
        result.unlabeled, result.reference, result.distance = shift.unlabeled, shift.reference, shift.distance
    return result
