"""Vanilla (Elman) RNN (Elman 1990, https://doi.org/10.1207/s15516709cog1402_1), with a written-out cell."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from zoo.layers.recurrent import Pooling, SequenceInput, TimePooling, initialize_recurrent, last_valid_state
from zoo.tasks import Classifier, Regressor, Tagger, require


class _Unroll(torch.autograd.Function):
    """Recurrence ``h_t = tanh(a_t + Wh h_{t-1})``, with backpropagation through time written out.

    autograd would keep a graph of every step and sum the weight gradient step by step; here it is one matrix product
    over all steps. Tensors are time first: ``(t, b, h)``.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, h: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        recurrent = weight.to(a.dtype).t()
        first = h.to(a.dtype)
        states = torch.empty_like(a)
        h = first
        for step, out in zip(a.unbind(0), states.unbind(0), strict=True):
            h = torch.addmm(step, h, recurrent, out=out).tanh_()
        ctx.save_for_backward(states, first, weight)
        ctx.set_materialize_grads(False)
        return states, h.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_states: Tensor | None, grad_last: Tensor | None) -> tuple[Tensor | None, ...]:
        states, first, weight = ctx.saved_tensors
        recurrent = weight.to(states.dtype)
        grad_a = torch.addcmul(states.new_ones(()), states, states, value=-1)  # tanh' = 1 - h^2, (t, b, h)
        grad = grad_last  # with respect to h_t, (b, h)
        if grad is None:
            grad = torch.zeros_like(first)
        threshold = _flush_below(states)
        steps = grad_a.unbind(0)  # views, (b, h) each
        given = None
        if grad_states is not None:
            given = grad_states.unbind(0)
        for t in range(len(states) - 1, -1, -1):
            if given is not None:
                grad = grad + given[t]
            grad = torch.mm(steps[t].mul_(grad), recurrent)  # in place: grad_a becomes the gradient of a
            if threshold and t % 8 == 0:
                grad = torch.hardshrink(grad, threshold)
        later_grads = grad_a[1:].flatten(0, 1)  # ((t - 1) * b, h)
        earlier_states = states[:-1].flatten(0, 1)
        grad_weight = torch.addmm(grad_a[0].t() @ first, later_grads.t(), earlier_states)
        return grad_a, grad, grad_weight


def _flush_below(states: Tensor) -> float:
    """Return the size below which gradients are set to 0, as denormal numbers slow a CPU down; 0 for never."""
    tiny = torch.finfo(states.dtype).tiny
    if states.device.type != "cpu" or tiny > 1e-30:  # float16 has no room below its gradients
        return 0.0
    return tiny * 2.0**24


class VanillaLayer(nn.Module):
    """Vanilla recurrent layer: ``h_t = tanh(Wx x_t + Wh h_{t-1} + b)`` with ``h_0 = 0``.

    As a layer of ``nn.RNN``, with one bias instead of two.

    Args:
        input_dim: features per step.
        dim: hidden dimension.
        fast: use ``nn.RNN``'s kernel instead of the written-out cell; parameters and results are the same.
    """

    def __init__(self, input_dim: int, dim: int, fast: bool = False) -> None:
        super().__init__()
        self.fast = fast
        bound = 1 / math.sqrt(dim)  # as torch initialises nn.RNN
        self.weight_ih = nn.Parameter(torch.empty(dim, input_dim).uniform_(-bound, bound))
        self.weight_hh = nn.Parameter(torch.empty(dim, dim).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(dim).uniform_(-bound, bound))

    @torch.compiler.disable(reason="a compiler would unroll every step")
    def forward(self, x: Float[Tensor, "b t d"]) -> tuple[Float[Tensor, "b t h"], Float[Tensor, "b h"]]:
        """Return the states of all steps, and that of the last."""
        h = x.new_zeros(len(x), len(self.bias))
        if self.fast:
            weights = [self.weight_ih, self.weight_hh, self.bias, torch.zeros_like(self.bias)]
            states, last = torch.rnn_tanh(x, h.unsqueeze(0), weights, True, 1, 0.0, self.training, False, True)
            return states, last[0]
        # the input's contribution does not depend on the state: all steps in one product
        inputs = F.linear(x.transpose(0, 1), self.weight_ih, self.bias)  # (t, b, h)
        states, last = _Unroll.apply(inputs, h, self.weight_hh)  # type: ignore[misc]
        return states.transpose(0, 1), last


