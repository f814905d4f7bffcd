"""Which operation made the first non-finite value: a watch over every operation of a training step."""

import dataclasses
import linecache
import math
import os
import sys
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zoo._torch import (
    LOSS,
    TorchDispatchMode,
    changes_inputs,
    current_backward_node,
    last_sequence_number,
    leaves,
    named_leaves,
    sequence_number,
    sparse_values,
    storage_key,
)
from zoo.callbacks.nan.advice import UNTRACED, explain

TORCH_FOLDER = os.path.dirname(nn.__path__[0])


@dataclasses.dataclass(eq=False)
class Finding:
    """The place where a non-finite value first appeared, and what is known about it."""

    kind: str  # input data, weight, activation, loss, gradient or optimizer state
    phase: str  # before (already there when the step began), forward or backward
    module: str
    module_class: str
    operation: str  # or the name of the tensor that was non-finite before
    call: int = 1  # which call of the module within the step, for modules that are used more than once
    source: str = ""
    cause: str = ""
    advice: str = ""
    samples: list[int] | None = None  # None: the tensor does not say which sample its rows belong to
    statistics: dict[str, Any] = dataclasses.field(default_factory=dict)
    intentional: bool = False  # the infinities of a mask: innocent until they turn into NaN or reach the loss


def to_containers(value: Any) -> Any:
    """Dicts, lists and the leaves in them, whatever containers a batch or an output came in."""
    if value is None or isinstance(value, Tensor | str | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): to_containers(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_containers(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_containers(getattr(value, field.name, None)) for field in dataclasses.fields(value)}
    return str(value)


def dense_local(tensor: Tensor) -> Tensor:
    """The values that this process holds of a possibly sharded, sparse or complex tensor."""
    to_local = getattr(tensor, "to_local", None)
    tensor = to_local() if to_local else tensor
    tensor = sparse_values(tensor) if tensor.is_sparse else tensor
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def float_tensors(value: Any) -> list[Tensor]:
    tensors = [leaf for leaf in leaves(value) if isinstance(leaf, Tensor) and not leaf.is_meta]
    return [leaf for leaf in tensors if leaf.is_floating_point() or leaf.is_complex()]


def is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(dense_local(tensor)).all())


def has_nan(tensor: Tensor) -> bool:
    return bool(torch.isnan(dense_local(tensor)).any())


def batch_length(batch: Any) -> int | None:
    return next(
        (leaf.size(0) for leaf in leaves(to_containers(batch)) if isinstance(leaf, Tensor) and leaf.dim()), None
    )


def bad_samples(tensor: Tensor, batch_size: int | None) -> list[int] | None:
    """Indices of the samples with a non-finite value, if the first dimension is the batch's."""
    if tensor.dim() == 0 or tensor.size(0) != batch_size:
        return None
    return (~torch.isfinite(dense_local(tensor))).reshape(tensor.size(0), -1).any(1).nonzero().flatten().tolist()


def describe(tensor: Tensor) -> dict[str, Any]:
    """Shape, dtype, the range of the finite values and the share of the others."""
    values = dense_local(tensor.detach()).cpu()
    finite = values[torch.isfinite(values)].double()
    known = finite.numel() > 0
    return {
        "shape": list(tensor.shape),
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "min": finite.min().item() if known else None,
        "max": finite.max().item() if known else None,
        "abs_mean": finite.abs().mean().item() if known else None,
        "non_finite_share": 1 - finite.numel() / max(values.numel(), 1),
    }


def statistics(module: nn.Module, inputs: list[Tensor], output: Tensor) -> dict[str, Any]:
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return {
        "inputs": [describe(tensor) for tensor in inputs[:8]],
        "output": describe(output),
        "weights": {name: describe(tensor) for name, tensor in own if tensor.is_floating_point()},
    }


def faults_before_step(module: nn.Module, batch: Any) -> list[tuple[Tensor, Finding]]:
    """What is non-finite before the step begins: inputs, then parameters, then buffers."""
    found = []
    for key, tensor in named_leaves(to_containers(batch)):
        if float_tensors(tensor) and not is_finite(tensor):
            finding = Finding("input data", "before", "", type(module).__name__, "batch" + key)
            finding.samples = bad_samples(tensor, batch_length(batch))
            found.append((tensor, finding))
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if float_tensors(tensor) and not is_finite(tensor):
            owner = module.get_submodule(name.rpartition(".")[0])
            finding = Finding("weight", "before", name.rpartition(".")[0], type(owner).__name__, name)
            finding.intentional = not isinstance(tensor, nn.Parameter) and not has_nan(tensor)  # a causal mask, say
            found.append((tensor, finding))
    for tensor, finding in found:
        finding.statistics = statistics(nn.Module(), [], tensor)
        finding.cause, finding.advice = explain(finding.kind, finding.operation, finding.statistics)
    return found


@dataclasses.dataclass
class CallSite:
    """Where an operation was called: the innermost module, and the innermost line outside torch."""

    module: nn.Module
    path: str
    call: int
    in_loss: bool
    file: str
    line: int


