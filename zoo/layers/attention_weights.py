"""Access to attention weights: a seam for callbacks, which costs one comparison per call while nobody asks."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

_receiver: Callable[[Tensor], None] | None = None  # set by observe_attention only


@contextmanager
def observe_attention(module: nn.Module, observe: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call ``observe(name, weights)`` for every attention that a module computes within this context.

    Sees the attention modules of zoo, and ``nn.MultiheadAttention`` in any module. The weights, ``(b, h, t, s)`` or
    ``(b, t, s)``, are computed a second time, without dropout and without a graph: outputs, gradients and the random
    state are what they would be without observing. Compiled modules run uncompiled here.

    Args:
        module: the network, or a module that contains it.
        observe: called with the path of the attention module within ``module``, and its weights.
    """
    global _receiver
    running: list[str] = []  # names of the modules whose forward is running, the innermost last

    def receive(weights: Tensor) -> None:
        if running:  # else it is the attention of another network
            observe(running[-1], weights)

    previous = _receiver
    with ExitStack() as stack:
        if "torch._dynamo" in sys.modules:  # else nothing is compiled
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        for name, part in module.named_modules():
            for handle in _track(name, part, running):
                stack.callback(handle.remove)
        _receiver = receive
        try:
            yield
        finally:
            _receiver = previous


def _track(name: str, module: nn.Module, running: list[str]) -> list[Any]:
    """Register hooks that keep a module's name in ``running`` during its forward."""

    def enter(module: nn.Module, args: Any) -> None:
        running.append(name)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        running.pop()

    handles = [module.register_forward_pre_hook(enter)]
    if isinstance(module, nn.MultiheadAttention):
        handles.append(module.register_forward_hook(_report_multihead, with_kwargs=True))
    # Also after an exception: checkpointing ends its second forward pass with one.
    handles.append(module.register_forward_hook(leave, always_call=True))
    return handles


@torch.no_grad()
def _report_multihead(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
    """Report the weights of torch's own attention module, whose output may lack them."""
    call = inspect.signature(module.forward).bind(*args, **kwargs)
    call.arguments["need_weights"] = True
    call.arguments["average_attn_weights"] = False
    training = module.training
    module.training = False  # the weights before dropout
    try:
        _, weights = module.forward(*call.args, **call.kwargs)
    finally:
        module.training = training
    report_weights(weights)


def is_observed() -> bool:
    """Return whether anybody asks for attention weights now."""
    return _receiver is not None


def report_weights(weights: Float[Tensor, "*b t s"]) -> None:
    """Pass attention weights on to whoever asks for them."""
    if _receiver is not None:
        _receiver(weights.detach())


@torch.no_grad()
def attention_weights(
    q: Float[Tensor, "b h t c"],
    k: Float[Tensor, "b g s c"],
    mask: Bool[Tensor, "*mask"] | None = None,
) -> Float[Tensor, "b h t s"]:
    """Return the softmax of scaled dot products, in float32 or better; where ``mask`` is false the weight is 0."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)  # (b, h, s, c)
    with torch.autocast(q.device.type, enabled=False):
        scores = q.to(dtype) @ k.to(dtype).mT * q.shape[-1] ** -0.5  # (b, h, t, s)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1)
