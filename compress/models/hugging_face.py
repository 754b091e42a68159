"""Folders of Hugging Face's transformers and of timm, with their image size, normalization and class names.

Nothing is downloaded, and no code in a folder is executed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from compress.errors import CompressError, UsageError, first_line
from compress.files import require_regular_file, sha256
from compress.models.architecture_index import tensor_shapes
from compress.models.card import (
    ASSUMED,
    FROM_FILE,
    SIGMOID_TASKS,
    ModelCard,
    check_image_size,
    with_sources,
)
from compress.models.checkpoints import names_in, read_checkpoint
from compress.models.outputs import resize_maps
from compress.models.overrides import ModelOverrides
from compress.models.registry import DEFAULT_CLASSES, build_on_meta, import_timm
from compress.models.serialization import CARD_HASH
from compress.models.state_dicts import INPUT_FIELDS, build_from_checkpoint

CONFIG_FILE = "config.json"
WEIGHT_PATTERNS = ("*.safetensors", "pytorch_model*.bin")
#: endings of the classes of transformers that are models of our tasks
MODEL_ENDINGS = ("ForImageClassification", "ForImageClassificationWithTeacher", "ForSemanticSegmentation")
#: names that transformers gives the classes of a model without names
DEFAULT_NAME = re.compile(r"LABEL_\d+")
#: normalization of a processor that says nothing
HALF = (0.5, 0.5, 0.5)
#: sizes up to which the processors of ConvNeXt and PoolFormer crop
MAX_CROPPED = 384
#: arguments of timm's factories that can leave a network as its name says
HARMLESS_ARGUMENTS = frozenset({"num_classes", "in_chans", "global_pool", "img_size", "drop_rate", "drop_path_rate"})
MAX_CONFIG_BYTES = 2**24


@dataclass(frozen=True)
class ImageInput:
    """What a processor does with images: fields of the card that it states, and the order of the colors."""

    stated: dict[str, Any]
    is_bgr: bool = False


class HuggingFaceModel(nn.Module):
    """A model of transformers as a network: images [n, 3, h, w] -> logits, maps at the size of the images."""

    def __init__(self, inner: nn.Module, *, is_bgr: bool) -> None:
        super().__init__()
        self.inner, self.is_bgr = inner, is_bgr

    def forward(self, x: Float[Tensor, "n c h w"]) -> Tensor:
        images = x.flip(1) if self.is_bgr else x
        return resize_maps(self.inner(pixel_values=images).logits, x)


def read_config(directory: Path) -> dict[str, Any] | None:
    """The `config.json` of a folder; None if there is none that is a JSON object."""
    path = directory / CONFIG_FILE
    if not path.is_file() or path.stat().st_size > MAX_CONFIG_BYTES:
        return None
    try:
        content = json.loads(require_regular_file(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def is_hugging_face_config(config: Mapping[str, Any] | None) -> bool:
    return config is not None and ("model_type" in config or "architectures" in config)


def is_timm_config(config: Mapping[str, Any] | None) -> bool:
    return config is not None and isinstance(config.get("architecture"), str) and "pretrained_cfg" in config


def list_weights(directory: Path) -> list[Path]:
    """The files of weights in a folder, safetensors before pickles."""
    files = (sorted(directory.glob(pattern)) for pattern in WEIGHT_PATTERNS)
    return next((found for found in files if found), [])


def find_weights(directory: Path) -> list[Path]:
    """The files of weights in a folder. Raises UsageError if there are none."""
    files = [require_regular_file(file) for file in list_weights(directory)]
    if not files:
        raise UsageError(
            f"{directory}: found no weights, expected model.safetensors or pytorch_model.bin beside config.json."
        )
    return files


def find_folder(path: Path) -> Path | None:
    """The folder whose `config.json` describes a file of weights; None if none does."""
    config = read_config(path.parent)
    is_described = is_hugging_face_config(config) or is_timm_config(config) or CARD_HASH in (config or {})
    return path.parent if is_described and path in list_weights(path.parent) else None


def load_timm_folder(directory: Path, overrides: ModelOverrides) -> tuple[nn.Module, ModelCard]:
    """Load a folder that timm saved for the hub."""
    (path, *_), config = find_weights(directory), read_config(directory) or {}
    weights = read_checkpoint(path, trust_pickle=overrides.trust_pickle, ema=overrides.ema)
    architecture = f"timm/{config['architecture'].partition('.')[0]}"
    arguments = config.get("model_args") or {}
    if not is_named_network(architecture, arguments):
        raise UsageError(
            f"{directory / CONFIG_FILE}: the network was built with model_args {sorted(arguments)[:5]}, which a name "
            "of timm does not contain; give a factory with --arch package.module:factory."
        )
    published = config["pretrained_cfg"] if isinstance(config["pretrained_cfg"], dict) else {}
    names = config.get("label_names") or published.get("label_names")
    weights = replace(
        weights, options=(published, *weights.options), class_names=names_in({"names": names}) or weights.class_names
    )
    return build_from_checkpoint(path, weights, replace(overrides, architecture=overrides.architecture or architecture))


def is_named_network(architecture: str, arguments: Mapping[str, Any]) -> bool:
    """Whether timm builds the same network without the arguments that were stored with the weights."""
    if not arguments.keys() <= HARMLESS_ARGUMENTS:
        return False
    given = {key: value for key, value in arguments.items() if key not in ("num_classes", "in_chans")}
    channels = 1 if arguments.get("in_chans") == 1 else 3
    plain = build_on_meta(architecture, classes=DEFAULT_CLASSES, channels=channels)
    try:
        with torch.device("meta"):
            name = architecture.removeprefix("timm/")
            built = import_timm().create_model(name, num_classes=DEFAULT_CLASSES, in_chans=channels, **given)
    except (RuntimeError, TypeError, ValueError, AssertionError):
        return False
    return repr(built) == repr(plain) and tensor_shapes(built.state_dict()) == tensor_shapes(plain.state_dict())


def load_hugging_face(
    path: Path, overrides: ModelOverrides, *, card: ModelCard | None = None
) -> tuple[nn.Module, ModelCard]:
    """Load a folder of transformers: image classification or semantic segmentation.

    Args:
        path: The folder.
        overrides: Facts from the user.
        card: The known card. None: run the network and infer the card.

    Raises:
        UsageError: It is a model for another task, or transformers is not installed.
        CompressError: The weights are damaged or do not fit.
    """
    kind = find_model_class(path, read_config(path) or {})
    for file in find_weights(path):
        read_checkpoint(file)  # refuses damaged and unsafe files in a sentence
    with isolated_transformers():
        inner = load_inner(path, kind)
        image_input = read_image_input(path, inner.config)
    model = HuggingFaceModel(inner.float(), is_bgr=image_input.is_bgr).eval()
    return model, card or infer_folder_card(model, path, overrides, image_input)


def find_model_class(path: Path, config: Mapping[str, Any]) -> type[Any]:
    transformers = import_transformers()
    architectures = config.get("architectures")
    name = architectures[0] if isinstance(architectures, list) and architectures else None
    if not isinstance(name, str) or not name.endswith(MODEL_ENDINGS):
        raise UsageError(
            f"{path}: found a model of the class {name}, expected image classification or semantic segmentation "
            "(a class of transformers that ends in ForImageClassification or ForSemanticSegmentation)."
        )
    if (path / "adapter_config.json").exists():
        raise UsageError(f"{path}: found an adapter (PEFT); merge it into its base model, and save that.")
    if "quantization_config" in config:
        raise UsageError(f"{path}: the weights are quantized; give the float model instead.")
    kind = getattr(transformers, name, None) if name.isidentifier() else None
    if not isinstance(kind, type) or not issubclass(kind, transformers.PreTrainedModel):
        raise UsageError(
            f"{path}: {name} is no class of transformers {transformers.__version__}; code in a folder is never "
            "executed, so give a factory with package.module:factory."
        )
    return kind


def load_inner(path: Path, kind: type[Any]) -> Any:
    """Load weights strictly: transformers would fill missing ones with random numbers."""
    try:
        model, info = kind.from_pretrained(
            path, local_files_only=True, weights_only=True, output_loading_info=True, dtype=torch.float32
        )
    except Exception as error:  # the library raises errors of every kind for damaged files
        raise CompressError(
            f"{path}: transformers cannot load it ({first_line(error, 200)}); copy it again."
        ) from error
    wrong = [*info["missing_keys"], *(str(key) for key in info.get("mismatched_keys", ()))]
    if wrong:
        raise CompressError(
            f"{path}: the weights do not fit {kind.__name__}: {len(wrong)} are missing or of another shape, such as "
            f"{sorted(wrong)[0]}; use the folder of a trained model."
        )
    return model


def infer_folder_card(
    model: HuggingFaceModel, path: Path, overrides: ModelOverrides, image_input: ImageInput
) -> ModelCard:
    """The card of a folder: what it states, and what the network answers to two images."""
    config: Any = model.inner.config
    stated = image_input.stated
    size = overrides.image_size or stated.get("image_size")
    if size is None:
        raise UsageError(f"{path}: the image size is unknown; give it with --image-size HxW.")
    check_image_size(size, str(path))
    logits = probe_logits(model, path, size)
    names = names_in({"id2label": config.id2label})
    if names is not None and (all(map(DEFAULT_NAME.fullmatch, names)) or len(names) != logits.shape[1]):
        names = None
    task = "segmentation" if logits.dim() == 4 else "classification"
    if config.problem_type == "multi_label_classification":
        task = SIGMOID_TASKS.get(task, task)
    assumed = [name for name in INPUT_FIELDS if name not in stated]
    fields: dict[str, Any] = {"image_size": size, "mean": HALF, "std": HALF} | stated
    return ModelCard(
        f"transformers/{type(model.inner).__name__}", int(logits.shape[1]), task=task, class_names=names,
        sha256=hash_weights(path), provenance=with_sources(
            with_sources({"source": path.name}, FROM_FILE, *stated), ASSUMED, *assumed
        ), **fields,
    )  # fmt: skip


def probe_logits(model: HuggingFaceModel, path: Path, size: tuple[int, int]) -> Tensor:
    """Logits for two images. Raises CompressError if the network does not answer with one row per image."""
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            logits = model(images)
    except CompressError:
        raise
    except Exception as error:  # networks raise errors of every kind for other sizes
        raise CompressError(
            f"{path}: fails on images of {size[0]}x{size[1]} ({first_line(error)}); give its size with --image-size."
        ) from error
    if logits.shape not in ((2, logits.shape[1]), (2, logits.shape[1], *size)):
        raise CompressError(f"{path}: found output {list(logits.shape)}, expected [2, classes] or a map of them.")
    return logits


def hash_weights(directory: Path) -> str:
    """The hash of the only file of weights, or the hash of the hashes of several."""
    hashes = [sha256(file) for file in find_weights(directory)]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def read_image_input(path: Path, config: Any) -> ImageInput:
    """The preprocessing in a folder; without it, only the image size of the model is known."""
    stated: dict[str, Any] = {}
    size = getattr(config, "image_size", None)
    if isinstance(size, int):
        stated["image_size"] = (size, size)
    elif isinstance(size, list | tuple) and len(size) == 2:
        stated["image_size"] = tuple(size)
    if not any((path / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")):
        return ImageInput(stated)
    try:
        processor: Any = import_transformers().AutoImageProcessor.from_pretrained(
            path, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # as above
        raise CompressError(
            f"{path}: its preprocessor_config.json cannot be read ({first_line(error, 200)})."
        ) from error
    return ImageInput(stated | read_size(processor) | read_normalization(processor), is_bgr=does_flip_colors(processor))


def does_flip_colors(processor: Any) -> bool:
    return bool(getattr(processor, "do_flip_channel_order", False))


def read_size(processor: Any) -> dict[str, Any]:
    """Image size and short side before the crop."""
    size, crop = plain_size(processor, "size"), plain_size(processor, "crop_size")
    if not getattr(processor, "do_resize", True) or not size:
        return {}
    edge, share = size.get("shortest_edge"), getattr(processor, "crop_pct", None)
    if "height" in size:
        resize, inner = None, (size["height"], size["width"])
    elif edge is None:
        return {}
    elif share and edge < MAX_CROPPED:
        resize, inner = math.floor(edge / share), (edge, edge)
    else:
        resize, inner = edge, (edge, edge)
    if getattr(processor, "do_center_crop", False) and "height" in crop:
        return {"image_size": (crop["height"], crop["width"]), "resize": resize or min(inner)}
    return {"image_size": inner, "resize": resize}


def plain_size(processor: Any, name: str) -> dict[str, int]:
    value = getattr(processor, name, None)
    items = (
        dict(value).items() if isinstance(value, Mapping) else vars(value).items() if hasattr(value, "__dict__") else ()
    )
    return {key: side for key, side in items if isinstance(side, int)}


def read_normalization(processor: Any) -> dict[str, Any]:
    """Mean and standard deviation for images in [0, 1]; a processor scales images in [0, 255] first."""
    factor = getattr(processor, "rescale_factor", 1 / 255) if getattr(processor, "do_rescale", True) else 1.0
    offset = 1.0 if getattr(processor, "rescale_offset", False) else 0.0
    mean, std = (0.0,) * 3, (1.0,) * 3
    if getattr(processor, "do_normalize", True) and getattr(processor, "image_mean", None) is not None:
        mean, std = tuple(processor.image_mean), tuple(processor.image_std)
    scale = 255 * factor
    return {"mean": tuple((m + offset) / scale for m in mean), "std": tuple(s / scale for s in std)}


@contextlib.contextmanager
def isolated_transformers() -> Iterator[None]:
    """Prevent downloads, and hide the reports and progress bars of transformers; what matters becomes an error."""
    logging = import_transformers().utils.logging
    from huggingface_hub import constants

    level, shows_progress, is_offline = (
        logging.get_verbosity(), logging.is_progress_bar_enabled(), constants.HF_HUB_OFFLINE
    )  # fmt: skip
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = is_offline
        logging.set_verbosity(level)
        if shows_progress:
            logging.enable_progress_bar()


def import_transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise UsageError(
            "transformers is not installed; run `pip install 'compress-distill[transformers]'`."
        ) from error
    return transformers
