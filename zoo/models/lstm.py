"""Long short-term memory (Hochreiter and Schmidhuber 1997, https://doi.org/10.1162/neco.1997.9.8.1735)."""

from __future__ import annotations

from typing import Any, ClassVar

from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.layers.padded_rnn import PaddedGRU, PaddedLSTM
from zoo.layers.recurrent import Pooling, SequenceInput, TimePooling, initialize_recurrent, sequence_head
from zoo.tasks import Classifier, Regressor, Tagger, require


class LSTM(nn.Module):
    """LSTM: layers over vectors or embedded tokens, pooling over time, and a head.

    ``last`` pooling is not ``out[:, -1]``, which in a padded batch is a state of the padding and, in a bidirectional
    network, a backward state after a single step. It concatenates the state after the last valid step with that of the
    backward direction after the first.

    Args:
        output_dim: number of outputs.
        dim: hidden dimension of one direction.
        depth: number of layers.
        bidirectional: run in both directions and concatenate their states.
        dropout: dropout probability between layers and in the head.
        pooling: pooling over time: ``last``, ``mean``, ``max`` or ``attention``; null for an output at every step.
        hidden: hidden dimension of the head; 0 for a linear head.
        input_dim: features per step, for sequences of vectors; null for tokens.
        vocab_size: vocabulary size; null for vectors.
        embed_dim: dimension of the token embedding.
        pad_id: padding token; null for none.
        init_recurrent: initialise recurrent weights orthogonally, input weights by Xavier, biases with 0 and an LSTM's
            forget gates with 1, instead of torch's uniform initialisation.
    """

    layer: ClassVar[type[PaddedLSTM] | type[PaddedGRU]] = PaddedLSTM

    def __init__(
        self,
        output_dim: int,
        dim: int,
        depth: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        pooling: Pooling | None = "last",
        hidden: int = 0,
        input_dim: int | None = None,
        vocab_size: int | None = None,
        embed_dim: int = 128,
        pad_id: int | None = None,
        init_recurrent: bool = False,
    ) -> None:
        super().__init__()
        self.input = SequenceInput(input_dim, vocab_size, embed_dim, pad_id)
        between = dropout if depth > 1 else 0.0  # torch warns of a dropout without a second layer
        self.rnn = self.layer(
            self.input.width,
            dim,
            depth,
            batch_first=True,
            dropout=between,
            bidirectional=bidirectional,
        )
        width = dim
        if bidirectional:
            width = 2 * dim  # the states of both directions
        self.pool = TimePooling(pooling, width) if pooling else None
        self.head = sequence_head(width, output_dim, hidden, dropout)
        if init_recurrent:
            initialize_recurrent(self.rnn)

    def forward(
        self, x: Float[Tensor, "b t d"] | Int[Tensor, "b t"], lengths: Int[Tensor, " n"] | None = None
    ) -> Float[Tensor, "b k"] | Float[Tensor, "b t k"]:
        x, lengths = self.input(x, lengths)  # (b, t, e)
        states, last = self.rnn(x, lengths)  # (b, t, h), (b, h)
        if self.pool is None:
            return self.head(states)
        return self.head(self.pool(states, last, lengths))


class LSTMClassifier(Classifier):
    """LSTM sequence classifier.

    Args:
        dim: hidden dimension of one direction.
        depth: number of recurrent layers.
        bidirectional: run in both directions and concatenate their states.
        dropout: dropout probability between layers and in the head.
        pooling: pooling over time: ``last`` valid state, ``mean``, ``max`` or ``attention``.
        hidden: hidden dimension of the head; 0 for a linear head.
        embed_dim: dimension of the token embedding.
        init_recurrent: initialise recurrent weights orthogonally, input weights by Xavier, biases with 0 and an LSTM's
            forget gates with 1, instead of torch's uniform initialisation.
        input_dim: features per step, for sequences of vectors; null takes it from the data.
        vocab_size: vocabulary size, for sequences of tokens; null takes it from the data.
        pad_id: padding token; null takes it from the data, or there is none.
        num_classes: number of classes; null takes it from the data.
    """

    network: ClassVar[type[LSTM]] = LSTM

    def __init__(
        self,
        dim: int = 128,
        depth: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        pooling: Pooling = "last",
        hidden: int = 0,
        embed_dim: int = 128,
        init_recurrent: bool = False,
        input_dim: int | None = None,
        vocab_size: int | None = None,
        pad_id: int | None = None,
        num_classes: int | None = None,
        **kwargs: Any,
    ) -> None:
        net = self.network(
            require(self, num_classes=num_classes),
            dim,
            depth,
            bidirectional,
            dropout,
            pooling,
            hidden,
            input_dim,
            vocab_size,
            embed_dim,
            pad_id,
            init_recurrent,
        )
        super().__init__(net=net, num_classes=num_classes, **kwargs)