class VanillaRNN(nn.Module):
    """Vanilla RNN: one recurrent layer over vectors or embedded tokens, pooling over time, and a linear layer.

    Args:
        output_dim: number of outputs.
        dim: hidden dimension.
        input_dim: features per step, for sequences of vectors; null for tokens.
        vocab_size: vocabulary size; null for vectors.
        embed_dim: dimension of the token embedding.
        pad_id: padding token; null for none.
        pooling: pooling over time: ``last``, ``mean``, ``max`` or ``attention``; null for an output at every step.
        init_recurrent: initialise recurrent weights orthogonally, input weights by Xavier and biases with 0, instead of
            torch's uniform initialisation.
        fast: use ``nn.RNN``'s kernel instead of the written-out cell.
    """

    def __init__(
        self,
        output_dim: int,
        dim: int,
        input_dim: int | None = None,
        vocab_size: int | None = None,
        embed_dim: int = 128,
        pad_id: int | None = None,
        pooling: Pooling | None = "last",
        init_recurrent: bool = False,
        fast: bool = False,
    ) -> None:
        super().__init__()
        self.input = SequenceInput(input_dim, vocab_size, embed_dim, pad_id)
        self.rnn = VanillaLayer(self.input.width, dim, fast)
        self.pool = TimePooling(pooling, dim) if pooling else None
        self.out = nn.Linear(dim, output_dim)
        if init_recurrent:
            initialize_recurrent(self.rnn)

    def forward(
        self, x: Float[Tensor, "b t d"] | Int[Tensor, "b t"], lengths: Int[Tensor, " n"] | None = None
    ) -> Float[Tensor, "b k"] | Float[Tensor, "b t k"]:
        x, lengths = self.input(x, lengths)  # (b, t, e)
        states, last = self.rnn(x)  # (b, t, h), (b, h)
        if self.pool is None:
            return self.out(states)
        if lengths is not None:
            last = last_valid_state(states, lengths)
        return self.out(self.pool(states, last, lengths))


class VanillaRNNClassifier(Classifier):
    """Vanilla RNN sequence classifier.

    Args:
        dim: hidden dimension.
        pooling: pooling over time: ``last`` valid state, ``mean``, ``max`` or ``attention``.
        embed_dim: dimension of the token embedding.
        init_recurrent: initialise recurrent weights orthogonally, input weights by Xavier and biases with 0, instead of
            torch's uniform initialisation.
        fast: use ``nn.RNN``'s kernel instead of the written-out cell.
        input_dim: features per step, for sequences of vectors; null takes it from the data.
        vocab_size: vocabulary size, for sequences of tokens; null takes it from the data.
        pad_id: padding token; null takes it from the data, or there is none.
        num_classes: number of classes; null takes it from the data.
    """

    def __init__(
        self,
        dim: int = 128,
        pooling: Pooling = "last",
        embed_dim: int = 128,
        init_recurrent: bool = False,
        fast: bool = False,
        input_dim: int | None = None,
        vocab_size: int | None = None,
        pad_id: int | None = None,
        num_classes: int | None = None,
        **kwargs: Any,
    ) -> None:
        classes = require(self, num_classes=num_classes)
        net = VanillaRNN(classes, dim, input_dim, vocab_size, embed_dim, pad_id, pooling, init_recurrent, fast)
        super().__init__(net=net, num_classes=num_classes, **kwargs)


class VanillaRNNRegressor(Regressor):
    """Vanilla RNN sequence regressor.

    Args:
        dim: hidden dimension.
        pooling: pooling over time: ``last`` valid state, ``mean``, ``max`` or ``attention``.
        embed_dim: dimension of the token embedding.
        init_recurrent: initialise recurrent weights orthogonally, input weights by Xavier and biases with 0, instead of
            torch's uniform initialisation.
        fast: use ``nn.RNN``'s kernel instead of the written-out cell.
        input_dim: features per step, for sequences of vectors; null takes it from the data.
        vocab_size: vocabulary size, for sequences of tokens; null takes it from the data.
        pad_id: padding token; null takes it from the data, or there is none.
        output_dim: number of targets; null takes it from the data.
    """

    def __init__(
        self,
        dim: int = 128,
        pooling: Pooling = "last",
        embed_dim: int = 128,
        init_recurrent: bool = False,
        fast: bool = False,
        input_dim: int | None = None,
        vocab_size: int | None = None,
        pad_id: int | None = None,
        output_dim: int | None = None,
        **kwargs: Any,
    ) -> None:
        outputs = require(self, output_dim=output_dim)
        net = VanillaRNN(outputs, dim, input_dim, vocab_size, embed_dim, pad_id, pooling, init_recurrent, fast)
        super().__init__(net=net, **kwargs)


class VanillaRNNTagger(Tagger):
    """Vanilla RNN sequence tagger: a class for each step.

    Args:
        dim: hidden dimension.
        embed_dim: dimension of the token embedding.
        init_recurrent: initialise recurrent weights orthogonally, input weights by Xavier and biases with 0, instead of
            torch's uniform initialisation.
        fast: use ``nn.RNN``'s kernel instead of the written-out cell.
        input_dim: features per step, for sequences of vectors; null takes it from the data.
        vocab_size: vocabulary size, for sequences of tokens; null takes it from the data.
        pad_id: padding token; null takes it from the data, or there is none.
        num_classes: number of classes; null takes it from the data.
    """

    def __init__(
        self,
        dim: int = 128,
        embed_dim: int = 128,
        init_recurrent: bool = False,
        fast: bool = False,
        input_dim: int | None = None,
        vocab_size: int | None = None,
        pad_id: int | None = None,
        num_classes: int | None = None,
        **kwargs: Any,
    ) -> None:
        classes = require(self, num_classes=num_classes)
        net = VanillaRNN(classes, dim, input_dim, vocab_size, embed_dim, pad_id, None, init_recurrent, fast)
        super().__init__(net=net, num_classes=num_classes, **kwargs)
