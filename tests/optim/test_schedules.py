"""The learning rate of every step, against the formulas written out once more here."""

import io
import math
from functools import partial

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.optim import SGD, Adagrad, AdamW, Muon, RMSprop
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from zoo.callbacks import BestAndLast
from zoo.data import Quadrants
from zoo.models import MLPClassifier
from zoo.optim import (
    Constant,
    Lion,
    MultiOptimizer,
    OneCycle,
    Plateau,
    StepDecay,
    WarmupCosine,
    WarmupLinear,
    WarmupStableDecay,
    build_optimizer,
)
from zoo.optim.curves import anneal, to_steps
from zoo.optim.plateau import plateau_monitor

TOTAL = 40


def rising(i, warmup):
    return min(1.0, (i + 1) / warmup) if warmup else 1.0


def cosine(i, total, warmup, floor):
    if i < warmup:
        return (i + 1) / warmup
    peak = max(warmup - 1, 0)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (i - peak) / (total - 1 - peak)))


def line(i, total, warmup, floor):
    if i < warmup:
        return (i + 1) / warmup
    peak = max(warmup - 1, 0)
    return floor + (1 - floor) * (total - 1 - i) / (total - 1 - peak)


def stable(i, total, warmup, decay, floor, shape):
    decay = min(decay, total - 1)
    into = max(0.0, (i - (total - 1 - decay)) / decay)
    return min(rising(i, warmup), floor + (1 - floor) * shape(into))


def cycle(i, total):
    peak = 0.3 * total - 1
    if i <= peak:
        return 1 / 25 + (1 - 1 / 25) * 0.5 * (1 - math.cos(math.pi * i / peak))
    low = 1 / 25 / 1e4
    return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * (i - peak) / (total - 1 - peak)))


# name: class with its options, formula of (step, total)
CASES = {
    "cosine": (WarmupCosine, lambda i, n: cosine(i, n, round(0.05 * n), 0.0)),
    "cosine, 6 steps, floor": (partial(WarmupCosine, warmup=6, min_ratio=0.1), lambda i, n: cosine(i, n, 6, 0.1)),
    "cosine, no warmup": (partial(WarmupCosine, warmup=0), lambda i, n: cosine(i, n, 0, 0.0)),
    "linear": (partial(WarmupLinear, warmup=0.2, min_ratio=0.05), lambda i, n: line(i, n, round(0.2 * n), 0.05)),
    "stable": (
        partial(WarmupStableDecay, warmup=5),
        lambda i, n: stable(i, n, 5, round(0.2 * n), 0.0, lambda t: 1 - t),
    ),
    "stable, sqrt": (
        partial(WarmupStableDecay, warmup=0, decay=10, min_ratio=0.1, shape="sqrt"),
        lambda i, n: stable(i, n, 0, 10, 0.1, lambda t: 1 - t**0.5),
    ),
    "stable, cosine": (
        partial(WarmupStableDecay, warmup=0.6, decay=0.6, shape="cosine"),
        lambda i, n: stable(i, n, round(0.6 * n), round(0.6 * n), 0, lambda t: 0.5 + 0.5 * math.cos(math.pi * t)),
    ),
    "one cycle": (OneCycle, cycle),
    "step": (StepDecay, lambda i, n: 0.1 ** ((i >= round(n / 2)) + (i >= round(3 * n / 4)))),
    "step, mixed": (
        partial(StepDecay, milestones=[30, 0.25], gamma=0.5, warmup=4),
        lambda i, n: rising(i, 4) * 0.5 ** ((i >= 30) + (i >= round(n / 4))),
    ),
    "constant": (Constant, lambda i, n: 1.0),
    "constant, warmup": (partial(Constant, warmup=0.1), lambda i, n: rising(i, round(0.1 * n))),
}
PEAKS = [1e-3, 0.05]


def make_optimizer(cls=SGD):
    params = [nn.Parameter(torch.ones(2, 2)) for _ in PEAKS]
    return cls([{"params": [p], "lr": lr} for p, lr in zip(params, PEAKS, strict=True)], 1.0)


def rates(optimizer):
    return [float(group["lr"]) for group in optimizer.param_groups]


def trace(optimizer, schedule, steps):
    """The rates that each of so many updates uses."""
    used = []
    for _ in range(steps):
        used.append(rates(optimizer))
        assert schedule.get_last_lr() == used[-1]
        optimizer.step()
        schedule.step()
    return used


def expected(formula, steps, total):
    return [[peak * formula(min(i, total - 1), total) for peak in PEAKS] for i in steps]


@pytest.mark.parametrize("case", CASES)
def test_trace_is_the_formula(case):
    build, formula = CASES[case]
    optimizer = make_optimizer()
    schedule = build(optimizer, TOTAL)
    assert schedule.interval == "step"
    used = trace(optimizer, schedule, TOTAL + 3)
    torch.testing.assert_close(used, expected(formula, range(TOTAL + 3), TOTAL), rtol=1e-12, atol=1e-18)
    assert used == [[peak * schedule.factor(i) for peak in PEAKS] for i in range(TOTAL + 3)]
    assert used[0][0] > 0
    assert used[TOTAL - 1] == used[TOTAL] == used[TOTAL + 2]


