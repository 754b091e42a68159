"""The runner as one file: those files of this package that it needs, in an archive that Python runs.

They are the very files that measure here, found by following their imports, so that a number of another machine comes
about as one of this machine does. None of them imports PyTorch.
"""

from __future__ import annotations

import ast
import io
import shutil
import tempfile
import zipapp
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
START = "profiles.remote.entry"
#: what is started or imported by its name alone
NAMED = ("profiles.remote.timing", "profiles.latency.loadgen")
#: run by the other machine's Python before anything of ours is there. One line without a single quote, for every login
#: shell to hand on whole. What it makes it removes at its end, whichever that is.
BOOTSTRAP = (
    "import sys;sys.path.pop(0);import atexit,os,runpy,shutil,tempfile;"
    'b=getattr(sys.stdin,"buffer",sys.stdin).read({size});len(b)=={size} or sys.exit("no runner");'
    'd=tempfile.mkdtemp(prefix="compress-");atexit.register(shutil.rmtree,d,True);'
    'p=os.path.join(d,"runner.pyz");f=open(p,"wb");f.write(b);f.close();'
    'sys.argv=[p];runpy.run_path(p,run_name="__main__")'
)


def shipped() -> dict[str, Path]:
    """Name -> file of every module of ours that the runner may import."""
    found: dict[str, Path] = {}
    pending = [START, *NAMED]
    while pending:
        name = pending.pop()
        path = file_of(name)
        if path is not None and name not in found:
            found[name] = path
            pending += [*imported(path), name.rpartition(".")[0]]
    return found


def file_of(name: str) -> Path | None:
    """Where a module of this package stands; None for what is not of it."""
    top, *rest = name.split(".")
    path = PACKAGE.joinpath(*rest)
    if top != PACKAGE.name:
        return None
    return next((one for one in (path / "__init__.py", path.with_suffix(".py")) if one.is_file()), None)


def imported(path: Path) -> Iterator[str]:
    """What a file imports, inside functions too; `from a import b` may mean either."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def pack() -> bytes:
    """The archive."""
    target = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        for path in shipped().values():
            place = Path(folder) / path.relative_to(PACKAGE.parent)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
        zipapp.create_archive(folder, target, main=f"{START}:main")
    return target.getvalue()


def bootstrap(archive: bytes) -> str:
    """The line of Python that takes the archive from standard input, and after it the order."""
    return BOOTSTRAP.format(size=len(archive))
