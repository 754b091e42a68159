"""What is sent to another machine: that it is whole, needs little, measures as here, and ends well."""

from __future__ import annotations

import ast
import ctypes
import dataclasses
import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from exporters.loading import load
from profiles.latency.gpu import time_stages
from profiles.remote import entry, opening, serving
from profiles.remote.cuda import Driver
from profiles.remote.engine import open_engine
from profiles.remote.opening import open_file
from profiles.remote.order import Job, Order, Part, Play, Refused, from_line, to_line
from profiles.remote.packing import bootstrap, pack, shipped
from profiles.remote.timing import candidate, images_of, refuse_other_versions

JOB = Job("0/net.onnx", "my net", "onnxruntime", "cpu", 2, 1)


@pytest.fixture(scope="module")
def net(tmp_path_factory) -> Path:
    """float32 [batch, 3, 8, 10] -> 4 logits, in the folder where the runner looks for it."""
    folder = tmp_path_factory.mktemp("place") / "files" / "0"
    folder.mkdir(parents=True)
    weights = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["images", "w"], ["c"], kernel_shape=[3, 3]),
            helper.make_node("GlobalAveragePool", ["c"], ["p"]),
            helper.make_node("Flatten", ["p"], ["logits"]),
        ],
        "net",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 8, 10])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(weights, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), folder / "net.onnx")
    return folder / "net.onnx"


def part(path: Path, name: str = "0/net.onnx") -> Part:
    return Part(name, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())


def order(*parts: Part, **changes: Any) -> Order:
    return dataclasses.replace(Order(parts, (JOB,), 60.0, 0.02), **changes)


def noise(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(1).random(shape, dtype=np.float32)


# the archive


def test_what_is_shipped_imports_numpy_and_pythons_own_and_nothing_else() -> None:
    files = shipped()
    assert {"profiles.latency.benchmark", "profiles.latency.machine", "profiles.latency.loadgen", "profiles.remote.entry"} <= set(files)
    known, optional = sys.stdlib_module_names | {"numpy", "profiles"}, {"pynvml", "mlperf_loadgen"}
    for name, path in files.items():
        tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=entry.OLDEST)
        for node in ast.walk(tree):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            foreign = {module.partition(".")[0] for module in modules} - known
            assert foreign <= (set() if node in tree.body else optional), f"{name} imports {foreign}"


def test_the_archive_holds_the_very_files_that_measure_here() -> None:
    with zipfile.ZipFile(io.BytesIO(pack())) as archive:
        for name, path in shipped().items():
            inner = name.replace(".", "/")
            place = f"{inner}/__init__.py" if path.name == "__init__.py" else f"{inner}.py"
            assert archive.read(place) == path.read_bytes()


def test_the_line_that_begins_it_is_one_line_without_quotes_of_a_shell() -> None:
    line = bootstrap(b"1234")
    assert "\n" not in line
    assert not set(line) & set("'`$!\\")
    compile(line, "bootstrap", "exec")


def test_a_python_that_is_too_old_says_so(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    with pytest.raises(SystemExit) as caught:
        entry.main()
    assert caught.value.code == 1
    _, begin, reply, end = capsys.readouterr().out.splitlines()
    assert (begin, end) == (entry.BEGIN, entry.END)
    assert json.loads(reply) == {"error": f"{sys.executable} is Python 3.9, expected 3.10 or newer"}


# an order


def test_an_order_arrives_as_it_was() -> None:
    one = Order(
        (Part("0/a", 1, "x"),),
        (JOB, dataclasses.replace(JOB, size=(8, 9))),
        60.0,
        None,
        (Play(1, {"scenario": "Offline", "duration_s": 1.0}),),
        "int8",
        {"numpy": "2"},
    )
    assert from_line(to_line(one)) == one


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "0/../../x", ""])
def test_a_file_goes_nowhere_but_into_its_folder(name: str) -> None:
    with pytest.raises(Refused, match="no place inside a folder"):
        from_line(to_line(order(Part(name, 0, ""))))


