"""The finder's promise: a run with it equals a run started at the rate it found, to the last bit."""

import csv
import math
import os
import random
import subprocess
import sys
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torchmetrics
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingLR,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)
from torch.utils.data import DataLoader, TensorDataset

from zoo.callbacks.learning_rates import rescale
from zoo.callbacks.lr_curve import Sweep, loss_decreases, lr_grid, suggest
from zoo.callbacks.lr_finder import LRFinder
from zoo.data import Digits
from zoo.models import MLPClassifier
from zoo.optim.param_groups import ParamGroupRule, build_optimizer

STEPS = 12


def warmup_cosine(step):
    return (step + 1) / 3 if step < 3 else 0.5 * (1 + math.cos(math.pi * (step - 3) / (STEPS - 3)))


def two_groups(module, lr):
    body, head = module.net[:-1].parameters(), module.net[-1].parameters()
    return torch.optim.AdamW([{"params": body}, {"params": head, "lr": lr * 0.65**5, "lr_scale": 0.65**5}], lr=lr)


def combined(module, lr):
    factory = partial(torch.optim.AdamW, betas=(0.9, 0.95))
    rules = [
        ParamGroupRule("", lr_scale=20.0, optimizer=lambda params, lr: torch.optim.Muon(params, lr=lr), matrices=True)
    ]
    return build_optimizer(module.net, lambda params, lr: factory(params, lr=lr), lr, rules)


def unnamed_groups(module, lr):
    scales = [1.0, 0.3, 0.1, 0.02, 0.125, 0.7, 0.55, 0.003]
    return torch.optim.SGD(
        [{"params": p, "lr": lr * scale} for p, scale in zip(module.parameters(), scales, strict=True)], momentum=0.9
    )


OPTIMIZERS = {
    "sgd": lambda m, lr: torch.optim.SGD(m.parameters(), lr=lr, momentum=0.9, nesterov=True),
    "adamw": lambda m, lr: torch.optim.AdamW(m.parameters(), lr=lr),
    "adagrad": lambda m, lr: torch.optim.Adagrad(m.parameters(), lr=lr),  # has state before its first step
    "lr_scale": two_groups,
    "combined": combined,
    "unnamed_groups": unnamed_groups,
    "tensor_lr": lambda m, lr: torch.optim.AdamW(m.parameters(), lr=torch.tensor(lr, dtype=torch.float64)),
}


def sequential(optimizer, lr):
    parts = [LinearLR(optimizer, 0.1, total_iters=3), CosineAnnealingLR(optimizer, STEPS - 3)]
    return SequentialLR(optimizer, parts, milestones=[3])


SCHEDULES = {
    "constant": None,
    "warmup_cosine": lambda o, lr: LambdaLR(o, warmup_cosine),
    "one_cycle": lambda o, lr: OneCycleLR(o, max_lr=[g["lr"] for g in o.param_groups], total_steps=STEPS),
    "cyclic": lambda o, lr: CyclicLR(o, [g["lr"] / 7 for g in o.param_groups], [g["lr"] for g in o.param_groups], 4),
    "cosine": lambda o, lr: CosineAnnealingLR(o, STEPS),
    "sequential": sequential,
    "chained": lambda o, lr: ChainedScheduler([LinearLR(o, 0.25, total_iters=4), ExponentialLR(o, 0.9)]),
}


class Net(pl.LightningModule):
    """Carries all that a sweep could leave traces in: dropout, running statistics, a metric, lists, generators."""

    def __init__(self, lr, optimizer="adamw", schedule="constant", lr_attribute=False):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(8, 16),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(16, 16),
            nn.Tanh(),
            nn.Linear(16, 3),
        )
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=3)
        self.rate, self.optimizer, self.schedule = lr, optimizer, schedule
        if lr_attribute:
            self.lr = lr
        self.noise = torch.Generator().manual_seed(5)
        self.seen, self.calls, self.rates = {"losses": []}, 0, []
        self.total = torch.zeros(())

    def training_step(self, batch, batch_idx):
        x, y = batch
        x = x + 0.01 * torch.randn(x.shape, generator=self.noise) + 0.01 * random.random() + 0.01 * np.random.rand()
        logits = self.net(x)
        loss = nn.functional.cross_entropy(logits, y)
        self.accuracy(logits, y)
        self.log("train/loss", loss)
        self.log("train/accuracy", self.accuracy)
        self.calls += 1
        self.total += 1
        self.seen["losses"].append(loss.item())
        self.rates.append([float(g["lr"]) for g in self.trainer.optimizers[0].param_groups])
        return loss

    def configure_optimizers(self):
        lr = getattr(self, "lr", self.rate)
        optimizer = OPTIMIZERS[self.optimizer](self, lr)
        if SCHEDULES[self.schedule] is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": SCHEDULES[self.schedule](optimizer, lr), "interval": "step"},
        }


