"""LSTM encoder-decoder (seq2seq; Sutskever et al. 2014, https://arxiv.org/abs/1409.3215), with attention."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo._lightning import trainer_of
from zoo.layers.alignment import AdditiveAttention, DotAttention, Memory
from zoo.layers.decoding import Generated, beam_search, greedy_search
from zoo.layers.padded_rnn import AutocastLSTM, EncoderLSTM, LSTMState
from zoo.layers.recurrent import SequenceInput, initialize_recurrent, length_mask
from zoo.tasks import Translator, require

AttentionKind = Literal["none", "additive", "dot"]
Schedule = Literal["constant", "linear", "inverse_sigmoid"]


class Encoder(nn.Module):
    """LSTM encoder: returns its states, and the final state of each layer.

    Args:
        vocab_size: source vocabulary size.
        pad_id: padding token.
        dim: hidden dimension; with ``bidirectional`` each direction has half of it.
        embed_dim: dimension of the token embedding.
        depth: number of layers.
        bidirectional: run in both directions.
        dropout: dropout probability for embeddings and between layers.
    """

    def __init__(
        self,
        vocab_size: int,
        pad_id: int,
        dim: int,
        embed_dim: int,
        depth: int,
        bidirectional: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        if bidirectional and dim % 2:
            raise ValueError(f"dim must be even, as each direction of the encoder has half of it: got {dim}")
        self.input = SequenceInput(vocab_size=vocab_size, embed_dim=embed_dim, pad_id=pad_id)
        self.dropout = nn.Dropout(dropout)
        width = dim
        if bidirectional:
            width = dim // 2  # of each direction
        self.rnn = EncoderLSTM(
            embed_dim,
            width,
            depth,
            batch_first=True,
            dropout=dropout_between(depth, dropout),
            bidirectional=bidirectional,
        )

    def forward(
        self,
        src: Int[Tensor, "b s"],
        lengths: Int[Tensor, " b"] | None = None,
    ) -> tuple[Float[Tensor, "b s d"], LSTMState, Int[Tensor, " b"]]:
        """Return the states of all steps, the final state ``(h, c)``, and the lengths."""
        x, lengths = self.input(src, lengths)  # (b, s, e)
        assert lengths is not None
        states, (h, c) = self.rnn(self.dropout(x), lengths)  # (b, s, d), (layers * directions, b, width) each
        if self.rnn.bidirectional:
            h = concatenate_directions(h)
            c = concatenate_directions(c)
        return states, (h, c), lengths


def concatenate_directions(state: Float[Tensor, "n b h"]) -> Float[Tensor, "l b d"]:
    """Concatenate the states of the two directions of each layer: ``(2 * layers, b, h)`` to ``(layers, b, 2 * h)``."""
    by_layer = state.unflatten(0, (-1, 2))  # (l, 2, b, h)
    return by_layer.transpose(1, 2).flatten(2)


def dropout_between(depth: int, dropout: float) -> float:
    """Return the dropout probability between layers, 0 for a single layer, for which torch would warn."""
    if depth > 1:
        return dropout
    return 0.0


class Decoder(nn.Module):
    """LSTM decoder with attention over the encoder; returns the logits of the next token.

    Dot attention queries with the LSTM's new state, so all steps of a known target are one call. Additive attention
    queries with the previous state, and its context is an input of the LSTM (input feeding). Both are followed by
    Luong's ``tanh(W [context, state])``, where Bahdanau's paper has a maxout layer.

    Args:
        vocab_size: target vocabulary size.
        pad_id: padding token.
        dim: hidden dimension.
        embed_dim: dimension of the token embedding.
        depth: number of layers.
        attention: ``none``, ``additive`` or ``dot``.
        dropout: dropout probability for embeddings, between layers, and before the output layer.
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
        self.attention: AdditiveAttention | DotAttention | None = None
        width = embed_dim
        if attention == "additive":
            self.attention = AdditiveAttention(dim)
            width = embed_dim + dim  # token embedding and context
        elif attention == "dot":
            self.attention = DotAttention()
        self.rnn = AutocastLSTM(width, dim, depth, batch_first=True, dropout=dropout_between(depth, dropout))
        self.dropout = nn.Dropout(dropout)
        self.mix = None
        if self.attention is not None:
            self.mix = nn.Linear(2 * dim, dim, bias=False)
        self.out = nn.Linear(dim, vocab_size)

    def build_memory(self, states: Float[Tensor, "b s d"], lengths: Int[Tensor, " b"]) -> Memory:
        """Return the encoder's states with their attention keys and padding mask."""
        keys = states
        if self.attention is not None:
            keys = self.attention.key(states)
        padding = ~length_mask(lengths, states.shape[1])  # (b, s)
        return Memory(states, keys, padding)

    def forward(
        self,
        tgt: Int[Tensor, "b t"],
        state: LSTMState,
        memory: Memory,
    ) -> tuple[Float[Tensor, "b t v"], LSTMState, Float[Tensor, "b t s"] | None]:
        """Return logits, the state after the last token, and the attention weights."""
        x = self.dropout(self.embedding(tgt))  # (b, t, e)
        weights = None
        if self.input_feeding:
            x, context, weights, state = self._decode_with_input_feeding(x, state, memory)
        else:
            x, state = self.rnn(x, state)  # (b, t, d)
            context = x
            if self.attention is not None:
                context, weights = self.attention(x, memory)  # (b, t, d), (b, t, s)
        if self.mix is not None:
            both = torch.cat([context, x], 2)  # (b, t, 2 * d)
            x = torch.tanh(self.mix(both))
        return self.out(self.dropout(x)), state, weights

    def _decode_with_input_feeding(
        self,
        x: Float[Tensor, "b t e"],
        state: LSTMState,
        memory: Memory,
    ) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b t d"], Float[Tensor, "b t s"], LSTMState]:
        """Decode step by step; each step's input has the context of a query by the top layer's previous state."""
        assert self.attention is not None
        outputs = []
        contexts = []
        weights = []
        for step in x.split(1, 1):  # (b, 1, e)
            h, _ = state
            query = h[-1].unsqueeze(1)  # (b, 1, d)
            context, step_weights = self.attention(query, memory)
            features = torch.cat([step, context], 2)  # (b, 1, e + d)
            output, state = self.rnn(features, state)
            outputs.append(output)
            contexts.append(context)
            weights.append(step_weights)
        return torch.cat(outputs, 1), torch.cat(contexts, 1), torch.cat(weights, 1), state


