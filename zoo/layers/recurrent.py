"""What recurrent networks share: inputs with their lengths, pooling over time, first weights.

Padding stands behind the end of a sequence and changes nothing.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

Pooling = Literal["last", "mean", "max", "attention"]


class SequenceInput(nn.Module):
    """Token ids as vectors, or vectors as they are, and the length of each sequence.

    Args:
        input_dim: numbers a step, for sequences of vectors; null for tokens.
        vocab_size: number of tokens; null for vectors.
        embed_dim: width of the vector of a token.
        pad_id: the padding token; null for none. Without lengths, a sequence ends where only padding follows.
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
            given = f"got {input_dim=}, {vocab_size=}"
            raise ValueError(
                f"needs input_dim (for vectors) or vocab_size (for tokens), or data that knows one: {given}"
            )
        if pad_id is not None and vocab_size is not None and not 0 <= pad_id < vocab_size:
            raise ValueError(f"pad_id {pad_id} is out of range: vocab_size={vocab_size}")
        self.embedding = nn.Embedding(vocab_size, embed_dim, padding_idx=pad_id) if vocab_size is not None else None
        self.pad_id, self.width = pad_id, embed_dim if input_dim is None else input_dim

    def forward(
        self, x: Float[Tensor, "b t d"] | Int[Tensor, "b t"], lengths: Int[Tensor, " b"] | None = None
    ) -> tuple[Float[Tensor, "b t e"], Int[Tensor, " b"] | None]:
        if self.embedding is None:
            if x.ndim != 3 or x.shape[2] != self.width:
                raise ValueError(f"sequences of vectors (b, t, {self.width}) needed, got {tuple(x.shape)}")
            check_lengths(lengths, x)
            # what stands in the padding may be infinite, and 0 times infinity is not 0
            return x if lengths is None else x.masked_fill(~length_mask(lengths, x.shape[1]).unsqueeze(2), 0.0), lengths
        if x.ndim != 2 or x.is_floating_point():
            raise ValueError(f"token ids (b, t) needed, got {x.dtype} of shape {tuple(x.shape)}")
        if lengths is None and self.pad_id is not None:
            lengths = lengths_from_padding(x, self.pad_id)
        check_lengths(lengths, x)
        self._check_tokens(x)
        return self.embedding(x), lengths

    def _check_tokens(self, x: Tensor) -> None:
        assert self.embedding is not None
        if x.device.type != "cpu":  # elsewhere looking at values waits for the device
            return
        low, high, size = *(int(v) for v in x.aminmax()), self.embedding.num_embeddings
        if low < 0 or high >= size:
            bad = low if low < 0 else high
            raise ValueError(f"token {bad} is out of range: vocab_size={size} allows 0 to {size - 1}")


def lengths_from_padding(x: Int[Tensor, "b t"], pad_id: int) -> Int[Tensor, " b"]:
    """Lengths of sequences padded behind their end."""
    return ((x != pad_id) * torch.arange(1, x.shape[1] + 1, device=x.device)).amax(1)


def check_lengths(lengths: Tensor | None, x: Tensor) -> None:
    """Say which sequence is empty, or longer than its row."""
    if x.shape[1] == 0:
        raise ValueError(f"sequences without a step: inputs of shape {tuple(x.shape)}")
    if lengths is None:
        return
    if lengths.shape != x.shape[:1] or lengths.is_floating_point():
        raise ValueError(
            f"{len(x)} lengths (b,) needed for {len(x)} sequences, got {lengths.dtype} {tuple(lengths.shape)}"
        )
    if lengths.device.type != "cpu":  # elsewhere looking at values waits for the device
        return
    low, high = (int(v) for v in lengths.aminmax())
    if low < 1:
        row = int((lengths < 1).nonzero()[0])
        raise ValueError(f"sequence {row} of the batch is empty: nothing but padding, or a length of {low}")
    if high > x.shape[1]:
        row = int(lengths.argmax())
        raise ValueError(f"sequence {row} of the batch has length {high}, but the batch has {x.shape[1]} steps")


def length_mask(lengths: Int[Tensor, " b"], steps: int) -> Bool[Tensor, "b t"]:
    """Which steps are the sequence's own, no padding."""
    return torch.arange(steps, device=lengths.device) < lengths.unsqueeze(1)


def masked_mean(states: Float[Tensor, "b t d"], lengths: Int[Tensor, " b"] | None = None) -> Float[Tensor, "b d"]:
    """The mean of the states of the steps that are no padding."""
    if lengths is None:
        return states.mean(1)
    return states.masked_fill(~length_mask(lengths, states.shape[1]).unsqueeze(2), 0.0).sum(1) / lengths.unsqueeze(1)


def last_valid_state(states: Float[Tensor, "b t d"], lengths: Int[Tensor, " b"]) -> Float[Tensor, "b d"]:
    """The states of the last steps that are no padding."""
    index = (lengths - 1).view(-1, 1, 1).expand(-1, 1, states.shape[2])
    return states.gather(1, index).squeeze(1)


class TimePooling(nn.Module):
    """Make one vector of the states of a sequence.

    Args:
        kind: ``last`` (of each direction), ``mean``, ``max`` or ``attention``: a weighted mean, the weights by a small
            network of each state (Yang et al. 2016, https://doi.org/10.18653/v1/N16-1174).
        width: numbers a state.
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
        padding = None if lengths is None else ~length_mask(lengths, states.shape[1]).unsqueeze(2)
        if self.kind == "max":
            return (states if padding is None else states.masked_fill(padding, -torch.inf)).amax(1)
        score = self.score(states)
        return ((score if padding is None else score.masked_fill(padding, -torch.inf)).softmax(1) * states).sum(1)


def sequence_head(width: int, output_dim: int, hidden: int = 0, dropout: float = 0.0) -> nn.Module:
    """The layers behind a recurrent network: dropout and a linear layer, or a hidden layer with ReLU and dropout."""
    if not hidden:
        return nn.Sequential(nn.Dropout(dropout), nn.Linear(width, output_dim))
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, output_dim))


@torch.no_grad()
def initialize_recurrent(rnn: nn.Module) -> None:
    """Initialise a recurrent network as the field does, each gate by itself.

    Recurrent matrices orthogonal (Saxe et al. 2014, https://arxiv.org/abs/1312.6120), those of the input by Xavier
    (Glorot and Bengio 2010), biases 0, but 1 for an LSTM's forget gate (Jozefowicz et al. 2015,
    https://proceedings.mlr.press/v37/jozefowicz15.html).

    Args:
        rnn: with parameters named ``weight_ih...``, ``weight_hh...`` and ``bias...``, gates one below the other.
    """
    dim = next(p.shape[1] for name, p in rnn.named_parameters() if name.startswith("weight_hh"))
    for name, p in rnn.named_parameters():
        for i, gate in enumerate(p.split(dim)):
            if name.startswith("weight_hh"):
                nn.init.orthogonal_(gate)
            elif name.startswith("weight"):
                nn.init.xavier_uniform_(gate)
            else:  # torch's order is input, forget, cell, output; the two biases of a gate are added
                gate.fill_(1.0 if isinstance(rnn, nn.LSTM) and name.startswith("bias_ih") and i == 1 else 0.0)
