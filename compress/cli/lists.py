"""`compress models | datasets | methods`: what can be named on the command line."""

from __future__ import annotations

import click

from compress.cli.old_options import common, emit
from compress.cli.tables import format_table
from compress.errors import UsageError


@click.command()
@click.argument("prefix", required=False, default="")
@common
def models(prefix: str, as_json: bool) -> None:
    """List the models a teacher or student can be, or those whose name begins with PREFIX.

    \b
    Example:
      compress models
      compress models torchvision/resnet
    """
    from compress.models.catalogue import list_models

    found = list_models()
    if prefix:
        found = {kind: [row for row in rows if row["name"].startswith(prefix)] for kind, rows in found.items()}
        if not any(found.values()):
            raise UsageError(f"{prefix}: no model's name begins so; see `compress models`.")
    rows = [[row["name"], row["about"]] for kind, all_ in found.items() for row in all_ if prefix or "/" not in kind]
    if not prefix:
        rows += [
            [f"{kind}NAME", f"{len(all_)} models: compress models {kind}"]
            for kind, all_ in found.items()
            if "/" in kind
        ]
        rows.append(["package.module:factory", "a network of your own: a function that returns a torch.nn.Module"])
    emit(found, as_json=as_json, text=format_table(rows, ["model", "what it is"]))


@click.command()
@common
def datasets(as_json: bool) -> None:
    """List the data sets known by name.

    \b
    Example:
      compress datasets
    """
    from compress.data import NAMES

    rows = [[name, str(about)] for name, about in NAMES.items()]
    result = {"datasets": [{"name": name, "about": about} for name, about in rows]}
    emit(result, as_json=as_json, text=format_table(rows, ["data set", "what it is"]))


@click.command()
@click.argument("name", required=False)
@common
def methods(name: str | None, as_json: bool) -> None:
    """List the distillation methods, or the settings of one.

    \b
    Example:
      compress methods
      compress methods mosaic
    """
    from compress.cli.settings import headline, settings
    from compress.methods import METHODS, find_method

    if name is None:
        rows = [[key, headline(method)] for key, method in METHODS.items()]
        result = {"methods": [{"name": key, "about": about} for key, about in rows]}
        emit(result, as_json=as_json, text=format_table(rows, ["method", "what it does"]))
        return
    method = find_method(name)
    fields = settings(method)
    result = {"name": name, "about": headline(method), "settings": [vars(field) for field in fields]}
    rows = [[field.name, str(field.default), field.help] for field in fields]
    listed = format_table(rows, ["setting", "default", "what it is"])
    text = f"{name}: {result['about']}\n\n{listed}\n\nSet one with --set method.NAME=VALUE."
    emit(result, as_json=as_json, text=text)
