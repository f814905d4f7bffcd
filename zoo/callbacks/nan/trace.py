"""Search for the operation that produced the first non-finite value, by observing all operations of a training step."""

from __future__ import annotations

import dataclasses
import linecache
import math
import os
import sys
from collections import Counter
from typing import Any

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
    storage_key,
)
from zoo.callbacks.nan.advice import UNTRACED, explain
from zoo.callbacks.nan.tensors import (
    bad_samples,
    batch_length,
    dense_local,
    float_tensors,
    has_nan,
    is_finite,
    statistics,
    to_containers,
)

TORCH_FOLDER = os.path.dirname(nn.__path__[0])
OVERWRITING = ("copy_", "fill_", "zero_")


@dataclasses.dataclass(eq=False)
class Finding:
    """The place where a non-finite value first appeared."""

    kind: str  # input data, weight, activation, loss, gradient or optimizer state
    phase: str  # before (already there when the step began), forward or backward
    module: str
    module_class: str
    operation: str  # or the name of the tensor that was non-finite before the step
    call: int = 1  # number of the call of the module within the step
    source: str = ""
    cause: str = ""
    advice: str = ""
    samples: list[int] | None = None  # None: the tensor has no batch dimension
    statistics: dict[str, Any] = dataclasses.field(default_factory=dict)
    intentional: bool = False  # infinities of a mask: harmless unless they become NaN or reach the loss


def faults_before_step(module: nn.Module, batch: Any) -> list[tuple[Tensor, Finding]]:
    """Return the tensors that are non-finite before the step begins: inputs, then parameters, then buffers."""
    faults: list[tuple[Tensor, Finding]] = []
    for key, tensor in named_leaves(to_containers(batch)):
        if float_tensors(tensor) and not is_finite(tensor):
            finding = Finding("input data", "before", "", type(module).__name__, "batch" + key)
            finding.samples = bad_samples(tensor, batch_length(batch))
            faults.append((tensor, finding))
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if float_tensors(tensor) and not is_finite(tensor):
            path = name.rpartition(".")[0]
            owner = module.get_submodule(path)
            finding = Finding("weight", "before", path, type(owner).__name__, name)
            # A buffer of -inf is a causal mask, for example.
            finding.intentional = not isinstance(tensor, nn.Parameter) and not has_nan(tensor)
            faults.append((tensor, finding))
    for tensor, finding in faults:
        finding.statistics = statistics(nn.Module(), [], tensor)
        finding.cause, finding.advice = explain(finding.kind, finding.operation, finding.statistics)
    return faults


@dataclasses.dataclass
class CallSite:
    """The place that called an operation: the innermost module, and the innermost line outside torch."""

    module: nn.Module
    path: str
    call: int
    in_loss: bool
    file: str
    line: int

    @property
    def source(self) -> str:
        """File, line number and text of the line."""
        text = linecache.getline(self.file, self.line).strip()
        return f"{self.file}:{self.line}: {text}"


@dataclasses.dataclass
class Operation:
    """One operation that torch dispatches, with what was known before it ran.

    Args:
        name: name of the operation, such as ``addmm``.
        label: the same, preceded by the name of the autograd node in the backward pass.
        phase: ``forward`` or ``backward``.
        site: the place that called it, or in the backward pass the place of the forward operation.
        inputs: floating-point inputs, as they were before the operation.
        bad_inputs: inputs that were not finite.
        infinite_constant: whether an argument is an infinite Python number.
    """

    name: str
    label: str
    phase: str
    site: CallSite
    inputs: list[Tensor]
    bad_inputs: list[Tensor]
    infinite_constant: bool

    @property
    def kind(self) -> str:
        """Kind of finding if this operation is the producer."""
        if self.phase == "backward":
            return "gradient"
        if self.site.in_loss:
            return "loss"
        return "activation"


