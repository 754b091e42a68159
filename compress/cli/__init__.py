"""The command line. Importing this package costs milliseconds: a command's module is loaded when it is called."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click

#: command -> (module, one line for `compress --help`). The function in the module bears the command's name.
COMMANDS = {
    "distill": ("compress.cli.distill", "Teach a small student from a teacher and out-of-domain pictures."),
    "compare": ("compress.cli.compare", "Distil by several methods under one budget, and put them into one table."),
    "sweep": ("compress.cli.sweep", "Students × methods × precisions × seeds: train, export, measure, report."),
    "synthesize": ("compress.cli.synthesize", "Make images out of a trained model alone, without data or student."),
    "train": ("compress.cli.train", "Train a model on labelled data (for teachers and comparisons)."),
    "eval": ("compress.cli.evaluate", "Measure a model, or an exported file, on labelled data."),
    "inspect": ("compress.cli.inspect", "Say what is in a checkpoint, and how far some data is from it."),
    "profile": ("compress.cli.profile", "Count MACs, FLOPs and parameters of a model."),
    "export": (
        "compress.cli.export",
        "Write verified files for ONNX Runtime, OpenVINO, TensorRT, in fp32, fp16, bf16, int8.",
    ),
    "bench": ("compress.cli.bench", "Measure latency and throughput of models."),
    "report": ("compress.cli.report", "Join runs into one report, with the model to ship."),
    "demo": ("compress.cli.demo", "The whole path on embedded real data, in ten minutes."),
    "methods": ("compress.cli.lists", "List the distillation methods, or the settings of one."),
    "models": ("compress.cli.lists", "List the models a teacher or student can be."),
    "datasets": ("compress.cli.lists", "List the data sets known by name."),
    "doctor": ("compress.cli.doctor", "Check versions, devices and optional parts."),
}


class House(click.Group):
    """A group that imports a command only when it is called, and shows an error as one sentence."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _ = COMMANDS[cmd_name]
        return getattr(importlib.import_module(module), "eval_" if cmd_name == "eval" else cmd_name)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from compress.errors import nearest

            raise click.UsageError(
                f"no such command '{args[0]}'{nearest(args[0], COMMANDS) or '.'} See `compress --help`."
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> Any:
        arguments = list(sys.argv[1:] if args is None else args)
        extra["standalone_mode"] = False
        try:
            code = super().main(arguments, prog_name or "compress", **extra)
            sys.exit(code if isinstance(code, int) else 0)
        except click.exceptions.Abort:
            sys.exit(130)
        except click.ClickException as error:
            sys.exit(complain(error.format_message(), 2 if isinstance(error, click.UsageError) else 1))
        except BrokenPipeError:
            sys.exit(1)
        except Exception as error:  # the outermost frame: every failure becomes one sentence and an exit code
            if "--debug" in arguments:
                traceback.print_exc()
            sys.exit(complain(*sentence_for(error)))


def sentence_for(error: Exception) -> tuple[str, int]:
    """What to say of `error`, and the exit code: a user's error speaks for itself, a bug of ours is named as one."""
    code = getattr(error, "exit_code", None)
    if isinstance(code, int):
        return str(error), code
    text = " ".join(str(error).split()) or "no message"
    return f"internal error: {type(error).__name__}: {text[:300]} (run again with --debug for the traceback)", 1


def complain(message: str, code: int) -> int:
    click.echo(f"Error: {message}", err=True)
    return code


@click.group(cls=House, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="compress", message="%(version)s")
def main() -> None:
    """Distil a vision model without its training data, and ship the student.

    \b
    Example:
      compress distill --teacher embedded/fashion_wrn16_2 --ood embedded/photos \\
          --student wrn16_1 --val embedded/fashion --steps 20 --out runs/first
    """