class LSTMRegressor(Regressor):
    """LSTM sequence regressor.

    Args:
        dim: hidden dimension of one direction.
        depth: number of recurrent layers.
        bidirectional: run in both directions and concatenate their states.
        dropout: dropout probability between layers and in the head.
        pooling: pooling over time: ``last`` valid state, ``mean``, ``max`` or ``attention``.
        hidden: hidden dimension of the head; 0 for a linear head.
        embed_dim: dimension of the token embedding.
        init_recurrent: initialise recurrent weights orthogonally, input weights by Xavier, biases with 0 and an LSTM's
            forget gates with 1, instead of torch's uniform initialisation.
        input_dim: features per step, for sequences of vectors; null takes it from the data.
        vocab_size: vocabulary size, for sequences of tokens; null takes it from the data.
        pad_id: padding token; null takes it from the data, or there is none.
        output_dim: number of targets; null takes it from the data.
    """

    network: ClassVar[type[LSTM]] = LSTM

    def __init__(
        self,
        dim: int = 128,
        depth: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        pooling: Pooling = "last",
        hidden: int = 0,
        embed_dim: int = 128,
        init_recurrent: bool = False,
        input_dim: int | None = None,
        vocab_size: int | None = None,
        pad_id: int | None = None,
        output_dim: int | None = None,
        **kwargs: Any,
    ) -> None:
        net = self.network(
            require(self, output_dim=output_dim),
            dim,
            depth,
            bidirectional,
            dropout,
            pooling,
            hidden,
            input_dim,
            vocab_size,
            embed_dim,
            pad_id,
            init_recurrent,
        )
        super().__init__(net=net, **kwargs)


class LSTMTagger(Tagger):
    """LSTM sequence tagger: a class for each step.

    Args:
        dim: hidden dimension of one direction.
        depth: number of recurrent layers.
        bidirectional: run in both directions and concatenate their states.
        dropout: dropout probability between layers and in the head.
        hidden: hidden dimension of the head; 0 for a linear head.
        embed_dim: dimension of the token embedding.
        init_recurrent: initialise recurrent weights orthogonally, input weights by Xavier, biases with 0 and an LSTM's
            forget gates with 1, instead of torch's uniform initialisation.
        input_dim: features per step, for sequences of vectors; null takes it from the data.
        vocab_size: vocabulary size, for sequences of tokens; null takes it from the data.
        pad_id: padding token; null takes it from the data, or there is none.
        num_classes: number of classes; null takes it from the data.
    """

    network: ClassVar[type[LSTM]] = LSTM

    def __init__(
        self,
        dim: int = 128,
        depth: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        hidden: int = 0,
        embed_dim: int = 128,
        init_recurrent: bool = False,
        input_dim: int | None = None,
        vocab_size: int | None = None,
        pad_id: int | None = None,
        num_classes: int | None = None,
        **kwargs: Any,
    ) -> None:
        net = self.network(
            require(self, num_classes=num_classes),
            dim,
            depth,
            bidirectional,
            dropout,
            None,  # no pooling: an output at every step
            hidden,
            input_dim,
            vocab_size,
            embed_dim,
            pad_id,
            init_recurrent,
        )
        super().__init__(net=net, num_classes=num_classes, **kwargs)
