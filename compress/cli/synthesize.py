"""`compress synthesize`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from compress import api
from compress.cli import options, tables
from compress.cli.output import emit, print_status


@click.command()
@options.teacher_options
@click.option("--method", metavar="NAME", help="deepinversion, cmi or fastdfkd.  [default: cmi]")
@click.option("--run", type=options.PATH, help="Sample from the generator of this run instead.")
@click.option("--count", type=options.COUNT, default=50000, show_default=True, help="Number of images.")
@click.option("--out", "output_dir", type=options.PATH, help="Run directory.  [default: runs/METHOD-images]")
@options.compute_options
@options.common_options
def synthesize(as_json: bool, recipe: Path | None, **settings: Any) -> None:
    """Generate images from a trained model, without data or a student.

    The images are written to the directory compress-pool of the run, one directory per class, with a preview beside
    it. Loss terms that need a student are off. After an interruption the same command continues. With --run the images
    come from the generator that a run of `compress distill` trained (mosaic, dafl, zskt, dfad, dfq, fastdfkd).

    \b
    Example:
      compress synthesize --teacher embedded/fashion_wrn16_2 --method fastdfkd --count 40 \\
          --set method.images_per_synthesis=20 --set method.width_G=16 --out runs/images
    """
    emit(api.synthesize(recipe=recipe, **settings, progress=print_status), as_json, tables.synthesis_result)
