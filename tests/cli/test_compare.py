"""`compress compare`: who takes part, what each is told, what is made only once, and what comes out."""

from __future__ import annotations

import csv
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from invoking import TEACHER, answer, files, refusal, run
from test_json import agree

from compress import config
from compress.cli import sequence
from compress.cli.entrants import given, route
from compress.methods import METHODS, NAMES, display_name
from profiles.record import FILE, as_json, read_records

TINY = ("--student", "wrn16_1", "--steps", "2", "--batch-size", "8", "--precision", "32", "--device", "cpu")
SMALL = ("--set", "mosaic.width_G=8", "--set", "mosaic.width_D=8", "--set", "data.views=1")
#: methods of the user's: one breaks as it begins, one in its first step
BROKEN = '''
from dataclasses import dataclass
from typing import ClassVar
from compress.engine.player import Diverged
from compress.errors import UsageError

@dataclass
class Broken:
    """Never works."""
    teachers: ClassVar[int] = 1
    needs: ClassVar[tuple] = ()
    tasks: ClassVar[tuple] = ("classification",)
    uses: ClassVar[tuple] = ()
    batch_size: ClassVar[int] = 8
    really: bool = True  #: whether it refuses at once
    def setup(self, run):
        if self.really:
            raise UsageError("broken: it never works.")
        self.S = run.player("S", run.student, optim=__import__("torch").optim.SGD)
    def step(self):
        raise Diverged("the loss is nan")
'''


@pytest.fixture
def calls(monkeypatch) -> list[list[str]]:
    """Runs are made in this process, which spares the seconds of starting others; their command lines."""
    made: list[list[str]] = []

    def played(words: Any, relay: Any) -> tuple[int, str]:
        made.append(list(words))
        done = run(*words)
        return done.exit_code, (done.stderr.strip().splitlines() or [""])[-1].removeprefix("Error: ")

    monkeypatch.setattr(sequence, "played", played)
    return made


