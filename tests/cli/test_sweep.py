"""`compress sweep`: what it makes of a recipe, what it makes only once, and what it says."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from invoking import TEACHER, answer, refusal, run
from test_compare import BROKEN
from test_json import agree

from compress import config
from compress.cli import sequence, workers
from compress.cli.cells import STOPPED, Hand, exported
from compress.cli.layout import calibration, lay_out, read
from compress.cli.presence import Presence
from compress.cli.scheduling import Board, Part
from compress.cli.workers import Watch, scores
from compress.errors import CompressError

#: two steps, and nothing that takes long
RECIPE = {
    "teacher": TEACHER, "students": ["wrn16_1"], "methods": ["kd", "broken:Broken"], "precisions": ["fp32", "int8"],
    "budget": {"steps": 2, "batch_size": 8, "precision": "32", "device": "cpu"}, "set": ["data.views=1"],
    "calibration_images": 8, "batch_sizes": [1], "duration": 0.02,
}  # fmt: skip
NOTHING = dict.fromkeys(("students", "methods", "formats", "precisions", "sets"))


class Played:
    """Commands are carried out in this process, which spares the seconds of starting others."""

    def __init__(self) -> None:
        self.made: list[list[str]] = []

    def __call__(self, words: Any, relay: Any, *, answer: Path | None = None, **_: Any) -> tuple[int, str]:
        self.made.append(list(words))
        done = run(*words)
        if answer is not None:
            answer.write_text(done.stdout)
        return done.exit_code, (done.stderr.strip().splitlines() or [""])[-1].removeprefix("Error: ")

    def taken(self) -> list[str]:
        """The commands since the last look."""
        made, self.made = self.made, []
        return [words[0] for words in made]


@pytest.fixture(scope="module")
def played(tmp_path_factory) -> Iterator[Played]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("own")
        (folder / "broken.py").write_text(BROKEN)
        patch.syspath_prepend(str(folder))
        found = Played()
        patch.setattr(sequence, "played", found)
        yield found
    sys.modules.pop("broken", None)


def recipe(folder: Path, photos: Path, clothes: Path, **more: Any) -> Path:
    path = folder / "mine.yaml"
    path.write_text(config.dump({**RECIPE, "ood": str(photos), "val": str(clothes), **more}))
    return path


@pytest.fixture(scope="module")
def swept(played, photos, clothes, tmp_path_factory) -> tuple[Path, Path, Any]:
    """A sweep of one cell that works and one that fails: its recipe, its folder, what it printed."""
    folder = tmp_path_factory.mktemp("swept")
    path = recipe(folder, photos, clothes)
    return path, folder / "out", run("sweep", path, "--out", folder / "out", "--json")


def records(folder: Path) -> dict[tuple[str, str], Any]:
    from profiles.record import read_records

    return {(record.format, record.precision): record for record in read_records(folder)}


# What it makes.


def test_one_that_fails_is_named_and_the_others_are_made(swept) -> None:
    _, _, result = swept
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    agree("compress sweep", found)
    assert found["failed"] == {"wrn16_1-broken-Broken-0": "broken: it never works."}
    good, bad = found["cells"]
    assert (good["cell"], good["state"], good["steps"]) == ("wrn16_1-kd-0", "finished", 2)
    assert (bad["state"], bad["error"], bad["files"]) == ("failed", "broken: it never works.", [])
    assert any("Broken wrn16_1, seed 0 failed: broken: it never works." in caveat for caveat in found["caveats"])
    assert Path(found["report"]["html"]).exists()
    assert found["summary"].startswith("Ship KD wrn16_1")


def test_every_file_is_measured_itself_and_timed_with_the_teachers(swept, clothes) -> None:
    _, out, result = swept
    cell = json.loads(result.stdout)["cells"][0]
    known, teacher = records(out / "wrn16_1-kd-0"), records(out / "teacher")
    assert list(known) == [("", "fp32"), ("onnx", "fp32"), ("onnx", "int8")]
    assert list(teacher) == [("", "fp32"), ("onnx", "fp32")]
    for one in cell["files"]:
        record = known[one["format"], one["precision"]]
        assert (
            answer(run("eval", one["path"], "--data", clothes, "--json"))["metrics"] == record.metrics == one["metrics"]
        )
        assert record.size_bytes == one["bytes"] == Path(one["path"]).stat().st_size
        assert record.export["parity"]["images"] > 0
        assert record.run["seed"] == 0
        assert record.macs == known["", "fp32"].macs < teacher["onnx", "fp32"].macs
        (latency,) = record.latencies
        assert (latency.batch_size, latency.precision, latency.runtime) == (1, one["precision"], "onnxruntime")
    (latency,) = teacher["onnx", "fp32"].latencies
    assert latency.runtime == "onnxruntime"
    assert teacher["", "fp32"].metrics == teacher["onnx", "fp32"].metrics
    assert known["", "fp32"].latencies == []


def test_the_report_has_a_row_for_every_file(swept) -> None:
    _, out, _ = swept
    rows = {(r["name"], r["format"], r["precision"]) for r in json.loads((out / "report.json").read_text())["records"]}
    assert {("KD wrn16_1", "onnx", "int8"), ("KD wrn16_1", "onnx", "fp32"), ("Teacher wrn16_2", "onnx", "fp32")} <= rows


def test_what_int8_was_calibrated_on_is_said(swept, photos) -> None:
    _, out, _ = swept
    (said,) = [c for c in json.loads((out / "report.json").read_text())["caveats"] if c.startswith("int8 was calib")]
    assert str(photos) in said, "kd makes no images of its own"
    assert "(KD, Broken)" in said


# What it makes once.


def test_the_same_command_makes_again_what_failed_and_nothing_else(swept, played, monkeypatch) -> None:
    path, out, _ = swept
    played.taken()
    monkeypatch.setattr("profiles.latency.measure_alternated", pytest.fail)
    assert run("sweep", path, "--out", out).exit_code == 1
    assert played.taken() == ["distill"]
    dry = run("sweep", "--out", out, "--dry-run", "--json")
    found = answer(dry)
    agree("compress sweep --dry-run", found)
    assert [cell["state"] for cell in found["cells"]] == ["finished"]
    assert found["left_out"] == [{"student": "wrn16_1", "name": "Broken", "reason": "broken: it never works."}]
    assert (found["trainings"], found["artefacts"]) == (0, 2)
    assert played.taken() == []


@pytest.mark.slow
def test_another_precision_makes_its_files_only_and_all_are_timed_together_again(swept, played, tmp_path) -> None:
    path, old, _ = swept
    out = tmp_path / "out"
    shutil.copytree(old, out)
    files = {f: f.stat().st_mtime_ns for f in out.glob("*/files/*.onnx")}
    played.taken()
    found = answer(run("sweep", path, "--out", out, "--methods", "kd", "--precision", "fp32,fp16,int8", "--json"))
    assert played.taken() == ["export", "eval"]
    assert [one["precision"] for one in found["cells"][0]["files"]] == ["fp32", "int8", "fp16"]
    assert {f: f.stat().st_mtime_ns for f in files} == files
    assert [len(record.latencies) for record in records(out / "wrn16_1-kd-0").values()] == [0, 1, 1, 1]
    timed = json.loads((out / "timed.json").read_text())["of"]["files"]
    assert set(timed) == {
        "teacher/files/model.onnx", "wrn16_1-kd-0/files/model.onnx", "wrn16_1-kd-0/files/model.int8.onnx",
        "wrn16_1-kd-0/files/model.fp16.onnx",
    }  # fmt: skip


def test_a_folder_of_other_settings_is_refused_before_anything_is_spent(swept, played) -> None:
    path, out, _ = swept
    played.taken()
    sentence = refusal(run("sweep", path, "--out", out, "--methods", "kd", "--set", "kd.temperature=2"), 2)
    assert "wrn16_1-kd-0: holds a run with other settings (method.temperature: 5.0 there, 2.0 here)" in sentence
    assert played.taken() == []


def test_who_only_helps_leaves_times_and_report_to_the_others(swept, played, tmp_path) -> None:
    path, old, _ = swept
    shutil.copytree(old, tmp_path / "out")
    for name in ("timed.json", "report.html"):
        (tmp_path / "out" / name).unlink()
    found = answer(run("sweep", path, "--out", tmp_path / "out", "--methods", "kd", "--join", "--json"))
    agree("compress sweep", found)
    assert (found["summary"], found["report"]) == (None, {})
    assert not (tmp_path / "out" / "report.html").exists()
    assert not (tmp_path / "out" / "timed.json").exists()


class Answering(Hand):
    """A hand whose commands answer what it is told."""

    def __init__(self, *answers: Any) -> None:
        super().__init__()
        self.answers, self.asked = list(answers), []

    def ask(self, words: Any) -> dict[str, Any]:
        self.asked.append(list(words))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_a_file_that_is_rejected_is_left_out_whether_alone_or_among_others(swept, tmp_path) -> None:
    path, old, _ = swept
    plan = read(path, old, {**NOTHING, "sets": (), "precisions": "int8"})
    (model, *_) = [cell.model for cell in lay_out(plan, tmp_path).cells]
    file, said = f"{model.folder}/files/model.int8.onnx", "int8 rejected: differs by 0.5"
    left = [{"format": "onnx", "precision": "int8", "reason": said}]
    for precisions in (["int8"], ["fp32", "int8"]):
        hand = Answering({"artefacts": [], "rejected": [left[0] | {"reason": f"{file}: {said}"}]})
        assert exported(model, [("onnx", precision) for precision in precisions], hand)["rejected"] == left
        out = file if precisions == ["int8"] else str(model.folder / "files")
        assert hand.asked[0][-3:] == ["--out", out, "--json"]
    with pytest.raises(CompressError, match="no space"):
        exported(model, [("onnx", "int8")], Answering(CompressError(f"compress export: {file}: no space")))


@pytest.mark.slow
def test_what_is_gone_is_made_again_and_what_answers_too_differently_is_left_out(
    swept, played, tmp_path, monkeypatch
) -> None:
    from exporters.comparison import TOLERANCES, Tolerance

    path, old, _ = swept
    shutil.copytree(old, tmp_path / "out")
    (tmp_path / "out" / "wrn16_1-kd-0" / "files" / "model.int8.onnx").unlink()
    monkeypatch.setitem(TOLERANCES, "int8", Tolerance(max_rel=0.0, disagreement=None))
    played.taken()
    found = answer(run("sweep", path, "--out", tmp_path / "out", "--methods", "kd", "--json"))
    assert played.taken() == ["export"]
    (left,) = found["cells"][0]["left_out"]
    assert (left["format"], left["precision"]) == ("onnx", "int8")
    assert left["reason"].startswith("int8 rejected: ")
    assert any("KD wrn16_1, wrn16_1-kd-0: no onnx in int8: int8 rejected: " in one for one in found["caveats"])
    assert run("sweep", path, "--out", tmp_path / "out", "--methods", "kd").exit_code == 0
    assert played.taken() == [], "it would be rejected again"


# What is asked for.


def test_the_shipped_recipe_is_eight_trainings_and_24_files(tmp_path) -> None:
    found = answer(run("sweep", "sweep-fashion", "--out", tmp_path / "out", "--dry-run", "--json"))
    agree("compress sweep --dry-run", found)
    assert (found["trainings"], found["artefacts"]) == (8, 24)
    assert len({cell["student"] for cell in found["cells"]}) == 4
    assert {cell["method"] for cell in found["cells"]} == {"kd", "mosaic"}
    assert found["cells"][0]["files"] == ["onnx fp32", "onnx fp16", "onnx int8"]
    assert found["seconds"] == pytest.approx(8 * found["cells"][0]["seconds"])
    assert not (tmp_path / "out").exists()


def test_who_cannot_run_is_listed_and_seeds_go_round_by_round(photos, clothes, tmp_path) -> None:
    path = recipe(tmp_path, photos, clothes, methods=["kd", "supervised"], students=["wrn16_1", "wrn40_1"], seeds=2)
    found = answer(run("sweep", path, "--out", tmp_path / "out", "--dry-run", "--time-limit", "1m", "--json"))
    assert [one["cell"] for one in found["cells"]] == [
        "wrn16_1-kd-0", "wrn40_1-kd-0", "wrn16_1-kd-1", "wrn40_1-kd-1"
    ]  # fmt: skip
    assert found["left_out"] == [
        {"student": student, "name": "Supervised", "reason": "needs labelled images (--data)"}
        for student in ("wrn16_1", "wrn40_1")
    ]
    assert found["seconds"] == 240


def test_options_take_the_place_of_the_recipe_and_settings_stay_with_their_methods(photos, clothes, tmp_path) -> None:
    path = recipe(tmp_path, photos, clothes, methods={"kd": {}, "mosaic": {"bn": 10}}, students=["wrn16_1", "wrn40_1"])
    given = {"students": "wrn40_1", "methods": "mosaic,dafl", "precisions": "fp16", "time_limit": 60.0, "seeds": 2}
    given |= {"sets": ("dafl.z_dim=64",), "max_size": 1000, "prune": "asha", "formats": None}
    plan = read(path, tmp_path, given)
    assert plan.settings == {"mosaic": {"bn": 10}, "dafl": {}}
    assert (plan.students, plan.precisions, plan.seeds) == (["wrn40_1"], ["fp16"], 2)
    assert (plan.budget.steps, plan.budget.time_limit) == (None, 60.0)
    assert plan.set == ["data.views=1", "dafl.z_dim=64"]
    assert (plan.limits.max_size, plan.prune.kind) == (1000, "asha")
    words = {cell.name: cell.job.words for cell in lay_out(plan, tmp_path / "out").cells}
    assert "method.bn=10" in words["wrn40_1-mosaic-0"]
    assert "method.z_dim=64" in words["wrn40_1-dafl-1"]
    assert "method.bn=10" not in words["wrn40_1-dafl-0"]


@pytest.mark.parametrize(
    ("more", "arguments", "expected"),
    [
        ({}, ["--students", "wrn16_l"], "--student: students.0: wrn16_l: no such model"),
        (
            {},
            ["--students", "deeplab_wrn16_1", "--methods", "kd"],
            "a network for segmentation, expected one for class",
        ),
        ({}, ["--methods", "kd,mosiac"], "did you mean 'mosaic'?"),
        ({}, ["--precision", "int4"], "found 'int4', expected one of fp32, fp16, bf16, int8"),
        ({"ood": None}, ["--methods", "kd"], "nothing can run here: wrn16_1 by KD: needs unlabelled images (--ood)."),
        ({"val": "nope"}, [], "nope"),
        ({}, ["--set", "mosaic.bn=1"], "mosaic is not among --methods"),
        ({"students": None}, [], "students: found null, expected a list"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_request_is_refused_whole(played, photos, clothes, tmp_path, more, arguments, expected) -> None:
    played.taken()
    result = run("sweep", recipe(tmp_path, photos, clothes, **more), "--out", tmp_path / "out", *arguments, "--dry-run")
    assert expected in refusal(result, 2)
    assert played.taken() == []
    assert not (tmp_path / "out").exists()


def test_int8_without_any_images_is_refused(played, clothes, tmp_path, monkeypatch) -> None:
    from compress.errors import UsageError
    from compress.methods import METHODS

    path = tmp_path / "mine.yaml"
    path.write_text(config.dump({**RECIPE, "val": str(clothes), "methods": ["kd"]}))
    plan = read(path, tmp_path, {**NOTHING, "sets": ()})
    assert calibration(plan, METHODS["mosaic"]()) == calibration(plan, METHODS["deepinversion"]()) == "synthetic"
    with pytest.raises(UsageError, match="int8 needs images to calibrate on, and method KD makes none"):
        calibration(plan, METHODS["kd"]())


def test_a_recipe_that_is_not_there_is_named(tmp_path) -> None:
    assert "nope.yaml: cannot be read" in refusal(run("sweep", "nope.yaml", "--out", tmp_path / "out"), 2)
    assert "teacher: missing" in run("sweep", "--out", tmp_path / "out").stderr


# Stopping early.


@pytest.fixture
def pair(photos, clothes, tmp_path) -> Any:
    """Two cells of a student, of which the first has ended well; a function that gives the second a watch."""
    prune = {"kind": "median", "warmup": 2}
    path = recipe(tmp_path, photos, clothes, methods=["kd", "mosaic"], budget={"time_limit": 100}, prune=prune)
    plan = read(path, tmp_path, {**NOTHING, "sets": ()})
    cells = lay_out(plan, tmp_path / "out").cells
    parts = [Part(cell.name, "student", lambda: False) for cell in cells]
    board = Board(tmp_path, parts, Presence(tmp_path / "present"), plan.prune)
    board.presence.beat()
    board.refill()
    first, second = board.take(), board.take()
    assert first is not None
    assert second is not None
    for tenth in range(1, 11):
        assert not first.report(tenth, tenth / 10)
    first.finish(1.0)
    return cells[1], second


def write(cell: Any, *scores: float, every: float = 10.0) -> None:
    """A journal with an evaluation in each tenth of the time."""
    cell.job.folder.mkdir(parents=True, exist_ok=True)
    lines = [{"kind": "train", "step": 1, "S": 1.0, "seconds": 1.0}]
    lines += [
        {"kind": "evaluation", "step": i, "accuracy": score, "iou/x": 0.5, "seconds": every * i + 0.3}
        for i, score in enumerate(scores, 1)
    ]
    (cell.job.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "ev')


def test_scores_are_read_by_tenths_of_the_budget(pair) -> None:
    cell, _ = pair
    write(cell, 0.1, 0.2, 0.3, every=5.0)
    assert {tenth: line["score"] for tenth, line in scores(cell).items()} == {0: 0.1, 1: 0.2}
    write(cell, *[0.5] * 12)
    assert list(scores(cell)) == list(range(1, 11))
    assert scores(cell)[3] == {"step": 3, "metric": "accuracy", "score": 0.5}


def test_a_training_that_does_worse_than_others_of_its_student_is_not_worth_its_end(pair) -> None:
    cell, turn = pair
    watch = Watch(cell, turn, Hand())
    write(cell, 0.05)
    assert watch.look() is None, "too early to say"
    write(cell, 0.05, 0.25)
    assert watch.look() is None, "as good as the other was then"
    write(cell, 0.05, 0.25, 0.26)
    assert watch.look() == {"tenth": 3, "step": 3, "metric": "accuracy", "score": 0.26}
    assert watch.look() is None, "told once"


def test_a_training_that_is_stopped_is_remembered_with_its_last_score(pair, monkeypatch) -> None:
    cell, turn = pair
    asked: list[int] = []

    def played(words: Any, relay: Any, **_: Any) -> tuple[int, str]:
        relay.send = asked.append
        write(cell, 0.05, 0.1)
        while not asked:
            pass
        return 143, "stopped by SIGTERM"

    monkeypatch.setattr(sequence, "played", played)
    monkeypatch.setattr(workers, "POLL_S", 0.01)
    monkeypatch.setattr(Watch.__init__, "__kwdefaults__", {"every": 0.01})
    workers.train(cell, turn, Hand())
    assert asked == [15]
    assert cell.pruned == {"tenth": 2, "step": 2, "metric": "accuracy", "score": 0.1}
    assert (cell.done, cell.score) == (True, 0.1)
    assert json.loads((cell.job.folder / STOPPED).read_text()) == cell.pruned
    cell.model.plan.prune.kind = "none"
    assert not cell.done, "now it is to go on"


def test_one_that_fails_by_itself_is_no_one_that_was_stopped(pair, monkeypatch) -> None:
    cell, turn = pair

    def played(*_: Any, **__: Any) -> tuple[int, str]:
        write(cell, 0.05, 0.1)
        return 1, "the loss is nan"

    monkeypatch.setattr(sequence, "played", played)
    with pytest.raises(Exception, match="the loss is nan"):
        workers.train(cell, turn, Hand())
    assert cell.pruned is None
