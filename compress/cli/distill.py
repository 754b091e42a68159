"""`compress distill`: a small student from a teacher and out-of-domain pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from compress.cli.old_options import common, emit, patch_size, resolve_config, teacher_options, training


@click.command()
@teacher_options
@click.option("--ood", metavar="DATA", help="Unlabelled pictures: a folder, a name, hf/NAME, or .tar shards.")
@click.option("--ood-subset", type=click.IntRange(min=1), help="Keep the N pictures of highest teacher entropy.")
@click.option("--method", metavar="NAME", help="How to distil; see `compress methods`.  [default: mosaic]")
@click.option("--patch-size", callback=patch_size, metavar="L|auto", help="Of mosaic; auto: by how far the data is.")
@click.option("--export", "exported", type=click.Choice(["onnx"]), help="Write and verify the best student as ONNX.")
@click.option("--report", "reported", is_flag=True, help="Measure latency and write report.html, .md and .json.")
@training
@common
def distill(as_json: bool, devices: int, out: Path | None, resume: bool | None, dry_run: bool, **options: Any) -> None:
    """Teach a small student from a teacher and out-of-domain pictures.

    \b
    Example:
      compress distill --teacher embedded/fashion_wrn16_2 --ood embedded/photos \\
          --student wrn16_1 --val embedded/fashion --steps 20 --out runs/first
    """
    from compress.cli.running import run_training

    teacher = {key: options.pop(name) for name, key in TEACHER.items()}
    plan, method = resolve_config(options.pop("recipe"), options.pop("sets"), options, teacher=teacher)
    said = run_training(
        plan, method, out, devices=devices, resume=resume, dry_run=dry_run,
        exported=options["exported"], reported=options["reported"],
    )  # fmt: skip
    if said is not None:
        emit(said[0], as_json=as_json, text=said[1])


#: option -> key of the first teacher in the recipe
TEACHER = {"teacher": "model", "teacher_arch": "arch", "trust_pickle": "trust_pickle"}
