"""Whatever preparation and two whole training steps raise is the first finding, with its cause and what to change."""

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.faults import nets
from tests.faults.nets import Data, Module
from zoo.diagnosis import Report, diagnose
from zoo.diagnosis.failures import advice_for
from zoo.diagnosis.runner import CHECKS
from zoo.errors import UserError


def diagnosed(module, data=None) -> Report:
    return diagnose(module, data or Data(*nets.table(160)), overfit_steps=20)


class NotReduced(Module):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1], reduction="none")


class NotDetached(Module):
    def __init__(self):
        super().__init__(nets.mlp())
        self.cell = nn.GRUCell(8, 8)
        self.hidden = None

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.hidden = self.cell(x, self.hidden)
        return F.cross_entropy(self.net(self.hidden), y)


class ChangedInPlace(Module):
    def training_step(self, batch, batch_idx):
        hidden = self.net[0](batch[0]).sigmoid()
        hidden += 1
        return F.cross_entropy(self.net[2:](hidden), batch[1])


class WrongDtype(Module):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0].double()), batch[1])


class FailsInItsOptimizer(Module):
    def optimizer_step(self, *args, **kwargs):
        super().optimizer_step(*args, **kwargs)
        raise RuntimeError("no step")


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (lambda: NotReduced(nets.mlp()), ["backward pass", "first training step", "reduction", "loss.mean()"]),
        (NotDetached, ["backward pass", "second training step", "detach"]),
        (lambda: ChangedInPlace(nets.mlp()), ["backward pass", "changed in place", "+="]),
        (lambda: WrongDtype(nets.mlp()), ["net.0 (Linear)", "dtype", ".float()"]),
        (lambda: FailsInItsOptimizer(nets.mlp()), ["the optimizer step", "RuntimeError: no step"]),
    ],
    ids=["loss not reduced", "state not detached", "changed in place", "wrong dtype", "optimizer step"],
)
def test_a_step_that_raises_is_the_first_finding(module, words):
    report = diagnosed(module())
    first = report.findings[0]
    assert (first.name, first.status) == ("training step", "error"), str(report)
    text = f"{first.message} {first.advice}"
    assert all(word in text for word in words), text
    assert not report.ok
    assert [f.name for f in report.of("error")] == ["training step"], str(report)


@pytest.mark.parametrize("batch_size", [1, 37])
def test_batch_norm_with_one_sample(batch_size):
    """112 training samples: the last batch of 37 has a single one."""
    net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    report = diagnosed(Module(net), Data(*nets.table(160), batch_size=batch_size))
    first = report.findings[0]
    assert (first.name, first.status) == ("training step", "error"), str(report)
    assert "net.1 (BatchNorm1d)" in first.message
    assert "drop_last" in first.advice
    assert ("last batch" in first.message) == (batch_size == 37)


@pytest.mark.parametrize("hook", ["setup", "configure_model", "configure_optimizers", "on_fit_start", "on_train_start"])
def test_a_hook_that_raises_is_the_first_finding(hook):
    class Fails(Module):
        pass

    def broken(self, *args, **kwargs):
        raise KeyError("missing")

    broken.__code__ = broken.__code__.replace(co_name=hook)
    setattr(Fails, hook, broken)
    module = Fails(nets.mlp())
    before = {name: value.clone() for name, value in module.state_dict().items()}
    report = diagnosed(module)
    (first,) = report.findings
    assert (first.name, first.status) == ("setup", "error")
    assert f"Fails.{hook} fails: KeyError: 'missing'" in first.message
    assert "test_failures.py" in first.details[0]
    assert not report.ok
    assert "no errors" not in str(report)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_a_hook_with_a_wrong_signature_is_the_first_finding():
    class Fails(Module):
        def setup(self):
            pass

    (first,) = diagnosed(Fails(nets.mlp())).findings
    assert (first.name, first.status) == ("setup", "error")
    assert "TypeError" in first.message
    assert "stage" in first.message


def test_data_that_raises_is_the_first_finding():
    class Broken(Data):
        def train_dataloader(self):
            return torch.utils.data.DataLoader(BrokenDataset(), 4)

    class BrokenDataset(torch.utils.data.Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, index):
            raise IndexError(f"row {index} is torn")

    (first,) = diagnosed(Module(nets.mlp()), Broken(*nets.table(160))).findings
    assert (first.name, first.status) == ("setup", "error")
    assert "training data of Broken fails: IndexError: row 0 is torn" in first.message


def test_no_optimizer_is_a_finding():
    class Without(Module):
        def configure_optimizers(self):
            return None

    errors = diagnosed(Without(nets.mlp())).of("error")
    assert "configure_optimizers returns no optimizer" in next(f.message for f in errors if f.name == "optimizer")


def test_mistakes_in_arguments_are_no_findings():
    class Refuses(L.LightningModule):
        def configure_optimizers(self):
            raise UserError("lr is -1, but must be above 0")

        def training_step(self, batch, batch_idx):
            return None

    with pytest.raises(UserError, match="lr is -1"):
        diagnosed(Refuses())


def test_a_check_that_fails_is_an_error(monkeypatch):
    def broken(probe):
        raise RuntimeError("beyond\nall")

    monkeypatch.setitem(CHECKS, "shapes", broken)
    report = diagnosed(Module(nets.mlp()))
    (failed,) = report.of("error")
    assert failed.name == "shapes"
    assert "the check failed: RuntimeError: beyond; nothing is known" in failed.message
    assert failed.advice
    assert "no errors" not in str(report)
    assert not report.ok


def test_a_network_that_fails_in_eval_mode_is_an_error():
    class TrainsOnly(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nets.mlp()

        def forward(self, x):
            if not self.training:
                raise RuntimeError("no inference")
            return self.net(x)

    report = diagnosed(Module(TrainsOnly()))
    (failed,) = report.of("error")
    assert failed.name == "eval mode"
    assert "RuntimeError: no inference" in failed.message


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("expected scalar type Long but found Float", ".long()"),
        ("Found dtype Double but expected Float", ".float()"),
        ("mat1 and mat2 must have the same dtype, but got Double and Float", ".float()"),
        ("Expected all tensors to be on the same device, but found at least two", "self.device"),
        ("CUDA out of memory. Tried to allocate 2 GiB", "batch size"),
        ("mat1 and mat2 shapes cannot be multiplied (32x8 and 9x32)", "repair this first"),
    ],
)
def test_known_exceptions_have_their_advice(text, word):
    assert word in advice_for(RuntimeError(text))[1]
