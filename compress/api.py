"""The public Python API: one documented function per command, with typed results.

`import compress` exposes everything here lazily. Functions print nothing; pass `progress=print` to see status lines.
Wherever a model name is accepted, a `torch.nn.Module` is accepted too; wherever a data name is accepted, a PyTorch
dataset or DataLoader is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack, cast

from compress.model_options import ModelOptions, TaskName, merge_model_options
from compress.training.launch import ignore

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.data import DataLoader, Dataset

    from compress.benchmarking import BenchmarkResult
    from compress.data.class_mapping import LabelOrder
    from compress.data.dataset import ImageSet
    from compress.demonstration import DemoResult
    from compress.environment import EnvironmentReport
    from compress.evaluation import EvaluationResult
    from compress.experiments.compare import ComparisonPlan, ComparisonResult
    from compress.experiments.sweep import SweepPlan, SweepResult
    from compress.exporting import ExportSummary
    from compress.inspection import InspectionResult
    from compress.models.catalog import ModelInfo
    from compress.prediction import ClassPrediction as ClassPrediction
    from compress.prediction import PredictionResult
    from compress.profiling import ModelProfile, OnnxProfile
    from compress.training.estimate import EstimateResult
    from compress.training.results import RunResult
    from compress.training.synthesize import SynthesisResult
    from profiles.report.build import ReportResult

    ModelLike = str | Path | nn.Module
    DataLike = str | Path | Dataset[Any] | DataLoader[Any] | ImageSet
    Progress = Callable[[str], None]
    Settings = Mapping[str, Any] | Sequence[str]
    Size = tuple[int, int]

Format = Literal["onnx", "openvino", "tensorrt", "tensorrt-rtx"]
Precision = Literal["fp32", "fp16", "bf16", "int8"]
Int8Target = Literal["ort-cpu", "ort-cpu-vnni", "ort-cuda", "openvino", "openvino-vnni", "tensorrt", "tensorrt-rtx"]
FORMATS = ("onnx", "openvino", "tensorrt", "tensorrt-rtx")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
FILE_RUNTIMES = ("onnxruntime", "openvino", "tensorrt", "tensorrt-rtx")
RUNTIMES = ("torch", "torch-compile", *FILE_RUNTIMES)
PROVIDERS = ("cpu", "cuda", "tensorrt", "openvino")
CALIBRATORS = ("auto", "minmax", "percentile", "entropy")
QUANTIZERS = ("onnxruntime", "modelopt")
INT8_TARGETS = ("ort-cpu", "ort-cpu-vnni", "ort-cuda", "openvino", "openvino-vnni", "tensorrt", "tensorrt-rtx")
SCENARIOS = ("quick", "single-stream", "multi-stream", "offline", "server")


@dataclass(frozen=True)
class MethodInfo:
    """A distillation method."""

    name: str  #: name for `method`
    description: str  #: one line


@dataclass(frozen=True)
class MethodSetting:
    """A hyper-parameter of a method."""

    name: str  #: name for `settings={"method.NAME": value}`
    default: Any  #: default value
    description: str  #: one line


@dataclass(frozen=True)
class MethodDetails:
    """A distillation method with its hyper-parameters."""

    name: str  #: name for `method`
    description: str  #: one line
    settings: list[MethodSetting]  #: hyper-parameters in the order of their definition


@dataclass(frozen=True)
class DatasetInfo:
    """A data set that is known by name."""

    name: str  #: name for `unlabeled`, `validation` and `labeled`
    description: str  #: one line


# Training.


def distill(
    teacher: ModelLike | None = None, *, student: ModelLike | None = None, unlabeled: DataLike | None = None,
    unlabeled_subset: int | None = None, labeled: DataLike | None = None, validation: DataLike | None = None,
    label_order: LabelOrder | None = None, method: str | None = None,
    patch_size: int | Literal["auto"] | None = None, steps: int | None = None,
    epochs: float | None = None, time_limit: float | None = None, batch_size: int | Literal["auto"] | None = None,
    precision: str | None = None, device: str | None = None, devices: int = 1, restarts: int = 0,
    seed: int | None = None, recipe: str | Path | None = None, settings: Settings = (),
    allow_bad_teacher: bool = False, allow_code: bool = False, data_root: Path | None = None,
    output_dir: str | Path | None = None, resume: bool | None = None, export: Literal["onnx"] | None = None,
    report: bool = False, command: str = "", progress: Progress = ignore, **options: Unpack[ModelOptions],
) -> RunResult:  # fmt: skip
    """Train a small student from a teacher and unlabeled images.

    At most one of `steps`, `epochs` and `time_limit` is given: the length of the training. Arguments that are None keep
    the value of the recipe, or the default of the method.

    Args:
        teacher: Trained model: a name, directory, checkpoint, exported program, or a module that maps float images
            [n, 3, h, w] in [0, 1] to logits.
        student: Architecture of the student, or a module to train; None: a small one that suits the image size.
        unlabeled: Unlabeled images; they may be out of the teacher's domain.
        unlabeled_subset: Use only this many images, those with the highest entropy of the teacher.
        labeled: Labeled images, for methods that need them.
        validation: Labeled images to measure on; never trained on.
        label_order: Order of numbered class folders that a teacher without class names was trained with: "number", or
            "text" as torchvision's ImageFolder has them; None: unknown.
        method: A name from `list_methods`, or "package.module:Class"; default "mosaic".
        patch_size: Patch size of mosaic in pixels, or "auto" to choose it from the distance of the data.
        steps: Number of training steps; 10,000 if no length is given.
        epochs: Number of passes over the images.
        time_limit: Training time in seconds.
        batch_size: Images per step, all processes together; "auto": in parts that fit into memory, with the same result
            except for BatchNorm.
        precision: "auto", "32", "bf16" or "16".
        device: "auto", "cpu", "cuda" or "cuda:N".
        devices: Number of processes, one per device.
        restarts: How often processes are restarted after one of them failed.
        seed: Random seed, >= 0.
        recipe: YAML file of settings, or the name of a shipped recipe.
        settings: Any other setting by its dotted key, such as `{"method.local": 0.5}`.
        allow_bad_teacher: Train even if the teacher's score on `validation` is near chance.
        allow_code: Import code that the recipe names, as "package.module:name". Names in other arguments need no
            permission.
        data_root: Directory of data sets that are known by name.
        output_dir: Run directory; default "runs/METHOD-STUDENT".
        resume: None resumes a run if there is one, True requires one, False replaces it.
        export: "onnx" exports the best student as a verified file.
        report: Measure latency and write a report.
        command: Text to store as the command that started the run.
        progress: Called with status lines.
        **options: What the teacher's file does not contain, see `ModelOptions`.

    Returns:
        The best student's directory, its scores and its cost.

    Raises:
        UsageError: A setting, name or file is wrong.
        CompressError: The training cannot be done or failed.
        Interrupted: A signal stopped the training; calling again continues it.

    Example:
        import compress

        run = compress.distill(
            "embedded/fashion_wrn16_2", student="wrn16_1", unlabeled="embedded/photos", validation="embedded/fashion",
            method="kd", steps=2, batch_size=32, output_dir="runs/first",
        )
        print(run.metrics["accuracy"], run.macs)
        student, card = compress.load_model(run.best)
    """
    return _run_training(merge_model_options(locals()))


def train(
    student: ModelLike | None = None, *, labeled: DataLike | None = None, validation: DataLike | None = None,
    label_order: LabelOrder | None = None, task: TaskName | None = None, threshold: float | None = None,
    image_size: Size | None = None, grayscale: bool | None = None, steps: int | None = None,
    epochs: float | None = None, time_limit: float | None = None, batch_size: int | Literal["auto"] | None = None,
    precision: str | None = None, device: str | None = None, devices: int = 1, restarts: int = 0,
    seed: int | None = None, recipe: str | Path | None = None, settings: Settings = (), allow_code: bool = False,
    data_root: Path | None = None, output_dir: str | Path | None = None, resume: bool | None = None,
    export: Literal["onnx"] | None = None, command: str = "", progress: Progress = ignore,
) -> RunResult:  # fmt: skip
    """Train a model on labeled images (teachers and baselines).

    Args:
        student: Architecture or module to train.
        labeled: Labeled images: a directory with one directory per class, images/ and masks/, or a name.
        validation: Labeled images to measure on; never trained on.
        label_order: See `distill`.
        task: "multilabel_classification" or "binary_segmentation" for one logit for two classes; None: by the labels.
        threshold: Probability above which a label or a pixel is positive, for these tasks; default 0.5.
        image_size: Input (height, width) in pixels; default (32, 32).
        grayscale: Convert images to grayscale in the model.
        steps, epochs, time_limit, batch_size, precision, device, devices, restarts, seed, recipe, settings, allow_code,
            data_root, output_dir, resume, export, command, progress: See `distill`.

    Returns:
        The best model's directory, its scores and its cost.

    Raises:
        UsageError: A setting, name or file is wrong.
        CompressError: The training cannot be done or failed.
        Interrupted: A signal stopped the training; calling again continues it.

    Example:
        import compress

        run = compress.train(
            "wrn16_1", labeled="embedded/fashion", validation="embedded/fashion", grayscale=True, steps=2,
            batch_size=32, output_dir="runs/teacher",
        )
        print(run.best)
    """
    return _run_training({**locals(), "method": "supervised"})


def estimate_training(
    teacher: ModelLike | None = None, *, progress: Progress = ignore, **arguments: Any
) -> EstimateResult:
    """Check all settings of a training and estimate its FLOPs, memory and time, without training.

    Args:
        teacher: See `distill`.
        progress: Called with status lines.
        **arguments: The arguments of `distill`, or those of `train` with `method="supervised"`.

    Returns:
        The estimated cost on this machine.

    Raises:
        UsageError: A setting, name or file is wrong.

    Example:
        import compress

        cost = compress.estimate_training(
            "embedded/fashion_wrn16_2", student="wrn16_1", unlabeled="embedded/photos", method="kd", steps=100,
        )
        print(cost.flops_per_step, cost.seconds)
    """
    from compress.training.launch import estimate_training
    from compress.training.recipes import resolve_config

    settings = {key: value for key, value in arguments.items() if key not in RUN_OPTIONS}
    output_dir, resume = arguments.get("output_dir"), arguments.get("resume")
    config, method = resolve_config(**_register_objects({"teacher": teacher, **settings}), progress=progress)
    return estimate_training(
        config, method, output_dir=None if output_dir is None else Path(output_dir), resume=resume, progress=progress
    )


#: arguments of a training that are not settings
EXPERIMENT_OPTIONS = ("output_dir", "workers", "on", "command", "progress")
RUN_OPTIONS = ("output_dir", "resume", "devices", "restarts", "export", "report", "command", "progress")


def _run_training(arguments: dict[str, Any]) -> RunResult:
    from compress.training.launch import run_training
    from compress.training.recipes import resolve_config

    options = {key: arguments.pop(key) for key in RUN_OPTIONS if key in arguments}
    if options.get("output_dir") is not None:
        options["output_dir"] = Path(options["output_dir"])
    config, method = resolve_config(**_register_objects(arguments), progress=options["progress"])
    return cast("RunResult", run_training(config, method, **options))  # None only in helper processes of torchrun


def _register_objects(arguments: dict[str, Any]) -> dict[str, Any]:
    """Replace modules and data sets by the names that they are registered under in this process."""
    registered = dict(arguments)
    for key in ("teacher", "student", "unlabeled", "labeled", "validation"):
        value = arguments.get(key)
        if value is not None and not isinstance(value, str | Path):
            from compress.data import register_dataset
            from compress.models import register_module

            registered[key] = register_module(value) if key in ("teacher", "student") else register_dataset(value)
    return registered


def synthesize(
    teacher: ModelLike | None = None, *, method: str | None = None, run: str | Path | None = None,
    count: int = 50_000, precision: str | None = None, device: str | None = None, devices: int = 1, restarts: int = 0,
    seed: int | None = None, recipe: str | Path | None = None, settings: Settings = (), allow_code: bool = False,
    output_dir: str | Path | None = None, resume: bool | None = None, progress: Progress = ignore,
    **options: Unpack[ModelOptions],
) -> SynthesisResult:  # fmt: skip
    """Generate images from a trained model, without data or a student.

    Args:
        teacher: Trained model, see `distill`.
        method: "deepinversion", "cmi" or "fastdfkd"; default "cmi".
        run: Sample from the generator of this run instead; the run decides teacher, method and settings.
        count: Number of images.
        output_dir: Directory of the run; default "runs/METHOD-images".
        precision, device, devices, restarts, seed, recipe, settings, allow_code, resume, progress, **options: See
            `distill`; `allow_code` and `trust_pickle` are for the recipe of `run` too.

    Returns:
        The directory of the images, one directory per class, and how many there are.

    Raises:
        UsageError: A setting, name or file is wrong.
        Interrupted: A signal stopped the run; calling again continues it.

    Example:
        import compress

        images = compress.synthesize(
            "embedded/fashion_wrn16_2", method="fastdfkd", count=4,
            settings={"method.images_per_synthesis": 4, "method.width_G": 8}, output_dir="runs/images",
        )
        print(images.pool, images.by_class)
    """
    arguments = _register_objects(merge_model_options(locals()))
    from compress.training.synthesize import synthesize

    return cast("SynthesisResult", synthesize(**arguments))  # None only in helper processes of torchrun


# Experiments.


def compare(
    teacher: ModelLike, *, validation: DataLike, student: str | None = None, unlabeled: DataLike | None = None,
    labeled: DataLike | None = None, label_order: LabelOrder | None = None, methods: str | Sequence[str] = "all",
    time_limit: float | None = None,
    steps: int | None = None, same_steps: bool = False, seeds: int = 3,
    batch_size: int | Literal["auto"] | None = None, precision: str | None = None, device: str | None = None,
    settings: Settings = (), allow_bad_teacher: bool = False, data_root: Path | None = None,
    output_dir: str | Path = "runs/compare", workers: int | None = None, on: str | None = None, command: str = "",
    progress: Progress = ignore, **options: Unpack[ModelOptions],
) -> ComparisonResult:  # fmt: skip
    """Distill the same student with several methods, for the same time or steps, and compare them.

    Finished runs are not repeated.

    Args:
        teacher: Trained model.
        validation: Labeled images to measure on; never trained on.
        student: Architecture of every student; None: a small one that suits the image size.
        unlabeled: Unlabeled images, for the methods that use them.
        labeled: Labeled images, for the supervised upper bound.
        label_order: See `distill`.
        methods: Names from `list_methods`, or "all".
        time_limit: Training time of each run in seconds. Give this or `steps`.
        steps: Training steps of each run.
        same_steps: Give later seeds the step count of the first one.
        seeds: Runs per method.
        batch_size: Images per step, or "auto" (see `distill`); None: the default of each method.
        settings: Settings of one method ("mosaic.bn=10") or of all runs ("data.views=1").
        output_dir: Directory of the runs; run N of a method is METHOD-N.
        workers: Number of runs at a time; None: 1, or as many as fit on a cluster. Modules and data sets need 1.
        on: Ray cluster: "auto" or "HOST:PORT"; None: this machine.
        precision, device, allow_bad_teacher, data_root, command, progress, **options: See `distill`.

    Returns:
        Mean and standard deviation per method, all runs, and the files of the report.

    Raises:
        UsageError: A setting, name or file is wrong, or no method can run.
        Interrupted: A signal stopped the comparison; calling again continues it.

    Example:
        import compress

        result = compress.compare(
            "embedded/fashion_wrn16_2", validation="embedded/fashion", student="wrn16_1", unlabeled="embedded/photos",
            methods=["kd", "mosaic"], steps=2, seeds=1, batch_size=32, output_dir="runs/compare",
        )
        print([(method.name, method.mean) for method in result.methods])
    """
    arguments = merge_model_options(locals())
    from compress.experiments import resolve_comparison_config, run_comparison

    experiment = {key: arguments.pop(key) for key in EXPERIMENT_OPTIONS}
    return run_comparison(resolve_comparison_config(**_register_objects(arguments)), **experiment)


def plan_comparison(teacher: ModelLike, **arguments: Any) -> ComparisonPlan:
    """Return the runs that `compare` would make, their time, and the methods that cannot run.

    Args:
        teacher: Trained model.
        **arguments: The arguments of `compare`.

    Returns:
        The planned runs.

    Example:
        import compress

        plan = compress.plan_comparison(
            "embedded/fashion_wrn16_2", validation="embedded/fashion", unlabeled="embedded/photos",
            methods=["kd"], time_limit=60,
        )
        print(plan.runs, plan.seconds)
    """
    from compress.experiments import plan_comparison, resolve_comparison_config

    options = {key: arguments.pop(key) for key in EXPERIMENT_OPTIONS if key in arguments}
    config = resolve_comparison_config(**_register_objects({"teacher": teacher, "methods": "all", **arguments}))
    output_dir = options.get("output_dir", "runs/compare")
    return plan_comparison(config, output_dir=output_dir, workers=options.get("workers"))


def sweep(
    recipe: str | Path | None = None, *, teacher: ModelLike | None = None, students: Sequence[str] | None = None,
    methods: Sequence[str] | None = None, unlabeled: DataLike | None = None, validation: DataLike | None = None,
    formats: Sequence[Format] | None = None, precisions: Sequence[Precision] | None = None,
    calibration: str | None = None, seeds: int | None = None, time_limit: float | None = None,
    steps: int | None = None, device: str | None = None, settings: Settings = (), prune: str | None = None,
    max_latency: float | None = None, max_gflop: float | None = None, max_size: int | None = None,
    max_energy: float | None = None, allow_bad_teacher: bool = False, allow_code: bool = False,
    data_root: Path | None = None, output_dir: str | Path = "runs/sweep", workers: int | None = None,
    on: str | None = None, command: str = "", progress: Progress = ignore, **options: Unpack[ModelOptions],
) -> SweepResult:  # fmt: skip
    """Train every student with every method, export and measure every file, and report the trade-off.

    Finished cells are not repeated. Arguments that are None keep the value of the recipe.

    Args:
        recipe: YAML file of a sweep, or the name of a shipped one.
        teacher: Trained model.
        students: Student architectures.
        methods: Methods, with the settings of the recipe.
        unlabeled: Unlabeled images.
        validation: Labeled images to measure on; never trained on.
        formats: File formats.
        precisions: File precisions.
        calibration: Images for int8; None: those of each run.
        seeds: Runs per student and method.
        time_limit: Training time of each run in seconds.
        steps: Training steps of each run, instead of a time.
        prune: "none", "median" or "asha": how runs that are worse than others are stopped.
        max_latency, max_gflop, max_size, max_energy: Limits of the recommended model, see `report`.
        output_dir: Directory of the sweep.
        workers: Number of runs at a time; None: 1, or as many as fit on a cluster. Modules and data sets need 1.
        on: Ray cluster: "auto" or "HOST:PORT"; None: this machine.
        device, settings, allow_bad_teacher, allow_code, data_root, command, progress, **options: See `distill`.

    Returns:
        All cells with their files, and the recommended model.

    Raises:
        UsageError: A setting, name or file is wrong.
        Interrupted: A signal stopped the sweep; calling again continues it.

    Example:
        import compress

        result = compress.sweep(
            "sweep-fashion", students=["wrn16_1"], methods=["kd"], precisions=["fp32"], steps=2, output_dir="runs/sweep"
        )
        print(result.best, [cell.score for cell in result.cells])
    """
    arguments = merge_model_options(locals())
    from compress.experiments import resolve_sweep_config, run_sweep

    experiment = {key: arguments.pop(key) for key in EXPERIMENT_OPTIONS}
    config = resolve_sweep_config(output_dir=output_dir, **_register_objects(arguments))
    return run_sweep(config, **experiment)


def plan_sweep(recipe: str | Path | None = None, **arguments: Any) -> SweepPlan:
    """Return the cells that `sweep` would run, their time, and those that cannot run.

    Args:
        recipe: YAML file of a sweep, or the name of a shipped one.
        **arguments: The arguments of `sweep`.

    Returns:
        The planned cells.

    Example:
        import compress

        plan = compress.plan_sweep("sweep-fashion", time_limit=60)
        print(plan.trainings, plan.seconds)
    """
    from compress.experiments import plan_sweep, resolve_sweep_config

    options = {key: arguments.pop(key) for key in EXPERIMENT_OPTIONS if key in arguments}
    output_dir = options.get("output_dir", "runs/sweep")
    config = resolve_sweep_config(recipe, output_dir=output_dir, **_register_objects(arguments))
    return plan_sweep(config, output_dir=output_dir, workers=options.get("workers"))


# One model.


def evaluate(
    model: ModelLike, data: DataLike, *, label_order: LabelOrder | None = None, data_root: Path | None = None,
    max_unreadable: float = 0.01, runtime: str | None = None, record: Path | None = None, progress: Progress = ignore,
    **options: Unpack[ModelOptions],
) -> EvaluationResult:  # fmt: skip
    """Evaluate a model or an exported file on labeled images.

    Args:
        model: A module, name, directory, checkpoint, or an exported .onnx, .xml or .engine file.
        data: Labeled images: a directory with one directory per class, images/ and masks/, a name, or a data set of
            (image, label) pairs.
        data_root: Directory of data sets that are known by name.
        label_order: Order of numbered class folders; see `distill`.
        max_unreadable: Maximum share of unreadable images, in [0, 1]; unless it is 0, one image is allowed.
        runtime: Runtime of an exported file; None: its own.
        record: Directory whose records.jsonl the result is added to.
        progress: Called with status lines.
        **options: What the file of the model does not contain, see `ModelOptions`.

    Returns:
        The scores of the model.

    Raises:
        UsageError: A name or file is wrong, or the data has other classes than the model.
        CompressError: A file is damaged or does not run.

    Example:
        import compress

        result = compress.evaluate("embedded/fashion_wrn16_2", "embedded/fashion")
        print(result.metrics["accuracy"])
    """
    arguments = merge_model_options(locals())
    from compress.evaluation import evaluate

    return evaluate(**arguments)


def predict(
    model: ModelLike, images: Any, *, top_k: int = 5, output_dir: str | Path | None = None,
    data_root: Path | None = None, runtime: str | None = None, progress: Progress = ignore,
    **options: Unpack[ModelOptions],
) -> PredictionResult:  # fmt: skip
    """Predict the classes of images, or label maps for segmentation, as `evaluate` does.

    Args:
        model: A module, name, directory, checkpoint, or an exported .onnx, .xml or .engine file.
        images: A path, a folder (read at any depth), a glob, the name of a data set, a PIL image, or a list of them.
        top_k: Number of classes to list for each image.
        output_dir: Directory for predictions.json and, for segmentation, PNG files at the size of each image: class
            numbers in labels/, images with classes in color in overlays/. Files of others are not replaced.
        data_root, runtime, progress, **options: See `evaluate`.

    Returns:
        The classes of each image with probabilities, or with shares of its pixels; and the images that cannot be read.

    Raises:
        UsageError: A name or file is wrong, or `output_dir` contains a file of others.
        CompressError: A file is damaged or does not run.

    Example:
        import compress

        result = compress.predict("embedded/fashion_wrn16_2", "embedded/photos", top_k=1)
        print([(one.image, one.classes[0].name, one.classes[0].probability) for one in result.predictions])
    """
    arguments = merge_model_options(locals())
    from compress.prediction import predict

    return predict(**arguments)


def inspect(
    checkpoint: ModelLike, *, unlabeled: DataLike | None = None, samples: int | None = None,
    reference: DataLike | None = None, patch_sizes: Sequence[int] = (), features: ModelLike | None = None,
    data_root: Path | None = None, progress: Progress = ignore, **options: Unpack[ModelOptions],
) -> InspectionResult:  # fmt: skip
    """Describe a checkpoint, and how far unlabeled data is from its domain.

    Args:
        checkpoint: A module, name, directory or file.
        unlabeled: Images to predict.
        samples: Number of images to predict; default 2000, fewer for segmentation.
        reference: Images to compare `unlabeled` with, for example in-domain ones.
        patch_sizes: Also compare patches of these sizes, in pixels.
        features: Model that computes the features of the comparison; None: the checkpoint.
        data_root: Directory of data sets that are known by name.
        progress, **options: See `evaluate`.

    Returns:
        Format, architecture, card and values; with `unlabeled` the predictions for it.

    Raises:
        UsageError: A name or file does not exist.
        CompressError: A file is damaged or could run code.

    Example:
        import compress

        result = compress.inspect("embedded/fashion_wrn16_2", unlabeled="embedded/photos", samples=100)
        print(result.architecture, result.unlabeled.recommendation)
    """
    arguments = merge_model_options(locals())
    from compress.inspection import inspect

    return inspect(**arguments)


def profile(
    model: ModelLike, *, depth: int | None = None, sizes: Sequence[Size] = (), record: Path | None = None,
    progress: Progress = ignore, **options: Unpack[ModelOptions],
) -> ModelProfile | OnnxProfile:  # fmt: skip
    """Count MACs, FLOPs, parameters and memory of one image.

    Args:
        model: A module, directory, checkpoint, ONNX file, or the name of an architecture.
        depth: Depth of the table of layers; default 1.
        sizes: Other input sizes to count.
        record, progress, **options: See `evaluate`; `classes` may be any for an architecture without weights.

    Returns:
        A `ModelProfile`, or an `OnnxProfile` for an ONNX file.

    Raises:
        UsageError: A name is wrong, or the network does not accept the input size.

    Example:
        import compress

        cost = compress.profile("wrn16_1", sizes=[(64, 64)])
        print(cost.macs, cost.params, cost.sizes[0].macs)
    """
    arguments = merge_model_options(locals())
    from compress.profiling import profile

    return profile(**arguments)


def export(
    model: ModelLike, output_path: str | Path | None = None, *, formats: Sequence[Format] = ("onnx",),
    precisions: Sequence[Precision] = ("fp32",), images: DataLike | None = None, data_root: Path | None = None,
    tolerance: float | None = None, min_agreement: float | None = None, batch: tuple[int, int, int] | None = None,
    static_batch: bool = False, sizes: tuple[Size, Size, Size] | None = None, preprocess: bool = False,
    postprocess: Literal["none", "softmax", "argmax", "topk", "sigmoid", "threshold"] = "none",
    calibration: str | None = None,
    calibration_images: int = 256, calibrator: Literal["auto", "minmax", "percentile", "entropy"] = "auto",
    quantizer: Literal["onnxruntime", "modelopt"] = "onnxruntime", target: Int8Target | None = None,
    max_drop: float | None = None, validation: DataLike | None = None, allow_slower: bool = False,
    workspace: int | None = None, timing_cache: Path | None = None, version_compatible: bool = False,
    hardware_compatible: Literal["ampere+", "same-capability"] | None = None,
    compute_capabilities: Sequence[str] = (), script: bool = False, opset: int = 18,
    exporter: Literal["auto", "dynamo", "torchscript"] = "auto", allow_code: bool = False, record: Path | None = None,
    progress: Progress = ignore, **options: Unpack[ModelOptions],
) -> ExportSummary:  # fmt: skip
    """Export a model in every requested format and precision.

    Each file includes normalization and is saved only after its outputs match PyTorch. `exporters.export` is the
    function below this one, for any module.

    Args:
        model: A module, directory, checkpoint or name.
        output_path: A file, or a directory for several files; None: beside the model.
        formats: "onnx", "openvino", "tensorrt" and "tensorrt-rtx".
        precisions: "fp32", "fp16", "bf16" and "int8".
        images: Real images to compare outputs on; None: embedded ones.
        data_root: Directory of data sets that are known by name.
        tolerance: Largest difference of a logit relative to the largest |logit|; None: by precision.
        min_agreement: Least share of equal predictions below fp32, in [0, 1]; None: by precision.
        batch: Minimum, optimal and maximum batch size; equal numbers fix it.
        static_batch: Same as `batch=(1, 1, 1)`.
        sizes: Minimum, optimal and maximum (height, width) of an engine with dynamic size.
        preprocess: Accept uint8 images [n, h, w, 3] of any size; crop, resize and normalize in the graph.
        postprocess: "softmax" returns probabilities, "argmax" labels, "topk" the top five; for models that decide by
            threshold, "sigmoid" returns probabilities, and "threshold" 0 and 1 for each label or pixel.
        calibration: Images for int8: data, a run directory, or "synthetic" for those of the model's run.
        calibration_images: Number of calibration images.
        calibrator: How activation ranges are computed.
        quantizer: "modelopt" is NVIDIA's, for its runtimes.
        target: Runtime that int8 is optimized for; None: by format.
        max_drop: Maximum accuracy loss in percentage points; layers stay in fp32 until it holds.
        validation: Labeled images for `max_drop`; None: agreement with PyTorch.
        allow_slower: Keep an int8 file that is slower here than fp32.
        workspace: GPU memory per layer of an engine, in bytes.
        timing_cache: File that stores TensorRT's kernel timings.
        version_compatible: Build an engine for later TensorRT versions too.
        hardware_compatible: Build an engine for other GPUs too.
        compute_capabilities: GPUs that a TensorRT-RTX engine is built for, such as "8.6".
        script: Write a script beside each file that runs it on a picture with its runtime, NumPy and Pillow alone; for
            "onnx" and "openvino".
        opset: ONNX opset version, >= 18.
        exporter: PyTorch's ONNX exporter.
        allow_code: Import code that the recipe of a run names, whose generator makes the calibration images.
        record, progress, **options: See `evaluate`; `image_size="dynamic"` leaves height and width open.

    Returns:
        The saved files and the rejected ones.

    Raises:
        UsageError: An option has no effect or is wrong.
        exporters.ExportError: The fp32 graph differs from PyTorch.

    Example:
        import compress

        result = compress.export("embedded/fashion_wrn16_2", "teacher.onnx")
        print(result.artifacts[0].parity.max_abs, result.artifacts[0].bytes)
    """
    arguments = merge_model_options(locals())
    from compress.exporting import export

    return export(**arguments)


def benchmark(
    models: ModelLike | Sequence[ModelLike], *, runtimes: Sequence[str] | None = None,
    provider: Literal["cpu", "cuda", "tensorrt", "openvino"] | None = None, threads: int | None = None,
    batch_sizes: Sequence[int] | None = None, duration: float | None = None, scenarios: Sequence[str] | None = None,
    mlperf: bool = False, target_qps: float | None = None, latency_bound_ms: float | None = None,
    target: str | None = None, require_budget: bool = False, record: Path | None = None, progress: Progress = ignore,
    **options: Unpack[ModelOptions],
) -> BenchmarkResult:  # fmt: skip
    """Measure latency and throughput of models, interleaved, so that their ratios hold on a busy machine.

    Args:
        models: Modules, directories, checkpoints, exported files, or names of architectures.
        runtimes: Runtimes to measure in; None: PyTorch and ONNX Runtime, and the own runtime of a file.
        provider: Device or ONNX Runtime provider; None: the CPU, and the GPU for an engine.
        threads: CPU threads of each runtime; None: one per core.
        batch_sizes: Images per call; None: (1,).
        duration: Seconds per row; None: 3, and 10 for LoadGen's scenarios.
        scenarios: "quick" (interleaved timing) and MLPerf LoadGen's "single-stream", "multi-stream", "offline" and
            "server".
        mlperf: Run LoadGen's scenarios at submission length.
        target_qps: Images per second that the server scenario requests.
        latency_bound_ms: Latency bound of the server scenario.
        target: Another machine ("ssh://HOST") or a target file; its settings replace arguments that are None.
        require_budget: Raise unless the target has a latency budget.
        record, progress, **options: See `evaluate`.

    Returns:
        One row per model, runtime and batch size, and the ratios between rows.

    Raises:
        UsageError: An argument is wrong.
        CompressError: A model does not run, or the target cannot be reached.

    Example:
        import compress

        result = compress.benchmark(["embedded/fashion_wrn16_2", "wrn16_1"], duration=0.1, threads=1)
        print([(row.name, row.runtime, row.latency_ms_p50) for row in result.results])
    """
    arguments = merge_model_options(locals())
    from compress.benchmarking import benchmark

    return benchmark(**arguments)


def report(
    run_dirs: str | Path | Sequence[str | Path], *, output_dir: str | Path | None = None, title: str | None = None,
    max_latency: float | None = None, max_gflop: float | None = None, max_size: int | None = None,
    max_energy: float | None = None, progress: Progress = ignore,
) -> ReportResult:  # fmt: skip
    """Combine runs into one report that recommends a model.

    Args:
        run_dirs: Directories with records, or with runs that have some.
        output_dir: Directory of the report; None: the run directory if there is one, else "report".
        title: Title of the report.
        max_latency: Maximum median latency of the recommended model, in ms per batch.
        max_gflop: Maximum GFLOP per image.
        max_size: Maximum file size in bytes.
        max_energy: Maximum energy per image in mJ.
        progress: Called with status lines.

    Returns:
        The files of the report and the recommended model.

    Raises:
        CompressError: A directory has no records, or `output_dir` contains files of the user with the report's names.

    Example:
        import compress

        compress.profile("embedded/fashion_wrn16_2", record="runs/profiled")
        result = compress.report("runs/profiled")
        print(result.summary, result.html)
    """
    from profiles.report.build import write_run_report
    from profiles.report.recommendation import Limits

    dirs = [Path(one) for one in ([run_dirs] if isinstance(run_dirs, str | Path) else run_dirs)]
    if output_dir is None:
        only = dirs[0] if len(dirs) == 1 else None
        output_dir = Path("report") if only is None else only if os.path.isdir(only) else only.parent
    limits = Limits(max_latency, max_gflop, None if max_size is None else max_size / 1e6, max_energy)
    named = {} if title is None else {"title": title}
    return write_run_report(Path(output_dir), dirs, limits=limits, progress=progress, **named)


def run_demo(
    task: Literal["classification", "segmentation"] = "classification",
    *,
    output_dir: str | Path | None = None,
    time_limit: float | None = None,
    quick: bool = False,
    seed: int = 0,
    command: str = "",
    progress: Progress = ignore,
) -> DemoResult:
    """Distill an embedded teacher from photographs with MosaicKD and with plain KD, and write a report.

    Args:
        task: Task of the models.
        output_dir: Directory of the demo; default "runs/demo" or "runs/demo-segmentation".
        time_limit: Training time of each student in seconds; None: that of the recipe.
        quick: Train each student for 20 seconds.
        seed: Random seed.
        command: Text to store as the command that started the runs.
        progress: Called with status lines.

    Returns:
        Scores and cost of the teacher and both students, and the files of the report.

    Example:
        import compress

        result = compress.run_demo(time_limit=1, output_dir="runs/demo")
        print({name: model.metrics for name, model in result.models.items()})
    """
    from compress.demonstration import run_demo

    return run_demo(
        task, output_dir=output_dir, time_limit=time_limit, quick=quick, seed=seed, command=command, progress=progress
    )


# What there is.


def doctor(thorough: bool = False) -> EnvironmentReport:
    """Check versions, devices and optional packages.

    Args:
        thorough: Also import every core package, in a separate process.

    Returns:
        The machine, and the state of every package.

    Example:
        import compress

        print(compress.doctor().ok)
    """
    from compress.environment import check_environment

    return check_environment(thorough)


def list_methods() -> list[MethodInfo]:
    """Return the distillation methods.

    Example:
        import compress

        print([method.name for method in compress.list_methods()])
    """
    from compress.methods import METHODS

    return [MethodInfo(name, _first_line(method)) for name, method in METHODS.items()]


def describe_method(name: str) -> MethodDetails:
    """Return a method's hyper-parameters with defaults and descriptions.

    Args:
        name: A name from `list_methods`, or "package.module:Class".

    Raises:
        UsageError: There is no such method.

    Example:
        import compress

        print({setting.name: setting.default for setting in compress.describe_method("mosaic").settings})
    """
    import dataclasses

    from compress.config import field_descriptions
    from compress.methods import find_method

    method = find_method(name)
    descriptions = field_descriptions(method)
    settings = []
    for field in dataclasses.fields(method):
        if field.init:
            missing = dataclasses.MISSING
            default = field.default if field.default_factory is missing else field.default_factory()
            settings.append(
                MethodSetting(field.name, None if default is missing else default, descriptions[field.name])
            )
    return MethodDetails(name, _first_line(method), settings)


def _first_line(kind: type) -> str:
    text = (kind.__doc__ or "").strip()
    return text.splitlines()[0] if text else kind.__name__


def list_models(prefix: str = "") -> dict[str, list[ModelInfo]]:
    """Return the models that a teacher or student can be, by library.

    Args:
        prefix: Only models whose name begins with this.

    Raises:
        UsageError: No model's name begins with `prefix`.

    Example:
        import compress

        print([model.name for model in compress.list_models("torchvision/resnet")["torchvision/"]])
    """
    from compress.errors import UsageError
    from compress.models.catalog import list_models

    models = list_models()
    if prefix:
        models = {kind: [one for one in items if one.name.startswith(prefix)] for kind, items in models.items()}
        if not any(models.values()):
            raise UsageError(f"{prefix}: no model name begins with it; see `compress models`.")
    return models


def list_datasets() -> list[DatasetInfo]:
    """Return the data sets that are known by name.

    Example:
        import compress

        print([data.name for data in compress.list_datasets()])
    """
    from compress.data import DATASETS

    return [DatasetInfo(name, description) for name, description in DATASETS.items()]


def get_schema(kind: Literal["recipe", "sweep", "target"] = "recipe") -> dict[str, Any]:
    """Return the JSON schema of a recipe, a sweep recipe or a target file, for editors.

    Args:
        kind: Which file.

    Example:
        import compress

        print(list(compress.get_schema("recipe")["properties"]))
    """
    from compress.config import json_schema

    if kind == "target":
        from compress.targets import Target as Config
    elif kind == "sweep":
        from compress.experiments.config import SweepConfig as Config
    else:
        from compress.training.config import TrainConfig as Config
    return json_schema(Config)