class Seq2Seq(nn.Module):
    """LSTM encoder-decoder: the decoder starts from the encoder's final states.

    Args:
        src_vocab_size: source vocabulary size.
        tgt_vocab_size: target vocabulary size.
        pad_id: padding token of both.
        dim: hidden dimension; each direction of a bidirectional encoder has half of it.
        embed_dim: dimension of the token embeddings.
        depth: number of layers of encoder and decoder each.
        bidirectional: run the encoder in both directions.
        attention: attention over the encoder's states: ``none`` (final states only), ``additive`` or ``dot``.
        dropout: dropout probability for embeddings, between layers, and before the output layer.
        init_recurrent: initialise recurrent weights orthogonally, input weights by Xavier, biases with 0 and forget
            gates with 1, instead of torch's uniform initialisation.
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
        """Return the logits of the token after each target token.

        Args:
            src: source tokens, padded at the end.
            tgt: target tokens from begin-of-sequence on, padded at the end.
            src_lengths: lengths of the sources; null infers them from the padding.
            teacher_forcing: in training mode, probability that a step's input is the target token and not the
                network's own prediction (Bengio et al. 2015, https://arxiv.org/abs/1506.03099), per step and sequence.
        """
        states, state, lengths = self.encoder(src, src_lengths)
        memory = self.decoder.build_memory(states, lengths)
        if not self.training or teacher_forcing >= 1:
            logits, _, _ = self.decoder(tgt, state, memory)
            return logits
        token = tgt[:, :1]  # (b, 1)
        steps = []
        for next_target in tgt.roll(-1, 1).split(1, 1):
            step, state, _ = self.decoder(token, state, memory)  # (b, 1, v)
            forced = torch.rand(token.shape, device=token.device) < teacher_forcing
            token = torch.where(forced, next_target, step.argmax(2))
            steps.append(step)
        return torch.cat(steps, 1)

    @torch.no_grad()
    def attend(
        self,
        src: Int[Tensor, "b s"],
        tgt: Int[Tensor, "b t"],
        src_lengths: Int[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b t s"] | None:
        """Return the attention weights of each target step over the source steps; None without attention.

        Args:
            src: source tokens, padded at the end.
            tgt: target tokens from begin-of-sequence on.
            src_lengths: lengths of the sources; null infers them from the padding.
        """
        states, state, lengths = self.encoder(src, src_lengths)
        memory = self.decoder.build_memory(states, lengths)
        _, _, weights = self.decoder(tgt, state, memory)
        return weights

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
        """Generate target sequences by greedy or beam search; call it in eval mode.

        Args:
            src: source tokens, padded at the end.
            bos_id: begin-of-sequence token.
            eos_id: end-of-sequence token.
            max_new_tokens: maximum number of generated tokens, end-of-sequence included.
            num_beams: number of beams; 1 for greedy search.
            length_penalty: exponent of the length by which a sequence's log-probability is divided.
            early_stopping: when a row is done, see :func:`zoo.layers.decoding.beam_search`.
            src_lengths: lengths of the sources; null infers them from the padding.

        Returns:
            Tokens ``(b, t)`` after begin-of-sequence, up to end-of-sequence and then padding, and scores ``(b,)``.
        """
        if num_beams < 1 or max_new_tokens < 1:
            raise ValueError(f"num_beams and max_new_tokens must be at least 1, got {num_beams=}, {max_new_tokens=}")
        states, state, lengths = self.encoder(src, src_lengths)
        memory = self.decoder.build_memory(states, lengths)
        first = src.new_full((len(src),), bos_id)
        if num_beams == 1:
            return greedy_search(
                self._step,
                (state, memory),
                first,
                eos_id,
                self.pad_id,
                max_new_tokens,
                length_penalty,
            )
        # Beams of a sequence are adjacent rows.
        h, c = state
        state = (h.repeat_interleave(num_beams, 1), c.repeat_interleave(num_beams, 1))
        memory = Memory(*(part.repeat_interleave(num_beams, 0) for part in memory))
        return beam_search(
            self._step,
            (state, memory),
            first,
            _reorder,
            eos_id,
            self.pad_id,
            max_new_tokens,
            num_beams,
            length_penalty,
            early_stopping,
        )

    def _step(
        self,
        token: Int[Tensor, " n"],
        state: tuple[LSTMState, Memory],
    ) -> tuple[Float[Tensor, "n v"], tuple[LSTMState, Memory]]:
        lstm_state, memory = state
        logits, lstm_state, _ = self.decoder(token.unsqueeze(1), lstm_state, memory)  # (n, 1, v)
        return logits.squeeze(1), (lstm_state, memory)


def _reorder(state: tuple[LSTMState, Memory], rows: Int[Tensor, " n"]) -> tuple[LSTMState, Memory]:
    """Return the states of these rows; the memory stays, as the beams of a sequence share it."""
    (h, c), memory = state
    return (h.index_select(1, rows), c.index_select(1, rows)), memory


def teacher_forcing_ratio(
    step: int,
    schedule: Schedule = "constant",
    start: float = 1.0,
    end: float = 0.0,
    steps: int = 1,
) -> float:
    """Return the teacher forcing ratio at a training step: scheduled sampling (Bengio et al. 2015).

    Args:
        step: number of optimizer steps so far.
        schedule: ``constant``; ``linear``; or ``inverse_sigmoid``, ``k / (k + exp(step / k))`` with the ``k`` for which
            it is halfway at half of the steps.
        start: ratio at step 0.
        end: ratio from ``steps`` on.
        steps: number of optimizer steps from ``start`` to ``end``.
    """
    if schedule == "constant":
        return start
    step = min(step, steps)
    if schedule == "linear":
        return start + (end - start) * step / steps
    # Newton's method for k ln k = steps / 2.
    k = max(2.0, steps / 2)
    for _ in range(50):
        k -= (k * math.log(k) - steps / 2) / (math.log(k) + 1)
    return end + (start - end) * k / (k + math.exp(step / k))


class Seq2SeqTranslator(Translator):
    """LSTM encoder-decoder (seq2seq) for translation.

    Args:
        dim: hidden dimension; each direction of a bidirectional encoder has half of it.
        embed_dim: dimension of the token embeddings.
        depth: number of layers of encoder and decoder each.
        bidirectional: run the encoder in both directions.
        attention: attention over the encoder's states: ``none`` (final states only), ``additive`` (Bahdanau) or
            ``dot`` (Luong).
        dropout: dropout probability for embeddings, between layers, and before the output layer.
        init_recurrent: initialise recurrent weights orthogonally, input weights by Xavier, biases with 0 and forget
            gates with 1, instead of torch's uniform initialisation.
        teacher_forcing: probability that a decoder input in training is the target token and not the network's own
            prediction; with a schedule, the initial one. Below 1 decoding is step by step, which is slower.
        teacher_forcing_schedule: ``constant``, ``linear`` or ``inverse_sigmoid``, over optimizer steps.
        teacher_forcing_end: final probability of a schedule.
        teacher_forcing_steps: length of the schedule in optimizer steps; null for the whole training.
        src_vocab_size: source vocabulary size; null takes it from the data.
        tgt_vocab_size: target vocabulary size; null takes it from the data.
        pad_id: padding token; null takes it from the data.
    """

    tiny = {"dim": 32, "embed_dim": 16, "pad_id": 0, "bos_id": 2, "eos_id": 3, "max_new_tokens": 7}

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
        net = Seq2Seq(
            src_vocab,
            tgt_vocab,
            pad,
            dim,
            embed_dim,
            depth,
            bidirectional,
            attention,
            dropout,
            init_recurrent,
        )
        super().__init__(net=net, tgt_vocab_size=tgt_vocab_size, pad_id=pad_id, **kwargs)
        ratios = {"teacher_forcing": teacher_forcing, "teacher_forcing_end": teacher_forcing_end}
        for name, ratio in ratios.items():
            if not 0 <= ratio <= 1:
                raise ValueError(f"{name} must be a probability from 0 to 1, got {ratio}")
        if teacher_forcing_steps is not None and teacher_forcing_steps < 1:
            raise ValueError(f"teacher_forcing_steps must be at least 1, got {teacher_forcing_steps}")
        self.teacher_forcing_schedule: Schedule = teacher_forcing_schedule
        self.teacher_forcing = teacher_forcing
        self.teacher_forcing_end = teacher_forcing_end
        self.teacher_forcing_steps = teacher_forcing_steps

    def forward(
        self,
        src: Int[Tensor, "b s"],
        tgt: Int[Tensor, "b t"],
        src_lengths: Int[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b t v"]:
        ratio = 1.0
        if self.training:
            ratio = self._current_teacher_forcing()
        return self.net(src, tgt, src_lengths, ratio)

    def _current_teacher_forcing(self) -> float:
        """Return the ratio as a function of the step alone, so that a resumed run continues exactly."""
        schedule = self.teacher_forcing_schedule
        start = self.teacher_forcing
        end = self.teacher_forcing_end
        if schedule == "constant" or trainer_of(self) is None:
            return start
        steps = self.teacher_forcing_steps or self._total_steps()
        return teacher_forcing_ratio(self.trainer.global_step, schedule, start, end, steps)
