"""Reports: records -> `report.html` (one self-contained file), .md, .csv, .json and charts. Runs no model."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import jinja2

from compress.errors import UsageError, first_line
from compress.files import sanitize
from compress.own_files import require_own_report
from profiles.formatting import escape_markdown, fence_code, shorten_list, to_json_safe
from profiles.record_sets import average_seeds, collect_records, find_run_dirs
from profiles.records import Record, check_values, record_to_json, write_file
from profiles.report import charts, tables
from profiles.report.comparison import Comparison, Cost
from profiles.report.figures import class_charts, draw_charts
from profiles.report.html import render_page
from profiles.report.images import embed_images
from profiles.report.overlays import collect_overlays
from profiles.report.recommendation import Limits, Recommendation, list_caveats, recommend
from profiles.report.rows import build_page_data, rows_to_csv, sort_by_score
from profiles.report.run_images import find_overlay_dirs, find_run_images

SCHEMA = 2
TITLE = "Compression report"
JSON_FILE = "report.json"
FILES = ("report.html", "report.md", "report.csv", JSON_FILE)
MAX_TEXT = 2000  #: characters of a name
MAX_CAVEATS = 200
COSTS: tuple[Cost, ...] = ("flops", "latency", "size", "energy")


@dataclass(frozen=True)
class ReportResult:
    """A written report."""

    html: Path  #: self-contained page
    markdown: Path  #: the same as text
    csv: Path  #: one line per model, form and setting
    json: Path  #: every number of the report
    summary: str  #: the recommendation in a few sentences
    best: str | None  #: label of the recommended model; None if none is within the limits
    limits: Limits
    metric: str  #: metric by which the models are compared
    pareto: dict[str, list[str]]  #: cost -> labels of the Pareto-optimal models, cheapest first
    caveats: list[str]  #: limits of the measurements
    models: int  #: number of models, runs with several seeds counted once

    @property
    def files(self) -> dict[str, Path]:
        """Format -> file."""
        return {"html": self.html, "markdown": self.markdown, "csv": self.csv, "json": self.json}


def write_run_report(
    output_dir: Path,
    run_dirs: Sequence[Path],
    *,
    title: str = TITLE,
    limits: Limits | None = None,
    notes: Sequence[str] = (),
    commands: Sequence[str] = (),
    progress: Callable[[str], None] = lambda _: None,
) -> ReportResult:
    """Write one report of several runs, with the images that lie in their directories.

    Args:
        output_dir: Directory of the report; created if missing.
        run_dirs: Run directories, or directories that contain some.
        title: Heading of the report.
        limits: Maximum costs of the recommended model.
        notes: Additional caveats.
        commands: Command lines that reproduce the results; those of the records are added.
        progress: Called with one line before the report is written.

    Returns:
        The files and the recommendation.

    Raises:
        RecordError: A directory has no records, a record is damaged, or `output_dir` cannot be written.
        UsageError: `output_dir` contains a file that would be replaced, but that no report wrote.
    """
    check_output_dir(output_dir)
    records = collect_records(run_dirs)
    folders = [run_dir for given in run_dirs for run_dir in find_run_dirs(Path(given)) if run_dir.is_dir()]
    output_dir = Path(os.path.realpath(output_dir))
    images, failures = collect_overlays(find_overlay_dirs(folders), output_dir, folders)
    task = records.records[-1].task if records.records else ""
    known = {os.path.abspath(file) for file in images.values()}
    for caption, file in [*records.images.items(), *find_run_images(folders, task).items()]:
        if os.path.abspath(file) not in known:
            known.add(os.path.abspath(file))
            images[caption] = file
    progress(f"Writing the report into {output_dir}")
    return write_report(
        output_dir,
        records.records,
        title=title,
        images=images,
        image_folders=[output_dir, *folders, *(Path(given).parent for given in run_dirs if Path(given).is_file())],
        notes=[*notes, *failures],
        commands=commands,
        limits=limits,
    )


def write_report(
    output_dir: Path,
    records: Sequence[Record],
    *,
    title: str = TITLE,
    images: Mapping[str, Path] | None = None,
    image_folders: Sequence[Path] | None = None,
    notes: Sequence[str] = (),
    commands: Sequence[str] = (),
    limits: Limits | None = None,
) -> ReportResult:
    """Write the report of records, replacing an earlier one.

    Args:
        output_dir: Directory of the report; created if missing.
        records: One record per run and form; runs that differ only in their seed count as one model.
        title: Heading of the report.
        images: Caption -> image file to embed; one that cannot be read becomes a caveat.
        image_folders: Folders that contain the images after links are followed; None: any file is embedded.
        notes: Additional caveats.
        commands: Command lines that reproduce the results; those of the records are added.
        limits: Maximum costs of the recommended model.

    Returns:
        The files and the recommendation.

    Raises:
        RecordError: `output_dir` cannot be written.
        UsageError: `output_dir` contains a file that would be replaced, but that no report wrote.
    """
    check_output_dir(output_dir)
    output_dir, limits = Path(output_dir), limits or Limits()
    given = [str(record.run["command"]) for record in records if record.run.get("command")]
    records = list(map(clean_record, records))
    models = average_seeds(records)
    comparison = Comparison(models if len(models) <= tables.MAX_ROWS else sort_by_score(Comparison(models)))
    recommendation = recommend(comparison, limits)
    embedded, failures = embed_images(images or {}, image_folders)
    embedded = [
        replace(one, caption=clean_text(one.caption), description=clean_text(one.description)) for one in embedded
    ]
    drawn, by_class = draw_charts(comparison, records), class_charts(comparison)
    check_output_dir(output_dir, [*FILES, *(chart.file for chart in (*drawn, *by_class))])
    data = build_page_data(comparison, records, recommendation, limits, title=clean_text(title))
    caveats = [*notes, *list_caveats(comparison), *failures]
    content = {
        "title": clean_text(title),
        "summary": recommendation.reason,
        "tables": tables.build_tables(comparison),
        "charts": drawn,
        "class_charts": by_class,
        "class_table": tables.class_table(comparison),
        "images": embedded,
        "commands": list(dict.fromkeys(map(sanitize, [*commands, *given]))),
        "caveats": list(map(clean_text, shorten_list(caveats, MAX_CAVEATS))),
        "environment": tables.environment_tables(records),
    }
    html, markdown, csv, json_file = paths = [output_dir / name for name in FILES]
    texts = [
        render_report_page(data, content, comparison),
        render_template(
            "report.md.jinja",
            content | {"images": [replace(one, source=relative_path(one.path, output_dir)) for one in embedded]},
        ),
        rows_to_csv(data),
        json.dumps(report_data(content, comparison, recommendation, limits), indent=2) + "\n",
    ]
    # report.json is the first: it says that the others are ours, also if this process is killed between two files
    for path, text in reversed(list(zip(paths, texts, strict=True))):
        write_file(path, text.encode("utf-8", "replace"))
    for chart in [*drawn, *by_class]:
        write_file(output_dir / chart.file, charts.standalone_svg(chart.svg))
    return ReportResult(
        html,
        markdown,
        csv,
        json_file,
        summary=recommendation.reason,
        best=None if recommendation.record is None else recommendation.record.label,
        limits=limits,
        metric=comparison.metric,
        pareto=pareto_labels(comparison),
        caveats=content["caveats"],
        models=len(models),
    )


def check_output_dir(output_dir: Path, files: Sequence[str] = FILES) -> None:
    """Raise UsageError if a report must not be written there: one of `files` exists, and no report wrote it."""
    try:
        folder = Path(os.path.realpath(output_dir))
    except (OSError, ValueError) as error:
        raise UsageError(f"{output_dir}: cannot be a directory ({first_line(error)}); choose another --out.") from error
    require_own_report(folder / JSON_FILE, [folder / name for name in files])


def clean_record(record: Record) -> Record:
    """Return a record whose texts are harmless and of moderate length. Raises RecordError for impossible numbers."""
    check_values(record)
    texts = {one.name: clean_texts(getattr(record, one.name)) for one in fields(record) if one.name != "latencies"}
    latencies = [replace(one, **clean_texts(vars(one))) for one in record.latencies]
    return replace(record, **texts, latencies=latencies)


def clean_texts(value: Any) -> Any:
    """Return a JSON value with all texts cleaned."""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, Mapping):
        return {clean_text(str(key)): clean_texts(item) for key, item in value.items()}
    return type(value)(map(clean_texts, value)) if isinstance(value, list | tuple) else value


def clean_text(text: str) -> str:
    """Return text on one line without invisible characters, shortened."""
    return sanitize(text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…")


def render_report_page(data: Mapping[str, Any], content: Mapping[str, Any], comparison: Comparison) -> str:
    """Render the report as a self-contained page."""
    runs = tables.runs_table(comparison)
    parts = {key: content[key] for key in ("images", "commands", "caveats", "environment")}
    return render_page(data, tables=[] if runs is None else [runs], **parts)


def relative_path(path: Path, folder: Path) -> str:
    """Return `path` relative to `folder`, with forward slashes."""
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()


def render_template(template: str, content: Mapping[str, Any]) -> str:
    """Render a template of this package; in HTML everything but Markup is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=template.endswith(".html.jinja"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = escape_markdown
    environment.filters["fenced"] = fence_code
    return environment.get_template(template).render(content).rstrip() + "\n"


def pareto_labels(comparison: Comparison) -> dict[str, list[str]]:
    """Return the labels of the Pareto-optimal models for each cost, cheapest first."""
    return {cost: [record.label for record in comparison.pareto_front(cost)] for cost in COSTS}


def report_data(
    content: Mapping[str, Any], comparison: Comparison, recommendation: Recommendation, limits: Limits
) -> dict[str, Any]:
    """Return the report as JSON values: every record, and what was computed from them."""
    models = [
        record_to_json(record)
        | {
            "retained_share": comparison.retained_accuracy(record),
            "macs_ratio": comparison.macs_reduction(record),
            "params_ratio": comparison.params_reduction(record),
            "speedup": comparison.speedup(record),
        }
        for record in comparison.records
    ]
    return {
        "schema": SCHEMA,
        "title": content["title"],
        "summary": content["summary"],
        "best": None if recommendation.record is None else recommendation.record.label,
        "limits": asdict(limits),
        "metric": comparison.metric,
        "latency_setting": None if comparison.setting is None else str(comparison.setting),
        "pareto": pareto_labels(comparison),
        "records": to_json_safe(models),
        "commands": content["commands"],
        "caveats": content["caveats"],
    }
