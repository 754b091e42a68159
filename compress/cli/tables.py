"""Text form of results: one function per result type, and the tables they share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from compress.files import sanitize

if TYPE_CHECKING:
    from compress import api

GIGA = 1e9
#: metrics of single classes begin with this
IOU = "iou/"
#: classes shown side by side, and characters of a histogram bar
LISTED_CLASSES, BAR_WIDTH = 10, 30


def format_table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> str:
    """Align rows under a header; columns of numbers to the right. Cells have one line."""
    rows, header = [list(map(sanitize, row)) for row in rows], list(map(sanitize, header))
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    right = [all(is_number(row[i]) for row in rows) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        return "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)).rstrip()

    return "\n".join([line(header), line(["-" * w for w in widths]), *(line(row) for row in rows)])


def is_number(text: str) -> bool:
    return bool(text) and (text[0].isdigit() or text in ("-", "–"))


def format_pairs(pairs: Sequence[tuple[str, str]]) -> str:
    """Align names and values, one pair per line."""
    pairs = [(sanitize(name), sanitize(value)) for name, value in pairs]
    width = max(len(name) for name, _ in pairs)
    return "\n".join(f"{name.ljust(width)}  {value}".rstrip() for name, value in pairs)


def format_duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def format_megabytes(count: float, digits: int = 0) -> str:
    return f"{count / 1e6:.{digits}f} MB"


def format_size(size: Sequence[int]) -> str:
    return f"{size[0]}x{size[1]}"


def overall_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics without those of single classes."""
    return {name: value for name, value in metrics.items() if "/" not in name}


# Training.


def run_result(result: api.RunResult) -> str:
    scores = "  ".join(f"{name} {value:.2%}" for name, value in overall_metrics(result.metrics).items())
    step = f"step {result.best_step} of {result.steps}"
    macs, flops, params = (result.macs or 0) / GIGA, (result.flops or 0) / GIGA, (result.params or 0) / 1e6
    pairs = [
        ("student", f"{result.best}  ({step}, {format_duration(result.seconds)})"),
        ("score", scores or "not measured (no --val)"),
        ("cost", f"{macs:.4f} GMAC = {flops:.4f} GFLOP, {params:.3f} M parameters"),
        *(
            []
            if result.micro_batch is None
            else [("batch", f"{result.batch_size} images, in micro-batches of {result.micro_batch}")]
        ),
        *(("", f"not counted: {operator}, {calls} calls") for operator, calls in result.unsupported.items()),
        *(("rollback", f"step {one['step']} to step {one['to_step']}: {one['reason']}") for one in result.rollbacks),
    ]
    if result.export is not None:
        parity = result.export.parity
        unit = "images" if parity.miou is None else "images (pixels)"
        pairs.append((
            "export",
            f"{result.export.path}  (largest difference {parity.max_abs:.1e}, same prediction for "
            f"{parity.top1_agreement:.2%} of {parity.images} {unit})",
        ))  # fmt: skip
    if result.overlays is not None:
        pairs.append(("overlays", str(result.overlays)))
    if result.report:
        pairs.append(("report", str(result.report["html"])))
    return format_pairs(pairs)


def estimate(result: api.EstimateResult) -> str:
    flops = result.flops_per_step * result.steps + result.flops_per_synthesis * result.syntheses
    step = f"{result.seconds_per_step:.3f} s per step"
    parts = "" if result.micro_batch is None else f" in micro-batches of {result.micro_batch}"
    if result.timed_images < result.batch_size:
        step += f" (extrapolated from {result.timed_images} of {result.batch_size} images)"
    unknown = "" if result.is_teacher_counted else "; the FLOPs of the teacher are unknown"
    pairs = [
        ("settings", f"valid: {result.method}, {result.student}, on {result.device} in {result.precision}"),
        ("compute", f"{result.flops_per_step / GIGA:.2f} GFLOP per step, {flops / 1e12:.2f} TFLOP in total{unknown}"),
        ("memory", f"{format_megabytes(result.state_bytes)} of weights and optimizer state, "
                   f"{format_megabytes(result.activation_bytes)} of activations of a whole batch"),
        ("time", f"{step}, {result.steps} steps, {format_duration(result.seconds)} (without decoding and evaluation)"),
    ]  # fmt: skip
    if result.syntheses:
        each = f"{result.flops_per_synthesis / GIGA:.2f} GFLOP and {result.seconds_per_synthesis:.1f} s"
        pairs.append(("synthesis", f"{result.syntheses} batches of images, {each} per batch (included above)"))
    data = f"{result.training_images} images of {format_size(result.image_size)}, batches of {result.batch_size}{parts}"
    return format_pairs([*pairs, ("data", data)])


