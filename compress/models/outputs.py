"""Logits from the output of a network of unknown origin: which of its outputs, and before which activation.

A network may return several tensors, and may end in a softmax or a sigmoid. Distillation compares logits, so both facts
are detected when the network is first run, and stored in its card.
"""

from __future__ import annotations

import dataclasses
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from compress.errors import CompressError, UsageError

Activation = Literal["none", "softmax", "log_softmax", "sigmoid"]
#: names under which networks return logits, and detectors boxes
LOGIT_NAMES = ("logits", "out")
BOX_NAMES = {
    "boxes", "bboxes", "pred_boxes", "detection_boxes", "det_boxes", "nmsed_boxes", "dets", "num_dets",
    "num_detections", "rois",
}  # fmt: skip
#: tensors that only detectors have
DETECTOR_TENSOR = re.compile(
    r"(^|\.)(rpn\.head\.|roi_heads?\.|head\.(classification|regression)_head\.|bbox_(embed|predictor|pred|head)\."
    r"|dfl\.conv\.weight$|anchor_grid$|model\.\d+\.anchors$|yolo_head)"
)
DETECTOR_CLASS = re.compile(
    r"\bmodels\.(detection\.|yolo\.(?!Classif))|\b\w*(RCNN|RetinaNet|DetectionModel|YOLO\w*)\b"
    r"|\bultralytics\.nn\.tasks\.(Segmentation|Pose|OBB|World)"
)
#: key of the provenance of a card
OUTPUT_KEY = "output"
SOFTMAX_FUNCTIONS = {
    torch.softmax, torch.Tensor.softmax, torch.special.softmax, F.softmax, torch.ops.aten.softmax.int,
    torch.ops.aten._softmax.default,
}  # fmt: skip
SIGMOID_FUNCTIONS = {
    torch.sigmoid, torch.Tensor.sigmoid, torch.special.expit, F.sigmoid, torch.ops.aten.sigmoid.default,
}  # fmt: skip
#: they only change the shape, so they can be applied to the input of a sigmoid instead
SHAPE_FUNCTIONS = {
    torch.squeeze, torch.Tensor.squeeze, torch.flatten, torch.Tensor.flatten, torch.reshape, torch.Tensor.reshape,
    torch.Tensor.view, torch.unsqueeze, torch.Tensor.unsqueeze, torch.Tensor.__getitem__,
    torch.ops.aten.squeeze.default, torch.ops.aten.squeeze.dim, torch.ops.aten.squeeze.dims,
    torch.ops.aten.flatten.using_ints, torch.ops.aten.reshape.default, torch.ops.aten.view.default,
    torch.ops.aten.unsqueeze.default, torch.ops.aten.select.int,
}  # fmt: skip
#: activations that are remembered, because attention uses softmax too and their inputs take memory
REMEMBERED = 8
#: largest difference of a sum of probabilities from 1: half precision has three digits
SUM_TOLERANCE = 5e-3


@dataclass(frozen=True)
class OutputRule:
    """How the logits are made from the output of a network."""

    index: int | None = None  #: of the output, from 0; None: the only one, or the one with a usual name
    name: str | None = None  #: of the output, if it has one
    activation: Activation = "none"  #: last operator of the network
    is_cut: bool = False  #: the input of the activation is taken, which is exact; else its inverse is computed

    def as_provenance(self) -> dict[str, Any]:
        """The entry for the provenance of a card; empty if there is nothing to say."""
        return {} if self == OutputRule() else {OUTPUT_KEY: dataclasses.asdict(self)}


def rule_from_provenance(provenance: Mapping[str, Any]) -> OutputRule:
    """The rule in the provenance of a card that this process or its child made."""
    return OutputRule(**provenance.get(OUTPUT_KEY, {}))


def describe_output(provenance: Mapping[str, Any]) -> str | None:
    """One sentence about the output of a network; None if it has one output, of logits."""
    rule = rule_from_provenance(provenance)
    name = "" if rule.name is None else f" ({rule.name})"
    parts = [] if rule.index is None else [f"output {rule.index}{name} is taken"]
    if rule.activation == "log_softmax":
        parts.append("it ends in a log-softmax, whose values are logits")
    elif rule.activation != "none":
        how = f"the input of the {rule.activation}" if rule.is_cut else "the logarithm of the probabilities"
        parts.append(f"it ends in a {rule.activation}; logits are {how}")
    return "; ".join(parts) or None


