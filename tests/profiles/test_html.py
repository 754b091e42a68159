# ruff: noqa: E501 - a picture, and lines of JavaScript
"""The trade-off page in a browser: drawn, sorted, filtered, asked; by pointer and by keyboard; alone with its file."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report_size import ARGUMENTS, create_page_data, create_records, find_browser
from profiles.records import Record
from profiles.report.comparison import Comparison
from profiles.report.html import PLOTLY, pack_rows, read_plotly, render_page, script_json, security_policy
from profiles.report.html_tables import FORMATS, pareto_fronts, row_cost, row_latency
from profiles.report.images import EmbeddedImage
from profiles.report.recommendation import Limits, recommend
from profiles.report.rows import build_page_data, rows_to_csv
from profiles.report.tables import Table

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "example"
DOT = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
HOSTILE = "<img src=x onerror=document.title='owned'></script><script>document.title='owned'</script>&amp;\u2028=1+1"
FORMULAS = ["=1+1", " =1", "\r=1", "\ufeff@x", "\u3000＝1", 'a;"-1', "\x00-1", "\u202e=1", "a\tb\u2028"]


def sweep() -> list[Record]:
    """A teacher, 4 students by 2 methods in 4 forms, with histories and classes; energies for all."""
    chosen = ("wrn16_2", "wrn16_1", "resnet8x4", "mobilenet_v2")
    rng = random.Random(1)
    records = [
        record for record in create_records(181)
        if record.role == "teacher" or (record.architecture in chosen and record.method != "DFQ" and record.format != "openvino")
    ]  # fmt: skip
    return [replace(r, run=r.run | course(r, rng), metrics=r.metrics | classes(r, rng)) for r in records]


def course(record: Record, rng: random.Random) -> dict[str, Any]:
    end = record.metrics["accuracy"]
    lines = [{"step": s, "seconds": s / 2, "accuracy": end * (1 - rng.random() / s)} for s in range(10, 101, 10)]
    return {} if record.format else {"history": lines}


def classes(record: Record, rng: random.Random) -> dict[str, float]:
    names = ("sky", "road", "tree", "car")
    return {} if record.format else {f"iou/{n}": record.metrics["accuracy"] - rng.random() / 4 for n in names}


RECORDS = sweep()
DATA = create_page_data(RECORDS, "Fashion-MNIST without its data")
ROWS = DATA["rows"]
PARTS: dict[str, Any] = {
    "tables": [Table("How the models were made.", ["Model", "Steps"], [["MosaicKD", "400"]])],
    "images": [
        EmbeddedImage("Synthetic images after 100 steps", DOT, Path("grid.png"), True),
        EmbeddedImage("Overlays", DOT, Path("overlays.png"), False, "Four images with their masks"),
    ],
    "commands": ["compress sweep sweep.yaml"],
    "caveats": ["One seed for the teacher."],
    "environment": [Table("Machine", ["", "Value"], [["cpu", "Some CPU"], ["cores", "2"]])],
}
HTML = render_page(DATA, **PARTS)


@dataclass
class Heard:
    """What a tab said and asked for."""

    said: list[str] = field(default_factory=list)
    requested: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    pytest.importorskip("playwright", reason="the page's tests need Playwright: pip install compress-distill[dev]")
    from playwright.sync_api import sync_playwright

    path = find_browser()
    if path is None:
        pytest.skip("no Chromium found: install one (Debian: apt-get install chromium) or name it in CHROMIUM")
    with sync_playwright() as play:
        result = play.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield result
        result.close()


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """Open a page's HTML; at the end: nothing was said on the console, nothing asked of the network."""
    contexts, heard, file = [], Heard(), tmp_path / "report.html"

    def opened(html: str = HTML, width: int = 1280, **options: Any) -> Any:
        file.write_text(html, encoding="utf-8")
        context = browser.new_context(viewport={"width": width, "height": 900}, reduced_motion="reduce", **options)
        contexts.append(context)
        tab = context.new_page()
        tab.set_default_timeout(15_000)
        tab.on("console", lambda message: heard.said.append(message.text))
        tab.on("pageerror", lambda error: heard.said.append(str(error)))
        tab.on("request", lambda request: heard.requested.append(request.url))
        tab.goto(file.as_uri())
        if options.get("java_script_enabled", True) and '<table id="table">' in html:
            tab.wait_for_function("() => performance.getEntriesByName('compress-chart').length")
        return tab

    yield opened
    for context in contexts:
        context.close()
    assert heard.said == []
    assert [url for url in heard.requested if not url.startswith(("data:", "blob:"))] == [file.as_uri()] * len(contexts)


