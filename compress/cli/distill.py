"""`compress distill` and `compress train`."""

from __future__ import annotations

from typing import Any

import click

from compress import api
from compress.cli import options, tables
from compress.cli.output import command_line, emit, print_status


@click.command()
@options.teacher_options
@options.allow_bad_teacher
@click.option("--ood", "--unlabeled", "unlabeled", metavar="DATA",
              help="Unlabeled images: a directory, a name, hf/NAME, or .tar shards.")  # fmt: skip
@click.option("--ood-subset", "--unlabeled-subset", "unlabeled_subset", type=options.COUNT,
              help="Use only the N images with the highest teacher entropy.")  # fmt: skip
@click.option("--method", metavar="NAME", help="Distillation method; see `compress methods`.  [default: mosaic]")
@click.option("--patch-size", type=options.PatchSize(), metavar="L|auto",
              help="Patch size of mosaic; auto: chosen from the distance of the data.")  # fmt: skip
@click.option("--report", is_flag=True, help="Measure latency and write report.html, .md, .csv and .json.")
@options.training_options
@options.common_options
def distill(as_json: bool, dry_run: bool, **settings: Any) -> None:
    """Train a small student from a teacher and unlabeled images.

    \b
    Example:
      compress distill --teacher embedded/fashion_wrn16_2 --ood embedded/photos \\
          --student wrn16_1 --val embedded/fashion --steps 20 --out runs/first
    """
    if dry_run:
        emit(api.estimate_training(**settings, progress=print_status), as_json, tables.estimate)
    else:
        emit(api.distill(**settings, command=command_line(), progress=print_status), as_json, tables.run_result)


@click.command()
@click.option("--data", "--labeled", "labeled", metavar="DATA",
              help="Labeled images: one directory per class, images/ and masks/, or a name.")  # fmt: skip
@options.task_options
@click.option("--image-size", type=options.Size(), metavar="HxW", help="Input size in pixels.  [default: 32x32]")
@click.option("--grayscale", is_flag=True, default=None, help="Convert images to grayscale in the model.")
@options.training_options
@options.common_options
def train(as_json: bool, dry_run: bool, **settings: Any) -> None:
    """Train a model on labeled images (teachers and baselines).

    \b
    Example:
      compress train --student wrn16_2 --data embedded/fashion --val embedded/fashion \\
          --grayscale --steps 20 --batch-size 64 --out runs/teacher
    """
    if dry_run:
        plan = api.estimate_training(method="supervised", **settings, progress=print_status)
        emit(plan, as_json, tables.estimate)
    else:
        emit(api.train(**settings, command=command_line(), progress=print_status), as_json, tables.run_result)
