"""Short scripts that run an exported file on a picture, with its runtime, NumPy and Pillow alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compress.errors import UsageError
from compress.files import write_text

#: begins every script, so that files of others are not replaced
HEADER = "# Written by compress export"
RUNS = {
    "onnx": (
        "import onnxruntime",
        "onnxruntime",
        'session = onnxruntime.InferenceSession(str(FILE), providers=["CPUExecutionProvider"])\n'
        "outputs = session.run(None, {session.get_inputs()[0].name: images})",
    ),
    "openvino": (
        "import openvino",
        "openvino",
        'model = openvino.Core().compile_model(str(FILE), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})\n'
        "outputs = list(model(images).values())",
    ),
}
#: upright RGB; transparency becomes white
OPEN = """\
image = ImageOps.exif_transpose(Image.open(sys.argv[1]))
if image.mode[0] in "IF":
    sys.exit("expected a picture of 8 bits per channel")
image = image.convert("RGBA")
image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
"""
CROP = """\
scale = min(min(image.size) / {resize}, image.width / {width}, image.height / {height})
size = {width}, {height}
left, top = (round((int(a / scale + 1e-6) - b) / 2) * scale for a, b in zip(image.size, size))
box = (max(0, left), max(0, top), min(left + size[0] * scale, image.width), min(top + size[1] * scale, image.height))
pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR, box=box))
"""
FIT = """\
scale = max(min(image.size) / {resize}, image.width / {width}.5, image.height / {height}.5)
small = image.resize([max(1, round(side / scale)) for side in image.size], Image.Resampling.BILINEAR)
pixels = np.pad(small, ((0, {height} - small.height), (0, {width} - small.width), (0, 0)), mode="edge")
"""
SHRINK = """\
scale = min(image.size) / {resize}
small = image.resize([max(1, round(side / scale)) for side in image.size], Image.Resampling.BILINEAR)
pixels = np.asarray(small)
"""
SCALE = "images = pixels.transpose(2, 0, 1)[None].astype(np.float32) / 255\n"
SOFTMAX = """\
exponents = np.exp(outputs[0][0] - outputs[0][0].max())
probabilities = exponents / exponents.sum()
"""
LIST = """\
for c in probabilities.argsort()[::-1][:5]:
    print(f"{probabilities[c]:.4f} {NAMES[c]}")
"""
TOP_K = """\
for c, probability in zip(outputs[0][0], outputs[1][0]):
    print(f"{probability:.4f} {NAMES[c]}")
"""
#: postprocessing of a file that predicts one class or several labels -> the rest of the script
CLASSIFICATION = {
    "none": SOFTMAX + LIST,
    "softmax": "probabilities = outputs[0][0]\n" + LIST,
    "argmax": "print(NAMES[int(outputs[0][0])])\n",
    "topk": TOP_K,
    "sigmoid": "probabilities = outputs[0][0]\n" + LIST,
    "threshold": "print(*[name for name, label in zip(NAMES, outputs[0][0]) if label], sep=', ')\n",
}
SIGMOID = "probabilities = 1 / (1 + np.exp(-outputs[0][0].astype(np.float64)))\n"
SAVE = """\
labels = Image.fromarray(labels.astype(np.uint8))
{fit}labels.save(sys.argv[2])  # class numbers
for c in np.unique(labels):
    print(f"{{(np.asarray(labels) == c).mean():.4f}} {{NAMES[c]}}")
"""
UNPAD = "labels = labels.crop((0, 0, *small.size)).resize(image.size, Image.Resampling.NEAREST)\n"


@dataclass(frozen=True)
class ScriptFacts:
    """What a script must know about the files of an export."""

    size: tuple[int, int]  #: (height, width) of the network's input in pixels
    resize: int | None  #: short side before the center crop; None: the longer side of `size`, or the shorter for maps
    names: Sequence[str]  #: of the classes; of background and foreground for one logit per pixel
    predicts_maps: bool
    threshold: float | None  #: probability above which a label or pixel is positive; None: the largest logit wins
    preprocess: bool  #: the file reads uint8 images of any size
    postprocess: str
    dynamic_size: bool
    batch_size: int  #: of a file with a fixed batch size; else 1


def script_path(file: Path) -> Path:
    """Return the path of the script beside a file."""
    return file.with_name(f"{file.name}.py")


def require_own_scripts(files: Sequence[tuple[Path, str]]) -> None:
    """Check that scripts can be written beside files of (path, format).

    Raises:
        UsageError: A format has no script, or a script would replace a file of others.
    """
    for file, kind in files:
        if kind not in RUNS:
            raise UsageError(
                f"--script: found {kind}, expected {' or '.join(RUNS)}; an engine needs CUDA's memory, see `compress "
                "predict`."
            )
        path = script_path(file)
        if not os.path.lexists(path):
            continue
        try:
            with open(path, encoding="utf-8") as script:
                is_own = script.readline().startswith(HEADER)
        except (OSError, UnicodeDecodeError):
            is_own = False
        if not is_own:
            raise UsageError(f"{path}: exists and was not written by this command; move it, or choose another --out.")


def write_script(file: Path, kind: str, facts: ScriptFacts) -> Path:
    """Write the script of an exported file beside it and return its path. Raises WriteError."""
    path = script_path(file)
    write_text(path, create_script(file.name, kind, facts))
    return path


def create_script(name: str, kind: str, facts: ScriptFacts) -> str:
    """Return the text of a script for the file `name` of a format."""
    statement, package, call = RUNS[kind]
    height, width = facts.size
    resize = facts.resize or (min(facts.size) if facts.predicts_maps else max(facts.size))
    if facts.preprocess:
        prepare = "images = np.asarray(image)[None]\n"
    else:
        template = CROP if not facts.predicts_maps else SHRINK if facts.dynamic_size else FIT
        prepare = template.format(height=height, width=width, resize=resize) + SCALE
    if facts.batch_size > 1:
        prepare += f"images = np.repeat(images, {facts.batch_size}, axis=0)  # the batch size of the file\n"
    output = " LABELS.png" if facts.predicts_maps else ""
    return (
        f"{HEADER}. Usage: python {script_path(Path(name)).name} PICTURE{output} (needs {package}, numpy, pillow)\n"
        f"import sys\nfrom pathlib import Path\n\nimport numpy as np\n{statement}\nfrom PIL import Image, ImageOps\n\n"
        f"FILE = Path(__file__).with_name({name!r})\nNAMES = {list(facts.names)!r}\n"
        f"{OPEN}{prepare}{call}\n{finish_script(facts)}"
    )


def finish_script(facts: ScriptFacts) -> str:
    """Return the part of a script that follows the call of the network."""
    kind = facts.postprocess
    if not facts.predicts_maps:
        return SIGMOID + LIST if kind == "none" and facts.threshold is not None else CLASSIFICATION[kind]
    if kind in ("argmax", "threshold"):
        labels = "labels = outputs[0][0]\n"
    elif facts.threshold is None:
        labels = "labels = outputs[0][0].argmax(0)\n"
    else:
        probability = "outputs[0][0, 0]" if kind == "sigmoid" else "1 / (1 + np.exp(-outputs[0][0, 0].astype(float)))"
        labels = f"labels = {probability} > {facts.threshold!r}\n"
    return labels + SAVE.format(fit="" if facts.preprocess else UNPAD)