@pytest.fixture
def broken(tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "broken:Broken"
    sys.modules.pop("broken", None)


def compare(*arguments: object, photos: Path, clothes: Path, out: Path) -> Any:
    given = ("--teacher", TEACHER, "--ood", photos, "--val", clothes, "--out", out)
    return run("compare", *given, *TINY, *arguments)


def recipe(folder: Path) -> Any:
    return config.read_yaml(folder / "recipe.yaml")


def told(words: list[str]) -> dict[str, str]:
    """The options of a command line by their names; the last of several `--set` only."""
    return {one: other for one, other in itertools.pairwise(words) if one.startswith("--")}


# The table.


def test_the_methods_are_made_and_compared(calls, photos, clothes, tmp_path) -> None:
    out = tmp_path / "out"
    arguments = ("--methods", "kd,mosaic,supervised", "--seeds", 2, "--data", clothes, *SMALL, "--json")
    found = answer(compare(*arguments, photos=photos, clothes=clothes, out=out))
    agree("compress compare", found)
    assert [told(words)["--out"] for words in calls] == [
        str(out / f"{name}-{seed}") for seed in (0, 1) for name in ("kd", "mosaic", "supervised")
    ]
    methods = {one["method"]: one for one in found["methods"]}
    means = [one["mean"] for one in found["methods"]]
    assert means == sorted(means, reverse=True)
    assert {one["name"] for one in found["methods"]} == {"KD", "MosaicKD", "Supervised"}
    assert [methods[name]["yardstick"] for name in ("kd", "mosaic", "supervised")] == [False, False, True]
    assert methods["mosaic"]["learns_from"] == ["images", "gradients"]
    assert methods["supervised"]["learns_from"] == ["labels"]
    assert methods["mosaic"]["settings"] == {"width_G": 8, "width_D": 8}
    assert found["teacher"]["score"] > 0.5
    for one in found["methods"]:
        assert [each["seed"] for each in one["runs"]] == [0, 1]
        for each in one["runs"]:
            record = as_json(read_records(out / f"{one['method']}-{each['seed']}")[0])
            assert each["last"] == record["run"]["last"]["accuracy"] == each["history"][-1]["score"]
            assert each["images_per_s"] == record["run"]["images_per_s"]
            assert each["peak_bytes"] == record["run"]["peak_bytes"]
    assert {name for name in files(out) if "/" not in name} == {
        f"compare.{ending}" for ending in ("html", "md", "csv", "json", "svg", "png")
    }
    assert json.loads((out / "compare.json").read_text()) == {k: v for k, v in found.items() if k != "files"}
    with open(out / "compare.csv", newline="") as file:
        assert [row["method"] for row in csv.DictReader(file)] == [one["method"] for one in found["methods"]]
    page = (out / "compare.html").read_text()
    assert "<svg" in page
    assert "http" not in page
    assert f"unlabelled images {photos}" in (out / "compare.md").read_text()


def test_all_are_told_the_same_but_each_only_what_it_needs(calls, photos, clothes, tmp_path) -> None:
    arguments = ("--methods", "kd,mosaic,supervised", "--seeds", 1, "--data", clothes, *SMALL)
    assert compare(*arguments, photos=photos, clothes=clothes, out=tmp_path / "out").exit_code == 0
    recipes = {name: recipe(tmp_path / "out" / f"{name}-0") for name in ("kd", "mosaic", "supervised")}
    for section in ("task", "student", "pace"):
        assert recipes["kd"].get(section) == recipes["mosaic"].get(section) == recipes["supervised"].get(section)
    assert recipes["mosaic"].get("method.width_G") == 8
    assert recipes["kd"].get("method.width_G") is None
    assert {one.get("data.views") for one in recipes.values()} == {1}
    assert [recipes[name].get("data.labelled") for name in recipes] == [None, None, str(clothes)]
    assert [recipes[name].get("data.unlabelled") for name in recipes] == [str(photos), str(photos), None]
    assert [len(recipes[name].get("teachers")) for name in recipes] == [1, 1, 0]


# What is made once.


def test_what_is_finished_is_not_made_again_and_what_is_not_is(calls, photos, clothes, tmp_path) -> None:
    where = {"photos": photos, "clothes": clothes, "out": tmp_path / "out"}
    first = answer(compare("--methods", "kd", "--seeds", 2, "--json", **where))
    assert len(calls) == 2
    again = answer(compare("--methods", "kd", "--seeds", 2, "--json", **where))
    assert len(calls) == 2
    assert again["methods"] == first["methods"]
    (tmp_path / "out" / "kd-1" / FILE).unlink()
    more = answer(compare("--methods", "kd", "--seeds", 3, "--json", **where))
    assert [told(words)["--seed"] for words in calls[2:]] == ["1", "2"]
    assert [each["seed"] for each in more["methods"][0]["runs"]] == [0, 1, 2]


def test_later_seeds_make_the_steps_that_the_first_made_in_its_time(calls, photos, clothes, tmp_path) -> None:
    out, small = (
        tmp_path / "out",
        ("--batch-size", 8, "--student", "wrn16_1", "--device", "cpu", "--set", "data.views=1"),
    )
    words = ("--teacher", TEACHER, "--ood", photos, "--val", clothes, "--methods", "kd", "--same-steps", *small)
    found = answer(run("compare", *words, "--time-limit", "1s", "--seeds", 2, "--out", out, "--json"))
    steps = [read_records(out / f"kd-{seed}")[-1].run["steps"] for seed in (0, 1)]
    assert steps[0] == steps[1] > 0
    assert told(calls[0])["--time-limit"] == "1.0"
    assert "--time-limit" not in told(calls[1])
    assert recipe(out / "kd-1").get("pace.steps") == steps[0]
    assert len(found["methods"][0]["runs"]) == 2

    answer(run("compare", *words, "--time-limit", "1s", "--seeds", 2, "--out", out, "--json"))
    assert len(calls) == 2, "what is finished is not made again"
    assert "leave it out" in refusal(run("compare", *words, "--steps", 2, "--out", tmp_path / "other"), 2)


def test_a_later_seed_without_its_first_is_a_failed_run(calls, broken, photos, clothes, tmp_path) -> None:
    small = ("--batch-size", 8, "--student", "wrn16_1", "--device", "cpu", "--time-limit", "1s", "--seeds", 2)
    done = run("compare", "--teacher", TEACHER, "--val", clothes, "--methods", broken, "--same-steps", *small,
               "--out", tmp_path / "out", "--json")  # fmt: skip
    assert done.exit_code == 1
    failures = [one["error"] for one in json.loads(done.stdout)["failed"]]
    assert failures[1] == "seed 0 did not finish, whose steps this run is to make."


def test_a_folder_of_other_settings_is_refused_before_anything_is_spent(calls, photos, clothes, tmp_path) -> None:
    where = {"photos": photos, "clothes": clothes, "out": tmp_path / "out"}
    assert compare("--methods", "kd", "--seeds", 1, **where).exit_code == 0
    sentence = refusal(compare("--methods", "fitnet,kd", "--set", "kd.temperature=2", "--seeds", 1, **where), 2)
    assert "kd-0: holds a run with other settings (method.temperature: 5.0 there, 2.0 here)" in sentence
    assert len(calls) == 1


# What goes wrong.


def test_a_run_that_fails_is_named_and_keeps_nobody_else(calls, broken, photos, clothes, tmp_path) -> None:
    where = {"photos": photos, "clothes": clothes, "out": tmp_path / "out"}
    result = compare("--methods", f"{broken},kd", "--seeds", 2, "--json", **where)
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    agree("compress compare", found)
    assert [one["method"] for one in found["methods"]] == ["kd"]
    assert found["failed"] == [{"name": "Broken", "seed": seed, "error": "broken: it never works."} for seed in (0, 1)]
    assert "broken: it never works." in (tmp_path / "out" / "compare.md").read_text()
    shown = compare("--methods", f"{broken},kd", "--seeds", 2, **where)
    assert shown.exit_code == 1
    assert "failed: Broken, seed 1: broken: it never works." in shown.stdout
    assert len(calls) == 6, "the failed ones are tried again, the others not"


def test_a_damaged_record_is_a_failed_run(calls, photos, clothes, tmp_path) -> None:
    where = {"photos": photos, "clothes": clothes, "out": tmp_path / "out"}
    assert compare("--methods", "kd", "--seeds", 2, **where).exit_code == 0
    (tmp_path / "out" / "kd-1" / FILE).write_text("{\n")
    result = compare("--methods", "kd", "--seeds", 2, "--json", **where)
    assert result.exit_code == 1
    (failed,) = json.loads(result.stdout)["failed"]
    assert "damaged" in failed["error"]


def test_who_cannot_run_is_listed_with_the_reason(calls, photos, clothes, tmp_path) -> None:
    given = ("--teacher", TEACHER, "--val", clothes, "--out", tmp_path / "out", *TINY)
    result = run("compare", *given, "--methods", "supervised,kd,dafl", "--seeds", 1, "--dry-run", "--json")
    found = answer(result)
    agree("compress compare --dry-run", found)
    assert found["left_out"] == [
        {"name": "Supervised", "reason": "needs labelled images (--data)"},
        {"name": "KD", "reason": "needs unlabelled images (--ood)"},
    ]
    assert [one["method"] for one in found["methods"]] == ["dafl"]
    sentence = refusal(run("compare", *given, "--methods", "supervised,kd"), 2)
    assert "no method can run here: Supervised: needs labelled images (--data); KD: needs" in sentence
    assert not (tmp_path / "out").exists()
    assert calls == []


def test_a_teacher_without_batchnorm_leaves_out_who_needs_it(calls, photos, clothes, tmp_path, monkeypatch) -> None:
    (tmp_path / "bare.py").write_text(
        "from torch import nn\n"
        "def net(classes): return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),"
        " nn.Linear(4, classes))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    given = ("--teacher", "bare:net", "--classes", 10, "--set", "task.image_size=[32, 32]", "--val", clothes)
    arguments = (*given, "--ood", photos, "--out", tmp_path / "out", *TINY, "--methods", "kd,dfq", "--dry-run")
    result = run("compare", *arguments)
    assert result.exit_code == 0, result.stderr
    assert "not compared: DFQ: method dfq needs the statistics of BatchNorm layers" in result.stdout
    sys.modules.pop("bare", None)


def test_the_dry_run_says_how_long_it_takes_and_writes_nothing(calls, photos, clothes, tmp_path) -> None:
    where = {"photos": photos, "clothes": clothes, "out": tmp_path / "out"}
    found = answer(compare("--methods", "kd,supervised", "--seeds", 3, "--dry-run", "--json", **where))
    assert found["runs"] == 3
    assert found["seconds"] == pytest.approx(3 * found["methods"][0]["seconds_per_run"])
    limited = ("--teacher", TEACHER, "--ood", photos, "--val", clothes, "--out", tmp_path / "out")
    shown = run("compare", *limited, "--methods", "kd,fitnet", "--time-limit", "5m", "--dry-run")
    assert "6 runs, 30 min 0 s of training" in shown.stdout
    assert not (tmp_path / "out").exists()
    assert calls == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--methods", "kd,mosiac"], "did you mean 'mosaic'?"),
        (["--set", "mosiac.bn=1"], "'mosiac' is no method; did you mean 'mosaic'?"),
        (["--set", "kd.tempreature=1"], "kd.tempreature: no such setting of KD; did you mean 'temperature'?"),
        (["--set", "kd.temperature=-1"], "kd.temperature: found -1"),
        (["--set", "fitnet.hint=1"], "fitnet is not among --methods"),
        (["--set", "data.veiws=1"], "did you mean 'views'?"),
        (["--set", "pace.seed=3"], "has an option of its own"),
        (["--set", "method.bn=1"], "expected METHOD.SETTING=VALUE"),
        (["--time-limit", "5m"], "expected one of --time-limit and --steps"),
        (["--student", "wrn16_l"], "'wrn16_"),
        (["--val", "nope"], "nope"),
        (["--data", "nope"], "nope"),
        (["--ood", "nope"], "nope"),
        (["--teacher", "nope.pt"], "nope.pt"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_request_is_refused_whole(calls, photos, clothes, tmp_path, arguments, expected) -> None:
    where = {"photos": photos, "clothes": clothes, "out": tmp_path / "out"}
    assert expected in refusal(compare("--methods", "kd,mosaic", *arguments, **where), 2)
    assert calls == []
    assert not (tmp_path / "out").exists()


def test_every_method_of_ours_has_a_name_for_people() -> None:
    assert METHODS.keys() <= NAMES.keys()
    assert display_name("mine.here:Better") == "Better"


def test_the_benchmark_sets_only_what_the_methods_have() -> None:
    from benchmarks.compare import SETTINGS, settings

    words = settings(list(SETTINGS))
    common, own = route(words[1::2], {name: METHODS[name] for name in SETTINGS})
    assert common == ()
    assert {name: given(name, METHODS[name], own[name]) for name in SETTINGS} == SETTINGS


# As real processes.


def test_last_words_and_exit_codes_come_from_the_process(tmp_path, photos, capfd) -> None:
    relay = sequence.Relay()
    words = ["distill", "--teacher", TEACHER, "--ood", str(photos), "--steps", "1", "--method", "nope"]
    code, last = sequence.played(words, relay)
    assert code == 2
    assert "no such method 'nope'" in last
    assert f"Error: {last}" in capfd.readouterr().err
    assert relay.process is None


def test_how_a_process_ended_is_put_into_words() -> None:
    assert sequence.ended(1, "the loss is nan") == "the loss is nan"
    assert sequence.ended(3, "") == "ended with exit code 3"
    assert sequence.ended(-9, "kd 50%") == "killed by SIGKILL, perhaps because memory ran out"
    assert sequence.ended(-11, "") == "killed by SIGSEGV"


@pytest.mark.slow
def test_a_signal_stops_the_run_that_works_and_the_same_command_goes_on(tmp_path, photos, clothes, broken) -> None:
    given = ["--teacher", TEACHER, "--ood", photos, "--val", clothes, "--out", tmp_path / "out", *TINY[:2], *TINY[4:]]
    arguments = [*given, "--methods", f"kd,{broken}", "--seeds", 1, "--set", f"{broken}.really=false", "--json"]
    command = [sys.executable, "-m", "compress", "compare", *map(str, arguments), "--set", "pace.log=1"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": tmp_path}
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), str(tmp_path)])}
    process = subprocess.Popen([*command, "--steps", "60"], env=environment, **pipes)
    journal = tmp_path / "out" / "kd-0" / "metrics.jsonl"
    for _ in range(2400):
        if process.poll() is not None or journal.exists():
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (130, ""), err
    assert "0 of 2 runs are finished" in err
    assert list((tmp_path / "out" / "kd-0" / "checkpoints").glob("step-*.json"))
    again = subprocess.run([*command, "--steps", "60"], env=environment, timeout=300, check=False, **pipes)
    found = json.loads(again.stdout)
    assert again.returncode == 1
    assert [one["runs"][0]["steps"] for one in found["methods"]] == [60]
    assert "the loss is nan" in found["failed"][0]["error"]
