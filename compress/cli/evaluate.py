"""`compress eval`."""

from __future__ import annotations

from typing import Any

import click

from compress import api
from compress.cli import options, tables
from compress.cli.output import emit, print_status


@click.command(name="eval")
@click.argument("model")
@click.option("--data", "--val", "data", required=True, metavar="DATA",
              help="Labeled images: one directory per class, images/ and masks/, or a name.")  # fmt: skip
@options.label_order
@options.data_root
@click.option("--max-unreadable", type=options.Number(0, 1), default=0.01, show_default=True,
              help="Maximum share of unreadable images.")  # fmt: skip
@click.option(
    "--runtime", type=click.Choice(api.FILE_RUNTIMES), help="Runtime of an exported file.  [default: its own]"
)
@options.model_options()
@options.record_option
@options.common_options
def evaluate(model: str, data: str, as_json: bool, **settings: Any) -> None:
    """Evaluate MODEL (a directory, checkpoint, name, or an exported .onnx, .xml or .engine file) on labeled images.

    \b
    Example:
      compress eval embedded/fashion_wrn16_2 --data embedded/fashion
    """
    emit(api.evaluate(model, data, **settings, progress=print_status), as_json, tables.evaluation)
