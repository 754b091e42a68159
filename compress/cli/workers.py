"""The processes and threads that work on a sweep: each takes what waits, does it, and takes the next."""

from __future__ import annotations

import fcntl
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import TYPE_CHECKING, Any

from compress.cli import sequence
from compress.cli.cells import STOPPED, Cell, Hand, Stopped, make_files
from compress.cli.output import say
from compress.cli.running import LOCK
from compress.engine.signals import noted_by
from compress.errors import CompressError
from compress.files import write_json

if TYPE_CHECKING:
    from pathlib import Path

    from compress.cli.scheduling import Board, Turn

#: seconds between two looks at what others do
POLL_S = 1.0
#: seconds that a process whose parent died gets to save and end
ORPHAN_S = 300.0
TENTHS = 10

Doing = Callable[["Turn", Hand], None]


def work(board: Board, do: Doing, hands: Sequence[Hand], *, join: bool = False) -> int:
    """Do what waits with all hands at once, until nothing is left; the signal that came, or 0.

    With `join` those that others do are not waited for. One that fails keeps nothing from being done.
    """

    def note(signum: int, frame: FrameType | None) -> None:
        for hand in hands:
            hand.relay.note(signum, frame)

    with noted_by(note):
        if len(hands) == 1:
            go_on(board, do, hands[0], join=join)
        else:
            with ThreadPoolExecutor(len(hands)) as pool:
                for worker in [pool.submit(go_on, board, do, hand, join=join) for hand in hands]:
                    worker.result()
    return max(hand.relay.received for hand in hands)


def go_on(board: Board, do: Doing, hand: Hand, *, join: bool) -> None:
    """Take part after part, until nothing waits and nobody does anything that might come back."""
    told: list[str] = []
    while not hand.relay.received:
        turn = board.take()
        if turn is None:
            board.bury()
            board.refill()
            turn = board.take()
        if turn is not None:
            settle(turn, do, hand)
            continue
        left = board.open()
        if join or not left:
            return
        others = [f"{name} (at {who})" for name, who in left.items() if who not in ("", board.presence.name)]
        if others != told:
            say(f"waiting for {', '.join(others)}")
            told = others
        time.sleep(POLL_S)


def settle(turn: Turn, do: Doing, hand: Hand) -> None:
    """Do one part, and tell how it ended, whatever happens."""
    hand.label = f"[{turn.part.name}] " if hand.one_of_many else ""
    try:
        do(turn, hand)
    except Stopped:
        turn.leave()
    except Exception as error:
        from compress.cli import sentence_for

        words, _ = sentence_for(error)
        say(f"{turn.part.name}: {words}")
        turn.fail(words)
    except BaseException:
        turn.leave()
        raise


def train(cell: Cell, turn: Turn, hand: Hand) -> None:
    """Train a student, unless that is done, and make its files. Raises CompressError where either fails, Stopped."""
    if cell.done:  # by somebody whose journal this is not
        turn.finish(cell.score)
        return
    if not cell.job.finished:
        wait_until_free(cell.job.folder, hand)
        say(f"{cell.name}: {cell.job.name}, seed {cell.job.seed}, into {cell.job.folder}")
        with Watch(cell, turn, hand) as watch:
            code, words = hand.run(cell.job.command())
        if watch.given_up:
            say(f"{cell.name}: another process took this one for dead, and goes on with it")
            return
        if watch.verdict is not None and code:
            write_json(cell.job.folder / STOPPED, watch.verdict)
            say(f"{cell.name}: stopped after {watch.verdict['tenth']} tenths, others of {cell.student} were better")
            turn.prune()
            return
        if code:
            raise CompressError(sequence.ended(code, words))
        (cell.job.folder / STOPPED).unlink(missing_ok=True)
    make_files(cell.model, hand)
    turn.finish(cell.score)


class Watch:
    """Reads what a training says of itself while it runs, and stops it where it is not worth going on with."""

    def __init__(self, cell: Cell, turn: Turn, hand: Hand, *, every: float = POLL_S) -> None:
        self.cell, self.turn, self.hand, self.every = cell, turn, hand, every
        self.verdict: dict[str, Any] | None = None  #: how far it came, where it was not worth going on with
        self.given_up = False  #: this process was taken for dead; another does it now
        self._over = threading.Event()
        self._failure: Exception | None = None

    def __enter__(self) -> Watch:
        self._thread = threading.Thread(target=self._go_on, daemon=True, name=f"watch {self.cell.name}")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        if self.verdict is None and not self.given_up:
            self.look()  # at what came last: it has ended by itself

    def _go_on(self) -> None:
        try:
            while not self._over.wait(self.every):
                self.given_up = self.given_up or self.turn.lost
                if not self.given_up:
                    self.verdict = self.look()
                if self.given_up or self.verdict is not None:
                    self.hand.relay.send(signal.SIGTERM)
                    self._over.wait()
        except Exception as error:  # told by the thread that waits for this one
            self._failure = error
            self.hand.relay.send(signal.SIGTERM)

    def look(self) -> dict[str, Any] | None:
        """Report what is new; how far the training came, if it is not worth going on with."""
        for tenth, line in scores(self.cell).items():
            if self.turn.report(tenth, line["score"]) and tenth < TENTHS:
                return {"tenth": tenth, **line}
        return None


def scores(cell: Cell) -> dict[int, dict[str, Any]]:
    """The first evaluation of a run in each tenth of its budget: tenth -> step, metric and score."""
    from compress.engine.journal import Journal

    budget, found = cell.model.plan.budget, {}
    for line in Journal(cell.job.folder, tensorboard=False).lines("evaluation"):
        share = line["step"] / budget.steps if budget.steps else line["seconds"] / (budget.time_limit or 1)
        metric = next((name for name in line if name not in ("kind", "step", "seconds")), None)
        tenth = min(TENTHS, int(share * TENTHS + 1e-9))
        if metric is not None and tenth not in found:
            found[tenth] = {"step": line["step"], "metric": metric, "score": line[metric]}
    return found


def wait_until_free(folder: Path, hand: Hand) -> None:
    """Until no process works in a run's folder: one whose parent died is told so, saves and ends.

    Raises CompressError where it does not, Stopped.
    """
    end = time.monotonic() + ORPHAN_S
    while held(folder):
        if hand.relay.received:
            raise Stopped
        if time.monotonic() > end:
            who = (folder / LOCK).read_text().strip()
            raise CompressError(f"{folder}: process {who} still works there, whom nobody waits for; end it.")
        time.sleep(POLL_S)


def held(folder: Path) -> bool:
    """Whether a run is going on in a folder, as far as its lock tells."""
    try:
        file = open(folder / LOCK)  # noqa: SIM115 - closed below
    except OSError:
        return False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def hands(count: int, device: str) -> list[Hand]:
    """As many as there are workers, each with its share of the machine: a GPU where there are several, or cores."""
    gpus = visible_gpus() if device in ("auto", "cuda") else []
    found = []
    for i in range(count):
        environment = {"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if len(gpus) > 1 else {}
        if count > 1 and "OMP_NUM_THREADS" not in os.environ:
            from profiles.machine import cores

            environment["OMP_NUM_THREADS"] = str(max(1, cores() // count))
        found.append(Hand(environment=environment, one_of_many=count > 1))
    return found


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not torch.cuda.is_available():
        return []
    return [str(i) for i in range(torch.cuda.device_count())] if given is None else given.split(",")
