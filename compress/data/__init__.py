"""Images from a folder, a data set known by name, the hub, or shards.

NAMES is what `compress datasets` lists.
"""

from __future__ import annotations

from pathlib import Path

from compress.data.embedded import EMBEDDED
from compress.data.folders import folder_images
from compress.data.hub import hub_images
from compress.data.images import BadImage, Images
from compress.data.named import NAMED, data_root, named_images
from compress.data.nyu import FRAMES, NYU, nyu_images
from compress.data.pairs import is_pairs, pair_images
from compress.data.shards import is_shards, shard_images
from compress.errors import UsageError, nearest

NAMES: dict[str, str] = {
    **{f"embedded/{name}": text for name, (_, text) in EMBEDDED.items()},
    **{name: one.description for name, one in NAMED.items()},
    **{name: text for name, (_, text) in NYU.items()},
    "hf/NAME": "a data set of the Hugging Face hub (extra `hub`); hf/NAME@SPLIT for a split",
    "FOLDER": "any folder of images, at any depth; for labels, one folder a class; for masks, images/ and masks/",
    "FILES.tar": "webdataset shards (extra `shards`): a file, a glob, or a brace range {000..099}",
}


def open_images(spec: str, *, root: Path | None = None, split: str = "train", labelled: bool = False) -> Images:
    """The images that `spec` names; `split` is "train" or "val" where the data has both.

    With `labelled` a folder's subfolders are its classes, or its `images` have `masks`; data sets known by name always
    bring their labels, and their masks with `labelled`.
    Raises UsageError where nothing is found, saying where it was looked for and how to get it.
    """
    if spec.startswith("embedded/"):
        name = spec.removeprefix("embedded/")
        if name not in EMBEDDED:
            raise UsageError(
                f"{spec}: no such embedded data{nearest(name, EMBEDDED) or '.'} Known: {', '.join(EMBEDDED)}."
            )
        return EMBEDDED[name][0](split)
    if spec.startswith("hf/"):
        return hub_images(spec.removeprefix("hf/"), split)
    if is_shards(spec):
        return shard_images(spec)
    path = Path(spec).expanduser()
    if spec in NYU and (not path.is_dir() or (path / FRAMES).is_file()):
        return nyu_images(spec, data_root(root), split=split, labelled=labelled)
    if path.is_dir() and is_pairs(path):
        return pair_images(path, split=split, labelled=labelled)
    if path.is_dir():
        return folder_images(path, split=split, labelled=labelled)
    if spec in NAMED:
        return named_images(spec, root=root, split=split, labelled=labelled)
    if path.exists():
        raise UsageError(f"{spec}: a file; expected a folder, a .tar of shards, or a name (see `compress datasets`).")
    known = [*NAMED, *NYU, *(f"embedded/{name}" for name in EMBEDDED)]
    raise UsageError(f"{spec}: no such folder or data set{nearest(spec, known) or '.'} See `compress datasets`.")


__all__ = ["NAMES", "BadImage", "Images", "open_images"]
