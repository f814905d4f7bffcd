"""Gated recurrent unit (Cho et al. 2014, https://arxiv.org/abs/1406.1078)."""

from __future__ import annotations

from typing import Any

from zoo.layers.recurrent import PaddedGRU, Pooling
from zoo.models.lstm import LSTM
from zoo.tasks import Classifier, Regressor, Tagger, need


class GRU(LSTM):
    """GRU layers over vectors or embedded tokens, pooling over time, and a head: ``LSTM`` with two gates for three."""

    layer = PaddedGRU


class GRUClassifier(Classifier):
    """A GRU that tells sequences apart.

    Args:
        dim: width of the state of a direction.
        depth: number of recurrent layers.
        bidirectional: read backwards too; states of both directions stand beside each other.
        dropout: share dropped between layers (where there are several) and in the head.
        pooling: what is made of the states: ``last`` (valid one), ``mean``, ``max`` or ``attention``.
        hidden: width of a hidden layer in the head; 0 for none.
        embed_dim: width of the vector of a token.
        init_recurrent: orthogonal recurrent and Xavier input weights, biases 0, in place of torch's uniform
            ones.
        input_dim: numbers a step, for sequences of vectors; null takes it from the data.
        vocab_size: number of tokens, for sequences of these; null takes it from the data.
        pad_id: the padding token; null takes it from the data, or there is none.
        num_classes: number of classes; null takes it from the data.
    """

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
        outputs = need(self, num_classes=num_classes)
        shape = (outputs, dim, depth, bidirectional, dropout, pooling, hidden)
        net = GRU(*shape, input_dim, vocab_size, embed_dim, pad_id, init_recurrent)
        super().__init__(net=net, num_classes=num_classes, **kwargs)


class GRURegressor(Regressor):
    """A GRU that predicts numbers from a sequence.

    Args:
        dim: width of the state of a direction.
        depth: number of recurrent layers.
        bidirectional: read backwards too; states of both directions stand beside each other.
        dropout: share dropped between layers (where there are several) and in the head.
        pooling: what is made of the states: ``last`` (valid one), ``mean``, ``max`` or ``attention``.
        hidden: width of a hidden layer in the head; 0 for none.
        embed_dim: width of the vector of a token.
        init_recurrent: orthogonal recurrent and Xavier input weights, biases 0, in place of torch's uniform
            ones.
        input_dim: numbers a step, for sequences of vectors; null takes it from the data.
        vocab_size: number of tokens, for sequences of these; null takes it from the data.
        pad_id: the padding token; null takes it from the data, or there is none.
        output_dim: number of targets; null takes it from the data.
    """

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
        outputs = need(self, output_dim=output_dim)
        shape = (outputs, dim, depth, bidirectional, dropout, pooling, hidden)
        net = GRU(*shape, input_dim, vocab_size, embed_dim, pad_id, init_recurrent)
        super().__init__(net=net, **kwargs)


class GRUTagger(Tagger):
    """A GRU that gives each step of a sequence a class.

    Args:
        dim: width of the state of a direction.
        depth: number of recurrent layers.
        bidirectional: read backwards too; states of both directions stand beside each other.
        dropout: share dropped between layers (where there are several) and in the head.
        hidden: width of a hidden layer in the head; 0 for none.
        embed_dim: width of the vector of a token.
        init_recurrent: orthogonal recurrent and Xavier input weights, biases 0, in place of torch's uniform
            ones.
        input_dim: numbers a step, for sequences of vectors; null takes it from the data.
        vocab_size: number of tokens, for sequences of these; null takes it from the data.
        pad_id: the padding token; null takes it from the data, or there is none.
        num_classes: number of classes; null takes it from the data.
    """

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
        outputs = need(self, num_classes=num_classes)
        shape = (outputs, dim, depth, bidirectional, dropout, None, hidden)
        net = GRU(*shape, input_dim, vocab_size, embed_dim, pad_id, init_recurrent)
        super().__init__(net=net, num_classes=num_classes, **kwargs)