def draw_all(tab: Any) -> None:
    """Scroll past every chart, so that each is drawn."""
    for plot in tab.query_selector_all(".plot"):
        plot.scroll_into_view_if_needed()
        tab.wait_for_function("(plot) => plot._fullLayout || plot.closest('figure').hidden", arg=plot)
    tab.evaluate("scrollTo(0, 0)")


def points(tab: Any, chart: str) -> list[int]:
    """The rows that a chart has drawn, as many as there are shapes of points."""
    drawn = tab.evaluate("(id) => document.getElementById(id).data.flatMap((trace) => trace.customdata ?? [])", chart)
    assert tab.locator(f"#{chart} .scatterlayer .point").count() == len(drawn)
    return sorted(drawn)


def names(tab: Any) -> list[str]:
    return tab.locator("#table tbody button.name").all_inner_texts()


def column(tab: Any, key: str) -> list[str]:
    """The texts of a column of the table."""
    keys = [head.get_attribute("data-key") for head in tab.locator("#table thead th").all()]
    return tab.locator(f"#table tbody tr[data-row] > :nth-child({keys.index(key) + 1})").all_inner_texts()


def expected(position: int, limits: dict[str, float], tolerance: float) -> int | None:
    """The rule of the choice, plainly: the cheapest of those that hold the limits and come near the best of them."""

    def price(i: int, name: str) -> float | None:
        return row_cost(ROWS[i], row_latency(ROWS[i], position), name)

    files = {(row["name"], row["role"]) for row in ROWS if row["format"]}
    shipped = [i for i, row in enumerate(ROWS) if row["format"] or (row["name"], row["role"]) not in files]
    able = [i for i in shipped if limits or ROWS[i]["role"] != "teacher"]
    held = [i for i in able if all((p := price(i, name)) is not None and p <= most for name, most in limits.items())]
    good = [i for i in held if ROWS[i]["score"] >= max(ROWS[j]["score"] for j in held) - tolerance]
    shared = [name for name in ("latency", "flops", "size") if all(price(i, name) is not None for i in good)]
    return min(good, key=lambda i: [*(price(i, name) or 0.0 for name in shared), -ROWS[i]["score"]], default=None)


# the file


def test_plotly_matches_its_notice():
    line = next(t for t in (PLOTLY.parent / "README.md").read_text().splitlines() if PLOTLY.name in t)
    _, name, version, licence, digest = (part.strip() for part in line.strip("|").split("|"))
    assert hashlib.sha256(PLOTLY.read_bytes()).hexdigest() == digest
    assert f"v{version}" in PLOTLY.read_text()[:200]
    assert f"{name} {version}" in (ROOT / "NOTICE").read_text()
    assert licence.startswith("MIT")
    assert "MIT License" in (PLOTLY.parent / "LICENSE").read_text()


def test_empty_page_is_small():
    html = render_page(create_page_data([]))
    assert len(html.encode()) < 3e6
    ours = html.replace(read_plotly(), "")
    assert not re.search(r'\b(src|href)\s*=\s*(?!"#|"data:)', ours.split("<script>")[0])
    assert "http" not in ours.replace("http-equiv", "")


def test_large_page_stays_small():
    """Measured whole by benchmarks/report_size.py; here by what each further model adds."""
    few, more = (len(render_page(create_page_data(create_records(n))).encode()) for n in (200, 800))
    assert few + (10_000 - 200) * (more - few) / (800 - 200) < 10e6


def test_policy_allows_only_own_scripts():
    result = re.search(r'Content-Security-Policy" content="([^"]+)"', HTML)
    assert result
    content = result[1].replace("&#39;", "'")
    scripts = re.findall(r"<script>(.*?)</script>", HTML, re.DOTALL)
    assert len(scripts) == 2
    assert content == security_policy(scripts)
    assert content.startswith("default-src 'none'; script-src 'sha256-")
    assert base64.b64encode(hashlib.sha256(scripts[1].encode()).digest()).decode() in content