class ActivationRecorder(TorchFunctionMode):
    """Remembers inputs and results of the last softmax and sigmoid calls of a network that Python runs."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: deque[RecordedCall] = deque(maxlen=REMEMBERED)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        kind = "softmax" if func in SOFTMAX_FUNCTIONS else "sigmoid" if func in SIGMOID_FUNCTIONS else None
        if kind is not None and isinstance(result, Tensor) and "out" not in kwargs:
            given = args[0] if args else kwargs["input"]
            axis = args[1] if len(args) > 1 else kwargs.get("dim")
            self.calls.append(RecordedCall(LastOperator(kind, axis), given, result))
        elif func in SHAPE_FUNCTIONS and isinstance(result, Tensor):
            before = self.find(args[0])
            if before is not None and before.operator.kind == "sigmoid":
                given = func(before.input, *args[1:], **kwargs)
                self.calls.append(RecordedCall(before.operator, given, result))
        return result

    def find(self, value: object) -> RecordedCall | None:
        """The call that computed `value`."""
        return next((call for call in reversed(self.calls) if call.result is value), None)


@dataclass(frozen=True)
class LastOperator:
    """The activation that computes an output."""

    kind: Literal["softmax", "sigmoid"]
    axis: int | None = 1  #: of a softmax; None: PyTorch's default

    def is_over_classes(self, dims: int) -> bool:
        """Whether it is elementwise, or a softmax over axis 1 of an output with `dims` axes."""
        return self.kind == "sigmoid" or self.axis is None or self.axis % dims == 1


@dataclass(frozen=True)
class RecordedCall:
    """A call of an activation."""

    operator: LastOperator
    input: Tensor
    result: Tensor


@dataclass(frozen=True)
class NamedOutput:
    """One of the values that a network returned."""

    index: int
    name: str | None
    value: object
    operator: LastOperator | None = None

    def __str__(self) -> str:
        shape = list(self.value.shape) if isinstance(self.value, Tensor) else type(self.value).__name__
        return f"{self.index} {shape}" if self.name is None else f"{self.index} {self.name!r} {shape}"


class OutputAdapter:
    """Calls a network and returns logits. It replaces `forward`, so the tensors of the network keep their names."""

    def __init__(self, forward: Callable[[Any], object], source: str, classes: int | None) -> None:
        self.forward, self.source, self.classes = forward, source, classes
        self.rule = OutputRule()
        #: last operators by index of the output, for a network that Python does not run; None: they are recorded
        self.operators: Mapping[int, LastOperator] | None = None
        #: removes the activation of an output from such a network
        self.cut: Callable[[OutputRule], None] | None = None
        self.is_observing = False
        self.observed: list[NamedOutput] = []

    def __call__(self, x: Tensor) -> Any:
        if self.is_observing:
            return self.observe_call(x)
        if not self.rule.is_cut or self.operators is not None:
            value = as_rows(select_output(list_outputs(self.forward(x)), self.rule.index, self.classes, self.source), x)
            if self.rule.activation == "softmax" and not self.rule.is_cut:
                value = value.clamp_min(torch.finfo(value.dtype).tiny).log()
            return resize_maps(value, x)
        with ActivationRecorder() as recorder:
            outputs = list_outputs(self.forward(x))
        call = recorder.find(select_output(outputs, self.rule.index, self.classes, self.source))
        if call is None:
            raise CompressError(
                f"{self.source}: does not end in a {self.rule.activation} as in its first run; return logits from it."
            )
        return resize_maps(as_rows(call.input, x), x)

    def observe_call(self, x: Tensor) -> object:
        with ActivationRecorder() as recorder:
            output = self.forward(x)
        self.observed = [
            dataclasses.replace(one, operator=self.last_operator(one, recorder)) for one in list_outputs(output)
        ]
        return output

    def last_operator(self, output: NamedOutput, recorder: ActivationRecorder) -> LastOperator | None:
        if self.operators is not None:
            return self.operators.get(output.index)
        call = recorder.find(output.value)
        return call.operator if call is not None else None

    def observe(self, model: nn.Module, x: Tensor) -> list[NamedOutput]:
        """All outputs of `model`, which contains the adapted network, for the images `x`."""
        self.is_observing = True
        try:
            model(x)
        finally:
            self.is_observing = False
        return self.observed

    def apply(self, rule: OutputRule) -> None:
        """Return logits by this rule from now on."""
        if rule.is_cut and self.cut is not None:
            self.cut(rule)
        self.rule = rule


def adapt_outputs(module: nn.Module, source: str, classes: int | None = None) -> OutputAdapter:
    """Make a network return logits only.

    Args:
        module: The network. Its `forward` is replaced.
        source: Name or path, for errors.
        classes: Number of classes if it is known; it decides between several outputs.
    """
    adapter = OutputAdapter(module.forward, source, classes)
    module.forward = adapter
    return adapter


def find_adapter(model: nn.Module) -> OutputAdapter | None:
    """The adapter of the network in `model`."""
    adapters = (module.__dict__.get("forward") for module in model.modules())
    return next((adapter for adapter in adapters if isinstance(adapter, OutputAdapter)), None)


def list_outputs(output: object) -> list[NamedOutput]:
    """The entries of a tensor, tuple, list, dictionary, named tuple or data class."""
    if isinstance(output, Mapping):
        pairs = [(str(name), value) for name, value in output.items()]
    elif dataclasses.is_dataclass(output):
        pairs = [(field.name, getattr(output, field.name)) for field in dataclasses.fields(output)]
    elif isinstance(output, tuple | list):
        names = getattr(output, "_fields", [None] * len(output))
        pairs = list(zip(names, output, strict=True))
    else:
        pairs = [(None, output)]
    return [NamedOutput(index, name, value) for index, (name, value) in enumerate(pairs)]


def select_output(
    outputs: Sequence[NamedOutput], wanted: str | int | None, classes: int | None, source: str, *, advice: str = ""
) -> Tensor:
    """The output with the logits. See `find_output`."""
    return cast(Tensor, find_output(outputs, wanted, classes, source, advice=advice).value)


def find_output(
    outputs: Sequence[NamedOutput], wanted: str | int | None, classes: int | None, source: str, *, advice: str = ""
) -> NamedOutput:
    """The wanted output, else the only tensor, else the one with a usual name, or with the known class count.

    Raises:
        CompressError: There is no tensor, or the network is a detector.
        UsageError: The wanted output does not exist, or several can be the logits.
    """
    if is_detection(outputs):
        raise CompressError(detector_message(source))
    listed = ", ".join(map(str, outputs[:12]))
    if wanted is not None:
        chosen = [one for one in outputs if str(wanted) in (one.name, str(one.index))]
        if len(chosen) != 1 or not isinstance(chosen[0].value, Tensor):
            raise UsageError(f"{source}: found no output {wanted!r} with a tensor, only {listed}; change --output.")
        return chosen[0]
    tensors = [one for one in outputs if isinstance(one.value, Tensor)]
    if not tensors:
        kinds = ", ".join(sorted({type(one.value).__name__ for one in outputs})) or "nothing"
        raise CompressError(f"{source}: found output of type {kinds}, expected a tensor of logits.")
    named = [one for one in tensors if one.name in LOGIT_NAMES]
    fitting = [one for one in tensors if cast(Tensor, one.value).shape[1:2] == (classes,)]
    for candidates in (tensors, named, fitting):
        if len(candidates) == 1:
            return candidates[0]
    advice = advice or 'return the logits alone, or in a dictionary under "logits"'
    raise UsageError(f"{source}: found several outputs: {listed}; {advice}.")


def is_detection(outputs: Sequence[NamedOutput]) -> bool:
    """Whether the outputs have the names of boxes, or are one dictionary of boxes per image, as torchvision's."""
    names = {one.name.lower() for one in outputs if one.name is not None}
    parts = [{str(key).lower() for key in one.value} for one in outputs if isinstance(one.value, Mapping)]
    return any(part & BOX_NAMES for part in (names, *parts))


