"""Distil a vision model without its training data, and ship the student."""

__version__ = "0.1.0"
