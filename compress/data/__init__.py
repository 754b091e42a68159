"""Images from a folder, a data set known by name, the hub, or shards.

NAMES is what `compress datasets` lists.
"""

from __future__ import annotations

from pathlib import Path

from compress.data.dataset import ImageSet, UnreadableImageError
from compress.data.embedded import EMBEDDED
from compress.data.folders import is_mask_folder, open_folder, open_mask_folder
from compress.data.hub import open_hub_dataset
from compress.data.nyu import FRAMES, NYU, open_nyu
from compress.data.shards import is_shard_spec, open_shards
from compress.data.torchvision_datasets import TORCHVISION_DATASETS, open_torchvision_dataset, resolve_data_root
from compress.errors import UsageError, suggest_nearest

NAMES: dict[str, str] = {
    **{f"embedded/{name}": text for name, (_, text) in EMBEDDED.items()},
    **{name: one.description for name, one in TORCHVISION_DATASETS.items()},
    **{name: text for name, (_, text) in NYU.items()},
    "hf/NAME": "a data set of the Hugging Face hub (extra `hub`); hf/NAME@SPLIT for a split",
    "FOLDER": "any folder of images, at any depth; for labels, one folder a class; for masks, images/ and masks/",
    "FILES.tar": "webdataset shards (extra `shards`): a file, a glob, or a brace range {000..099}",
}


def open_images(spec: str, *, root: Path | None = None, split: str = "train", labeled: bool = False) -> ImageSet:
    """The images that `spec` names; `split` is "train" or "val" where the data has both.

    With `labeled` a folder's subfolders are its classes, or its `images` have `masks`; data sets known by name always
    bring their labels, and their masks with `labeled`.
    Raises UsageError where nothing is found, saying where it was looked for and how to get it.
    """
    if spec.startswith("embedded/"):
        name = spec.removeprefix("embedded/")
        if name not in EMBEDDED:
            raise UsageError(
                f"{spec}: no such embedded data{suggest_nearest(name, EMBEDDED) or '.'} Known: {', '.join(EMBEDDED)}."
            )
        return EMBEDDED[name][0](split)
    if spec.startswith("hf/"):
        return open_hub_dataset(spec.removeprefix("hf/"), split)
    if is_shard_spec(spec):
        return open_shards(spec)
    path = Path(spec).expanduser()
    if spec in NYU and (not path.is_dir() or (path / FRAMES).is_file()):
        return open_nyu(spec, resolve_data_root(root), split=split, labeled=labeled)
    if path.is_dir() and is_mask_folder(path):
        return open_mask_folder(path, split=split, labeled=labeled)
    if path.is_dir():
        return open_folder(path, split=split, labeled=labeled)
    if spec in TORCHVISION_DATASETS:
        return open_torchvision_dataset(spec, root=root, split=split, labeled=labeled)
    if path.exists():
        raise UsageError(f"{spec}: a file; expected a folder, a .tar of shards, or a name (see `compress datasets`).")
    known = [*TORCHVISION_DATASETS, *NYU, *(f"embedded/{name}" for name in EMBEDDED)]
    raise UsageError(
        f"{spec}: no such folder or data set{suggest_nearest(spec, known) or '.'} See `compress datasets`."
    )


__all__ = ["NAMES", "UnreadableImageError", "ImageSet", "open_images"]
