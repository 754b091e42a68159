"""Another machine for tests: a Python without our packages, reached through a real sshd on this one."""

from __future__ import annotations

import getpass
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
#: what ONNX Runtime needs, by the names of their distributions
RUNTIME = ("numpy", "onnxruntime", "flatbuffers", "protobuf", "packaging")


@dataclass(frozen=True)
class Machine:
    """Where a test's other machine is, and what it leaves behind."""

    port: int
    python: Path
    user: str
    temporary: Path  #: what is temporary there

    def url(self, python: Path | str | None = None, **change: object) -> str:
        return f"ssh://{self.user}@127.0.0.1:{change.get('port', self.port)}?python={python or self.python}"

    def left(self) -> list[str]:
        return sorted(path.name for path in self.temporary.iterdir())

    def left_in_the_end(self) -> list[str]:
        """What stays there once all that was cut off has had time to end."""
        for _ in range(100):
            if not self.left():
                break
            time.sleep(0.1)
        return self.left()


def classifier(path: Path, *, kernel: int = 3, size: tuple[int, int] | None = (8, 8), beside: bool = False) -> Path:
    """float32 [batch, 3, 8, 8] -> 4 logits. `kernel`: input channels of its weights, which ought to be 3."""
    weights = np.random.default_rng(0).standard_normal((4, kernel, 3, 3)).astype(np.float32)
    sides = ["height", "width"] if size is None else list(size)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["images", "w"], ["c"], kernel_shape=[3, 3]),
            helper.make_node("GlobalAveragePool", ["c"], ["p"]),
            helper.make_node("Flatten", ["p"], ["logits"]),
        ],
        "net",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, *sides])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path, save_as_external_data=beside, location="weights of it.bin", size_threshold=0)
    return path


def make_python(folder: Path, packages: Sequence[str]) -> Path:
    """A Python in which those of our distributions can be imported, and nothing else of ours."""
    command = [sys.executable, "-m", "venv", "--without-pip", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    (place,) = folder.glob("lib/python*/site-packages")
    for package in packages:
        found = metadata.distribution(package)
        for top in {file.parts[0] for file in found.files or () if file.parts[0] not in ("..", "__pycache__")}:
            source = Path(str(found.locate_file(top)))
            if source.exists() and not (place / top).exists():
                (place / top).symlink_to(source)
    return folder / "bin" / "python"


@contextmanager
def served(folder: Path, python: Path) -> Iterator[Machine]:
    """An sshd for whoever runs the tests, with keys of its own, and an `ssh` that knows them in `folder`/bin."""
    assert SSHD is not None
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    temporary = folder / "temporary"
    temporary.mkdir()
    (folder / "authorized").write_bytes((folder / "user.pub").read_bytes())
    kind, key, *_ = (folder / "host.pub").read_text().split()
    (folder / "known").write_text(f"[127.0.0.1]:{port} {kind} {key}\n")
    lines = [
        f"Port {port}", "ListenAddress 127.0.0.1",
        f"HostKey {folder / 'host'}", f"AuthorizedKeysFile {folder / 'authorized'}",
        "PasswordAuthentication no", "KbdInteractiveAuthentication no", "StrictModes no", "UsePAM no", "PidFile none",
        "PermitRootLogin prohibit-password", f"SetEnv TMPDIR={temporary}",
    ]  # fmt: skip
    (folder / "sshd_config").write_text("\n".join(lines) + "\n")
    client(folder, port)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    with open(folder / "log", "wb") as log:
        server = subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log)
        try:
            wait_for(port, server, folder / "log")
            yield Machine(port, python, getpass.getuser(), temporary)
        finally:
            server.terminate()
            server.wait()


def client(folder: Path, port: int) -> None:
    """An ssh that reads a configuration of the test's in the place of the user's, and the same otherwise."""
    known = [
        f"IdentityFile {folder / 'user'}", "IdentitiesOnly yes", f"UserKnownHostsFile {folder / 'known'}",
        "StrictHostKeyChecking yes", "LogLevel ERROR",
    ]  # fmt: skip
    named = ["Host Board-7", "HostName 127.0.0.1", f"Port {port}", f"User {getpass.getuser()}"]
    (folder / "config").write_text("\n".join([*known, *named]) + "\n")
    (folder / "bin").mkdir()
    script = folder / "bin" / "ssh"
    script.write_text(f'#!/bin/sh\nexec {shlex.quote(shutil.which("ssh") or "ssh")} -F {folder / "config"} "$@"\n')
    script.chmod(0o755)


def wait_for(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(100):
        if server.poll() is not None:
            pytest.skip(f"sshd does not start here: {log.read_text().strip()[-200:]}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    pytest.skip("sshd does not listen here")