def test_script_json_is_escaped():
    value = {"name": "</script><!--&\u2028\u2029\ud800", "n": [1, 2.5, None, True]}
    text = script_json(value)
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == value
    with pytest.raises(ValueError):
        script_json(float("nan"))


def test_rows_are_packed_by_columns():
    rows = [{"a": "x", "b": {"c": 1 / 3}}, {"a": "x", "b": None}, {"a": "x", "b": {"c": 2.0, "d": [0.1]}}]
    assert pack_rows(rows) == {
        "length": 3,
        "column": {"of": {
            "a": {"words": ["x"], "index": [0, 0, 0]},
            "b": {"of": {"c": [0.333333333, 2], "d": [None, [0.1]]}, "at": [0, 2]},
        }},
    }  # fmt: skip


# what is shown


@pytest.mark.slow
def test_initial_rows_match_the_scripts(open_page):
    still = open_page(java_script_enabled=False)
    assert still.locator("#pick-why").inner_text() == DATA["summary"]
    assert "Without JavaScript" in still.locator("noscript").inner_text()
    assert not still.locator("#budget").is_visible()
    assert not still.locator("#tradeoffs").is_visible()
    texts = still.locator("#table tbody tr").evaluate_all(
        "(all) => all.map((tr) => [...tr.children].map((c) => c.textContent))"
    )
    live = open_page()
    assert texts == live.locator("#table tbody tr").evaluate_all(
        "(all) => all.map((tr) => [...tr.children].map((c) => c.textContent))"
    )
    assert len(texts) == len(ROWS) == 33
    heads = "(all) => all.map((th) => th.textContent)"
    assert still.locator("#table thead th").evaluate_all(heads) == live.locator("#table thead th").evaluate_all(heads)


def test_every_model_is_a_point(open_page):
    tab = open_page()
    draw_all(tab)
    optimal = pareto_fronts(ROWS, DATA["setting"])
    for name in ("latency", "flops", "size", "energy"):
        known = [i for i, row in enumerate(ROWS) if row_cost(row, row_latency(row, DATA["setting"]), name) is not None]
        assert points(tab, f"chart-{name}") == known
        drawn = tab.evaluate(f"document.getElementById('chart-{name}').data.find((t) => t.mode === 'lines').x")
        prices = [row_cost(ROWS[i], row_latency(ROWS[i], DATA["setting"]), name) for i in optimal[name]]
        assert drawn == pytest.approx(prices, rel=1e-8)
        listed = tab.locator(f"#chart-{name}").locator("xpath=ancestor::figure").locator("ol li")
        assert listed.count() == len(optimal[name])
    bars = tab.evaluate("document.getElementById('chart-flops').data.map((t) => t.error_y?.array?.length ?? 0)")
    assert sum(bars) == len(ROWS)
    stars = tab.evaluate(
        "document.getElementById('chart-flops').data.filter((t) => t.marker?.symbol === 'star')[0].customdata"
    )
    assert [ROWS[i]["role"] for i in stars] == ["teacher"]


def test_curves_and_classes_are_drawn(open_page):
    tab = open_page()
    draw_all(tab)
    assert tab.locator("#chart-training .scatterlayer .trace").count() == len(DATA["curves"])
    assert tab.locator("#chart-classes .barlayer .point").count() == 4 * min(5, len(DATA["classes"]["rows"]))
    tab.locator("#training details summary").click()
    assert tab.locator("#training details tbody tr").count() == len(DATA["curves"])
    best = max(curve["scores"][-1] for curve in DATA["curves"])
    assert f"{100 * best:.1f} %" in tab.locator("#training figcaption").inner_text()


def test_page_has_all_sections(open_page):
    tab = open_page()
    assert tab.locator("#images img").evaluate_all("(all) => all.map((i) => [i.alt, i.naturalWidth])") == [
        ["Synthetic images after 100 steps", 1], ["Four images with their masks", 1],
    ]  # fmt: skip
    assert tab.locator("#verification tbody tr").count() == sum(row["verified"] is not None for row in ROWS)
    assert tab.locator("#caveats li").all_inner_texts() == ["One seed for the teacher."]
    assert "Some CPU" in tab.locator("#provenance").inner_text()
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab.click("#copy")
    tab.get_by_text("Copied.").wait_for()
    assert tab.evaluate("navigator.clipboard.readText()") == "compress sweep sweep.yaml"


