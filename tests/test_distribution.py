"""The distribution: its name, and that no text installs another one."""

import re
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: The distribution `compress` on the package index belongs to somebody else.
FOREIGN = re.compile(
    r"""pip3? install(?: -\S+)* +(?:-e +)?["']?compress(?:["'\[\s=<>~]|$)|["']compress\[""", re.MULTILINE
)


def test_no_text_installs_foreign_distribution() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    texts = [ROOT / name for name in listed if name.endswith((".py", ".md", ".toml", ".yaml", ".jinja", ".txt"))]
    named = [
        path for path in texts if path != Path(__file__) and path.exists() and FOREIGN.search(path.read_text("utf-8"))
    ]
    assert len(texts) > 100
    assert named == []


def test_foreign_pattern_finds_installs() -> None:
    for text in ("pip install compress", "pip install 'compress[nvml]'", 'pip install -U "compress[all]"'):
        assert FOREIGN.search(text)
    assert not FOREIGN.search("pip install 'compress-distill[nvml]'")


def test_extras_name_own_distribution() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["name"] == "compress-distill"
    own = [line for extra in project["optional-dependencies"].values() for line in extra if line.startswith("compress")]
    assert own
    assert all(line.startswith("compress-distill[") for line in own)
