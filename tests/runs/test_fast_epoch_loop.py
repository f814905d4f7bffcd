"""FastEpochLoop is Lightning's own loop in all that can be seen: hooks, their order, weights, logs and what is
saved."""

from __future__ import annotations

import warnings

import lightning as L
import pytest
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.loops.optimization.automatic import Closure
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, default_collate

from zoo.runs.fast_epoch_loop import FastEpochLoop

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


class OwnHooksWithoutOutput(OwnHooks):
    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.log("nothing", float(outputs is None))

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch and super().on_after_batch_transfer(batch, dataloader_idx)


class StopsEarly(Module):
    def on_train_batch_start(self, batch, batch_idx):
        return -1 if batch_idx == 2 else None


class NotesNames(Module):
    """Write down the hook that Lightning believes to be in, where no hook is."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list = []

    def backward(self, loss):
        self.notes.append(self._current_fx_name)
        super().backward(loss)

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        optimizer.register_step_pre_hook(lambda *args: self.notes.append(self._current_fx_name))
        return optimizer


class WrapsOptimizer(Module):
    def configure_optimizers(self):
        return LightningOptimizer(super().configure_optimizers())


class LBFGS(torch.optim.LBFGS):
    def __init__(self, params, lr) -> None:
        super().__init__(list(params), lr, max_iter=3)


class WithGradientsOff(torch.optim.SGD):
    """Call the closure as few optimizers do: without switching gradients on for it."""

    @torch.no_grad()
    def step(self, closure=None):
        loss = closure()
        super().step()
        return loss


class IgnoresClosure(torch.optim.SGD):
    """Call the closure in the first two steps only."""

    steps = 0

    def step(self, closure=None):
        self.steps += 1
        return super().step(closure if self.steps < 3 else None)


def no_second_batch(samples):
    """Collate all batches but the one that begins with the fifth sample."""
    batch = default_collate(samples)
    return None if float(batch[0][0, 0]) == float(inputs()[4, 0]) else batch


def inputs() -> torch.Tensor:
    return torch.randn(22, 3, generator=torch.Generator().manual_seed(0))


def run(module, loop: bool, collate=None, callbacks=(), **kwargs):
    L.seed_everything(1, verbose=False)
    module, watcher = module(), Watcher()
    given = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "callbacks": [watcher, *callbacks],
    }
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 2}
    trainer = L.Trainer(**{**given, **quiet, **kwargs})
    if loop:
        FastEpochLoop.install(trainer)
    data = TensorDataset(inputs(), (inputs()[:, 0] > 0).long())
    error = None
    try:
        trainer.fit(module, DataLoader(data, 4, collate_fn=collate), DataLoader(data, 4))
    except MisconfigurationException as raised:
        error = str(raised)
    loops = trainer.fit_loop.state_dict()
    metrics = {k: float(v) for k, v in trainer.callback_metrics.items()}
    notes = [*getattr(module, "notes", []), error]
    return watcher.seen, [p.detach().clone() for p in module.parameters()], loops, metrics, notes


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
    "a batch of None": (Module, {"collate": no_second_batch}),
    "a batch of None, own hooks": (OwnHooksWithoutOutput, {"collate": no_second_batch}),
    "closure without gradients on": (lambda: Module(WithGradientsOff), {"gradient_clip_val": 0.01}),
    "closure not called": (lambda: Module(IgnoresClosure), {}),
    "names": (NotesNames, {}),
    "optimizer of Lightning": (WrapsOptimizer, {}),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore")
def test_as_lightning_does(name: str):
    module, kwargs = CASES[name]
    same(run(module, loop=True, **kwargs), run(module, loop=False, **kwargs))


def same(ours, theirs) -> None:
    """Compare what two runs return: the hooks that were called, weights, progress, metrics and notes."""
    seen, weights, loops, metrics, notes = ours
    assert seen
    their_seen, their_weights, their_loops, their_metrics, their_notes = theirs
    assert [entry[0] for entry in seen] == [entry[0] for entry in their_seen]
    for our_entry, their_entry in zip(seen, their_seen, strict=True):
        assert repr(our_entry) == repr(their_entry)
    assert all(torch.equal(a, b) for a, b in zip(weights, their_weights, strict=True))
    assert loops == their_loops
    assert repr(metrics) == repr(their_metrics)
    assert notes == their_notes


def test_an_optimizer_must_call_the_closure():
    """The comparison above is of something: both loops refuse the third step."""
    seen, _, loops, _, notes = run(lambda: Module(IgnoresClosure), loop=True)
    assert "The closure hasn't been executed" in notes[-1]
    assert loops["epoch_loop.batch_progress"]["current"] == {"ready": 3, "started": 3, "processed": 2, "completed": 2}
    assert loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["total"]["completed"] == 3
    assert [entry[0] for entry in seen].count("on_train_batch_end") == 2


@pytest.mark.parametrize(
    ("module", "kwargs", "text"),
    [
        (Module, {"collate": no_second_batch}, "train_dataloader yielded None"),
        (SometimesNothing, {}, "`training_step` returned `None`"),
    ],
)
def test_warnings_are_lightnings(module, kwargs, text):
    texts = []
    for loop in (True, False):
        Closure.warning_cache.clear()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run(module, loop, **kwargs)
        texts.append([(warning.category, str(warning.message)) for warning in caught])
    ours, theirs = texts
    assert ours == theirs
    assert sum(text in message for _, message in ours) == 1


def noting(name: str, notes: list, original):
    def hook(*args, **kwargs):
        notes.append(name)
        return original(*args, **kwargs)

    return hook


HOOKS_OF_BOTH = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)
HOOKS_OF_MODULES = (
    "configure_gradient_clipping",
    "clip_gradients",
    "optimizer_zero_grad",
    "optimizer_step",
    "backward",
    "on_before_batch_transfer",
    "transfer_batch_to_device",
    "on_after_batch_transfer",
)
REPLACED = {f"{name} of the module": ((name,), "attribute") for name in HOOKS_OF_MODULES}
REPLACED |= {
    "hooks of the module": (HOOKS_OF_BOTH, "attribute"),
    "hooks of the module's class": (HOOKS_OF_BOTH, "class"),
    "hooks of a callback": (HOOKS_OF_BOTH, "attribute of a callback"),
    "hooks by those of a new callback": (HOOKS_OF_BOTH, "new callback"),
    "hooks by None": (HOOKS_OF_BOTH, "None"),
}


def replacing(names: tuple[str, ...], by: str):
    """A module that gets other hooks in the third step."""

    class Replacing(Module):
        def __init__(self) -> None:
            super().__init__()
            self.notes: list = []

        def training_step(self, batch, batch_idx):
            if batch_idx == 2:
                for name in names:
                    self.replace(name)
            return super().training_step(batch, batch_idx)

        def replace(self, name: str) -> None:
            callback = self.trainer.callbacks[-1]
            if by == "attribute":
                setattr(self, name, noting(name, self.notes, getattr(self, name)))
            elif by == "class":
                setattr(type(self), name, noting(name, self.notes, getattr(type(self), name)))
            elif by == "attribute of a callback":
                setattr(callback, name, noting(name, self.notes, getattr(callback, name)))
            elif by == "new callback":
                new = type("New", (L.Callback,), {name: noting(name, self.notes, getattr(L.Callback, name))})
                self.trainer.callbacks.append(new())
            elif by == "None":
                setattr(self, name, None)
                setattr(callback, name, None)

    return Replacing


@pytest.mark.parametrize("which", REPLACED)
@pytest.mark.filterwarnings("ignore")
def test_replaced_within_an_epoch(which: str):
    """Whatever is replaced in the third step is called from then on, as in Lightning."""
    names, by = REPLACED[which]
    ours, theirs = (
        run(
            replacing(names, by),
            loop,
            max_epochs=1,
            gradient_clip_val=0.01,
            callbacks=[type("Empty", (L.Callback,), {})()],
        )
        for loop in (True, False)
    )
    same(ours, theirs)
    if by != "None":
        assert all(ours[-1].count(name) >= 3 for name in names), "of six steps those behind the third"


@pytest.mark.filterwarnings("ignore")
def test_a_training_step_replaced_within_an_epoch():
    """Also by one that takes no index."""

    class Replacing(Module):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            if batch_idx == 1:
                self.training_step = lambda batch, batch_idx: self.net(batch[0]).square().mean() * batch_idx
            if batch_idx == 2:
                self.training_step = self.third

        def third(self, batch):
            return self.net(batch[0]).mean()

    same(run(Replacing, loop=True, max_epochs=1), run(Replacing, loop=False, max_epochs=1))


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
