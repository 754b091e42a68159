"""Imports of everything that forked processes use, so that a fork does not import it each time."""

import importlib
import warnings

import torch

MODULES = (
    "onnx", "onnxruntime", "hypothesis", "yaml", "compress.benchmarking", "compress.cli.distill",
    "compress.cli.evaluate", "compress.cli.export", "compress.cli.inspect", "compress.cli.report",
    "compress.evaluation", "compress.exporting", "compress.inspection", "compress.models.loading",
    "compress.profiling", "compress.training.results", "compress.training.setup", "exporters.onnx_validation",
    "exporters.runtimes.onnxruntime", "profiles.report.build",
)  # fmt: skip

for module in MODULES:
    importlib.import_module(module)
torch.set_num_threads(1)
warnings.simplefilter("ignore")
