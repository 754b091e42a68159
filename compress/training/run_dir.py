"""Rules of a run directory: what a run is identified by, who may continue it, and what `--fresh` removes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress.config import dump_yaml, to_plain
from compress.data import open_images
from compress.errors import UsageError
from compress.files import read_json_object, sha256, write_json, write_text
from compress.models.loading import RUN_SUBDIRS, embedded_dir
from compress.models.serialization import CARD_FILE, is_model_directory, package_versions
from compress.own_files import CREATED, LOCK, RECIPE, RUN_FILE, is_run_dir, list_run_files, remove_run_files
from compress.training.config import TrainConfig
from compress.training.stored_recipes import config_differences, read_stored_recipe

SCHEMA = 1
#: suffix of a setting that names a model: what its card says
CARD = " card"
#: setting of a data set -> which of its splits a run reads, and whether its labels
DATA_SETS = {
    "data.unlabeled": ("train", False), "data.labeled": ("train", True), "data.validation": ("val", True),
}  # fmt: skip
#: files that belong to a model file: weights beside the graph
COMPANIONS = {".xml": ".bin", ".onnx": ".onnx.data"}
#: names and sizes of weight files in directories of other libraries
MODEL_FILES = ("*.json", "*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt")

Identity = dict[str, str]


def identify_run(
    config: TrainConfig, teachers: Sequence[nn.Module], known: dict[str, Identity] | None = None
) -> Identity:
    """Return the content that a run learns from: setting -> sha256 of a model, or of the listing of a data set.

    A listing has names, sizes and times of the files, relative to their directory, so models and data can be moved.

    Args:
        config: Settings of the run.
        teachers: The loaded teachers; their tensors count where a name or code loads them.
        known: Results of earlier calls, to read nothing twice; it is extended.

    Raises:
        UsageError: A data set does not exist.
    """
    known = {} if known is None else known
    networks = {f"teachers.{i}.model": net for i, net in enumerate(teachers)}
    identity: Identity = {}
    for path, spec in list_sources(config).items():
        if path in DATA_SETS:
            key, identify = f"{path}={spec}", partial(identify_data, config, path, spec)
        else:
            key, identify = f"{spec}", partial(identify_model, path, spec, networks.get(path))
        if key not in known:
            known[key] = identify()
        identity |= known[key]
    return identity


def list_sources(config: TrainConfig) -> dict[str, str]:
    """Return the models and data sets that a run reads: setting -> its value."""
    specs: dict[str, str | None] = {f"teachers.{i}.model": one.model for i, one in enumerate(config.teachers)}
    specs |= {"student.weights": config.student.weights}
    specs |= {path: getattr(config.data, path.partition(".")[2]) for path in DATA_SETS}
    return {path: spec for path, spec in specs.items() if spec is not None}


def identify_data(config: TrainConfig, path: str, spec: str) -> Identity:
    split, labeled = DATA_SETS[path]
    return {path: open_images(spec, root=config.data.root, split=split, labeled=labeled).content_hash()}


def identify_model(path: str, spec: str, network: nn.Module | None) -> Identity:
    """Return the hash of a model's weights, and of what its card says besides them, such as the normalization."""
    source = find_model(spec)
    if source is None:
        return {} if network is None else {path: hash_tensors(network)}
    if source.is_file():
        return {path: hash_files([source, source.with_suffix(COMPANIONS.get(source.suffix.lower(), source.suffix))])}
    card = read_json_object(source / CARD_FILE)
    facts = {key: value for key, value in card.items() if key not in ("metrics", "provenance", "card_sha256", "format")}
    weights = card.get("sha256")
    if not isinstance(weights, str):
        weights = hash_files(sorted(file for pattern in MODEL_FILES for file in source.glob(pattern)))
    return {path: weights, f"{path}{CARD}": hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()}


def hash_files(files: Sequence[Path]) -> str:
    """Return the sha256 of a file; of several files, that of theirs."""
    digests = [sha256(file) for file in dict.fromkeys(files) if file.is_file()]
    return digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()


