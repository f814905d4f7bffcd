"""Recorder of a training step: modules called, losses computed, activations, random numbers.

It observes from outside, by hooks on the modules and by a torch function mode, so that it works for any
LightningModule.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

LOSSES = {
    F.cross_entropy: "cross-entropy",
    F.nll_loss: "negative log-likelihood",
    F.binary_cross_entropy: "binary cross-entropy",
    F.binary_cross_entropy_with_logits: "binary cross-entropy with logits",
    F.mse_loss: "squared error",
    F.l1_loss: "absolute error",
    F.smooth_l1_loss: "smooth L1",
    F.huber_loss: "Huber loss",
}
DISTANCES = frozenset({"squared error", "absolute error", "smooth L1", "Huber loss"})
ACTIVATIONS = frozenset({"relu", "relu_", "tanh", "tanh_", "sigmoid", "sigmoid_"})
DROPOUTS = frozenset({"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"})
# Losses that are recognised by their value where training_step computes them by hand.
RECOGNISED = frozenset({"cross-entropy", "binary cross-entropy with logits", "squared error"})
# Middle of the range, and distance from it up to which an output is not saturated: 99 % of the way to an end.
RANGES = {"tanh": (0.0, 0.99), "sigmoid": (0.5, 0.495)}
UNIFORM = frozenset({"rand", "rand_like", "bernoulli", "bernoulli_", "uniform_", "randperm"})
NORMAL = frozenset({"randn", "randn_like", "normal", "normal_"})


def named_tensors(value: Any, name: str = "batch") -> dict[str, Tensor]:
    """Return the tensors in nested containers by the expression that selects them, such as ``batch['x'][0]``."""
    tensors: dict[str, Tensor] = {}

    def add(path: str, tensor: Tensor) -> Tensor:
        tensors[path] = tensor
        return tensor

    map_tensors(value, add, name)
    return tensors


def map_tensors(value: Any, change: Callable[[str, Tensor], Tensor], name: str = "batch") -> Any:
    """Return the same containers with each tensor replaced by ``change(name, tensor)``.

    Args:
        value: nested mappings, lists, tuples, named tuples and dataclasses.
        change: called with the name and the tensor.
        name: name of the outermost container.
    """
    if isinstance(value, Tensor):
        return change(name, value)
    if isinstance(value, Mapping):
        items = {k: map_tensors(v, change, f"{name}[{k!r}]") for k, v in value.items()}
        if type(value) is dict:
            return items
        return type(value)(items)  # type: ignore[call-arg]
    if isinstance(value, (list, tuple)):
        members = [map_tensors(v, change, f"{name}[{i}]") for i, v in enumerate(value)]
        if hasattr(value, "_fields"):
            return type(value)(*members)  # a named tuple
        return type(value)(members)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value) if field.init]
        changed = {n: map_tensors(getattr(value, n), change, f"{name}.{n}") for n in names}
        return dataclasses.replace(value, **changed)
    return value


def main_output(value: Any) -> Tensor | None:
    """Return the main tensor of a network's output: its logits, or else the first floating-point tensor; or None."""
    first: Tensor | None = None
    for name, tensor in named_tensors(value, "").items():
        if not tensor.is_floating_point() or not tensor.ndim:
            continue
        if "logits" in name:
            return tensor
        if first is None:
            first = tensor
    return first


@dataclasses.dataclass(eq=False)
class Call:
    """One call of a module.

    Args:
        path: path of the module.
        module: the module.
        args: positional arguments.
        kwargs: keyword arguments.
        training: whether it was in training mode.
        depth: number of calls around this one.
        output: what it returned.
    """

    path: str
    module: nn.Module
    args: tuple
    kwargs: dict[str, Any]
    training: bool
    depth: int
    output: Any = None

    @property
    def name(self) -> str:
        """Path and class, as in findings."""
        return f"{self.path or 'the module'} ({type(self.module).__name__})"