class Tracer(TorchDispatchMode):
    """Dispatch mode that relates every non-finite tensor to the finding from which it descends.

    Args:
        module: the module whose step is observed.
        batch: the batch of the step.
    """

    def __init__(self, module: nn.Module, batch: Any) -> None:
        super().__init__()
        self.root = module
        self.paths = {part: path for path, part in module.named_modules()}
        self.batch_size = batch_length(batch)
        self.stack: list[nn.Module] = []
        self.calls: Counter[nn.Module] = Counter()
        self.call_sites: dict[int, CallSite] = {}  # by the sequence number of the autograd node of the operation
        self.only_outputs: set[tuple[str, int]] = set()
        self.findings: list[Finding] = []
        self.origins: dict[int, Finding] = {}
        # Addresses identify tensors here. Memory of these storages is not freed, so their addresses remain theirs.
        self.kept_storages: list[Any] = []
        for tensor, finding in faults_before_step(module, batch):
            self.blame(tensor, finding)

    @staticmethod
    def key(tensor: Tensor) -> int:
        return storage_key(dense_local(tensor))

    def blame(self, tensor: Tensor, finding: Finding) -> None:
        """Relate a non-finite tensor to the finding that caused it."""
        self.kept_storages.append(dense_local(tensor).untyped_storage())
        self.origins[self.key(tensor)] = finding
        if finding not in self.findings:
            self.findings.append(finding)

    def origin(self, tensors: list[Tensor]) -> Finding | None:
        """Return the earliest finding that these tensors descend from, an intentional one only if there is no other."""
        candidates: list[Finding] = []
        for tensor in tensors:
            finding = self.origins.get(self.key(tensor))
            if finding is not None:
                candidates.append(finding)
        return min(
            candidates,
            key=lambda finding: (finding.intentional, self.findings.index(finding)),
            default=None,
        )

    # Modules ----------------------------------------------------------------------------------------------------------

    def enter(self, module: nn.Module, args: Any) -> None:
        """Forward pre-hook of all modules."""
        self.stack.append(module)
        self.calls[module] += 1

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """Forward hook of all modules, also of those that raise."""
        while self.stack and self.stack.pop() is not module:
            pass
        path = self.paths.get(module, "")
        outputs = float_tensors(to_containers(output))
        if len(outputs) == 1:
            key = self.key(outputs[0])
            # Only for non-finite outputs, which are kept: the address of any other may be reused, even by the loss.
            if key in self.origins:
                self.only_outputs.add((path, key))
        # Within the module, the first dimension may be time or space; its output begins with the samples.
        for finding in self.findings:
            if finding.samples is None and finding.phase == "forward" and finding.module == path:
                finding.samples = self._first_bad_samples(outputs)

    def _first_bad_samples(self, outputs: list[Tensor]) -> list[int] | None:
        for output in outputs:
            samples = bad_samples(output, self.batch_size)
            if samples:
                return samples
        return None

    def is_only_output(self, tensor: Tensor, path: str) -> bool:
        """Return whether a non-finite tensor is all that the module at a path returned."""
        return (path, self.key(tensor)) in self.only_outputs

    def call_site(self) -> CallSite:
        """Return the place that called the operation which is being dispatched."""
        frame = sys._getframe(1)
        while frame.f_back and frame.f_code.co_filename.startswith((TORCH_FOLDER, __file__)):
            frame = frame.f_back
        module = next((part for part in reversed(self.stack) if part in self.paths), self.root)
        in_loss = any(isinstance(part, LOSS) for part in self.stack)
        # Lines of training_step after the network was called.
        in_loss = in_loss or bool(self.calls and not self.stack)
        return CallSite(
            module=module,
            path=self.paths[module],
            call=max(self.calls[module], 1),
            in_loss=in_loss,
            file=frame.f_code.co_filename,
            line=frame.f_lineno,
        )

    # Operations -------------------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        operation = self._inspect(func, args, kwargs)
        # Before the operation runs: one that writes to its inputs may replace them.
        origin = self.origin(operation.bad_inputs)
        output = func(*args, **kwargs)
        outputs = float_tensors(output)
        if "empty" in operation.name:
            # Uninitialised memory may hold NaN, which means nothing.
            for tensor in outputs:
                tensor.zero_()
        bad_outputs = [tensor for tensor in outputs if not is_finite(tensor)]
        if bad_outputs:
            finding = self._finding(operation, origin, bad_outputs)
            for tensor in bad_outputs:
                self.blame(tensor, finding)
        return output

    def _inspect(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Operation:
        """Return the facts about an operation that is about to run."""
        name = func.overloadpacket.__name__
        site = self.call_site()
        node = current_backward_node()
        label = name
        phase = "forward"
        # A checkpoint calls its modules again within the backward pass: that is a forward pass.
        if node is None or self.stack:
            self.call_sites.setdefault(last_sequence_number(), site)
        else:
            site = self.call_sites.get(sequence_number(node), site)
            label = f"{node.name()} ({name})"
            phase = "backward"
        # The previous content of a tensor that is overwritten does not matter.
        sources = args[1:] if name in OVERWRITING else args
        originals = float_tensors((sources, kwargs))
        inputs = originals
        if changes_inputs(func):
            inputs = [tensor.clone() for tensor in originals]
        infinite = [leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, float) and not math.isfinite(leaf)]
        return Operation(
            name=name,
            label=label,
            phase=phase,
            site=site,
            inputs=inputs,
            bad_inputs=[tensor for tensor in originals if not is_finite(tensor)],
            infinite_constant=bool(infinite),
        )

    def _finding(self, operation: Operation, origin: Finding | None, bad_outputs: list[Tensor]) -> Finding:
        """Return the finding from which the non-finite outputs of an operation descend; a new one if it made them."""
        site = operation.site
        from_nan = any(has_nan(tensor) for tensor in operation.inputs)
        makes_nan = not from_nan and any(has_nan(tensor) for tensor in bad_outputs)
        if origin is not None and not (makes_nan and origin.intentional):
            return origin
        from_infinity = operation.infinite_constant or bool(operation.bad_inputs)
        numbers = statistics(site.module, operation.inputs, bad_outputs[0])
        cause, advice = explain(
            operation.kind,
            operation.label,
            numbers,
            masked=from_infinity,
            repeated=site.call > 1 or isinstance(site.module, nn.RNNBase),
        )
        return Finding(
            kind=operation.kind,
            phase=operation.phase,
            module=site.path,
            module_class=type(site.module).__name__,
            operation=operation.label,
            call=site.call,
            source=site.source,
            cause=cause,
            advice=advice,
            samples=bad_samples(bad_outputs[0], self.batch_size),
            statistics=numbers,
            intentional=not makes_nan and not from_nan and from_infinity,
        )


def check_output(
    module: nn.Module,
    path: str,
    args: Any,
    output: Any,
    batch_size: int | None,
) -> Finding | None:
    """Return a finding if the output of a module contains NaN or positive infinity.

    Args:
        module: the module.
        path: its path.
        args: its positional arguments.
        output: what it returned.
        batch_size: number of samples in the batch.
    """
    for tensor in float_tensors(to_containers(output)):
        # Negative infinity alone is the value of masks; comparisons with NaN are false.
        if bool((dense_local(tensor) < math.inf).all()):
            continue
        finding = Finding("activation", "forward", path, type(module).__name__, "forward")
        finding.samples = bad_samples(tensor, batch_size)
        finding.statistics = statistics(module, float_tensors(to_containers(args)), tensor)
        finding.cause, finding.advice = UNTRACED
        return finding
    return None
