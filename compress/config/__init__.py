"""Recipes: YAML and `--set` overrides, validated into dataclasses."""

from compress.config.validation import (
    add_defaults,
    check_range,
    field_descriptions,
    json_schema,
    setting,
    setting_paths,
    setting_types,
    validate,
)
from compress.config.yaml import (
    Document,
    document_from_mapping,
    dump_yaml,
    load_yaml,
    parse_overrides,
    parse_yaml,
    to_plain,
)

__all__ = [
    "Document",
    "add_defaults",
    "check_range",
    "document_from_mapping",
    "dump_yaml",
    "field_descriptions",
    "json_schema",
    "load_yaml",
    "parse_overrides",
    "parse_yaml",
    "setting",
    "setting_paths",
    "setting_types",
    "to_plain",
    "validate",
]
