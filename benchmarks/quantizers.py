"""Compare int8 files of this toolkit with those of other quantizers: the same fp32 file and calibration images.

    python -m benchmarks.quantizers [--only modelopt ...] [--images 256] [--seconds 5] [--out runs/int8] [--write]

The other quantizers are used as in their guides, with their defaults. Those that are not installed are listed. NNCF is
not an extra of ours: `pip install nncf`. Files are evaluated in ONNX Runtime on test images, and timed there and in
OpenVINO, interleaved with one thread; run it alone on the machine. --write writes results/quantisers.json and .md.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.quantization import CalibrationDataReader
from onnxruntime.quantization import quantize_static as ort_quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from benchmarks.result_files import ResultFile, Row
from benchmarks.students import run_command
from compress.data.calibration import dataset_images
from compress.measure import load_comparison_images
from compress.models.metadata import card_from_metadata
from exporters.onnx_validation import model_metadata, read_model
from exporters.quantization.calibration import BatchFunction, ReferenceOutputs
from exporters.quantization.modelopt import calibrated_session as modelopt_calibrated
from exporters.quantization.static import Target, quantize_static
from profiles.latency import machine

#: model -> its data and metric
MODELS = {
    "embedded/fashion_wrn16_2": ("embedded/fashion", "accuracy"),
    "embedded/scenes_deeplab": ("embedded/fashion-scenes", "miou"),
}


class Reader(CalibrationDataReader):
    """Batches by the name of the file's input, repeatable."""

    def __init__(self, source: Path, batches: BatchFunction) -> None:
        self.name = onnx.load(source).graph.input[0].name
        self.batches = batches
        self.rewind()

    def rewind(self) -> None:
        self.remaining: Iterator[Any] = iter(self.batches())

    def get_next(self) -> dict[str, Any] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        batch = next(self.remaining, None)
        return None if batch is None else {self.name: batch}


def quantize_with_ours(target: Target) -> Callable[[Path, Path, BatchFunction], None]:
    def quantize(source: Path, out: Path, batches: BatchFunction) -> None:
        quantize_static(source, out, batches, target=target)

    return quantize


def quantize_with_onnxruntime(source: Path, out: Path, batches: BatchFunction, **options: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        ort_quantize_static(prepared, out, Reader(source, batches), **options)


def quantize_per_channel(source: Path, out: Path, batches: BatchFunction) -> None:
    quantize_with_onnxruntime(source, out, batches, per_channel=True)


def quantize_with_modelopt(source: Path, out: Path, batches: BatchFunction) -> None:
    """Quantize like `--quantizer modelopt`: fp32 around int8, since CPUs do not compute in its default, fp16."""
    with modelopt_calibrated(source, batches, target="tensorrt", calibrator="auto") as session:
        session.write(out)


def quantize_with_nncf(source: Path, out: Path, batches: BatchFunction) -> None:
    import nncf  # pyright: ignore[reportMissingImports]

    model = onnx.load(source)
    name = model.graph.input[0].name
    images = [image[None] for batch in batches() for image in batch]
    quantized = nncf.quantize(model, nncf.Dataset(images, lambda image: {name: image}), subset_size=len(images))
    onnx.save(quantized, out)


#: row -> required package and function
TOOLS: dict[str, tuple[str, Callable[[Path, Path, BatchFunction], None]]] = {
    "ours-ort-cpu": ("onnxruntime", quantize_with_ours("ort-cpu")),
    "ours-ort-cpu-vnni": ("onnxruntime", quantize_with_ours("ort-cpu-vnni")),
    "ours-tensorrt": ("onnxruntime", quantize_with_ours("tensorrt")),
    "onnxruntime": ("onnxruntime", quantize_with_onnxruntime),
    "onnxruntime-per-channel": ("onnxruntime", quantize_per_channel),
    "modelopt": ("modelopt", quantize_with_modelopt),
    "nncf": ("nncf", quantize_with_nncf),
}
PACKAGES = {"modelopt": "nvidia-modelopt"}


def iter_rows(model: str, options: argparse.Namespace) -> Iterator[Row]:
    """Yield a row for the fp32 file and each tool's file, or the reason why a tool has none."""
    data, metric = MODELS[model]
    folder = options.out / model.replace("/", "-")
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "fp32.onnx"
    run_command("export", model, "--images", data, "--out", source)
    metadata = model_metadata(read_model(source))
    card = card_from_metadata(metadata, source)
    assert card is not None
    with tempfile.TemporaryDirectory() as cache:
        images = dataset_images(data, data, card, options.images, Path(cache), None)
        tests = load_comparison_images(data, card).numpy()
        reference = ReferenceOutputs(source, lambda: [tests], len(tests))
        yield {
            "model": model,
            "tool": "fp32",
            "score": measure_score(source, data, metric),
            "metric": metric,
        } | describe_file(source)
        for tool in options.only or TOOLS:
            package, quantize = TOOLS[tool]
            row = {"model": model, "tool": tool, "metric": metric}
            if importlib.util.find_spec(package) is None:
                yield row | {"missing": f"{PACKAGES.get(package, package)} is not installed"}
                continue
            out = folder / f"{tool}.onnx"
            with contextlib.redirect_stdout(io.StringIO()):
                quantize(source, out, images.batches)
            copy_metadata(out, metadata)
            row |= {"version": version(PACKAGES.get(package, package)), "departure": reference.relative_error(out)}
            yield row | {"score": measure_score(out, data, metric)} | describe_file(out)


def copy_metadata(path: Path, metadata: dict[str, str]) -> None:
    """Restore the fp32 file's metadata, which `eval` and `bench` read and other tools may drop."""
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, metadata | {"precision": "int8"})
    onnx.save(model, path)


