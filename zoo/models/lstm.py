"""Long short-term memory (Hochreiter and Schmidhuber 1997, https://doi.org/10.1162/neco.1997.9.8.1735)."""

from __future__ import annotations

from typing import Any, ClassVar

from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.layers.padded_rnn import PaddedGRU, PaddedLSTM
from zoo.layers.recurrent import Pooling, SequenceInput, TimePooling, initialize_recurrent, sequence_head
from zoo.tasks import Classifier, Regressor, Tagger, require


class LSTM(nn.Module):
    """LSTM layers over vectors or embedded tokens, pooling over time, and a head.

    The notes take ``out[:, -1]``, which in a padded batch is a state of the padding, and of a two-way network the
    backward half that has seen one step. ``last`` is the state behind the last valid step, beside that of the
    backward direction before the first.

    Args:
        output_dim: number of outputs.
        dim: width of the state of a direction.
        depth: number of layers.
        bidirectional: read backwards too; states of both directions stand beside each other.
        dropout: share dropped between layers (where there are several) and in the head.
        pooling: ``last``, ``mean``, ``max`` or ``attention``; null gives an output at every step.
        hidden: width of a hidden layer in the head; 0 for none.
        input_dim: numbers a step, for sequences of vectors; null for tokens.
        vocab_size: number of tokens; null for vectors.
        embed_dim: width of the vector of a token.
        pad_id: the padding token; null for none.
        init_recurrent: orthogonal recurrent and Xavier input weights, biases 0 but 1 for an LSTM's forget gates, in
            place of torch's uniform ones.
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
        between = dropout if depth > 1 else 0.0
        self.rnn = self.layer(
            self.input.width, dim, depth, batch_first=True, dropout=between, bidirectional=bidirectional
        )
        width = 2 * dim if bidirectional else dim
        self.pool = TimePooling(pooling, width) if pooling else None
        self.head = sequence_head(width, output_dim, hidden, dropout)
        if init_recurrent:
            initialize_recurrent(self.rnn)

    def forward(
        self, x: Float[Tensor, "b t d"] | Int[Tensor, "b t"], lengths: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b k"] | Float[Tensor, "b t k"]:
        x, lengths = self.input(x, lengths)
        states, last = self.rnn(x, lengths)
        return self.head(states if self.pool is None else self.pool(states, last, lengths))


class LSTMClassifier(Classifier):
    """An LSTM that tells sequences apart.

    Args:
        dim: width of the state of a direction.
        depth: number of recurrent layers.
        bidirectional: read backwards too; states of both directions stand beside each other.
        dropout: share dropped between layers (where there are several) and in the head.
        pooling: what is made of the states: ``last`` (valid one), ``mean``, ``max`` or ``attention``.
        hidden: width of a hidden layer in the head; 0 for none.
        embed_dim: width of the vector of a token.
        init_recurrent: orthogonal recurrent and Xavier input weights, biases 0 but 1 for an LSTM's forget gates, in
            place of torch's uniform ones.
        input_dim: numbers a step, for sequences of vectors; null takes it from the data.
        vocab_size: number of tokens, for sequences of these; null takes it from the data.
        pad_id: the padding token; null takes it from the data, or there is none.
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
        outputs = require(self, num_classes=num_classes)
        shape = (outputs, dim, depth, bidirectional, dropout, pooling, hidden)
        net = self.network(*shape, input_dim, vocab_size, embed_dim, pad_id, init_recurrent)
        super().__init__(net=net, num_classes=num_classes, **kwargs)


class LSTMRegressor(Regressor):
    """An LSTM that predicts numbers from a sequence.

    Args:
        dim: width of the state of a direction.
        depth: number of recurrent layers.
        bidirectional: read backwards too; states of both directions stand beside each other.
        dropout: share dropped between layers (where there are several) and in the head.
        pooling: what is made of the states: ``last`` (valid one), ``mean``, ``max`` or ``attention``.
        hidden: width of a hidden layer in the head; 0 for none.
        embed_dim: width of the vector of a token.
        init_recurrent: orthogonal recurrent and Xavier input weights, biases 0 but 1 for an LSTM's forget gates, in
            place of torch's uniform ones.
        input_dim: numbers a step, for sequences of vectors; null takes it from the data.
        vocab_size: number of tokens, for sequences of these; null takes it from the data.
        pad_id: the padding token; null takes it from the data, or there is none.
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
        outputs = require(self, output_dim=output_dim)
        shape = (outputs, dim, depth, bidirectional, dropout, pooling, hidden)
        net = self.network(*shape, input_dim, vocab_size, embed_dim, pad_id, init_recurrent)
        super().__init__(net=net, **kwargs)


class LSTMTagger(Tagger):
    """An LSTM that gives each step of a sequence a class.

    Args:
        dim: width of the state of a direction.
        depth: number of recurrent layers.
        bidirectional: read backwards too; states of both directions stand beside each other.
        dropout: share dropped between layers (where there are several) and in the head.
        hidden: width of a hidden layer in the head; 0 for none.
        embed_dim: width of the vector of a token.
        init_recurrent: orthogonal recurrent and Xavier input weights, biases 0 but 1 for an LSTM's forget gates, in
            place of torch's uniform ones.
        input_dim: numbers a step, for sequences of vectors; null takes it from the data.
        vocab_size: number of tokens, for sequences of these; null takes it from the data.
        pad_id: the padding token; null takes it from the data, or there is none.
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
        outputs = require(self, num_classes=num_classes)
        shape = (outputs, dim, depth, bidirectional, dropout, None, hidden)
        net = self.network(*shape, input_dim, vocab_size, embed_dim, pad_id, init_recurrent)
        super().__init__(net=net, num_classes=num_classes, **kwargs)