def hash_tensors(network: nn.Module) -> str:
    """Return the sha256 of the names and values of a network's tensors."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def find_model(spec: str) -> Path | None:
    """Return the file or directory of a model; None for a name and for code."""
    path = Path(os.path.expanduser(spec))
    if spec.startswith("embedded/"):
        path = embedded_dir() / spec.removeprefix("embedded/")
    if not os.path.exists(path):
        return None
    candidates = (path, *(path / name for name in RUN_SUBDIRS))
    return next((one for one in candidates if is_model_directory(one)), path)


def read_identity(run_dir: Path) -> Identity:
    """Return the identity that a run was begun with.

    A run of release 0.1 has none; then it is that of the teachers in the card of its student, if there is one.
    """
    stored = read_json_object(run_dir / RUN_FILE).get("identity")
    if isinstance(stored, dict):
        return {str(key): str(value) for key, value in stored.items()}
    for name in ("best", "last"):
        provenance = read_json_object(run_dir / name / CARD_FILE).get("provenance")
        teachers = provenance.get("teachers") if isinstance(provenance, dict) else None
        if isinstance(teachers, list):
            return {
                f"teachers.{i}.model": one["sha256"]
                for i, one in enumerate(teachers)
                if isinstance(one, dict) and isinstance(one.get("sha256"), str) and find_model(str(one.get("model")))
            }
    return {}


def run_differences(run_dir: Path, settings: dict[str, Any], stored: dict[str, Any], identity: Identity) -> list[str]:
    """List why a run is another one than that in a directory: other settings, another teacher or other data.

    Args:
        run_dir: Run directory.
        settings: Resolved settings of this run, as `to_plain` returns them.
        stored: Those of the run in the directory, from `read_stored_recipe`.
        identity: That of this run; a path does not matter where both are known.
    """
    theirs = read_identity(run_dir)
    both = [path for path in identity if path in theirs]
    changed = dict.fromkeys(path.removesuffix(CARD) for path in both if identity[path] != theirs[path])
    differences = config_differences(settings, stored, same_content=[path for path in both if path not in changed])
    named = {text.partition(":")[0] for text in differences}
    return [*differences, *(f"{path}: changed since that run began" for path in changed if path not in named)]


def validate_run_dir(
    run_dir: Path, config: TrainConfig, *, resume: bool | None, identity: Identity | None = None
) -> None:
    """Check that a run may begin or continue in a directory.

    Args:
        run_dir: Run directory.
        config: Resolved settings of the run.
        resume: None continues the run of this config, or begins one; True requires a run; False replaces it.
        identity: What it learns from; see `identify_run`.

    Raises:
        UsageError: The directory holds a run with other settings, another teacher or other data, or none although
            `resume` requires one, or files of somebody else that the run would replace or remove.
    """
    if resume is False:
        require_only_run_files(run_dir, config)
        return
    recipe = run_dir / RECIPE
    if recipe.exists():
        differences = run_differences(run_dir, to_plain(config), read_stored_recipe(recipe, config), identity or {})
        if differences:
            raise UsageError(
                f"{run_dir}: holds a run of another recipe, teacher or data ({'; '.join(differences[:3])}); choose "
                "another --out, give the same to continue, or --fresh to replace it."
            )
    elif resume:
        raise UsageError(f"{run_dir}: found no run to resume; remove --resume to begin one.")
    if not is_run_dir(run_dir):
        require_free_names(run_dir)


def require_free_names(run_dir: Path) -> None:
    """Raise UsageError if a new run would write where files of somebody else are."""
    taken = next((run_dir / name for name in CREATED if os.path.lexists(run_dir / name)), None)
    if taken is not None:
        raise UsageError(f"{taken}: exists, but no run wrote it, and this run would write there; choose another --out.")


def require_only_run_files(run_dir: Path, config: TrainConfig) -> None:
    """Raise UsageError if `--fresh` would meet files that no run wrote, or remove the teacher or the data."""
    if not run_dir.exists():
        return
    own, foreign = list_run_files(run_dir)
    if foreign or (own and not is_run_dir(run_dir) and [path.name for path in own] != [LOCK]):
        first, *rest = foreign or own
        more = f" and {len(rest)} more files" if rest else ""
        raise UsageError(
            f"{run_dir}: --fresh removes only what a run wrote, and found {first.relative_to(run_dir)}{more}, which no "
            "run wrote; move them or choose another --out."
        )
    home = Path(os.path.realpath(run_dir))
    for path, spec in list_sources(config).items():
        local = Path(os.path.realpath(os.path.expanduser(spec)))
        if (os.path.lexists(local) or spec.endswith(".tar")) and local.is_relative_to(home):
            raise UsageError(f"{path}: {spec} lies in {run_dir}, which --fresh empties; choose another --out.")


def initialize_run_dir(run_dir: Path, config: TrainConfig, identity: Identity, *, fresh: bool) -> None:
    """Write the identity and the recipe of a new run; with `fresh`, the files of the old one are removed first.

    A run whose teacher or data were moved gets a recipe with the new paths.
    """
    if fresh:
        remove_run_files(run_dir)
    recipe = run_dir / RECIPE
    if fresh or not (recipe.exists() and (run_dir / RUN_FILE).exists()):
        write_json(run_dir / RUN_FILE, {"schema": SCHEMA, "identity": identity})
    if not fresh and recipe.exists() and not config_differences(to_plain(config), read_stored_recipe(recipe, config)):
        return
    versions = ", ".join(f"{name} {version}" for name, version in package_versions().items())
    lines = [f"# {datetime.now(UTC):%Y-%m-%d %H:%M} UTC; {versions}"]
    data = (config.data.unlabeled, config.data.labeled, config.data.validation)
    if any(str(spec).startswith(("module:", "dataset:")) for spec in (*(t.model for t in config.teachers), *data)):
        lines.append("# module:HASH and dataset:HASH were Python objects: this file alone does not reproduce the run.")
    write_text(recipe, "\n".join([*lines, dump_yaml(config)]))
