"""Shim for tools that look for it; the project's metadata is in pyproject.toml."""

from setuptools import setup

setup()
