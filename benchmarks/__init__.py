"""Runnable measurements. Each writes `results/NAME.json` and a table beside it; timings are ratios within one run."""
