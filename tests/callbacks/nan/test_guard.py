"""What the guard leaves behind: nothing on healthy runs, and after a stop everything as it was."""

import json
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.multiprocessing import ProcessRaisedException
from torch.nn.modules import module as module_hooks
from torch.utils.data import DataLoader

from tests.callbacks.families import (
    BATCH,
    DIM,
    FAMILIES,
    MLP,
    SICK_STEP,
    ConvNet,
    Division,
    RootAtZero,
    Task,
    batches,
    caught,
    named,
    trainer_with,
)
from zoo.callbacks.nan.guard import NaNGuard, NonFiniteError


def hook_count(module: nn.Module) -> int:
    own = [(m._forward_hooks, m._forward_pre_hooks, m._backward_hooks) for m in module.modules()]
    shared = (module_hooks._global_forward_hooks, module_hooks._global_forward_pre_hooks)
    shared += (module_hooks._global_forward_hooks_always_called,)
    return sum(map(len, shared)) + sum(len(hooks) for three in own for hooks in three)


class Everything:
    """What a stop must leave as it was: weights, buffers and gradients' places; and the random state of a replay."""

    def __init__(self, module: nn.Module):
        self.values = {name: value.clone() for name, value in module.state_dict().items()}

    def same(self, module: nn.Module) -> bool:
        return all(torch.equal(self.values[name], value) for name, value in module.state_dict().items())


