"""Recurrent forecasters: direct (Wen et al. 2017, https://arxiv.org/abs/1711.11053) or step by step."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.layers.recurrent import initialize_recurrent
from zoo.tasks import Forecaster, require
from zoo.tasks.forecasting import check_quantiles

Decoding = Literal["direct", "autoregressive"]
States = Tensor | tuple[Tensor, Tensor]


class RevIN(nn.Module):
    """Take a window's own mean and deviation out of its target, and put them back into its forecast.

    Reversible instance normalisation (Kim et al. 2022, https://openreview.net/forum?id=cGDAkQo1C0p). Only the target is
    normalised: covariates have no forecast to put theirs back into. Without the paper's epsilon beside the learned
    scale the way back is exact.

    Args:
        eps: added to the variance.
    """

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight, self.bias = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))

    def forward(
        self, x: Float[Tensor, "b t"] | Float[Tensor, "b h o"], statistics: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Normalise each row by its statistics, and return these too; or, given statistics, go back."""
        if statistics is None:
            var, mean = torch.var_mean(x.detach(), 1, correction=0, keepdim=True)
            std = (var + self.eps).sqrt()
            return (x - mean) / std * self.weight + self.bias, (mean, std)
        mean, std = (s.view(-1, *[1] * (x.ndim - 1)) for s in statistics)
        return (x - self.bias) / self.weight * std + mean, statistics


class DirectDecoder(nn.Module):
    """All steps at once: the state becomes a context for each step, which with the step's covariates is its forecast.

    Without covariates it is one linear layer, as in the notes.

    Args:
        dim: width of the state.
        horizon: steps to forecast.
        future_dim: covariates a step.
        outputs: numbers a step.
    """

    def __init__(self, dim: int, horizon: int, future_dim: int, outputs: int) -> None:
        super().__init__()
        self.horizon = horizon
        self.context = nn.Linear(dim, horizon * (dim if future_dim else outputs))
        step = nn.Sequential(nn.Linear(dim + future_dim, dim), nn.ReLU(), nn.Linear(dim, outputs))
        self.step = step if future_dim else None

    def forward(
        self, states: States, last: Float[Tensor, "b 1"], future: Float[Tensor, "b h k"] | None
    ) -> Float[Tensor, "b h o"]:
        top = states[0][-1] if isinstance(states, tuple) else states[-1]
        context = self.context(top).unflatten(1, (self.horizon, -1))
        return context if self.step is None or future is None else self.step(torch.cat([context, future], 2))


class AutoregressiveDecoder(nn.Module):
    """Step by step: a forecast (of quantiles the median) and the next step's covariates lead to the next forecast.

    It learns as it forecasts, from its own steps and not the true ones.

    Args:
        rnn: goes on from the encoder's states; takes ``1 + future_dim`` numbers a step.
        horizon: steps to forecast.
        outputs: numbers a step.
        feedback_index: which of them leads to the next step.
    """

    def __init__(self, rnn: nn.LSTM | nn.GRU, horizon: int, outputs: int, feedback_index: int = 0) -> None:
        super().__init__()
        self.rnn, self.horizon, self.feedback_index = rnn, horizon, feedback_index
        self.out = nn.Linear(rnn.hidden_size, outputs)

    def forward(
        self, states: States, last: Float[Tensor, "b 1"], future: Float[Tensor, "b h k"] | None
    ) -> Float[Tensor, "b h o"]:
        steps = []
        for i in range(self.horizon):
            known = last if future is None else torch.cat([last, future[:, i]], 1)
            top, states = self.rnn(known.unsqueeze(1), states)
            steps.append(self.out(top.squeeze(1)))
            last = steps[-1][:, self.feedback_index : self.feedback_index + 1]
        return torch.stack(steps, 1)


class LSTMForecastNet(nn.Module):
    """An LSTM that reads the past, and a decoder that forecasts the next steps from its last states.

    Args:
        input_dim: numbers a step of the past, the target first.
        horizon: steps to forecast.
        dim: width of the state.
        depth: number of layers.
        dropout: share dropped between layers, where there are several.
        future_dim: covariates a step that are known in advance; 0 for none.
        quantiles: which to forecast, 0.5 among them; null forecasts one number a step.
        decoding: ``direct``, all steps at once, or ``autoregressive``, each from the one before.
        revin: normalise the target of each window by itself, and undo it in the forecast.
        init_recurrent: orthogonal recurrent and Xavier input weights, biases 0 but 1 for an LSTM's forget gates, in
            place of torch's uniform ones.
    """

    layer: ClassVar[type[nn.LSTM] | type[nn.GRU]] = nn.LSTM

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
        self.quantiles, outputs, between = levels, max(1, len(levels)), dropout if depth > 1 else 0.0
        self.revin = RevIN() if revin else None
        self.encoder = self.layer(input_dim, dim, depth, batch_first=True, dropout=between)
        if decoding == "direct":
            self.decoder = DirectDecoder(dim, horizon, future_dim, outputs)
        else:
            rnn = self.layer(1 + future_dim, dim, depth, batch_first=True, dropout=between)
            self.decoder = AutoregressiveDecoder(rnn, horizon, outputs, levels.index(0.5) if levels else 0)
        for rnn in self.modules() if init_recurrent else []:
            if isinstance(rnn, self.layer):
                initialize_recurrent(rnn)

    def forward(
        self, past: Float[Tensor, "b t d"], future: Float[Tensor, "b h k"] | None = None
    ) -> Float[Tensor, "b h"] | Float[Tensor, "b h q"]:
        self._check(past, future)
        target, units = past[:, :, 0], None
        if self.revin is not None:
            target, units = self.revin(target)
            past = torch.cat([target.unsqueeze(2), past[:, :, 1:]], 2)
        _, states = self.encoder(past)
        out = self.decoder(states, target[:, -1:], future)
        if self.revin is not None:
            out, _ = self.revin(out, units)
        return out if self.quantiles else out.squeeze(2)

    def _check(self, past: Tensor, future: Tensor | None) -> None:
        width, horizon, known = self.shape
        if past.ndim != 3 or past.shape[2] != width:
            raise ValueError(f"the past (b, t, {width}) of series needed, got {tuple(past.shape)}")
        given = None if future is None else tuple(future.shape)
        if given != ((len(past), horizon, known) if known else None):
            need = f"({len(past)}, {horizon}, {known})" if known else "no covariates"
            raise ValueError(f"known in advance: {need} needed (future_dim={known}), got {given}")


class GRUForecastNet(LSTMForecastNet):
    """A GRU (Cho et al. 2014) that reads the past, and a decoder: ``LSTMForecastNet`` with two gates for three."""

    layer = nn.GRU


class LSTMForecaster(Forecaster):
    """An LSTM that forecasts the next steps of series.

    Args:
        dim: width of the state.
        depth: number of recurrent layers.
        dropout: share dropped between layers, where there are several.
        decoding: ``direct``, all steps at once, or ``autoregressive``, each from the one before.
        revin: normalise the target of each window by itself, and undo it in the forecast (Kim et al. 2022).
        init_recurrent: orthogonal recurrent and Xavier input weights, biases 0 but 1 for an LSTM's forget gates, in
            place of torch's uniform ones.
        quantiles: which to forecast, such as [0.1, 0.5, 0.9]; null forecasts one number a step.
        horizon: steps to forecast; null takes it from the data.
        input_dim: numbers a step of the past, the target first; null takes it from the data.
        future_dim: covariates a step that are known in advance; null takes it from the data, or 0.
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
        shape = (width, steps, dim, depth, dropout, future_dim or 0)
        net = self.network(*shape, quantiles, decoding, revin, init_recurrent)
        super().__init__(net=net, horizon=horizon, quantiles=quantiles, **kwargs)


class GRUForecaster(LSTMForecaster):
    """A GRU that forecasts the next steps of series; arguments as of ``LSTMForecaster``."""

    network = GRUForecastNet
