"""Settings of a training run: what a recipe file may say. Dataclasses only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from compress.config import setting
from compress.config.quantities import Classes, Count, Pixels
from compress.data.class_mapping import LabelOrder
from compress.engine.config import TrainingSchedule

Size = tuple[Pixels, Pixels]


@dataclass
class TaskConfig:
    """Task of the student. Taken from the teacher if there is one."""

    name: str | None = setting(
        None,
        "classification, multilabel_classification, segmentation or binary_segmentation; null: by the teacher or the "
        "labeled data.",
    )
    classes: Classes | None = setting(None, "Number of classes; null: that of the teacher or the labeled data.")
    image_size: Size | None = setting(None, "Input size (height, width) in pixels; null: the teacher's, or 32x32.")
    grayscale: bool | None = setting(None, "Convert images to grayscale first; null: as the teacher does.")
    resize: Pixels | None = setting(None, "Short side in pixels before cropping; null: the teacher's.")
    threshold: Annotated[float, Field(gt=0, lt=1)] | None = setting(
        None, "Probability above which a label or pixel is positive, for tasks with decisions; null: the teacher's."
    )


@dataclass
class TeacherConfig:
    """A trained model, and what its file does not record."""

    model: str = setting(description="Model name, model directory, run directory, checkpoint or exported program.")
    architecture: str | None = setting(None, "Architecture of a bare state dict; null: recognized.")
    mean: tuple[float, ...] | None = setting(None, "Normalization mean per channel, of values in [0, 1].")
    std: tuple[float, ...] | None = setting(None, "Normalization standard deviation per channel.")
    class_names: list[str] | None = setting(None, "A name for every class, in the order of the logits.")
    grayscale: bool | None = setting(None, "The model reads grayscale images.")
    ema: bool = setting(False, "Load the averaged weights of a file that contains both.")
    output: str | int | None = setting(None, "Name or index of the output with the logits, of a model with several.")
    allow_bad_teacher: bool = setting(False, "Train even if its score on the validation images is near chance.")
    trust_pickle: bool = setting(False, "Load a full pickle, which can run code.")
    fold_batchnorm: bool = setting(
        False, "Fold BatchNorm into the preceding convolutions: same outputs, less compute; not with method.bn."
    )


@dataclass
class StudentConfig:
    """The network that is trained."""

    model: str | None = setting(None, "Architecture; null: a small one that suits the image size.")
    weights: str | None = setting(None, "Model to start from instead of random weights.")


@dataclass
class DataConfig:
    """Images to train and validate on."""

    unlabeled: str | None = setting(None, "Unlabeled out-of-domain images: a folder, a name, hf/NAME or .tar shards.")
    labeled: str | None = setting(None, "Labeled images to train on.")
    validation: str | None = setting(None, "Labeled images to validate on; never trained on.")
    root: Path | None = setting(None, "Directory of the data sets that are known by name.")
    views: Count | None = setting(None, "Cached crops per unlabeled image; null: 1, or more if there are few images.")
    subset: Count | None = setting(None, "Number of images to keep, those of highest teacher entropy; null: all.")
    max_unreadable: Annotated[float, Field(ge=0, le=1)] = setting(
        0.01, "Fraction of unreadable images above which the run stops; unless it is 0, one image is allowed."
    )
    label_order: LabelOrder | None = setting(
        None, "Order of numbered class folders that the teacher was trained with: number (2, 10) or text (10, 2)."
    )
    cache_dir: Path | None = setting(None, "Directory of decoded images; null: the user's cache directory.")


@dataclass
class TrainConfig:
    """All settings of a training run: the contents of recipe.yaml."""

    task: TaskConfig = setting(factory=TaskConfig, description="Task of the student.")
    teachers: list[TeacherConfig] = setting(factory=list, description="Teachers; a method has none or one.")
    student: StudentConfig = setting(factory=StudentConfig, description="The network that is trained.")
    data: DataConfig = setting(factory=DataConfig, description="Images to train and validate on.")
    method: dict[str, Any] = setting(
        factory=lambda: {"name": "mosaic"}, description="Name of the method and its settings; see `compress methods`."
    )
    training: TrainingSchedule = setting(factory=TrainingSchedule, description="Length, batch size and device.")
