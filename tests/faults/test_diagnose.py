"""A diagnosis leaves no trace, says what it could not check, and prints as text and JSON."""

import copy
import itertools
import json
import random
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.faults import nets
from tests.faults.nets import Data, Module
from zoo.diagnosis import Finding, Report, diagnose, run


def snapshot(module: L.LightningModule) -> dict:
    return {
        "state": copy.deepcopy(module.state_dict()),
        "modes": {n: m.training for n, m in module.named_modules()},
        "hooks": {n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in module.named_modules()},
        "gradients": {n: p.grad for n, p in module.named_parameters()},
        "frozen": {n: p.requires_grad for n, p in module.named_parameters()},
        "attributes": {n: set(vars(m)) for n, m in module.named_modules()},
        "trainer": module._trainer,
    }


def random_state() -> tuple:
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]


def mixed() -> Module:
    """Some parts in training mode, some not."""
    module = Module(nets.cnn())
    module.net[1].eval()  # type: ignore[index]
    return module


def by_hand() -> Module:
    return nets.ByHand(nets.cnn())


@pytest.mark.parametrize("build", [mixed, by_hand])
def test_nothing_is_left_behind(build):
    module, data = build(), Data(*nets.images())
    identities = [id(p) for p in module.parameters()]
    before, seeds, facts = snapshot(module), random_state(), dict(vars(data))
    diagnose(module, data, overfit_steps=20)
    after = snapshot(module)
    for name, value in before.pop("state").items():
        assert torch.equal(value, after["state"][name]), name
    after.pop("state")
    assert before == after
    assert [id(p) for p in module.parameters()] == identities
    assert random_state() == seeds
    assert vars(data) == facts


def test_nothing_is_left_behind_by_an_interruption():
    class Interrupted(Module):
        calls = 0

        def training_step(self, batch, batch_idx):
            Interrupted.calls += 1
            if Interrupted.calls == 12:
                raise KeyboardInterrupt
            return super().training_step(batch, batch_idx)

    module = Interrupted(nets.mlp())
    before = snapshot(module)
    with pytest.raises(KeyboardInterrupt):
        diagnose(module, Data(*nets.table()))
    after = snapshot(module)
    assert all(torch.equal(v, after["state"][k]) for k, v in before["state"].items())
    assert before["hooks"] == after["hooks"]
    assert before["attributes"] == after["attributes"]


def test_the_same_training_follows_with_and_without_a_diagnosis():
    def trained(diagnosed: bool) -> torch.Tensor:
        torch.manual_seed(0)
        module, data = Module(nets.cnn()), Data(*nets.images())
        if diagnosed:
            diagnose(module, data, overfit_steps=20)
        L.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(module, data)  # fmt: skip
        return torch.cat([p.detach().flatten() for p in module.parameters()])

    assert torch.equal(trained(True), trained(False))


def test_report_as_text_and_json():
    x, y = nets.table()
    report = diagnose(Module(nets.mlp()), Data(x, y + 1))
    assert not report.ok
    text, parsed = str(report), json.loads(report.to_json())
    assert text.startswith("Module on Data: 2 errors, no warnings")
    assert max(map(len, text.splitlines())) <= 120
    assert not parsed["ok"]
    labels = next(f for f in parsed["findings"] if f["name"] == "labels")
    assert labels["status"] == "error"
    assert "start at 1" in labels["advice"]
    assert "labels run from 1 to 4, but 4 outputs allow 0 to 3" in text.replace("\n", " ").replace("  ", "")
    assert len({f["name"] for f in parsed["findings"]}) == 28


def test_warnings_leave_the_report_ok():
    assert Report("A", "B", [Finding("warning", "odd", name="x"), Finding("skipped", "no", name="y")], 0.1).ok
    assert not Report("A", "B", [Finding("error", "bad", name="x")], 0.1).ok