def describe_file(path: Path) -> Row:
    nodes = [node.op_type for node in onnx.load(path).graph.node]
    return {"path": str(path), "bytes": path.stat().st_size, "rounded": nodes.count("QuantizeLinear")}


def measure_score(path: Path, data: str, metric: str) -> float:
    return run_command("eval", path, "--data", data)[0]["metrics"][metric]


def add_latencies(rows: list[Row], seconds: int) -> None:
    """Add the median milliseconds per image in each runtime; all files of a model are interleaved."""
    for model in MODELS:
        mine = [row for row in rows if row["model"] == model and "path" in row]
        for runtime in ("onnxruntime", "openvino"):
            arguments = [
                *(row["path"] for row in mine),
                "--runtimes",
                runtime,
                "--threads",
                1,
                "--duration",
                f"{seconds}s",
            ]
            for row, latency in zip(mine, run_command("bench", *arguments)[0]["results"], strict=True):
                row[f"{runtime}_ms"] = latency["latency_ms_p50"]


def render_page(rows: list[Row], images: int) -> str:
    cpu = machine.describe_machine()
    text = [
        "# int8 by several quantizers",
        "",
        f"One fp32 file per model and {images} in-domain calibration images; scores on the embedded test images in "
        "ONNX Runtime. The error is that of the logits relative to their size (root of the sum of squares). Times are "
        "medians per image relative to fp32 in the same runtime, interleaved in one process, one "
        f"thread of {cpu['cpu']} ({', '.join(cpu['instructions'])}). "
        "Made by `python -m benchmarks.quantizers --write`.",
    ]
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == model]
        fp32 = next(row for row in mine if row["tool"] == "fp32")
        text += [
            "", f"## {model}", "",
            f"| made by | {fp32['metric']} | error | MB | Q nodes | time in ONNX Runtime | in OpenVINO |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]  # fmt: skip
        for row in mine:
            if "missing" in row:
                text.append(f"| {row['tool']} | {row['missing']} | | | | | |")
                continue
            times = [row[f"{runtime}_ms"] / fp32[f"{runtime}_ms"] for runtime in ("onnxruntime", "openvino")]
            cells = [
                f"{row['tool']} {row.get('version', '')}".strip(), f"{row['score']:.1%}",
                f"{row['departure']:.4f}" if "departure" in row else "", f"{row['bytes'] / 1e6:.2f}",
                row["rounded"], *(f"{time:.2f}" for time in times),
            ]  # fmt: skip
            text.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(text) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=list(TOOLS), nargs="+", help="only these tools")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--seconds", type=int, default=5, help="seconds per file and runtime")
    parser.add_argument("--out", type=Path, default=Path("runs/int8"))
    parser.add_argument("--write", action="store_true", help="write results/quantisers.json and .md")
    options = parser.parse_args()
    rows: list[Row] = []
    for model in MODELS:
        for row in iter_rows(model, options):
            print(row, file=sys.stderr, flush=True)
            rows.append(row)
    add_latencies(rows, options.seconds)
    for row in rows:
        row.pop("path", None)
    results = ResultFile("quantisers", write=options.write)
    results.update(rows=rows, images=options.images, machine=machine.describe_machine())
    results.write_page(render_page(rows, options.images))


if __name__ == "__main__":
    main()
