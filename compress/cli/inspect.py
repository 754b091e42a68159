"""`compress inspect`."""

from __future__ import annotations

from typing import Any

import click

from compress import api
from compress.cli import options, tables
from compress.cli.output import emit, print_status


@click.command()
@click.argument("checkpoint")
@click.option("--ood", "--unlabeled", "unlabeled", metavar="DATA", help="Unlabeled images to predict.")
@click.option("--ood-samples", "samples", type=options.COUNT,
              help="Number of images to predict.  [default: 2000, fewer for segmentation]")  # fmt: skip
@click.option("--reference", metavar="DATA", help="Images to compare with: in-domain or generated.")
@click.option("--patch-sizes", type=options.CommaList(item=options.COUNT), default=(), metavar="1,2,4",
              help="Compare patches of these sizes, in pixels.")  # fmt: skip
@click.option("--features", metavar="MODEL", help="Model that computes the features.  [default: the checkpoint]")
@options.data_root
@options.model_options()
@options.common_options
def inspect(checkpoint: str, as_json: bool, **settings: Any) -> None:
    """Describe CHECKPOINT: format, architecture, classes, input and values; with --ood, its predictions for that data.

    With --reference, also the distance of the two data sets: FID of images and patches, and the class shares.

    \b
    Example:
      compress inspect embedded/fashion_wrn16_2
      compress inspect embedded/fashion_wrn16_2 --ood embedded/photos --ood-samples 200 \\
          --reference embedded/fashion --patch-sizes 8,18
    """
    emit(api.inspect(checkpoint, **settings, progress=print_status), as_json, tables.inspection)
