"""Cost per layer: a table of modules in which every operation occurs once and each level adds up.

An operation belongs to the layer whose call ran it. A shared layer has its operations under the path from which it was
called; a layer that is called several times has those of all calls. What a module computes between the calls of its
children (a product of attention, an interpolation) is its own. So is what ran without a call: `part.forward(x)`, or a
function that was given its weights.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

#: the modules of the open calls, outermost first, each by its first name
ModuleStack = tuple[str, ...]


@dataclass(frozen=True)
class Layer:
    """One module, including its submodules. A parent has the sum of its children and its own."""

    path: str  #: as in the state dict; the empty string is the root
    kind: str  #: name of its class
    calls: int  #: in one pass; 0: a container, or never called
    macs: int  #: for one image
    activations: int  #: output elements of its products
    params: int  #: parameters that no row above has counted
    own_macs: int  #: without its children
    own_activations: int  #: without its children
    own_params: int  #: without its children
    shared_params: int = 0  #: parameters that a row above has counted

    @property
    def depth(self) -> int:
        """Depth below the root, which has 0."""
        return self.path.count(".") + 1 if self.path else 0

    @property
    def has_cost(self) -> bool:
        """Whether the layer has any MACs, activations or parameters."""
        return bool(self.macs or self.activations or self.params or self.shared_params)


@dataclass(frozen=True)
class TracedOperation:
    """One counted operation of a trace."""

    stack: ModuleStack
    macs: int
    activations: int


def module_names(module: nn.Module) -> dict[nn.Module, str]:
    """Return the first name of each module within `module`."""
    return {part: name for name, part in module.named_modules()}


@contextlib.contextmanager
def record_calls(module: nn.Module) -> Iterator[Counter[ModuleStack]]:
    """Count how often each module is called, by the stack of open calls."""
    names, stack, calls = module_names(module), [], Counter[ModuleStack]()

    def enter(part: nn.Module, _: Any) -> None:
        stack.append(names[part])
        calls[tuple(name for name in stack if name)] += 1

    def leave(*_: Any) -> None:
        stack.pop()

    handles = [part.register_forward_pre_hook(enter) for part in names]
    handles += [part.register_forward_hook(leave) for part in names]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def build_layer_table(
    module: nn.Module, operations: Sequence[TracedOperation], calls: Counter[ModuleStack]
) -> list[Layer]:
    """Build one row per path of a module, in the order of registration, the root first."""
    path_of = create_path_resolver(module)
    macs, activations, called = Counter[str](), Counter[str](), Counter[str]()
    for operation in operations:
        macs[path_of(operation.stack)] += operation.macs
        activations[path_of(operation.stack)] += operation.activations
    for stack, times in calls.items():
        called[path_of(stack)] += times
    rows: list[Layer] = []
    known: set[nn.Parameter] = set()
    first = module_names(module)
    for path, part in module.named_modules(remove_duplicate=False):
        if first[part] != path and not any(at == path or at.startswith(f"{path}.") for at in called):
            continue  # an alias by which the module is never called
        again = sum(parameter.numel() for parameter in set(part.parameters()) & known)
        own_params = set(part.parameters(recurse=False)) - known
        known |= own_params
        own = (macs[path], activations[path], sum(parameter.numel() for parameter in own_params))
        rows.append(Layer(path, type(part).__name__, called[path], *own, *own, shared_params=again))
    return add_subtree_totals(rows)


def add_subtree_totals(rows: list[Layer]) -> list[Layer]:
    """Replace the totals of each row by the sum over its subtree."""
    totals = {row.path: [0, 0, 0] for row in rows}
    for row in rows:
        for path in ancestor_paths(row.path):
            for i, value in enumerate((row.own_macs, row.own_activations, row.own_params)):
                totals[path][i] += value
    names = ("macs", "activations", "params")
    return [replace(row, **dict(zip(names, totals[row.path], strict=True))) for row in rows]


def ancestor_paths(path: str) -> list[str]:
    """`a.b` -> the empty string, `a`, `a.b`."""
    parts = path.split(".") if path else []
    return [".".join(parts[:end]) for end in range(len(parts) + 1)]


def create_path_resolver(module: nn.Module) -> Callable[[ModuleStack], str]:
    """Return a function: call stack -> path of the innermost module, as seen from its caller."""
    modules = dict(module.named_modules())
    known: dict[ModuleStack, str] = {(): ""}

    def path_of(stack: ModuleStack) -> str:
        if stack not in known:
            known[stack] = path_below(path_of(stack[:-1]), modules[stack[-1]])
        return known[stack]

    def path_below(parent: str, part: nn.Module) -> str:
        first = next(name for name, other in modules.items() if other is part)
        below = [name for name, other in submodules[parent] if other is part]
        inside = [f"{parent}.{name}" if parent else name for name in below]
        return first if first in inside or not inside else inside[0]

    submodules = SubmoduleIndex(module)
    return path_of


class SubmoduleIndex(dict[str, list[tuple[str, nn.Module]]]):
    """Path -> all submodules below the module at that path, under every name."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def __missing__(self, path: str) -> list[tuple[str, nn.Module]]:
        part = self.module.get_submodule(path)
        self[path] = [(name, other) for name, other in part.named_modules(remove_duplicate=False) if name]
        return self[path]


def limit_depth(layers: Sequence[Layer], depth: int) -> list[Layer]:
    """Return the rows at most `depth` levels below the root."""
    return [layer for layer in layers if layer.depth <= depth]


def select_subtree(layers: Sequence[Layer], path: str) -> list[Layer]:
    """Return the rows from the module at `path` down, with that module as the root."""
    start = f"{path}."
    return [
        replace(layer, path=layer.path.removeprefix(start) if layer.path != path else "")
        for layer in layers
        if layer.path == path or layer.path.startswith(start)
    ]
