"""What happens inside a training step: modules called, losses taken, activations, random numbers.

Everything is seen from outside, by hooks on the modules and a watch over torch's functions, so that it works for any
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
UNIFORM = frozenset({"rand", "rand_like", "bernoulli", "bernoulli_", "uniform_", "randperm"})
NORMAL = frozenset({"randn", "randn_like", "normal", "normal_"})


def named_tensors(value: Any, name: str = "batch") -> dict[str, Tensor]:
    """The tensors in nested containers, by how one would write them."""
    found: dict[str, Tensor] = {}

    def note(path: str, tensor: Tensor) -> Tensor:
        found[path] = tensor
        return tensor

    map_tensors(value, note, name)
    return found


def map_tensors(value: Any, change: Callable[[str, Tensor], Tensor], name: str = "batch") -> Any:
    """The same containers, each tensor replaced by ``change(name, tensor)``."""
    if isinstance(value, Tensor):
        return change(name, value)
    if isinstance(value, Mapping):
        items = {k: map_tensors(v, change, f"{name}[{k!r}]") for k, v in value.items()}
        return items if type(value) is dict else type(value)(items)  # type: ignore[call-arg]
    if isinstance(value, (list, tuple)):
        items = [map_tensors(v, change, f"{name}[{i}]") for i, v in enumerate(value)]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [f.name for f in dataclasses.fields(value) if f.init]
        return dataclasses.replace(value, **{f: map_tensors(getattr(value, f), change, f"{name}.{f}") for f in fields})
    return value


def main_output(value: Any) -> Tensor | None:
    """The tensor that matters in what a network returns: its logits, or else the first with numbers per sample."""
    floats = {k: t for k, t in named_tensors(value, "").items() if t.is_floating_point() and t.ndim}
    return next((t for k, t in floats.items() if "logits" in k), next(iter(floats.values()), None))


@dataclasses.dataclass(eq=False)
class Call:
    """One call of a module."""

    path: str
    module: nn.Module
    args: tuple
    kwargs: dict[str, Any]
    training: bool
    depth: int
    output: Any = None

    @property
    def name(self) -> str:
        return f"{self.path or 'the module'} ({type(self.module).__name__})"


@dataclasses.dataclass(eq=False)
class Loss:
    """One call of a loss; ``kind`` is empty where it is none of torch's."""

    kind: str
    input: Tensor
    target: Tensor
    options: dict[str, Any]
    value: Tensor | None = None

    @property
    def classes(self) -> int:
        return self.input.shape[1] if self.input.ndim > 1 else self.input.shape[0]

    @property
    def is_classes(self) -> bool:
        """Whether targets are class numbers."""
        return self.kind in ("cross-entropy", "negative log-likelihood") and not self.target.is_floating_point()

    @property
    def valid(self) -> Tensor:
        """The class numbers that count."""
        return self.target[self.target != self.options.get("ignore_index", -100)]

    def mean(self) -> float:
        """The plain mean per target, without weights, smoothing or sums; what the training came to."""
        x, y = self.input.detach().float(), self.target
        if self.is_classes:
            score = F.cross_entropy if self.kind == "cross-entropy" else F.nll_loss
            return float(score(x, y, ignore_index=self.options.get("ignore_index", -100)))
        for function, kind in LOSSES.items():
            if kind == self.kind and x.shape == y.shape:
                return float(function(x, y.float()))
        return float("nan") if self.value is None else float(self.value.detach().float().mean())


class Recorder(TorchFunctionMode):
    """Watches one forward pass of a module; after it, lists of what was called.

    Args:
        module: whose submodules are watched.
        mute_dropout: let dropout pass everything on.
    """

    def __init__(self, module: nn.Module, mute_dropout: bool = False) -> None:
        super().__init__()
        self.root, self.mute_dropout = module, mute_dropout
        self.paths = {m: path for path, m in module.named_modules()}
        self.calls: list[Call] = []  # in the order in which they began
        self.finished: list[Call] = []  # in the order in which they ended: inner modules before outer ones
        self.activations: list[tuple[Call | None, str, Tensor, Call | None]] = []  # where, which, output, layer before
        self.dropouts: list[tuple[str, bool]] = []  # where, and whether that module was in training mode
        self.random: set[str] = set()
        self.softmaxes: list[tuple[str, Tensor, int]] = []
        self.result: Any = None
        self.error: Exception | None = None
        self.torch_losses: list[Loss] = []
        self._stack: list[Call] = []
        self._handles: list[Any] = []

    @property
    def losses(self) -> list[Loss]:
        return self.torch_losses or self._custom_losses()

    @property
    def loss(self) -> Tensor | None:
        """What the training step returned, or, for one that steps by itself, the last loss it took."""
        result = self.result.get("loss") if isinstance(self.result, Mapping) else self.result
        if isinstance(result, Tensor):
            return result
        return self.losses[-1].value if self.losses else None

    @property
    def net(self) -> Call | None:
        """The call of the network: of those not inside another, that with the most parameters."""
        outer = [c for c in self.finished if c.depth == 0 and any(True for _ in c.module.parameters())]
        return max(outer, key=lambda c: sum(p.numel() for p in c.module.parameters()), default=None)

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
        call = Call(self.paths[module], module, args, kwargs, module.training, len(self._stack))
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
        path = place.path if place else ""
        if func in LOSSES:
            given = inspect.signature(func).bind(*args, **kwargs).arguments
            options = {k: v for k, v in given.items() if k not in ("input", "target")}
            loss = Loss(LOSSES[func], given["input"], given["target"], options)
            self.torch_losses.append(loss)  # before the call, which a label out of range may end
            loss.value = func(*args, **kwargs)
            return loss.value
        if name in DROPOUTS and hasattr(F, name):
            given = dict(zip(("input", "p", "training"), args, strict=False)) | kwargs
            if given.get("training", True) and given.get("p", 0.5) > 0:
                self.dropouts.append((path, bool(place and place.module.training)))
                if self.mute_dropout:
                    return given["input"]
        elif name in UNIFORM or name in NORMAL:
            self.random.add(name)
        output = func(*args, **kwargs)
        if name in ACTIVATIONS and isinstance(output, Tensor):
            before = next((c for c in reversed(self.finished) if _has_own_parameters(c.module)), None)
            self.activations.append((place, name.rstrip("_"), output, before))
        elif name == "softmax" and isinstance(output, Tensor):
            dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
            if isinstance(dim, int):
                self.softmaxes.append((path, output, dim % max(output.ndim, 1)))
        return output

    def _custom_losses(self) -> list[Loss]:
        """Modules that turn outputs and targets into one number: losses that torch does not know."""
        found = []
        for call in self.finished:
            tensors = [a for a in call.args if isinstance(a, Tensor)]
            one_number = isinstance(call.output, Tensor) and call.output.ndim == 0
            if one_number and len(tensors) >= 2 and tensors[0].is_floating_point() and tensors[0].ndim:
                kind = identify_loss(tensors[0].detach(), tensors[1], call.output)
                found.append(Loss(kind, tensors[0], tensors[1], {}, call.output))
        return found


def _has_own_parameters(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False))


def identify_loss(x: Tensor, y: Tensor, value: Tensor) -> str:
    """Which of torch's losses gives this value, or none."""
    for function, kind in LOSSES.items():
        if kind in ("cross-entropy", "binary cross-entropy with logits", "squared error"):
            try:
                target = y if kind == "cross-entropy" else y.to(x.dtype)
                if torch.allclose(function(x, target), value, rtol=1e-4):
                    return kind
            except (RuntimeError, IndexError, ValueError):
                continue
    return ""