@pytest.mark.parametrize("total", [TOTAL, 80])
@pytest.mark.parametrize("case", CASES)
def test_resumed_with_the_same_and_with_more_steps(case, total):
    build, formula = CASES[case]
    optimizer = make_optimizer()
    schedule = build(optimizer, TOTAL)
    trace(optimizer, schedule, 13)
    file = io.BytesIO()
    torch.save([optimizer.state_dict(), schedule.state_dict()], file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)

    again = make_optimizer()
    for group in again.param_groups:
        group["lr"] = 7.0
    resumed = build(again, total)
    again.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    used = trace(again, resumed, total - 13)
    torch.testing.assert_close(used, expected(formula, range(13, total), total), rtol=1e-12, atol=1e-18)
    if total == TOTAL:
        assert used == trace(optimizer, schedule, total - 13)


def momenta(optimizer):
    return [group["betas"] if "betas" in group else group.get("momentum") for group in optimizer.param_groups]


@pytest.mark.parametrize("cls", [SGD, partial(SGD, momentum=0.9, nesterov=True), RMSprop, AdamW, Lion, Muon])
@pytest.mark.parametrize("total", [4, 7, 101])
@pytest.mark.parametrize("more", [{}, {"base_momentum": 0.6, "max_momentum": 0.7}, {"cycle_momentum": False}])
def test_one_cycle_has_torchs_numbers(total, cls, more):
    ours, theirs = make_optimizer(cls), make_optimizer(cls)
    options = {"pct_start": 0.4, "div_factor": 10.0, "final_div_factor": 100.0, **more}
    schedule, torchs = OneCycle(ours, total, **options), OneCycleLR(theirs, PEAKS, total, **options)
    for _ in range(total):
        torch.testing.assert_close(rates(ours), rates(theirs), rtol=1e-12, atol=1e-18)
        torch.testing.assert_close(momenta(ours), momenta(theirs), rtol=1e-12, atol=0)
        for step in (ours.step, schedule.step, theirs.step, torchs.step):
            step()


def test_one_cycle_moves_the_momenta_that_there_are():
    """In MultiOptimizer, whose members differ, and beside an optimizer without any, where torch's gives up."""
    matrix, vector, other = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = MultiOptimizer([Muon([matrix], 0.1), AdamW([vector], 0.1), Adagrad([other], 0.1)])
    schedule = OneCycle(optimizer, 10)
    for step in range(10):
        assert momenta(optimizer) == [schedule.momentum(step), (schedule.momentum(step), 0.999), None]
        optimizer.step()
        schedule.step()
    assert schedule.momentum(2) == pytest.approx(0.85)


@pytest.mark.parametrize("total", [TOTAL, 80])
def test_one_cycle_resumes_its_momentum(total):
    optimizer = make_optimizer(AdamW)
    schedule = OneCycle(optimizer, TOTAL)
    trace(optimizer, schedule, 13)
    again = make_optimizer(AdamW)
    resumed = OneCycle(again, total)
    again.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    assert momenta(again) == [(resumed.momentum(13), 0.999)] * 2
    assert (momenta(again) == momenta(optimizer)) == (total == TOTAL)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("total", [1, 2, 3, 10])
def test_short_runs(case, total):
    """fast_dev_run and the like: never an error, never above the peak, never zero at once."""
    schedule = CASES[case][0](make_optimizer(), total)
    factors = [schedule.factor(i) for i in range(total)]
    assert all(0 <= f <= 1 for f in factors)
    assert factors[0] > 0


def test_a_finder_may_change_the_peaks():
    optimizer = make_optimizer()
    schedule = WarmupCosine(optimizer, TOTAL)
    for group in optimizer.param_groups:
        group["initial_lr"] *= 3
    schedule.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
    optimizer.step()
    schedule.step()
    assert rates(optimizer) == [3 * peak * schedule.factor(1) for peak in PEAKS]


def test_tensor_learning_rates_stay_tensors():
    optimizer = make_optimizer(partial(AdamW, fused=True))
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(group["lr"], dtype=torch.float64)
    schedule = WarmupCosine(optimizer, TOTAL, warmup=4)
    assert rates(optimizer) == [peak / 4 for peak in PEAKS]
    optimizer.step()
    schedule.step()
    WarmupCosine(optimizer, TOTAL, warmup=4).load_state_dict(schedule.state_dict())
    assert rates(optimizer) == [peak / 2 for peak in PEAKS]
    assert all(isinstance(group["lr"], torch.Tensor) for group in optimizer.param_groups)


def test_group_ratios_survive_build_optimizer_and_one_cycle():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = build_optimizer(net, Lion, 0.1, layer_decay=0.5)
    schedule = OneCycle(optimizer, 10)
    for _ in range(10):
        low, high = rates(optimizer)
        assert low == pytest.approx(high / 2, rel=1e-12)
        optimizer.step()
        schedule.step()


