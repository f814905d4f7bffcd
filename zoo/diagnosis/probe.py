"""Observation and perturbation of a module in training, with everything restored afterwards."""

from __future__ import annotations

import math
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn

from zoo._torch import uncompile
from zoo.callbacks.lr_finder import cycle_batches, snapshot_training_state
from zoo.callbacks.state_snapshot import StateSnapshot
from zoo.diagnosis.data_statistics import SplitStatistics, collect_statistics
from zoo.diagnosis.recorder import Call, Loss, Recorder, identify_loss, main_output, map_tensors, named_tensors
from zoo.diagnosis.report import Skip
from zoo.diagnosis.steps import TrainingSteps
from zoo.diagnosis.tensor_diff import same_values

CUSTOMARY_TARGETS = ("batch[1]", "batch['label']", "batch['labels']", "batch['target']")
SMALL_BATCH = 8  # samples: quick to overfit


class Probe:
    """A module within a running trainer, with a few of its own batches.

    Args:
        trainer: the trainer, right before its first training batch.
        module: the module.
        datamodule: its data.
        batches: number of training batches to read.
        overfit_steps: optimizer steps for overfitting one batch.
    """

    def __init__(
        self,
        trainer: Any,
        module: LightningModule,
        datamodule: LightningDataModule,
        batches: int,
        overfit_steps: int,
    ) -> None:
        self.trainer = trainer
        self.module = module
        self.datamodule = datamodule
        self.overfit_steps = overfit_steps
        self.steps = TrainingSteps(trainer, module)
        self.snapshot = StateSnapshot()
        snapshot_training_state(self.snapshot, trainer, module)
        for part in module.modules():
            uncompile(part)  # compiling would take longer than all checks
            if isinstance(part, LightningModule):
                vars(part).update(log=_no_log, log_dict=_no_log)
        self.initial_state = StateSnapshot()
        self.initial_state.add(module)
        for optimizer in trainer.optimizers:
            self.initial_state.add(optimizer)
        self.raw_batches = list(islice(cycle_batches(trainer), batches))
        self.batches = [self.steps.to_device(raw) for raw in self.raw_batches]

    # State ------------------------------------------------------------------------------------------------------------

    def restore(self) -> None:
        """Restore weights, buffers, attributes, modes and optimizers as they were when the diagnosis began."""
        self.initial_state.restore()
        self.steps.stop_recording()

    def close(self) -> None:
        """Restore everything, also what the probe itself changed."""
        self.snapshot.restore()

    @property
    def automatic(self) -> bool:
        """Whether Lightning takes the optimizer steps, with one optimizer."""
        return self.steps.automatic

    @property
    def params(self) -> dict[str, nn.Parameter]:
        return dict(self.module.named_parameters())

    def record_gradients(self, optimizer: Any) -> None:
        """Record the gradients of an optimizer right before its step."""
        self.steps.record_gradients(optimizer)

    @torch.no_grad()
    def perturb_weights(self) -> None:
        """Restore the module and add a little noise to all weights, so that those initialised to 0 have an effect."""
        self.restore()
        torch.manual_seed(0)
        for param in self.module.parameters():
            if param.is_floating_point():
                rms = float(param.detach().float().square().mean().sqrt())
                param.add_(torch.randn_like(param) * (0.05 * rms or 0.02))

    # Observation of a training step -----------------------------------------------------------------------------------

    def trace(self, batch: Any = None, train: bool = True, seed: int = 0, gradients: bool = False) -> Recorder:
        """Run ``training_step`` and return what was observed, errors included.

        With manual optimization, the module takes its optimizer steps.

        Args:
            batch: a batch on the module's device; None for the first one.
            train: whether to keep the module's modes; otherwise all of it is in eval mode.
            seed: seed of the random numbers.
            gradients: whether to build the graph of the loss.
        """
        if batch is None:
            batch = self.batches[0]
        recorder = Recorder(self.module)
        modes = self._modes()
        torch.manual_seed(seed)
        try:
            if not train:
                self.module.eval()
            with torch.set_grad_enabled(gradients or not self.automatic):
                self.module.on_train_batch_start(batch, 0)
                with recorder:
                    recorder.result = self.trainer.strategy.training_step(*self.steps.arguments(batch, 0))
        except Exception as error:
            recorder.error = error
        finally:
            self._set_modes(modes)
        net = recorder.net
        if not recorder.losses and recorder.loss is not None and net is not None:
            self._guess_loss(recorder, net, batch)
        return recorder

    def _modes(self) -> dict[nn.Module, bool]:
        return {part: part.training for part in self.module.modules()}

    def _set_modes(self, modes: dict[nn.Module, bool]) -> None:
        for part, mode in modes.items():
            part.training = mode

    def _guess_loss(self, recorder: Recorder, net: Call, batch: Any) -> None:
        """For losses written out in ``training_step``: find the target with which torch's loss has the same value."""
        output = main_output(net.output)
        value = recorder.loss
        if output is None or value is None:
            return
        for target in reversed(named_tensors(batch).values()):
            kind = identify_loss(output.detach(), target, value)
            if kind:
                recorder.torch_losses.append(Loss(kind, output, target, {}, value))
                return

    @cached_property
    def first_trace(self) -> Recorder:
        """The first training step, with the graph of its loss."""
        recorder = self.trace(gradients=True)
        if not self.automatic:
            self.initial_state.restore()
        return recorder

    @cached_property
    def failure(self) -> tuple[int, Exception, str] | None:
        """What two whole training steps raise, see ``TrainingSteps.failure``."""
        self.restore()
        batches = self.raw_batches
        if len(batches) == 1:
            batches = batches * 2
        failure = self.steps.failure(batches[:2])
        self.restore()
        return failure

    def first_step(self) -> Recorder:
        """Return the first training step, or raise Skip where it failed."""
        if self.first_trace.error is not None:
            raise Skip("training_step fails, see above")
        return self.first_trace

    def require_gradient(self) -> None:
        """Raise Skip where no optimizer step can be taken."""
        first = self.first_step()
        if self.automatic and (first.loss is None or not first.loss.requires_grad):
            raise Skip("the loss has no gradient, see above")
        if self.failure is not None:
            raise Skip("a training step fails, see above")

    def main_loss(self) -> Loss:
        """Return the loss with the largest input in the first training step, or raise Skip."""
        losses = self.first_step().losses
        if not losses:
            raise Skip("the training step calls no loss function of torch, so outputs and targets are unknown")
        return max(losses, key=lambda loss: loss.input.numel())

    def network_call(self) -> Call:
        """Return the call of the network in the first training step, or raise Skip."""
        call = self.first_step().net
        if call is None or main_output(call.output) is None:
            raise Skip("the training step calls no module that returns a floating-point tensor")
        return call

    def outputs(self, trace: Recorder) -> Tensor | None:
        """Return outputs with one row per sample: the input of the loss, or else the output of the network."""
        candidates = [loss.input for loss in trace.losses[:1]]
        if trace.net is not None:
            candidates.append(trace.net.output)
        for candidate in candidates:
            output = main_output(candidate)
            if output is not None and len(output) == self.batch_size:
                return output.detach()
        return None

    @cached_property
    def batch_size(self) -> int:
        """Number of samples in the first batch."""
        return size_of(self.batches[0])

    @torch.no_grad()
    def replay(
        self,
        call: Call,
        args: Any = None,
        kwargs: Any = None,
        seed: int = 0,
        train: bool = False,
        still: tuple = (),
    ) -> tuple[Tensor, Recorder]:
        """Call the network again.

        Args:
            call: an earlier call of the network.
            args: other positional arguments.
            kwargs: other keyword arguments.
            seed: seed of the random numbers.
            train: whether the network is in training mode.
            still: classes of modules that stay in eval mode; with any, functional dropout is disabled, too.

        Returns:
            The main output and the record of the run.

        Raises:
            Skip: the network fails with other arguments, or returns no floating-point tensor.
        """
        modes = self._modes()
        recorder = Recorder(self.module, mute_dropout=bool(still))
        changed = args is not None or kwargs is not None
        if args is None:
            args = call.args
        if kwargs is None:
            kwargs = call.kwargs
        torch.manual_seed(seed)
        try:
            self.module.train(train)
            for part in self.module.modules():
                part.training = part.training and not isinstance(part, still)
            with recorder, self.trainer.precision_plugin.forward_context():
                result = call.module(*args, **kwargs)
        except Exception as error:
            if not changed:
                raise
            # The network may be right to refuse what the check made of its inputs.
            recorder.error = error
            raise NetworkRefuses(f"the network fails on a changed input: {type(error).__name__}: {error}") from error
        finally:
            self._set_modes(modes)
        output = main_output(result)
        if output is None:
            raise Skip("the network returns no floating-point tensor")
        return output.float(), recorder

    # Data -------------------------------------------------------------------------------------------------------------

    @cached_property
    def targets(self) -> set[str]:
        """Names of the tensors in a batch with which the loss compares, by value, or else by customary names."""
        batch = named_tensors(self.batches[0])
        names: set[str] = set()
        for loss in self.first_trace.losses:
            names |= {name for name, tensor in batch.items() if same_values(tensor, loss.target)}
        return names or {name for name in batch if name in CUSTOMARY_TARGETS}

    @cached_property
    def splits(self) -> dict[str, SplitStatistics]:
        """Statistics of the splits of the data."""
        return collect_statistics(self.trainer, self.datamodule, self.targets)

    # A few samples to overfit -----------------------------------------------------------------------------------------

    def first_samples(self, count: int) -> Any:
        """Return the first samples of the first batch, as the loader would yield them."""
        size = size_of(self.raw_batches[0])

        def cut(_: str, tensor: Tensor) -> Tensor:
            if tensor.ndim and len(tensor) == size:
                return tensor[:count]
            return tensor

        return map_tensors(self.raw_batches[0], cut)

    @cached_property
    def small_batch(self) -> Any:
        """A few samples of the first batch; all of it where ``training_step`` fails on a part."""
        small = self.first_samples(SMALL_BATCH)
        if self.trace(self.steps.to_device(small), gradients=True).error:
            return self.raw_batches[0]
        return small

    def small_batch_loss(self) -> float:
        """Return the mean loss per target on the few samples, as ``training_step`` computes it."""
        trace = self.trace(self.steps.to_device(self.small_batch), gradients=True)
        if trace.error is not None or trace.loss is None:
            return float("nan")
        if self.returns_plain_loss:
            return trace.losses[0].mean()
        return float(trace.loss.detach())

    @cached_property
    def returns_plain_loss(self) -> bool:
        """Whether ``training_step`` returns the plain mean of one of torch's losses, which can fall to 0."""
        first = self.first_trace
        if len(first.losses) != 1 or first.loss is None or not first.losses[0].kind:
            return False
        value = float(first.loss.detach().float().mean())
        return math.isclose(value, first.losses[0].mean(), rel_tol=0.02)


class NetworkRefuses(Skip):
    """The network raises an exception for arguments that a check has changed."""


def size_of(batch: Any) -> int:
    """Return the size of the first dimension of the first tensor that has one; 0 without any."""
    for tensor in named_tensors(batch).values():
        if tensor.ndim:
            return len(tensor)
    return 0


def _no_log(*_: Any, **__: Any) -> None:
    """Take the place of ``log`` during the diagnosis."""
