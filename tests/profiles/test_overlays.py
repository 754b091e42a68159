"""Segmentation overlays: colors, tiles and files."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab

from profiles.records import Record, append_records
from profiles.report import overlays
from profiles.report.build import write_report
from profiles.report.colors import BACKGROUND, RESERVED, class_colors, distinct_colors, to_din99
from profiles.report.overlays import (
    ARRAYS,
    IGNORE,
    IMAGE,
    Overlays,
    blend_labels,
    collect_overlays,
    draw_overlays,
    load_overlays,
    merge_overlays,
    save_overlays,
    wrap_heading,
)

NAMES = ["background", "coat", "bag"]
#: what the eye notices is 2.3; what it does not confuse across a page is several times that
FAR, FAR_ENOUGH = 19.0, 13.0


def differences(palette: list[tuple[int, int, int]]) -> np.ndarray:
    """CIEDE2000 between all pairs, by scikit-image."""
    lab = rgb2lab(np.array(palette, dtype=np.uint8)[None] / 255)[0]
    outcome = deltaE_ciede2000(lab[:, None], lab[None])
    np.fill_diagonal(outcome, np.inf)
    return outcome


@pytest.mark.parametrize(("classes", "least"), [(11, FAR), (13, FAR), (21, FAR_ENOUGH), (40, FAR_ENOUGH)])
def test_class_colors_are_distinct(classes: int, least: float):
    assert differences([*RESERVED, *distinct_colors(classes)]).min() > least


def test_class_color_is_independent_of_count():
    assert distinct_colors(40)[:13] == distinct_colors(13)
    assert len(set(distinct_colors(150))) == 150


def test_din99_matches_the_norm():
    """DIN 6176 from scikit-image's L*a*b*: white is 100 and without colour."""
    assert to_din99(np.array([(255, 255, 255)])) == pytest.approx(np.array([[100, 0, 0]]), abs=0.05)
    red = rgb2lab(np.array([[[1.0, 0, 0]]]))[0, 0]
    turn = np.deg2rad(16)
    e = red[1] * np.cos(turn) + red[2] * np.sin(turn)
    f = 0.7 * (red[2] * np.cos(turn) - red[1] * np.sin(turn))
    length = np.log(1 + 0.045 * np.hypot(e, f)) / 0.045
    expected = (105.51 * np.log(1 + 0.0158 * red[0]), length * e / np.hypot(e, f), length * f / np.hypot(e, f))
    assert to_din99(np.array([(255, 0, 0)]))[0] == pytest.approx(expected, abs=0.1)


def test_background_is_dark():
    assert tuple(class_colors(["coat", " Background "])[1]) == BACKGROUND
    assert tuple(class_colors(NAMES)[1]) == tuple(class_colors(["coat", "bag"])[0]) == distinct_colors(1)[0]
    assert class_colors([]).shape == (0, 3)


def test_overlay_colors_identify_classes():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    labels = rng.integers(0, 13, (32, 32)).astype(np.uint8)
    palette = class_colors([str(c) for c in range(13)])
    seen = blend_labels(image, labels, palette).astype(float)
    gray = image @ (0.299, 0.587, 0.114)
    alone = (seen - (1 - overlays.OPACITY) * gray[..., None]) / overlays.OPACITY
    nearest = np.linalg.norm(alone[:, :, None] - palette, axis=-1).argmin(-1)
    assert np.array_equal(nearest, labels)


def test_ignored_pixels_are_striped():
    image = np.full((24, 24, 3), 90, np.uint8)
    labels = np.full((24, 24), 1, np.uint8)
    labels[:12] = IGNORE
    seen = blend_labels(image, labels, class_colors(NAMES))
    assert set(np.unique(seen[:12])) == {overlays.LIGHT, overlays.DARK}
    assert (np.ptp(seen[12:].astype(int), axis=-1) > 40).all()


@pytest.fixture
def shown() -> Overlays:
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (2, 16, 24, 3), dtype=np.uint8)
    truth = np.zeros((2, 16, 24), np.uint8)
    truth[:, :8], truth[1, :, :3] = 1, IGNORE
    wrong = np.where(truth == 1, 2, truth).astype(np.uint8)
    wrong[truth == IGNORE] = 0
    return Overlays(images, truth, {"teacher": np.minimum(truth, 1), "KD": wrong}, NAMES)


def test_tiles_are_the_overlays(shown: Overlays):
    page = np.asarray(draw_overlays(shown))
    width, height = overlays.TILE, round(overlays.TILE * 16 / 24)
    tiles = [page[:, i * (width + overlays.GAP) :][:, :width] for i in range(4)]
    palette = class_colors(NAMES)
    for column, labels in zip(tiles[1:], (shown.truth, *shown.predictions.values()), strict=True):
        for image, label in zip(shown.images, labels, strict=True):
            large = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
            cut = Image.fromarray(label).resize((width, height), Image.Resampling.NEAREST)
            tile = blend_labels(np.asarray(large), np.asarray(cut), palette)
            rows = [y for y in range(len(page) - height) if np.array_equal(column[y : y + height], tile)]
            assert len(rows) == 1


def test_description_has_pixel_accuracy(shown: Overlays):
    assert shown.visible_classes() == [0, 1, 2]
    assert "Columns: the image, truth, teacher, KD. Classes: background, coat, bag." in shown.description
    assert shown.description.endswith("teacher 100.0 %, KD 50.0 %.")


