"""Who may import whom, and other rules of the house that a machine can hold."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("compress", "exporters", "profiles")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

FLOOR_0 = {"compress.errors", "compress.files", "compress.plugins", "compress.units"}
#: part of the house -> the parts that it may import, besides itself and floor 0
MAY = {
    # floor 0
    "compress.errors": set(),
    "compress.files": set(),
    "compress.plugins": set(),
    "compress.units": set(),
    # floor 1
    "compress.config": set(),
    "compress.data": set(),
    "compress.engine": set(),
    "compress.losses": set(),
    "compress.models": set(),
    "compress.embedded": set(),
    "exporters": set(),
    "profiles": set(),
    # floor 2
    "compress.methods": {"compress.engine", "compress.losses", "compress.models"},
    "compress.tasks": {"compress.data", "compress.losses"},
}
FLOOR_1_AND_2 = set(MAY)
IN_HOUSE = {part for part in FLOOR_1_AND_2 if part.startswith("compress")}
# floor 3, and 4: the only place where compress, exporters and profiles meet
MAY |= {
    "compress.training.data": IN_HOUSE,
    "compress.training.setup": IN_HOUSE,
    "compress.training.setup": IN_HOUSE | {"compress.training.data", "compress.training.setup"},
    "compress.experiments.config": IN_HOUSE,
    "compress.training.estimate": IN_HOUSE | {"compress.training.data", "compress.training.setup"},
    "compress.analysis.generator_samples": IN_HOUSE | {"compress.training.setup", "compress.training.estimate"},
    "compress.analysis.fid": IN_HOUSE,
    "compress.analysis.patch_size": IN_HOUSE | {"compress.training.data", "compress.training.setup", "compress.analysis.fid"},
}
MAY |= {
    "compress.cli": FLOOR_1_AND_2 | {part for part in MAY if part.startswith("compress.")},
    "compress.__main__": {"compress.cli"},
}
#: the only file that may import each optional package
OPTIONAL = {
    "timm": "compress/models",
    "datasets": "compress/data/hub.py",
    "tensorboard": "compress/engine/logging.py",
    "segmentation_models_pytorch": "compress/models",
    "h5py": "compress/data/nyu.py",
    "openvino": "exporters/runtimes/openvino.py",
    "tensorrt": "exporters/tensorrt/libraries.py",
    "tensorrt_rtx": "exporters/tensorrt/libraries.py",
    "modelopt": "exporters/quantization/modelopt_worker.py",
    "optuna": "compress/cli/scheduling.py",
    "mlperf_loadgen": "profiles/latency/loadgen.py",
    "pynvml": "profiles/latency/gpu.py",
}
BARE_LOAD = "compress/models/checkpoints.py"  #: where --trust-pickle is honoured, and nowhere else


def name(path: Path) -> str:
    """`compress/engine/run.py` -> compress.engine.run; a package's `__init__.py` -> the package."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name(path): path for path in FILES}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path, nodes: list[ast.stmt] | None = None) -> Iterator[str]:
    """The modules that a file imports, inside functions too: `from a.b import c` is a.b.c where that is a module."""
    for top in tree(path).body if nodes is None else nodes:
        for node in ast.walk(top):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: relative import"
                assert node.module
                for alias in node.names:
                    longer = f"{node.module}.{alias.name}"
                    yield longer if longer in MODULES else node.module


def part(module: str) -> str:
    """The part of the house that a module belongs to; the empty string for what is not ours."""
    if module == "compress":
        return "compress.errors"  # the package itself: its version
    names = module.split(".")
    return {"compress": ".".join(names[:2])}.get(names[0], names[0]) if names[0] in PACKAGES else ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_imports_only_what_its_floor_may(path):
    mine = part(name(path))
    assert mine in MAY, f"{mine} is not in the table of layers"
    for module in imports(path):
        other = part(module)
        if other and other != mine and not (other in FLOOR_0 and mine.startswith("compress")):
            assert other in MAY[mine], f"{name(path)} imports {module}"