class Witness(L.Callback):
    """Remembers the module as it was when each batch began, and the random state when it ended or failed."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.before, self.batch_idx = Everything(pl_module), batch_idx

    def on_after_backward(self, trainer, pl_module):
        self.random = torch.get_rng_state()
        self.gradients = [parameter.grad for parameter in pl_module.parameters()]
        self.values = [gradient.clone() for gradient in self.gradients if gradient is not None]


@pytest.mark.parametrize("fault", [Division, RootAtZero])
@pytest.mark.parametrize("family", FAMILIES)
def test_leaves_everything_as_it_was(family, fault, tmp_path):
    net = family()
    net.slot = fault()
    task, witness = Task(net), Witness()
    hooks = hook_count(task)
    caught(task, batches(net), tmp_path, callbacks=[witness])
    assert witness.before.same(task)
    assert torch.equal(witness.random, torch.get_rng_state())
    assert all(a is b.grad for a, b in zip(witness.gradients, task.parameters(), strict=True))
    values = [gradient for gradient in witness.gradients if gradient is not None]
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(witness.values, values, strict=True))
    assert hook_count(task) == hooks
    assert "log" not in vars(task)


def test_a_replay_that_fails_leaks_nothing_and_still_stops(tmp_path):
    class OnceOnly(Task):
        ran = 0

        def training_step(self, batch, batch_idx):
            self.ran += 1
            if self.ran > SICK_STEP + 1:
                raise KeyError("no second time")
            return super().training_step(batch, batch_idx)

    net = MLP()
    net.slot = Division()
    task = OnceOnly(net)
    hooks = hook_count(task)
    report = caught(task, batches(net), tmp_path)
    assert report["cause"] == "not reproduced"
    assert report["kind"] == "loss"
    assert "no second time" in report["advice"]
    assert hook_count(task) == hooks
    assert "log" not in vars(task)


def weights_after(family, folder: Path, guard: NaNGuard | None, **kwargs: Any) -> dict[str, Tensor]:
    L.seed_everything(3, verbose=False)
    net = family()
    task = Task(net)
    trainer_with(guard, folder, **kwargs).fit(task, batches(net))
    assert not (folder / "nan_report.json").exists()
    return {**task.state_dict(), "random": torch.get_rng_state()}


@pytest.mark.parametrize("settings", [{}, {"always_on": True}, {"every_n_batches": 2}], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_healthy_run_is_the_same_to_the_last_bit(family, settings, tmp_path):
    without = weights_after(family, tmp_path, None, accumulate_grad_batches=2)
    guarded = weights_after(family, tmp_path, NaNGuard(**settings), accumulate_grad_batches=2)
    assert all(torch.equal(without[name], guarded[name]) for name in without)


def test_random_faults_are_replayed_with_the_same_numbers(tmp_path):
    """The guard comes first in the list, and another callback seeds after it: it must still see that seed."""

    class Seed(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            torch.manual_seed(batch_idx)

    class Lottery(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / torch.randint(6, x.shape)

    net = MLP()
    net.slot = Lottery()
    report = caught(Task(net), batches(net), tmp_path, callbacks=[Seed()])
    torch.manual_seed(report["batch_idx"])
    zeros = (torch.randint(6, (BATCH, DIM)) == 0).any(1).nonzero().flatten().tolist()
    assert (report["module"], report["samples"]) == ("net.slot", zeros)


def test_accumulation_names_the_batch_within_the_window(tmp_path):
    net = MLP()
    net.slot = RootAtZero()
    task, witness = Task(net), Witness()
    report = caught(task, batches(net, 8), tmp_path, accumulate_grad_batches=4, callbacks=[witness])
    assert (report["batch_idx"], report["step"], report["module"]) == (SICK_STEP, 0, "net.slot")


class SickOfBigNumbers(nn.Module):
    """Its forward pass overflows, or only its gradient does."""

    def __init__(self, direction: str):
        super().__init__()
        self.direction = direction

    def forward(self, x: Tensor) -> Tensor:
        return x + (x.abs().exp() if self.direction == "forward" else torch.sqrt(x.abs() * (x.abs() < 50)))


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_skip_is_a_run_without_that_batch(direction, tmp_path):
    """Neither Adam's moments nor batch norm's averages may notice the skipped step."""
    states = []
    for action in ("skip", "leave out"):
        torch.manual_seed(0)
        net = ConvNet()
        net.slot = SickOfBigNumbers(direction)
        kept = [(x * 1e6 if index == SICK_STEP else x, y) for index, (x, y) in enumerate(batches(net))]
        net.stem[1] = nn.Identity()  # batch norm would tame the batch here; a later one remembers it
        if action == "leave out":
            del kept[SICK_STEP]
        task, guard = Task(net), NaNGuard(action="skip")
        trainer_with(guard, tmp_path).fit(task, DataLoader(kept, batch_size=None))  # pyright: ignore
        states.append(task.state_dict())
        assert guard.skipped == int(action == "skip")
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])


def test_skip_drops_the_whole_window(tmp_path):
    torch.manual_seed(0)
    net = MLP()
    net.slot = Division()
    task = Task(net)
    start = Everything(net.head)
    trainer_with(NaNGuard(action="skip"), tmp_path, accumulate_grad_batches=5).fit(task, batches(net))
    assert start.same(net.head)


def test_skip_gives_up_in_the_end(tmp_path):
    net = MLP()
    with torch.no_grad():
        net.head.weight.fill_(float("nan"))
    guard = NaNGuard(action="skip", patience=3)
    report = caught(Task(net), batches(net), tmp_path, guard=guard)
    assert (guard.skipped, report["batch_idx"]) == (3, 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_always_on_needs_no_fault_that_comes_back(family, tmp_path):
    class OnceOnly(Task):
        """Its fault does not come back."""

        def training_step(self, batch, batch_idx):
            self.net.slot.broken = not getattr(self.net.slot, "ran", False)  # pyright: ignore
            self.net.slot.ran = True  # pyright: ignore
            return super().training_step(batch, batch_idx)

    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / 0 if self.broken else x

    for always_on, module in ((True, "net.slot"), (False, "")):
        net = family()
        net.slot = Broken()
        task = OnceOnly(net)
        hooks = hook_count(task)
        report = caught(task, batches(net), tmp_path, guard=NaNGuard(always_on=always_on))
        assert report["module"] == module
        assert hook_count(task) == hooks
    net = family()
    report = caught(Task(net), batches(net, nan_sample=1), tmp_path, guard=NaNGuard(always_on=True))
    assert (report["kind"], report["samples"]) == ("input data", [1])


@pytest.mark.parametrize("factor", [1e3, 1e35], ids=["gradient", "scaled loss"])
def test_a_scaler_keeps_its_own_business(factor, tmp_path):
    class BigLoss(Task):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * (factor if batch_idx == 1 else 1.0)

    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    net = MLP()
    trainer_with(NaNGuard(), tmp_path, plugins=[plugin]).fit(BigLoss(net), batches(net))
    assert plugin.scaler is not None
    assert plugin.scaler.get_scale() == 65536 / 2
    assert not (tmp_path / "nan_report.json").exists()


@pytest.mark.parametrize("action", ["raise", "skip"])
def test_a_scaler_does_not_hide_a_bad_loss(action, tmp_path):
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    net = MLP()
    net.slot = Division()
    guard = NaNGuard(action, patience=2)
    assert caught(Task(net), batches(net), tmp_path, plugins=[plugin], guard=guard)["module"] == "net.slot"
    assert guard.skipped == (1 if action == "raise" else 2)


def test_a_scaler_that_never_recovers_is_reported(tmp_path):
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0))

    class AlwaysSick(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.sqrt(x * 0)

    net = MLP()
    net.slot = AlwaysSick()
    report = caught(Task(net), batches(net), tmp_path, plugins=[plugin])
    assert (*named(report), report["batch_idx"]) == ("net.slot", "gradient", "backward", 2)


class OneRankFails(Task):
    """The second rank's loss is infinite, and no gradient carries that to the first."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss + (float("inf") if batch_idx == SICK_STEP and self.global_rank == 1 else 0.0)


