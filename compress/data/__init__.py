"""Images from a directory, a known dataset, the hub, shards, or a Dataset of the user."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from compress.data.dataset import ImageSet, UnreadableImageError
from compress.data.embedded import EMBEDDED, open_embedded
from compress.data.folders import is_mask_folder, open_folder, open_mask_folder
from compress.data.hub import open_hub_dataset
from compress.data.nyu import FRAMES_FILE, NYU, open_nyu
from compress.data.shards import is_shard_spec, open_shards
from compress.data.torchvision_datasets import TORCHVISION_DATASETS, open_torchvision_dataset, resolve_data_root
from compress.data.user_datasets import PREFIX, open_registered, register_dataset
from compress.errors import UsageError, suggest_nearest
from compress.files import describe_file_type

#: what `compress datasets` lists: name -> description
DATASETS: dict[str, str] = {
    **{f"embedded/{name}": text for name, (_, text) in EMBEDDED.items()},
    **{name: spec.description for name, spec in TORCHVISION_DATASETS.items()},
    **{name: text for name, (_, text) in NYU.items()},
    "hf/NAME": "a dataset of the Hugging Face hub (extra `hub`); hf/NAME@SPLIT for a split",
    "FOLDER": "any folder of images, at any depth; for labels, one folder per class; for masks, images/ and masks/",
    "FILES.tar": "shards in webdataset's format: a file, a glob, or a brace range {000..099}",
}


def open_images(data: Any, *, root: Path | None = None, split: str = "train", labeled: bool = False) -> ImageSet:
    """Open a set of images.

    Args:
        data: A directory, a name in DATASETS, `hf/NAME`, `FILES.tar`, or an object: an ImageSet, or a torch Dataset or
            DataLoader (see `register_dataset` for the accepted samples).
        root: Directory of the datasets with a name; None: $COMPRESS_DATA or the cache directory of the user.
        split: "train" or "val", if the data has both. Objects have no splits.
        labeled: Use the subdirectories of a directory as classes, or its `masks` as targets. Named datasets always have
            labels, and masks if `labeled`.

    Returns:
        The images; nothing is decoded yet.

    Raises:
        UsageError: Nothing is found; the message names the searched location and the way to get it.

    Example:
        >>> len(open_images("embedded/fashion", split="val"))
        2000
    """
    if isinstance(data, ImageSet):
        return data
    if not isinstance(data, str | Path):
        data = register_dataset(data)
    spec = str(data)
    if not spec:
        raise UsageError("data: found an empty text, expected a directory, shards or a name (see `compress datasets`).")
    if spec.startswith(PREFIX):
        return open_registered(spec)
    if spec.startswith("embedded/"):
        return open_embedded(spec.removeprefix("embedded/"), split)
    if spec.startswith("hf/"):
        return open_hub_dataset(spec.removeprefix("hf/"), split)
    if is_shard_spec(spec):
        return open_shards(spec)
    path = Path(os.path.expanduser(spec))
    is_folder = os.path.isdir(path)  # false for any text that is no path
    if spec in NYU and (not is_folder or (path / FRAMES_FILE).is_file()):
        return open_nyu(spec, resolve_data_root(root), split=split, labeled=labeled)
    if is_folder and is_mask_folder(path):
        return open_mask_folder(path, split=split, labeled=labeled)
    if is_folder:
        return open_folder(path, split=split, labeled=labeled)
    if spec in TORCHVISION_DATASETS:
        return open_torchvision_dataset(spec, root=root, split=split, labeled=labeled)
    if os.path.exists(path):
        found = describe_file_type(path.stat().st_mode)
        raise UsageError(f"{spec}: found {found}, expected a directory, shards or a name (see `compress datasets`).")
    known = [*TORCHVISION_DATASETS, *NYU, *(f"embedded/{name}" for name in EMBEDDED)]
    hint = suggest_nearest(spec, known) or "."
    raise UsageError(f"{spec}: no such directory or dataset{hint} See `compress datasets`.")


__all__ = ["DATASETS", "ImageSet", "UnreadableImageError", "open_images", "register_dataset"]
