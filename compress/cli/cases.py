"""The rows that `compress bench` measures: a model in a runtime at a batch size, and what has to be loaded for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compress.predictor import Predictor
    from exporters.runtimes import Provider, Runtime
    from profiles.latency.benchmark import Candidate
    from profiles.latency.scenarios import CandidateSpec


@dataclass(frozen=True, eq=False)
class Case:
    """A model in a runtime at a batch size: a row of the table."""

    index: int  #: of the model among those given
    model: Predictor
    runtime: Runtime
    size: int
    file: Path | None  #: to load; None: the network itself
    provider: Provider | None
    threads: int | None
    wishes: dict[str, Any]

    def candidate(self) -> Candidate[Any]:
        """Loaded here."""
        from compress.cli.candidates import candidate

        return candidate(
            self.model.network if self.file is None else self.file,
            self.model.card,
            self.size,
            runtime=self.runtime,
            provider=self.provider,
            threads=self.threads,
            trusted=self.wishes["trust_pickle"],
        )

    def opening(self) -> CandidateSpec:
        """To be loaded in a process of its own."""
        from profiles.latency.scenarios import CandidateSpec

        settings = {
            "spec": self.model.spec,
            "file": None if self.file is None else str(self.file),
            "image_size": list(self.model.card.image_size),
            "wishes": self.wishes,
            "batch_size": self.size,
            "runtime": self.runtime,
            "provider": self.provider,
            "threads": self.threads,
        }
        return CandidateSpec("compress.cli.candidates:reopened", settings)


def cases_of(
    opened: list[Predictor],
    chosen: list[list[Runtime]],
    sizes: list[int],
    folder: Path,
    provider: Provider | None,
    threads: int | None,
    wishes: dict[str, Any],
) -> list[Case]:
    """Every row. A network is exported to `folder` for the runtimes of files."""
    cases = []
    for index, (model, runtimes) in enumerate(zip(opened, chosen, strict=True)):
        for runtime in runtimes:
            file = file_of(model, runtime, folder / f"{index}.onnx")
            cases += [Case(index, model, runtime, size, file, provider, threads, wishes) for size in sizes]
    return cases


def file_of(opened: Predictor, runtime: Runtime, draft: Path) -> Path | None:
    """What the runtime loads: the model's own file, or one that is made of a network; None for the network itself."""
    from compress.measure import export_for_timing

    if opened.file is not None:
        return opened.file.absolute()
    if runtime in ("torch", "torch-compile"):
        return None
    return draft if draft.exists() else export_for_timing(opened, draft)