@dataclasses.dataclass(eq=False)
class Loss:
    """One evaluation of a loss.

    Args:
        kind: name of the loss; empty for one that torch does not have.
        input: predictions.
        target: targets.
        options: other arguments.
        value: the loss.
    """

    kind: str
    input: Tensor
    target: Tensor
    options: dict[str, Any]
    value: Tensor | None = None

    @property
    def classes(self) -> int:
        """Number of classes of a cross-entropy."""
        if self.input.ndim > 1:
            return self.input.shape[1]
        return self.input.shape[0]

    @property
    def is_classes(self) -> bool:
        """Whether targets are class indices."""
        return self.kind in ("cross-entropy", "negative log-likelihood") and not self.target.is_floating_point()

    @property
    def ignore_index(self) -> int:
        """Class index that the loss ignores."""
        return self.options.get("ignore_index", -100)

    @property
    def valid(self) -> Tensor:
        """The class indices that are not ignored."""
        return self.target[self.target != self.ignore_index]

    def mean(self) -> float:
        """Return the mean per target in float32, without class weights, label smoothing or sums."""
        x = self.input.detach().float()
        if self.is_classes:
            function = F.cross_entropy if self.kind == "cross-entropy" else F.nll_loss
            return float(function(x, self.target, ignore_index=self.ignore_index))
        for function, kind in LOSSES.items():
            if kind == self.kind and x.shape == self.target.shape:
                return float(function(x, self.target.float()))
        if self.value is None:
            return float("nan")
        return float(self.value.detach().float().mean())


@dataclasses.dataclass(eq=False)
class Activation:
    """One call of a ReLU, tanh or sigmoid.

    Args:
        place: the innermost module that calls it; None outside of all modules.
        kind: ``relu``, ``tanh`` or ``sigmoid``.
        active: which units of a ReLU are above 0 for any sample ``(units,)``; for tanh and sigmoid the fraction of
            outputs that are not saturated ``(1,)``. Units are channels of images, or else features.
        before: the call of the last module with parameters before it.
    """

    place: Call | None
    kind: str
    active: Tensor
    before: Call | None


