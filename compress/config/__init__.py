"""YAML and `--set` -> plain dataclasses. Every error names its place, the setting, and the nearest valid one."""

from __future__ import annotations

from compress.config.checking import validate
from compress.config.document import Document, from_mapping, plain
from compress.config.fields import expected, field_help, paths, setting, settings
from compress.config.syntax import dump, parse, parse_set, read_yaml

__all__ = [
    "Document",
    "dump",
    "expected",
    "field_help",
    "from_mapping",
    "parse",
    "parse_set",
    "paths",
    "plain",
    "read_yaml",
    "setting",
    "settings",
    "validate",
]
