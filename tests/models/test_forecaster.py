"""Forecasters: what a forecast depends on, how it is decoded and normalised, what it is compared with."""

import csv

import lightning as L
import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import nn

from zoo.data import TimeSeries
from zoo.losses import PinballLoss
from zoo.models import GRUForecaster, GRUForecastNet, LSTMForecaster, LSTMForecastNet
from zoo.models.forecaster import RevIN
from zoo.tasks import Forecaster
from zoo.tasks.linear_forecast import PENALTIES, linear_inputs, solve_ridge, sum_of_products

NETS = [LSTMForecastNet, GRUForecastNet]
DECODINGS = ["direct", "autoregressive"]
nets = pytest.mark.parametrize("cls", NETS)
decodings = pytest.mark.parametrize("decoding", DECODINGS)


def make(cls, **kwargs) -> nn.Module:
    torch.manual_seed(0)
    return cls(**{"input_dim": 3, "horizon": 5, "dim": 7, "future_dim": 2, **kwargs}).double()


def draw(n: int = 4, context: int = 9, width: int = 3, horizon: int = 5, known: int = 2) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    past = torch.randn(n, context, width, generator=generator, dtype=torch.float64)
    return past, torch.randn(n, horizon, known, generator=generator, dtype=torch.float64)


# Networks -------------------------------------------------------------------------------------------------------------