# what can be asked of it


def test_columns_sort(open_page):
    tab = open_page()
    head = tab.locator("#table th[data-key=p50]")
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    known = [text for text in column(tab, "p50") if text != "–"]
    assert known == sorted(known, key=float)
    assert column(tab, "p50")[len(known) :] == ["–"] * (len(ROWS) - len(known))
    name = tab.locator("#table th[data-key=name] button")
    name.focus()
    tab.keyboard.press("Enter")
    assert names(tab) == sorted(names(tab), key=str.lower)
    tab.keyboard.press("Space")
    assert tab.locator("#table th[aria-sort]").all_inner_texts() == ["Model"]
    assert tab.locator("#table th[data-key=name]").get_attribute("aria-sort") == "descending"
    assert names(tab) == sorted(names(tab), key=str.lower, reverse=True)
    assert tab.evaluate("document.activeElement.textContent") == "Model"


def test_filters_apply_to_table_and_charts(open_page):
    tab = open_page()
    tab.fill("#find", "mosaic INT8")
    wanted = [i for i, row in enumerate(ROWS) if row["method"] == "MosaicKD" and row["precision"] == "int8"]
    tab.get_by_text(f"{len(wanted)} of 33 models, as filtered").wait_for()
    assert names(tab) == [ROWS[i]["name"] for i in wanted]
    tab.wait_for_function("(n) => document.querySelectorAll('#chart-latency .point').length === n", arg=len(wanted))
    tab.locator("#unfilter").click()
    assert len(names(tab)) == 33
    tab.locator("fieldset[data-facet=precision] label", has_text="fp32").locator("input").focus()
    tab.keyboard.press("Space")
    left = [i for i, row in enumerate(ROWS) if row["precision"] != "fp32"]
    assert names(tab) == [ROWS[i]["name"] for i in left]
    shown = [i for i in left if row_cost(ROWS[i], row_latency(ROWS[i], DATA["setting"]), "latency") is not None]
    tab.wait_for_function("(n) => document.querySelectorAll('#chart-latency .point').length === n", arg=len(shown))
    assert points(tab, "chart-latency") == shown
    for box in tab.locator("fieldset[data-facet=method] input").all():
        box.uncheck()
    assert tab.locator("#range").inner_text() == "none"
    tab.get_by_role("button", name="Show all models").click()
    assert len(names(tab)) == 33


def test_other_setting_shows_its_latencies(open_page):
    tab = open_page()
    for position, settings in enumerate(DATA["settings"]):
        tab.select_option("#place", str(position))
        assert settings["label"] in tab.locator("#place option:checked").inner_text()
        wanted = [i for i, row in enumerate(ROWS) if str(position) in row["times"]]
        tab.wait_for_function("(n) => document.querySelectorAll('#chart-latency .point').length === n", arg=len(wanted))
        assert points(tab, "chart-latency") == wanted
    tab.select_option("#place", label="Synthetic CPU, 2 cores, CPU, 2 threads, batch 1, any runtime")
    tab.wait_for_function("() => document.querySelectorAll('#chart-latency .point').length === 33")


def test_choice_follows_the_limits(open_page):
    tab = open_page()
    assert int(tab.locator("#pick").get_attribute("data-row")) == DATA["pick"] == expected(0, {}, DATA["tolerance"])
    rng = random.Random(0)
    for _ in range(6):
        position = rng.randrange(len(DATA["settings"]))
        tab.select_option("#place", str(position))
        limits = {}
        for name in ("latency", "flops", "size", "energy"):
            priced = [p for row in ROWS if (p := row_cost(row, row_latency(row, position), name)) is not None]
            limit = float(f"{rng.choice(priced):.3g}") if rng.random() < 0.5 else None
            limits |= {} if limit is None else {name: limit}
            tab.fill(f"#limit-{name}", "" if limit is None else str(limit))
        pick = expected(position, limits, DATA["tolerance"])
        tab.wait_for_function(
            "(row) => document.getElementById('pick').dataset.row === row", arg="" if pick is None else str(pick)
        )
        tab.wait_for_timeout(160)  # every field is read at the latest now
        assert tab.locator("#pick").get_attribute("data-row") == ("" if pick is None else str(pick))
        if limits:
            assert "within the budget" in tab.locator("#pick").inner_text() or pick is not None


