"""Gated recurrent unit (Cho et al. 2014, https://arxiv.org/abs/1406.1078): all as for an LSTM, but for the layer."""

from zoo.layers.padded_rnn import PaddedGRU
from zoo.models.lstm import LSTM, LSTMClassifier, LSTMRegressor, LSTMTagger


class GRU(LSTM):
    """GRU layers over vectors or embedded tokens, pooling over time, and a head: ``LSTM`` with two gates for three."""

    layer = PaddedGRU


class GRUClassifier(LSTMClassifier):
    """A GRU that tells sequences apart; arguments as of ``LSTMClassifier``."""

    network = GRU


class GRURegressor(LSTMRegressor):
    """A GRU that predicts numbers from a sequence; arguments as of ``LSTMRegressor``."""

    network = GRU


class GRUTagger(LSTMTagger):
    """A GRU that gives each step of a sequence a class; arguments as of ``LSTMTagger``."""

    network = GRU