@nets
@decodings
@pytest.mark.parametrize("depth", [1, 2])
def test_equals_the_formula_with_torch(cls, decoding, depth):
    """Outputs and gradients against torch's layers called by hand, RevIN and covariates included."""
    net, (past, future) = make(cls, decoding=decoding, depth=depth, revin=True), draw()
    with torch.no_grad():
        net.revin.weight.fill_(0.7), net.revin.bias.fill_(-0.2)
    w, b = net.revin.weight, net.revin.bias
    mean, std = past[:, :, :1].mean(1, keepdim=True), (past[:, :, :1].var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    x = torch.cat([(past[:, :, :1] - mean) / std * w + b, past[:, :, 1:]], 2)
    _, states = net.encoder(x)
    if decoding == "direct":
        top = (states[0] if cls is LSTMForecastNet else states)[-1]
        context = (top @ net.decoder.context.weight.T + net.decoder.context.bias).view(4, 5, 7)
        hidden = torch.cat([context, future], 2) @ net.decoder.step[0].weight.T + net.decoder.step[0].bias
        out = hidden.relu() @ net.decoder.step[2].weight.T + net.decoder.step[2].bias
    else:
        last, found = x[:, -1:, :1], []
        for i in range(5):
            top, states = net.decoder.rnn(torch.cat([last, future[:, i : i + 1]], 2), states)
            last = top @ net.decoder.out.weight.T + net.decoder.out.bias
            found.append(last)
        out = torch.cat(found, 1)
    expected = ((out - b) / w * std + mean).squeeze(2)
    got = net(past, future)
    assert got.shape == (4, 5)
    assert torch.allclose(got, expected, atol=1e-12)
    a = torch.autograd.grad(expected.square().sum(), net.parameters())
    c = torch.autograd.grad(got.square().sum(), net.parameters())
    assert all(torch.allclose(p, q, atol=1e-10) for p, q in zip(a, c, strict=True))


@nets
@decodings
@pytest.mark.parametrize("revin", [False, True])
def test_a_step_depends_on_no_later_one(cls, decoding, revin):
    """By gradient: each step on the whole past, and on covariates of its own time or before."""
    net, (past, future) = make(cls, decoding=decoding, revin=revin), draw()
    past.requires_grad_(), future.requires_grad_()
    out = net(past, future)
    for step in range(5):
        behind, ahead = torch.autograd.grad(out[:, step].sum(), (past, future), retain_graph=True)
        assert (behind.abs().sum((0, 2)) > 0).all()
        seen = ahead.abs().sum((0, 2)) > 0
        assert seen[step]
        assert not seen[step + 1 :].any()
        assert bool(seen[:step].any()) == (decoding == "autoregressive" and step > 0)


@nets
@decodings
def test_samples_do_not_mix(cls, decoding):
    net, (past, future) = make(cls, decoding=decoding, revin=True), draw()
    assert torch.allclose(net(past, future)[:1], net(past[:1], future[:1]), atol=1e-12)


@nets
@pytest.mark.parametrize("quantiles", [None, [0.1, 0.5], [0.05, 0.25, 0.5, 0.95]])
def test_one_step_has_the_same_shape_either_way(cls, quantiles):
    past, future = draw(horizon=1)
    shapes = [make(cls, horizon=1, decoding=d, quantiles=quantiles)(past, future).shape for d in DECODINGS]
    assert shapes[0] == shapes[1] == ((4, 1, len(quantiles)) if quantiles else (4, 1))


@nets
def test_autoregressive_feeds_back_the_median(cls):
    net, (past, future) = make(cls, decoding="autoregressive", quantiles=[0.2, 0.3, 0.5, 0.9]), draw()
    before = net(past, future)
    with torch.no_grad():
        net.decoder.out.bias[[0, 1, 3]] += 5
    moved = net(past, future) - before
    assert torch.allclose(moved[:, :, [0, 1, 3]], torch.full((4, 5, 3), 5.0).double(), atol=1e-12)
    assert moved[:, :, 2].abs().max() == 0
    with torch.no_grad():
        net.decoder.out.bias[2] += 5
    assert ((net(past, future) - before)[:, 1:, 2] - 5).abs().min() > 0


@nets
def test_without_covariates_it_is_the_layer_of_the_notes(cls):
    net, (past, _) = make(cls, future_dim=0), draw()
    _, state = net.encoder(past)
    top = (state[0] if cls is LSTMForecastNet else state)[-1]
    assert torch.allclose(net(past), net.decoder.context(top), atol=1e-12)
    assert net.decoder.step is None


@nets
@decodings
def test_recurrent_initialisation_by_option(cls, decoding):
    net = make(cls, decoding=decoding, init_recurrent=True)
    layers = [m for m in net.modules() if isinstance(m, (nn.LSTM, nn.GRU))]
    assert len(layers) == (1 if decoding == "direct" else 2)
    for rnn in layers:
        for gate in rnn.weight_hh_l0.split(7):
            assert torch.allclose(gate @ gate.T, torch.eye(7).double(), atol=1e-6)
        forget = (rnn.bias_ih_l0 + rnn.bias_hh_l0)[7:14]
        assert (forget == (1 if cls is LSTMForecastNet else 0)).all()


def test_inputs_that_do_not_fit_are_named():
    net, (past, future) = make(LSTMForecastNet), draw()
    for inputs, words in {
        (past[:, :, :2], future): r"expected the past \(b, t, 3\) of series, got \(4, 9, 2\)",
        (past, None): r"expected future covariates \(4, 5, 2\) \(future_dim=2\), got None",
        (past, future[:, :4]): r"expected .* \(4, 5, 2\) .* got \(4, 4, 2\)",
    }.items():
        with pytest.raises(ValueError, match=words):
            net(*inputs)
    with pytest.raises(ValueError, match="decoding must be direct or autoregressive, got 'beam'"):
        make(LSTMForecastNet, decoding="beam")


# Normalisation --------------------------------------------------------------------------------------------------------


def test_revin_goes_back_exactly():
    revin, x = RevIN().double(), 1e4 + 300 * draw(8, 50)[0][:, :, 0]
    with torch.no_grad():
        revin.weight.fill_(0.3), revin.bias.fill_(2.0)
    normal, statistics = revin(x)
    plain = (normal - 2.0) / 0.3
    assert plain.mean(1).abs().max() < 1e-9
    assert (plain.std(1, correction=0) - 1).abs().max() < 1e-6
    assert ((revin(normal, statistics)[0] - x) / x).abs().max() < 1e-14
    quantiles = normal.unsqueeze(2).expand(-1, -1, 3)
    assert torch.equal(revin(quantiles, statistics)[0][:, :, 1], revin(normal, statistics)[0])


@nets
@decodings
def test_revin_makes_forecasts_follow_level_and_scale(cls, decoding):
    (past, future), moved = draw(), draw()[0]
    moved[:, :, 0] = 40 * past[:, :, 0] + 1000
    net = make(cls, decoding=decoding, revin=True)
    assert torch.allclose(net(moved, future), 40 * net(past, future) + 1000, rtol=1e-5)
    without = make(cls, decoding=decoding)
    assert not torch.allclose(without(moved, future), 40 * without(past, future) + 1000, rtol=1e-2)


def test_a_constant_window_is_no_division_by_zero():
    net, (past, future) = make(LSTMForecastNet, revin=True), draw()
    past[:, :, 0] = 3.0
    out = net(past, future)
    out.sum().backward()
    assert out.isfinite().all()
    assert all(p.grad.isfinite().all() for p in net.parameters())


# Task -----------------------------------------------------------------------------------------------------------------


class Fixed(nn.Module):
    """Answers the past's last numbers, so that what a task makes of outputs is known."""

    def __init__(self, quantiles: int = 0) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))
        self.quantiles = quantiles

    def forward(self, past, future=None):
        out = past[:, -3:, 0] + self.shift
        return torch.stack([out - i for i in range(self.quantiles)], 2) if self.quantiles else out