def test_saved_overlays_load_equal(tmp_path: Path, shown: Overlays):
    path = save_overlays(tmp_path, shown)
    back = load_overlays(tmp_path)
    assert np.array_equal(back.images, shown.images)
    assert np.array_equal(back.truth, shown.truth)
    assert list(back.predictions) == ["teacher", "KD"]
    assert all(np.array_equal(back.predictions[name], shown.predictions[name]) for name in back.predictions)
    assert back.class_names == NAMES
    with Image.open(path) as figure:
        assert figure.info["Description"] == shown.description
    before = path.read_bytes()
    assert save_overlays(tmp_path, shown).read_bytes() == before


def test_same_images_share_overlays(shown: Overlays):
    teacher, wrong = shown.predictions.values()
    mosaic = replace(shown, predictions={"teacher": teacher, "MosaicKD": teacher})
    again = replace(shown, predictions={"teacher": teacher, "KD": teacher})
    others = replace(shown, images=255 - shown.images)
    joined = merge_overlays([("a", shown), ("b", mosaic), ("c", others), ("d", again), ("e", shown)])
    assert [list(one.predictions) for one in joined] == [["teacher", "KD", "MosaicKD", "KD (d)"], ["teacher", "KD"]]
    assert np.array_equal(joined[0].predictions["KD"], wrong)


def test_report_embeds_overlays(tmp_path: Path, shown: Overlays):
    save_overlays(tmp_path / "kd", shown)
    teacher = shown.predictions["teacher"]
    save_overlays(tmp_path / "mosaic", replace(shown, predictions={"teacher": teacher, "MosaicKD": teacher}))
    bare = io.BytesIO()
    np.save(bare, teacher)
    damaged = {"bare": bare.getvalue(), "cut": (tmp_path / "kd" / ARRAYS).read_bytes()[:90], "text": b"no arrays"}
    for name, content in damaged.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / ARRAYS).write_bytes(content)
    figures, notes = collect_overlays([tmp_path / name for name in ("kd", "mosaic", *damaged, "none")], tmp_path)
    assert list(figures.values()) == [tmp_path / IMAGE]
    assert [note.partition(" could")[0] for note in notes] == [f"The overlays of {name}" for name in damaged]
    paths = write_report(tmp_path, [Record("x")], images=figures, notes=notes).files
    html, markdown = paths["html"].read_text(), paths["markdown"].read_text()
    assert 'alt="2 validation images' in html
    assert "teacher 100.0 %, KD 50.0 %, MosaicKD 100.0 %." in html
    assert re.search(
        r"!\[2 validation images.*MosaicKD 100\.0 %\.\]\(<compress-overlays\.png>\)\n\n2 validation images", markdown
    )
    assert "The overlays of cut could not be read" in markdown


@pytest.mark.parametrize("change", ["truth", "predictions", "names", "images"])
def test_inconsistent_arrays_are_refused(tmp_path: Path, shown: Overlays, change: str):
    save_overlays(tmp_path, shown)
    with np.load(tmp_path / ARRAYS) as file:
        content = dict(file)
    content[change] = content[change][:, 1:] if content[change].ndim > 1 else content[change][1:]
    np.savez(tmp_path / ARRAYS, **content)
    with pytest.raises(overlays.READ_ERRORS):
        load_overlays(tmp_path)


def test_command_embeds_overlays(tmp_path: Path, shown: Overlays):
    from compress.cli.report import report as command

    for name, output in shown.predictions.items():
        record = Record(name, metrics={"miou": 0.5, "iou/coat": 0.25}, task="segmentation")
        append_records(tmp_path / "runs" / name, [record])
        save_overlays(tmp_path / "runs" / name, replace(shown, predictions={name: output}))
    out = tmp_path / "out"
    result = CliRunner().invoke(command, [str(tmp_path / "runs"), "--out", str(out), "--json"], catch_exceptions=False)
    assert json.loads(result.stdout)["metric"] == "miou"
    text = (out / "report.md").read_text()
    assert text.count("![2 validation images") == text.count(".png>)") == 1
    assert "Columns: the image, truth, KD, teacher." in text
    with Image.open(out / IMAGE) as figure:
        assert figure.width == 4 * (overlays.TILE + overlays.GAP) - overlays.GAP


def test_headings_fit_their_column():
    assert wrap_heading("KD deeplab_wrn16_1", 184) == ["KD", "deeplab_wrn16_1"]
    assert wrap_heading("truth", 184) == ["truth"]
    assert wrap_heading("MosaicKD deeplabv3_mobilenet_v2", 184) == ["MosaicKD", "deeplabv3_", "mobilenet_v2"]
    for text in ("a" * 300, "a_" * 90, "w " * 90, "", "漢" * 40):
        lines = wrap_heading(text, 120)
        assert len(lines) <= 3
        assert all(overlays.load_font().getlength(line) <= 120 for line in lines)


def test_overlay_columns_are_limited(shown: Overlays):
    many = replace(shown, predictions={f"model {i}": shown.truth for i in range(9)})
    assert draw_overlays(many).width == (2 + overlays.MAX_PREDICTIONS) * (overlays.TILE + overlays.GAP) - overlays.GAP
