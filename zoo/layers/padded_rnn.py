"""LSTM and GRU over padded batches: each sequence ends where it ends, and its padding changes nothing."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from zoo.layers.recurrent import check_lengths, last_valid_state, length_mask

LSTMState = tuple[Tensor, Tensor]
"""``h`` and ``c`` of an LSTM, each ``(layers, b, h)``; of a two-way one with both directions of a layer, one by one."""


WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")  # as torch.lstm takes them


class PaddedLSTM(nn.LSTM):
    """``nn.LSTM``, batch first, over padded batches; returns the top layer's states and those it ends in."""

    @torch.compiler.disable(reason="a compiler would unroll every step")
    def forward(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return run_rnn(self, x, lengths)


class PaddedGRU(nn.GRU):
    """``nn.GRU``, batch first, over padded batches; returns the top layer's states and those it ends in."""

    @torch.compiler.disable(reason="a compiler would unroll every step")
    def forward(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return run_rnn(self, x, lengths)


class EncoderLSTM(nn.LSTM):
    """``nn.LSTM``, batch first, over padded batches; returns the top layer's states and what every layer ends in."""

    @torch.compiler.disable(reason="a compiler would unroll every step")
    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, LSTMState]:  # type: ignore[override]
        return final_states(self, x, lengths)


def run_rnn(
    rnn: nn.LSTM | nn.GRU, x: Float[Tensor, "b t d"], lengths: Int[Tensor, " b"] | None = None
) -> tuple[Float[Tensor, "b t h"], Float[Tensor, "b h"]]:
    """Run an LSTM or GRU, batch first, over padded sequences.

    Args:
        rnn: of any depth, one-way or two-way.
        x: padded behind the ends.
        lengths: of the sequences; null means that all are full.

    Returns:
        The top layer's states, without meaning in the padding, and those at the end of each direction: behind the last
        valid step for the forward one, before the first for the backward one.
    """
    if lengths is not None and not rnn.bidirectional:  # what it makes of the padding comes too late to matter
        states, _ = _torch_forward(rnn, x)
        return states, last_valid_state(states, lengths)
    states, ends = _torch_forward(rnn, x) if lengths is None else final_states(rnn, x, lengths)
    h = ends[0] if isinstance(ends, tuple) else ends
    return states, h[-2 if rnn.bidirectional else -1 :].transpose(0, 1).flatten(1)


def final_states(
    rnn: nn.LSTM | nn.GRU, x: Float[Tensor, "b t d"], lengths: Int[Tensor, " b"]
) -> tuple[Float[Tensor, "b t h"], Any]:
    """Run an LSTM or GRU, batch first, over padded sequences, and return what every layer ends in.

    On CUDA it runs packed; on a CPU a packed batch takes two and a half times as long as a padded one.

    Args:
        rnn: of any depth, one-way or two-way.
        x: padded behind the ends.
        lengths: of the sequences.

    Returns:
        The top layer's states, without meaning in the padding, and the state of every layer behind the last step that
        is no padding (of a backward direction: before the first), as ``nn.LSTM`` or ``nn.GRU`` returns it.
    """
    return run_packed(rnn, x, lengths) if x.is_cuda else run_padded(rnn, x, lengths)


def run_packed(rnn: nn.LSTM | nn.GRU, x: Tensor, lengths: Tensor) -> tuple[Tensor, Any]:
    """``final_states`` through ``pack_padded_sequence``; states in the padding are 0."""
    lengths = lengths.cpu()
    check_lengths(lengths, x)
    states, ends = _torch_forward(rnn, pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
    return pad_packed_sequence(states, batch_first=True, total_length=x.shape[1])[0], ends


def run_padded(rnn: nn.LSTM | nn.GRU, x: Tensor, lengths: Tensor) -> tuple[Tensor, Any]:
    """``final_states`` with all sequences run at full length.

    Each layer has one input more, 1 in the padding, that shuts its gates for good: an LSTM's input gate is 0 and its
    forget gate 1, a GRU's update gate 1, so that ``c`` stays what it is at the end, and the backward direction, which
    begins in the padding, stays 0 until the sequence begins.
    """
    dim, lstm = rnn.hidden_size, isinstance(rnn, nn.LSTM)
    padding = (~length_mask(lengths, x.shape[1])).unsqueeze(2).to(x.dtype)
    # gates in torch's order: input, forget, cell, output; or reset, update, new
    signs = x.new_tensor([-1e4, 1e4, 0, 0] if lstm else [0, 1e4, 0]).repeat_interleave(dim).unsqueeze(1)
    start, ends = x.new_zeros(2 if rnn.bidirectional else 1, len(x), dim), []
    for layer in range(rnn.num_layers):
        weights = []
        for way in ("", "_reverse") if rnn.bidirectional else ("",):
            into, *others = (getattr(rnn, f"{name}_l{layer}{way}") for name in WEIGHTS)
            weights += [torch.cat([into, signs], 1), *others]
        x = torch.cat([F.dropout(x, rnn.dropout, rnn.training) if layer else x, padding], 2)
        options = (weights, True, 1, 0.0, rnn.training, rnn.bidirectional, True)
        x, h, *c = torch.lstm(x, (start, start), *options) if lstm else torch.gru(x, start, *options)
        ends.append((torch.stack([last_valid_state(x[:, :, :dim], lengths), *h[1:]]), *c))
    h, *c = (torch.cat(parts) for parts in zip(*ends, strict=True))
    return x, ((h, *c) if lstm else h)


def _torch_forward(rnn: nn.LSTM | nn.GRU, x: Any) -> Any:
    return (nn.LSTM if isinstance(rnn, nn.LSTM) else nn.GRU).forward(rnn, x)  # type: ignore[arg-type]
