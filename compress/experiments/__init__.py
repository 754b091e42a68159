"""Experiments: many training runs under one budget, compared with each other."""
