"""`compress methods`, `models`, `datasets` and `schema`."""

from __future__ import annotations

import json
from typing import Any

import click

from compress import api
from compress.cli import options, tables
from compress.cli.output import emit


@click.command()
@click.argument("name", required=False)
@options.common_options
def methods(name: str | None, as_json: bool) -> None:
    """List the distillation methods, or the settings of one.

    \b
    Example:
      compress methods
      compress methods mosaic
    """
    if name is None:
        emit({"methods": api.list_methods()}, as_json, tables.named_list("method"))
    else:
        emit(api.describe_method(name), as_json, tables.method_details)


@click.command()
@click.argument("prefix", required=False, default="")
@options.common_options
def models(prefix: str, as_json: bool) -> None:
    """List the models that a teacher or student can be, or those whose name begins with PREFIX.

    \b
    Example:
      compress models
      compress models torchvision/resnet
    """
    emit(api.list_models(prefix), as_json, tables.full_model_list if prefix else tables.model_list)


@click.command()
@options.common_options
def datasets(as_json: bool) -> None:
    """List the data sets that are known by name.

    \b
    Example:
      compress datasets
    """
    emit({"datasets": api.list_datasets()}, as_json, tables.named_list("data set"))


@click.command()
@click.argument("kind", type=click.Choice(["recipe", "sweep", "target"]), default="recipe")
@options.common_options
def schema(kind: Any, as_json: bool) -> None:
    """Print the JSON schema of a recipe, a sweep recipe or a target file, for editors.

    \b
    Example:
      compress schema
      compress schema sweep
    """
    click.echo(json.dumps(api.get_schema(kind), indent=None if as_json else 2))
