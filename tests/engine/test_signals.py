"""Stop signals in real processes: the first one is handled, the second one ends the process whatever it does."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import pytest
from running import is_running

from compress.engine.signals import handle_signals

#: seconds after which a process counts as hanging
PATIENCE = 60
SETUP = """
import os, signal, subprocess, sys, time
from compress.engine.signals import handle_signals, raise_stop_signal
def note(signum, frame):
    os.write(1, b"first\\n")
"""
#: calls that last much longer than the test, by what they hold
LONG_CALLS = {
    "sleep": "time.sleep(1000)",
    "C code without the global lock": "__import__('hashlib').pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)",
    "big numbers": "9**9**8",
    "regular expression": "__import__('re').match('(a+)+$', 'a' * 60 + 'b')",
    "C code with the global lock": "sum(__import__('itertools').repeat(1, 10**12))",
    "swallowed exceptions": """
while True:
    try:
        time.sleep(1000)
    except BaseException:
        pass""",
}


def start(code: str, handler: str = "note") -> subprocess.Popen[str]:
    script = f"{SETUP}\nwith handle_signals({handler}):\n    os.write(1, b'ready\\n')\n"
    script += "\n".join("    " + line for line in code.splitlines())
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    return process


def seconds_to_end(process: subprocess.Popen[str]) -> float:
    begin = time.monotonic()
    try:
        process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    return time.monotonic() - begin


@pytest.mark.parametrize(
    ("call", "handler"), [*((call, "note") for call in LONG_CALLS), ("swallowed exceptions", "raise_stop_signal")]
)
def test_second_signal_ends_process(call, handler):
    process = start(LONG_CALLS[call], handler)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert seconds_to_end(process) < PATIENCE / 2
    assert process.returncode in (130, -signal.SIGINT)  # a shell shows both as 130


@pytest.mark.parametrize(("second", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_second_signal_decides_exit_code(second, code):
    process = start(LONG_CALLS["sleep"])
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(second)
    seconds_to_end(process)
    assert process.returncode == code


@pytest.mark.skipif(sys.platform != "linux", reason="descendants are found in /proc")
def test_descendants_end_too():
    grandchild = "import subprocess, sys; subprocess.Popen(['sleep', '777']); import time; time.sleep(777)"
    process = start(
        f"child = subprocess.Popen([sys.executable, '-c', {grandchild!r}], start_new_session=True)\n"
        "print(child.pid, flush=True)\ntime.sleep(1000)"
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    time.sleep(0.3)
    process.terminate()
    time.sleep(0.2)
    process.terminate()
    seconds_to_end(process)
    for _ in range(100):
        if not is_running(child):
            return
        time.sleep(0.05)
    pytest.fail("the child still runs")


def test_ignored_hangup_stays_ignored():
    code = "import signal, subprocess, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    inner = f"{SETUP}\nwith handle_signals(note):\n    os.kill(os.getpid(), signal.SIGHUP)\n    print('alive')"
    code += f"sys.exit(subprocess.run([sys.executable, '-c', {inner!r}]).returncode)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout) == (0, "alive\n")


RESTORE = """
import os, signal, threading
from compress.engine.signals import SecondSignal, StopSignal, handle_signals, raise_stop_signal, received_signal
STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
handlers = [signal.getsignal(signum) for signum in STOP]
threads = threading.active_count()
read, write = os.pipe()
os.set_blocking(write, False)
signal.set_wakeup_fd(write)
with handle_signals(lambda *_: None), handle_signals(raise_stop_signal):
    assert received_signal() == 0
    try:
        signal.raise_signal(signal.SIGTERM)
    except StopSignal:
        assert received_signal() == signal.SIGTERM
assert os.read(read, 8) == bytes([signal.SIGTERM]), "whoever waits for signals still sees them"
assert signal.set_wakeup_fd(-1) == write
assert [signal.getsignal(signum) for signum in STOP] == handlers
assert threading.active_count() == threads
assert SecondSignal.current is None
for _ in range(2):  # the kernel's action is as before too
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        pass
print("restored", flush=True)
signal.raise_signal(signal.SIGTERM)
"""


def test_handlers_and_descriptor_are_restored():
    done = subprocess.run([sys.executable, "-c", RESTORE], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "restored\n"), done.stderr


def test_other_threads_leave_signals_alone():
    seen = []

    def work() -> None:
        with handle_signals(lambda *_: None):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]


def test_forked_child_reports_to_nobody():
    process = start(
        "pid = os.fork()\nif pid == 0:\n    time.sleep(1000)\n"
        "os.kill(pid, signal.SIGTERM)\nos.kill(pid, signal.SIGTERM)\ntime.sleep(0.3)\n"
        "os.kill(pid, signal.SIGKILL)\nos.waitpid(pid, 0)\nprint('alive')"
    )
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert "alive" in out
