"""Recurrent layers as ``scan`` over time: torch's kernels are unrolled for one length, a scan is of any length."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo._torch import scan
from zoo.layers.padded_rnn import WEIGHTS, EncoderLSTM, PaddedGRU, PaddedLSTM
from zoo.layers.recurrent import length_mask
from zoo.models.rnn import VanillaLayer

States = tuple[Tensor, ...]


def replace_recurrent(module: nn.Module) -> None:
    """Replace all recurrent layers within a module, in place, by layers with the same weights and results."""
    for name, child in list(module.named_children()):
        if isinstance(child, VanillaLayer):
            setattr(module, name, ScannedVanillaLayer(child))
        elif isinstance(child, (nn.LSTM, nn.GRU)) and not isinstance(child, EncoderLSTM):
            setattr(module, name, ScannedRNN(child))
        else:
            replace_recurrent(child)


class ScannedRNN(nn.Module):
    """``nn.LSTM`` or ``nn.GRU`` (batch first), with the arguments and results of the layer that it replaces.

    Args:
        rnn: the layer; ``PaddedLSTM`` and ``PaddedGRU`` take lengths, the others first states.
    """

    def __init__(self, rnn: nn.LSTM | nn.GRU) -> None:
        super().__init__()
        self.rnn = rnn
        self.takes_lengths = isinstance(rnn, (PaddedLSTM, PaddedGRU))
        self.is_lstm = isinstance(rnn, nn.LSTM)

    def forward(self, x: Tensor, argument: Any = None) -> tuple[Tensor, Any]:
        if not self.takes_lengths:
            return self._run(x, None, argument)
        states, ends = self._run(x, argument, None)
        h = ends[0] if self.is_lstm else ends
        directions = 2 if self.rnn.bidirectional else 1
        return states, h[-directions:].transpose(0, 1).flatten(1)  # (b, directions * h)

    def _run(self, x: Tensor, lengths: Tensor | None, first: Any) -> tuple[Tensor, Any]:
        """Return the top layer's states ``(b, t, h)`` and the final states of all layers, as torch orders them."""
        rnn = self.rnn
        kept = None if lengths is None else length_mask(lengths, x.shape[1]).t().unsqueeze(2)  # (t, b, 1)
        x = x.transpose(0, 1)  # (t, b, d)
        suffixes = ("", "_reverse") if rnn.bidirectional else ("",)
        ends: list[States] = []
        for layer in range(rnn.num_layers):
            outputs = []
            for suffix in suffixes:
                weights = [getattr(rnn, f"{name}_l{layer}{suffix}") for name in WEIGHTS]
                start = self._start(x, first, len(ends))
                states, end = self._direction(x, weights, start, kept, backward=bool(suffix))
                outputs.append(states)
                ends.append(end)
            x = torch.cat(outputs, 2)  # (t, b, directions * h)
        finals = tuple(torch.stack(parts) for parts in zip(*ends, strict=True))  # (layers * directions, b, h) each
        return x.transpose(0, 1), finals if self.is_lstm else finals[0]

    def _start(self, x: Tensor, first: Any, index: int) -> States:
        if first is not None:
            given = first if self.is_lstm else (first,)
            return tuple(part[index] for part in given)
        zeros = x.new_zeros(x.shape[1], self.rnn.hidden_size)
        return (zeros, zeros.clone()) if self.is_lstm else (zeros,)

    def _direction(
        self, x: Tensor, weights: list[Tensor], start: States, kept: Tensor | None, backward: bool
    ) -> tuple[Tensor, States]:
        weight_ih, weight_hh, bias_ih, bias_hh = weights
        gates = F.linear(x, weight_ih, bias_ih)  # (t, b, gates * h)
        inputs = [gates] if kept is None else [gates, kept]
        if backward:
            inputs = [part.flip(0) for part in inputs]
        cell = lstm_cell if self.is_lstm else gru_cell

        def step(states: States, now: list[Tensor]) -> tuple[States, Tensor]:
            new = cell(now[0], states, weight_hh, bias_hh)
            if len(now) > 1:  # in the padding the states stay
                new = tuple(torch.where(now[1], a, b) for a, b in zip(new, states, strict=True))
            return new, new[0].clone()

        if x.shape[0] == 1:
            end, output = step(start, [part[0] for part in inputs])
            return output.unsqueeze(0), end
        end, outputs = scan(step, start, inputs)
        return outputs.flip(0) if backward else outputs, end


def lstm_cell(gates: Tensor, states: States, weight: Tensor, bias: Tensor) -> States:
    """Return the next ``h`` and ``c`` of an LSTM, as ``nn.LSTM`` defines them."""
    h, c = states
    i, f, g, o = (gates + F.linear(h, weight, bias)).chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def gru_cell(gates: Tensor, states: States, weight: Tensor, bias: Tensor) -> States:
    """Return the next ``h`` of a GRU, as ``nn.GRU`` defines it."""
    (h,) = states
    reset, update, new = gates.chunk(3, 1)
    reset_h, update_h, new_h = F.linear(h, weight, bias).chunk(3, 1)
    candidate = (new + (reset + reset_h).sigmoid() * new_h).tanh()
    kept = (update + update_h).sigmoid()
    return ((1 - kept) * candidate + kept * h,)


class ScannedVanillaLayer(nn.Module):
    """``VanillaLayer`` as a scan.

    Args:
        layer: the layer.
    """

    def __init__(self, layer: VanillaLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        layer = self.layer
        inputs = F.linear(x.transpose(0, 1), layer.weight_ih, layer.bias)  # (t, b, h)
        weight = layer.weight_hh

        def step(states: States, now: list[Tensor]) -> tuple[States, Tensor]:
            h = (now[0] + F.linear(states[0], weight)).tanh()
            return (h,), h.clone()

        start = (x.new_zeros(x.shape[0], weight.shape[0]),)
        if inputs.shape[0] == 1:
            (last,), states = step(start, [inputs[0]])
            return states.unsqueeze(1), last
        (last,), states = scan(step, start, [inputs])
        return states.transpose(0, 1), last