def test_shares_and_counts():
    assert [to_steps(amount, 200) for amount in (0, 0.0, 0.05, 1, 500, 500.0)] == [0, 0, 10, 1, 500, 500]
    for wrong in (1.0, 1.5, -0.1, -3):
        with pytest.raises(ValueError, match="must be a fraction of the run"):
            to_steps(wrong, 200)


# Every schedule in every run whose length it has to find by itself; an epoch has 10 batches.
RUNS = {
    "epochs": ({"max_epochs": 3}, 30),
    "steps": ({"max_steps": 17}, 17),
    "accumulation": ({"max_epochs": 3, "accumulate_grad_batches": 4}, 9),
    "limited batches": ({"max_epochs": 3, "limit_train_batches": 7}, 21),
    "steps or epochs": ({"max_epochs": 3, "max_steps": 25, "accumulate_grad_batches": 2}, 15),
}


ONE_OF_EACH = [
    "cosine, 6 steps, floor", "linear", "stable, sqrt", "one cycle", "step, mixed", "constant, warmup"
]  # fmt: skip


class Rates(Callback):
    def __init__(self):
        self.used = []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.used.append(optimizer.param_groups[0]["lr"])


def fit(folder, build, checkpoint=None, **flags):
    """The rates that a classifier with this schedule trains with, and its trainer."""
    module = MLPClassifier(hidden=[4], input_dim=2, num_classes=4, lr=PEAKS[1], lr_scheduler=build)
    used = Rates()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}
    flags = {"accelerator": "cpu", **quiet, **flags}
    trainer = Trainer(callbacks=[used, BestAndLast(dirpath=str(folder))], **flags)
    data = Quadrants(samples=256, batch_size=20, drop_last=True)
    trainer.fit(module, data, ckpt_path=checkpoint)
    return used.used, trainer


@pytest.mark.parametrize("case", ONE_OF_EACH)
@pytest.mark.parametrize("run", RUNS)
def test_trace_in_a_run(tmp_path, case, run):
    (build, formula), (flags, total) = CASES[case], RUNS[run]
    used, _ = fit(tmp_path, build, **flags)
    assert used == pytest.approx([PEAKS[1] * formula(i, total) for i in range(total)], rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("case", ONE_OF_EACH)
def test_trace_of_a_run_resumed_with_more_epochs(tmp_path, case):
    build, formula = CASES[case]
    first, _ = fit(tmp_path, build, max_epochs=2)
    second, _ = fit(tmp_path, build, tmp_path / "last.ckpt", max_epochs=5)
    wanted = [PEAKS[1] * formula(i, 20 if i < 20 else 50) for i in range(50)]
    assert first + second == pytest.approx(wanted, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize(
    ("schedule", "task", "watches", "mode"),
    [
        (Plateau, ("val/psnr", "max"), "val/psnr", "max"),
        (partial(Plateau, mode="min"), ("val/psnr", "max"), "val/psnr", "min"),
        (partial(Plateau, monitor="val/accuracy"), ("val/loss", "min"), "val/accuracy", "max"),
        (ReduceLROnPlateau, ("val/accuracy", "max"), "val/loss", "min"),
        (ReduceLROnPlateau, ("val/rmse", "min"), "val/rmse", "min"),
        (partial(ReduceLROnPlateau, mode="max"), ("val/accuracy", "max"), "val/accuracy", "max"),
    ],
)
def test_what_a_plateau_schedule_watches(schedule, task, watches, mode):
    built = schedule(make_optimizer())
    assert (plateau_monitor(built, *task), built.mode) == (watches, mode)
    assert built.best == (math.inf if mode == "min" else -math.inf), "anything is better at first"


def test_mistakes():
    optimizer = make_optimizer()
    with pytest.raises(ValueError, match="mode max, but val/loss is better low"):
        plateau_monitor(ReduceLROnPlateau(optimizer, mode="max"), "val/loss", "min")
    with pytest.raises(ValueError, match="factor is 1"):
        Plateau(optimizer, factor=1)
    with pytest.raises(ValueError, match="WarmupCosine needs total_steps"):
        WarmupCosine(optimizer)
    with pytest.raises(ValueError, match="total_steps is 0"):
        Constant(optimizer, 0)
    with pytest.raises(ValueError, match="min_ratio is 2"):
        WarmupCosine(optimizer, 10, min_ratio=2, warmup=0)
    with pytest.raises(ValueError, match="milestone is 2"):
        StepDecay(optimizer, 10, milestones=[2.5])
    with pytest.raises(ValueError, match="shape is 'step'"):
        anneal(0.5, "step")
    with pytest.raises(ValueError, match="has 1 parameter groups, but the optimizer 2"):
        WarmupCosine(optimizer, 10).load_state_dict({"last_epoch": 1, "base_lrs": [1.0]})