def synthesis_result(result: api.SynthesisResult) -> str:
    source = f"the generator of {result.method}" if result.is_from_generator else result.method
    return format_pairs([
        ("images", f"{result.images} of {result.classes} classes, from {result.teacher} by {source} "
                   f"({format_duration(result.seconds)})"),
        ("directory", str(result.pool)),
        ("preview", str(result.preview)),
        ("next", f"compress distill --teacher {result.teacher} --method kd --ood {result.pool}"),
    ])  # fmt: skip


# Experiments.


def comparison(result: api.ComparisonResult) -> str:
    rows = [
        [
            one.name, format_mean(one.mean, one.std), format_mean(one.best_mean, one.best_std), str(one.seeds),
            "-" if one.steps is None else f"{one.steps:.0f}",
            "-" if one.seconds is None else format_duration(one.seconds),
            "-" if one.images_per_s is None else f"{one.images_per_s:.0f}",
            "-" if one.peak_bytes is None else format_megabytes(one.peak_bytes), ", ".join(one.learns_from),
        ]
        for one in result.methods
    ]  # fmt: skip
    header = ["method", result.metric, "best", "seeds", "steps", "training", "images/s", "memory", "learns from"]
    lines = [format_table(rows, header) if rows else "no run has finished", "", result.summary]
    lines += [f"skipped: {one.name}: {one.reason}" for one in result.skipped]
    lines += [f"failed: {one.name}, seed {one.seed}: {one.error}" for one in result.failed]
    return "\n".join([*lines, str(result.files["html"])])


def format_mean(mean: float, std: float | None) -> str:
    return f"{mean:.2%}" if std is None else f"{mean:.2%} ± {std:.2%}"


def comparison_plan(plan: api.ComparisonPlan) -> str:
    rows = [
        [one.name, str(one.runs), format_duration(one.seconds_per_run), format_duration(one.seconds),
         ", ".join(one.learns_from)] for one in plan.methods
    ]  # fmt: skip
    header = ["method", "runs", "per run", "total", "learns from"]
    lines = [format_table(rows, header) if rows else "no method can run here", ""]
    lines += [f"skipped: {one.name}: {one.reason}" for one in plan.skipped]
    total = format_duration(plan.seconds)
    return "\n".join([*lines, f"{plan.runs} runs, {total} of training (without decoding and process start)"])


def sweep_result(result: api.SweepResult) -> str:
    pairs = list(dict.fromkeys((one.format, one.precision) for cell in result.cells for one in cell.files))
    rows = [
        [
            cell.student, cell.name, str(cell.seed), cell.state,
            "-" if cell.score is None else f"{cell.score:.1%}",
            "-" if cell.steps is None else str(cell.steps),
            "-" if cell.seconds is None else format_duration(cell.seconds),
            *(format_file_score(cell, *pair) for pair in pairs),
        ]
        for cell in result.cells
    ]  # fmt: skip
    header = ["student", "method", "seed", "state", "score", "steps", "training", *(" ".join(pair) for pair in pairs)]
    lines = [format_table(rows, header), ""]
    lines += [f"skipped: {one.name}: {one.reason}" for one in result.skipped]
    lines += [f"failed: {name}: {error}" for name, error in result.failed.items()]
    if result.report:
        lines += [result.summary or "", "", str(result.report["html"])]
    return "\n".join(lines)


def format_file_score(cell: Any, format: str, precision: str) -> str:
    """Return the first metric of a file, or why there is none."""
    for file in cell.files:
        if (file.format, file.precision) == (format, precision):
            return next((f"{score:.1%}" for score in file.metrics.values()), "not run")
    is_rejected = any((one.format, one.precision) == (format, precision) for one in cell.rejected)
    return "rejected" if is_rejected else "-"


def sweep_plan(plan: api.SweepPlan) -> str:
    rows = [
        [cell.cell, cell.student, cell.name, str(cell.seed), cell.state, format_duration(cell.seconds)]
        for cell in plan.cells
    ]
    lines = [format_table(rows, ["cell", "student", "method", "seed", "state", "training"]), ""]
    lines += [f"skipped: {one.name}: {one.reason}" for one in plan.skipped]
    work = f"{plan.trainings} trainings, {plan.artifacts} files of {len(plan.cells)} cells"
    time = f"{format_duration(plan.seconds)} of training with {plan.workers} at a time"
    return "\n".join([*lines, f"{work}; {time} (without decoding, process start and measuring)"])


