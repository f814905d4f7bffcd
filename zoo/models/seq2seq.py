"""Sequence to sequence by two LSTMs (Sutskever et al. 2014, https://arxiv.org/abs/1409.3215), with attention."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo._lightning import trainer_of
from zoo.layers.alignment import AdditiveAttention, DotAttention, Memory
from zoo.layers.decoding import Generated, beam_search, greedy_search
from zoo.layers.padded_rnn import EncoderLSTM, LSTMState
from zoo.layers.recurrent import SequenceInput, initialize_recurrent, length_mask
from zoo.tasks import Translator, require

AttentionKind = Literal["none", "additive", "dot"]
Schedule = Literal["constant", "linear", "inverse_sigmoid"]


class Encoder(nn.Module):
    """Embedding and LSTM over the source; returns its states, and those at the end of each layer.

    Args:
        vocab_size: number of tokens.
        pad_id: the padding token.
        dim: width of a state; in a two-way network each direction has half of it.
        embed_dim: width of the vector of a token.
        depth: number of layers.
        bidirectional: read backwards too.
        dropout: share dropped from token vectors and between layers.
    """

    def __init__(
        self, vocab_size: int, pad_id: int, dim: int, embed_dim: int, depth: int, bidirectional: bool, dropout: float
    ) -> None:
        super().__init__()
        if bidirectional and dim % 2:
            raise ValueError(f"dim must be even, each direction of a bidirectional encoder has half of it: got {dim}")
        self.input = SequenceInput(vocab_size=vocab_size, embed_dim=embed_dim, pad_id=pad_id)
        self.dropout = nn.Dropout(dropout)
        width, between = dim // 2 if bidirectional else dim, dropout if depth > 1 else 0.0
        self.rnn = EncoderLSTM(embed_dim, width, depth, batch_first=True, dropout=between, bidirectional=bidirectional)

    def forward(
        self, src: Int[Tensor, "b s"], lengths: Int[Tensor, " b"] | None = None
    ) -> tuple[Float[Tensor, "b s d"], LSTMState, Int[Tensor, " b"]]:
        x, lengths = self.input(src, lengths)
        assert lengths is not None
        states, (h, c) = self.rnn(self.dropout(x), lengths)
        if self.rnn.bidirectional:  # (layers * 2, b, d / 2): the directions of a layer side by side
            h, c = (end.unflatten(0, (-1, 2)).transpose(1, 2).flatten(2) for end in (h, c))
        return states, (h, c), lengths


class Decoder(nn.Module):
    """LSTM over the target so far, attention over the source, and logits of the next token.

    Dot attention looks at the source after the LSTM has taken its step, with the new state, so that all steps of a
    known target are one call; additive attention before, with the state before, and feeds the LSTM what it saw. Behind
    both stands Luong's ``tanh(W [context, state])``, where Bahdanau's paper has a maxout layer.

    Args:
        vocab_size: number of tokens.
        pad_id: the padding token.
        dim: width of the state.
        embed_dim: width of the vector of a token.
        depth: number of layers.
        attention: ``none``, ``additive`` or ``dot``.
        dropout: share dropped from token vectors, between layers, and before the logits.
    """

    def __init__(
        self,
        vocab_size: int,
        pad_id: int,
        dim: int,
        embed_dim: int,
        depth: int,
        attention: AttentionKind,
        dropout: float,
    ) -> None:
        super().__init__()
        if attention not in get_args(AttentionKind):
            raise ValueError(f"attention must be {', '.join(get_args(AttentionKind))}, got {attention!r}")
        self.embedding = nn.Embedding(vocab_size, embed_dim, padding_idx=pad_id)
        self.input_feeding = attention == "additive"
        self.attention = (
            AdditiveAttention(dim) if self.input_feeding else DotAttention() if attention == "dot" else None
        )
        width, between = embed_dim + dim * self.input_feeding, dropout if depth > 1 else 0.0
        self.rnn = nn.LSTM(width, dim, depth, batch_first=True, dropout=between)
        self.dropout = nn.Dropout(dropout)
        self.mix = nn.Linear(2 * dim, dim, bias=False) if self.attention is not None else None
        self.out = nn.Linear(dim, vocab_size)

    def build_memory(self, states: Float[Tensor, "b s d"], lengths: Int[Tensor, " b"]) -> Memory:
        """Prepare what the encoder has read for attention."""
        keys = states if self.attention is None else self.attention.key(states)
        return Memory(states, keys, ~length_mask(lengths, states.shape[1]))

    def forward(
        self, tgt: Int[Tensor, "b t"], state: LSTMState, memory: Memory
    ) -> tuple[Float[Tensor, "b t v"], LSTMState, Float[Tensor, "b t s"] | None]:
        """Return logits, the state behind the last token, and the weights of attention."""
        x = self.dropout(self.embedding(tgt))
        if self.input_feeding:
            x, context, weights, state = self._decode_with_input_feeding(x, state, memory)
        else:
            x, state = self.rnn(x, state)
            context, weights = (x, None) if self.attention is None else self.attention(x, memory)
        if self.mix is not None:
            x = torch.tanh(self.mix(torch.cat([context, x], 2)))
        return self.out(self.dropout(x)), state, weights

    def _decode_with_input_feeding(
        self, x: Tensor, state: LSTMState, memory: Memory
    ) -> tuple[Tensor, Tensor, Tensor, LSTMState]:
        """Step by step, each step given what attention saw with the top layer's state before it."""
        assert self.attention is not None
        found = []
        for step in x.split(1, 1):
            context, weights = self.attention(state[0][-1].unsqueeze(1), memory)
            y, state = self.rnn(torch.cat([step, context], 2), state)
            found.append((y, context, weights))
        y, context, weights = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
        return y, context, weights, state


