"""The description of the machine: useful, and nobody's business beside it."""

from __future__ import annotations

import getpass
import json
import platform
import subprocess
import sys
from pathlib import Path

from profiles.machine import Gpu, describe, read_gpu


def test_the_description_is_json_and_names_what_matters() -> None:
    found = json.loads(json.dumps(describe()))
    assert found["cores"] >= 1
    assert found["cpu"]
    assert {"python", "torch", "onnxruntime"} <= set(found["versions"])


def test_neither_host_nor_user_nor_folder_is_in_it() -> None:
    text = json.dumps(describe())
    assert str(Path.home()) not in text
    assert not platform.node() or platform.node() not in text
    assert getpass.getuser() == "root" or getpass.getuser() not in text


def test_one_line_of_the_driver_tool_becomes_a_gpu_and_noise_does_not() -> None:
    line = "NVIDIA H200, 143771, 570.86.15, 9.0"
    assert read_gpu(line) == Gpu("NVIDIA H200", 143771 * 2**20, "570.86.15", "9.0")
    assert read_gpu("No devices were found") is None


def test_describing_imports_nothing_heavy() -> None:
    code = "import sys, profiles.machine as m; m.describe(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