# One model.


def evaluation(result: api.EvaluationResult) -> str:
    runtime = "" if result.runtime == "torch" else f", in {result.runtime}, {result.precision}"
    lines = [sanitize(f"{result.model} on {result.images} images of {result.data}{runtime}")]
    lines += [f"{sanitize(name)}: {value:.2%}" for name, value in result.metrics.items() if not name.startswith(IOU)]
    if result.task != "segmentation":
        return "\n".join(lines)
    ious = [(name, result.metrics.get(f"{IOU}{name}")) for name in result.class_names]
    rows = [[name, "-" if iou is None else f"{iou:.2%}"] for name, iou in ious]
    return "\n".join([*lines, "", format_table(rows, ["class", "IoU"])])


def predictions(result: api.PredictionResult) -> str:
    """Return a line for each image: its classes, and the files of a label map."""
    rows = [[one.image, format_classes(one.classes)] for one in result.predictions]
    if any(one.overlay for one in result.predictions):
        rows = [[*row, str(one.overlay)] for row, one in zip(rows, result.predictions, strict=True)]
        return format_table(rows, ["image", "classes", "overlay"])
    return format_table(rows, ["image", "classes"]) if rows else ""


def format_classes(classes: Sequence[api.ClassPrediction]) -> str:
    values = [one.share if one.probability is None else one.probability for one in classes[:LISTED_CLASSES]]
    parts = [
        one.name if value is None else f"{one.name} {value:.1%}" for one, value in zip(classes, values, strict=False)
    ]
    return ", ".join([*parts, *(["…"] if len(classes) > LISTED_CLASSES else [])])


def inspection(result: api.InspectionResult) -> str:
    pairs = [
        ("model", result.model),
        ("format", ", in ".join(filter(None, [result.format, " / ".join(result.wrapping)]))),
    ]
    if result.candidates:
        pairs.append(("architecture", f"one of {len(result.candidates)}: {', '.join(result.candidates)}"))
    else:
        same = f" (the same function: {', '.join(result.same_as)})" if result.same_as else ""
        pairs.append(("architecture", f"{result.architecture or 'not recognized'}{same}"))
    card = result.card
    if card is not None:
        names = card.class_names or []
        listed = f" ({', '.join(names[:10])}{', …' if len(names) > 10 else ''})" if names else ""
        color = "grayscale" if card.grayscale else "color"
        pairs += [
            ("task", card.task),
            *([("threshold", f"{card.threshold:g}")] if card.decides_by_threshold else []),
            ("classes", f"{card.classes}{listed}"),
            ("input", f"{color} images of {format_size(card.image_size)}"),
            ("normalization", f"mean {format_channels(card.mean)}, std {format_channels(card.std)}"),
        ]
    if result.params is not None:
        pairs.append(("parameters", f"{result.params:,}"))
    if result.dtypes:
        non_finite = ", ".join(result.non_finite)
        pairs += [
            ("tensors", ", ".join(f"{number} of {kind}" for kind, number in result.dtypes.items())),
            ("values", f"NaN or infinity in {non_finite}: this checkpoint is broken" if non_finite else "all finite"),
        ]
    if result.has_ema:
        pairs.append(("averaged weights", "stored beside the plain ones; load them with --ema"))
    if card is not None:
        pairs += [(f"metrics.{key}", f"{value:.4f}") for key, value in card.metrics.items()]
        pairs += [(key, shorten(value)) for key, value in card.provenance.items() if key != "field_sources"]
    pairs += [(key, shorten(value)) for key, value in result.metadata.items()]
    pairs += [("sha256", result.sha256)] if result.sha256 else []
    pairs += [("problem", result.problem)] if result.problem else []
    parts = [format_pairs(pairs)]
    if result.unlabeled is not None:
        parts.append(domain_shift(result.unlabeled))
    if result.unlabeled is not None and result.reference is not None and result.distance is not None:
        parts += [image_distance(result.reference, result.distance), side_by_side(result.unlabeled, result.reference)]
    return "\n\n".join(parts)


