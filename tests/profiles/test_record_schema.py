"""The schema that is published is the one that records are held to."""

from __future__ import annotations

import json
from pathlib import Path

from profiles.records import record_schema

PUBLISHED = Path(__file__).parents[2] / "docs" / "record.schema.json"


def test_the_published_schema_is_the_one_of_the_code():
    """Made anew by `python -m profiles.records > docs/record.schema.json`."""
    assert json.loads(PUBLISHED.read_text()) == record_schema()
    assert record_schema()["properties"]["schema"] ["const"] == 2