@pytest.mark.parametrize("line", [b"", b"{", b"[]", b"{}", b'{"parts": [], "jobs": [], "plays": [], "more": 1}'])
def test_what_is_no_order_is_refused(line: bytes) -> None:
    with pytest.raises(Refused, match="did not arrive whole"):
        from_line(line)


def test_a_file_that_arrives_damaged_or_short_is_refused(net: Path, tmp_path: Path) -> None:
    content, sent = net.read_bytes(), part(net)
    serving.receive(io.BytesIO(content + b"more"), sent, tmp_path)
    assert (tmp_path / "0" / "net.onnx").read_bytes() == content
    for wrong in (content[:-1], content[:-1] + b"?"):
        with pytest.raises(Refused, match=rf"0/net\.onnx arrived damaged: .*expected {len(content)} of"):
            serving.receive(io.BytesIO(wrong), sent, tmp_path)


@pytest.mark.parametrize(
    ("code", "said"),
    [(-11, r"crashed \(SIGSEGV\)$"), (-9, r"crashed \(SIGKILL; .* out of memory\)$"), (3, "ended with code 3 and no")],
)
def test_a_process_that_ends_without_an_answer_is_explained(tmp_path: Path, code: int, said: str) -> None:
    with pytest.raises(Refused, match=said):
        serving.read_reply(tmp_path / "reply.json", code)


# the whole of it, without a network between


