"""`compress doctor`."""

from __future__ import annotations

import click

from compress import api
from compress.cli import options, tables
from compress.cli.output import emit


@click.command()
@click.option("--thorough", is_flag=True, help="Also import every core package, in a separate process; takes seconds.")
@options.common_options
def doctor(thorough: bool, as_json: bool) -> None:
    """Check versions, devices and optional packages. Exit code 1 if a core package is missing or broken.

    \b
    Example:
      compress doctor
    """
    result = api.doctor(thorough)
    emit(result, as_json, tables.environment)
    broken = [f"{one.name}: {one.problem}; {one.install}" for one in result.core.values() if one.problem]
    if broken:
        raise click.ClickException(f"{len(broken)} core packages missing or broken: {'; '.join(broken)}")
