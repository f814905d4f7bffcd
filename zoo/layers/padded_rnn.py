"""LSTM and GRU over padded batches: results are those of each sequence alone, without its padding."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from zoo._torch import has_bfloat16_products
from zoo.layers.recurrent import check_lengths, last_valid_state, length_mask

LSTMState = tuple[Tensor, Tensor]
"""``h`` and ``c`` of an LSTM, ``(layers, b, h)`` each; bidirectional ``(2 * layers, b, h)``, as torch orders them."""

WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")  # in the order that torch.lstm takes


class AutocastLSTM(nn.LSTM):
    """``nn.LSTM`` that runs in float32 where autocast asks for bfloat16 on a CPU without such a kernel."""

    def forward(self, input: Tensor, hx: LSTMState | None = None) -> tuple[Tensor, LSTMState]:  # type: ignore[override]
        if not _lacks_bfloat16_kernel(self):
            return super().forward(input, hx)
        if hx is not None:
            hx = (hx[0].float(), hx[1].float())
        with torch.autocast("cpu", enabled=False):
            return super().forward(input.float(), hx)


class PaddedLSTM(nn.LSTM):
    """``nn.LSTM`` (batch first) over padded batches; returns the top layer's states and its final state."""

    @torch.compiler.disable(reason="a compiler would unroll every step")
    def forward(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return run_rnn(self, x, lengths)


class PaddedGRU(nn.GRU):
    """``nn.GRU`` (batch first) over padded batches; returns the top layer's states and its final state."""

    @torch.compiler.disable(reason="a compiler would unroll every step")
    def forward(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return run_rnn(self, x, lengths)


class EncoderLSTM(nn.LSTM):
    """``nn.LSTM`` (batch first) over padded batches; returns the top layer's states and all layers' final states."""

    @torch.compiler.disable(reason="a compiler would unroll every step")
    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, LSTMState]:  # type: ignore[override]
        return final_states(self, x, lengths)


def run_rnn(
    rnn: nn.LSTM | nn.GRU, x: Float[Tensor, "b t d"], lengths: Int[Tensor, " b"] | None = None
) -> tuple[Float[Tensor, "b t h"], Float[Tensor, "b h"]]:
    """Run an LSTM or GRU (batch first) over padded sequences.

    Args:
        rnn: any number of layers, unidirectional or bidirectional.
        x: sequences, padded at the end.
        lengths: number of valid steps of each; null for all.

    Returns:
        The top layer's states (arbitrary in the padding), and the final state of each direction: after the last valid
        step for the forward one, after the first step for the backward one.
    """
    if lengths is None:
        states, ends = _torch_forward(rnn, x)
    elif rnn.bidirectional:
        states, ends = final_states(rnn, x, lengths)
    else:  # the padding comes after all valid steps, so it cannot change them
        states, _ = _torch_forward(rnn, x)
        return states, last_valid_state(states, lengths)
    h = ends[0] if isinstance(ends, tuple) else ends
    directions = 2 if rnn.bidirectional else 1
    top = h[-directions:]  # (directions, b, h)
    return states, top.transpose(0, 1).flatten(1)


def final_states(
    rnn: nn.LSTM | nn.GRU, x: Float[Tensor, "b t d"], lengths: Int[Tensor, " b"]
) -> tuple[Float[Tensor, "b t h"], Any]:
    """Run an LSTM or GRU (batch first) over padded sequences, and return the final states of all layers.

    On CUDA the batch is packed; on a CPU a packed batch takes 2.5 times as long as a padded one.

    Args:
        rnn: any number of layers, unidirectional or bidirectional.
        x: sequences, padded at the end.
        lengths: number of valid steps of each.

    Returns:
        The top layer's states (arbitrary in the padding), and every layer's state after the last valid step (of a
        backward direction: after the first step), as ``nn.LSTM`` or ``nn.GRU`` returns it.
    """
    if x.is_cuda:
        return run_packed(rnn, x, lengths)
    return run_padded(rnn, x, lengths)


def run_packed(rnn: nn.LSTM | nn.GRU, x: Tensor, lengths: Tensor) -> tuple[Tensor, Any]:
    """Compute :func:`final_states` with ``pack_padded_sequence``; states in the padding are 0."""
    lengths = lengths.cpu()
    check_lengths(lengths, x)
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    packed_states, ends = _torch_forward(rnn, packed)
    states, _ = pad_packed_sequence(packed_states, batch_first=True, total_length=x.shape[1])
    return states, ends


def run_padded(rnn: nn.LSTM | nn.GRU, x: Tensor, lengths: Tensor) -> tuple[Tensor, Any]:
    """Compute :func:`final_states` on the padded batch, by gates that the padding closes.

    Each layer gets one more input, 1 in the padding, whose weights close the gates: an LSTM's input gate is 0 and its
    forget gate 1, a GRU's update gate is 1. So ``c`` keeps its final value, and the backward direction, which starts
    in the padding, stays 0 until the sequence begins.
    """
    if _lacks_bfloat16_kernel(rnn):
        with torch.autocast("cpu", enabled=False):
            return run_padded(rnn, x.float(), lengths)
    dim = rnn.hidden_size
    padding = ~length_mask(lengths, x.shape[1])
    padding = padding.unsqueeze(2).to(x.dtype)  # (b, t, 1)
    closing = _closing_weights(rnn, x)
    directions = 2 if rnn.bidirectional else 1
    start = x.new_zeros(directions, len(x), dim)
    final_h = []
    final_c = []
    for layer in range(rnn.num_layers):
        if layer:
            x = F.dropout(x, rnn.dropout, rnn.training)
        inputs = torch.cat([x, padding], 2)  # (b, t, d + 1)
        weights = _layer_weights(rnn, layer, closing)
        # has_biases, num_layers, dropout, train, bidirectional, batch_first
        options = (True, 1, 0.0, rnn.training, rnn.bidirectional, True)
        if isinstance(rnn, nn.LSTM):
            x, h, c = torch.lstm(inputs, (start, start), weights, *options)
            final_c.append(c)
        else:
            x, h = torch.gru(inputs, start, weights, *options)
        # an LSTM's h is not kept in the padding, as its output gate stays open
        forward_h = last_valid_state(x[:, :, :dim], lengths)
        final_h.append(torch.stack([forward_h, *h[1:]]))  # (directions, b, h)
    if isinstance(rnn, nn.LSTM):
        return x, (torch.cat(final_h), torch.cat(final_c))
    return x, torch.cat(final_h)


def _closing_weights(rnn: nn.LSTM | nn.GRU, x: Tensor) -> Tensor:
    """Return the input weights ``(gates * h, 1)`` of the padding indicator."""
    if isinstance(rnn, nn.LSTM):
        gates = [-1e4, 1e4, 0, 0]  # input, forget, cell, output
    else:
        gates = [0, 1e4, 0]  # reset, update, new
    return x.new_tensor(gates).repeat_interleave(rnn.hidden_size).unsqueeze(1)


def _layer_weights(rnn: nn.LSTM | nn.GRU, layer: int, closing: Tensor) -> list[Tensor]:
    """Return a layer's weights in torch's order, direction by direction, with a column for the padding indicator."""
    suffixes = [f"_l{layer}"]
    if rnn.bidirectional:
        suffixes.append(f"_l{layer}_reverse")
    weights = []
    for suffix in suffixes:
        weight_ih, *others = (getattr(rnn, name + suffix) for name in WEIGHTS)
        weights.append(torch.cat([weight_ih, closing], 1))
        weights.extend(others)
    return weights


def _torch_forward(rnn: nn.LSTM | nn.GRU, x: Any) -> Any:
    """Call torch's own ``forward``, as subclasses here override it."""
    if _lacks_bfloat16_kernel(rnn):
        with torch.autocast("cpu", enabled=False):
            return _torch_forward(rnn, x.to(torch.float32))
    if isinstance(rnn, nn.LSTM):
        return nn.LSTM.forward(rnn, x)
    return nn.GRU.forward(rnn, x)  # type: ignore[arg-type]


def _lacks_bfloat16_kernel(rnn: nn.LSTM | nn.GRU) -> bool:
    """Return whether autocast would run an LSTM in bfloat16 on a CPU for which oneDNN has no such kernel."""
    if not isinstance(rnn, nn.LSTM) or rnn.weight_ih_l0.is_cuda:
        return False
    return torch.is_autocast_enabled("cpu") and not has_bfloat16_products()
