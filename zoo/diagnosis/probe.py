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
from zoo.callbacks.learning_rates import peak_lrs, set_value
from zoo.callbacks.lr_finder import cycle_batches, optimizer_step, snapshot_training_state
from zoo.callbacks.state_snapshot import StateSnapshot
from zoo.diagnosis.data_statistics import SplitStatistics, collect_statistics
from zoo.diagnosis.recorder import Call, Loss, Recorder, identify_loss, main_output, map_tensors, named_tensors
from zoo.diagnosis.report import Skip
from zoo.diagnosis.tensor_diff import same_values

Gradients = dict[str, Tensor]
"""By the parameter's name; parameters without a gradient are absent."""


class Probe:
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
        self.snapshot = StateSnapshot()
        snapshot_training_state(self.snapshot, trainer, module)
        for optimizer in trainer.optimizers[1:]:
            self.snapshot.add(optimizer)
        for part in module.modules():
            uncompile(part)  # compiling would take longer than all the checks
            if isinstance(part, LightningModule):
                vars(part).update(log=_no_log, log_dict=_no_log)
        self.initial_state = StateSnapshot()
        self.initial_state.add(module)
        for optimizer in trainer.optimizers:
            self.initial_state.add(optimizer)
        self.recording, self.recorded = (
            False,
            list[Gradients](),
        )  # while recording: the gradients each optimizer steps with
        self.raw_batches = list(islice(cycle_batches(trainer), batches))
        self.batches = [self._transfer(raw) for raw in self.raw_batches]

    # State ------------------------------------------------------------------------------------------------------------

    def restore(self) -> None:
        """Weights, buffers, modes, optimizers as they were when the diagnosis began."""
        self.initial_state.restore()
        self.recording = False
        self.recorded.clear()

    def close(self) -> None:
        self.snapshot.restore()

    @property
    def automatic(self) -> bool:
        return self.module.automatic_optimization and len(self.trainer.optimizers) == 1

    @property
    def params(self) -> dict[str, nn.Parameter]:
        return dict(self.module.named_parameters())

    @torch.no_grad()
    def perturb_weights(self) -> None:
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
        for target in reversed(named_tensors(batch).values()):
            kind = identify_loss(output.detach(), target, value) if output is not None and value is not None else ""
            if kind and output is not None:
                recorder.torch_losses.append(Loss(kind, output, target, {}, value))
                return

    @cached_property
    def first_trace(self) -> Recorder:
        """The first training step, with the graph of its loss."""
        recorder = self.trace(gradients=True)
        if not self.automatic:
            self.initial_state.restore()
        return recorder

    def first_step(self) -> Recorder:
        """The first training step, or Skip where it failed."""
        if self.first_trace.error is not None:
            raise Skip("training_step fails, see above")
        return self.first_trace

    def require_gradient(self) -> None:
        """Skip where no step could be taken."""
        first = self.first_step()
        if self.automatic and (first.loss is None or not first.loss.requires_grad):
            raise Skip("the loss has no gradient, see above")

    def main_loss(self) -> Loss:
        """The main loss of the first training step, or Skip."""
        found = self.first_step().losses
        if not found:
            raise Skip("the training step calls no loss function of torch, so outputs and targets are unknown")
        return max(found, key=lambda loss: loss.input.numel())

    def network_call(self) -> Call:
        """The network's call in the first training step, or Skip."""
        call = self.first_step().net
        if call is None or main_output(call.output) is None:
            raise Skip("the training step calls no module that returns numbers")
        return call

    def outputs(self, trace: Recorder) -> Tensor | None:
        """Outputs with one row a sample: what goes into the loss, or else what the network returns."""
        of_loss = [loss.input for loss in trace.losses[:1]]
        of_net = [trace.net.output] if trace.net else []
        found = [main_output(value) for value in of_loss + of_net]
        return next((x.detach() for x in found if x is not None and len(x) == self.batch_size), None)

    @cached_property
    def batch_size(self) -> int:
        """Samples in the first batch."""
        return next((len(t) for t in named_tensors(self.batches[0]).values() if t.ndim), 0)

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
        batch = named_tensors(self.batches[0])
        found = {n for n, t in batch.items() for loss in self.first_trace.losses if same_values(t, loss.target)}
        return found or {n for n in batch if n in ("batch[1]", "batch['label']", "batch['labels']", "batch['target']")}

    @cached_property
    def splits(self) -> dict[str, SplitStatistics]:
        """What was read of the data."""
        return collect_statistics(self.trainer, self.datamodule, self.targets)

    # Training a little ------------------------------------------------------------------------------------------------

    def step(self, raw: Any, index: int = 0, seed: int = 0) -> float:
        """One training step as Lightning takes it, on a batch as the loader gives it; returns the loss."""
        torch.manual_seed(seed)
        if self.automatic:
            loss = optimizer_step(self.trainer, self.module, iter([raw]), index)
            return float("nan") if loss is None else loss
        batch = self._transfer(raw)
        self.module.on_train_batch_start(batch, index)
        recorder = Recorder(self.module)
        with recorder:
            recorder.result = self.trainer.strategy.training_step(*self._arguments(batch, index))
        self.module.on_train_batch_end(recorder.result, batch, index)
        return float("nan") if recorder.loss is None else float(recorder.loss.detach())

    def record_gradients(self, optimizer: Any) -> None:
        """Called right before any optimizer steps."""
        if self.recording:
            mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
            held = {n: p.grad for n, p in self.params.items() if id(p) in mine}
            self.recorded.append({n: g.detach().clone() for n, g in held.items() if g is not None})

    def set_peak_lr(self) -> None:
        """Set the rates that a schedule rises to, which a warmup may hold near zero now."""
        if self.automatic:
            with suppress(ValueError):  # a schedule that is none of torch's
                for group, peak in zip(self.trainer.optimizers[0].param_groups, peak_lrs(self.trainer), strict=True):
                    set_value(group, "lr", peak)

    @cached_property
    def small_batch(self) -> Any:
        """A handful of the first batch's samples, as the loader gives them: quick to overfit."""
        size = next((len(t) for t in named_tensors(self.raw_batches[0]).values() if t.ndim), 0)
        small = map_tensors(self.raw_batches[0], lambda _, t: t[:8] if t.ndim and len(t) == size else t)
        return self.raw_batches[0] if self.trace(self._transfer(small), gradients=True).error else small

    def small_batch_loss(self) -> float:
        """The mean loss per target on the few samples, as ``training_step`` computes it."""
        trace = self.trace(self._transfer(self.small_batch), gradients=True)
        if trace.error is not None or trace.loss is None:
            return float("nan")
        return trace.losses[0].mean() if self.returns_plain_loss else float(trace.loss.detach())

    @cached_property
    def returns_plain_loss(self) -> bool:
        """Whether the training step returns the plain mean of one of torch's losses, which can fall to 0."""
        first = self.first_trace
        if len(first.losses) != 1 or first.loss is None or not first.losses[0].kind:
            return False
        return math.isclose(float(first.loss.detach().float().mean()), first.losses[0].mean(), rel_tol=0.02)

    def train(self, steps: int, optimizer: Any = None, seconds: float = 10.0) -> list[float]:
        """Train on the few samples, with the module's own optimizer if none is given; return its losses."""
        start, losses = time.monotonic(), list[float]()
        for i in range(steps):
            loss = self.step(self.small_batch, i) if optimizer is None else self._plain_step(optimizer)
            losses.append(loss)
            done = not abs(loss) < 1e30 or 0 <= loss < 0.02 * abs(losses[0])
            if done or time.monotonic() - start > seconds:
                break
        return losses

    def _plain_step(self, optimizer: Any) -> float:
        torch.manual_seed(0)
        optimizer.zero_grad()
        with torch.enable_grad():
            result = self.trainer.strategy.training_step(*self._arguments(self._transfer(self.small_batch), 0))
            loss = result["loss"] if isinstance(result, Mapping) else result
            loss.backward()
        optimizer.step()
        return float(loss.detach())

    # Helpers ----------------------------------------------------------------------------------------------------------

    def _transfer(self, raw: Any) -> Any:
        return batch_to_device(self.trainer, raw)

    def _arguments(self, batch: Any, index: int) -> tuple[Any, ...]:
        return step_arguments(self.module, batch, index)


def _no_log(*_: Any, **__: Any) -> None:
    """Stands in for ``log`` during the diagnosis."""
