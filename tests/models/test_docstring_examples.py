"""The examples in docstrings of models and data run as printed."""

import doctest
import importlib

import pytest
import torch


@pytest.mark.parametrize(
    "name", ["models.loading", "models.registry", "models.overrides", "data", "data.dataset", "data.user_datasets"]
)
def test_docstring_examples_run(name):
    module = importlib.import_module(f"compress.{name}")
    result = doctest.testmod(module, extraglobs={"torch": torch})
    assert (result.failed, result.attempted > 0) == (0, True)
