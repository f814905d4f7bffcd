"""Checks of the first training step: it runs, and outputs and loss are plausible before training."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from zoo.diagnosis.failures import describe_failure, failed_function
from zoo.diagnosis.probe import Probe
from zoo.diagnosis.recorder import DISTANCES, Loss, named_tensors
from zoo.diagnosis.report import Finding, Skip, error, ok, warning

# Autograd nodes that only rearrange numbers.
REARRANGING = (
    "View",
    "Squeeze",
    "Unsqueeze",
    "Reshape",
    "Permute",
    "Transpose",
    "TBackward",
    "Select",
    "Slice",
    "Clone",
    "ToCopy",
    "Alias",
    "Expand",
    "Index",
)
BOUNDING = ("Leaky", "Gelu", "Silu", "Tanh", "Sigmoid", "Elu", "Softplus")
RANGES = {
    "Relu": (0.0, math.inf),
    "Sigmoid": (0.0, 1.0),
    "Tanh": (-1.0, 1.0),
    "Softmax": (0.0, 1.0),
}
MAX_LAYERS = 40  # lines in the list of shapes
RAW_LOGITS = "end with a linear layer without an activation"


# The step itself ------------------------------------------------------------------------------------------------------


def training_step(probe: Probe) -> Finding:
    """Two whole training steps run; the first loss is finite and depends on the parameters."""
    first = probe.first_trace
    if first.error is not None:
        place = first.unfinished_call or "training_step itself"
        return error(*describe_failure(place, first.error))
    if first.loss is None and probe.automatic:
        return error("returns no loss for the first batch", "return the loss, or a dict with the key 'loss'")
    message = "runs, with manual optimization"
    if first.loss is not None:
        value = float(first.loss.detach().float().mean())
        message = f"runs; the first loss is {value:.4g}"
        if not math.isfinite(value):
            return error(
                f"the first loss is {value}",
                "see the findings on the data; then train with NaNGuard, which names the first operation that produces"
                " a non-finite value",
            )
        if probe.automatic and not first.loss.requires_grad:
            return error(
                "the loss depends on no trainable parameter: it was detached (.item(), .detach(), no_grad, a new"
                " tensor), or all parameters are frozen",
                "compute the loss from the network's output by torch operations only, and unfreeze what should train",
            )
    if probe.failure is not None:
        return _failure_of_whole_step(*probe.failure)
    single = _failure_of_single_sample(probe)
    if single is not None:
        return single
    return ok(message)


def _failure_of_whole_step(number: int, problem: Exception, module: str) -> Finding:
    """Return the finding for an exception in one of two whole training steps.

    Args:
        number: number of the step, from 1.
        problem: the exception.
        module: name of the module whose forward pass failed; empty if another part did.
    """
    place = module or failed_function(problem)
    order = "first" if number == 1 else "second"
    return error(*describe_failure(f"{place}, in the {order} training step", problem))


def _failure_of_single_sample(probe: Probe) -> Finding | None:
    """Return the finding for a step that fails with one sample, where the last batch of an epoch has only one."""
    train = probe.splits.get("train")
    if train is None or 1 not in train.batch_sizes or probe.batch_size < 2:
        return None
    probe.restore()
    failure = probe.steps.failure([probe.first_samples(1)])
    probe.restore()
    if failure is None:
        return None
    _, problem, module = failure
    place = module or failed_function(problem)
    return error(*describe_failure(f"{place} on the last batch of an epoch, which has a single sample", problem))


def shapes(probe: Probe) -> Finding:
    """Outputs and targets of a distance have the same shape; lists the shapes layer by layer."""
    first = probe.first_step()
    for loss in first.losses:
        if loss.kind in DISTANCES and loss.input.shape != loss.target.shape:
            return error(
                f"the {loss.kind} compares outputs {_shape(loss.input)} with targets {_shape(loss.target)}:"
                " broadcasting compares every sample with every other one",
                "give both the same shape, with squeeze(1) or unsqueeze(1)",
            )
    rows: list[tuple[str, str, str, str]] = []
    for call in first.calls:
        is_leaf = not any(True for _ in call.module.children())
        inputs = _shape(call.args)
        outputs = _shape(call.output)
        if is_leaf and (inputs or outputs):
            rows.append((call.path or "itself", type(call.module).__name__, inputs, outputs or "a number"))
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
    lines: list[str] = []
    for path, name, inputs, outputs in rows:
        lines.append(f"{path:<{widths[0]}}  {name:<{widths[1]}}  {inputs:>{widths[2]}} -> {outputs}")
    if len(lines) > MAX_LAYERS:
        half = MAX_LAYERS // 2
        lines = [*lines[:half], f"... {len(lines) - MAX_LAYERS} more ...", *lines[-half:]]
    tensors = named_tensors(probe.batches[0]).values()
    batch = ", ".join(f"{_shape(t)} {str(t.dtype).removeprefix('torch.')}" for t in tensors)
    verb = "layer is" if len(rows) == 1 else "layers are"
    return ok(f"a batch is {batch or 'no tensor'}; {len(rows)} {verb} called", tuple(lines))


# Initial loss ---------------------------------------------------------------------------------------------------------


def initial_loss(probe: Probe) -> Finding:
    """The first loss is that of an uninformed prediction."""
    loss = probe.main_loss()
    value = loss.mean()
    if not math.isfinite(value):
        raise Skip("the first loss is not finite")
    if loss.is_classes:
        return _initial_cross_entropy(loss, value, math.log(loss.classes), f"ln {loss.classes}")
    if loss.kind.startswith("binary") and bool(((loss.target == 0) | (loss.target == 1)).all()):
        return _initial_cross_entropy(loss, value, math.log(2), "ln 2")
    if loss.kind == "squared error":
        return _initial_squared_error(loss, value)
    if loss.kind:
        raise Skip(f"the initial value of the {loss.kind} is arbitrary")
    raise Skip("the loss is unknown")


def _initial_cross_entropy(loss: Loss, value: float, expected: float, formula: str) -> Finding:
    seen = f"{value:.3g}, expected about {formula} = {expected:.3g}"
    if value > expected + 1.5 + 0.15 * expected:
        spread = float(loss.input.detach().float().std())
        report = error if value > 5 * expected else warning
        return report(
            f"{seen}: the logits are large (standard deviation {spread:.3g}), so the untrained network makes confident"
            " wrong predictions",
            "initialise the last layer with smaller weights, or normalise the inputs: initial logits should be near 0",
        )
    if value < 0.5 * expected:
        return warning(
            f"{seen}: far too good for an untrained network; do the inputs contain the answer?",
            "check what the inputs contain; weights that were trained on this task explain it, too",
        )
    return ok(seen)


def _initial_squared_error(loss: Loss, value: float) -> Finding:
    target = loss.target.detach().float()
    mean = float(target.mean())
    std = float(target.std(correction=0))
    rms = math.hypot(mean, std)
    seen = f"{value:.3g}; the targets have mean {mean:.3g} and standard deviation {std:.3g}"
    if rms > 10 or 0 < rms < 0.01:
        return warning(
            f"{seen}: the targets are not scaled",
            "standardise the targets by mean and standard deviation of the training set (zoo: target_mean, target_std)",
        )
    if value > 10 * (rms**2 + 0.01):
        spread = float(loss.input.detach().float().square().mean().sqrt())
        return warning(
            f"{seen}: the outputs are far larger (root mean square {spread:.3g})",
            "initialise the last layer with smaller weights, or normalise the inputs",
        )
    return ok(seen)


def loss_scale(probe: Probe) -> Finding:
    """``training_step`` returns the mean of its loss."""
    first = probe.first_step()
    known = [loss for loss in first.losses if loss.kind and loss.value is not None]
    if not known or first.loss is None:
        raise Skip("the loss is none of torch's")
    if len(known) > 1:
        raise Skip(f"the step has {len(known)} losses, whose weights are a choice")
    loss = known[0]
    plain = loss.mean()
    returned = float(first.loss.detach().float().mean())
    reduction = loss.options.get("reduction", "mean")
    if reduction != "mean" and not loss.is_classes:
        raise Skip("the loss is summed or averaged outside of the loss function")
    factor = returned / plain if plain else 1.0
    if 0.1 < factor < 10 or not math.isfinite(factor):
        return ok("training_step returns the mean of its loss")
    summed = reduction == "sum" or math.isclose(factor, loss.target.numel(), rel_tol=0.01)
    cause = "a factor remains"
    if summed:
        cause = "it is summed over the batch, so the size of the steps depends on the batch size"
    return warning(
        f"training_step returns {returned:.3g}, {factor:.3g} times the mean {loss.kind} of {plain:.3g}: {cause}",
        "return the mean over the batch: learning rates and clipping assume it",
    )


# Outputs --------------------------------------------------------------------------------------------------------------


def activation_on_outputs(probe: Probe) -> Finding:
    """The loss gets raw outputs, or outputs whose range includes the targets."""
    loss = probe.main_loss()
    x = loss.input.detach().float()
    producer = _producer(loss.input)
    finding = _probabilities(loss, x, producer)
    if finding is not None:
        return finding
    if loss.is_classes or loss.kind.startswith("binary cross-entropy with"):
        return _activation_on_logits(x, producer)
    if loss.kind in DISTANCES:
        finding = _bounded_outputs(loss, producer)
    return finding or ok("no activation limits the outputs")


def _probabilities(loss: Loss, x: Tensor, producer: str) -> Finding | None:
    """Return the finding on outputs that went through the softmax or sigmoid of their loss already."""
    if loss.kind == "cross-entropy":
        if loss.classes == 1:
            return error(
                "cross-entropy over one class is always 0",
                "use BCEWithLogitsLoss for one output, or two outputs",
            )
        total = x.sum(1)
        if float(x.min()) >= 0 and bool(torch.allclose(total, torch.ones_like(total), atol=1e-3)):
            return error(
                "the outputs are probabilities already: softmax is applied twice",
                "give cross_entropy the raw logits: it applies log-softmax itself",
            )
        if "LogSoftmax" in producer or _is_log_probabilities(x):
            return warning(
                "the outputs are log-probabilities already: log-softmax is applied twice, without effect",
                "remove the first one",
            )
    if loss.kind == "negative log-likelihood" and not _is_log_probabilities(x):
        return error("nll_loss gets numbers that are no log-probabilities", "use cross_entropy on the logits")
    if loss.kind.startswith("binary cross-entropy with"):
        in_range = bool(((x >= 0) & (x <= 1)).all()) and x.numel() >= 16
        if "Sigmoid" in producer or "Softmax" in producer or (in_range and not producer):
            return error(
                "the outputs are probabilities already: sigmoid is applied twice",
                "give binary_cross_entropy_with_logits the raw logits: it applies the sigmoid itself",
            )
    return None


def _activation_on_logits(x: Tensor, producer: str) -> Finding:
    """Return the finding on an activation after the last layer of a classifier."""
    zeros = float((x == 0).float().mean())
    looks_clipped = float(x.min()) == 0 and 0.1 < zeros < 1 and not producer
    if ("Relu" in producer or looks_clipped) and "Leaky" not in producer:
        return error(
            f"a ReLU follows the last layer: {zeros:.0%} of the logits are cut off at 0 and get no gradient",
            RAW_LOGITS,
        )
    if any(word in producer for word in BOUNDING):
        return warning(
            f"an activation ({_function(producer)}) follows the last layer: it bounds the logits", RAW_LOGITS
        )
    return ok("the loss gets raw outputs")


def _bounded_outputs(loss: Loss, producer: str) -> Finding | None:
    """Return the finding on targets outside the range of the last activation."""
    if "Leaky" in producer:
        return None
    low = float(loss.target.min())
    high = float(loss.target.max())
    for name, (minimum, maximum) in RANGES.items():
        if name not in producer:
            continue
        if low >= minimum - 0.01 and high <= maximum + 0.01:
            return None
        return error(
            f"the outputs end in {_function(producer)}, which cannot reach the targets: they range from {low:.3g} to"
            f" {high:.3g}",
            "end with a linear layer without an activation, or scale the targets",
        )
    return None


def softmax_dimension(probe: Probe) -> Finding:
    """No softmax normalises over queries instead of keys, or over the batch."""
    softmaxes = probe.first_step().softmaxes
    if not softmaxes:
        raise Skip("no softmax is called")
    for path, x, dim in softmaxes:
        place = f"a softmax in {path or 'training_step'} over {_shape(x)} runs along dimension {dim}"
        if dim == x.ndim - 2 and x.ndim >= 3 and x.shape[-1] == x.shape[-2]:
            return error(
                f"{place}, the queries; the weights of one query do not add up to 1",
                "use dim=-1, the keys",
            )
        if dim == 0 and x.ndim > 1 and len(x) == probe.batch_size != 1:
            return error(
                f"{place}, the samples: each sample's output depends on the others",
                "use dim=1 or dim=-1",
            )
    return ok(f"{len(softmaxes)} softmax calls, none along samples or queries")


def output_bias(probe: Probe) -> Finding:
    """No class is preferred before training, unless it is as frequent."""
    loss = probe.main_loss()
    shares = _class_probabilities(loss)
    if not bool(shares.isfinite().all()):
        raise Skip("the outputs are not finite")
    share = float(shares.max())
    favourite = int(shares.argmax())
    if share <= 0.5 + 0.8 / len(shares):
        return ok(f"no class is preferred before training (at most {share:.0%}, class {favourite})")
    targets = loss.valid if loss.is_classes else loss.target
    frequency = float((targets == favourite).float().mean())
    if frequency > 0.5 and abs(frequency - share) < 0.15:
        return ok(f"class {favourite} starts at {share:.0%}, as often as it occurs")
    message = (
        f"class {favourite} gets {share:.0%} of the probability before training, but has {frequency:.0%} of the labels"
    )
    layer = _largest_bias(probe, len(shares))
    if layer is not None:
        message += f": {layer[0]} contains {layer[1]:.3g}"
    return warning(message, "initialise the bias of the last layer to 0, or to the log-frequencies of the classes")


def _class_probabilities(loss: Loss) -> Tensor:
    """Return the mean probability of each class ``(k,)``, or raise Skip."""
    logits = loss.input.detach().float()
    if loss.is_classes and loss.classes > 1 and loss.kind == "cross-entropy":
        logits = logits.movedim(1, -1).reshape(-1, loss.classes)  # (n, k)
        return logits.softmax(1).mean(0)
    if loss.kind == "binary cross-entropy with logits" and logits.numel() == len(logits):
        positive = logits.sigmoid().mean()
        return torch.stack([1 - positive, positive])
    raise Skip("the outputs are no logits of classes")


OUTPUTS: dict[str, Callable[[Probe], Finding | list[Finding]]] = {
    "training step": training_step,
    "shapes": shapes,
    "initial loss": initial_loss,
    "loss scale": loss_scale,
    "activation on outputs": activation_on_outputs,
    "softmax dimension": softmax_dimension,
    "output bias": output_bias,
}


def _shape(value: Any) -> str:
    """Return the shapes of up to three tensors: ``32x1x8x8``."""
    tensors = [t for t in named_tensors(value).values() if t.ndim]
    return " ".join("x".join(str(size) for size in t.shape) for t in tensors[:3])


def _producer(x: Tensor) -> str:
    """Return the name of the autograd node that computed a tensor, before any that only rearrange numbers."""
    node = x.grad_fn
    while node is not None and node.name().startswith(REARRANGING) and node.next_functions:
        node = node.next_functions[0][0]
    if node is None:
        return ""
    return node.name()


def _function(producer: str) -> str:
    """Return the name of the function of an autograd node: ``Sigmoid`` for ``SigmoidBackward0``."""
    return producer.rstrip("0").removesuffix("Backward")


def _is_log_probabilities(x: Tensor) -> bool:
    dim = min(1, x.ndim - 1)
    total = x.logsumexp(dim)
    return bool(total.abs().max() < 1e-3) and x.shape[dim] > 1


def _largest_bias(probe: Probe, classes: int) -> tuple[str, float] | None:
    """Return name and largest value of the last bias with one number per output, if it is above 1."""
    for call in reversed(probe.first_step().finished):
        bias = getattr(call.module, "bias", None)
        if not isinstance(bias, nn.Parameter):
            continue
        values = bias.detach().flatten()
        if values.numel() in (classes, 1) and float(values.abs().max()) > 1:
            return f"{call.path}.bias", float(values[values.abs().argmax()])
    return None
