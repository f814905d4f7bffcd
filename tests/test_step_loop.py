"""StepLoop is Lightning's own loop in all that can be seen: hooks, their order, weights, logs and what is saved."""

from __future__ import annotations

import lightning as L
import pytest
import torch
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from zoo.step_loop import StepLoop

WATCHED = [
    name
    for name in dir(L.Callback)
    if name.startswith("on_") and name not in ("on_save_checkpoint", "on_load_checkpoint")
]


class Watcher(L.Callback):
    """Write down every hook that is called, with the progress a callback would see."""

    def __init__(self) -> None:
        self.seen: list = []

    def __getattribute__(self, name: str):
        if name in WATCHED:
            return lambda trainer, module, *args: self.note(name, trainer, module, args)
        return super().__getattribute__(name)

    def note(self, name, trainer, module, args) -> None:
        loop = trainer.fit_loop.epoch_loop
        entry = [name, module._current_fx_name, trainer.global_step, loop.batch_idx, loop.batch_progress.state_dict()]
        entry += [float(v) for v in args if isinstance(v, torch.Tensor)]
        entry += [{k: float(v) for k, v in a.items()} for a in args if isinstance(a, dict)]
        entry += [sum(float(p.detach().sum()) for p in module.parameters())]
        entry += [[p.grad is None or float(p.grad.sum()) for p in module.parameters()]]
        self.seen.append(entry)


class Module(L.LightningModule):
    def __init__(self, optimizer=torch.optim.AdamW, schedule=False) -> None:
        super().__init__()
        self.net, self.kind, self.schedule = nn.Linear(3, 2), optimizer, schedule

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val", self.net(batch[0]).mean())

    def configure_optimizers(self):
        optimizer = self.kind(self.parameters(), lr=0.1)
        if not self.schedule:
            return optimizer
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=7)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class ReturnsDict(Module):
    def training_step(self, batch):  # no index
        return {"loss": super().training_step(batch, 0), "extra": torch.ones(1)}


class SometimesNothing(Module):
    def training_step(self, batch, batch_idx):
        return None if batch_idx == 1 else super().training_step(batch, batch_idx)


class OwnHooks(Module):
    def on_after_backward(self):
        self.log("grad", self.net.weight.grad.norm())

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.log("out", outputs["loss"])

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch[0] * 2, batch[1]

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        self.clip_gradients(optimizer, 0.01, "value")


class StopsEarly(Module):
    def on_train_batch_start(self, batch, batch_idx):
        return -1 if batch_idx == 2 else None


class LBFGS(torch.optim.LBFGS):
    def __init__(self, params, lr) -> None:
        super().__init__(list(params), lr, max_iter=3)


def run(module, loop: bool, **kwargs):
    L.seed_everything(1, verbose=False)
    module, watcher = module(), Watcher()
    given = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "callbacks": [watcher],
    }
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 2}
    trainer = L.Trainer(**{**given, **quiet, **kwargs})
    if loop:
        StepLoop.install(trainer)
    x = torch.randn(22, 3, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(x, (x[:, 0] > 0).long())
    trainer.fit(module, DataLoader(data, 4), DataLoader(data, 4))
    loops = trainer.fit_loop.state_dict()
    metrics = {k: float(v) for k, v in trainer.callback_metrics.items()}
    return watcher.seen, [p.detach().clone() for p in module.parameters()], loops, metrics


CASES = {
    "plain": (Module, {}),
    "clipped": (Module, {"gradient_clip_val": 0.01}),
    "clipped by value": (Module, {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}),
    "not clipped": (Module, {"gradient_clip_val": 0.0}),
    "accumulated": (Module, {"accumulate_grad_batches": 4}),
    "validated within": (Module, {"val_check_interval": 2}),
    "max_steps": (Module, {"max_steps": 7, "max_epochs": -1}),
    "limited": (Module, {"limit_train_batches": 3}),
    "scheduled": (lambda: Module(schedule=True), {}),
    "LBFGS": (lambda: Module(LBFGS), {}),
    "dict": (ReturnsDict, {}),
    "nothing": (SometimesNothing, {"gradient_clip_val": 1.0}),
    "own hooks": (OwnHooks, {}),
    "stops early": (StopsEarly, {}),
    "double": (Module, {"precision": "64-true"}),
    "bf16": (Module, {"precision": "bf16-mixed", "gradient_clip_val": 0.01}),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore")
def test_as_lightning_does(name: str):
    module, kwargs = CASES[name]
    seen, weights, loops, metrics = run(module, loop=True, **kwargs)
    their_seen, their_weights, their_loops, their_metrics = run(module, loop=False, **kwargs)
    assert [entry[0] for entry in seen] == [entry[0] for entry in their_seen]
    for ours, theirs in zip(seen, their_seen, strict=True):
        assert repr(ours) == repr(theirs)
    assert all(torch.equal(a, b) for a, b in zip(weights, their_weights, strict=True))
    assert loops == their_loops
    assert repr(metrics) == repr(their_metrics)


def test_the_ordinary_goes_the_short_way(monkeypatch):
    monkeypatch.setattr(_TrainingEpochLoop, "advance", lambda *args: pytest.fail("the long way"))
    run(Module, loop=True, gradient_clip_val=1.0)
    with pytest.raises(pytest.fail.Exception, match="the long way"):
        run(Module, loop=True, accumulate_grad_batches=2)


def test_gradients_of_two_kinds_are_clipped_together():
    def mixed():
        module = Module()
        module.extra = nn.Parameter(torch.ones(2, dtype=torch.float64))
        step = module.training_step
        module.training_step = lambda batch, batch_idx: step(batch, batch_idx) + module.extra.sum().float()
        return module

    ours, theirs = (run(mixed, loop, gradient_clip_val=0.01)[1] for loop in (True, False))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
