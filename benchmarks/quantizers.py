"""int8 files of this toolkit beside those of others' quantisers: one fp32 file, the same images to calibrate on.

    python -m benchmarks.quantisers [--only modelopt ...] [--images 256] [--seconds 5] [--out runs/int8] [--write]

The others are called as their guides do, with their defaults; what is not installed is left out and named. NNCF is no
extra of ours: `pip install nncf`. Files are measured in ONNX Runtime on test images, and timed there and in OpenVINO in
turns, one thread; alone on the machine. With --write, results go to results/quantisers.json and .md.
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
from onnxruntime.quantization import CalibrationDataReader, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from benchmarks.kept import Kept, Row
from benchmarks.students import command
from compress.cli.calibrating import read
from compress.cli.measuring import real_images
from compress.models.metadata import from_metadata
from exporters.calibration import Batches, Reference
from exporters.int8 import Target, quantise
from exporters.modelopt import calibrated as modelopt_calibrated
from exporters.reading import metadata_of, read_model
from profiles import machine

#: model -> its data, and the score
MODELS = {
    "embedded/fashion_wrn16_2": ("embedded/fashion", "accuracy"),
    "embedded/scenes_deeplab": ("embedded/fashion-scenes", "miou"),
}


class Reader(CalibrationDataReader):
    """Batches under the name of the file's input, and from the start again."""

    def __init__(self, source: Path, batches: Batches) -> None:
        self.name = onnx.load(source).graph.input[0].name
        self.batches = batches
        self.rewind()

    def rewind(self) -> None:
        self.left: Iterator[Any] = iter(self.batches())

    def get_next(self) -> dict[str, Any] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        batch = next(self.left, None)
        return None if batch is None else {self.name: batch}


def ours(target: Target) -> Callable[[Path, Path, Batches], None]:
    def make(source: Path, out: Path, batches: Batches) -> None:
        quantise(source, out, batches, target=target)

    return make


def onnxruntime(source: Path, out: Path, batches: Batches, **more: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready.onnx"
        quant_pre_process(source, ready, skip_symbolic_shape=True)
        quantize_static(ready, out, Reader(source, batches), **more)


def by_channel(source: Path, out: Path, batches: Batches) -> None:
    onnxruntime(source, out, batches, per_channel=True)


def modelopt(source: Path, out: Path, batches: Batches) -> None:
    """As `--quantizer modelopt`: fp32 around int8, where its default is fp16, which processors do not compute in."""
    with modelopt_calibrated(source, batches, target="tensorrt", calibrator="auto") as subject:
        subject.write(out)


def nncf(source: Path, out: Path, batches: Batches) -> None:
    import nncf  # pyright: ignore[reportMissingImports]

    model = onnx.load(source)
    name = model.graph.input[0].name
    images = [image[None] for batch in batches() for image in batch]
    made = nncf.quantize(model, nncf.Dataset(images, lambda image: {name: image}), subset_size=len(images))
    onnx.save(made, out)


#: row -> the module that makes it, and how
TOOLS: dict[str, tuple[str, Callable[[Path, Path, Batches], None]]] = {
    "ours-ort-cpu": ("onnxruntime", ours("ort-cpu")),
    "ours-ort-cpu-vnni": ("onnxruntime", ours("ort-cpu-vnni")),
    "ours-tensorrt": ("onnxruntime", ours("tensorrt")),
    "onnxruntime": ("onnxruntime", onnxruntime),
    "onnxruntime-per-channel": ("onnxruntime", by_channel),
    "modelopt": ("modelopt", modelopt),
    "nncf": ("nncf", nncf),
}
PACKAGES = {"modelopt": "nvidia-modelopt"}


def made(model: str, options: argparse.Namespace) -> Iterator[Row]:
    """The fp32 file, and each tool's; those of a tool that fails or is not here with the reason."""
    data, score = MODELS[model]
    folder = options.out / model.replace("/", "-")
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "fp32.onnx"
    command("export", model, "--images", data, "--out", source)
    metadata = metadata_of(read_model(source))
    card = from_metadata(metadata, source)
    assert card is not None
    with tempfile.TemporaryDirectory() as cache:
        images = read(data, data, card, options.images, Path(cache), None)
        tests = real_images(data, card).numpy()
        reference = Reference(source, lambda: [tests], len(tests))
        yield {"model": model, "tool": "fp32", "score": scored(source, data, score), "metric": score} | facts(source)
        for tool in options.only or TOOLS:
            package, make = TOOLS[tool]
            row = {"model": model, "tool": tool, "metric": score}
            if importlib.util.find_spec(package) is None:
                yield row | {"missing": f"{PACKAGES.get(package, package)} is not installed"}
                continue
            out = folder / f"{tool}.onnx"
            with contextlib.redirect_stdout(io.StringIO()):
                make(source, out, images.batches)
            describe(out, metadata)
            row |= {"version": version(PACKAGES.get(package, package)), "departure": reference.departure(out)}
            yield row | {"score": scored(out, data, score)} | facts(out)


def describe(path: Path, metadata: dict[str, str]) -> None:
    """The fp32 file's own words, which `eval` and `bench` go by and other tools may drop."""
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, metadata | {"precision": "int8"})
    onnx.save(model, path)


