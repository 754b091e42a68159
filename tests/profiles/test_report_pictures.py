"""Pictures of a report: raster formats, regular files, inside the folders of the runs; others are named."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from profiles.records import Record, append_records
from profiles.report import overlays
from profiles.report.build import ReportResult, write_report, write_run_report
from profiles.report.overlays import ARRAYS, Overlays, load_overlays, save_overlays

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n%%EOF\n"


def save_picture(path: Path, side: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), "red").save(path, "PNG")
    return path


def report(run: Path, *names: str) -> ReportResult:
    append_records(run, [Record("S", metrics={"accuracy": 0.5}, images={name: name for name in names})])
    return write_run_report(run, [run])


def count_images(result: ReportResult) -> int:
    return result.html.read_text().count("<img ")


@pytest.mark.parametrize("name", ["../out.png", "/ABSOLUTE/out.png", "link.png", "loop.png", "sub/out.png", "a\0b"])
def test_pictures_out_of_the_run_are_named(tmp_path: Path, name: str):
    run, out = tmp_path / "run", save_picture(tmp_path / "out.png")
    save_picture(run / "good.png")
    (run / "link.png").symlink_to(out)
    (run / "loop.png").symlink_to(run / "loop.png")
    (run / "sub").symlink_to(tmp_path)
    result = report(run, name.replace("/ABSOLUTE", str(tmp_path)), "good.png")
    assert count_images(result) == 1
    assert any("could not be read" in caveat for caveat in result.caveats)


def test_found_pictures_out_of_the_run_are_named(tmp_path: Path):
    """A link in the folder is found without a record that names it."""
    save_picture(tmp_path / "out" / "compress-mosaics.png")
    save_picture(tmp_path / "run" / "good.png")
    (tmp_path / "run" / "nested").symlink_to(tmp_path / "out")
    (tmp_path / "run" / "a.png").symlink_to(tmp_path / "out" / "compress-mosaics.png")
    result = report(tmp_path / "run")
    assert (count_images(result), len(result.caveats)) == (1, 2)


def test_only_raster_files_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An EPS starts Ghostscript whatever its name is; a pipe never ends."""
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_: pytest.fail("Ghostscript was started"))
    run = tmp_path / "run"
    run.mkdir()
    (run / "a.png").write_bytes(EPS)
    os.mkfifo(run / "b.png")
    (run / "c.png").symlink_to("/dev/zero")
    (run / "d.png").mkdir()
    save_picture(run / "good.png")
    result = report(run, "a.png", "b.png", "c.png", "d.png", "good.png")
    assert (count_images(result), len(result.caveats)) == (1, 4)


def test_bombs_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    bomb = save_picture(tmp_path / "bomb.png", 100)
    result = write_report(tmp_path / "out", [Record("S")], images={"bomb": bomb})
    assert (count_images(result), len(result.caveats)) == (0, 1)


def some_overlays() -> Overlays:
    truth = np.zeros((1, 4, 4), np.uint8)
    return Overlays(np.zeros((1, 4, 4, 3), np.uint8), truth, {"S": truth}, ["sky"])


def write_members(path: Path, **replaced: bytes) -> None:
    """Replace arrays of a file by raw bytes."""
    save_overlays(path.parent, some_overlays())
    with zipfile.ZipFile(path) as file:
        content = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in (content | {f"{name}.npy": data for name, data in replaced.items()}).items():
            file.writestr(name, data)


def announce(descr: str, shape: str) -> bytes:
    file = io.BytesIO(b"")
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"
    file.write(b"\x93NUMPY\x01\x00" + (len(text) + 1).to_bytes(2, "little") + text.encode() + b"\n")
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("images", announce("'|u1'", "(9000000000,)")),
        ("images", announce("'|u1'", "(-1, 4, 4, 3)")),
        ("truth", announce("'<f8'", "(1, 4, 4)") + bytes(128)),
        ("predictions", announce("'|O'", "(1,)") + b"cos\nsystem\n(S'true'\ntR."),
        ("names", announce("'<U1000000000'", "(1,)")),
        ("class_names", announce("[('a', '|u1')]", "(1,)")),
        ("images", b"cos\nsystem\n(S'true'\ntR."),
        ("names", announce("'<U1'", "(1,)") + b"\xff\xff\xff\xff"),
        ("images", announce("'|u1'", "(" * 5000)),
    ],
)
def test_hostile_overlays_are_named(tmp_path: Path, name: str, data: bytes):
    write_members(tmp_path / ARRAYS, **{name: data})
    with pytest.raises(overlays.READ_ERRORS):
        load_overlays(tmp_path)
    result = report(tmp_path)
    assert (count_images(result), len(result.caveats)) == (0, 1)


def test_unpacked_overlays_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save_overlays(tmp_path, some_overlays())
    assert load_overlays(tmp_path).class_names == ["sky"]
    monkeypatch.setattr(overlays, "MAX_BYTES", 50)
    with pytest.raises(ValueError):
        load_overlays(tmp_path)


def test_planted_links_are_not_followed(tmp_path: Path):
    """A report replaces a link, and does not write through it."""
    victim = tmp_path / "victim"
    victim.write_text(own := '{"schema": 2, "title": "mine"}')  # as a report begins, else it is refused
    (tmp_path / "run").mkdir()
    save_overlays(tmp_path / "run", some_overlays())
    for name in ("report.html", "report.md", "report.csv", "compress-overlays.png", "report.json"):
        (tmp_path / "run" / name).unlink(missing_ok=True)
        (tmp_path / "run" / name).symlink_to(victim)
    report(tmp_path / "run")
    assert victim.read_text() == own
    assert (tmp_path / "run" / "report.html").is_file()
