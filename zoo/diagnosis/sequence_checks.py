"""Checks of sequence models: outputs do not depend on later positions or on padding."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from zoo.diagnosis.probe import NetworkRefuses, Probe
from zoo.diagnosis.recorder import Call, Loss, main_output, map_tensors, named_tensors
from zoo.diagnosis.report import Finding, Skip, error, ok, warning
from zoo.diagnosis.tensor_diff import first_differing_module, values_differ

Arguments = tuple[Any, Any]
"""Positional and keyword arguments of a call."""

SHIFTS = (1, 0, -1, 2)
EXTRA_PADDING = 3  # columns
MASK_OFFSET = 8  # positions ahead up to which a mask may be off by one per layer


# Causality ------------------------------------------------------------------------------------------------------------


def causality(probe: Probe) -> Finding:
    """No position sees later ones; for modules with ``causal = True``, or whose targets are the next tokens."""
    call = probe.network_call()
    name, x = _causal_input(probe, call)
    length = x.shape[1]
    middle = length // 2
    probe.perturb_weights()
    a, before = probe.replay(call)
    b, after = probe.replay(call, *_with(call, name, _with_other_end(x, middle)))
    difference = (a[:, :middle] - b[:, :middle]).abs().flatten(2)  # (b, t, d)
    changed = difference.amax((0, 2)) > 1e-5 * float(a.abs().max())  # (t,)
    if not bool(changed.any()):
        return ok("no position sees later ones")

    def past(output: Tensor) -> Tensor | None:
        if output.ndim > 2 and output.shape[1] == length:
            return output[:, :middle]
        return None

    first = int(changed.nonzero()[0])
    ahead = middle - first
    cause = "the mask is missing or turned around"
    if first > 0 and ahead <= MASK_OFFSET:
        cause = "the mask is off by one per layer"
    return error(
        f"position {first} changes with the tokens from position {middle} on: it sees {ahead} positions ahead; {cause},"
        f" it begins in {first_differing_module(before, after, past)}",
        "position i may see positions 0 to i: torch.tril(ones, diagonal=0), is_causal=True, no bidirectional layer",
    )


def _causal_input(probe: Probe, call: Call) -> tuple[str, Tensor]:
    """Return name and value of the sequence that a causal network reads, or raise Skip."""
    declared = [getattr(module, "causal", None) for module in probe.module.modules()]
    if True not in declared and _shift(probe) is None:
        raise Skip("the network is not known to be causal: no causal = True, and the targets are not the next tokens")
    output = main_output(call.output)
    sequences = _sequences(call)
    if output is None or output.ndim < 3 or not sequences:
        raise Skip("the network does not return one output per position (b, t, ...)")
    length = output.shape[1]
    name, x = sequences[-1]
    for other_name, other in reversed(sequences):
        if other.shape[1] == length:
            name = other_name
            x = other
            break
    if x.shape[1] != length or length < 4:
        raise Skip("inputs and outputs differ in length, or are shorter than 4")
    return name, x


def _with_other_end(x: Tensor, middle: int) -> Tensor:
    """Return a sequence with other values from the middle on."""
    changed = x.clone()
    end = x[:, middle:]
    if x.is_floating_point():
        changed[:, middle:] = end.flip(0) + 1
    else:
        # Within the tokens that occur: the network need not know any other.
        top = int(x.max()) + 1
        changed[:, middle:] = (end + max(1, top // 3)) % max(top, 2)
    return changed


# Targets --------------------------------------------------------------------------------------------------------------


def target_shift(probe: Probe) -> Finding:
    """The targets of a language model are the next tokens."""
    shift = _shift(probe)
    if shift is None:
        raise Skip("the targets are not the shifted inputs")
    if shift == 1:
        return ok("each position's target is the next token")
    target = f"the token {shift} positions later, not the next one"
    if shift == 0:
        target = "the same token, which the network only has to copy"
    elif shift == -1:
        target = "the token before, which the network has seen"
    return error(
        f"each position's target is {target}: inputs and targets are shifted wrongly",
        "use tokens[:, :-1] as inputs and tokens[:, 1:] as targets, and shift only once",
    )


def _shift(probe: Probe) -> int | None:
    """Return how many positions after its input token each target is in the text; None if it is not there."""
    tokens = [x for _, x in _sequences(probe.network_call()) if not x.is_floating_point()]
    for loss in probe.first_step().losses:
        if not loss.is_classes:
            continue
        for x in tokens:
            b, t = x.shape
            if loss.target.numel() not in (b * t, b * (t - 1)):
                continue
            targets = loss.target.reshape(b, -1)
            for shift in SHIFTS:
                if _is_shifted(x, targets, shift, loss.ignore_index):
                    return shift
    return None


def _is_shifted(x: Tensor, targets: Tensor, shift: int, ignored: int) -> bool:
    """Return whether nearly all targets equal the tokens ``shift`` positions later.

    Args:
        x: input tokens ``(b, t)``.
        targets: targets ``(b, t)`` or ``(b, t - 1)``.
        shift: number of positions, negative for earlier tokens.
        ignored: class index that the loss ignores.
    """
    tokens = x[:, max(shift, 0) : targets.shape[1] + shift]
    targets = targets[:, max(-shift, 0) :]
    n = min(tokens.shape[1], targets.shape[1])
    tokens = tokens[:, :n]
    targets = targets[:, :n]
    valid = targets != ignored
    if n < 2 or not bool(valid.any()):
        return False
    return float((tokens == targets)[valid].float().mean()) > 0.95


# Padding --------------------------------------------------------------------------------------------------------------


def padding(probe: Probe) -> list[Finding]:
    """Padding changes neither outputs at real positions nor the loss."""
    call = probe.network_call()
    pad = _pad_id(probe)
    sequences = _sequences(call)
    if not sequences:
        raise Skip("the network takes no sequences")
    name, x = sequences[0]
    hidden = _declared_padding(probe, call, x)
    if hidden is None and (pad is None or x.is_floating_point()):
        raise Skip("nothing declares padding: no pad_id, and no mask or lengths among the network's arguments")
    probe.perturb_weights()
    if hidden is not None:
        where = _changed_padding(probe, call, name, x, hidden)
    else:
        where = _more_padding(probe, call, name, x, int(pad or 0))
    findings: list[Finding] = []
    if where:
        findings.append(
            error(
                f"the content of the padding changes the outputs of real positions; it begins in {where}",
                "mask padded keys in attention, pool over real positions only, and pack sequences for RNNs",
            )
        )
    for loss in probe.first_step().losses:
        if pad is not None and _counts_padding(loss, pad, probe.batch_size):
            share = float((loss.target == pad).float().mean())
            findings.append(
                warning(
                    f"padding counts in the loss: {share:.0%} of the targets are pad_id={pad}",
                    f"give the loss ignore_index={pad}",
                )
            )
    return findings or [ok("padding changes nothing")]


def _counts_padding(loss: Loss, pad: int, batch_size: int) -> bool:
    if not loss.is_classes or loss.ignore_index == pad:
        return False
    # One per sample may be an end-of-text token with the same number.
    return int((loss.target == pad).sum()) > batch_size


SEQUENCES: dict[str, Callable[[Probe], Finding | list[Finding]]] = {
    "causality": causality,
    "target shift": target_shift,
    "padding": padding,
}


def _pad_id(probe: Probe) -> int | None:
    """Return the padding token: ``pad_id`` of a module or the data, or else ``padding_idx`` of an embedding."""
    modules = list(probe.module.modules())
    for name, owners in (("pad_id", [*modules, probe.datamodule]), ("padding_idx", modules)):
        for owner in owners:
            value = getattr(owner, name, None)
            if isinstance(value, int):
                return value
    return None


def _declared_padding(probe: Probe, call: Call, x: Tensor) -> Tensor | None:
    """Return where ``x`` is padding by a mask ``(b, t)`` or lengths ``(b,)`` among the arguments; None without any.

    A module that passes ``*inputs`` on does not name them, but modules within it that take ``x`` do.
    """
    named = dict(_arguments(call))
    inner_calls = [inner for inner in probe.first_step().calls if any(value is x for value in inner.args)]
    for inner in (call, *inner_calls):
        with suppress(TypeError):
            arguments = inspect.signature(inner.module.forward).bind(*inner.args, **inner.kwargs).arguments
            named = named_tensors(arguments, "") | named
    for name, t in named.items():
        is_mask = t.dtype == torch.bool or (t is not x and bool(((t == 0) | (t == 1)).all()))
        if t.shape == x.shape[:2] and is_mask:
            # The first position is real, whichever value stands for that.
            return t.bool() != t.bool()[:, :1]
        if t.ndim == 1 and len(t) == len(x) and "len" in name:
            return torch.arange(x.shape[1], device=t.device) >= t.unsqueeze(1)  # (b, t)
    return None


def _changed_padding(probe: Probe, call: Call, name: str, x: Tensor, hidden: Tensor) -> str:
    """Return the module where other contents of the padding begin to have an effect; empty if they have none."""
    if not bool(hidden.any()):
        raise Skip("no sample of the batch is padded")
    other = x + 1
    if not x.is_floating_point():
        other = other % (int(x.max()) + 1)
    mask = hidden.unsqueeze(-1) if x.ndim > 2 else hidden
    changed = torch.where(mask, other, x)
    return _effect(probe, call, (call.args, call.kwargs), _with(call, name, changed), ~hidden)


def _more_padding(probe: Probe, call: Call, name: str, x: Tensor, pad: int) -> str:
    """Return the module where three more columns of padding, or fewer if it takes no more, begin to have an effect."""
    real = x != pad
    if not bool(real[:, 0].all()):
        raise Skip("the padding is on the left")
    longer = torch.cat([x, x.new_full((len(x), EXTRA_PADDING), pad)], 1)
    try:
        return _effect(probe, call, (call.args, call.kwargs), _with(call, name, longer), real)
    except NetworkRefuses:
        return _less_padding(probe, call, name, x, real)


def _less_padding(probe: Probe, call: Call, name: str, x: Tensor, real: Tensor) -> str:
    """Compare the shortest sample with and without its padding."""
    lengths = real.sum(1)
    shortest = int(lengths.argmin())
    length = int(lengths.min())
    if length == x.shape[1]:
        raise Skip("the network takes no more positions, and no sample of the batch is padded")
    row = x[shortest : shortest + 1]
    padded = _with(call, name, row)
    unpadded = _with(call, name, row[:, :length])
    return _effect(probe, call, padded, unpadded, real[shortest : shortest + 1])


def _effect(probe: Probe, call: Call, one: Arguments, other: Arguments, real: Tensor) -> str:
    """Return the module where two calls begin to differ in real positions; empty if they do not.

    Args:
        probe: the probe.
        call: a call of the network.
        one: arguments.
        other: other arguments.
        real: which positions are not padding ``(b, t)``.
    """
    t = real.shape[1]
    lengths = [s.shape[1] for s in named_tensors(other).values() if s.ndim > 1]
    length = min(t, *lengths)

    def select(output: Tensor) -> Tensor | None:
        if len(output) != len(real):
            return None
        if output.ndim > 2 and length <= output.shape[1] <= t + EXTRA_PADDING:
            return output[:, :length][real[:, :length]]  # (n, d)
        if output.ndim == 2:
            return output
        return None

    a, before = probe.replay(call, *one)
    b, after = probe.replay(call, *other)
    x = select(a)
    y = select(b)
    if x is None or y is None:
        raise Skip("the outputs are neither per position nor per sample")
    if not values_differ(x, y, 1e-4):
        return ""
    return first_differing_module(before, after, select, 1e-4)


# Arguments ------------------------------------------------------------------------------------------------------------


def _arguments(call: Call) -> dict[str, Tensor]:
    return named_tensors((call.args, call.kwargs), "")


def _with(call: Call, name: str, value: Tensor) -> Arguments:
    """Return the arguments of a call with one tensor replaced."""

    def replace(key: str, tensor: Tensor) -> Tensor:
        return value if key == name else tensor

    return map_tensors((call.args, call.kwargs), replace, "")


def _sequences(call: Call) -> list[tuple[str, Tensor]]:
    """Return the arguments that are tokens ``(b, t)`` or vectors ``(b, t, d)``, targets apart."""
    sequences: list[tuple[str, Tensor]] = []
    for name, t in _arguments(call).items():
        is_integer = not t.is_floating_point() and t.dtype != torch.bool
        is_tokens = t.ndim == 2 and is_integer and int(t.max()) > 1
        is_vectors = t.ndim == 3 and t.is_floating_point()
        is_target = "label" in name or "target" in name
        has_positions = t.shape[1:2].numel() > 1
        if has_positions and not is_target and (is_tokens or is_vectors):
            sequences.append((name, t))
    return sequences
