"""docs/json.md is what its generator writes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

GENERATOR = Path(__file__).parents[1] / "docs" / "generate_json_reference.py"


def test_json_reference_is_current() -> None:
    spec = importlib.util.spec_from_file_location("generate_json_reference", GENERATOR)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text(encoding="utf-8") == module.generate_page(), f"run python {GENERATOR.name}"
