"""Vanilla recurrent network (Elman 1990, https://doi.org/10.1207/s15516709cog1402_1), its cell written out."""

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
    """``h_t = tanh(a_t + Wh h_{t-1})`` forward in time, and its gradient backward in time.

    autograd would keep a graph of every step and add up the weights' gradient step by step; here it is one product over
    all steps.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, h: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        across = weight.to(a.dtype).t()
        first = h.to(a.dtype)
        states = torch.empty_like(a)
        h = first
        for step, out in zip(a.unbind(0), states.unbind(0), strict=True):
            h = torch.addmm(step, h, across, out=out).tanh_()
        ctx.save_for_backward(states, first, weight)
        ctx.set_materialize_grads(False)
        return states, h.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_states: Tensor | None, grad_last: Tensor | None) -> tuple[Tensor | None, ...]:
        states, first, weight = ctx.saved_tensors
        across = weight.to(states.dtype)
        grad_a = torch.addcmul(states.new_ones(()), states, states, value=-1)  # of tanh; of ``a``, step by step, below
        grads_a, grads = grad_a.unbind(0), () if grad_states is None else grad_states.unbind(0)
        grad = torch.zeros_like(first) if grad_last is None else grad_last
        small = _flush_below(states)
        for t in range(len(states) - 1, -1, -1):
            grad = torch.mm(grads_a[t].mul_(grad + grads[t] if grads else grad), across)
            if small and t % 8 == 0:
                grad = torch.hardshrink(grad, small)
        grad_weight = torch.addmm(grad_a[0].t() @ first, grad_a[1:].flatten(0, 1).t(), states[:-1].flatten(0, 1))
        return grad_a, grad, grad_weight


def _flush_below(states: Tensor) -> float:
    """Below this a gradient is as good as 0: one that vanishes would end in denormal numbers, slow ones for a CPU."""
    tiny = torch.finfo(states.dtype).tiny
    return tiny * 2.0**24 if states.device.type == "cpu" and tiny < 1e-30 else 0.0


class VanillaLayer(nn.Module):
    """``h_t = tanh(Wx x_t + Wh h_{t-1} + b)``, from ``h_0 = 0``: one layer of ``nn.RNN``, with one bias for its two.

    Args:
        input_dim: numbers a step.
        dim: width of the state.
        fast: run ``nn.RNN``'s own code instead of the one written out; parameters and results are the same.
    """

    def __init__(self, input_dim: int, dim: int, fast: bool = False) -> None:
        super().__init__()
        self.fast, bound = fast, 1 / math.sqrt(dim)
        self.weight_ih = nn.Parameter(torch.empty(dim, input_dim).uniform_(-bound, bound))
        self.weight_hh = nn.Parameter(torch.empty(dim, dim).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(dim).uniform_(-bound, bound))

    @torch.compiler.disable(reason="a compiler would unroll every step")
    def forward(self, x: Float[Tensor, "b t d"]) -> tuple[Float[Tensor, "b t h"], Float[Tensor, "b h"]]:
        """Return the states of all steps, and the last."""
        h = x.new_zeros(len(x), len(self.bias))
        if self.fast:
            weights = [self.weight_ih, self.weight_hh, self.bias, torch.zeros_like(self.bias)]
            states, last = torch.rnn_tanh(x, h.unsqueeze(0), weights, True, 1, 0.0, self.training, False, True)
            return states, last[0]
        # the part of the input does not wait for the state: all steps at once
        inputs = F.linear(x.transpose(0, 1), self.weight_ih, self.bias)
        states, last = _Unroll.apply(inputs, h, self.weight_hh)  # type: ignore[misc]
        return states.transpose(0, 1), last


class VanillaRNN(nn.Module):
    """A vanilla recurrent layer and a linear one behind its last valid state, or a mean, maximum or attention.

    Args:
        output_dim: number of outputs.
        dim: width of the state.
        input_dim: numbers a step, for sequences of vectors; null for tokens.
        vocab_size: number of tokens; null for vectors.
        embed_dim: width of the vector of a token.
        pad_id: the padding token; null for none.
        pooling: ``last``, ``mean``, ``max`` or ``attention``; null gives an output at every step.
        init_recurrent: orthogonal recurrent and Xavier input weights, biases 0, in place of torch's uniform ones.
        fast: run ``nn.RNN``'s own code instead of the one written out.
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
        self, x: Float[Tensor, "b t d"] | Int[Tensor, "b t"], lengths: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b k"] | Float[Tensor, "b t k"]:
        x, lengths = self.input(x, lengths)
        states, last = self.rnn(x)
        if self.pool is None:
            return self.out(states)
        last = last if lengths is None else last_valid_state(states, lengths)
        return self.out(self.pool(states, last, lengths))


class VanillaRNNClassifier(Classifier):
    """A vanilla recurrent network that tells sequences apart.

    Args:
        dim: width of the state.
        pooling: what is made of the states: ``last`` (valid one), ``mean``, ``max`` or ``attention``.
        embed_dim: width of the vector of a token.
        init_recurrent: orthogonal recurrent and Xavier input weights, biases 0, in place of torch's uniform ones.
        fast: run ``nn.RNN``'s own code instead of the one written out.
        input_dim: numbers a step, for sequences of vectors; null takes it from the data.
        vocab_size: number of tokens, for sequences of these; null takes it from the data.
        pad_id: the padding token; null takes it from the data, or there is none.
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
    """A vanilla recurrent network that predicts numbers from a sequence.

    Args:
        dim: width of the state.
        pooling: what is made of the states: ``last`` (valid one), ``mean``, ``max`` or ``attention``.
        embed_dim: width of the vector of a token.
        init_recurrent: orthogonal recurrent and Xavier input weights, biases 0, in place of torch's uniform ones.
        fast: run ``nn.RNN``'s own code instead of the one written out.
        input_dim: numbers a step, for sequences of vectors; null takes it from the data.
        vocab_size: number of tokens, for sequences of these; null takes it from the data.
        pad_id: the padding token; null takes it from the data, or there is none.
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
    """A vanilla recurrent network that gives each step of a sequence a class.

    Args:
        dim: width of the state.
        embed_dim: width of the vector of a token.
        init_recurrent: orthogonal recurrent and Xavier input weights, biases 0, in place of torch's uniform ones.
        fast: run ``nn.RNN``'s own code instead of the one written out.
        input_dim: numbers a step, for sequences of vectors; null takes it from the data.
        vocab_size: number of tokens, for sequences of these; null takes it from the data.
        pad_id: the padding token; null takes it from the data, or there is none.
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