def detector_message(source: str) -> str:
    """The sentence that refuses a detector."""
    return f"{source}: found a detector, which predicts boxes; expected a network for classification or segmentation."


def is_detector_state(names: Iterable[str]) -> bool:
    """Whether tensors with these names belong to a detector of torchvision, Ultralytics, or the DETR family."""
    return any(DETECTOR_TENSOR.search(name) for name in names)


def is_detector_class(name: str) -> bool:
    """Whether a pickled class of this name is a detector, as far as its name tells."""
    return bool(DETECTOR_CLASS.search(name))


def as_rows(value: Tensor, x: Tensor) -> Tensor:
    """`value` with an axis for the class if it lacks one: [n] -> [n, 1], [n, h, w] -> [n, 1, h, w]."""
    if value.dim() in (1, 3) and value.shape == (len(x), *(x.shape[2:] if value.dim() == 3 else ())):
        return value.unsqueeze(1)
    return value


def resize_maps(logits: Tensor, x: Tensor) -> Tensor:
    """Maps at the size of the images `x`; other logits as they are."""
    if logits.dim() == 4 and logits.shape[2:] != x.shape[2:] and max(logits.shape[2:]) > 1:
        return F.interpolate(logits, size=x.shape[2:], mode="bilinear", align_corners=False)
    return logits


class ToLogits(nn.Module):
    """The conversion of `OutputAdapter` as a module: the output of a network -> its logits."""

    def __init__(self, rule: OutputRule, output: Tensor, logits: Tensor) -> None:
        super().__init__()
        self.needs_axis = output.dim() < logits.dim()
        self.needs_log = rule.activation == "softmax" and not rule.is_cut
        self.size = logits.shape[2:] if logits.dim() == 4 and output.shape[-2:] != logits.shape[2:] else None

    @property
    def is_identity(self) -> bool:
        return not self.needs_axis and not self.needs_log and self.size is None

    def forward(self, value: Tensor) -> Tensor:
        value = value.unsqueeze(1) if self.needs_axis else value
        value = value.clamp_min(torch.finfo(value.dtype).tiny).log() if self.needs_log else value
        return value if self.size is None else F.interpolate(value, size=self.size, mode="bilinear")


