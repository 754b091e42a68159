"""A command that reports all wrong options in one message, before it runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import click

#: parameters that name inputs, which may be paths
INPUTS = (
    "teacher", "model", "models", "checkpoint", "unlabeled", "labeled", "validation", "data", "reference", "images",
    "recipe", "run_dirs",
)  # fmt: skip
#: texts that begin or end so are paths, not names of models or data sets
PATH_STARTS = ("/", "./", "../", "~/")
PATH_ENDS = (".pt", ".pth", ".pt2", ".ckpt", ".safetensors", ".onnx", ".xml", ".engine", ".yaml", ".yml")
#: texts with these letters are patterns, not paths
PATTERN_LETTERS = "*?[{@"


class ThoroughCommand(click.Command):
    """A command whose usage errors name everything that is wrong on the command line."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = list(args)
        try:
            rest = super().parse_args(ctx, args)
            found = missing_inputs(ctx.params)
            if len(found) < 2:  # the command has a better sentence for one
                return rest
        except click.UsageError as error:
            found = self.find_errors(given)
            if len(found) < 2:
                raise
            raise click.UsageError(" ".join(found), ctx) from error
        raise click.UsageError(" ".join(found), ctx)

    def find_errors(self, args: list[str]) -> list[str]:
        """Return a sentence for each wrong option and for each missing input."""
        found: list[str] = []
        ctx = click.Context(self)
        values: dict[str, Any] = {}
        while True:
            try:
                values, extra, order = self.make_parser(ctx).parse_args(args=list(args))
                break
            except click.NoSuchOption as error:
                found.append(as_sentence(error))
                args = [one for one in args if one.partition("=")[0] != error.option_name]
            except click.UsageError as error:  # an option without its value
                return [*found, as_sentence(error)]
        if extra and not found:  # they may be values of unknown options
            found.append(f"Got unexpected extra arguments ({' '.join(extra)}).")
        for param in click.core.iter_params_for_processing(order, self.get_params(ctx)):
            try:
                param.handle_parse_result(ctx, values, [])
            except click.UsageError as error:
                found.append(as_sentence(error))
        return [*found, *missing_inputs(ctx.params)]


def as_sentence(error: click.UsageError) -> str:
    return error.format_message().rstrip(".") + "."


def missing_inputs(params: dict[str, Any]) -> list[str]:
    """Return a sentence for each input that is certainly a path and does not exist."""
    return [f"{one}: no such file or directory." for one in iter_inputs(params) if is_missing(one)]


def iter_inputs(params: dict[str, Any]) -> Iterator[str]:
    for name in INPUTS:
        value = params.get(name)
        for one in value if isinstance(value, tuple) else (value,):
            if one is not None:
                yield str(one)


def is_missing(text: str) -> bool:
    """Return whether a text is a path, neither a name nor a pattern, of nothing that exists."""
    is_path = text.startswith(PATH_STARTS) or text.lower().endswith(PATH_ENDS)
    return (
        is_path
        and not any(letter in text for letter in PATTERN_LETTERS)
        and not os.path.lexists(os.path.expanduser(text))
    )
