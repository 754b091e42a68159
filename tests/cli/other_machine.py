"""Another machine for tests: a Python without our packages, reached through sshd, or a script in place of ssh."""

from __future__ import annotations

import contextlib
import getpass
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
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
    """The other machine and its temporary directory."""

    port: int
    python: Path
    user: str
    temporary: Path  #: its temporary directory

    def url(self, python: Path | str | None = None, **change: object) -> str:
        return f"ssh://{self.user}@127.0.0.1:{change.get('port', self.port)}?python={python or self.python}"

    def list_files(self) -> list[str]:
        return sorted(path.name for path in self.temporary.iterdir())

    def wait_for_cleanup(self) -> tuple[list[str], list[int]]:
        """Return the files and processes that remain after interrupted processes had time to end."""
        for _ in range(100):
            if not self.list_files() and not self.list_processes():
                break
            time.sleep(0.1)
        return self.list_files(), self.list_processes()

    def list_processes(self) -> list[int]:
        """Return the running processes of this machine's Python."""
        running = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if str(self.python) in path.read_text(errors="replace"):
                    running.append(int(path.parent.name))
        return running


def classifier(path: Path, *, kernel: int = 3, size: tuple[int, int] | None = (8, 8), beside: bool = False) -> Path:
    """Write a network, float32 [batch, 3, 8, 8] -> 4 logits. `kernel`: input channels of its weights; 3 is valid."""
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
    """Create a virtual environment with only these distributions."""
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


@contextlib.contextmanager
def serve(folder: Path, python: Path) -> Iterator[Machine]:
    """Start an sshd with its own keys, and write an `ssh` that uses them into `folder`/bin.

    Without sshd the script runs the command on this machine.
    """
    temporary = folder / "temporary"
    temporary.mkdir()
    (folder / "bin").mkdir()
    if SSHD is None:
        script = folder / "bin" / "ssh"
        script.write_text(f'#!/bin/sh\nfor command; do :; done\nTMPDIR={temporary} exec sh -c "exec $command"\n')
        script.chmod(0o755)
        yield Machine(2222, python, getpass.getuser(), temporary)
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
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
    write_client(folder, port)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    with open(folder / "log", "wb") as log:
        server = subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log)
        try:
            wait_for_port(port, server, folder / "log")
            yield Machine(port, python, getpass.getuser(), temporary)
        finally:
            server.terminate()
            server.wait()


def write_client(folder: Path, port: int) -> None:
    """Write an ssh that reads the tests' configuration in place of the user's."""
    known = [
        f"IdentityFile {folder / 'user'}", "IdentitiesOnly yes", f"UserKnownHostsFile {folder / 'known'}",
        "StrictHostKeyChecking yes", "LogLevel ERROR",
    ]  # fmt: skip
    named = ["Host Board-7", "HostName 127.0.0.1", f"Port {port}", f"User {getpass.getuser()}"]
    (folder / "config").write_text("\n".join([*known, *named]) + "\n")
    script = folder / "bin" / "ssh"
    script.write_text(f'#!/bin/sh\nexec {shlex.quote(shutil.which("ssh") or "ssh")} -F {folder / "config"} "$@"\n')
    script.chmod(0o755)


def wait_for_port(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(100):
        if server.poll() is not None:
            pytest.skip(f"sshd does not start here: {log.read_text().strip()[-200:]}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    pytest.skip("sshd does not listen here")