def call(content: bytes, temporary: Path, **surroundings: str) -> tuple[dict[str, Any], subprocess.Popen[bytes]]:
    """What the runner answers to all that is sent; its standard input stays open until then."""
    archive = pack()
    process = subprocess.Popen(
        [sys.executable, "-c", bootstrap(archive)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1", **surroundings},
        cwd="/",
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(archive + content)
        process.stdin.flush()
        said = process.stdout.read().decode()
    return json.loads(said.partition(entry.BEGIN)[2].partition(entry.END)[0]), process


def test_an_order_is_done_answered_and_cleaned_up(net: Path, tmp_path: Path) -> None:
    found, process = call(to_line(order(part(net))) + net.read_bytes(), tmp_path)
    (latency,) = found["quick"]["latencies"]
    assert 0 < latency["latency_ms_p50"] <= latency["latency_ms_p90"]
    assert len(found["quick"]["medians"][0]) == 5
    assert found["machine"]["versions"]["onnxruntime"] == onnxruntime.__version__
    assert process.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_work_that_takes_too_long_is_ended(net: Path, tmp_path: Path) -> None:
    endless = order(part(net), limit_s=0.0, quick_s=600.0)
    found, process = call(to_line(endless) + net.read_bytes(), tmp_path)
    assert found["error"].startswith("not done after 0 s")
    assert process.returncode == 1
    assert list(tmp_path.iterdir()) == []


def test_a_runtime_that_crashes_is_told_and_cleaned_up(net: Path, tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    found, _ = call(to_line(order(part(net))) + net.read_bytes(), temporary, PYTHONPATH=str(tmp_path))
    assert found == {"error": "the runtime there crashed (SIGSEGV)"}
    assert list(temporary.iterdir()) == []


# the same as here


def test_a_session_is_opened_with_the_options_that_this_machine_opens_it_with(net: Path, monkeypatch) -> None:
    real, seen = onnxruntime.InferenceSession, []

    def session(path: str, options: Any, providers: list[str]) -> Any:
        names = [name for name in dir(options) if not name.startswith("_")]
        plain = {name: getattr(options, name) for name in names if not callable(getattr(options, name))}
        seen.append((path, {name: str(value) for name, value in plain.items()}, providers))
        return real(path, options, providers=providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    load(net, threads=1).close()
    open_file(JOB, net)
    ours, theirs = seen
    assert ours == theirs
    assert ours[1]["intra_op_num_threads"] == "1"


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_it_answers_as_the_same_file_does_here(net: Path, runtime: Any) -> None:
    pytest.importorskip(runtime)
    images = noise(2, 3, 8, 10)
    there = open_file(dataclasses.replace(JOB, runtime=runtime), net)
    with load(net, runtime=runtime, threads=1) as here:
        expected = here(images)
        assert (there.precision, there.takes_bytes, there.batches) == (here.precision, here.expects_uint8, here.batch_range)
    (answer,) = there(images)  # pyright: ignore[reportGeneralTypeIssues]
    np.testing.assert_allclose(answer, expected, rtol=1e-5)


def test_a_provider_that_fell_back_is_refused(net: Path, monkeypatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(opening.PROVIDERS.values()))
    on_processor = SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: on_processor)
    with pytest.raises(Refused, match=r"my net: CUDAExecutionProvider was asked for, but .* fell back to CPU"):
        open_file(dataclasses.replace(JOB, provider="cuda"), net)


def test_convolutions_left_on_the_processor_are_refused(net: Path, monkeypatch) -> None:
    node = SimpleNamespace(name="conv", op_type="Conv")
    parts = [SimpleNamespace(ep_name="CPUExecutionProvider", get_nodes=lambda: [node])]
    halved = SimpleNamespace(
        get_providers=lambda: ["CUDAExecutionProvider"], get_provider_graph_assignment_info=lambda: parts
    )
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(opening.PROVIDERS.values()))
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: halved)
    with pytest.raises(Refused, match=r"runs 1 of its convolutions and products on the processor \(conv\)"):
        open_file(dataclasses.replace(JOB, provider="cuda"), net)


def test_a_runtime_that_is_not_there_is_named_with_what_installs_it(net: Path, monkeypatch) -> None:
    monkeypatch.setattr(opening.importlib, "import_module", missing("tensorrt_rtx"))
    with pytest.raises(
        Refused, match=rf"tensorrt_rtx is not installed there; .*{sys.executable} -m pip install tensorrt-rtx-cu13"
    ):
        open_file(dataclasses.replace(JOB, runtime="tensorrt-rtx"), net)
    monkeypatch.setattr(opening.importlib, "import_module", missing("flatbuffers"))
    with pytest.raises(Refused, match="onnxruntime there needs flatbuffers, which is not installed"):
        open_file(JOB, net)


def missing(name: str) -> Any:
    def look(_: str) -> ModuleType:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    return look


# what a job is timed on


def test_a_candidate_has_its_beginning_and_images_of_its_batch(net: Path) -> None:
    one = candidate(JOB, None, net.parents[2])
    assert one.example.shape == (2, 3, 8, 10)
    assert (one.batch_size, one.threads, one.runtime, one.device, one.precision) == (2, 1, "onnxruntime", "cpu", "fp32")
    assert one.load_ms is not None
    assert one.first_call_ms is not None


def test_a_precision_that_is_not_the_one_wanted_is_refused(net: Path) -> None:
    with pytest.raises(Refused, match="my net: runs in fp32 there, expected int8"):
        candidate(JOB, "int8", net.parents[2])


@pytest.mark.parametrize(
    ("shape", "size", "takes_bytes", "expected"),
    [
        (["n", 3, 8, 10], None, False, (2, 3, 8, 10)),
        (["n", 1, "h", "w"], (4, 5), False, (2, 1, 4, 5)),
        (["n", "c", "h", "w"], (4, 5), False, (2, 3, 4, 5)),
        (["n", "h", "w", 3], (4, 5), True, (2, 4, 5, 3)),
    ],
)
def test_images_have_the_size_of_the_file_or_the_one_asked_for(shape, size, takes_bytes, expected) -> None:
    assert images_of(shape, dataclasses.replace(JOB, size=size), takes_bytes=takes_bytes) == expected


def test_a_size_that_is_unknown_or_another_than_the_files_is_refused() -> None:
    with pytest.raises(Refused, match="my net: the file does not say its image size"):
        images_of(["n", 3, "h", "w"], JOB, takes_bytes=False)
    with pytest.raises(Refused, match="my net: reads images of 8x10, found 4x5 asked for"):
        images_of(["n", 3, 8, 10], dataclasses.replace(JOB, size=(4, 5)), takes_bytes=False)


def test_versions_are_compared_number_by_number() -> None:
    refuse_other_versions({"onnxruntime": "1.2"}, {"onnxruntime": "1.2.7"})
    refuse_other_versions({"onnxruntime": "1.2.7"}, {"onnxruntime": "1.2.7"})
    for wanted in ({"onnxruntime": "1"}, {"onnxruntime": "1.20"}, {"numpy": "2"}):
        with pytest.raises(Refused, match="expected"):
            refuse_other_versions(wanted, {"onnxruntime": "1.2.7"} if "1" not in wanted.values() else {})


# engines, over the host's memory in the place of a GPU's


class Cuda:
    """The driver's functions that are called, on the host's memory; events of a clock that goes on by 1 ms a mark."""

    def __init__(self) -> None:
        self.rooms: list[Any] = []
        self.marks: dict[int, float] = {}
        self.clock = 0.0

    def __getattr__(self, name: str) -> Any:
        if name in ("cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuCtxSetCurrent", "cuStreamSynchronize"):
            return lambda *_: 0
        if name in ("cuEventSynchronize", "cuStreamCreate"):
            return lambda *_: 0
        raise AttributeError(name)

    def cuDeviceGetUuid(self, found: Any, _: Any) -> int:
        found._obj[:] = range(16)
        return 0

    def cuMemAlloc_v2(self, place: Any, size: Any) -> int:
        self.rooms.append(ctypes.create_string_buffer(size.value))
        place._obj.value = ctypes.addressof(self.rooms[-1])
        return 0

    def cuMemcpyHtoDAsync_v2(self, place: Any, source: Any, size: Any, _: Any) -> int:
        ctypes.memmove(place.value, source.value, size.value)
        return 0

    def cuMemcpyDtoHAsync_v2(self, target: Any, place: Any, size: Any, _: Any) -> int:
        ctypes.memmove(target.value, place.value, size.value)
        return 0

    def cuEventCreate(self, handle: Any, _: Any) -> int:
        handle._obj.value = len(self.marks) + 1
        self.marks[handle._obj.value] = 0.0
        return 0

    def cuEventRecord(self, handle: Any, _: Any) -> int:
        self.clock += 1.0
        self.marks[handle.value] = self.clock
        return 0

    def cuEventElapsedTime(self, found: Any, begin: Any, end: Any) -> int:
        found._obj.value = self.marks[end.value] - self.marks[begin.value]
        return 0


class Broken(Cuda):
    """A driver that finds no GPU."""

    def cuDeviceGet(self, *_: Any) -> int:
        return 100

    def cuGetErrorString(self, _: Any, text: Any) -> int:
        text._obj.value = b"no CUDA-capable device is detected"
        return 0


class Context:
    """Runs an ONNX file on addresses in memory, as an engine's context does."""

    def __init__(self, source: Path) -> None:
        self.session = onnxruntime.InferenceSession(str(source), providers=["CPUExecutionProvider"])
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, _: str, shape: tuple[int, ...]) -> bool:
        self.images = np.zeros(shape, np.float32)
        return shape[1:] == (3, 8, 10)

    def get_tensor_shape(self, _: str) -> tuple[int, ...]:
        return (self.images.shape[0], 4)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, _: int) -> bool:
        ctypes.memmove(self.images.ctypes.data, self.addresses["images"], self.images.nbytes)
        (answer,) = self.session.run(None, {"images": self.images})
        ctypes.memmove(self.addresses["logits"], answer.ctypes.data, answer.nbytes)
        return True


