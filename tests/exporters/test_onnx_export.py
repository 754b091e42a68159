"""ONNX export: verified at several batch sizes on the given images, or no file is written."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from exporters.errors import ExportError
from exporters.onnx_export import export_onnx
from exporters.parity import BATCH_SIZES
from exporters.seal import KEY as SEAL


class Small(nn.Module):
    """Convolution, BatchNorm with trained statistics, dropout: train mode would change the output."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(8, classes))
        nn.init.uniform_(self.features[1].running_mean, -1, 1)
        nn.init.uniform_(self.features[1].running_var, 0.5, 2)

    def forward(self, x):
        return self.head(self.features(x))


class Wrapper(nn.Module):
    """A module whose `.training` differs from that of the module it wraps."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


class Baked(nn.Module):
    """Correct only at the traced batch size, because it adds the batch size as a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Small()

    def forward(self, x):
        return self.inner(x) + torch.zeros(1) + float(torch.tensor(x.shape[0]))


class Sampling(nn.Module):
    """Random at every call, so that no export can match."""

    def forward(self, x):
        return x.mean((2, 3)) + torch.rand(x.shape[0], 3)


EXAMPLE = torch.zeros(1, 3, 16, 16)


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_outputs_match_at_every_batch_size(tmp_path: Path, exporter) -> None:
    torch.manual_seed(0)
    net = Small()
    result = export_onnx(net, EXAMPLE, tmp_path / "a.onnx", exporter=exporter)
    session = onnxruntime.InferenceSession(str(tmp_path / "a.onnx"), providers=["CPUExecutionProvider"])
    net.eval()
    for n in (1, 2, 5, 7):
        x = torch.rand(n, 3, 16, 16)
        (answer,) = session.run(["logits"], {"images": x.numpy()})
        np.testing.assert_allclose(answer, net(x).detach().numpy(), rtol=1e-4, atol=1e-5)
    assert result.exporter == exporter
    assert result.batch_sizes == BATCH_SIZES
    assert result.parity.top1_agreement == 1.0
    assert result.parity.max_rel < 1e-5