@pytest.mark.slow
def test_two_processes_stop_together(tmp_path):
    trainer = trainer_with(NaNGuard(), tmp_path, strategy="ddp_spawn", devices=2)
    with pytest.raises(ProcessRaisedException, match="NonFiniteError"):
        trainer.fit(OneRankFails(ConvNet()), batches(ConvNet()))
    report = json.loads((tmp_path / "nan_report.json").read_text())
    assert (report["rank"], report["kind"], report["batch_idx"]) == (1, "loss", SICK_STEP)
    assert "families" not in report["source"]


@pytest.mark.parametrize("place", ["all_finite", "random_state", "BufferCopies", "check_output"])
def test_an_error_of_its_own_switches_it_off_and_training_continues(place, tmp_path, monkeypatch):
    def broken(*args):
        raise RuntimeError("out of luck\nsecond line")

    monkeypatch.setattr(f"zoo.callbacks.nan.guard.{place}", broken)
    task = Task(MLP())
    hooks = hook_count(task)
    guard = NaNGuard(always_on=True)
    trainer = trainer_with(guard, tmp_path)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        trainer.fit(task, batches(task.net))
    assert trainer.global_step == 5
    lines = [str(w.message) for w in warned if "NaNGuard is off" in str(w.message)]
    assert len(lines) == 1
    assert lines[0].endswith("RuntimeError: out of luck")
    assert guard.switched_off
    assert hook_count(task) == hooks
    monkeypatch.undo()
    task.net.slot = Division()
    assert caught(task, batches(task.net), tmp_path, guard=guard)["module"] == "net.slot"  # a new run begins anew


def test_a_module_without_an_optimizer_and_a_loss_in_a_vector_are_fine(tmp_path):
    class Unusual(Task):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx).view(1)

        def configure_optimizers(self):
            return None if self.optimizer == "none" else super().configure_optimizers()

    for optimizer in ("none", "Adam"):
        task = Unusual(MLP(), optimizer)
        guard = NaNGuard()
        trainer_with(guard, tmp_path).fit(task, batches(task.net))
        assert not guard.switched_off
        task.net.slot = Division()
        assert caught(task, batches(task.net), tmp_path)["module"] == "net.slot"


def test_a_report_that_fails_still_stops(tmp_path, monkeypatch):
    def broken(*args):
        raise RuntimeError("no statistics")

    monkeypatch.setattr("zoo.callbacks.nan.guard.format_report", broken)
    net = MLP()
    net.slot = Division()
    with pytest.raises(NonFiniteError, match="Its report failed with RuntimeError: no statistics"):
        trainer_with(NaNGuard(), tmp_path).fit(Task(net), batches(net))


def test_mistakes_are_told_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="action must be 'raise' or 'skip', got 'stop'"):
        NaNGuard(action="stop")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="at least 1"):
        NaNGuard(every_n_batches=0)
    task = Task(MLP())
    task.automatic_optimization = False
    with pytest.raises(ValueError, match="automatic optimization"):
        trainer_with(NaNGuard(), tmp_path).fit(task, batches(task.net))
