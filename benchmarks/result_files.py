"""Results of long benchmarks, stored after every row so that an interrupted benchmark continues."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]


class ResultFile:
    """Results of one benchmark: with `write` in results/NAME.json, which several processes may extend."""

    def __init__(self, name: str, *, write: bool) -> None:
        self.name, self.write = name, write
        self._content: dict[str, Any] = {}

    @property
    def content(self) -> dict[str, Any]:
        path = RESULTS / f"{self.name}.json"
        return (json.loads(path.read_text()) if path.exists() else {}) if self.write else self._content

    def rows(self, key: str = "rows") -> list[Row]:
        return self.content.get(key, [])

    def update(self, **entries: Any) -> None:
        """Replace the entries of these names."""
        self._content = self.content | {"benchmark": self.name} | entries
        if self.write:
            RESULTS.mkdir(exist_ok=True)
            (RESULTS / f"{self.name}.json").write_text(json.dumps(self._content, indent=2) + "\n")

    def write_page(self, text: str) -> None:
        """Print the page, and write results/NAME.md."""
        print(text)
        if self.write:
            (RESULTS / f"{self.name}.md").write_text(text)