def data(seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(96, 8, generator=g)
    return TensorDataset(x, (x @ torch.randn(8, 3, generator=g)).argmax(1))


def loader(**kwargs):
    return DataLoader(data(), batch_size=16, shuffle=True, **kwargs)


def fit(module, tmp_path, callbacks=(), loaders=None, **kwargs):
    options = dict(max_steps=STEPS, accelerator="cpu", logger=False, enable_checkpointing=False) | kwargs
    trainer = pl.Trainer(
        default_root_dir=tmp_path,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    seed_all(1)
    trainer.fit(module, loaders or loader())
    return trainer


def seed_all(seed):
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def build(lr, *args, **kwargs):
    seed_all(0)
    return Net(lr, *args, **kwargs)


def small(**kwargs):
    return LRFinder(**(dict(min_lr=1e-4, max_lr=3.0, steps=20, smoothing=0.0) | kwargs))


def same(a, b):
    assert a.state_dict().keys() == b.state_dict().keys()
    for name, value in a.state_dict().items():
        assert torch.equal(value, b.state_dict()[name]), name
    assert a.rates == b.rates
    assert a.seen == b.seen
    assert a.calls == b.calls
    assert a.total == b.total


CASES = [
    *[(name, "constant", {}) for name in OPTIMIZERS],
    *[(name, "warmup_cosine", {}) for name in ("sgd", "lr_scale", "combined", "unnamed_groups", "tensor_lr")],
    *[("adamw", name, {}) for name in SCHEDULES if name != "constant"],
    ("lr_scale", "one_cycle", {}),
    ("sgd", "sequential", {}),
    ("adamw", "warmup_cosine", {"precision": "bf16-mixed"}),
    ("lr_scale", "warmup_cosine", {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}),
]


@pytest.mark.parametrize(("optimizer", "schedule", "options"), CASES, ids=lambda x: str(x))
def test_run_equals_one_started_at_the_found_rate(tmp_path, optimizer, schedule, options):
    finder = small()
    found = build(0.0037, optimizer, schedule)
    fit(found, tmp_path, [finder], **options)
    lr = finder.result.chosen
    assert not math.isclose(lr, 0.0037)
    assert finder.result.base == 0.0037
    by_hand = build(lr, optimizer, schedule)
    fit(by_hand, tmp_path, **options)
    same(found, by_hand)


class Task(Net):
    """Steps on the sum over samples and divides when a window ends, as a task must that weighs all samples alike."""

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * len(batch[0])

    def on_after_backward(self):
        self.ends = getattr(self, "ends", [])
        self.ends.append(not self.trainer.fit_loop._should_accumulate())
        if self.ends[-1]:
            torch._foreach_div_([p.grad for p in self.parameters() if p.grad is not None], 16.0)


def test_modules_see_where_a_window_ends(tmp_path):
    curves = []
    for kind in (Net, Task):
        seed_all(0)
        module, finder = kind(0.0037, "sgd"), small()
        fit(module, tmp_path, [finder], accumulate_grad_batches=4)
        curves.append(finder.result.losses)
    # an early or a late division would change the curve
    assert [loss / 16 for loss in curves[1]] == pytest.approx(curves[0], rel=1e-3)
    assert len(module.ends) == module.calls  # those of the sweep are forgotten
    assert module.ends[:4] == [False, False, False, True]


class Batches(torch.utils.data.Sampler):
    """Keeps count, so that reading it leaves a trace."""

    def __init__(self):
        self.count, self.generator = 0, random.Random(3)

    def __iter__(self):
        for _ in range(6):
            self.count += 1
            yield [self.generator.randrange(96) for _ in range(16)]

    def __len__(self):
        return 6


LOADERS = {
    "own_generator": lambda: loader(generator=torch.Generator().manual_seed(9)),
    "stateful_sampler": lambda: DataLoader(data(), batch_sampler=Batches()),
    "workers": lambda: loader(num_workers=1, persistent_workers=True),
}


@pytest.mark.parametrize("name", LOADERS)
def test_data_go_on_as_if_never_read(tmp_path, name):
    finder = small()
    found, by_hand = build(0.0037), build(0.0037)
    # a schedule that asks for the total builds the run's iterator before the finder comes
    fit(found, tmp_path, [finder], LOADERS[name](), max_epochs=2, max_steps=-1)
    by_hand.rate = finder.result.chosen
    fit(by_hand, tmp_path, (), LOADERS[name](), max_epochs=2, max_steps=-1)
    same(found, by_hand)


def test_reporting_only_changes_nothing(tmp_path):
    found, plain = build(0.0037, schedule="warmup_cosine"), build(0.0037, schedule="warmup_cosine")
    finder = small(apply=False)
    fit(found, tmp_path, [finder])
    fit(plain, tmp_path)
    assert finder.result.chosen
    same(found, plain)


def test_no_callback_or_logger_notices(tmp_path):
    class Count(pl.Callback):
        def __init__(self):
            self.events = []

        def __getattribute__(self, name):
            if name.startswith("on_"):
                self.events.append(name)
            return super().__getattribute__(name)

    def run(*callbacks):
        counter = Count()
        logger = CSVLogger(tmp_path, name=None, version=str(len(callbacks)))
        trainer = fit(build(0.0037), tmp_path, [counter, *callbacks], logger=logger, log_every_n_steps=1)
        return counter.events, trainer.global_step, Path(logger.log_dir, "metrics.csv").read_text().splitlines()

    events, steps, rows = run()
    with_finder, same_steps, with_finder_rows = run(small(apply=False))
    assert with_finder == events
    assert same_steps == steps == STEPS
    assert with_finder_rows == rows
    assert len(rows) == STEPS + 1


def test_resumed_run_is_left_alone(tmp_path):
    first = build(0.01)
    trainer = fit(first, tmp_path, [small()])
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    again, finder = build(0.5), small()
    trainer = pl.Trainer(
        default_root_dir=tmp_path, max_steps=STEPS + 2, callbacks=[finder], logger=False, enable_progress_bar=False
    )
    trainer.fit(again, loader(), ckpt_path=str(tmp_path / "half.ckpt"), weights_only=False)
    assert finder.result is None
    assert again.rates[-1] == first.rates[-1]


# --- what Lightning's own finder gets wrong -----------------------------------------------------------------------


def lightnings(tmp_path, module):
    fit(module, tmp_path, [LearningRateFinder(1e-4, 3.0, 20, early_stop_threshold=None)])
    return module


def test_lr_finder_and_cli_optimizers(tmp_path):
    with pytest.raises(AttributeError, match="learning rate finder"):
        lightnings(tmp_path, build(0.0037))
    finder, module = small(), build(0.0037)
    fit(module, tmp_path, [finder])
    assert module.rates[-1] == [finder.result.chosen]


def test_lr_finder_and_any_scheduler(tmp_path):
    theirs = lightnings(tmp_path, build(0.0037, schedule="warmup_cosine", lr_attribute=True))
    assert theirs.lr != 0.0037
    # the peak is that of the rate before the search: the finding was dropped
    assert max(rate for (rate,) in theirs.rates[-STEPS + 1 :]) == pytest.approx(0.0037)
    finder, ours = small(), build(0.0037, schedule="warmup_cosine", lr_attribute=True)
    fit(ours, tmp_path, [finder])
    assert max(rate for (rate,) in ours.rates) == finder.result.chosen


def test_lr_finder_and_groups(tmp_path):
    theirs = lightnings(tmp_path, build(0.0037, "lr_scale", lr_attribute=True))
    assert theirs.rates[-1][0] == theirs.rates[-1][1]
    finder, ours = small(), build(0.0037, "lr_scale")
    fit(ours, tmp_path, [finder])
    assert ours.rates[-1] == [finder.result.chosen, finder.result.chosen * 0.65**5]


def test_lr_finder_restore(tmp_path):
    def module():
        model = build(0.0037, lr_attribute=True)
        model.save_hyperparameters({"net": nn.Linear(1, 1)})
        return model

    with pytest.raises(Exception, match="Weights only load failed"):
        lightnings(tmp_path, module())
    finder, ours = small(apply=False), module()
    fit(ours, tmp_path, [finder])
    plain = module()
    fit(plain, tmp_path)
    same(ours, plain)


class Uneven(Net):
    """Rank 0 would see a loss that only falls, rank 1 one that diverges early."""

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * (1 + self.global_rank * 3)


DISTRIBUTED = [("adamw", "warmup_cosine"), ("combined", "sequential")]


def two_processes(folder):
    """This file run as a script: forked processes round differently from run to run, whatever trains in them."""

    def told(lr, optimizer, schedule, *callbacks):
        seed_all(0)
        module = Uneven(lr, optimizer, schedule)
        strategy = DDPStrategy(process_group_backend="gloo")
        trainer = fit(module, folder, callbacks, strategy=strategy, devices=2)
        weights = torch.cat([p.detach().flatten() for p in module.parameters()])
        return trainer.global_rank, {"rates": module.rates, "seen": module.seen, "weights": weights}

    for optimizer, schedule in DISTRIBUTED:
        finder = small()
        rank, found = told(0.0037, optimizer, schedule, finder)
        _, by_hand = told(finder.result.chosen, optimizer, schedule)
        result = {"lr": finder.result.chosen, "losses": finder.result.losses, "found": found, "by_hand": by_hand}
        torch.save(result, folder / f"{optimizer}{rank}.pt")


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    ours = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    env = {k: v for k, v in os.environ.items() if k not in ("MASTER_PORT", "LOCAL_RANK", "NODE_RANK")} | ours
    done = subprocess.run([sys.executable, __file__, folder], env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [name for name, _ in DISTRIBUTED])
def test_two_ranks_take_the_same_rate_and_equal_a_run_started_there(processes, optimizer):
    first, second = (torch.load(processes / f"{optimizer}{rank}.pt") for rank in range(2))
    assert first["lr"] == second["lr"] != 0.0037
    assert first["losses"] == second["losses"]
    assert first["losses"][0] > 1.6  # the mean of about 1.1 and 4.4: rank 0 alone saw the former
    assert torch.equal(first["found"]["weights"], second["found"]["weights"])
    for rank in (first, second):
        found, by_hand = rank["found"], rank["by_hand"]
        assert torch.equal(found["weights"], by_hand["weights"])
        assert found["rates"] == by_hand["rates"]
        assert found["seen"] == by_hand["seen"]


# --- the curve and what is read off it ---------------------------------------------------------------------------


def test_suggestions_on_a_known_curve():
    lrs = lr_grid(1e-6, 1.0, 61, "exponential")
    assert lrs[10] == pytest.approx(1e-5)
    # flat to 1e-4, a smooth fall that is steepest at 1e-3 and ends at 1e-2, then up
    losses = []
    for lr in lrs:
        x = math.log10(lr)
        losses.append(2.0 if x < -4 else 1 + math.cos((x + 4) * math.pi / 2) if x < -2 else (x + 2) ** 2)
    found = suggest(lrs, losses)
    assert found["steepest"] == pytest.approx(1e-3, rel=1e-6)
    assert found["minimum/10"] == pytest.approx(1e-3, rel=1e-6)
    assert found["valley"] == pytest.approx(1e-3, rel=0.15)
    assert found["minimum"] == pytest.approx(1e-2 / (2.5 * (12.5 / 10) ** 0.75), rel=2e-3), "10 steps in a decade"
    # what comes after the least loss is no way down, however steep
    assert suggest([*lrs, 2.0, 3.0], [*losses, 50.0, 3.0]) == found


def test_suggestions_of_a_linear_sweep_and_of_a_curve_that_wavers():
    lrs = lr_grid(1e-3, 1.0, 101, "linear")
    # level to 0.2, down a straight line to 0.6 but steeper from 0.3 to 0.4, then up
    xs = [0.0, 0.2, 0.3, 0.4, 0.6, 1.0]
    losses = np.interp(lrs, xs, [2.0, 2.0, 1.8, 0.8, 0.6, 3.0]).tolist()
    found = suggest(lrs, losses, "linear")
    assert 0.29 < found["steepest"] < 0.41
    assert found["valley"] == pytest.approx((0.27 + 0.46) / 2, abs=0.02)
    assert found["minimum/10"] == pytest.approx(0.06, rel=0.02)
    assert found["minimum"] == pytest.approx(0.54 / 2.5, rel=0.02), "between 0.46 and 0.62 90 % of the fall are reached"
    wavering = losses.copy()
    wavering[3:6] = [1.7] * 3  # one low batch long before the fall is no part of it
    assert suggest(lrs, wavering, "linear")["valley"] == found["valley"]


def test_rescale_is_exact_for_factors_and_divisors():
    g = random.Random(0)
    for _ in range(500):
        old, new, c = g.uniform(1e-5, 1), 10 ** g.uniform(-6, 1), round(g.uniform(0.01, 30), 3)
        assert rescale(old * c, old, new) == new * c
        assert rescale(old / c, old, new) == new / c
    assert rescale(0.0, 0.1, 0.2) == 0.0


def curve(steps: int, noise: float, seed: int) -> Sweep:
    """A sweep over 8 decades whose loss falls from 1e-4 on, is lowest at 1e-2 and explodes; with noise."""
    g = np.random.default_rng(seed)
    result = Sweep(1e-3, "exponential", 0.2)
    for lr in lr_grid(1e-7, 10.0, steps, "exponential"):
        x = math.log10(lr)
        loss = 2.0 if x < -4 else 1 + math.cos((x + 4) * math.pi / 2) if x < -2 else (x + 2) ** 2
        result.append(lr, loss + noise * g.standard_normal())
    return result


def test_the_smoothed_curve_does_not_depend_on_the_number_of_steps():
    for steps in (50, 100, 200, 400):
        result = curve(steps, 0.05, seed=steps)
        assert loss_decreases(result)
        lowest = result.lrs[int(np.argmin(result.smoothed))]
        assert abs(math.log10(lowest) + 2) < 0.25


@pytest.mark.parametrize("steps", [20, 100])
def test_noise_is_no_fall(steps):
    g = np.random.default_rng(0)
    falls = 0
    for _ in range(100):
        result = Sweep(1e-3, "exponential", 0.2)
        for lr in lr_grid(1e-7, 10.0, steps, "exponential"):
            result.append(lr, 2.0 + 0.1 * g.standard_normal())
        falls += loss_decreases(result)
    assert falls <= 5


def test_the_rate_hardly_depends_on_the_number_of_steps(tmp_path):
    rates = []
    for steps in (50, 100, 200):
        seed_all(0)
        finder = LRFinder(steps=steps, dirpath=str(tmp_path))
        fit(MLPClassifier(input_dim=64, num_classes=10), tmp_path, [finder], Digits(), limit_val_batches=0)
        rates.append(finder.result.chosen)
    assert max(rates) / min(rates) < 3
    # Adam's best constant rate on this problem is about 0.01, by a search over 27 rates.
    assert 0.003 < min(rates) < max(rates) < 0.03


def test_files_and_smoothing(tmp_path):
    finder = small(dirpath=str(tmp_path / "found"), suggestion="valley", max_lr=0.1, mode="linear", smoothing=0.8)
    fit(build(0.0037), tmp_path, [finder])
    result = finder.result
    assert result.chosen == result.suggestions["valley"]
    assert np.diff(result.lrs) == pytest.approx([(0.1 - 1e-4) / 19] * (len(result.lrs) - 1))
    distances = np.subtract(result.lrs, result.lrs[2]) / (0.8 * (0.1 - 1e-4) / 10)
    weights = np.exp(-(distances**2) / 2)
    assert result.smoothed[2] == pytest.approx((weights * result.losses).sum() / weights.sum())
    rows = list(csv.DictReader((tmp_path / "found" / "lr_find.csv").read_text().splitlines()))
    assert len(rows) == len(result.lrs)
    assert float(rows[3]["lr"]) == result.lrs[3]
    assert float(rows[3]["factor"]) == pytest.approx(result.lrs[3] / 0.0037)
    assert (tmp_path / "found" / "lr_find.png").read_bytes().startswith(b"\x89PNG")


def test_divergence_ends_the_sweep(tmp_path):
    finder = small(max_lr=1e4, steps=40)
    fit(build(0.0037, "sgd"), tmp_path, [finder])
    assert len(finder.result.lrs) < 40
    assert finder.result.chosen < 1


def test_the_found_rate_trains_where_its_tenfold_does_not(tmp_path):
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = torch.tensor(digits.data / 16 - 0.3, dtype=torch.float32), torch.tensor(digits.target)

    class Digits(Net):
        def __init__(self, lr):
            super().__init__(lr, "sgd")
            self.net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def loss(lr, *callbacks):
        seed_all(0)
        module = Digits(lr)
        fit(module, tmp_path, callbacks, DataLoader(TensorDataset(x, y), 64, shuffle=True), max_steps=100)
        with torch.no_grad():
            return nn.functional.cross_entropy(module.net(x), y).item()

    finder = LRFinder()
    good = loss(1e-3, finder)
    assert good < 0.5
    assert loss(10 * finder.result.chosen) > 1
    assert loss(finder.result.chosen / 10) > 1


def test_accumulated_loss_is_the_mean_of_its_micro_batches(tmp_path):
    finder, module = small(apply=False, smoothing=0.2), build(0.0037)
    calls = []
    module.training_step_of, module.training_step = module.training_step, None

    def step(batch, batch_idx):
        loss = module.training_step_of(batch, batch_idx)
        calls.append(loss.item())
        return loss

    module.training_step = step
    fit(module, tmp_path, [finder], accumulate_grad_batches=3, max_steps=1)
    assert len(finder.result.losses) == 20
    for i, loss in enumerate(finder.result.losses):
        assert loss == pytest.approx(np.mean(calls[3 * i : 3 * i + 3]), rel=1e-6)


# --- mistakes ------------------------------------------------------------------------------------------------------


class Broken(Net):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * float("nan")


class Aimless(Net):
    def training_step(self, batch, batch_idx):
        logits = self.net(batch[0]) * 0
        return logits.mean() + torch.randn(())


class NoLoss(Net):
    def training_step(self, batch, batch_idx):
        return None


class TwoOptimizers(Net):
    def __init__(self, lr):
        super().__init__(lr)
        self.automatic_optimization = False

    def configure_optimizers(self):
        return [torch.optim.SGD(self.net[i].parameters(), 0.1) for i in (0, 4)]


class Odd(Net):
    class Schedule:
        def __init__(self, optimizer):
            self.optimizer = optimizer

        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            pass

        def step(self):
            pass

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        return [optimizer], [self.Schedule(optimizer)]

    def lr_scheduler_step(self, scheduler, metric):
        pass


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Broken, "loss of the first step, at lr=0.0001, is nan"),
        (NoLoss, "never returned a loss"),
        (TwoOptimizers, "one optimizer, TwoOptimizers has 2"),
        (Odd, "cannot set the learning rate of Schedule"),
    ],
)
def test_mistakes_are_one_clear_line(tmp_path, kind, message):
    with pytest.raises(ValueError, match=message) as error:
        fit(kind(0.0037), tmp_path, [small()])
    assert "\n" not in str(error.value)


