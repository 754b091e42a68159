"""Checkpoints of a run: complete or absent, and never believed without their hash.

A checkpoint of step n is a file a rank, `step-n.rank0.pt`, and the manifest `step-n.json` with the sha256 of each. The
manifest is written last, so what a kill leaves half done is not a checkpoint. A flipped bit loads silently wrong in both
torch and safetensors files; here it is found, named, and the checkpoint before is taken.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from compress.engine.place import Place
from compress.errors import CompressError
from compress.files import sha256, write_bytes, write_json

FORMAT = 1


class Checkpoints:
    """The checkpoints in a folder; the newest `keep` stay."""

    def __init__(self, folder: Path, place: Place, *, keep: int = 2, say: Callable[[str], None] = print) -> None:
        self.folder = folder
        self.place = place
        self.keep = keep
        self.say = say

    def save(self, step: int, shared: dict[str, Any], own: dict[str, Any]) -> Path:
        """Write the state at `step`: `shared` by rank 0, `own` by every rank. Returns the manifest's path."""
        state = {"own": own} | ({"shared": shared} if self.place.rank == 0 else {})
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_bytes(self._file(step, self.place.rank), buffer.getvalue())
        self.place.barrier()
        manifest = self._manifest(step)
        if self.place.rank == 0:
            files = [self._file(step, rank) for rank in range(self.place.world)]
            entries = {f.name: {"sha256": sha256(f), "bytes": f.stat().st_size} for f in files}
            write_json(manifest, {"format": FORMAT, "step": step, "world": self.place.world, "files": entries})
            self._forget_old()
        self.place.barrier()
        return manifest

    def load(self) -> tuple[int, dict[str, Any], dict[str, Any]] | None:
        """(step, shared, own) of the newest checkpoint that is whole, or None where there is none at all.

        Raises CompressError where checkpoints exist and every one is broken, or where the number of processes changed.
        """
        steps = self.steps()
        for step in reversed(steps):
            fault = self._fault(step)
            if fault is None:
                own = self._read(step, self.place.rank)
                shared = own if self.place.rank == 0 else self._read(step, 0)
                return step, shared["shared"], own["own"]
            self.say(f"{self._manifest(step)}: {fault}; falling back to the checkpoint before it.")
        if steps:
            raise CompressError(f"{self.folder}: all {len(steps)} checkpoints are broken; start again with --fresh.")
        return None

    def steps(self) -> list[int]:
        return sorted(int(path.stem.removeprefix("step-")) for path in self.folder.glob("step-*.json"))

    def last(self) -> Path | None:
        steps = self.steps()
        return self._manifest(steps[-1]) if steps else None

    def _read(self, step: int, rank: int) -> dict[str, Any]:
        return torch.load(self._file(step, rank), map_location="cpu", weights_only=True)

    def _fault(self, step: int) -> str | None:
        """What is wrong with the checkpoint of `step`, or None."""
        try:
            manifest = json.loads(self._manifest(step).read_text())
            files, world = manifest["files"], manifest["world"]
        except (OSError, ValueError, KeyError, TypeError):
            return "the manifest cannot be read"
        for name, entry in files.items():
            path = self.folder / name
            if not path.is_file():
                return f"{name} is missing"
            if sha256(path) != entry["sha256"]:
                return f"{name} is not what was written (its sha256 differs)"
        if world != self.place.world:
            raise CompressError(
                f"{self._manifest(step)}: saved by {world} processes, resumed by {self.place.world}; "
                f"use --devices {world}, or start again with --fresh."
            )
        return None

    def _forget_old(self) -> None:
        for step in self.steps()[: -self.keep]:
            for path in [self._manifest(step), *self.folder.glob(f"step-{step:09d}.rank*.pt")]:
                path.unlink(missing_ok=True)

    def _manifest(self, step: int) -> Path:
        return self.folder / f"step-{step:09d}.json"

    def _file(self, step: int, rank: int) -> Path:
        return self.folder / f"step-{step:09d}.rank{rank}.pt"