def facts(path: Path) -> Row:
    nodes = [node.op_type for node in onnx.load(path).graph.node]
    return {"path": str(path), "bytes": path.stat().st_size, "rounded": nodes.count("QuantizeLinear")}


def scored(path: Path, data: str, metric: str) -> float:
    return command("eval", path, "--data", data)[0]["metrics"][metric]


def timed(rows: list[Row], seconds: int) -> None:
    """Adds the median milliseconds of a picture in either runtime, all files of a model in turns."""
    for model in MODELS:
        mine = [row for row in rows if row["model"] == model and "path" in row]
        for runtime in ("onnxruntime", "openvino"):
            words = [*(row["path"] for row in mine), "--runtimes", runtime, "--threads", 1, "--duration", f"{seconds}s"]
            for row, one in zip(mine, command("bench", *words)[0]["results"], strict=True):
                row[f"{runtime}_ms"] = one["latency_ms_p50"]


def table(rows: list[Row], images: int) -> str:
    cpu = machine.describe()
    text = [
        "# int8 by several quantisers",
        "",
        f"One fp32 file a model and {images} in-domain images to calibrate on; scores on the embedded test images in "
        "ONNX Runtime; departure is the error of the logits as a share of their size (root of the sum of squares). "
        "Times are medians of one picture as a share of fp32's in the same runtime, in turns in one process, one "
        f"thread of {cpu['cpu']} ({', '.join(cpu['instructions'])}). "
        "Made by `python -m benchmarks.quantisers --write`.",
    ]
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == model]
        whole = next(row for row in mine if row["tool"] == "fp32")
        text += [
            "", f"## {model}", "",
            f"| made by | {whole['metric']} | departure | MB | roundings | time in ONNX Runtime | in OpenVINO |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]  # fmt: skip
        for row in mine:
            if "missing" in row:
                text.append(f"| {row['tool']} | {row['missing']} | | | | | |")
                continue
            times = [row[f"{runtime}_ms"] / whole[f"{runtime}_ms"] for runtime in ("onnxruntime", "openvino")]
            cells = [
                f"{row['tool']} {row.get('version', '')}".strip(), f"{row['score']:.1%}",
                f"{row['departure']:.4f}" if "departure" in row else "", f"{row['bytes'] / 1e6:.2f}",
                row["rounded"], *(f"{time:.2f}" for time in times),
            ]  # fmt: skip
            text.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(text) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=list(TOOLS), nargs="+", help="these tools only")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--seconds", type=int, default=5, help="of each file in each runtime")
    parser.add_argument("--out", type=Path, default=Path("runs/int8"))
    parser.add_argument("--write", action="store_true", help="write results/quantisers.json and .md")
    options = parser.parse_args()
    rows: list[Row] = []
    for model in MODELS:
        for row in made(model, options):
            print(row, file=sys.stderr, flush=True)
            rows.append(row)
    timed(rows, options.seconds)
    for row in rows:
        row.pop("path", None)
    kept = Kept("quantisers", write=options.write)
    kept.put(rows=rows, images=options.images, machine=machine.describe())
    kept.page(table(rows, options.images))


if __name__ == "__main__":
    main()