@pytest.fixture
def engine(net: Path, tmp_path: Path, monkeypatch) -> Path:
    """The classifier as an engine of a TensorRT that is stood in for."""
    context = Context(net)
    found = SimpleNamespace(
        create_execution_context=lambda: context,
        num_io_tensors=2,
        get_tensor_name=["images", "logits"].__getitem__,
        get_tensor_dtype=lambda _: SimpleNamespace(name="FLOAT"),
        get_tensor_mode=lambda name: "in" if name == "images" else "out",
        get_tensor_shape=lambda name: (-1, 3, 8, 10) if name == "images" else (-1, 4),
        get_tensor_profile_shape=lambda *_: [(1, 3, 8, 10), (2, 3, 8, 10), (4, 3, 8, 10)],
    )

    class Logger:
        Severity = SimpleNamespace(ERROR=1, INTERNAL_ERROR=0)

        def __init__(self) -> None:
            """As the library's own."""

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger, self.engine_host_code_allowed = logger, False

        def deserialize_cuda_engine(self, content: bytes) -> Any:
            if content == b"engine":
                return found
            self.logger.log(1, "the magic tag\ndoes not match")
            return None

    library = ModuleType("tensorrt")
    library.__dict__.update(
        __version__="10.3.0", ILogger=Logger, Runtime=Runtime, TensorIOMode=SimpleNamespace(INPUT_DESCRIPTION="in")
    )
    monkeypatch.setitem(sys.modules, "tensorrt", library)
    path = tmp_path / "net.engine"
    path.write_bytes(b"engine")
    (tmp_path / "net.engine.json").write_text(json.dumps({"version": "10.3.0", "options": {}}))
    return path


