"""The schema that is published is the one that records are held to."""

from __future__ import annotations

import json
from pathlib import Path

from profiles.record import json_schema

PUBLISHED = Path(__file__).parents[2] / "docs" / "record.schema.json"


def test_the_published_schema_is_the_one_of_the_code():
    """Made anew by `python -m profiles.record > docs/record.schema.json`."""
    assert json.loads(PUBLISHED.read_text()) == json_schema()
    assert json_schema()["properties"]["schema"] == {"const": 2, "description": "of this form of line"}
