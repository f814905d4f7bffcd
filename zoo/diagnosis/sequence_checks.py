"""Does a net for sequences see only what it may: no later positions, no padding?"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from zoo.diagnosis.probe import Probe
from zoo.diagnosis.recorder import Call, main_output, map_tensors, named_tensors
from zoo.diagnosis.report import Finding, Skip, error, ok, warning
from zoo.diagnosis.tensor_diff import first_differing_module, values_differ


def causality(probe: Probe) -> Finding:
    """Only for nets that say ``causal = True``, or whose targets are the next tokens of their inputs."""
    call = probe.network_call()
    declared = [m.causal for m in probe.module.modules() if isinstance(getattr(m, "causal", None), bool)]
    shift = _shift(probe)
    if True not in declared and shift is None:
        raise Skip("nothing says that the net is causal: neither causal = True nor targets that are the next tokens")
    out, sequences = main_output(call.output), _sequences(call)
    if out is None or out.ndim < 3 or not sequences:
        raise Skip("the net does not return one output a position (b, t, ...)")
    name, x = next(((n, s) for n, s in sequences[::-1] if s.shape[1] == out.shape[1]), sequences[-1])
    t = x.shape[1]
    if t != out.shape[1] or t < 4:
        raise Skip("inputs and outputs differ in length, or are shorter than 4")
    middle, changed = t // 2, x.clone()
    if x.is_floating_point():
        changed[:, middle:] = x[:, middle:].flip(0) + 1
    else:
        top = int(x.max()) + 1
        changed[:, middle:] = (x[:, middle:] + max(1, top // 3)) % max(top, 2)
    probe.perturb_weights()
    (a, before), (b, after) = probe.replay(call), probe.replay(call, *_with(call, name, changed))
    moved = (a[:, :middle] - b[:, :middle]).abs().flatten(2).amax((0, 2)) > 1e-5 * float(a.abs().max())
    if bool(moved.any()):
        first = int(moved.nonzero()[0])
        ahead = middle - first
        where = first_differing_module(
            before, after, lambda o: o[:, :middle] if o.ndim > 2 and o.shape[1] == t else None
        )
        reach = "the mask is off by one a layer" if first > 0 and ahead <= 8 else "the mask is missing or turned around"
        return error(
            f"position {first} changes with the tokens from position {middle} on: it sees {ahead} ahead; {reach},"
            f" it begins in {where}",
            "position i may see 0 to i: torch.tril(ones, diagonal=0), is_causal=True, no bidirectional layer",
        )
    return ok("no position sees later ones")


def target_shift(probe: Probe) -> Finding:
    shift = _shift(probe)
    if shift is None:
        raise Skip("targets are not the inputs shifted")
    if shift == 1:
        return ok("each position's target is the next token")
    words = {0: "the same token, which the net just has to copy", -1: "the token before, which the net has seen"}
    return error(
        f"each position's target is {words.get(shift, f'the token {shift} positions on, not the next')}:"
        " inputs and targets are shifted wrongly",
        "use tokens[:, :-1] as inputs and tokens[:, 1:] as targets, and shift once only",
    )


def padding(probe: Probe) -> list[Finding]:
    call = probe.network_call()
    pad = _pad_id(probe)
    sequences = _sequences(call)
    if not sequences:
        raise Skip("the net takes no sequences")
    name, x = sequences[0]
    given = _given_padding(probe, call, x)
    if given is None and (pad is None or x.is_floating_point()):
        raise Skip("nothing says what is padding: neither pad_id nor a mask or lengths among the net's arguments")
    probe.perturb_weights()
    if given is not None:
        where = _changed_padding(probe, call, name, x, given)
    else:
        where = _more_padding(probe, call, name, x, int(pad or 0))
    found = []
    if where:
        found.append(
            error(
                f"what stands in the padding changes the outputs of real positions; it begins in {where}",
                "mask padded keys in attention, pool over real positions only, and pack sequences for RNNs",
            )
        )
    for loss in probe.first_step().losses:
        counted = pad is not None and loss.is_classes and loss.options.get("ignore_index", -100) != pad
        if counted and int((loss.target == pad).sum()) > probe.batch_size:
            share = float((loss.target == pad).float().mean())
            text = f"padding counts in the loss: {share:.0%} of the targets are pad_id={pad}"
            found.append(warning(text, f"give the loss ignore_index={pad}"))
    return found or [ok("padding changes nothing")]


SEQUENCES: dict[str, Callable[[Probe], Finding | list[Finding]]] = {
    "causality": causality,
    "target shift": target_shift,
    "padding": padding,
}


def _arguments(call: Call) -> dict[str, Tensor]:
    return named_tensors((call.args, call.kwargs), "")


def _with(call: Call, name: str, value: Tensor) -> tuple[Any, Any]:
    """The arguments of a call with one tensor replaced."""
    return map_tensors((call.args, call.kwargs), lambda n, t: value if n == name else t, "")


def _sequences(call: Call) -> list[tuple[str, Tensor]]:
    """Arguments that hold tokens (b, t), or vectors (b, t, d)."""
    found = []
    for name, t in _arguments(call).items():
        tokens = t.ndim == 2 and not t.is_floating_point() and t.dtype != torch.bool and int(t.max()) > 1
        answers = "label" in name or "target" in name
        if t.shape[1:2].numel() > 1 and not answers and (tokens or (t.ndim == 3 and t.is_floating_point())):
            found.append((name, t))
    return found


def _shift(probe: Probe) -> int | None:
    """How many positions after its input token each target stands in the text, or None if it does not stand there."""
    tokens = [x for _, x in _sequences(probe.network_call()) if not x.is_floating_point()]
    for loss in probe.first_step().losses:
        for x in tokens if loss.is_classes else []:
            b, t = x.shape
            if loss.target.numel() not in (b * t, b * (t - 1)):
                continue
            y = loss.target.reshape(b, -1)
            for shift in (1, 0, -1, 2):
                inputs, targets = x[:, max(shift, 0) : y.shape[1] + shift], y[:, max(-shift, 0) :]
                n = min(inputs.shape[1], targets.shape[1])
                counts = targets[:, :n] != loss.options.get("ignore_index", -100)
                if n > 1 and bool(counts.any()):
                    equal = (inputs[:, :n] == targets[:, :n])[counts]
                    if float(equal.float().mean()) > 0.95:
                        return shift
    return None


def _pad_id(probe: Probe) -> int | None:
    """The padding token, by ``pad_id`` of a module or the data, or else by ``padding_idx`` of an embedding."""
    modules = list(probe.module.modules())
    for name, owners in (("pad_id", [*modules, probe.datamodule]), ("padding_idx", modules)):
        for owner in owners:
            if isinstance(value := getattr(owner, name, None), int):
                return value
    return None


def _given_padding(probe: Probe, call: Call, x: Tensor) -> Tensor | None:
    """Where the net is told that ``x`` is padding, by a mask (b, t) or lengths (b,) among its arguments.

    A module that passes ``*inputs`` on does not name them: those inside it that take ``x`` do.
    """
    named = dict(_arguments(call))
    for inner in (call, *(c for c in probe.first_step().calls if any(value is x for value in c.args))):
        with suppress(TypeError):
            arguments = inspect.signature(inner.module.forward).bind(*inner.args, **inner.kwargs).arguments
            named = named_tensors(arguments, "") | named
    for name, t in named.items():
        flags = t.dtype == torch.bool or (t is not x and bool(((t == 0) | (t == 1)).all()))
        if t.shape == x.shape[:2] and flags:
            return t.bool() != t.bool()[:, :1]  # the first position is real, whatever stands for that
        if t.ndim == 1 and len(t) == len(x) and "len" in name:
            return torch.arange(x.shape[1], device=t.device) >= t.unsqueeze(1)
    return None


def _changed_padding(probe: Probe, call: Call, name: str, x: Tensor, hidden: Tensor) -> str:
    """Where the net begins to notice other contents of the padding; empty if it does not."""
    if not bool(hidden.any()):
        raise Skip("no sample of the batch is padded")
    other = x + 1 if x.is_floating_point() else (x + 1) % (int(x.max()) + 1)
    changed = torch.where(hidden.unsqueeze(-1) if x.ndim > 2 else hidden, other, x)
    return _noticed(probe, call, (call.args, call.kwargs), _with(call, name, changed), ~hidden)


def _more_padding(probe: Probe, call: Call, name: str, x: Tensor, pad: int) -> str:
    """Where the net begins to notice three more columns of padding (or three fewer, if it takes no more)."""
    real = x != pad
    if not bool(real[:, 0].all()):
        raise Skip("the padding stands on the left")
    longer = torch.cat([x, x.new_full((len(x), 3), pad)], 1)
    try:
        return _noticed(probe, call, (call.args, call.kwargs), _with(call, name, longer), real)
    except (RuntimeError, IndexError, ValueError):
        shortest = int(real.sum(1).argmin())
        length = int(real.sum(1).min())
        if length == x.shape[1]:
            raise Skip("the net takes no more positions, and no sample of the batch is padded") from None
        row = x[shortest : shortest + 1]
        one, other = _with(call, name, row), _with(call, name, row[:, :length])
        return _noticed(probe, call, one, other, real[shortest : shortest + 1])


def _noticed(probe: Probe, call: Call, one: Any, other: Any, real: Tensor) -> str:
    t = real.shape[1]
    length = min(t, *(s.shape[1] for s in named_tensors(other).values() if s.ndim > 1))

    def select(out: Tensor) -> Tensor | None:
        if out.ndim > 2 and len(out) == len(real) and length <= out.shape[1] <= t + 3:
            return out[:, :length][real[:, :length]]
        return out if out.ndim == 2 and len(out) == len(real) else None

    (a, before), (b, after) = probe.replay(call, *one), probe.replay(call, *other)
    x, y = select(a), select(b)
    if x is None or y is None:
        raise Skip("the outputs belong neither to positions nor to samples")
    return first_differing_module(before, after, select, 1e-4) if values_differ(x, y, 1e-4) else ""
