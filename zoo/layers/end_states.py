"""The state that an LSTM ends in, of each layer, for padded sequences."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from zoo.layers.recurrent import at_end, valid

State = tuple[Tensor, Tensor]
"""``h`` and ``c`` of an LSTM, each ``(layers, b, h)``; of a two-way one with both directions of a layer, one by one."""

_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def end_states(
    rnn: nn.LSTM, x: Float[Tensor, "b t d"], lengths: Int[Tensor, " b"]
) -> tuple[Float[Tensor, "b t h"], State]:
    """Run an LSTM, batch first, over padded sequences.

    On CUDA it runs packed; on a CPU a packed batch takes two and a half times as long as a padded one.

    Args:
        rnn: of any depth, one-way or two-way.
        x: padded behind the ends.
        lengths: of the sequences.

    Returns:
        The top layer's states, without meaning in the padding, and the state of every layer behind the last step that
        is no padding (of a backward direction: before the first).
    """
    return _packed(rnn, x, lengths) if x.is_cuda else _padded(rnn, x, lengths)


def _packed(rnn: nn.LSTM, x: Tensor, lengths: Tensor) -> tuple[Tensor, State]:
    states, ends = rnn(pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False))
    return pad_packed_sequence(states, batch_first=True, total_length=x.shape[1])[0], ends


@torch.compiler.disable(reason="a compiler would unroll every step")
def _padded(rnn: nn.LSTM, x: Tensor, lengths: Tensor) -> tuple[Tensor, State]:
    """Run all sequences at full length, and let the padding change nothing.

    Each layer has one input more, 1 in the padding, which shuts the input gate and opens the forget gate for good, so
    that ``c`` stays what it is; for the backward direction, which begins in the padding, that is 0, and so is ``h``.
    """
    dim, two_way = rnn.hidden_size, rnn.bidirectional
    padding = (~valid(lengths, x.shape[1])).unsqueeze(2).to(x.dtype)
    gates = torch.cat([x.new_full((dim, 1), -1e4), x.new_full((dim, 1), 1e4), x.new_zeros(2 * dim, 1)])
    start, h, c = x.new_zeros(2 if two_way else 1, len(x), dim), [], []
    for layer in range(rnn.num_layers):
        weights = []
        for way in ("", "_reverse") if two_way else ("",):
            into, across, *biases = (getattr(rnn, f"{n}_l{layer}{way}") for n in _WEIGHTS)
            weights += [torch.cat([into, gates], 1), across, *biases]
        x = F.dropout(x, rnn.dropout, rnn.training) if layer else x
        x, last, cell = torch.lstm(
            torch.cat([x, padding], 2), (start, start), weights, True, 1, 0.0, rnn.training, two_way, True
        )
        h += [at_end(x[:, :, :dim], lengths), *last[1:]]
        c += cell.unbind(0)
    return x, (torch.stack(h), torch.stack(c))
