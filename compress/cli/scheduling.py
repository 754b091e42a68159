"""Which process does which part of a sweep, and whose training is not worth its end: Optuna's studies, in one file.

A part is a trial. Optuna's journal is a file that any number of processes on any machines append to, each line under a
lock and read by all in the same order, so they agree on who was first: a waiting trial is given to one of them only. A
student has a study of its own, so that its trainings are judged against each other and never against another student's.

What is done is told by the folders of the runs, not by the journal: it may be removed between two calls.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.cli.presence import Presence
from compress.errors import CompressError, UsageError

if TYPE_CHECKING:
    import optuna
    from optuna.storages.journal import JournalFileOpenLock

    from compress.sweep import PrunePlan

#: how often a part is taken up again whose process died
MOST_LOST = 2
#: attributes of a trial: the part, the process that does it, why it ended badly
PART, WORKER, WHY = "part", "worker", "why"
#: why a trial ended, besides words of an error: its process left, or it was none that counts
LEFT, DISMISSED = {"left": True}, {"dismissed": True}


@dataclass(frozen=True)
class Part:
    """Something that one process does at a time."""

    name: str
    group: str  #: parts of a group are judged against each other
    done: Callable[[], bool]  #: by what lies in its folder


class Turn:
    """A part that this process has taken."""

    def __init__(self, part: Part, study: optuna.Study, trial: optuna.Trial) -> None:
        self.part, self._study, self._trial = part, study, trial
        self._told: set[int] = set()

    def report(self, tenth: int, score: float) -> bool:
        """Tell the score after so many tenths of the budget; whether the training is not worth going on with."""
        from optuna.exceptions import UpdateFinishedTrialError

        if tenth in self._told:
            return False
        self._told.add(tenth)
        try:
            self._trial.report(score, tenth)
            return self._trial.should_prune()
        except UpdateFinishedTrialError:
            return False  # `lost` tells

    @property
    def lost(self) -> bool:
        """Whether another process took this one for dead, and the part may be another's by now."""
        from optuna.trial import TrialState

        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return self._trial.number not in {one.number for one in running}

    def finish(self, score: float | None) -> None:
        self._tell("COMPLETE", 0.0 if score is None else score)

    def prune(self) -> None:
        self._tell("PRUNED")

    def fail(self, words: str) -> None:
        self._mark({"words": words})
        self._tell("FAIL")

    def leave(self) -> None:
        """Somebody else may go on with it."""
        self._mark(LEFT)
        self._tell("FAIL")

    def _mark(self, why: dict[str, Any]) -> None:
        from optuna.exceptions import UpdateFinishedTrialError

        try:
            self._trial.set_user_attr(WHY, why)
        except UpdateFinishedTrialError:
            return  # told by another, who took this process for dead

    def _tell(self, state: str, value: float | None = None) -> None:
        tell(self._study, self._trial.number, state, value)


class Board:
    """The parts of a sweep, as all who work on it see them."""

    def __init__(self, folder: Path, parts: Sequence[Part], presence: Presence, prune: PrunePlan | None = None) -> None:
        """Raises UsageError where Optuna is not installed, CompressError for a journal that cannot be read."""
        self.parts, self.presence = {part.name: part for part in parts}, presence
        self._guard = threading.Lock()
        self.path = folder / "journal.log"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._studies = studies(self.path, list(dict.fromkeys(part.group for part in parts)), prune)

    def refill(self, *, anew: bool = False) -> None:
        """Offer what is not done and nobody does; `anew`: what has failed before, too."""
        with self._guard:
            for part in self.parts.values():
                if not part.done() and missing(self._trials(part), anew=anew):
                    self._studies[part.group].enqueue_trial({}, user_attrs={PART: part.name})

    def take(self) -> Turn | None:
        """The first part that waits, which is then this process's alone; None where none does."""
        with self._guard:
            for part in self.parts.values():
                if not any(trial.state.name == "WAITING" for trial in self._trials(part)):
                    continue
                study = self._studies[part.group]
                trial = study.ask()  # the first that waits, of this part unless somebody was faster
                trial.set_user_attr(WORKER, self.presence.name)
                mine = self.parts.get(trial.user_attrs.get(PART, ""))
                if mine is not None and not self._twins(mine, trial.number):
                    return Turn(mine, study, trial)
                trial.set_user_attr(WHY, DISMISSED)  # offered twice, or not in this plan, or made as nothing waited
                tell(study, trial.number, "FAIL")
        return None

    def _twins(self, part: Part, number: int) -> bool:
        """Whether the part was offered before, and is not yet done.

        Two processes may find at once that nobody does a part, and both offer it. Whoever takes the later offer sees
        the earlier one, for all read the same journal.
        """
        return any(not one.state.is_finished() and one.number < number for one in self._trials(part))

    def bury(self) -> None:
        """Give back what processes had taken that are no more."""
        with self._guard:
            for part in self.parts.values():
                for trial in self._trials(part):
                    name = trial.user_attrs.get(WORKER, f"nobody {trial.number} of {part.group}")
                    if trial.state.name == "RUNNING" and self.presence.dead(name):
                        tell(self._studies[part.group], trial.number, "FAIL")

    def open(self) -> dict[str, str]:
        """The parts that wait, or that somebody does: their names, and who does them, if anybody."""
        found = {}
        for part in self.parts.values():
            trials = [trial for trial in self._trials(part) if not trial.state.is_finished()]
            if trials:
                found[part.name] = str(trials[0].user_attrs.get(WORKER, ""))
        return found

    def failures(self) -> dict[str, str]:
        """The parts that failed last, and why."""
        found = {}
        for part in self.parts.values():
            trials = self._trials(part)
            if trials and trials[-1].state.name == "FAIL" and not part.done():
                why = trials[-1].user_attrs.get(WHY, {})
                died = f"the process that did it died {lost(trials)} times; is there enough memory?"
                if why != LEFT:
                    found[part.name] = why.get("words", died)
        return found

    def _trials(self, part: Part) -> list[optuna.trial.FrozenTrial]:
        """The trials of a part that count, from the first to the last."""
        found = self._studies[part.group].get_trials(deepcopy=False)
        return [one for one in found if one.user_attrs.get(PART) == part.name and one.user_attrs.get(WHY) != DISMISSED]