ENGINE = dataclasses.replace(JOB, runtime="tensorrt", provider="cuda", precision="fp16")


def driver(kind: type[Cuda] = Cuda) -> Driver:
    return Driver(kind())


def test_an_engine_answers_as_its_source_does(engine: Path, net: Path) -> None:
    ready = open_engine(ENGINE, engine, driver())
    assert ready.gpu == "00010203-0405-0607-0809-0a0b0c0d0e0f"
    assert (ready.batches, ready.precision, ready.takes_bytes, ready.shape[1:]) == ((1, 4), "fp16", False, [3, 8, 10])
    with load(net) as here:
        for size in (2, 4, 2):
            images = noise(size, 3, 8, 10)
            (answer,) = ready(images)  # pyright: ignore[reportGeneralTypeIssues]
            np.testing.assert_allclose(answer, here(images), rtol=1e-5)


def test_copies_and_work_of_an_engine_are_timed_apart(engine: Path) -> None:
    ready = open_engine(ENGINE, engine, driver())
    assert ready.parts is not None
    found = time_stages(ready.parts, noise(2, 3, 8, 10), runs=3, discarded=1)
    assert (found.copy_in_ms, found.compute_ms, found.copy_out_ms) == (1.0, 1.0, 1.0)


def test_an_engine_that_is_not_for_there_is_refused_in_the_librarys_words(engine: Path) -> None:
    engine.write_bytes(b"another")
    with pytest.raises(
        Refused, match=r"cannot be loaded there \(TensorRT 10\.3\.0 says: the magic tag does not match\)"
    ):
        open_engine(ENGINE, engine, driver())


def test_an_engine_of_another_version_is_refused_naming_both(engine: Path) -> None:
    engine.with_name("net.engine.json").write_text(json.dumps({"version": "10.0.1", "options": {}}))
    with pytest.raises(Refused, match=r"built by TensorRT 10\.0\.1, found TensorRT 10\.3\.0 there"):
        open_engine(ENGINE, engine, driver())


def test_a_machine_without_a_gpu_is_told_in_the_drivers_words(engine: Path) -> None:
    with pytest.raises(Refused, match=r"cuDeviceGet fails \(no CUDA-capable device is detected\)"):
        open_engine(ENGINE, engine, driver(Broken))


def test_a_machine_without_a_driver_is_told(engine: Path, monkeypatch) -> None:
    monkeypatch.setattr("profiles.remote.cuda.LIBRARY", "libcuda-that-is-not-there.so")
    with pytest.raises(Refused, match="there is no NVIDIA driver there"):
        open_engine(ENGINE, engine)