def windows() -> tuple:
    past, y = torch.randn(6, 5, 1, generator=torch.Generator().manual_seed(0)), torch.randn(6, 3)
    about = {
        "mean": torch.full((6,), 10.0),
        "std": torch.tensor([1.0, 2, 3, 4, 5, 6]),
        "error": torch.tensor([1.0, 1, 2, 2, 3, 3]),
        "observed": torch.arange(18).view(6, 3) % 5 != 0,
        "seasonal_naive": torch.randn(6, 3),
    }
    return ((past,), y, about)


def evaluate(module: Forecaster, batch: tuple, stage: str = "test") -> dict:
    module.step(batch, stage)
    return {k: float(v) for k, v in module.compute_metrics(stage).items()}


def test_metrics_are_in_the_targets_own_units_and_skip_what_was_not_observed():
    (past,), y, about = batch = windows()
    found = evaluate(Forecaster(Fixed(), horizon=3), batch)
    keep, std = about["observed"].numpy(), about["std"].numpy()[:, None]
    truth, scale = y.numpy() * std + 10, about["error"].numpy()[:, None]

    def errors(forecast: np.ndarray) -> np.ndarray:
        return np.abs(forecast * std + 10 - truth)

    own = past[:, -3:, 0].numpy()
    assert found["mae"] == pytest.approx(errors(own)[keep].mean(), rel=1e-5)
    assert found["rmse"] == pytest.approx(np.sqrt((errors(own)[keep] ** 2).mean()), rel=1e-5)
    assert found["mase"] == pytest.approx((errors(own) / scale)[keep].mean(), rel=1e-5)
    both = np.abs(own * std + 10) + np.abs(truth)
    assert found["smape"] == pytest.approx((2 * errors(own) / both)[keep].mean(), rel=1e-5)
    assert found["mae_naive"] == pytest.approx(errors(past[:, -1:, 0].numpy())[keep].mean(), rel=1e-5)
    seasonal = errors(about["seasonal_naive"].numpy())[keep].mean()
    assert found["mae_seasonal_naive"] == pytest.approx(seasonal, rel=1e-5)
    assert found["skill"] == pytest.approx(1 - found["mae"] / seasonal, rel=1e-4)


def test_loss_and_count_take_observed_targets_only():
    (past,), y, about = batch = windows()
    module = Forecaster(Fixed(), horizon=3)
    keep = about["observed"]
    assert module.step(batch, "train") == nn.MSELoss()(past[:, -3:, 0][keep], y[keep])
    assert module.num_items(batch) == pytest.approx(int(keep.sum()) / 3)
    wild = y.masked_fill(~keep, 1e9)
    assert torch.equal(module.step(((past,), wild, about), "train"), module.step(batch, "train"))
    assert evaluate(module, batch) == pytest.approx(evaluate(Forecaster(Fixed(), horizon=3), ((past,), wild, about)))


