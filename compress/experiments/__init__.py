"""Experiments: many training runs under one budget, on one machine or a Ray cluster."""

from compress.experiments.compare import ComparisonPlan, ComparisonResult, plan_comparison, run_comparison
from compress.experiments.config import (
    ComparisonConfig,
    SweepConfig,
    load_sweep_config,
    resolve_comparison_config,
    resolve_sweep_config,
)
from compress.experiments.sweep import SweepPlan, SweepResult, plan_sweep, run_sweep

__all__ = [
    "ComparisonConfig",
    "ComparisonPlan",
    "ComparisonResult",
    "SweepConfig",
    "SweepPlan",
    "SweepResult",
    "load_sweep_config",
    "plan_comparison",
    "plan_sweep",
    "resolve_comparison_config",
    "resolve_sweep_config",
    "run_comparison",
    "run_sweep",
]
