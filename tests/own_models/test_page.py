"""Every row of the page "Bring your own model" names its tests, and they exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "own_models.md"


def test_rows_are_tested():
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    rows = [row for row in rows if not row.startswith(("| source", "| ---"))]
    assert rows
    for row in rows:
        cells, mark, names = row.partition("<!--")
        assert mark, row
        assert cells.count("|") == 3, row
        for file, name in (test.split("::") for test in names.removesuffix("|").strip().removesuffix("-->").split()):
            assert re.search(rf"^def {name}\(", (Path(__file__).parent / file).read_text(), re.MULTILINE), name