def choose_rule(
    source: str, wanted: str | int | None, classes: int | None, ordinary: Sequence[list[NamedOutput]],
    extreme: Sequence[list[NamedOutput]],
) -> OutputRule:  # fmt: skip
    """Decide how logits are made, from the outputs for several batches.

    Args:
        source: Name or path, for errors.
        wanted: Name or index of the output that the user chose.
        classes: Number of classes if the user gave it.
        ordinary: Outputs for batches of images in [0, 1].
        extreme: Outputs for batches far outside of it. Probabilities stay probabilities, logits do not stay in [0, 1].

    Raises:
        CompressError: The output is no logits, and cannot be converted.
        UsageError: Several outputs can be the logits.
    """
    advice = "choose one with --output NAME|INDEX"
    batches = [find_output(one, wanted, classes, source, advice=advice) for one in (*ordinary, *extreme)]
    values = [cast(Tensor, one.value).detach().float() for one in batches]
    is_chosen = wanted is not None or len(ordinary[0]) > 1
    rule = OutputRule(batches[0].index, batches[0].name) if is_chosen else OutputRule()
    operator, usual = batches[0].operator, values[: len(ordinary)]
    kind = classify_values(values)
    if kind == "log_softmax":
        return dataclasses.replace(rule, activation="log_softmax")
    if operator is not None and operator.kind == "softmax":
        if kind != "softmax" or not operator.is_over_classes(values[0].dim()):
            raise CompressError(
                f"{source}: ends in a softmax over axis {operator.axis} of {list(values[0].shape)}, expected one over "
                "the classes (axis 1); return logits from it."
            )
        return dataclasses.replace(rule, activation="softmax", is_cut=True)
    if operator is not None:
        return dataclasses.replace(rule, activation="sigmoid", is_cut=True)
    if kind == "softmax":
        if any(bool((value == 0).any()) for value in usual):
            raise CompressError(
                f"{source}: ends in probabilities, and some are rounded to 0, so its logits are lost; return logits."
            )
        return dataclasses.replace(rule, activation="softmax")
    if kind == "unit":
        raise CompressError(
            f"{source}: its outputs are between 0 and 1 for all images, so they are no logits; return them before the "
            "last activation."
        )
    return rule


def classify_values(values: Sequence[Tensor]) -> Literal["softmax", "log_softmax", "unit", "other"]:
    """Whether all outputs are probabilities, logarithms of them, or numbers in [0, 1]."""
    whole = [value for value in values if value.dim() in (2, 4)]
    rows = [value.movedim(1, -1).flatten(0, -2) for value in whole]
    rows = [value[value.isfinite().all(1)] for value in rows]
    if len(whole) < len(values) or not rows or any(len(value) == 0 for value in rows[:1]):
        return classify_unit([value[value.isfinite()] for value in values])
    finite = torch.cat(rows)
    if finite.shape[1] > 1 and bool((finite >= 0).all()) and close_to(finite.sum(1), 1):
        return "softmax"
    if finite.shape[1] > 1 and bool((finite <= 0).all()) and close_to(finite.double().logsumexp(1), 0):
        return "log_softmax"
    return classify_unit(rows)


def classify_unit(values: Sequence[Tensor]) -> Literal["unit", "other"]:
    """Whether numbers vary within [0, 1]."""
    finite = torch.cat([value.flatten() for value in values])
    is_unit = len(finite) > 0 and bool(((finite >= 0) & (finite <= 1)).all())
    return "unit" if is_unit and bool(finite.max() > finite.min()) else "other"


def close_to(values: Tensor, expected: float) -> bool:
    return bool(((values - expected).abs() < SUM_TOLERANCE).all())


def verify_rule(rule: OutputRule, output: Tensor, logits: Tensor, source: str) -> None:
    """Compare the activation of converted logits with the output, unless it is resized. Raises CompressError."""
    if rule.activation == "none":
        return
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "softmax": lambda value: value.softmax(1), "log_softmax": lambda value: value.log_softmax(1),
        "sigmoid": torch.sigmoid,
    }  # fmt: skip
    again = functions[rule.activation](logits.detach().float())
    if again.shape == output.shape and not torch.allclose(again, output.float(), atol=SUM_TOLERANCE, equal_nan=True):
        raise CompressError(f"{source}: its last {rule.activation} cannot be undone; return logits from it.")
