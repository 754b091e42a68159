"""Networks in a run: trainable models with their optimizers, frozen models, and inner optimization loops."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from compress.engine.accelerator import Accelerator
from compress.engine.schedules import Schedule
from compress.errors import CompressError

OptimizerFactory = Callable[[list[nn.Parameter]], Optimizer]


class DivergedError(CompressError):
    """A loss, a parameter or a buffer is NaN or infinite.

    Attributes:
        on_all_ranks: All processes of the run raise it at the same point.
    """

    on_all_ranks = False


@contextmanager
def eval_mode(net: nn.Module) -> Iterator[nn.Module]:
    """Context in which `net` is in eval mode and gradients are off; restores the mode afterwards."""
    was_training = net.training
    net.eval()
    try:
        with torch.no_grad():
            yield net
    finally:
        net.train(was_training)


def check_finite_loss(loss: Tensor, name: str, accelerator: Accelerator) -> None:
    """Raise DivergedError if a loss is not finite, in the only process on a CPU.

    On a GPU the check would wait for the device. One of several processes must not leave a step on its own, because the
    others wait for its gradients; the run checks when it logs, evaluates and saves.
    """
    if accelerator.world_size == 1 and loss.device.type == "cpu" and not bool(torch.isfinite(loss)):
        raise DivergedError(f"the loss of {name} is {loss.item()}")


def is_finite_state(state: Any) -> bool:
    """Check that all tensors in nested dicts and lists are finite; needs no memory of their size."""
    if isinstance(state, Mapping):
        return all(is_finite_state(value) for value in state.values())
    if isinstance(state, list | tuple):
        return all(is_finite_state(value) for value in state)
    if not isinstance(state, Tensor) or not state.is_floating_point() or not state.numel():
        return True
    return all(bool(extreme.isfinite()) for extreme in state.detach().aminmax())  # a NaN is the extreme


def create_grad_scaler(accelerator: Accelerator) -> GradScaler:
    """Create a scaler against float16 underflow; it is disabled in any other precision."""
    return GradScaler(accelerator.device.type, enabled=accelerator.precision == "16")


class FrozenModel:
    """A network in eval mode without trainable parameters; gradients reach its input only."""

    def __init__(self, net: nn.Module, accelerator: Accelerator) -> None:
        self.net = accelerator.prepare(net).eval()
        for parameter in self.net.parameters():
            parameter.requires_grad_(False)
        self.accelerator = accelerator

    def __call__(self, x: Tensor) -> Tensor:
        return self.accelerator.forward(self.net, x)


class TrainableModel:
    """A network with its optimizer; handles mixed precision and several processes.

    Create it with `Run.add_trainable`, so that checkpoints contain it.

    Args:
        name: Name in logs and checkpoints.
        net: The network.
        accelerator: Device, precision and processes.
        optimizer: Function from the list of parameters to an optimizer.
        schedule: Factor of the learning rates as a function of progress in [0, 1].
    """

    def __init__(
        self, name: str, net: nn.Module, accelerator: Accelerator, optimizer: OptimizerFactory, schedule: Schedule
    ) -> None:
        self.name = name
        self.net = accelerator.prepare(net).train()
        self.accelerator = accelerator
        self.schedule = schedule
        self.optimizer = optimizer(list(self.net.parameters()))
        for group in self.optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        self.scaler = create_grad_scaler(accelerator)

    def __call__(self, *inputs: Tensor) -> Tensor:
        return self.accelerator.forward(self.net, *inputs)

    def forward_frozen(self, *inputs: Tensor) -> Tensor:
        """Forward with constant parameters: gradients reach the inputs only."""
        trainable = [p for p in self.net.parameters() if p.requires_grad]
        for parameter in trainable:
            parameter.requires_grad_(False)
        try:
            return self(*inputs)
        finally:
            for parameter in trainable:
                parameter.requires_grad_(True)

    def forward_eval(self, *inputs: Tensor) -> Tensor:
        """Like `forward_frozen`, but in eval mode, so that BatchNorm statistics do not change either."""
        self.net.eval()
        try:
            return self.forward_frozen(*inputs)
        finally:
            self.net.train()

    def predict(self, *inputs: Tensor) -> Tensor:
        """Forward in eval mode without gradients."""
        with eval_mode(self.net):
            return self(*inputs)

    def optimization_step(
        self, loss: Tensor, *, jointly_with: Sequence[TrainableModel] = (), max_grad_norm: float | None = None
    ) -> None:
        """Minimize `loss` by one step of the optimizer.

        Args:
            loss: Scalar loss.
            jointly_with: Other models that take a step with gradients of the same loss.
            max_grad_norm: Clips the gradient of each model to this norm.

        Raises:
            DivergedError: Before any change, if the loss is not finite (see `check_finite_loss`).
        """
        check_finite_loss(loss, self.name, self.accelerator)
        models = (self, *jointly_with)
        for model in models:
            model.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        for model in models:
            model.sync_gradients()
            if max_grad_norm is not None:
                self.scaler.unscale_(model.optimizer)
                nn.utils.clip_grad_norm_(model.net.parameters(), max_grad_norm)
            self.scaler.step(model.optimizer)
        self.scaler.update()

    def apply_gradients(self, gradients: list[Tensor]) -> None:
        """Take one optimizer step with given gradients, one per parameter."""
        for parameter, gradient in zip(self.net.parameters(), gradients, strict=True):
            parameter.grad = gradient.detach().clone()
        self.sync_gradients()
        self.optimizer.step()  # without the scaler, because these gradients are not scaled

    def sync_gradients(self) -> None:
        """Average the gradients over the processes."""
        self.accelerator.all_reduce_mean([p.grad for p in self.net.parameters() if p.grad is not None])

    def sync_buffers(self) -> None:
        """Average the BatchNorm statistics over the processes, so that replicas stay equal."""
        persistent = self.net.state_dict(keep_vars=True).keys()  # excludes constants such as a normalization
        named = self.net.named_buffers()
        self.accelerator.all_reduce_mean([b for name, b in named if name in persistent and b.is_floating_point()])

    def set_progress(self, progress: float, *, factor: float = 1.0) -> None:
        """Set the learning rates for `progress` in [0, 1], times `factor`."""
        factor *= self.schedule(progress)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor

    def is_finite(self) -> bool:
        """Check that all parameters and buffers are finite."""
        tensors = [t for t in (*self.net.parameters(), *self.net.buffers()) if t.is_floating_point()]
        return bool(torch.stack([t.detach().isfinite().all() for t in tensors]).all())

    def state_dict(self) -> dict[str, Any]:
        state = {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict()}
        return state | {"scaler": self.scaler.state_dict()} if self.scaler.is_enabled() else state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        if "scaler" in state:
            self.scaler.load_state_dict(state["scaler"])


class InnerLoop:
    """An optimization of pixels, noise or a temporary network that starts and ends within one step of a method.

    Nothing of it is saved in checkpoints.

    Args:
        name: Name in error messages.
        accelerator: Device, precision and processes.
        optimizer: Optimizer of all that is optimized.
        nets: Networks that are equal on all processes; their gradients are averaged. All other tensors of the optimizer
            belong to this process.
        scaler: Scaler that persists from loop to loop (`Run.create_scaler`). A new scaler needs some steps to find its
            scale, which a short loop cannot afford.
    """

    def __init__(
        self, name: str, accelerator: Accelerator, optimizer: Optimizer, nets: Sequence[nn.Module] = (),
        scaler: GradScaler | None = None,
    ) -> None:  # fmt: skip
        self.name, self.accelerator, self.optimizer, self.nets = name, accelerator, optimizer, nets
        self.scaler = scaler or create_grad_scaler(accelerator)

    def optimization_step(self, loss: Tensor, *, jointly_with: Sequence[TrainableModel] = ()) -> None:
        """Minimize `loss` by one step, together with other models; the gradients stay readable.

        Raises:
            DivergedError: As `TrainableModel.optimization_step`.
        """
        check_finite_loss(loss, self.name, self.accelerator)
        for optimizer in (self.optimizer, *(model.optimizer for model in jointly_with)):
            optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        if self.scaler.is_enabled():
            self._share_overflow()
        self.scaler.unscale_(self.optimizer)
        self.accelerator.all_reduce_mean([p.grad for net in self.nets for p in net.parameters() if p.grad is not None])
        self.scaler.step(self.optimizer)
        for model in jointly_with:
            model.sync_gradients()
            self.scaler.step(model.optimizer)
        self.scaler.update()
        if self.scaler.is_enabled():
            for gradient in self._gradients():
                gradient.nan_to_num_(0.0, 0.0, 0.0)  # an overflow is no direction for the caller

    def _gradients(self) -> list[Tensor]:
        return [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]

    def _share_overflow(self) -> None:
        """Spread a float16 overflow of one process to all, so that all skip the step and scales stay equal."""
        if self.accelerator.world_size > 1:
            gradients = self._gradients()
            overflow = torch.stack([g.float().sum() for g in gradients]).sum() * 0  # 0, or NaN
            self.accelerator.all_reduce_mean([overflow])
            for gradient in gradients:
                gradient += overflow
