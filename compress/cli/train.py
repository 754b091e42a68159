"""`compress train`: a model from labelled images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from compress.cli.old_options import common, emit, parse_size, resolve_config, training


@click.command()
@click.option("--data", metavar="DATA", help="Labelled images: a folder of one folder a class, or a name.")
@click.option("--image-size", callback=parse_size, metavar="HxW", help="Size the model reads.  [default: 32x32]")
@click.option("--grey", is_flag=True, default=None, help="The model turns pictures grey first.")
@click.option("--export", "exported", type=click.Choice(["onnx"]), help="Write and verify the best model as ONNX.")
@training
@common
def train(as_json: bool, devices: int, out: Path | None, resume: bool | None, dry_run: bool, **options: Any) -> None:
    """Train a model on labelled images, as teachers are made.

    \b
    Example:
      compress train --student wrn16_2 --data embedded/fashion --val embedded/fashion \\
          --grey --steps 20 --batch-size 64 --out runs/teacher
    """
    from compress.cli.running import run_training

    options["method"] = "supervised"
    plan, method = resolve_config(options.pop("recipe"), options.pop("sets"), options)
    said = run_training(
        plan, method, out, devices=devices, resume=resume, dry_run=dry_run,
        exported=options["exported"], reported=False,
    )  # fmt: skip
    if said is not None:
        emit(said[0], as_json=as_json, text=said[1])
