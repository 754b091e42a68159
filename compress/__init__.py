"""Distill vision models without their training data and deploy the students.

The public functions of `compress.api` and the result types are attributes of this package. They are imported when they
are used, so `import compress` takes milliseconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compress.api import benchmark as benchmark
    from compress.api import compare as compare
    from compress.api import describe_method as describe_method
    from compress.api import distill as distill
    from compress.api import doctor as doctor
    from compress.api import estimate_training as estimate_training
    from compress.api import evaluate as evaluate
    from compress.api import export as export
    from compress.api import get_schema as get_schema
    from compress.api import inspect as inspect
    from compress.api import list_datasets as list_datasets
    from compress.api import list_methods as list_methods
    from compress.api import list_models as list_models
    from compress.api import plan_comparison as plan_comparison
    from compress.api import plan_sweep as plan_sweep
    from compress.api import predict as predict
    from compress.api import profile as profile
    from compress.api import report as report
    from compress.api import run_demo as run_demo
    from compress.api import sweep as sweep
    from compress.api import synthesize as synthesize
    from compress.api import train as train
    from compress.benchmarking import BenchmarkResult as BenchmarkResult
    from compress.data import open_images as open_images
    from compress.demonstration import DemoResult as DemoResult
    from compress.environment import EnvironmentReport as EnvironmentReport
    from compress.errors import CompressError as CompressError
    from compress.errors import Interrupted as Interrupted
    from compress.errors import UsageError as UsageError
    from compress.evaluation import EvaluationResult as EvaluationResult
    from compress.experiments import ComparisonPlan as ComparisonPlan
    from compress.experiments import ComparisonResult as ComparisonResult
    from compress.experiments import SweepPlan as SweepPlan
    from compress.experiments import SweepResult as SweepResult
    from compress.exporting import ExportSummary as ExportSummary
    from compress.inspection import InspectionResult as InspectionResult
    from compress.models import ModelCard as ModelCard
    from compress.models import ModelOverrides as ModelOverrides
    from compress.models import load_model as load_model
    from compress.prediction import PredictionResult as PredictionResult
    from compress.profiling import ModelProfile as ModelProfile
    from compress.profiling import OnnxProfile as OnnxProfile
    from compress.targets import Target as Target
    from compress.training.estimate import EstimateResult as EstimateResult
    from compress.training.results import RunResult as RunResult
    from compress.training.synthesize import SynthesisResult as SynthesisResult
    from profiles.report.build import ReportResult as ReportResult

__version__ = "0.1.0"

#: public name -> module that defines it
_MODULES = {
    **dict.fromkeys(
        ("benchmark", "compare", "describe_method", "distill", "doctor", "estimate_training", "evaluate", "export",
         "get_schema", "inspect", "list_datasets", "list_methods", "list_models", "plan_comparison", "plan_sweep",
         "predict", "profile", "report", "run_demo", "sweep", "synthesize", "train"), "compress.api",
    ),
    **dict.fromkeys(("CompressError", "Interrupted", "UsageError"), "compress.errors"),
    **dict.fromkeys(("ModelCard", "ModelOverrides", "load_model"), "compress.models"),
    "open_images": "compress.data",
    # result types
    "BenchmarkResult": "compress.benchmarking",
    "DemoResult": "compress.demonstration",
    "EnvironmentReport": "compress.environment",
    "EvaluationResult": "compress.evaluation",
    "ComparisonPlan": "compress.experiments",
    "ComparisonResult": "compress.experiments",
    "SweepPlan": "compress.experiments",
    "SweepResult": "compress.experiments",
    "ExportSummary": "compress.exporting",
    "InspectionResult": "compress.inspection",
    "PredictionResult": "compress.prediction",
    "ModelProfile": "compress.profiling",
    "OnnxProfile": "compress.profiling",
    "Target": "compress.targets",
    "EstimateResult": "compress.training.estimate",
    "RunResult": "compress.training.results",
    "SynthesisResult": "compress.training.synthesize",
    "ReportResult": "profiles.report.build",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_MODULES]