def test_result_describes_only_file(tmp_path: Path) -> None:
    result = export_onnx(Small(), EXAMPLE, tmp_path / "a.onnx", exporter="torchscript")
    content = (tmp_path / "a.onnx").read_bytes()
    assert (result.bytes, result.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert os.listdir(tmp_path) == ["a.onnx"]
    assert result.opset == 18


def test_module_modes_are_unchanged(tmp_path: Path) -> None:
    wrapped = Wrapper(Small().eval())
    wrapped.inner.features.train()
    modes = [part.training for part in wrapped.modules()]
    result = export_onnx(wrapped, EXAMPLE, tmp_path / "a.onnx", exporter="torchscript")
    assert [part.training for part in wrapped.modules()] == modes
    x = torch.rand(4, 3, 16, 16)
    session = onnxruntime.InferenceSession(str(tmp_path / "a.onnx"), providers=["CPUExecutionProvider"])
    (answer,) = session.run(None, {"images": x.numpy()})
    np.testing.assert_allclose(answer, wrapped.eval()(x).detach().numpy(), rtol=1e-4, atol=1e-5)
    assert result.parity.max_rel < 1e-5


def test_fixed_batch_size_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(b"what was here before")
    with pytest.raises(ExportError, match="not written"):
        export_onnx(Baked(), EXAMPLE, path, exporter="torchscript")
    assert path.read_bytes() == b"what was here before"
    assert os.listdir(tmp_path) == ["a.onnx"]


def test_random_network_fails_both_exporters(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"dynamo: .*torchscript: ") as caught:
        export_onnx(Sampling(), EXAMPLE, tmp_path / "a.onnx")
    assert caught.value.exit_code == 1
    assert os.listdir(tmp_path) == []


def test_second_exporter_after_failure(tmp_path: Path, monkeypatch) -> None:
    from exporters import torch_exporters as module

    def failing(*_):
        raise RuntimeError("cannot be exported\nat all")

    monkeypatch.setitem(module.EXPORTERS, "dynamo", failing)
    result = export_onnx(Small(), EXAMPLE, tmp_path / "a.onnx")
    assert result.exporter == "torchscript"
    assert result.failed_exporters == {"dynamo": "cannot be exported"}


def test_different_outputs_are_rejected(tmp_path: Path, monkeypatch) -> None:
    from exporters import torch_exporters as module

    right = module.export_torchscript

    def wrong(network, *arguments):
        model = right(network, *arguments)
        weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        values = onnx.numpy_helper.to_array(weight) * np.float32(1.05)
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        return model

    monkeypatch.setitem(module.EXPORTERS, "torchscript", wrong)
    with pytest.raises(ExportError, match="top-1 agreement"):
        export_onnx(Small(), EXAMPLE, tmp_path / "a.onnx", exporter="torchscript")
    assert os.listdir(tmp_path) == []


def test_all_images_are_compared(tmp_path: Path) -> None:
    images = torch.rand(23, 3, 16, 16)
    result = export_onnx(Small(), EXAMPLE, tmp_path / "a.onnx", images=images, exporter="torchscript")
    assert (result.parity.images, result.real_images) == (23, True)
    result = export_onnx(Small(), EXAMPLE, tmp_path / "a.onnx", images=images[:2], exporter="torchscript")
    assert result.parity.images == sum(BATCH_SIZES)


def test_images_of_other_size_raise(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"found \[2, 3, 8, 8\]"):
        export_onnx(Small(), EXAMPLE, tmp_path / "a.onnx", images=torch.rand(2, 3, 8, 8))


def test_static_batch_is_fixed(tmp_path: Path) -> None:
    result = export_onnx(
        Small(),
        EXAMPLE,
        tmp_path / "a.onnx",
        dynamic_batch=False,
        exporter="torchscript",
        images=torch.rand(3, 3, 16, 16),
    )
    model = onnx.load(tmp_path / "a.onnx")
    assert [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == [1, 3, 16, 16]
    assert (result.batch_sizes, result.parity.images) == ((1,), 3)


def test_file_has_metadata_but_no_paths(tmp_path: Path) -> None:
    export_onnx(Small(), EXAMPLE, tmp_path / "a.onnx", metadata={"class_names": '["a", "ü"]'}, exporter="dynamo")
    model = onnx.load(tmp_path / "a.onnx")
    entries = {entry.key: entry.value for entry in model.metadata_props}
    assert entries.pop(SEAL).startswith("sha256:")
    assert entries == {"class_names": '["a", "ü"]'}
    assert b"site-packages" not in (tmp_path / "a.onnx").read_bytes()
    assert b".py" not in (tmp_path / "a.onnx").read_bytes()


def test_old_opset_and_unwritable_output(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="opset: found 17"):
        export_onnx(Small(), EXAMPLE, tmp_path / "a.onnx", opset=17)
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="cannot be written"):
        export_onnx(Small(), EXAMPLE, tmp_path / "file" / "a.onnx", exporter="torchscript")


@pytest.mark.parametrize("opset", [18, 20])
def test_requested_opset_is_written(tmp_path: Path, opset) -> None:
    export_onnx(Small(), EXAMPLE, tmp_path / "a.onnx", opset=opset, exporter="torchscript")
    model = onnx.load(tmp_path / "a.onnx")
    assert next(entry.version for entry in model.opset_import if entry.domain == "") == opset


@pytest.mark.slow
def test_torchvision_network_exports(tmp_path: Path) -> None:
    from torchvision.models import shufflenet_v2_x0_5

    torch.manual_seed(0)
    net = shufflenet_v2_x0_5(weights=None, num_classes=7)
    result = export_onnx(net, torch.zeros(1, 3, 64, 64), tmp_path / "a.onnx")
    assert result.exporter == "dynamo"
    assert result.parity.max_rel < 1e-4


def test_timm_network_exports(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    net = timm.create_model("mobilenetv3_small_050", pretrained=False, num_classes=7)
    assert (
        export_onnx(net, torch.zeros(1, 3, 64, 64), tmp_path / "a.onnx", exporter="torchscript").parity.max_rel < 1e-4
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_exported_programs_are_exported(tmp_path: Path) -> None:
    net = Small().eval()
    script = Wrapper(torch.jit.trace(net, EXAMPLE))
    assert export_onnx(script, EXAMPLE, tmp_path / "a.onnx", exporter="torchscript").parity.max_rel < 1e-5
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(net, (torch.rand(2, 3, 16, 16),), dynamic_shapes=shapes).module(check_guards=False)
    wrapped = Wrapper(program)
    wrapped.train = lambda mode=True: wrapped  # exported programs do not change modes
    assert export_onnx(wrapped, EXAMPLE, tmp_path / "b.onnx", exporter="dynamo").parity.max_rel < 1e-5


def test_error_reason_without_colors() -> None:
    from compress.errors import first_line

    error = RuntimeError("\x1b[96mFailed\x1b[0m to export\nstep 1")
    assert first_line(error) == "Failed to export"
    error.__cause__ = ValueError("\nno such operator")
    assert first_line(error) == "no such operator"


def test_large_weights_in_second_file(tmp_path: Path, monkeypatch) -> None:
    from exporters import torch_exporters
    from exporters.errors import RunnerError
    from exporters.loading import load

    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 64), nn.ReLU(), nn.Linear(64, 5)).eval()
    monkeypatch.setattr(torch_exporters, "EXTERNAL_DATA_BYTES", 10_000)
    result = export_onnx(net, EXAMPLE, tmp_path / "a.onnx", metadata={"classes": "5"})
    assert sorted(os.listdir(tmp_path)) == ["a.onnx", "a.onnx.data"]
    assert result.bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert (tmp_path / "a.onnx").stat().st_size < 10_000
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for path in list(tmp_path.glob("a.onnx*")):
        path.rename(moved / path.name)
    x = torch.rand(4, 3, 16, 16)
    with load(moved / "a.onnx") as runner:
        np.testing.assert_allclose(runner(x), net(x).detach().numpy(), rtol=1e-4, atol=1e-5)
    (moved / "a.onnx.data").unlink()
    with pytest.raises(RunnerError, match=r"a\.onnx"):
        load(moved / "a.onnx")


def test_unsupported_operator_is_named(tmp_path: Path, capfd) -> None:
    class Spectral(nn.Module):
        def forward(self, x):
            return torch.linalg.eigvalsh(x.mean(1) + x.mean(1).transpose(1, 2))

    with pytest.raises(ExportError, match="linalg_eigh") as caught:
        export_onnx(Spectral(), EXAMPLE, tmp_path / "a.onnx")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert os.listdir(tmp_path) == []