class Recorder(TorchFunctionMode):
    """Context that records one forward pass of a module.

    Args:
        module: the module whose submodules are observed.
        mute_dropout: whether functional dropout returns its input.
    """

    def __init__(self, module: nn.Module, mute_dropout: bool = False) -> None:
        super().__init__()
        self.root = module
        self.mute_dropout = mute_dropout
        self.paths = {part: path for path, part in module.named_modules()}
        self.calls: list[Call] = []  # in the order in which they began
        self.finished: list[Call] = []  # in the order in which they ended: inner modules before outer ones
        self.activations: list[Activation] = []
        self.dropouts: list[tuple[str, bool]] = []  # path, and whether that module was in training mode
        self.random: set[str] = set()  # names of functions that draw random numbers
        self.softmaxes: list[tuple[str, Tensor, int]] = []  # path, output, dimension
        self.result: Any = None
        self.error: Exception | None = None
        self.torch_losses: list[Loss] = []
        self._stack: list[Call] = []
        self._handles: list[Any] = []

    @property
    def losses(self) -> list[Loss]:
        """Evaluations of torch's losses, or without any those of modules that act as a loss."""
        return self.torch_losses or self._custom_losses()

    @property
    def loss(self) -> Tensor | None:
        """The loss that the training step returned, or with manual optimization the last one that it computed."""
        result = self.result
        if isinstance(result, Mapping):
            result = result.get("loss")
        if isinstance(result, Tensor):
            return result
        losses = self.losses
        return losses[-1].value if losses else None

    @property
    def net(self) -> Call | None:
        """The call of the network: of the outermost modules, the one with the most parameters."""
        outermost = [call for call in self.finished if call.depth == 0]
        with_parameters = [call for call in outermost if any(True for _ in call.module.parameters())]
        return max(with_parameters, key=_num_parameters, default=None)

    @property
    def unfinished_call(self) -> str:
        """Name of the innermost module whose forward pass raised an exception; empty if none did."""
        return self._stack[-1].name if self._stack else ""

    def __enter__(self) -> Recorder:
        for module in self.paths:
            self._handles.append(module.register_forward_pre_hook(self._before, with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._after))
        return super().__enter__()

    def __exit__(self, *args: Any) -> None:
        super().__exit__(*args)
        for handle in self._handles:
            handle.remove()

    def _before(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        call = Call(
            path=self.paths[module],
            module=module,
            args=args,
            kwargs=kwargs,
            training=module.training,
            depth=len(self._stack),
        )
        self.calls.append(call)
        self._stack.append(call)

    def _after(self, module: nn.Module, args: tuple, output: Any) -> None:
        while self._stack:
            call = self._stack.pop()
            if call.module is module:
                call.output = output
                self.finished.append(call)
                return

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        place = self._stack[-1] if self._stack else None
        if func in LOSSES:
            return self._record_loss(func, args, kwargs)
        if name in DROPOUTS and hasattr(F, name):
            muted = self._record_dropout(place, args, kwargs)
            if muted is not None:
                return muted
        elif name in UNIFORM or name in NORMAL:
            self.random.add(name)
        output = func(*args, **kwargs)
        if not isinstance(output, Tensor):
            return output
        if name in ACTIVATIONS and output.ndim > 1 and output.numel():
            before = next((call for call in reversed(self.finished) if _has_own_parameters(call.module)), None)
            kind = name.rstrip("_")
            # Measured at once, because the output may be changed in place afterwards.
            self.activations.append(Activation(place, kind, _active(kind, output.detach()), before))
        elif name == "softmax":
            self._record_softmax(place, output, args, kwargs)
        return output

    def _record_loss(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        arguments = inspect.signature(func).bind(*args, **kwargs).arguments
        options = {name: value for name, value in arguments.items() if name not in ("input", "target")}
        loss = Loss(LOSSES[func], arguments["input"], arguments["target"], options)
        # Before the call, which fails for a class index out of range.
        self.torch_losses.append(loss)
        loss.value = func(*args, **kwargs)
        return loss.value

    def _record_dropout(self, place: Call | None, args: Any, kwargs: dict[str, Any]) -> Tensor | None:
        """Record a functional dropout that is active; return its input if it is to be muted."""
        arguments = dict(zip(("input", "p", "training"), args, strict=False)) | kwargs
        if not arguments.get("training", True) or arguments.get("p", 0.5) <= 0:
            return None
        path = ""
        training = False
        if place is not None:
            path = place.path
            training = place.module.training
        self.dropouts.append((path, training))
        if self.mute_dropout:
            return arguments["input"]
        return None

    def _record_softmax(self, place: Call | None, output: Tensor, args: Any, kwargs: dict[str, Any]) -> None:
        dim = kwargs.get("dim")
        if dim is None and len(args) > 1:
            dim = args[1]
        if isinstance(dim, int):
            path = place.path if place else ""
            self.softmaxes.append((path, output, dim % max(output.ndim, 1)))

    def _custom_losses(self) -> list[Loss]:
        """Return the calls of modules that reduce predictions and targets to one number: losses torch does not have."""
        losses: list[Loss] = []
        for call in self.finished:
            tensors = [arg for arg in call.args if isinstance(arg, Tensor)]
            is_number = isinstance(call.output, Tensor) and call.output.ndim == 0
            if not is_number or len(tensors) < 2:
                continue
            prediction, target = tensors[:2]
            if prediction.is_floating_point() and prediction.ndim:
                kind = identify_loss(prediction.detach(), target, call.output)
                losses.append(Loss(kind, prediction, target, {}, call.output))
        return losses


def _active(kind: str, output: Tensor) -> Tensor:
    """Return the active units of a ReLU ``(units,)``, or the fraction of outputs that are not saturated ``(1,)``."""
    if kind == "relu":
        dim = 1 if output.ndim > 3 else -1
        return output.movedim(dim, 0).flatten(1).amax(1) > 0
    middle, reach = RANGES[kind]
    return ((output - middle).abs() <= reach).float().mean().view(1)


def _has_own_parameters(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False))


def _num_parameters(call: Call) -> int:
    return sum(param.numel() for param in call.module.parameters())


def identify_loss(x: Tensor, y: Tensor, value: Tensor) -> str:
    """Return the name of the loss of torch that has this value; empty if none has.

    Args:
        x: predictions.
        y: targets.
        value: the loss.
    """
    for function, kind in LOSSES.items():
        if kind not in RECOGNISED:
            continue
        target = y if kind == "cross-entropy" else y.to(x.dtype)
        try:
            if torch.allclose(function(x, target), value, rtol=1e-4):
                return kind
        except (RuntimeError, IndexError, ValueError):
            continue
    return ""