def test_data_that_can_be_read_once_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot be read twice"):
        fit(build(0.0037), tmp_path, [small()], (batch for batch in loader()))


def test_loss_that_never_falls_keeps_the_rate(tmp_path):
    finder = small(steps=60, smoothing=0.2)
    module = Aimless(0.0037)
    with pytest.warns(UserWarning, match=r"the loss never falls clearly .* lr=0.0037 stays"):
        trainer = fit(module, tmp_path, [finder])
    assert finder.result.chosen is None
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.0037
    assert (tmp_path / "lr_find.png").exists()


def test_plateau_schedule_starts_at_the_found_rate(tmp_path):
    class Plateau(Net):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), self.rate)
            return {"optimizer": optimizer, "lr_scheduler": ReduceLROnPlateau(optimizer), "monitor": "train/loss"}

    finder, module = small(), Plateau(0.0037)
    fit(module, tmp_path, [finder])
    assert module.rates[-1] == [finder.result.chosen]


@pytest.mark.parametrize(
    "bad",
    [
        {"min_lr": 1.0, "max_lr": 0.1},
        {"steps": 3},
        {"smoothing": 1.5},
        {"early_stop_threshold": 1.0},
        {"mode": "cubic"},
        {"suggestion": "best"},
    ],
)
def test_arguments_are_checked(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        LRFinder(**bad)


if __name__ == "__main__":
    two_processes(Path(sys.argv[1]))
