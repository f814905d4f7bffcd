"""Checks of behaviour: samples do not influence each other, and train and eval mode differ only as they should."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from zoo._torch import BATCH_NORM, DROPOUT, INSTANCE_NORM
from zoo.diagnosis.failures import describe_failure
from zoo.diagnosis.probe import Probe
from zoo.diagnosis.recorder import NORMAL, UNIFORM, Call, Recorder, map_tensors, named_tensors
from zoo.diagnosis.report import Finding, Skip, error, ok, warning
from zoo.diagnosis.tensor_diff import first_differing_module, values_differ

# Modules that behave differently in train and eval mode.
MODAL = (DROPOUT, BATCH_NORM, nn.RReLU, INSTANCE_NORM)


def sample_mixing(probe: Probe) -> Finding:
    """In eval mode, each sample's outputs depend on that sample alone."""
    probe.first_step()
    size = probe.batch_size
    batch = probe.batches[0]
    if size < 2:
        raise Skip("the batch has only one sample")
    before = _traced(probe, batch, train=False)
    x = probe.outputs(before)
    first = slice(0, size // 2)
    second = slice(size // 2, size)
    for kept, others in ((first, second), (second, first)):
        after = _traced(probe, _overwritten(batch, size, kept, others), train=False)
        y = probe.outputs(after)
        if x is None or y is None:
            raise Skip("the outputs have no dimension of the batch's size")
        if x.shape == (size, size):
            raise Skip("the outputs compare all samples with each other on purpose")
        if values_differ(x[kept], y[kept]):
            where = first_differing_module(before, after, lambda t, kept=kept: t[kept] if len(t) == size else None)
            return error(
                f"the outputs of samples {kept.start} to {kept.stop - 1} change with the others in the batch, in eval"
                f" mode, too; it begins in {where}",
                "check there for a mean, softmax or norm over dimension 0, view or reshape instead of transpose, and"
                " batch_first",
            )
    # Random numbers depend on the position in the batch.
    if not before.random and x is not None and _depends_on_position(probe, batch, size, x):
        return error(
            "a sample's outputs depend on its place in the batch, in eval mode, too",
            "check for indexing or an embedding along dimension 0",
        )
    return ok("each sample's outputs depend on that sample alone (in eval mode)")


def _overwritten(batch: Any, size: int, kept: slice, others: slice) -> Any:
    """Return a batch in which the first of the kept samples replaces all others."""

    def overwrite(_: str, tensor: Tensor) -> Tensor:
        if tensor.ndim and len(tensor) == size:
            tensor = tensor.clone()
            tensor[others] = tensor[kept][:1].clone()
        return tensor

    return map_tensors(batch, overwrite)


def _depends_on_position(probe: Probe, batch: Any, size: int, x: Tensor) -> bool:
    """Return whether the outputs of a reversed batch are not the reversed outputs ``x``."""

    def reverse(_: str, tensor: Tensor) -> Tensor:
        if tensor.ndim and len(tensor) == size:
            return tensor.flip(0)
        return tensor

    reversed_outputs = probe.outputs(_traced(probe, map_tensors(batch, reverse), train=False))
    return reversed_outputs is not None and values_differ(x, reversed_outputs.flip(0), 1e-3)


def training_mode(probe: Probe) -> Finding:
    """All modules that are not frozen are in training mode during ``training_step``."""
    stuck: list[Call] = []
    for call in probe.first_step().calls:
        if call.training or _is_frozen(probe.module, call.path):
            continue
        has_parameters = any(True for _ in call.module.parameters())
        if has_parameters or isinstance(call.module, MODAL):
            stuck.append(call)
    if not stuck:
        return ok("all modules that are trained are in training mode during a training step")
    outermost = min(stuck, key=lambda call: (call.depth, call.path))
    affected = {call.path for call in stuck if isinstance(call.module, MODAL)}
    message = f"{outermost.name} is in eval mode during training_step"
    if affected:
        message += f"; {len(affected)} Dropout or BatchNorm layers do not train"
    report = error if affected else warning
    return report(
        f"{message}: eval() was called and never undone",
        "call train() after building or loading the network; Lightning does not change the modes",
    )


def _is_frozen(root: nn.Module, path: str) -> bool:
    """Return whether a module, or the innermost one around it that has parameters, has no trainable parameter."""
    while True:
        params = list(root.get_submodule(path).parameters())
        if params:
            return not any(param.requires_grad for param in params)
        if not path:
            return False
        path = path.rpartition(".")[0]


def eval_mode(probe: Probe) -> Finding:
    """Eval mode is deterministic, and differs from training mode by Dropout, BatchNorm and noise only."""
    call = probe.network_call()
    probe.perturb_weights()
    try:
        a, one = probe.replay(call)
        b, two = probe.replay(call, seed=1)
    except Skip:
        raise
    except Exception as problem:
        message, advice = describe_failure(f"eval mode, in {call.name}", problem)
        return error(message, advice)
    stray = [path for path, training in one.dropouts if not training]
    if stray:
        return error(
            f"dropout is active in eval mode, in {stray[0] or 'the network'}: F.dropout without training=self.training",
            "use nn.Dropout, or pass training=self.training",
        )
    # A VAE may sample from its normal distribution in eval mode, too.
    may_be_random = one.random & NORMAL and not one.random & UNIFORM
    is_random = values_differ(a, b)
    if is_random and not may_be_random:
        text = "are random" if one.random else "differ from call to call"
        return warning(
            f"outputs {text} in eval mode; it begins in {first_differing_module(one, two, _whole)}",
            "draw random numbers, and change state, only if self.training",
        )
    trained, three = probe.replay(call, train=True, still=MODAL)
    again, _ = probe.replay(call, train=True, still=MODAL, seed=1)
    if trained.shape == a.shape and values_differ(trained, a) and not values_differ(trained, again):
        return warning(
            "train and eval mode differ though Dropout and BatchNorm do not explain it; it begins in"
            f" {first_differing_module(one, three, _whole)}",
            "check self.training there",
        )
    noise = "; it draws Gaussian noise in eval mode, too" if is_random else ""
    return ok(f"eval mode differs from training mode by Dropout, BatchNorm and noise only{noise}")


def _whole(output: Tensor) -> Tensor:
    return output


def influence(probe: Probe) -> Finding:
    """Each input and target changes the loss."""
    probe.first_step()
    batch = probe.batches[0]
    size = probe.batch_size
    if size < 2:
        raise Skip("the batch has only one sample")
    base = _loss_value(probe, batch)
    if not math.isfinite(base):
        raise Skip("the loss is not finite")
    tensors = named_tensors(batch)
    ignored: list[str] = []
    unused: list[str] = []
    for name, tensor in tensors.items():
        if not tensor.ndim or len(tensor) != size or bool((tensor == tensor[:1]).all()):
            continue
        if _loss_value(probe, _with_one_sample(batch, name)) != base:
            continue
        # Other tensors, such as an index, may be there for another purpose.
        if name in probe.targets or name == next(iter(tensors)):
            ignored.append(name)
        else:
            unused.append(name)
    if ignored:
        kind = "target" if ignored[0] in probe.targets else "input"
        return error(
            f"the loss ignores {ignored[0]}, the {kind}: it stays {base:.4g} with any values there",
            "check that training_step compares the outputs with the targets, and that no layer discards the input",
        )
    message = "the loss changes with inputs and targets"
    if unused:
        message += f"; not used: {', '.join(unused)}"
    return ok(message)


def _with_one_sample(batch: Any, name: str) -> Any:
    """Return a batch in which one tensor repeats its first sample."""

    def repeat(key: str, tensor: Tensor) -> Tensor:
        if key == name:
            return tensor[:1].expand_as(tensor).clone()
        return tensor

    return map_tensors(batch, repeat)


BEHAVIOUR: dict[str, Callable[[Probe], Finding | list[Finding]]] = {
    "influence": influence,
    "sample mixing": sample_mixing,
    "training mode": training_mode,
    "eval mode": eval_mode,
}


def _traced(probe: Probe, batch: Any, train: bool) -> Recorder:
    """Return the record of a training step with slightly changed weights, or raise Skip where it fails."""
    # Every time: with manual optimization, the step before has changed the weights.
    probe.perturb_weights()
    trace = probe.trace(batch, train=train)
    if trace.error is not None:
        mode = "" if train else "in eval mode "
        raise Skip(f"training_step fails {mode}on a changed batch: {trace.error}")
    return trace


def _loss_value(probe: Probe, batch: Any) -> float:
    # In training mode with a seed: in eval mode, untrained BatchNorm can make the outputs of deep networks vanish.
    loss = _traced(probe, batch, train=True).loss
    if loss is None:
        raise Skip("the training step has no loss")
    return float(loss.detach().float().sum())