@pytest.mark.slow
def test_choice_matches_python(open_page):
    comparison = Comparison(RECORDS)
    for budget in (Limits(latency_ms=0.1), Limits(gflop=0.3, size_mb=1.0), Limits(energy_mj=0.001)):
        data = build_page_data(comparison, RECORDS, recommend(comparison, budget), budget, title="x")
        tab = open_page(render_page(data))
        pick = "" if data["pick"] is None else str(data["pick"])
        assert tab.locator("#pick").get_attribute("data-row") == pick
        assert tab.locator("#pick-why").inner_text() == data["summary"]
        tab.fill("#limit-latency", "0.001")
        tab.get_by_text("No model is within the budget").wait_for()
        tab.get_by_role("button", name="Reset", exact=True).click()
        tab.wait_for_function("(row) => document.getElementById('pick').dataset.row === row", arg=pick)


def test_excluded_models_are_counted_by_limit(open_page):
    tab = open_page()
    tab.fill("#limit-latency", "0.1")
    tab.get_by_text("Excluded").wait_for()
    priced = [row_cost(row, row_latency(row, 0), "latency") for row in ROWS if not row.get("superseded")]
    over = sum(p is not None and p > 0.1 for p in priced)
    words = tab.locator("#pick-left").inner_text()
    assert f"{over} by latency above 0.1 ms" in words
    assert f"{priced.count(None)} without a measured latency here" in words
    assert tab.locator("#chart-latency + .over .shade").is_visible()
    tab.fill("#limit-latency", "")
    tab.fill("#limit-size", "1000")
    tab.get_by_text("teacher, not distilled").wait_for()  # within a budget the teacher may be chosen, and is named


def test_row_and_points_are_linked(open_page):
    tab = open_page()
    draw_all(tab)
    tab.locator("#table tbody tr[data-row='1'] button").focus()
    rings = tab.locator(".ring.lit:visible")
    assert rings.count() == 4
    tab.keyboard.press("ArrowDown")
    assert tab.evaluate("document.activeElement.closest('tr').dataset.row") == "2"
    tab.keyboard.press("Enter")
    assert tab.locator("#table button[aria-expanded=true]").count() == 1
    assert "Wall clock" in tab.locator("#details").inner_text()
    assert tab.evaluate("document.activeElement.closest('tr').dataset.row") == "2"
    assert ROWS[2]["name"] in tab.locator("#pinned").inner_text()
    tab.get_by_role("button", name="Let go").click()
    assert tab.locator("#details").count() == 0
    # the other way round: a point's box, and its row
    tab.locator("#chart-latency").scroll_into_view_if_needed()
    front = pareto_fronts(ROWS, DATA["setting"])["latency"]
    at = tab.evaluate(
        """([i]) => { const plot = document.getElementById('chart-latency'), box = plot.getBoundingClientRect();
        const { xaxis, yaxis } = plot._fullLayout, t = plot.data.filter((t) => t.customdata?.includes(i))[0];
        const j = t.customdata.indexOf(i);
        return [box.left + xaxis._offset + xaxis.d2p(t.x[j]), box.top + yaxis._offset + yaxis.d2p(t.y[j])]; }""",
        [front[0]],
    )
    tab.mouse.move(*at)
    tab.locator("#tip").wait_for(state="visible")
    assert ROWS[front[0]]["name"] in tab.locator("#tip").inner_text()
    tab.keyboard.press("Escape")
    assert not tab.locator("#tip").is_visible()
    tab.mouse.click(*at)
    tab.locator(f"#table tr[data-row='{front[0]}'].open").wait_for(state="attached")
    assert tab.locator("#pinned").get_by_role("button", name="Show in the table").count() == 1


def test_rows_are_paged(open_page):
    tab = open_page(render_page(create_page_data(create_records(120))))
    assert tab.locator("#range").inner_text() == "1–50 of 120"
    tab.locator("#later").focus()
    tab.keyboard.press("Enter")
    tab.keyboard.press("Enter")
    assert tab.locator("#range").inner_text() == "101–120 of 120"
    assert len(names(tab)) == 20
    assert tab.locator("#later").is_disabled()
    tab.locator("#earlier").click()
    assert tab.locator("#range").inner_text() == "51–100 of 120"


