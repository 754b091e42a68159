"""Conversion of verified ONNX files to OpenVINO's NAME.xml and NAME.bin."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from exporters.errors import ExportError
from exporters.onnx_validation import model_metadata, read_model
from exporters.runtimes.openvino import METADATA, OPENVINO_ERRORS, error_reason, import_openvino, shared_core


@dataclass(frozen=True)
class OpenVINOConversion:
    """An OpenVINO file that was made from an ONNX file."""

    precision: str  #: of the graph; the runner reports the precision at run time
    version: str  #: of OpenVINO


def convert_to_openvino(source: Path, path: Path) -> OpenVINOConversion:
    """Convert an ONNX file to an OpenVINO file in the same precision.

    Args:
        source: The ONNX file.
        path: The .xml file to write; the weights go to a .bin file beside it.

    Raises:
        RunnerError: The source is missing, damaged or unsafe.
        ExportError: OpenVINO cannot convert the file.
        RuntimeUnavailableError: OpenVINO is not installed.
    """
    openvino = import_openvino()
    metadata = model_metadata(read_model(source))
    try:
        graph = shared_core(openvino).read_model(str(source))
        for name, value in metadata.items():
            graph.set_rt_info(value, [METADATA, name])
        openvino.save_model(graph, str(path), compress_to_fp16=False)
    except OPENVINO_ERRORS as error:
        raise ExportError(f"{source}: OpenVINO cannot convert it ({error_reason(error)}).") from error
    return OpenVINOConversion(metadata.get("precision", "fp32"), openvino.__version__.split("-")[0])
