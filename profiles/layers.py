"""Which layer does the work: a table of modules, in which every operation stands once and each level adds up.

Work belongs to the layer whose call ran it. A layer that stands in two places (a shared one) has its work where it was
called from; one that is called several times has that of all calls. What a module does between the calls of its parts
(a product of attention, an interpolation) is its own; so is what was run by another way than a call: `part.forward(x)`,
or a function that was given its weights.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

#: the modules that are being called, outermost first, each by its first name
Stack = tuple[str, ...]


@dataclass(frozen=True)
class Layer:
    """One module, with all that is beneath it. A parent has what its children have together, and its own."""

    path: str  #: as in the state dict; the empty string is the whole network
    kind: str  #: its class
    calls: int  #: in one pass; 0: it is a container, or was never called
    macs: int  #: of one image
    activations: int  #: numbers that its products make
    params: int  #: learned numbers; what a row above has counted already is not counted again
    own_macs: int  #: outside of its children
    own_activations: int  #: outside of its children
    own_params: int  #: outside of its children
    shared_params: int = 0  #: learned numbers in it that a row above has counted

    @property
    def depth(self) -> int:
        """0 for the whole network."""
        return self.path.count(".") + 1 if self.path else 0

    @property
    def costs(self) -> bool:
        return bool(self.macs or self.activations or self.params or self.shared_params)


@dataclass(frozen=True)
class Work:
    """One operation in a trace."""

    stack: Stack
    macs: int
    activations: int


def names_of(module: nn.Module) -> dict[nn.Module, str]:
    """Each module within `module` by its first name."""
    return {part: name for name, part in module.named_modules()}


@contextlib.contextmanager
def calls_of(module: nn.Module) -> Iterator[Counter[Stack]]:
    """How often each module within `module` is called, by all the calls that are open at that moment."""
    names, opened, found = names_of(module), [], Counter[Stack]()

    def enter(part: nn.Module, _: Any) -> None:
        opened.append(names[part])
        found[tuple(name for name in opened if name)] += 1

    def leave(*_: Any) -> None:
        opened.pop()

    handles = [part.register_forward_pre_hook(enter) for part in names]
    handles += [part.register_forward_hook(leave) for part in names]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def layers_of(module: nn.Module, works: Sequence[Work], calls: Counter[Stack]) -> list[Layer]:
    """A row for each place of a module in `module`, in the order in which they were made, the whole first."""
    place = placing(module)
    macs, made, called = Counter[str](), Counter[str](), Counter[str]()
    for work in works:
        macs[place(work.stack)] += work.macs
        made[place(work.stack)] += work.activations
    for stack, times in calls.items():
        called[place(stack)] += times
    rows: list[Layer] = []
    known: set[nn.Parameter] = set()
    first = names_of(module)
    for path, part in module.named_modules(remove_duplicate=False):
        if first[part] != path and not any(at == path or at.startswith(f"{path}.") for at in called):
            continue  # another name of a module that nobody calls by it
        again = sum(parameter.numel() for parameter in set(part.parameters()) & known)
        mine = set(part.parameters(recurse=False)) - known
        known |= mine
        own = (macs[path], made[path], sum(parameter.numel() for parameter in mine))
        rows.append(Layer(path, type(part).__name__, called[path], *own, *own, shared_params=again))
    return summed(rows)


def summed(rows: list[Layer]) -> list[Layer]:
    """With what is beneath each."""
    totals = {row.path: [0, 0, 0] for row in rows}
    for row in rows:
        for path in ancestors(row.path):
            for place, value in enumerate((row.own_macs, row.own_activations, row.own_params)):
                totals[path][place] += value
    names = ("macs", "activations", "params")
    return [replace(row, **dict(zip(names, totals[row.path], strict=True))) for row in rows]


def ancestors(path: str) -> list[str]:
    """`a.b` -> the empty string, `a`, `a.b`."""
    parts = path.split(".") if path else []
    return [".".join(parts[:end]) for end in range(len(parts) + 1)]


def placing(module: nn.Module) -> Callable[[Stack], str]:
    """Stack -> the path at which the innermost module stands, seen from where it was called."""
    modules = dict(module.named_modules())
    known: dict[Stack, str] = {(): ""}

    def place(stack: Stack) -> str:
        if stack not in known:
            known[stack] = beneath(place(stack[:-1]), modules[stack[-1]])
        return known[stack]

    def beneath(parent: str, part: nn.Module) -> str:
        first = next(name for name, other in modules.items() if other is part)
        below = [name for name, other in submodules[parent] if other is part]
        inside = [f"{parent}.{name}" if parent else name for name in below]
        return first if first in inside or not inside else inside[0]

    submodules = Submodules(module)
    return place


class Submodules(dict[str, list[tuple[str, nn.Module]]]):
    """Path -> all that stands beneath the module there, under every name."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def __missing__(self, path: str) -> list[tuple[str, nn.Module]]:
        part = self.module.get_submodule(path)
        self[path] = [(name, other) for name, other in part.named_modules(remove_duplicate=False) if name]
        return self[path]


def down_to(layers: Sequence[Layer], depth: int) -> list[Layer]:
    """The rows of at most `depth` steps below the whole."""
    return [layer for layer in layers if layer.depth <= depth]


def inside(layers: Sequence[Layer], path: str) -> list[Layer]:
    """The rows from the module at `path` on, which is then the whole."""
    start = f"{path}."
    return [
        replace(layer, path=layer.path.removeprefix(start) if layer.path != path else "")
        for layer in layers
        if layer.path == path or layer.path.startswith(start)
    ]