def format_channels(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def shorten(value: object) -> str:
    text = str(value)
    return text if len(text) <= 100 else text[:99] + "…"


def count_images(shift: Any) -> str:
    """Return the name of the data and how many of its images were sampled."""
    sampled = f", {shift.sampled:,} of them sampled" if shift.sampled < shift.images else ""
    size = f", typically {format_size(shift.median_size)}" if shift.median_size else ""
    return f"{shift.data}: {shift.images:,} images{sampled}{size}"


def domain_shift(shift: Any) -> str:
    facts = shift.predictions
    top = ", ".join(f"{name} {share:.1%}" for name, share in list(shift.class_shares.items())[:5] if share > 0)
    unit = " of the pixels" if facts["decisions"] > facts["images"] else ""
    lines = [
        f"data         {count_images(shift)}",
        f"unreadable   {len(shift.unreadable)}",
        *(f"  {name}: {reason}" for name, reason in shift.unreadable[:5]),
        f"classes      {top}{unit}; balance {facts['balance']:.2f} of 1",
        f"entropy      {facts['entropy_mean']:.2f} nats on average, {facts['entropy_max']:.2f} at most",
        *histogram_bars(facts["entropy_histogram"]),
        f"confidence   {facts['confidence_mean']:.2f} on average",
        *histogram_bars(facts["confidence_histogram"]),
        *([] if shift.shift is None else [f"shift        {shift.shift:.2f} nats per channel, at the last BatchNorm"]),
        "",
        shift.recommendation,
    ]
    return "\n".join(lines)


def histogram_bars(histogram: Mapping[str, Sequence[float]]) -> list[str]:
    """Return one line per bin: its range, a bar, its count."""
    counts, edges = histogram["counts"], histogram["edges"]
    top = max(1.0, *counts)
    return [
        f"  {low:5.2f}-{high:<5.2f} {'#' * math.ceil(BAR_WIDTH * count / top):<{BAR_WIDTH}} {int(count)}"
        for low, high, count in zip(edges, edges[1:], counts, strict=False)
    ]


def image_distance(reference: Any, distance: Any) -> str:
    return format_pairs([
        ("reference", count_images(reference)),
        ("features", f"{distance.features} (not Inception: not comparable with published FIDs)"),
        ("images", f"{distance.images:,} of each set, crops included"),
        ("FID", f"{distance.fid:.4g}"),
        *(("patch FID", f"{fid:.4g} for {side} x {side} pixels") for side, fid in distance.patch_fid.items()),
        *(("warning", text) for text in distance.warnings),
    ])  # fmt: skip


def side_by_side(shift: Any, reference: Any) -> str:
    """Return the class shares of both data sets, largest first, and their statistics."""
    both = [shift, reference]
    pairs = zip(*(list(one.class_shares.items()) for one in both), strict=True)
    rows = [[str(i + 1), *(f"{share:.1%} {name}" for name, share in pair)] for i, pair in enumerate(pairs)]
    facts = [
        ("never predicted", "classes_never_predicted", "d"),
        ("entropy / ln C", "balance", ".3f"),
        ("KL to uniform", "kl_to_uniform", ".3f"),
    ]
    rows = rows[:LISTED_CLASSES] + [
        [name, *(format(one.predictions[key], spec) for one in both)] for name, key, spec in facts
    ]
    return format_table(rows, ["share of predictions", shift.data, f"{reference.data} (reference)"])


def export_summary(result: api.ExportSummary) -> str:
    artifacts = result.artifacts
    if not artifacts:
        return ""
    lines = [single_artifact(result) if len(artifacts) == 1 else artifact_table(result)]
    if result.calibration is not None:
        lines.append(f"int8 calibrated on {result.calibration_images} images of {result.calibration}")
    reasons = dict.fromkeys(one.unverified for one in artifacts if one.unverified is not None)
    notes = [*(f"script: {path}" for path in result.scripts), *(f"not run here: {reason}" for reason in reasons)]
    return "\n".join([*lines, *notes])


def single_artifact(result: api.ExportSummary) -> str:
    (one,) = result.artifacts
    parity, sizes = one.parity, ", ".join(map(str, one.batch_sizes))
    lines = [
        f"{one.path}: {one.format} {one.precision}, {format_megabytes(one.bytes, 2)}",
        f"compared with PyTorch in {one.verified_in}: {parity.images} images of {result.images}, batch sizes {sizes}",
    ]
    if parity.max_abs is not None:
        limit = "" if one.tolerance.max_rel is None else f" (tolerance {one.tolerance.max_rel:g})"
        lines.append(
            f"largest difference {parity.max_abs:.2e}, {parity.max_rel:.2e} of the largest logit{limit}; "
            f"mean {parity.mean_abs:.2e}, cosine similarity {parity.cosine:.6f}"
        )
    if parity.miou is None:
        lines.append(f"top-1 agreement {parity.top1_agreement:.2%}")
    else:
        lines.append(f"same label for {parity.top1_agreement:.4%} of the pixels, mIoU {parity.miou:.4%}")
    if parity.positive_agreement is not None:
        lines.append(f"Dice coefficient of the positive predictions {parity.positive_agreement:.4%}")
    return "\n".join([*lines, f"sha256 {one.sha256}"])


def artifact_table(result: api.ExportSummary) -> str:
    first = result.artifacts[0]
    header = ["file", "format", "precision", "MB", "largest difference", "cosine", "agreement", "compared in"]
    rows = [
        [
            str(one.path), one.format, one.precision, f"{one.bytes / 1e6:.2f}",
            "-" if one.parity.max_rel is None else f"{one.parity.max_rel:.1e}",
            "-" if one.parity.cosine is None else f"{one.parity.cosine:.6f}",
            f"{one.parity.top1_agreement:.2%}", one.verified_in,
        ]
        for one in result.artifacts
    ]  # fmt: skip
    unit = "pixels of " if first.parity.miou is not None else ""
    sizes = ", ".join(map(str, first.batch_sizes))
    data = f"{unit}{first.parity.images} images of {result.images}, batch sizes {sizes}"
    note = f"compared with PyTorch on {data}; differences relative to the largest logit"
    return f"{format_table(rows, header)}\n\n{note}"


# Reports, lists and the environment.


def report_result(result: api.ReportResult) -> str:
    return "\n".join(
        [result.summary, "", *(str(path) for path in (result.json, result.csv, result.markdown, result.html))]
    )


def demo_result(result: api.DemoResult) -> str:
    lines = []
    for name, model in result.models.items():
        score = next((f"{metric} {value:.1%}" for metric, value in model.metrics.items()), "not measured")
        lines.append(f"{name:28s} {score}   {model.macs or 0:,} MACs")
    return "\n".join([*lines, str(result.report["html"])])


def named_list(title: str) -> Callable[[Mapping[str, Sequence[Any]]], str]:
    """Return a formatter for lists of things with a name and a description."""

    def format_list(lists: Mapping[str, Sequence[Any]]) -> str:
        return format_table(
            [[one.name, one.description] for items in lists.values() for one in items], [title, "description"]
        )

    return format_list


full_model_list = named_list("model")


def model_list(models: Mapping[str, Sequence[api.ModelInfo]]) -> str:
    """Return every built-in model, and the number of models of each library."""
    rows = [[one.name, one.description] for kind, items in models.items() for one in items if "/" not in kind]
    rows += [
        [f"{kind}NAME", f"{len(items)} models: compress models {kind}"] for kind, items in models.items() if "/" in kind
    ]
    rows.append(["package.module:factory", "your own network: a function that returns a torch.nn.Module"])
    return format_table(rows, ["model", "description"])


def method_details(method: api.MethodDetails) -> str:
    rows = [[one.name, str(one.default), one.description] for one in method.settings]
    table = format_table(rows, ["setting", "default", "description"])
    return f"{method.name}: {method.description}\n\n{table}\n\nChange one with --set method.NAME=VALUE."


def environment(report: api.EnvironmentReport) -> str:
    machine = report.machine
    bf16 = {
        "fast": "fast (AMX): --precision auto uses it",
        "native": "native, without a matrix unit",
        "emulated": "emulated: --precision auto uses float32",
    }[report.bf16]
    memory = machine["memory_bytes"]
    gpus = [
        f"{gpu['name']}, {gpu['memory_bytes'] / 2**30:.0f} GiB, driver {gpu['driver']}, sm {gpu['compute_capability']}"
        for gpu in machine["gpus"]
    ]
    hardware = format_pairs([
        ("system", f"{machine['system']}, Python {machine['versions']['python']}"),
        ("processor", f"{machine['cpu']}, {machine['cores']} cores"),
        ("", " ".join(machine["instructions"]) or "no vector instructions known"),
        ("bf16", bf16),
        ("memory", "unknown" if memory is None else f"{memory / 2**30:.1f} GiB"),
        *(("gpu", text) for text in gpus or ["none found by nvidia-smi"]),
    ])  # fmt: skip
    core = [[one.name, one.version or "missing", one.expected, one.problem or "ok"] for one in report.core.values()]
    optional = [
        [one.name, one.version or "missing", one.expected, "ok" if one.version else one.install]
        for one in report.optional.values()
    ]
    return "\n\n".join([
        hardware,
        format_table(core, ["core package", "version", "expected", "state"]),
        format_table(optional, ["optional package", "version", "for", "state, or how to install it"]),
    ])  # fmt: skip
