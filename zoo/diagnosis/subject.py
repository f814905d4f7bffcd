"""The module under examination: run it, disturb it, train it a little, and put everything back."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn

from zoo._lightning import batch_to_device, step_arguments
from zoo._torch import uncompile
from zoo.callbacks.lr_finder import endless, optimizer_step, remember
from zoo.callbacks.memory import Memory
from zoo.callbacks.rates import assign, peaks
from zoo.diagnosis.compare import same
from zoo.diagnosis.recorder import Call, Loss, Recorder, kind_of, leaves, main_output, mapped
from zoo.diagnosis.report import Skip
from zoo.diagnosis.survey import Split, survey

Gradients = dict[str, Tensor]
"""By the parameter's name; parameters without a gradient are absent."""


class Subject:
    """A module inside a running trainer, with a few of its own batches.

    Args:
        trainer: stands right before its first training batch.
        module: the module.
        datamodule: its data.
        batches: how many training batches to look at.
        overfit_steps: optimizer steps to overfit one batch with.
    """

    def __init__(
        self, trainer: Any, module: LightningModule, datamodule: LightningDataModule, batches: int, overfit_steps: int
    ) -> None:
        self.trainer, self.module, self.datamodule, self.overfit_steps = trainer, module, datamodule, overfit_steps
        self.memory = Memory()
        remember(self.memory, trainer, module)
        for optimizer in trainer.optimizers[1:]:
            self.memory.keep(optimizer)
        for part in module.modules():
            uncompile(part)  # compiling would take longer than all the checks
            if isinstance(part, LightningModule):
                vars(part).update(log=_silent, log_dict=_silent)
        self.silenced = Memory()
        self.silenced.keep(module)
        for optimizer in trainer.optimizers:
            self.silenced.keep(optimizer)
        self.noting, self.seen = False, list[Gradients]()  # while noting: the gradients each optimizer steps with
        self.raw = list(islice(endless(trainer), batches))
        self.batches = [self._transferred(raw) for raw in self.raw]

    # State ------------------------------------------------------------------------------------------------------------

    def restore(self) -> None:
        """Weights, buffers, modes, optimizers as they were when the diagnosis began."""
        self.silenced.restore()
        self.noting = False
        self.seen.clear()

    def close(self) -> None:
        self.memory.restore()

    @property
    def automatic(self) -> bool:
        return self.module.automatic_optimization and len(self.trainer.optimizers) == 1

    @property
    def named(self) -> dict[str, nn.Parameter]:
        return dict(self.module.named_parameters())

    @torch.no_grad()
    def jitter(self) -> None:
        """From the restored state move all weights a little: what starts at zero then says what it is connected to."""
        self.restore()
        torch.manual_seed(0)
        for p in self.module.parameters():
            if p.is_floating_point():
                scale = float(p.detach().float().square().mean().sqrt())
                p.add_(torch.randn_like(p) * (0.05 * scale or 0.02))

    # What one training step shows -------------------------------------------------------------------------------------

    def trace(self, batch: Any = None, train: bool = True, seed: int = 0, gradients: bool = False) -> Recorder:
        """Run ``training_step`` on a batch, as found or in eval mode, and return what was seen, errors included.

        A module that optimises by itself takes its step.
        """
        recorder, modes = Recorder(self.module), {m: m.training for m in self.module.modules()}
        batch = self.batches[0] if batch is None else batch
        torch.manual_seed(seed)
        try:
            if not train:
                self.module.eval()
            with torch.set_grad_enabled(gradients or not self.automatic):
                self.module.on_train_batch_start(batch, 0)
                with recorder:
                    recorder.result = self.trainer.strategy.training_step(*self._arguments(batch, 0))
        except Exception as error:
            recorder.error = error
        finally:
            for m, mode in modes.items():
                m.training = mode
        net = recorder.net
        if not recorder.losses and recorder.loss is not None and net is not None:
            self._guess_loss(recorder, net, batch)
        return recorder

    def _guess_loss(self, recorder: Recorder, net: Call, batch: Any) -> None:
        """For losses written out in ``training_step``: outputs and targets are those that give its value."""
        output, value = main_output(net.output), recorder.loss
        for target in reversed(leaves(batch).values()):
            kind = kind_of(output.detach(), target, value) if output is not None and value is not None else ""
            if kind and output is not None:
                recorder.called.append(Loss(kind, output, target, {}, value))
                return

    @cached_property
    def first(self) -> Recorder:
        """The first training step, with the graph of its loss."""
        recorder = self.trace(gradients=True)
        if not self.automatic:
            self.silenced.restore()
        return recorder

    def good(self) -> Recorder:
        """The first training step, or Skip where it failed."""
        if self.first.error is not None:
            raise Skip("training_step fails, see above")
        return self.first

    def learnable(self) -> None:
        """Skip where no step could be taken."""
        first = self.good()
        if self.automatic and (first.loss is None or not first.loss.requires_grad):
            raise Skip("the loss has no gradient, see above")

    def loss(self) -> Loss:
        """The main loss of the first training step, or Skip."""
        found = self.good().losses
        if not found:
            raise Skip("the training step calls no loss function of torch, so outputs and targets are unknown")
        return max(found, key=lambda loss: loss.input.numel())

    def net(self) -> Call:
        """The network's call in the first training step, or Skip."""
        call = self.good().net
        if call is None or main_output(call.output) is None:
            raise Skip("the training step calls no module that returns numbers")
        return call

    def outputs(self, trace: Recorder) -> Tensor | None:
        """Outputs with one row a sample: what goes into the loss, or else what the network returns."""
        of_loss = [loss.input for loss in trace.losses[:1]]
        of_net = [trace.net.output] if trace.net else []
        found = [main_output(value) for value in of_loss + of_net]
        return next((x.detach() for x in found if x is not None and len(x) == self.size), None)

    @cached_property
    def size(self) -> int:
        """Samples in the first batch."""
        return next((len(t) for t in leaves(self.batches[0]).values() if t.ndim), 0)

    @torch.no_grad()
    def replay(
        self, call: Call, args: Any = None, kwargs: Any = None, seed: int = 0, train: bool = False, still: tuple = ()
    ) -> tuple[Tensor, Recorder]:
        """Call the network again, in eval mode, or in training mode without dropout and with some classes ``still``."""
        modes = {m: m.training for m in self.module.modules()}
        recorder = Recorder(self.module, mute_dropout=bool(still))
        torch.manual_seed(seed)
        try:
            self.module.train(train)
            for m in self.module.modules():
                m.training = m.training and not isinstance(m, still)
            with recorder, self.trainer.precision_plugin.forward_context():
                out = call.module(*(call.args if args is None else args), **(call.kwargs if kwargs is None else kwargs))
        finally:
            for m, mode in modes.items():
                m.training = mode
        output = main_output(out)
        if output is None:
            raise Skip("the network returns no numbers")
        return output.float(), recorder

    @cached_property
    def targets(self) -> set[str]:
        """The tensors of a batch that are what the loss compares with, by content or else by custom."""
        batch = leaves(self.batches[0])
        found = {n for n, t in batch.items() for loss in self.first.losses if same(t, loss.target)}
        return found or {n for n in batch if n in ("batch[1]", "batch['label']", "batch['labels']", "batch['target']")}

    @cached_property
    def splits(self) -> dict[str, Split]:
        """What was read of the data."""
        return survey(self.trainer, self.datamodule, self.targets)

    # Training a little ------------------------------------------------------------------------------------------------

    def step(self, raw: Any, index: int = 0, seed: int = 0) -> float:
        """One training step as Lightning takes it, on a batch as the loader gives it; returns the loss."""
        torch.manual_seed(seed)
        if self.automatic:
            loss = optimizer_step(self.trainer, self.module, iter([raw]), index)
            return float("nan") if loss is None else loss
        batch = self._transferred(raw)
        self.module.on_train_batch_start(batch, index)
        recorder = Recorder(self.module)
        with recorder:
            recorder.result = self.trainer.strategy.training_step(*self._arguments(batch, index))
        self.module.on_train_batch_end(recorder.result, batch, index)
        return float("nan") if recorder.loss is None else float(recorder.loss.detach())

    def note_gradients(self, optimizer: Any) -> None:
        """Called right before any optimizer steps."""
        if self.noting:
            mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
            held = {n: p.grad for n, p in self.named.items() if id(p) in mine}
            self.seen.append({n: g.detach().clone() for n, g in held.items() if g is not None})

    def peak(self) -> None:
        """Set the rates that a schedule rises to, which a warmup may hold near zero now."""
        if self.automatic:
            with suppress(ValueError):  # a schedule that is none of torch's
                for group, peak in zip(self.trainer.optimizers[0].param_groups, peaks(self.trainer), strict=True):
                    assign(group, "lr", peak)

    @cached_property
    def few(self) -> Any:
        """A handful of the first batch's samples, as the loader gives them: quick to learn by heart."""
        size = next((len(t) for t in leaves(self.raw[0]).values() if t.ndim), 0)
        small = mapped(self.raw[0], lambda _, t: t[:8] if t.ndim and len(t) == size else t)
        return self.raw[0] if self.trace(self._transferred(small), gradients=True).error else small

    def score(self) -> float:
        """The mean loss per target on the few samples, as ``training_step`` computes it."""
        trace = self.trace(self._transferred(self.few), gradients=True)
        if trace.error is not None or trace.loss is None:
            return float("nan")
        return trace.losses[0].mean() if self.pure else float(trace.loss.detach())

    @cached_property
    def pure(self) -> bool:
        """Whether the training step returns the plain mean of one of torch's losses, which can fall to 0."""
        first = self.first
        if len(first.losses) != 1 or first.loss is None or not first.losses[0].kind:
            return False
        return math.isclose(float(first.loss.detach().float().mean()), first.losses[0].mean(), rel_tol=0.02)

    def train(self, steps: int, optimizer: Any = None, seconds: float = 10.0) -> list[float]:
        """Train on the few samples, with the module's own optimizer if none is given; return its losses."""
        start, losses = time.monotonic(), list[float]()
        for i in range(steps):
            loss = self.step(self.few, i) if optimizer is None else self._plain_step(optimizer)
            losses.append(loss)
            done = not abs(loss) < 1e30 or 0 <= loss < 0.02 * abs(losses[0])
            if done or time.monotonic() - start > seconds:
                break
        return losses

    def _plain_step(self, optimizer: Any) -> float:
        torch.manual_seed(0)
        optimizer.zero_grad()
        with torch.enable_grad():
            result = self.trainer.strategy.training_step(*self._arguments(self._transferred(self.few), 0))
            loss = result["loss"] if isinstance(result, Mapping) else result
            loss.backward()
        optimizer.step()
        return float(loss.detach())

    # Helpers ----------------------------------------------------------------------------------------------------------

    def _transferred(self, raw: Any) -> Any:
        return batch_to_device(self.trainer, raw)

    def _arguments(self, batch: Any, index: int) -> tuple[Any, ...]:
        return step_arguments(self.module, batch, index)


def _silent(*_: Any, **__: Any) -> None:
    """Stands in for ``log`` during the diagnosis."""