def missing(trials: Sequence[optuna.trial.FrozenTrial], *, anew: bool) -> bool:
    """Whether a part that is not done must be offered (again), by its trials so far."""
    if any(not trial.state.is_finished() for trial in trials):
        return False
    if anew or not trials:
        return True
    why = trials[-1].user_attrs.get(WHY)
    return trials[-1].state.name == "FAIL" and (why == LEFT or (why is None and lost(trials) <= MOST_LOST))


def lost(trials: Sequence[optuna.trial.FrozenTrial]) -> int:
    """How many of the last trials ended with their processes."""
    count = 0
    for trial in reversed(trials):
        if trial.state.name != "FAIL" or WHY in trial.user_attrs:
            break
        count += 1
    return count


def tell(study: optuna.Study, number: int, state: str, value: float | None = None) -> None:
    """End a trial, unless somebody else has just done so."""
    from optuna.exceptions import UpdateFinishedTrialError
    from optuna.trial import TrialState

    try:
        study.tell(number, values=value, state=TrialState[state], skip_if_finished=True)
    except UpdateFinishedTrialError:
        return


def studies(path: Path, groups: Sequence[str], prune: PrunePlan | None) -> dict[str, optuna.Study]:
    """A study a group, all in one journal."""
    try:
        import optuna
    except ImportError as error:
        raise UsageError("compress sweep needs Optuna: pip install 'compress[sweep]'.") from error
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    optuna.logging.set_verbosity(optuna.logging.ERROR)  # it says of each trial what we say in our own words
    try:
        lock = JournalFileOpenLock(str(path))
        mend(path, lock)
        backend = JournalFileBackend(str(path), lock)
        storage = optuna.storages.JournalStorage(backend)
        return {
            group: optuna.create_study(
                storage=storage, study_name=group, direction="maximize", load_if_exists=True, pruner=pruner(prune),
                sampler=optuna.samplers.RandomSampler(seed=0),
            )
            for group in groups
        }  # fmt: skip
    except OSError as error:
        raise CompressError(f"{path}: cannot be written ({error.strerror or error}); choose another --out.") from error
    except ValueError as error:  # json's errors are such too
        raise CompressError(
            f"{path}: damaged ({error}). Remove it while nobody works on the sweep: what is finished is told by the "
            "folders of the runs."
        ) from error


def mend(path: Path, lock: JournalFileOpenLock) -> None:
    """Cut off a line that a process could not write to its end: what is written next would make it unreadable."""
    if not path.exists():
        return
    lock.acquire()
    try:
        with path.open("rb+") as file:
            content = file.read()
            file.truncate(content.rfind(b"\n") + 1)
    finally:
        lock.release()


def pruner(prune: PrunePlan | None) -> optuna.pruners.BasePruner:
    """Optuna's, on the scale of tenths of the budget."""
    import optuna

    if prune is None or prune.kind == "none":
        return optuna.pruners.NopPruner()
    if prune.kind == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=prune.startup, n_warmup_steps=prune.warmup)
    return optuna.pruners.SuccessiveHalvingPruner(min_resource=prune.warmup, reduction_factor=prune.factor)
