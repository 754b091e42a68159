"""The results of a long benchmark while they grow: what is there is not made again, and what stops loses nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]


class Kept:
    """What is known of a benchmark: with `write` in results/NAME.json, which other processes may add to, else here."""

    def __init__(self, name: str, *, write: bool) -> None:
        self.name, self.write = name, write
        self.own: dict[str, Any] = {}

    @property
    def content(self) -> dict[str, Any]:
        path = RESULTS / f"{self.name}.json"
        return (json.loads(path.read_text()) if path.exists() else {}) if self.write else self.own

    def rows(self, key: str = "rows") -> list[Row]:
        return self.content.get(key, [])

    def put(self, **found: Any) -> None:
        """Take these in the place of those of the same names."""
        self.own = self.content | {"benchmark": self.name} | found
        if self.write:
            RESULTS.mkdir(exist_ok=True)
            (RESULTS / f"{self.name}.json").write_text(json.dumps(self.own, indent=2) + "\n")

    def page(self, text: str) -> None:
        """results/NAME.md, and what people see at once."""
        print(text)
        if self.write:
            (RESULTS / f"{self.name}.md").write_text(text)
