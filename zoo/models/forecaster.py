"""LSTM and GRU forecasters: direct (Wen et al. 2017, https://arxiv.org/abs/1711.11053) or autoregressive."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.layers.padded_rnn import AutocastLSTM
from zoo.layers.recurrent import initialize_recurrent
from zoo.tasks import Forecaster, require
from zoo.tasks.forecasting import check_quantiles

Decoding = Literal["direct", "autoregressive"]
States = Tensor | tuple[Tensor, Tensor]


class RevIN(nn.Module):
    """Reversible instance normalisation (RevIN; Kim et al. 2022, https://openreview.net/forum?id=cGDAkQo1C0p).

    Normalises the target of each window by its mean and standard deviation, and denormalises the forecast. Covariates
    are not normalised, as they are not forecast. Without the paper's epsilon on the learned scale the inverse is exact.

    Args:
        eps: epsilon added to the variance.
    """

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(
        self, x: Float[Tensor, "b t"] | Float[Tensor, "b h o"], statistics: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Normalise each row and return its statistics ``(b, 1)``; with statistics, denormalise by them."""
        if statistics is None:
            var, mean = torch.var_mean(x.detach(), 1, correction=0, keepdim=True)
            std = (var + self.eps).sqrt()
            return (x - mean) / std * self.weight + self.bias, (mean, std)
        mean, std = statistics
        shape = (-1, *[1] * (x.ndim - 1))  # one value per row
        normalized = (x - self.bias) / self.weight
        return normalized * std.view(shape) + mean.view(shape), statistics


class DirectDecoder(nn.Module):
    """Direct multi-step decoder: a context per step from the final state, and an MLP of context and covariates.

    Without covariates it is one linear layer.

    Args:
        dim: hidden dimension.
        horizon: number of steps to forecast.
        future_dim: number of covariates per step.
        outputs: number of outputs per step.
    """

    def __init__(self, dim: int, horizon: int, future_dim: int, outputs: int) -> None:
        super().__init__()
        self.horizon = horizon
        width = dim if future_dim else outputs
        self.context = nn.Linear(dim, horizon * width)
        # built in any case: its random numbers decide what a seed gives
        step = nn.Sequential(nn.Linear(dim + future_dim, dim), nn.ReLU(), nn.Linear(dim, outputs))
        self.step = step if future_dim else None

    def forward(
        self, states: States, last: Float[Tensor, "b 1"], future: Float[Tensor, "b h k"] | None
    ) -> Float[Tensor, "b h o"]:
        if isinstance(states, tuple):  # h and c of an LSTM
            states = states[0]
        top = states[-1]  # (b, dim)
        context = self.context(top).unflatten(1, (self.horizon, -1))  # (b, horizon, width)
        if self.step is None or future is None:
            return context
        return self.step(torch.cat([context, future], 2))


class AutoregressiveDecoder(nn.Module):
    """Autoregressive decoder: each step's input is the previous forecast (the median) and the step's covariates.

    Training feeds back forecasts as well, without teacher forcing.

    Args:
        rnn: recurrent layers with ``1 + future_dim`` inputs, which start from the encoder's states.
        horizon: number of steps to forecast.
        outputs: number of outputs per step.
        feedback_index: index of the output that is fed back.
    """

    def __init__(self, rnn: nn.LSTM | nn.GRU, horizon: int, outputs: int, feedback_index: int = 0) -> None:
        super().__init__()
        self.rnn = rnn
        self.horizon = horizon
        self.feedback_index = feedback_index
        self.out = nn.Linear(rnn.hidden_size, outputs)

    def forward(
        self, states: States, last: Float[Tensor, "b 1"], future: Float[Tensor, "b h k"] | None
    ) -> Float[Tensor, "b h o"]:
        steps = []
        for i in range(self.horizon):
            inputs = last  # (b, 1)
            if future is not None:
                inputs = torch.cat([last, future[:, i]], 1)  # (b, 1 + k)
            top, states = self.rnn(inputs.unsqueeze(1), states)  # (b, 1, dim)
            step = self.out(top.squeeze(1))  # (b, o)
            steps.append(step)
            last = step[:, self.feedback_index : self.feedback_index + 1]
        return torch.stack(steps, 1)


class LSTMForecastNet(nn.Module):
    """LSTM encoder over the past, and a decoder that forecasts the next steps from its final states.

    Args:
        input_dim: features per step of the past, the target first.
        horizon: number of steps to forecast.
        dim: hidden dimension.
        depth: number of layers.
        dropout: dropout probability between layers.
        future_dim: number of covariates per step that are known in advance; 0 for none.
        quantiles: quantiles to forecast, 0.5 among them; null for a point forecast.
        decoding: ``direct``, all steps at once, or ``autoregressive``, each from the previous one.
        revin: reversible instance normalisation of the target.
        init_recurrent: initialise recurrent weights orthogonally, input weights by Xavier, biases with 0 and an LSTM's
            forget gates with 1, instead of torch's uniform initialisation.
    """

    layer: ClassVar[type[nn.LSTM] | type[nn.GRU]] = AutocastLSTM

    def __init__(
        self,
        input_dim: int,
        horizon: int,
        dim: int,
        depth: int = 1,
        dropout: float = 0.0,
        future_dim: int = 0,
        quantiles: list[float] | None = None,
        decoding: Decoding = "direct",
        revin: bool = False,
        init_recurrent: bool = False,
    ) -> None:
        super().__init__()
        if decoding not in get_args(Decoding):
            raise ValueError(f"decoding must be {' or '.join(get_args(Decoding))}, got {decoding!r}")
        levels = check_quantiles(quantiles)
        self.shape = (input_dim, horizon, future_dim)
        self.quantiles = levels
        outputs = max(1, len(levels))
        between = dropout if depth > 1 else 0.0  # torch warns of a dropout without a second layer
        self.revin = RevIN() if revin else None
        self.encoder = self.layer(input_dim, dim, depth, batch_first=True, dropout=between)
        if decoding == "direct":
            self.decoder = DirectDecoder(dim, horizon, future_dim, outputs)
        else:
            rnn = self.layer(1 + future_dim, dim, depth, batch_first=True, dropout=between)
            median = levels.index(0.5) if levels else 0
            self.decoder = AutoregressiveDecoder(rnn, horizon, outputs, median)
        if init_recurrent:
            for module in self.modules():
                if isinstance(module, self.layer):
                    initialize_recurrent(module)

    def forward(
        self, past: Float[Tensor, "b t d"], future: Float[Tensor, "b h k"] | None = None
    ) -> Float[Tensor, "b h"] | Float[Tensor, "b h q"]:
        self._check(past, future)
        target = past[:, :, 0]  # (b, t)
        statistics = None
        if self.revin is not None:
            target, statistics = self.revin(target)
            past = torch.cat([target.unsqueeze(2), past[:, :, 1:]], 2)
        _, states = self.encoder(past)
        out = self.decoder(states, target[:, -1:], future)  # (b, horizon, outputs)
        if self.revin is not None:
            out, _ = self.revin(out, statistics)
        if self.quantiles:
            return out
        return out.squeeze(2)

    def _check(self, past: Tensor, future: Tensor | None) -> None:
        width, horizon, future_dim = self.shape
        if past.ndim != 3 or past.shape[2] != width:
            raise ValueError(f"expected the past (b, t, {width}) of series, got {tuple(past.shape)}")
        expected = (past.shape[0], horizon, future_dim) if future_dim else None
        shape = None if future is None else tuple(future.shape)
        if shape != expected:
            wanted = expected or "no covariates"
            raise ValueError(f"expected future covariates {wanted} (future_dim={future_dim}), got {shape}")


class GRUForecastNet(LSTMForecastNet):
    """GRU encoder (Cho et al. 2014) over the past, and a decoder; arguments as for ``LSTMForecastNet``."""

    layer = nn.GRU


class LSTMForecaster(Forecaster):
    """LSTM time series forecaster.

    Args:
        dim: hidden dimension.
        depth: number of recurrent layers.
        dropout: dropout probability between layers.
        decoding: ``direct``, all steps at once, or ``autoregressive``, each from the previous one.
        revin: reversible instance normalisation of the target (Kim et al. 2022).
        init_recurrent: initialise recurrent weights orthogonally, input weights by Xavier, biases with 0 and an LSTM's
            forget gates with 1, instead of torch's uniform initialisation.
        quantiles: quantiles to forecast, such as [0.1, 0.5, 0.9]; null for a point forecast.
        horizon: number of steps to forecast; null takes it from the data.
        input_dim: features per step of the past, the target first; null takes it from the data.
        future_dim: number of covariates per step that are known in advance; null takes it from the data, or 0.
    """

    network: ClassVar[type[LSTMForecastNet]] = LSTMForecastNet

    def __init__(
        self,
        dim: int = 64,
        depth: int = 1,
        dropout: float = 0.0,
        decoding: Decoding = "direct",
        revin: bool = False,
        init_recurrent: bool = False,
        quantiles: list[float] | None = None,
        horizon: int | None = None,
        input_dim: int | None = None,
        future_dim: int | None = None,
        **kwargs: Any,
    ) -> None:
        width, steps = require(self, input_dim=input_dim, horizon=horizon)
        net = self.network(
            width,
            steps,
            dim,
            depth,
            dropout,
            future_dim or 0,
            quantiles,
            decoding,
            revin,
            init_recurrent,
        )
        super().__init__(net=net, horizon=horizon, quantiles=quantiles, **kwargs)


class GRUForecaster(LSTMForecaster):
    """GRU time series forecaster; arguments as for ``LSTMForecaster``."""

    network = GRUForecastNet