def test_quantiles_that_cross_are_sorted():
    (past,), y, about = batch = windows()
    module = Forecaster(Fixed(3), horizon=3, quantiles=[0.1, 0.5, 0.9])  # gives the highest first
    out = module(past)
    assert (out.diff(dim=2) > 0).all()
    assert torch.equal(out[:, :, 1], past[:, -3:, 0] - 1)
    raw = module.net(past)[about["observed"]]
    assert torch.equal(module.step(batch, "train"), PinballLoss([0.1, 0.5, 0.9])(raw, y[about["observed"]]))
    module.step(batch, "val")
    coverage = ((out[..., 0] <= y) & (y <= out[..., 2]))[about["observed"]].float().mean()
    total = float(coverage) * int(about["observed"].sum())
    assert float(module._running_means["val"].sums["coverage"]) == pytest.approx(total)
    columns = module.predict_step(((past,), y, about), 0)
    assert columns["forecast"] == columns["q0.5"]
    assert all(a < b < c for a, b, c in zip(columns["q0.1"], columns["q0.5"], columns["q0.9"], strict=True))


def test_a_plain_batch_is_enough():
    module = LSTMForecaster(dim=4, horizon=3, input_dim=1)
    (past,), y, _ = windows()
    assert torch.isfinite(module.step((past, y), "val"))
    assert set(module.compute_metrics("val")) == {"mae", "rmse", "smape"}, "mase needs a unit"


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"quantiles": [0.9, 0.5]}, r"quantiles must rise between 0 and 1, with 0.5 among them, got \[0.9, 0.5\]"),
        ({"quantiles": [0.1, 0.9]}, "with 0.5 among them"),
        ({"quantiles": [0.5, 1.0]}, "between 0 and 1"),
        ({"quantiles": []}, "with 0.5 among them"),
        ({"quantiles": [0.1, 0.5], "loss": nn.L1Loss()}, "PinballLoss is the loss of quantiles"),
        ({"loss": PinballLoss([0.5])}, "PinballLoss is the loss of quantiles"),
        ({"loss": nn.CrossEntropyLoss()}, "CrossEntropyLoss cannot learn numbers"),
        ({"horizon": None}, "LSTMForecaster needs horizon"),
        ({"input_dim": None}, "LSTMForecaster needs input_dim"),
    ],
)
def test_mistakes(kwargs, words):
    with pytest.raises(ValueError, match=words):
        LSTMForecaster(**{"horizon": 3, "input_dim": 1, **kwargs})


def test_another_horizon_is_named():
    (past,), y, _ = windows()
    with pytest.raises(ValueError, match=r"the network forecasts \(6, 4\), the targets \(6, 3\) need \(6, 3\)"):
        LSTMForecaster(dim=4, horizon=4, input_dim=1).step((past, y), "train")


# Against the linear forecast ------------------------------------------------------------------------------------------


def test_linear_forecast_is_ridge_regression_on_differences_from_the_last_value():
    data = TimeSeries(name="google_volume", past=["log_range"], calendar=["day_of_week"], context=20, horizon=4)
    table = {}
    for split in ("train", "val", "test"):
        chosen = data.datasets[split]
        (past, future), y, about = chosen.batch(torch.arange(len(chosen)))
        past, future = past.double().numpy(), future.double().numpy()
        last = past[:, -1:, 0].copy()
        past[:, :, 0] -= last
        x = np.concatenate([past.reshape(len(y), -1), future.reshape(len(y), -1)], 1)
        table[split] = x, y.double().numpy(), last, about["observed"].all(1).numpy()
    x, y, last, whole = table["train"]
    trials = []
    for penalty in PENALTIES:
        ridge = Ridge(alpha=penalty, solver="cholesky").fit(x[whole], (y - last)[whole])
        vx, vy, vlast, vwhole = table["val"]
        trials.append((np.square(ridge.predict(vx) + vlast - vy)[vwhole].mean(), penalty, ridge))
    _, penalty, best = min(trials, key=lambda trial: trial[0])
    assert PENALTIES[0] < penalty < PENALTIES[-1]
    sums = [sum_of_products(getattr(data, f"{s}_dataloader")()) for s in ("train", "val")]
    weights = solve_ridge(*sums, horizon=4)
    chosen = data.datasets["test"]
    rows, anchor = linear_inputs(chosen.batch(torch.arange(len(chosen))))
    tx, _, tlast, _ = table["test"]
    assert np.allclose((rows @ weights + anchor).numpy(), best.predict(tx) + tlast, atol=1e-6)


