"""PyTorch modules as runners. The only module of this package that imports torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import first_line
from exporters.errors import RunnerError, RuntimeUnavailableError
from exporters.runtimes.base import Images, OutputArray, Provider, Runner


class TorchRunner(Runner):
    """A module in eval mode on the provider's device."""

    runtime = "torch"

    def __init__(
        self, module: nn.Module, *, provider: Provider = "cpu", threads: int | None = None, is_compiled: bool = False
    ) -> None:
        if provider not in ("cpu", "cuda"):
            raise RunnerError(f"provider: found {provider}, expected cpu or cuda for PyTorch.")
        if provider == "cuda" and not torch.cuda.is_available():
            raise RuntimeUnavailableError("provider cuda: PyTorch finds no CUDA device; use cpu.")
        super().__init__(provider, threads)
        self.module = module.to(provider).eval()
        self.function: Any = torch.compile(self.module, dynamic=False) if is_compiled else self.module
        self.runtime = "torch-compile" if is_compiled else "torch"
        if provider == "cuda":
            properties = torch.cuda.get_device_properties(torch.cuda.current_device())
            uuid = getattr(properties, "uuid", None)
            self.gpu_uuid = None if uuid is None else str(uuid)

    def run(self, images: Images) -> dict[str, OutputArray]:
        if self.threads is not None and torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        with torch.inference_mode():
            output = self.forward(torch.as_tensor(images).to(self.provider))
        if not isinstance(output, Tensor):
            raise RunnerError(f"network output: found {type(output).__name__}, expected one tensor of logits.")
        logits = output.float().cpu().numpy()
        self.classes = logits.shape[1]
        return {"logits": logits}

    def forward(self, images: Tensor) -> Any:
        """Run the module on images on its device."""
        if self.runtime == "torch":
            return self.function(images)
        try:
            return self.function(images)
        except RuntimeError as error:
            raise RunnerError(f"torch.compile fails for this network ({first_line(error)}); use torch.") from error

    def close(self) -> None:
        del self.function