def test_errors_stand_below_everything():
    """Floor 0 knows nothing but itself."""
    assert not [m for m in imports(MODULES["compress.errors"]) if part(m)]
    assert {part(m) for m in imports(MODULES["compress.files"])} <= {"", "compress.errors"}


def test_methods_do_not_import_each_other():
    methods = [m for m in MODULES if m.startswith("compress.methods.")]
    assert methods
    for module in methods:
        assert not [other for other in imports(MODULES[module]) if other.startswith("compress.methods")]


def test_no_module_imports_itself_by_a_detour():
    """At the time of import: what stands inside a function, or is for types only, runs later or never."""
    edges = {
        module: {other for other in imports(path, at_import(path)) if other in MODULES and other != module}
        for module, path in MODULES.items()
    }
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join([*way[way.index(module) :], module])
        if module not in done:
            for other in edges[module]:
                visit(other, (*way, module))
            done.add(module)

    for module in edges:
        visit(module, ())


def at_import(path: Path) -> list[ast.stmt]:
    """The import statements that run when a file is imported."""
    top = tree(path).body
    plain = [node for node in top if isinstance(node, ast.Import | ast.ImportFrom)]
    guarded = [node for node in top if isinstance(node, ast.Try | ast.With)]
    return [*plain, *guarded]


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("compress.cli")])
def test_a_command_imports_light_things_only(module):
    """`--help` answers at once: nothing heavy at module level in the command line, nor in what it imports there."""
    light, seen, left = {"click", "rich", "yaml"} | sys.stdlib_module_names, set(), [module]
    while left:
        one = left.pop()
        if one not in seen:
            seen.add(one)
            found = set(imports(MODULES[one], at_import(MODULES[one])))
            foreign = {other.split(".")[0] for other in found - MODULES.keys()} - light
            assert not foreign, f"{module} imports {one}, which imports {foreign}"
            left += [
                longer for other in found & MODULES.keys() for longer in (other, other.rpartition(".")[0]) if longer
            ]


def test_the_table_catches_an_import_that_climbs(tmp_path):
    """The test above is worth something: hidden in a function, in another spelling, it is seen."""
    path = tmp_path / "kd.py"
    path.write_text(
        "def f():\n    from compress import plan\n    import compress.cli.output as o\n    from torch import nn\n"
    )
    assert [part(module) for module in imports(path)] == ["compress.training.setup", "compress.cli", ""]


def test_an_optional_package_is_imported_in_one_place_and_inside_functions():
    for module, path in MODULES.items():
        places = {m.split(".")[0] for m in imports(path)} & OPTIONAL.keys()
        for package in places:
            assert str(path.relative_to(ROOT)).startswith(OPTIONAL[package]), f"{module} imports {package}"
        assert not {m.split(".")[0] for m in imports(path, at_import(path))} & OPTIONAL.keys(), module


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_is_above_400_lines_and_no_function_above_60(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 60, f"{node.name} is too long"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_has_what_is_left_for_later_or_hides_errors(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"\b(TODO|FIXME|XXX|HACK|NotImplementedError\(\))", text)
    assert path.stem not in ("utils", "util", "helpers", "common", "misc", "base")
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"bare except in line {node.lineno}"


def test_loading_never_runs_code():
    """`torch.load(` has weights_only=True on its line; the one exception is what --trust-pickle asks for."""
    bare = []
    for path in FILES:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            code = line.split("#")[0]
            assert not re.search(
                r"\bpickle\.loads?\(|\byaml\.(unsafe_)?load\(|\beval\(|\bexec\(", strip_methods(code)
            ), f"{path}:{number}"
            if "torch.load(" in code and "weights_only=True" not in code and not quoted(code):
                bare.append(str(path.relative_to(ROOT)))
    assert bare == [BARE_LOAD]


def strip_methods(code: str) -> str:
    """`net.eval()` is a method of torch's, not the function."""
    return re.sub(r"\.(eval|exec)\(", "(", code)


def quoted(code: str) -> bool:
    """A line that is text: the sentence that tells how a file is converted."""
    return code.strip().startswith(("'", '"', "f'", 'f"'))
