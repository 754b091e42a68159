"""The command line. A command's module is imported only when the command is called."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import Any

import click

from compress.cli.output import prepare_streams, print_error, print_traceback
from compress.cli.parsing import ThoroughCommand
from compress.engine.signals import handle_signals, handle_signals_to_the_end, raise_stop_signal, received_signal
from compress.errors import Interrupted, is_out_of_memory, suggest_nearest
from compress.files import WRITE_FAILURES, write_error
from compress.resources import available_memory, limit_threads

#: command -> (module, one line for `compress --help`); the function in the module has the name of the command
COMMANDS = {
    "distill": ("distill", "Train a small student from a teacher and unlabeled images."),
    "compare": ("compare", "Distill with several methods under one budget and compare them."),
    "sweep": ("sweep", "Train, export and measure students × methods × precisions × seeds."),
    "synthesize": ("synthesize", "Generate images from a trained model, without data or student."),
    "train": ("distill", "Train a model on labeled images (teachers and baselines)."),
    "eval": ("evaluate", "Evaluate a model or an exported file on labeled images."),
    "predict": ("predict", "Predict the classes, or the label maps, of images."),
    "inspect": ("inspect", "Describe a checkpoint, and how far unlabeled data is from its domain."),
    "profile": ("profile", "Count MACs, FLOPs and parameters of a model."),
    "export": ("export", "Export verified files for ONNX Runtime, OpenVINO and TensorRT."),
    "bench": ("bench", "Measure latency and throughput of models."),
    "report": ("report", "Combine runs into one report that recommends a model."),
    "demo": ("demo", "Run the whole workflow on embedded real images in ten minutes."),
    "methods": ("catalog", "List the distillation methods, or the settings of one."),
    "models": ("catalog", "List the models that a teacher or student can be."),
    "datasets": ("catalog", "List the data sets that are known by name."),
    "schema": ("catalog", "Print the JSON schema of a recipe, for editors."),
    "doctor": ("doctor", "Check versions, devices and optional packages."),
}


class LazyGroup(click.Group):
    """A group that imports a command when it is called and prints errors as one sentence."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"compress.cli.{COMMANDS[cmd_name][0]}")
        command = getattr(module, "evaluate" if cmd_name == "eval" else cmd_name)
        return ThoroughCommand(cmd_name, callback=command.callback, params=command.params, help=command.help)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            hint = suggest_nearest(args[0], COMMANDS) or "."
            raise click.UsageError(f"no such command '{args[0]}'{hint} See `compress --help`.")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> Any:
        arguments = list(sys.argv[1:] if args is None else args)
        extra["standalone_mode"] = False
        limit_threads()  # before NumPy and torch are imported
        prepare_streams()
        if not is_working_directory():  # libraries end the process if they are loaded there
            sys.exit(print_error("the working directory no longer exists; change to another one.", 2))
        with contextlib.ExitStack() as stack:
            if args is None:  # this process is the command
                handle_signals_to_the_end(raise_stop_signal)
            else:
                stack.enter_context(handle_signals(raise_stop_signal))
            try:
                code = super().main(arguments, prog_name or "compress", **extra)
                sys.exit(code if isinstance(code, int) else 0)
            except click.exceptions.Abort:
                sys.exit(130)
            except click.ClickException as error:
                sys.exit(print_error(error.format_message(), 2 if isinstance(error, click.UsageError) else 1))
            except BrokenPipeError:
                sys.exit(1)
            except Exception as error:  # the outermost frame: every error becomes one sentence and an exit code
                if "--debug" in arguments:
                    print_traceback()
                sys.exit(print_error(*describe_error(error)))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise interruption(getattr(error, "signum", signal.SIGINT)) from error


def describe_error(error: Exception) -> tuple[str, int]:
    """Return the sentence for `error` and the exit code. An error without `exit_code` is a bug and is named as one."""
    code = getattr(error, "exit_code", None)
    signum = received_signal()
    if signum and not isinstance(error, Interrupted):  # libraries turn the exception of a signal into their own
        error, code = interruption(signum), 128 + signum
    if isinstance(code, int):
        return str(error), code
    if isinstance(error, OSError) and error.errno in WRITE_FAILURES:
        if is_from_echo(error):
            return f"standard output: cannot be written ({error.strerror}); redirect it to another place.", 1
        return str(write_error(error.filename or tempfile.gettempdir(), error)), 1
    if is_out_of_memory(error):
        return describe_exhausted_memory(), 1
    fault = describe_environment_fault(error)
    if fault is not None:
        return fault, 1
    text = " ".join(str(error).split()) or "no message"
    return f"internal error: {type(error).__name__}: {text[:300]} (run again with --debug for the traceback)", 1


def is_from_echo(error: Exception) -> bool:
    """Check whether click raised an error while it printed to standard output; such an error names no file."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and frames[-1].f_code is click.echo.__code__


def interruption(signum: int) -> Interrupted:
    """Return the error of a command that a signal stopped and that has no state to save."""
    return Interrupted(signum, f"interrupted by {signal.Signals(signum).name}.")


def describe_exhausted_memory() -> str:
    """Return the sentence for an exhausted memory of a command that has no better one."""
    free = available_memory()
    found = "" if free is None else f" ({free / 1e9:.1f} GB are free)"
    return f"out of memory{found}: expected less work at a time; choose a smaller batch, image size or model."


def describe_environment_fault(error: Exception) -> str | None:
    """Return the sentence for an error of the system that no command expects; None if it is another error."""
    if isinstance(error, OSError):
        place = "" if error.filename is None else f"{error.filename}: "
        reason = error.strerror or " ".join(str(error).split())
        return f"{place}{reason}; check the path, its permissions and the free space."
    if isinstance(error, UnicodeEncodeError):
        return f"found the text {error.object[:300]!r}, expected valid UTF-8; rename the file or folder."
    if isinstance(error, RecursionError):
        return "found values that are nested too deeply; simplify the file that contains them."
    if isinstance(error, RuntimeError) and "home directory" in str(error):  # pathlib
        return "cannot find a home directory; set HOME, or give paths without ~."
    return None


def is_working_directory() -> bool:
    """Check that the working directory exists."""
    try:
        os.getcwd()
    except OSError:
        return False
    return True


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="compress-distill", message="%(version)s")
def main() -> None:
    """Distill a vision model without its training data and deploy the student.

    \b
    Example:
      compress distill --teacher embedded/fashion_wrn16_2 --ood embedded/photos \\
          --student wrn16_1 --val embedded/fashion --steps 20 --out runs/first
    """