class Tracer(TorchDispatchMode):
    """Remembers, for every non-finite tensor, the finding that it descends from."""

    def __init__(self, module: nn.Module, batch: Any):
        super().__init__()
        self.root = module
        self.paths = {sub: path for path, sub in module.named_modules()}
        self.batch_size = batch_length(batch)
        self.stack: list[nn.Module] = []
        self.calls: Counter[nn.Module] = Counter()
        self.call_sites: dict[int, CallSite] = {}  # by the sequence number of the autograd node that an operation made
        self.lone_outputs: set[tuple[str, int]] = set()
        self.findings: list[Finding] = []
        self.origins: dict[int, Finding] = {}
        self.kept_storages: list[Any] = []  # storages that stay alive, so that their addresses stay theirs
        for tensor, finding in faults_before_step(module, batch):
            self.blame(tensor, finding)

    @staticmethod
    def key(tensor: Tensor) -> int:
        return storage_key(dense_local(tensor))

    def blame(self, tensor: Tensor, finding: Finding) -> None:
        self.kept_storages.append(dense_local(tensor).untyped_storage())
        self.origins[self.key(tensor)] = finding
        if finding not in self.findings:
            self.findings.append(finding)

    def origin(self, tensors: list[Tensor]) -> Finding | None:
        """The earliest finding these tensors descend from; one made on purpose only if there is no other."""
        found = [self.origins[key] for key in map(self.key, tensors) if key in self.origins]
        return min(found, key=lambda finding: (finding.intentional, self.findings.index(finding)), default=None)

    def enter(self, module: nn.Module, args: Any) -> None:
        self.stack.append(module)
        self.calls[module] += 1

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        while self.stack and self.stack.pop() is not module:
            pass
        path = self.paths.get(module, "")
        outputs = float_tensors(to_containers(output))
        if len(outputs) == 1:
            self.lone_outputs.add((path, self.key(outputs[0])))
        for finding in self.findings:  # inside, time or space may have come before the samples
            if finding.samples is None and finding.phase == "forward" and finding.module == path:
                finding.samples = next(filter(None, (bad_samples(out, self.batch_size) for out in outputs)), None)

    def call_site(self) -> CallSite:
        frame = sys._getframe(2)
        while frame.f_back and frame.f_code.co_filename.startswith(TORCH_FOLDER):
            frame = frame.f_back
        module = next((sub for sub in reversed(self.stack) if sub in self.paths), self.root)
        in_loss = any(isinstance(sub, LOSS) for sub in self.stack)
        in_loss = in_loss or bool(self.calls and not self.stack)  # training_step's own lines, after the net
        call = max(self.calls[module], 1)
        return CallSite(module, self.paths[module], call, in_loss, frame.f_code.co_filename, frame.f_lineno)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        node, site = current_backward_node(), self.call_site()
        forward = node is None or bool(self.stack)  # a checkpoint calls its modules again within backward
        if node is None or forward:
            self.call_sites.setdefault(last_sequence_number(), site)
        else:
            site = self.call_sites.get(sequence_number(node), site)

        # what was in the target of a copy does not matter
        originals = float_tensors((args[1:] if name in ("copy_", "fill_", "zero_") else args, kwargs))
        inputs = [tensor.clone() for tensor in originals] if changes_inputs(func) else originals
        bad_inputs = [original for original, tensor in zip(originals, inputs, strict=True) if not is_finite(tensor)]
        from_nan = any(has_nan(tensor) for tensor in bad_inputs)
        cause = self.origin(bad_inputs)

        out = func(*args, **kwargs)
        outputs = float_tensors(out)
        if "empty" in name:  # whatever bits lay there are nobody's fault
            for tensor in outputs:
                tensor.zero_()
        bad = [tensor for tensor in outputs if not is_finite(tensor)]
        if not bad:
            return out

        makes_nan = not from_nan and any(has_nan(tensor) for tensor in bad)
        if cause is None or (makes_nan and cause.intentional):
            infinite_constant = any(
                isinstance(leaf, float) and not math.isfinite(leaf) for leaf in leaves((args, kwargs))
            )
            operation = name if node is None or forward else f"{node.name()} ({name})"
            kind = "gradient" if not forward else "loss" if site.in_loss else "activation"
            cause = Finding(
                kind, "forward" if forward else "backward", site.path, type(site.module).__name__, operation
            )
            cause.call, cause.samples = site.call, bad_samples(bad[0], self.batch_size)
            cause.source = f"{site.file}:{site.line}: {linecache.getline(site.file, site.line).strip()}"
            cause.intentional = not makes_nan and not from_nan and (infinite_constant or bool(bad_inputs))
            cause.statistics = statistics(site.module, inputs, bad[0])
            repeated = site.call > 1 or isinstance(site.module, nn.RNNBase)
            cause.cause, cause.advice = explain(
                kind, operation, cause.statistics, infinite_constant or bool(bad_inputs), repeated
            )
        for tensor in bad:
            self.blame(tensor, cause)
        return out


def check_output(module: nn.Module, path: str, args: Any, output: Any, batch_size: int | None) -> Finding | None:
    """What the always-on look at one call of a module finds in its output."""
    # NaN or +inf; -inf alone is what masks are filled with
    bad = next(
        (out for out in float_tensors(to_containers(output)) if not bool((dense_local(out) < math.inf).all())), None
    )
    if bad is None:
        return None
    finding = Finding("activation", "forward", path, type(module).__name__, "forward")
    finding.samples = bad_samples(bad, batch_size)
    finding.statistics = statistics(module, float_tensors(to_containers(args)), bad)
    finding.cause, finding.advice = UNTRACED
    return finding