def test_page_csv_matches_python(open_page):
    hostile = [Record(name, method=name, metrics={"accuracy": 0.1}) for name in FORMULAS]
    data = create_page_data([*RECORDS, *hostile])
    tab = open_page(render_page(data))
    draw_all(tab)
    with tab.expect_download() as download:
        tab.locator("#csv").click()
    result = list(csv.reader(io.StringIO(Path(download.value.path()).read_text(encoding="utf-8"))))
    wanted = list(csv.reader(io.StringIO(rows_to_csv(data))))
    assert result[0] == wanted[0]
    assert len(result) == len(wanted)
    for line, like in zip(result[1:], wanted[1:], strict=True):
        assert [value(text) for text in line] == [value(text) for text in like]


def value(text: str) -> Any:
    try:
        return pytest.approx(float(text), rel=1e-8)
    except ValueError:
        return text


# who reads it, and where


@pytest.mark.parametrize(
    ("scheme", "width"),
    [
        pytest.param("light", 1280, marks=pytest.mark.slow),
        ("dark", 1280),
        pytest.param("light", 320, marks=pytest.mark.slow),
    ],
)
def test_page_is_accessible(open_page, scheme, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    tab = open_page(render_page(create_page_data(RECORDS[::4]), **PARTS), width=width, color_scheme=scheme)
    draw_all(tab)
    tab.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    tab.locator("#table tbody button.name").first.click()
    tab.fill("#limit-latency", "0.2")
    tab.wait_for_timeout(200)
    result = axe.Axe().run(tab, options={"rules": {"target-size": {"enabled": True}}}).response["violations"]
    grave = [
        (one["id"], [node["html"][:160] for node in one["nodes"]][:4])
        for one in result
        if one["impact"] in ("serious", "critical")
    ]
    assert grave == []


def test_phone_needs_no_horizontal_scrolling(open_page):
    tab = open_page(width=320, has_touch=True, is_mobile=True)
    draw_all(tab)
    tab.locator("#filters summary").click()
    tab.locator("#table tbody button.name").nth(1).tap()
    assert tab.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [320, 320]
    for plot in tab.query_selector_all(".plot"):
        assert plot.query_selector(".main-svg").bounding_box()["width"] <= 320
    small = tab.evaluate("""() => [...document.querySelectorAll("button, select, input, summary, nav a")].filter((one) => {
        const { width, height } = (one.closest("label") ?? one).getBoundingClientRect();
        return width > 0 && (width < 24 || height < 24); }).map((one) => one.outerHTML)""")
    assert small == []


def test_charts_follow_the_color_scheme(open_page):
    tab = open_page(color_scheme="light")
    look = """() => [getComputedStyle(document.body).backgroundColor,
        ...document.getElementById('chart-latency').data.filter((t) => t.marker).map((t) => t.marker.color),
        document.getElementById('chart-latency').layout.xaxis.gridcolor]"""
    light = tab.evaluate(look)
    tab.emulate_media(color_scheme="dark")
    tab.wait_for_function(
        "(old) => document.getElementById('chart-latency').layout.xaxis.gridcolor !== old", arg=light[-1]
    )
    dark = tab.evaluate(look)
    assert len(light) == len(dark) > 3
    assert all(one != other for one, other in zip(light, dark, strict=True))


def test_print_is_complete_and_light(open_page):
    tab = open_page(color_scheme="dark")
    tab.emulate_media(media="print", color_scheme="dark")
    tab.wait_for_function("() => [...document.querySelectorAll('.plot')].every((plot) => plot._fullLayout)")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    for plot in tab.query_selector_all(".plot"):
        svg, box = plot.query_selector(".main-svg").bounding_box(), plot.bounding_box()
        assert svg["width"] <= box["width"] + 1 <= 682
        assert svg["height"] <= box["height"] + 1
        assert plot.evaluate("(plot) => plot.layout.xaxis.gridcolor") == "#d8dee4"
    assert not tab.locator("#budget").is_visible()
    assert not tab.locator("#filters").is_visible()
    assert len(tab.pdf()) > 20_000


def test_hostile_names_stay_text(open_page):
    records = [
        replace(
            record, name=f"{HOSTILE} {i}", method=HOSTILE, architecture=HOSTILE if i % 2 else "__proto__",
            metrics=record.metrics | {"__proto__": 0.5, f"iou/{HOSTILE}": 0.4}, run=record.run | {"command": HOSTILE, "seed": i},
        )
        for i, record in enumerate(RECORDS[:12])
    ]  # fmt: skip
    data = create_page_data(records, HOSTILE)
    data["settings"][0]["label"] = HOSTILE
    data["metric_name"] = HOSTILE
    table = Table(HOSTILE, [HOSTILE, "b"], [[HOSTILE, HOSTILE]])
    html = render_page(
        data, tables=[table], images=[EmbeddedImage(HOSTILE, DOT, Path("x.png"))], commands=[HOSTILE], caveats=[HOSTILE],
        environment=[table],
    )  # fmt: skip
    tab = open_page(html)
    draw_all(tab)
    tab.locator("#table tbody button.name").first.click()
    tab.locator("#table tbody button.name").nth(1).hover()
    tab.fill("#limit-size", "0.0001")
    tab.get_by_text("No model is within the budget").wait_for()
    tab.fill("#find", "onerror 7")
    tab.get_by_text("as filtered").wait_for()
    assert tab.title().startswith("<img src=x")
    assert tab.locator("img").count() == 1
    assert tab.locator("script").count() == 3
    assert "<img src=x" in tab.locator("#table tbody button.name").first.inner_text()
    assert "<img src=x" in tab.locator("#chart-latency .ytitle").text_content()
    assert "<img" in "".join(tab.locator("#chart-classes .ytick").all_text_contents())
    assert (
        "onerror" in tab.locator("#chart-flops").locator("xpath=ancestor::figure").locator("ol li").first.text_content()
    )
    with tab.expect_download() as download:
        tab.locator("#csv").click()
    assert "\n=" not in Path(download.value.path()).read_text(encoding="utf-8")


def test_page_without_records(open_page):
    tab = open_page(render_page(create_page_data([])))
    assert "no results" in tab.locator("#pick-why").inner_text()
    assert tab.locator("#table, .plot, #budget").count() == 0


def test_page_of_unmeasured_model(open_page):
    tab = open_page(render_page(create_page_data([Record("Alone", metrics={"accuracy": 0.5})])))
    assert names(tab) == ["Alone"]
    assert "Alone" in tab.locator("#pick").inner_text()
    assert tab.locator(".plot").count() == 0


def test_format_names_match_the_scripts():
    script = (PLOTLY.parents[1] / "js" / "words.js").read_text()
    block = re.search(r"const FORMATS = \{(.*?)\};", script, re.DOTALL)
    assert block
    assert dict(re.findall(r'"?([\w-]*)"?: "([^"]*)"', block[1])) == FORMATS


# the example of the docs


def test_published_example_works(open_page):
    """docs/example: four students or more by two methods in three precisions, as `compress sweep` left them."""
    records = json.loads((EXAMPLE / "report.json").read_text())["records"]
    files = [record for record in records if record["role"] == "student" and record["format"]]
    for key, least in (("architecture", 4), ("method", 2), ("precision", 3)):
        assert len({record[key] for record in files}) >= least
    tab = open_page((EXAMPLE / "report.html").read_text(encoding="utf-8"))
    draw_all(tab)
    assert len(names(tab)) == len(records)
    for name, timed in (
        ("latency", [r for r in records if r["latencies"]]),
        ("size", [r for r in records if r["size_bytes"]]),
    ):
        assert len(points(tab, f"chart-{name}")) == len(timed)
    tab.locator("#table th[data-key=p50] button").click()
    times = [float(text) for text in column(tab, "p50") if text != "–"]
    assert times == sorted(times)
    tab.locator("#table th[data-key=name] button").focus()
    tab.keyboard.press("Enter")
    assert names(tab) == sorted(names(tab), key=str.lower)
    tab.locator("fieldset[data-facet=precision] label", has_text="int8").locator("input").click()
    assert len(names(tab)) == sum(record["precision"] != "int8" for record in records)
    tab.keyboard.press("Space")
    assert len(names(tab)) == len(records)
    assert all(
        image["alt"] for image in tab.locator("#images img").evaluate_all("(all) => all.map((i) => ({alt: i.alt}))")
    )
