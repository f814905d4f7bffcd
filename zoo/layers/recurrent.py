"""Parts that recurrent networks share: padded inputs, pooling over time, initialisation.

Sequences are padded at the end; the padding does not change any result.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

Pooling = Literal["last", "mean", "max", "attention"]


class SequenceInput(nn.Module):
    """Input layer: embeds token ids, or passes feature vectors on; returns the sequence lengths too.

    Args:
        input_dim: features per step, for sequences of vectors; null for tokens.
        vocab_size: vocabulary size, for sequences of tokens; null for vectors.
        embed_dim: dimension of the token embedding.
        pad_id: padding token; null for none. Without lengths, a sequence ends where only padding follows.
    """

    def __init__(
        self,
        input_dim: int | None = None,
        vocab_size: int | None = None,
        embed_dim: int = 128,
        pad_id: int | None = None,
    ) -> None:
        super().__init__()
        if (input_dim is None) == (vocab_size is None):
            raise ValueError(
                "a recurrent network needs input_dim (for vectors) or vocab_size (for tokens), or data that defines"
                f" one: got {input_dim=}, {vocab_size=}"
            )
        if pad_id is not None and vocab_size is not None and not 0 <= pad_id < vocab_size:
            raise ValueError(f"pad_id {pad_id} is out of range: vocab_size={vocab_size}")
        self.pad_id = pad_id
        self.embedding: nn.Embedding | None = None
        if input_dim is not None:
            self.width = input_dim
        else:
            assert vocab_size is not None
            self.width = embed_dim
            self.embedding = nn.Embedding(vocab_size, embed_dim, padding_idx=pad_id)

    def forward(
        self, x: Float[Tensor, "b t d"] | Int[Tensor, "b t"], lengths: Int[Tensor, " n"] | None = None
    ) -> tuple[Float[Tensor, "b t e"], Int[Tensor, " n"] | None]:
        if self.embedding is None:
            return self._mask_vectors(x, lengths), lengths
        if x.ndim != 2 or x.is_floating_point():
            raise ValueError(f"expected token ids (b, t), got {x.dtype} of shape {tuple(x.shape)}")
        if lengths is None and self.pad_id is not None:
            lengths = lengths_from_padding(x, self.pad_id)
        check_lengths(lengths, x)
        self._check_tokens(x)
        return self.embedding(x), lengths

    def _mask_vectors(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        if x.ndim != 3 or x.shape[2] != self.width:
            raise ValueError(f"expected sequences of vectors (b, t, {self.width}), got {tuple(x.shape)}")
        check_lengths(lengths, x)
        if lengths is None:
            return x
        # the padding may be infinite, and 0 times infinity is NaN
        padding = ~length_mask(lengths, x.shape[1]).unsqueeze(2)  # (b, t, 1)
        return x.masked_fill(padding, 0.0)

    def _check_tokens(self, x: Tensor) -> None:
        assert self.embedding is not None
        if x.device.type != "cpu" or torch.compiler.is_exporting():  # reading values would wait for the device
            return
        size = self.embedding.num_embeddings
        low, high = (int(v) for v in x.aminmax())
        if low < 0:
            raise ValueError(f"token {low} is out of range: vocab_size={size} allows 0 to {size - 1}")
        if high >= size:
            raise ValueError(f"token {high} is out of range: vocab_size={size} allows 0 to {size - 1}")


def lengths_from_padding(x: Int[Tensor, "b t"], pad_id: int) -> Int[Tensor, " b"]:
    """Return the lengths of sequences that are padded at the end."""
    positions = torch.arange(1, x.shape[1] + 1, device=x.device)
    return ((x != pad_id) * positions).amax(1)


def check_lengths(lengths: Tensor | None, x: Tensor) -> None:
    """Raise ``ValueError`` if a sequence is empty or longer than its row, or the lengths do not fit the batch."""
    if x.shape[1] == 0:
        raise ValueError(f"sequences have no steps: inputs of shape {tuple(x.shape)}")
    if lengths is None:
        return
    if lengths.shape != x.shape[:1] or lengths.is_floating_point():
        raise ValueError(
            f"expected {len(x)} integer lengths (b,) for {len(x)} sequences, got {lengths.dtype} {tuple(lengths.shape)}"
        )
    if lengths.device.type != "cpu" or torch.compiler.is_exporting():  # reading values would wait for the device
        return
    low, high = (int(v) for v in lengths.aminmax())
    if low < 1:
        row = int((lengths < 1).nonzero()[0])
        raise ValueError(f"sequence {row} of the batch is empty: only padding, or a length of {low}")
    if high > x.shape[1]:
        row = int(lengths.argmax())
        raise ValueError(f"sequence {row} of the batch has length {high}, but the batch has {x.shape[1]} steps")


def length_mask(lengths: Int[Tensor, " b"], steps: int) -> Bool[Tensor, "b t"]:
    """Return a mask that is true for valid steps and false in the padding."""
    return torch.arange(steps, device=lengths.device) < lengths.unsqueeze(1)


def masked_mean(states: Float[Tensor, "b t d"], lengths: Int[Tensor, " b"] | None = None) -> Float[Tensor, "b d"]:
    """Return the mean of the states over the valid steps."""
    if lengths is None:
        return states.mean(1)
    padding = ~length_mask(lengths, states.shape[1]).unsqueeze(2)  # (b, t, 1)
    total = states.masked_fill(padding, 0.0).sum(1)
    return total / lengths.unsqueeze(1)


def last_valid_state(states: Float[Tensor, "b t d"], lengths: Int[Tensor, " b"]) -> Float[Tensor, "b d"]:
    """Return the state of the last valid step."""
    index = (lengths - 1).view(-1, 1, 1).expand(-1, 1, states.shape[2])  # (b, 1, d)
    return states.gather(1, index).squeeze(1)


class TimePooling(nn.Module):
    """Pooling over time: one vector per sequence.

    Args:
        kind: ``last`` valid state (of each direction), ``mean``, ``max``, or ``attention``: a weighted mean, with
            weights from an MLP on each state (Yang et al. 2016, https://doi.org/10.18653/v1/N16-1174).
        width: features of a state.
    """

    def __init__(self, kind: Pooling, width: int) -> None:
        super().__init__()
        if kind not in get_args(Pooling):
            raise ValueError(f"pooling must be {', '.join(get_args(Pooling))}, got {kind!r}")
        self.kind = kind
        if kind == "attention":
            self.score = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1, bias=False))

    def forward(
        self, states: Float[Tensor, "b t h"], last: Float[Tensor, "b h"], lengths: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b h"]:
        if self.kind == "last":
            return last
        if self.kind == "mean":
            return masked_mean(states, lengths)
        if self.kind == "max":
            return mask_padding(states, lengths).amax(1)
        scores = mask_padding(self.score(states), lengths)  # (b, t, 1)
        return (scores.softmax(1) * states).sum(1)


def mask_padding(values: Float[Tensor, "b t d"], lengths: Int[Tensor, " b"] | None) -> Float[Tensor, "b t d"]:
    """Set the values in the padding to minus infinity."""
    if lengths is None:
        return values
    padding = ~length_mask(lengths, values.shape[1]).unsqueeze(2)  # (b, t, 1)
    return values.masked_fill(padding, -torch.inf)


def sequence_head(width: int, output_dim: int, hidden: int = 0, dropout: float = 0.0) -> nn.Module:
    """Return the head of a recurrent network: dropout and a linear layer, or an MLP with ReLU and dropout."""
    if not hidden:
        return nn.Sequential(nn.Dropout(dropout), nn.Linear(width, output_dim))
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, output_dim))


@torch.no_grad()
def initialize_recurrent(rnn: nn.Module) -> None:
    """Initialise a recurrent layer gate by gate: orthogonal recurrent weights, Xavier input weights, biases 0.

    Orthogonal: Saxe et al. 2014, https://arxiv.org/abs/1312.6120. The bias of an LSTM's forget gate is 1 (Jozefowicz et
    al. 2015, https://proceedings.mlr.press/v37/jozefowicz15.html).

    Args:
        rnn: module with parameters ``weight_ih...``, ``weight_hh...`` and ``bias...``, gates stacked by rows.
    """
    dim = next(p.shape[1] for name, p in rnn.named_parameters() if name.startswith("weight_hh"))
    for name, parameter in rnn.named_parameters():
        for i, gate in enumerate(parameter.split(dim)):
            if name.startswith("weight_hh"):
                nn.init.orthogonal_(gate)
            elif name.startswith("weight"):
                nn.init.xavier_uniform_(gate)
            elif isinstance(rnn, nn.LSTM) and name.startswith("bias_ih") and i == 1:
                # torch's order is input, forget, cell, output; a gate has two biases, which are added
                gate.fill_(1.0)
            else:
                gate.fill_(0.0)