def test_shapes_are_listed_layer_by_layer():
    report = diagnose(Module(nets.cnn()), Data(*nets.images()), overfit_steps=20)
    lines = next(f.details for f in report.findings if f.name == "shapes")
    assert lines[0].split() == ["net.0", "Conv2d", "32x1x8x8", "->", "32x12x8x8"]
    assert lines[-1].split() == ["net.8", "Linear", "32x384", "->", "32x10"]


def test_a_step_that_fails_is_named_and_the_rest_skipped():
    report = diagnose(Module(nets.mlp(features=9)), Data(*nets.table()))
    (failure,) = report.of("error")
    assert failure.name == "training step"
    assert "net.0 (Linear)" in failure.message
    assert "8" in failure.message
    assert "9" in failure.message
    assert len(report.of("skipped")) > 15


def test_a_given_trainer_keeps_its_own_ways():
    class Noted(L.Callback):
        called = False

        def on_train_start(self, *args):
            Noted.called = True

    callback = Noted()
    trainer = L.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, precision="bf16-mixed", accumulate_grad_batches=4, callbacks=[callback],
    )  # fmt: skip
    report = run(trainer, Module(nets.cnn()), Data(*nets.images()), overfit_steps=60)
    assert report.ok, str(report)
    assert not Noted.called, "callbacks may act on the weights, or save them"
    assert callback in trainer.callbacks
    assert trainer.accumulate_grad_batches == 4


def test_rates_are_judged_at_a_warmup_s_peak():
    class Warm(Module):
        def configure_optimizers(self):
            optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 1000))
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    report = diagnose(Warm(nets.mlp()), Data(*nets.table()), overfit_steps=60)
    assert not report.of("error") + report.of("warning"), str(report)
    assert "lr is 0.003" in next(f.message for f in report.findings if f.name == "learning rate")


@pytest.mark.parametrize("seed", [0, 1])  # of the first, Adam learns the samples in the same time
def test_a_machine_that_is_too_slow_is_no_fault_of_the_module(seed, monkeypatch):
    torch.manual_seed(seed)
    clock = SimpleNamespace(monotonic=itertools.count(0, 3.0).__next__)
    monkeypatch.setattr("zoo.diagnosis.steps.time", clock)  # three seconds a step
    report = diagnose(Module(nets.mlp()), Data(*nets.table()), overfit_steps=60)
    overfit = next(f for f in report.findings if f.name == "overfit")
    assert overfit.status == "skipped"
    assert "in 4 steps" in overfit.message
    assert "the time was too short" in overfit.message


def test_wrong_arguments_and_empty_data_are_named():
    with pytest.raises(ValueError, match="batches=0"):
        diagnose(Module(nets.mlp()), Data(*nets.table()), batches=0)

    class Empty(Data):
        def train_dataloader(self):
            return []

    with pytest.raises(ValueError, match="Empty yields no training batch"):
        diagnose(Module(nets.mlp()), Empty(*nets.table()))


def test_a_batch_of_one_sample_is_no_reason_to_fail():
    report = diagnose(Module(nets.mlp()), Data(*nets.table(100), batch_size=1), overfit_steps=20)
    mixing = next(f for f in report.findings if f.name == "sample mixing")
    assert (mixing.status, mixing.message) == ("skipped", "the batch has only one sample")
    assert not [f for f in report.of("skipped") if "the check failed" in f.message]


def test_a_module_without_a_known_loss_is_checked_as_far_as_it_goes():
    def odd(x, y):
        return (x.gather(1, y.unsqueeze(1)) - x.logsumexp(1, keepdim=True)).exp().neg().add(1).mean()

    report = diagnose(Module(nets.mlp(), odd), Data(*nets.table()), overfit_steps=100)
    assert report.ok, str(report)
    skipped = {f.name: f.message for f in report.of("skipped")}
    assert "outputs and targets are unknown" in skipped["initial loss"]
    assert F.mse_loss.__name__ not in str(report)
