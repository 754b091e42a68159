"""Checkpoints with hashes.

The checkpoint of step n consists of one file per rank and the manifest `step-n.json`, which contains the names and
sha256 hashes of the files, and its own hash. The manifest is written last, and saving never changes a file that a
manifest names, so an interrupted save cannot damage a checkpoint. Torch and safetensors load files with flipped bits
without an error; here, a checkpoint whose hash differs is reported and the previous one is loaded.
"""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from compress.engine.accelerator import Accelerator
from compress.errors import CompressError, UsageError, first_line
from compress.files import add_hash, require_regular_file, sha256, write_bytes, write_error, write_json

FORMAT = 2
#: what torch.load raises for damaged files
DAMAGE_ERRORS = (
    ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError,
    TypeError, ValueError,
)  # fmt: skip
#: (step, state shared by all processes, state of this process)
Checkpoint = tuple[int, dict[str, Any], dict[str, Any]]


class CorruptCheckpointError(Exception):
    """A checkpoint is incomplete or has changed."""


class CheckpointManager:
    """Checkpoints in a folder.

    Args:
        folder: The folder.
        accelerator: Ranks of the run.
        keep: Number of checkpoints to keep.
        progress: Receives messages about skipped checkpoints.
    """

    def __init__(
        self,
        folder: Path,
        accelerator: Accelerator,
        *,
        keep: int = 2,
        progress: Callable[[str], None] = lambda message: None,
    ) -> None:
        self.folder = folder
        self.accelerator = accelerator
        self.keep = keep
        self.progress = progress

    def save(self, step: int, shared: dict[str, Any], per_rank: dict[str, Any]) -> Path:
        """Save the state at `step`.

        Args:
            step: Number of completed steps.
            shared: State that is equal on all processes; rank 0 writes it.
            per_rank: State of this process.

        Returns:
            Path of the manifest.
        """
        # A step can be saved twice (when due, and at the end); the first copy must stay valid until the second is.
        exists = self.accelerator.broadcast_float(f"step-{step:09d}.rank0.pt" in self._file_names(step))
        again = ".again" if exists else ""
        ranks = range(self.accelerator.world_size)
        files = [self.folder / f"step-{step:09d}{again}.rank{rank}.pt" for rank in ranks]
        state = {"per_rank": per_rank} | ({"shared": shared} if self.accelerator.rank == 0 else {})
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_bytes(files[self.accelerator.rank], buffer.getvalue())
        self.accelerator.barrier()
        manifest = self._manifest(step)
        if self.accelerator.rank == 0:
            try:
                entries = [{"name": f.name, "sha256": sha256(f), "bytes": f.stat().st_size} for f in files]
            except OSError as error:
                raise write_error(self.folder, error) from error
            write_json(manifest, add_hash({"format": FORMAT, "step": step, "files": entries}))
            self._remove_old(step)
        self.accelerator.barrier()
        return manifest

    def load(self) -> Checkpoint | None:
        """Load the newest valid checkpoint; None if there are no checkpoints.

        Raises:
            CompressError: If all checkpoints are corrupt, or the number of processes has changed.
        """
        steps = self.saved_steps()
        for step in reversed(steps):
            try:
                files = self._verify_files(step)
            except CorruptCheckpointError as error:
                self.progress(f"{self._manifest(step)}: {error}; trying the previous checkpoint.")
                continue
            self._check_world_size(step, len(files))
            state = read_state(files[self.accelerator.rank])
            shared = state if self.accelerator.rank == 0 else read_state(files[0])
            try:
                return step, shared["shared"], state["per_rank"]
            except (LookupError, TypeError) as error:
                raise CompressError(
                    f"{self._manifest(step)}: found files that are no checkpoint; start again with --fresh."
                ) from error
        if steps:
            raise CompressError(f"{self.folder}: all {len(steps)} checkpoints are corrupt; start again with --fresh.")
        return None

    def saved_steps(self) -> list[int]:
        """Return the steps that have a manifest, sorted."""
        names = [path.stem.removeprefix("step-") for path in self.folder.glob("step-*.json")]
        return sorted(int(name) for name in names if name.isdecimal())

    def latest_manifest(self) -> Path | None:
        """Return the newest manifest."""
        steps = self.saved_steps()
        return self._manifest(steps[-1]) if steps else None

    def _verify_files(self, step: int) -> list[Path]:
        """Return the files of a checkpoint, by rank. Raises CorruptCheckpointError if a hash differs."""
        files = []
        for entry in self._read_entries(step):
            path = self.folder / entry["name"]
            if not path.is_file():
                raise CorruptCheckpointError(f"{path.name} is missing")
            try:
                actual = sha256(path)
            except OSError as error:
                raise CorruptCheckpointError(f"{path.name} cannot be read ({error.strerror})") from error
            if actual != entry["sha256"]:
                raise CorruptCheckpointError(f"{path.name} has changed since it was written (its sha256 differs)")
            files.append(path)
        return files

    def _read_entries(self, step: int) -> list[dict[str, Any]]:
        """Return the file entries of a manifest. Raises CorruptCheckpointError if its hash differs."""
        try:
            content = json.loads(require_regular_file(self._manifest(step)).read_text(encoding="utf-8"))
            is_unchanged = isinstance(content, dict) and add_hash(content) == content
        except (OSError, UsageError, ValueError, RecursionError) as error:
            raise CorruptCheckpointError("the manifest cannot be read") from error
        if not is_unchanged:
            raise CorruptCheckpointError("the manifest has changed since it was written (its sha256 differs)")
        if content.get("format") != FORMAT:
            raise CorruptCheckpointError(f"found format {content.get('format')}, expected {FORMAT}")
        entries = content.get("files")
        if not isinstance(entries, list) or not all(is_file_entry(entry) for entry in entries):
            raise CorruptCheckpointError("the manifest has no list of files")
        return entries

    def _file_names(self, step: int) -> list[str]:
        """Return the file names in a manifest; none if there is no valid one."""
        try:
            return [entry["name"] for entry in self._read_entries(step)]
        except CorruptCheckpointError:
            return []

    def _check_world_size(self, step: int, world_size: int) -> None:
        if world_size != self.accelerator.world_size:
            raise CompressError(
                f"{self._manifest(step)}: found a checkpoint of {world_size} processes, expected "
                f"{self.accelerator.world_size}; use --devices {world_size}, or start again with --fresh."
            )

    def _remove_old(self, saved: int) -> None:
        """Remove all but the newest checkpoints up to step `saved`, and leftovers of interrupted saves.

        Later checkpoints are corrupt: otherwise the run would have resumed from them.
        """
        kept = [step for step in self.saved_steps() if step <= saved][-self.keep :]
        old = [self._manifest(step) for step in self.saved_steps() if step not in kept]
        names = {name for step in kept for name in self._file_names(step)}
        files = [*self.folder.glob("step-*.pt"), *self.folder.glob(".step-*.tmp")]
        try:
            for path in [*old, *(file for file in files if file.name not in names)]:
                path.unlink(missing_ok=True)
        except OSError as error:  # the new checkpoint is complete, so the run continues
            self.progress(f"{self.folder}: cannot remove old checkpoints ({error.strerror}); they take up space.")

    def _manifest(self, step: int) -> Path:
        return self.folder / f"step-{step:09d}.json"


def is_file_entry(entry: Any) -> bool:
    """Check whether an entry of a manifest names a file of its folder, with a hash."""
    name, digest = (entry.get("name"), entry.get("sha256")) if isinstance(entry, dict) else (None, None)
    return isinstance(name, str) and Path(name).name == name and isinstance(digest, str)


def read_state(path: Path | io.BytesIO) -> dict[str, Any]:
    """Read a state file without running code from it.

    Raises:
        CompressError: If the file is damaged, or contains more than tensors and plain values.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251 - tensors only
    except pickle.UnpicklingError as error:
        raise CompressError(
            f"{path}: found objects other than tensors and plain values, expected a checkpoint of this package; start "
            "again with --fresh."
        ) from error
    except DAMAGE_ERRORS as error:
        raise CompressError(f"{path}: damaged ({first_line(error)}); start again with --fresh.") from error
