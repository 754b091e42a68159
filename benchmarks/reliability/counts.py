"""Counts of one row of the table."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Kind = Literal["expected", "silent", "code", "internal", "other"]
#: examples of other outcomes that a row keeps
EXAMPLES = 20


@dataclass
class Counts:
    """What happened in the tries of a row."""

    tried: int = 0
    as_expected: int = 0
    silent_uses: int = 0  #: damaged input was used, or a result differs, without a word
    code_runs: int = 0  #: code in a file ran
    internal_errors: int = 0  #: an exception that is no error of this package, or a crash of the process
    others: int = 0  #: anything else: a hang, a wrong exit code, too much memory
    parts: dict[str, int] = field(default_factory=dict)  #: tries by part of the row
    examples: list[str] = field(default_factory=list)  #: of what was not expected
    notes: list[str] = field(default_factory=list)  #: parts that did not run, and measured figures
    seconds: float = 0.0

    def add(self, part: str, kind: Kind, example: str = "", n: int = 1) -> None:
        """Count `n` tries with the same outcome."""
        self.tried += n
        self.parts[part] = self.parts.get(part, 0) + n
        names = {"expected": "as_expected", "silent": "silent_uses", "code": "code_runs", "internal": "internal_errors"}
        name = names.get(kind, "others")
        setattr(self, name, getattr(self, name) + n)
        if kind != "expected" and len(self.examples) < EXAMPLES:
            self.examples.append(f"{part}: {kind}: {' '.join(example.split())[:400]}")

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def merge(self, other: dict[str, Any]) -> None:
        """Add the counts of an earlier pass."""
        for name, value in other.items():
            mine = getattr(self, name, None)
            if isinstance(mine, dict):
                for part, n in value.items():
                    mine[part] = mine.get(part, 0) + n
            elif isinstance(mine, list):
                limit = EXAMPLES if name == "examples" else None
                setattr(self, name, list(dict.fromkeys([*value, *mine]))[:limit])
            elif mine is not None:
                setattr(self, name, mine + value)

    def as_row(self) -> dict[str, Any]:
        return asdict(self) | {"seconds": round(self.seconds, 1)}


@dataclass(frozen=True)
class Scale:
    """How much of each row runs: the default counts times `factor`, at least one."""

    factor: float = 1.0
    seed: int = 0  #: the number of the pass
    kills: int = 240
    begin: float = field(default_factory=time.monotonic)

    def count(self, default: int) -> int:
        return max(1, round(default * self.factor))
