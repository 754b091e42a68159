"""METHODS: all distillation methods by their name on the command line.

Notation in this package: T teacher, S student, G generator, D discriminator; x images in [0, 1], z noise, y labels;
t and s the logits of teacher and student as rows [n, c].
"""

from __future__ import annotations

import dataclasses

from compress.errors import UsageError, suggest_nearest
from compress.methods.balanced import Balanced
from compress.methods.cmi import CMI
from compress.methods.crd import CRD
from compress.methods.dafl import DAFL
from compress.methods.deepinversion import DeepInversion
from compress.methods.dfad import DFAD
from compress.methods.dfnd import DFND
from compress.methods.dfq import DFQ
from compress.methods.fastdfkd import FastDFKD
from compress.methods.fitnet import FitNet
from compress.methods.kd import KD
from compress.methods.mosaic import MosaicKD
from compress.methods.rkd import RKD
from compress.methods.sskd import SSKD
from compress.methods.supervised import Supervised
from compress.methods.zskt import ZSKT
from compress.plugins import import_object

METHODS: dict[str, type] = {
    "mosaic": MosaicKD,
    # with given images
    "supervised": Supervised,
    "kd": KD,
    "balanced": Balanced,
    "fitnet": FitNet,
    "rkd": RKD,
    "crd": CRD,
    "sskd": SSKD,
    "dfnd": DFND,
    # data-free
    "dafl": DAFL,
    "zskt": ZSKT,
    "dfad": DFAD,
    "dfq": DFQ,
    # data-free, with an image pool
    "deepinversion": DeepInversion,
    "cmi": CMI,
    "fastdfkd": FastDFKD,
}

#: attributes that a method must have, besides being a dataclass (`engine.method.Method`)
REQUIRED_ATTRIBUTES = ("teachers", "needs", "tasks", "uses", "batch_size", "setup", "step")


def display_name(name: str) -> str:
    """Return the name of a method in reports: that of its class."""
    return METHODS[name].__name__ if name in METHODS else name.rpartition(":")[2]


def find_method(name: str) -> type:
    """Return the class of a method.

    Args:
        name: A name in METHODS, or `package.module:Class`.

    Raises:
        UsageError: If there is no such method, or the class is not a method.
    """
    if name in METHODS:
        return METHODS[name]
    if ":" not in name:
        raise UsageError(f"--method: found {name!r}{suggest_nearest(name, METHODS) or '.'} See `compress methods`.")
    cls = import_object(name, "package.module:Class")
    missing = [attribute for attribute in REQUIRED_ATTRIBUTES if not hasattr(cls, attribute)]
    if not isinstance(cls, type) or not dataclasses.is_dataclass(cls) or missing:
        reason = f"; missing attributes: {', '.join(missing)}" if missing else ""
        raise UsageError(
            f"{name}: expected a dataclass with the attributes of a method{reason}; see docs/your-own-method.md."
        )
    return cls