# Whole runs -----------------------------------------------------------------------------------------------------------


def test_learns_and_beats_naive_forecasts(tmp_path, capfd):
    """Through the command line, on the series of a real file: a noisy season of 12 with a trend, in two series."""
    from zoo.cli import main

    generator, t = np.random.default_rng(0), np.arange(420)
    with open(tmp_path / "s.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "month", "sales"])
        for name, scale in (("north", 1.0), ("south", 50.0)):
            y = scale * (8 + 0.02 * t + 2 * np.sin(2 * np.pi * t / 12) + generator.normal(0, 0.6, 420))
            writer.writerows([name, f"{np.datetime64('1980-01') + i}-01", v] for i, v in enumerate(y.tolist()))
    args = (
        f"--data TimeSeries --data.file {tmp_path}/s.csv --data.time month --data.target sales --data.series id"
        " --data.context 24 --data.horizon 6 --data.batch_size 32 --model LSTMForecaster --model.dim 16"
        " --model.revin true --model.lr 1e-2 --model.quantiles [0.1,0.5,0.9] --model.lr_scheduler OneCycle"
        f" --trainer.max_epochs 6 --trainer.gradient_clip_val 1 --run_dir {tmp_path}/run"
    )
    assert main(["fit", *args.split()]) == 0, capfd.readouterr().err
    checkpoint = f"{tmp_path}/run/checkpoints/last.ckpt"
    capfd.readouterr()
    assert main(["test", "--ckpt_path", checkpoint]) == 0
    lines = capfd.readouterr().out.splitlines()
    found = dict(line.split() for line in lines if "test/" in line)
    assert float(found["test/skill"]) > 0.1, found
    assert float(found["test/mae"]) < 0.8 * float(found["test/mae_naive"])
    assert 0.5 < float(found["test/coverage"]) < 1
    head = next(i for i, line in enumerate(lines) if line.split() == ["mae", "rmse", "mase", "smape"])
    table = {line.split()[0]: float(line.split()[1]) for line in lines[head + 1 : head + 5]}
    assert list(table) == ["model", "naive", "seasonal_naive", "linear"]
    assert table["linear"] == pytest.approx(float(found["test/mae_linear"]), rel=1e-3)
    assert main(["predict", "--ckpt_path", checkpoint, "--out", f"{tmp_path}/p.csv"]) == 0
    with open(tmp_path / "p.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["series", "time", "step", "sales", "q0.1", "q0.5", "q0.9"]
    assert [(r["series"], r["time"], r["step"]) for r in (rows[0], rows[6], rows[-1])] == [
        ("north", "2015-01-01", "1"), ("south", "2015-01-01", "1"), ("south", "2015-06-01", "6"),
    ]  # fmt: skip
    means = [np.mean([float(r["sales"]) for r in rows if r["series"] == name]) for name in ("north", "south")]
    assert 12 < means[0] < 21
    assert 600 < means[1] < 1050
    capfd.readouterr()
    assert main(["test", "--ckpt_path", checkpoint, "--data.horizon", "5"]) == 2
    assert "--model.horizon is 6, but TimeSeries has horizon 5" in capfd.readouterr().err


def test_accumulated_windows_with_gaps_equal_one_batch(tmp_path):
    """Unobserved targets make micro-batches unequal: the gradient is still that of all targets together."""
    found = []
    for size, windows_a_step in ((8, 4), (32, 1)):
        torch.manual_seed(0)
        module = GRUForecaster(dim=4, horizon=5, input_dim=1, optimizer=torch.optim.SGD, lr=0.1)
        data = TimeSeries(name="google_volume", context=10, horizon=5, batch_size=size)
        trainer = L.Trainer(
            max_steps=3, accelerator="cpu", precision="64-true", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path, limit_val_batches=0,
            accumulate_grad_batches=windows_a_step,
        )  # fmt: skip
        trainer.fit(module, data)
        found.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
    assert (found[0] - found[1]).abs().max() < 1e-12
