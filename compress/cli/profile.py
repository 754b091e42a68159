"""`compress profile`."""

from __future__ import annotations

from typing import Any

import click

from compress import api
from compress.cli import cost_tables, options
from compress.cli.output import emit, print_status


@click.command()
@click.argument("model")
@click.option("--depth", type=click.IntRange(min=0), help="Depth of the table of layers.  [default: 1]")
@click.option("--sizes", type=options.CommaList(item=options.Size()), default=(), metavar="HxW,...",
              help="Also count images of these sizes.")  # fmt: skip
@options.model_options()
@options.record_option
@options.common_options
def profile(model: str, as_json: bool, **settings: Any) -> None:
    """Count MACs, FLOPs, parameters and memory of MODEL: a directory, checkpoint, ONNX file or architecture.

    docs/costs.md defines what is counted.

    \b
    Example:
      compress profile wrn40_2 --classes 100 --depth 2
      compress profile torchvision/resnet50 --sizes 128x128,256x256,512x512
    """
    emit(api.profile(model, **settings, progress=print_status), as_json, cost_tables.profile)
