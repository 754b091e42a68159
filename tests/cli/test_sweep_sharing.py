"""How those who work on a sweep share it: each part is done once at a time, by whoever is alive, and none is lost."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compress.cli import presence, scheduling, sequence, workers
from compress.cli.cells import Hand, Stopped
from compress.cli.presence import PATIENCE_S, Presence
from compress.cli.scheduling import MOST_LOST, Board, Part
from compress.errors import CompressError, UsageError


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Work:
    """Parts that are done once somebody has put them among those that are."""

    def __init__(self, folder: Path, count: int = 4) -> None:
        self.folder, self.done, self.clock = folder, [], Clock()
        names = [f"student-method-{i}" for i in range(count)]
        self.parts = [Part(name, "student", lambda name=name: name in self.done) for name in names]

    def board(self, *, begin: bool = True) -> Board:
        """As a process of its own sees it."""
        mine = Presence(self.folder / "present", now=self.clock)
        mine.beat()
        board = Board(self.folder, self.parts, mine)
        if begin:
            board.refill(anew=True)
        return board

    def elsewhere(self, board: Board) -> None:
        """Let the process of a board be one of another machine, whose processes nobody here can see."""
        path = board.presence.path(board.presence.name)
        path.write_text(json.dumps({**json.loads(path.read_text()), "place": "another machine"}))


@pytest.fixture
def shared(tmp_path: Path) -> Work:
    return Work(tmp_path)


def names(board: Board) -> list[str]:
    """All that can be taken."""
    found = []
    while (turn := board.take()) is not None:
        found.append(turn.part.name)
    return found


def test_two_processes_never_have_the_same_part(shared: Work) -> None:
    one, other = shared.board(), shared.board()
    taken = []
    while True:
        turns = [one.take(), other.take()]
        taken += [turn.part.name for turn in turns if turn is not None]
        if turns == [None, None]:
            break
    assert taken == [part.name for part in shared.parts]


def test_what_two_offer_at_once_is_done_once(shared: Work) -> None:
    one, other = shared.board(), shared.board(begin=False)
    for part in shared.parts:  # as if both had looked before either wrote
        other._studies[part.group].enqueue_trial({}, user_attrs={scheduling.PART: part.name})
    assert sorted([*names(one), *names(other)]) == [part.name for part in shared.parts]
    assert names(one) == []


@pytest.mark.parametrize("count", [1, 3])
def test_threads_of_several_processes_do_every_part_once(shared: Work, tmp_path: Path, count: int) -> None:
    work, made = Work(tmp_path, 12), []

    def do(turn: Any, hand: Hand) -> None:
        made.append(turn.part.name)
        work.done.append(turn.part.name)
        turn.finish(1.0)

    boards = [work.board(), work.board()]
    threads = [
        threading.Thread(target=workers.work, args=(board, do, [Hand() for _ in range(count)])) for board in boards
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == sorted(part.name for part in work.parts)
    assert boards[0].open() == {}
    assert boards[0].failures() == {}


def test_one_that_fails_keeps_nobody_and_is_tried_again_by_the_next_call_only(shared: Work) -> None:
    made: list[str] = []

    def do(turn: Any, hand: Hand) -> None:
        made.append(turn.part.name)
        if turn.part.name.endswith("1"):
            raise CompressError("the loss is nan")
        if turn.part.name.endswith("2"):
            raise ZeroDivisionError("of ours")
        shared.done.append(turn.part.name)
        turn.finish(0.5)

    board = shared.board()
    assert workers.work(board, do, [Hand()]) == 0
    assert len(made) == 4
    failures = board.failures()
    assert failures["student-method-1"] == "the loss is nan"
    assert "internal error: ZeroDivisionError: of ours" in failures["student-method-2"]
    assert len(failures) == 2
    workers.work(shared.board(), do, [Hand()])
    assert made[4:] == ["student-method-1", "student-method-2"]


def test_what_is_done_is_not_offered_and_what_was_done_but_is_gone_is(shared: Work) -> None:
    shared.done.append("student-method-0")
    board = shared.board()
    assert names(board) == ["student-method-1", "student-method-2", "student-method-3"]
    other = Work(shared.folder / "other", 1)
    board = other.board()
    turn = board.take()
    assert turn is not None
    turn.finish(1.0)
    board.refill()
    assert board.take() is None
    assert names(other.board()) == ["student-method-0"], "its folder was removed since"


# Who is no more.


def test_a_part_of_a_process_that_gives_no_sign_is_taken_over_and_not_before(shared: Work) -> None:
    one, other = shared.board(), shared.board()
    turn = one.take()
    assert turn is not None
    shared.elsewhere(one)
    for passed in (0, PATIENCE_S - 1, PATIENCE_S):
        shared.clock.now = passed
        other.bury()
        assert not turn.lost
    shared.clock.now = PATIENCE_S + 1
    other.bury()
    assert turn.lost
    other.refill()
    assert turn.part.name in names(other)
    assert not turn.report(3, 0.5)
    turn.finish(0.5)
    turn.fail("too late")  # what it still says changes nothing
    assert other.open()[turn.part.name] == other.presence.name


def test_a_process_that_gives_signs_keeps_its_part_however_long_it_takes(shared: Work) -> None:
    one, other = shared.board(), shared.board()
    turn = one.take()
    assert turn is not None
    for _ in range(10):
        one.presence.beat()
        shared.elsewhere(one)
        other.bury()
        shared.clock.now += PATIENCE_S
    assert not turn.lost


def test_a_process_of_this_machine_is_known_to_be_dead_at_once(shared: Work) -> None:
    one, other = shared.board(), shared.board()
    turn = one.take()
    assert turn is not None
    path = one.presence.path(one.presence.name)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    path.write_text(json.dumps({**json.loads(path.read_text()), "pid": gone.pid}))
    other.bury()
    assert turn.lost
    assert shared.clock.now == 0


def test_a_number_that_another_process_has_by_now_is_not_taken_for_the_one_that_died(tmp_path: Path) -> None:
    mine, other = Presence(tmp_path), Presence(tmp_path)
    other.beat()
    assert not mine.dead(other.name)
    path = other.path(other.name)
    path.write_text(json.dumps({**json.loads(path.read_text()), "born": "1"}))
    assert mine.dead(other.name)


def test_machines_that_do_not_tell_are_judged_by_their_signs_alone(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(presence, "born", lambda pid: None)
    clock = Clock()
    mine, other = Presence(tmp_path, now=clock), Presence(tmp_path, now=clock)
    other.beat()
    assert not mine.dead(other.name)
    clock.now = PATIENCE_S + 1
    assert mine.dead(other.name)
    other.beat()
    assert not mine.dead(other.name)


def test_a_process_shows_itself_while_it_works_and_leaves_nothing_behind(tmp_path: Path) -> None:
    mine = Presence(tmp_path)
    with mine.shown():
        assert mine.path(mine.name).exists()
        assert not mine.dead(mine.name)
    assert list(tmp_path.iterdir()) == []


def test_a_part_that_kills_its_process_every_time_is_given_up(tmp_path: Path) -> None:
    shared = Work(tmp_path, 1)
    for _ in range(MOST_LOST + 1):
        board = shared.board(begin=False)
        board.refill()
        turn = board.take()
        assert turn is not None
        board.presence.path(board.presence.name).unlink()
        other = shared.board(begin=False)
        other.bury()
        shared.clock.now += PATIENCE_S + 1
        other.bury()
    last = shared.board(begin=False)
    last.refill()
    assert last.open() == {}
    assert "died 3 times" in last.failures()["student-method-0"]
    last.refill(anew=True)
    assert list(last.open()) == ["student-method-0"]


# Signals.


def test_after_a_signal_nothing_more_is_taken_and_what_was_going_on_waits_for_the_next(shared: Work) -> None:
    made: list[str] = []

    def do(turn: Any, hand: Hand) -> None:
        made.append(turn.part.name)
        hand.relay.note(15, None)
        raise Stopped

    board = shared.board()
    assert workers.work(board, do, [Hand()]) == 15
    assert made == ["student-method-0"]
    assert board.failures() == {}
    other = shared.board(begin=False)
    other.refill()
    assert sorted(names(other)) == [part.name for part in shared.parts]


def test_who_only_helps_does_not_wait_for_what_others_do(shared: Work) -> None:
    one, other = shared.board(), shared.board()
    for _ in shared.parts:
        one.take()
    do: Callable[..., None] = pytest.fail
    assert workers.work(other, do, [Hand()], join=True) == 0


# The journal.


def test_a_line_that_was_cut_off_is_mended(shared: Work) -> None:
    board = shared.board()
    with board.path.open("a") as file:
        file.write('{"op_code": 4, "wor')
    assert names(shared.board()) == [part.name for part in shared.parts]


def test_a_damaged_journal_is_named(shared: Work) -> None:
    shared.board().path.write_text("nonsense\nmore\n")
    with pytest.raises(CompressError, match=r"journal.log: damaged .* Remove it while nobody works"):
        shared.board()


def test_without_the_journal_it_goes_on_with_what_is_not_done(shared: Work) -> None:
    board = shared.board()
    board.take()
    shared.done += ["student-method-0", "student-method-1"]
    board.path.unlink()
    assert names(shared.board()) == ["student-method-2", "student-method-3"]


def test_optuna_is_asked_for_by_name_where_it_is_missing(shared: Work, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UsageError, match=r"pip install 'compress\[sweep\]'"):
        shared.board()


# Shares of the machine.


def test_workers_get_a_gpu_each_and_share_the_cores(monkeypatch: Any) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("profiles.machine.cores", lambda: 8)
    monkeypatch.setattr(workers, "visible_gpus", lambda: ["2", "5"])
    found = [hand.environment for hand in workers.hands(3, "auto")]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in found] == ["2", "5", "2"]
    assert {one["OMP_NUM_THREADS"] for one in found} == {"2"}
    assert workers.hands(1, "cuda:1")[0].environment == {}
    monkeypatch.setattr(workers, "visible_gpus", list)
    assert workers.hands(1, "auto")[0].environment == {}


def test_what_a_worker_starts_has_its_environment_and_its_answer_goes_where_it_is_read(tmp_path: Path) -> None:
    hand = Hand(environment={"COMPRESS_CACHE": str(tmp_path)})
    assert "optional" in hand.ask(["doctor", "--json"])
    with pytest.raises(CompressError, match=r"compress doctor: No such option.*jsn"):
        hand.ask(["doctor", "--jsn"])


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell a process that its parent died")
def test_what_is_started_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    """A parent that is killed cannot say anything to anybody."""
    child = tmp_path / "compress" / "__main__.py"
    child.parent.mkdir()
    (child.parent / "__init__.py").touch()
    child.write_text("import os, sys, time\nprint(os.getpid(), file=sys.stderr, flush=True)\ntime.sleep(600)\n")
    parent = "from compress.cli import sequence\n"
    first = f"import sys; sys.path.insert(0, {str(tmp_path)!r})"
    parent += f"sequence.TIED = {first!r} + sequence.TIED\nsequence.played(['x'], sequence.Relay())"
    with subprocess.Popen([sys.executable, "-c", parent], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        number = int(process.stderr.readline())
        began = presence.born(number)
        assert began is not None
        process.kill()
    for _ in range(6000):
        if presence.born(number) != began:
            break
        time.sleep(0.01)
    assert presence.born(number) != began


def test_the_relay_of_nothing_says_nothing() -> None:
    sequence.Relay().send(15)


# Whose end is not worth it.


def test_halving_keeps_the_best_of_those_that_come_to_a_rung_and_students_do_not_compete(tmp_path: Path) -> None:
    from compress.sweep import PrunePlan

    parts = [Part(f"{student}-{i}", student, lambda: False) for student in ("small", "large") for i in range(2)]
    mine = Presence(tmp_path / "present")
    mine.beat()
    board = Board(tmp_path, parts, mine, PrunePlan("asha", warmup=2, factor=2))
    board.refill()
    turns = {turn.part.name: turn for turn in iter(board.take, None)}
    assert not turns["large-0"].report(2, 0.9)
    assert not turns["small-0"].report(1, 0.1)
    assert not turns["small-0"].report(2, 0.2), "the first of its student, however much better the large one is"
    assert turns["small-1"].report(2, 0.1)
    assert not turns["large-1"].report(2, 0.95)
