"""Gated recurrent unit (GRU; Cho et al. 2014, https://arxiv.org/abs/1406.1078)."""

from zoo.layers.padded_rnn import PaddedGRU
from zoo.models.lstm import LSTM, LSTMClassifier, LSTMRegressor, LSTMTagger


class GRU(LSTM):
    """GRU: layers over vectors or embedded tokens, pooling over time, and a head; arguments as for ``LSTM``."""

    layer = PaddedGRU


class GRUClassifier(LSTMClassifier):
    """GRU sequence classifier; arguments as for ``LSTMClassifier``."""

    network = GRU


class GRURegressor(LSTMRegressor):
    """GRU sequence regressor; arguments as for ``LSTMRegressor``."""

    network = GRU


class GRUTagger(LSTMTagger):
    """GRU sequence tagger: a class for each step; arguments as for ``LSTMTagger``."""

    network = GRU
