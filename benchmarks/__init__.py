"""Runnable benchmarks. Each writes results/NAME.json and a table in NAME.md; times are ratios within one run."""