class Seq2Seq(nn.Module):
    """An LSTM that reads a sequence and one that writes another, begun with the first one's last states.

    Args:
        src_vocab_size: number of tokens of the source.
        tgt_vocab_size: number of tokens of the target.
        pad_id: the padding token of both.
        dim: width of a state; in a two-way encoder each direction has half of it.
        embed_dim: width of the vector of a token.
        depth: number of layers of each of the two.
        bidirectional: let the encoder read backwards too.
        attention: what the decoder sees of the source: ``none`` (the last states only), ``additive`` or ``dot``.
        dropout: share dropped from token vectors, between layers, and before the logits.
        init_recurrent: orthogonal recurrent and Xavier input weights, biases 0 but 1 for forget gates, in place of
            torch's uniform ones.
    """

    causal = True

    def __init__(
        self,
        src_vocab_size: int,
        tgt_vocab_size: int,
        pad_id: int,
        dim: int,
        embed_dim: int = 64,
        depth: int = 1,
        bidirectional: bool = False,
        attention: AttentionKind = "none",
        dropout: float = 0.0,
        init_recurrent: bool = False,
    ) -> None:
        super().__init__()
        self.pad_id = pad_id
        self.encoder = Encoder(src_vocab_size, pad_id, dim, embed_dim, depth, bidirectional, dropout)
        self.decoder = Decoder(tgt_vocab_size, pad_id, dim, embed_dim, depth, attention, dropout)
        if init_recurrent:
            initialize_recurrent(self.encoder.rnn)
            initialize_recurrent(self.decoder.rnn)

    def forward(
        self,
        src: Int[Tensor, "b s"],
        tgt: Int[Tensor, "b t"],
        src_lengths: Int[Tensor, " b"] | None = None,
        teacher_forcing: float = 1.0,
    ) -> Float[Tensor, "b t v"]:
        """Return the logits of the token behind each of the target's, which begins with its begin-of-sequence.

        Args:
            src: padded behind the ends.
            tgt: as ``src``.
            src_lengths: null counts up to the padding.
            teacher_forcing: in training mode, share of the steps that are given the target's token and not the
                network's own (Bengio et al. 2015, https://arxiv.org/abs/1506.03099), drawn for each step and sequence.
        """
        states, state, lengths = self.encoder(src, src_lengths)
        memory = self.decoder.build_memory(states, lengths)
        if not self.training or teacher_forcing >= 1:
            return self.decoder(tgt, state, memory)[0]
        token, logits = tgt[:, :1], []
        for given in tgt.roll(-1, 1).split(1, 1):
            step, state, _ = self.decoder(token, state, memory)
            forced = torch.rand(token.shape, device=token.device) < teacher_forcing
            token = torch.where(forced, given, step.argmax(2))
            logits.append(step)
        return torch.cat(logits, 1)

    @torch.no_grad()
    def attend(
        self, src: Int[Tensor, "b s"], tgt: Int[Tensor, "b t"], src_lengths: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b t s"] | None:
        """Return which share of its attention each step of the decoder gives to each step of the source, if it has any.

        Args:
            src: padded behind the ends.
            tgt: from begin-of-sequence on.
            src_lengths: null counts up to the padding.
        """
        states, state, lengths = self.encoder(src, src_lengths)
        return self.decoder(tgt, state, self.decoder.build_memory(states, lengths))[2]

    @torch.no_grad()
    def generate(
        self,
        src: Int[Tensor, "b s"],
        bos_id: int,
        eos_id: int,
        max_new_tokens: int,
        num_beams: int = 1,
        length_penalty: float = 1.0,
        early_stopping: bool | Literal["never"] = False,
        src_lengths: Int[Tensor, " b"] | None = None,
    ) -> Generated:
        """Translate a batch; call it in eval mode.

        Args:
            src: padded behind the ends.
            bos_id: the token that a target begins with.
            eos_id: the token that ends it.
            max_new_tokens: how many tokens a translation has at most, its end included.
            num_beams: width of the beam; 1 takes the most probable token at each step.
            length_penalty: exponent of the length by which a translation's log-probability is divided.
            early_stopping: when a beam is done, see :func:`zoo.layers.decoding.beam_search`.
            src_lengths: null counts up to the padding.

        Returns:
            Tokens ``(b, t)`` behind the begin-of-sequence, up to end-of-sequence and padded, and scores ``(b,)``.
        """
        if num_beams < 1 or max_new_tokens < 1:
            raise ValueError(f"num_beams and max_new_tokens start at 1, got {num_beams=}, {max_new_tokens=}")
        states, state, lengths = self.encoder(src, src_lengths)
        memory = self.decoder.build_memory(states, lengths)
        first = src.new_full((len(src),), bos_id)
        if num_beams == 1:
            return greedy_search(
                self._step, (state, memory), first, eos_id, self.pad_id, max_new_tokens, length_penalty
            )
        state = tuple(s.repeat_interleave(num_beams, 1) for s in state)
        memory = Memory(*(m.repeat_interleave(num_beams, 0) for m in memory))
        width = (num_beams, length_penalty, early_stopping)
        return beam_search(self._step, (state, memory), first, _reorder, eos_id, self.pad_id, max_new_tokens, *width)

    def _step(
        self, token: Int[Tensor, " n"], state: tuple[LSTMState, Memory]
    ) -> tuple[Tensor, tuple[LSTMState, Memory]]:
        logits, new, _ = self.decoder(token.unsqueeze(1), *state)
        return logits.squeeze(1), (new, state[1])


def _reorder(state: tuple[LSTMState, Memory], rows: Int[Tensor, " n"]) -> tuple[LSTMState, Memory]:
    """States of the given rows; the beams of a sequence share what was read, so that stays."""
    h, c = state[0]
    return (h.index_select(1, rows), c.index_select(1, rows)), state[1]


def teacher_forcing_ratio(
    step: int, schedule: Schedule = "constant", start: float = 1.0, end: float = 0.0, steps: int = 1
) -> float:
    """Share of target tokens that the decoder is given at a step of training (Bengio et al. 2015).

    Args:
        step: optimizer steps done.
        schedule: ``constant`` stays at ``start``; ``linear``; ``inverse_sigmoid`` is ``k / (k + exp(step / k))`` with
            the ``k`` for which it is half way down at half of the steps.
        start: at step 0.
        end: from ``steps`` on.
        steps: optimizer steps from ``start`` to ``end``.
    """
    if schedule == "constant":
        return start
    step = min(step, steps)
    if schedule == "linear":
        return start + (end - start) * step / steps
    k = max(2.0, steps / 2)
    for _ in range(50):  # Newton, for k ln k = steps / 2
        k -= (k * math.log(k) - steps / 2) / (math.log(k) + 1)
    return end + (start - end) * k / (k + math.exp(step / k))


class Seq2SeqTranslator(Translator):
    """Two LSTMs that translate: one reads the source, one writes the target.

    Args:
        dim: width of a state; in a two-way encoder each direction has half of it.
        embed_dim: width of the vector of a token.
        depth: number of layers of each of the two.
        bidirectional: let the encoder read backwards too.
        attention: what the decoder sees of the source: ``none`` (the last states only), ``additive`` (Bahdanau) or
            ``dot`` (Luong).
        dropout: share dropped from token vectors, between layers, and before the logits.
        init_recurrent: orthogonal recurrent and Xavier input weights, biases 0 but 1 for forget gates, in place of
            torch's uniform ones.
        teacher_forcing: share of target tokens that the decoder is given in training and need not take from itself; of
            a schedule, the share it begins with. Below 1 the decoder goes step by step, which is slower.
        teacher_forcing_schedule: ``constant``, ``linear`` or ``inverse_sigmoid``, over optimizer steps.
        teacher_forcing_end: the share that a schedule ends with.
        teacher_forcing_steps: optimizer steps until then; null is the whole training.
        src_vocab_size: number of tokens of the source; null takes it from the data.
        tgt_vocab_size: number of tokens of the target; null takes it from the data.
        pad_id: the padding token; null takes it from the data.
    """

    def __init__(
        self,
        dim: int = 128,
        embed_dim: int = 64,
        depth: int = 1,
        bidirectional: bool = False,
        attention: AttentionKind = "none",
        dropout: float = 0.0,
        init_recurrent: bool = False,
        teacher_forcing: float = 1.0,
        teacher_forcing_schedule: Schedule = "constant",
        teacher_forcing_end: float = 0.0,
        teacher_forcing_steps: int | None = None,
        src_vocab_size: int | None = None,
        tgt_vocab_size: int | None = None,
        pad_id: int | None = None,
        **kwargs: Any,
    ) -> None:
        src_vocab, tgt_vocab, pad = require(
            self, src_vocab_size=src_vocab_size, tgt_vocab_size=tgt_vocab_size, pad_id=pad_id
        )
        shape = (dim, embed_dim, depth, bidirectional, attention, dropout, init_recurrent)
        net = Seq2Seq(src_vocab, tgt_vocab, pad, *shape)
        super().__init__(net=net, tgt_vocab_size=tgt_vocab_size, pad_id=pad_id, **kwargs)
        for name, share in (("teacher_forcing", teacher_forcing), ("teacher_forcing_end", teacher_forcing_end)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} is a share from 0 to 1, got {share}")
        if teacher_forcing_steps is not None and teacher_forcing_steps < 1:
            raise ValueError(f"teacher_forcing_steps starts at 1, got {teacher_forcing_steps}")
        self.teacher_forcing_schedule: Schedule = teacher_forcing_schedule
        self.teacher_forcing = teacher_forcing
        self.teacher_forcing_end, self.teacher_forcing_steps = teacher_forcing_end, teacher_forcing_steps

    def forward(
        self, src: Int[Tensor, "b s"], tgt: Int[Tensor, "b t"], src_lengths: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b t v"]:
        return self.net(src, tgt, src_lengths, self._teacher_forcing_now() if self.training else 1.0)

    def _teacher_forcing_now(self) -> float:
        """A function of the step alone, so that a resumed run goes on as if it had never stopped."""
        schedule, start = self.teacher_forcing_schedule, self.teacher_forcing
        if schedule == "constant" or trainer_of(self) is None:
            return start
        steps = self.teacher_forcing_steps or self._total_steps()
        return teacher_forcing_ratio(self.trainer.global_step, schedule, start, self.teacher_forcing_end, steps)
