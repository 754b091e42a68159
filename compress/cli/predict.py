"""`compress predict`."""

from __future__ import annotations

from typing import Any

import click

from compress import api
from compress.cli import options, tables
from compress.cli.output import emit, print_status


@click.command()
@click.argument("model")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE…")
@click.option("--top", "top_k", type=options.COUNT, default=5, show_default=True,
              help="Number of classes to list for each image.")  # fmt: skip
@click.option("--out", "output_dir", type=options.PATH, metavar="DIR",
              help="Write predictions.json and, for segmentation, label maps and overlays as PNG.")  # fmt: skip
@options.data_root
@click.option(
    "--runtime", type=click.Choice(api.FILE_RUNTIMES), help="Runtime of an exported file.  [default: its own]"
)
@options.model_options()
@options.common_options
def predict(model: str, images: tuple[str, ...], as_json: bool, **settings: Any) -> None:
    """Predict the classes of IMAGEs with MODEL (a directory, checkpoint, name, or an exported file).

    An IMAGE is a file, a folder, a quoted glob or the name of a data set. Images are prepared as `eval` prepares them.

    \b
    Example:
      compress predict embedded/fashion_wrn16_2 embedded/photos
    """
    result = api.predict(model, images, **settings, progress=print_status)
    emit(result, as_json, tables.predictions)
    result.raise_failures()
