"""What a recipe file may not do without the user's consent: name code, or load pickles, which can run code.

The consent is a word on the command line (`--allow-code`, `--trust-pickle`) or the argument of the same name in Python.
Settings that the user gives directly, as options, `--set` or a mapping, need none.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from compress.config import Document, document_from_mapping, to_plain
from compress.config.yaml import Keys, format_message, get_nested, join_path
from compress.errors import UsageError
from compress.methods import METHODS
from compress.models.registry import MODULE_PREFIX, is_user_code
from compress.training.config import TrainConfig

#: settings that may name a method of the user; "*" is any key of a mapping or list
METHOD_SETTINGS = ("method.name", "methods.*")
#: settings that may name a model of the user
ARCHITECTURE_SETTINGS = ("student", "student.model", "students.*", "teachers.*.architecture")
#: the same, but an existing file or directory of that name is taken before code
MODEL_SETTINGS = ("student.weights", "teachers.*.model")
PICKLE_SETTINGS = ("teachers.*.trust_pickle",)


def require_consent(document: Document, *, allow_code: bool = False, trust_pickle: bool = False) -> None:
    """Raise UsageError, with file and line, for a setting that comes from a file and needs consent that was not given.

    Args:
        document: A recipe file, with the settings of the user over it. Nothing of it was imported yet.
        allow_code: Consent to import code that the file names.
        trust_pickle: Consent to load pickles if the file says so.
    """
    for keys, value in find_settings(document, PICKLE_SETTINGS):
        if value and document.is_from_file(keys) and not trust_pickle:
            message = "found true in a file, which lets a pickle run any code; give --trust-pickle if you trust it."
            raise UsageError(format_message(document.locate(keys), join_path(keys), message))
    for keys, name in find_code(document):
        if document.is_from_file(keys) and not allow_code:
            message = f"found {name!r} in a file, which would run this code; give --allow-code if you trust it."
            raise UsageError(format_message(document.locate(keys), join_path(keys), message))


def find_code(document: Document) -> Iterator[tuple[Keys, str]]:
    """Find the settings that name code of the user, `package.module:name`."""
    for keys, value in find_settings(document, METHOD_SETTINGS):
        name = str(keys[-1] if isinstance(document.data.get("methods"), dict) and keys[0] == "methods" else value)
        if ":" in name and name not in METHODS:
            yield keys, name
    architectures, models = (find_settings(document, patterns) for patterns in (ARCHITECTURE_SETTINGS, MODEL_SETTINGS))
    named = [*architectures, *((keys, value) for keys, value in models if not os.path.exists(str(value)))]
    for keys, value in named:
        if isinstance(value, str) and is_user_code(value) and not value.startswith(MODULE_PREFIX):
            yield keys, value


def find_settings(document: Document, patterns: tuple[str, ...]) -> Iterator[tuple[Keys, object]]:
    """Find the values at dotted paths, in which "*" is any key."""
    for pattern in patterns:
        found: list[Keys] = [()]
        for part in pattern.split("."):
            found = [
                (*keys, key)
                for keys in found
                for key in list_keys(get_nested(document.data, keys))
                if part in ("*", key)
            ]
        yield from ((keys, get_nested(document.data, keys)) for keys in found)


def list_keys(section: object) -> list[str | int]:
    """List the keys of a mapping or the positions of a list."""
    if isinstance(section, list):
        return list(range(len(section)))
    return list(section) if isinstance(section, dict) else []


def consent_options(config: TrainConfig) -> list[str]:
    """Return the options by which a child process may do what the user allowed this one to do."""
    document = document_from_mapping(to_plain(config))
    options = ["--allow-code"] if any(find_code(document)) else []
    if any(value for _, value in find_settings(document, PICKLE_SETTINGS)):
        options.append("--trust-pickle")
    return options
