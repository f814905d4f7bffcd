"""Learning rate range test (Smith 2017, "Cyclical Learning Rates", https://arxiv.org/abs/1506.01186)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from zoo._lightning import batch_to_device, step_arguments, training_batches
from zoo._torch import forget_iterator
from zoo.callbacks.learning_rates import main_lr, peak_lrs, rescaled_lrs, set_lr, set_value
from zoo.callbacks.lr_curve import Mode, Suggestion, Sweep, loss_decreases, lr_grid, plot_sweep, suggest, write_csv
from zoo.callbacks.output_folder import output_folder
from zoo.callbacks.plots.figures import save_figure
from zoo.callbacks.state_snapshot import StateSnapshot


class LRFinder(Callback):
    """Find a learning rate before training starts, and set it in the optimizer and its schedule.

    The sweep takes optimizer steps at rising rates with the real optimizer, from its initial state. Then weights,
    buffers, metrics, optimizer, random generators and data are restored, so the run equals one that is started with the
    suggested rate. The rates of all parameter groups are scaled by one common factor. Needs automatic optimisation with
    one optimizer; does nothing in a resumed run. Logs no metrics: writes ``lr_find.csv`` and ``lr_find.png``, and
    prints the rate.

    Args:
        min_lr: lowest rate, as the module's ``lr``: that of a group with ``lr_scale`` 1, else of the largest group.
            With a schedule, its peak.
        max_lr: highest rate.
        steps: number of optimizer steps in the sweep.
        mode: spacing of the rates, ``exponential`` or ``linear``.
        suggestion: method that chooses the rate: ``minimum`` (2.5 times below the rates of the lowest losses, or less
            with more steps in a decade than 12.5), ``steepest`` (where the loss falls fastest), ``valley`` (midway
            between the rates at which 10 % and 90 % of the fall are reached) or ``minimum/10`` (a tenth of the rate of
            the lowest loss).
        smoothing: standard deviation of the Gaussian that smooths the loss, in decades of the rate, or in tenths of the
            range where ``mode`` is ``linear``; 0 smooths nothing.
        early_stop_threshold: the sweep ends once the smoothed loss exceeds its minimum by this factor.
        apply: whether to set the rate; if false, it is only reported.
        dirpath: output folder; null for the logger's, or else the trainer's ``default_root_dir``.
    """

    def __init__(
        self,
        min_lr: float = 1e-7,
        max_lr: float = 10.0,
        steps: int = 100,
        mode: Mode = "exponential",
        suggestion: Suggestion = "minimum",
        smoothing: float = 0.2,
        early_stop_threshold: float = 4.0,
        apply: bool = True,
        dirpath: str | None = None,
    ) -> None:
        if not 0 < min_lr < max_lr:
            raise ValueError(f"min_lr={min_lr} and max_lr={max_lr}: 0 < min_lr < max_lr is needed")
        if steps < 10:
            raise ValueError(f"steps={steps}: at least 10 are needed to see a curve")
        if not 0 <= smoothing <= 1:
            raise ValueError(f"smoothing={smoothing}: must be from 0 to 1 decades")
        if early_stop_threshold <= 1:
            raise ValueError(f"early_stop_threshold={early_stop_threshold}: must be above 1")
        if mode not in Mode.__args__:
            raise ValueError(f"mode={mode!r}: must be one of {', '.join(Mode.__args__)}")
        if suggestion not in Suggestion.__args__:
            raise ValueError(f"suggestion={suggestion!r}: must be one of {', '.join(Suggestion.__args__)}")
        self.min_lr = min_lr
        self.max_lr = max_lr
        self.steps = steps
        self.mode: Mode = mode
        self.suggestion = suggestion
        self.smoothing = smoothing
        self.early_stop_threshold = early_stop_threshold
        self.apply = apply
        self.dirpath = dirpath
        self.result: Sweep | None = None

    # Not on_fit_start: loaders are built, a checkpoint restored and the module's own on_fit_start done only now.
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.ckpt_path or trainer.global_step or getattr(trainer, "fast_dev_run", False):
            return
        rates = lr_grid(self.min_lr, self.max_lr, self.steps, self.mode)
        result = sweep(
            trainer,
            pl_module,
            rates,
            self.mode,
            self.smoothing,
            self.early_stop_threshold,
        )
        self.result = result
        folder = output_folder(trainer, self.dirpath)
        if result.suggestions:
            self._choose(trainer, result, folder)
        else:
            rank_zero_warn(
                f"LRFinder: the loss never falls clearly between lr={result.lrs[0]:.2g} and {result.lrs[-1]:.2g}"
                f" in {len(result.lrs)} steps; lr={result.base:.3g} stays. More steps may show a fall"
            )
        if trainer.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            write_csv(result, folder / "lr_find.csv")
            save_figure(plot_sweep(result), folder / "lr_find.png", dpi=120)

    def _choose(self, trainer: Trainer, result: Sweep, folder: Path) -> None:
        """Set the suggested rate, if it is to be applied, and print it next to the other suggestions."""
        result.chosen = result.suggestions[self.suggestion]
        verb = "suggests"
        if self.apply:
            verb = "takes"
            set_lr(trainer, result.chosen)
        if not trainer.is_global_zero:
            return
        others = [f"{name} {lr:.3g}" for name, lr in result.suggestions.items() if name != self.suggestion]
        print(
            f"LRFinder: {verb} lr={result.chosen:.3g} ({self.suggestion}; {', '.join(others)};"
            f" was {result.base:.3g}), see {folder / 'lr_find.png'}"
        )


def sweep(
    trainer: Any,
    module: LightningModule,
    rates: list[float],
    mode: Mode,
    smoothing: float,
    early_stop_threshold: float,
) -> Sweep:
    """Take one optimizer step at each rate until the loss diverges; then restore all state.

    Can be called in any hook between ``on_train_start`` and the first batch.

    Args:
        trainer: the trainer.
        module: the module in training.
        rates: main learning rates in ascending order.
        mode: spacing of the rates.
        smoothing: see :class:`LRFinder`.
        early_stop_threshold: factor over the lowest smoothed loss at which the sweep ends.

    Raises:
        ValueError: without exactly one optimizer, with manual optimisation, or without three finite losses.
    """
    name = type(module).__name__
    num_optimizers = len(trainer.optimizers)
    if num_optimizers != 1:
        raise ValueError(f"LRFinder needs one optimizer, {name} has {num_optimizers}")
    if not module.automatic_optimization:
        raise ValueError(f"LRFinder needs automatic optimisation, {name} uses manual optimisation")
    groups = trainer.optimizers[0].param_groups
    peaks = peak_lrs(trainer)
    base = main_lr(groups, peaks)
    width = smoothing
    if mode == "linear":
        width *= (rates[-1] - rates[0]) / 10
    result = Sweep(base, mode, width)
    with _isolated(trainer, module):
        batches = cycle_batches(trainer)
        for step, lr in enumerate(rates):
            for group, rate in zip(groups, rescaled_lrs(groups, peaks, base, lr), strict=True):
                set_value(group, "lr", rate)
            loss = optimizer_step(trainer, module, batches, step)
            if loss is None:
                continue
            if not math.isfinite(loss):
                if not result.lrs:
                    raise ValueError(f"LRFinder: the loss of the first step, at lr={lr:.2g}, is {loss}")
                break
            result.append(lr, loss)
            if _diverges(result.smoothed, early_stop_threshold):
                break
    if not result.lrs:
        raise ValueError(f"LRFinder: training_step of {name} never returned a loss")
    if len(result.lrs) < 3:
        raise ValueError(f"LRFinder: the loss diverged within {len(result.lrs)} steps; lower min_lr={rates[0]:.2g}")
    if loss_decreases(result):
        result.suggestions = suggest(result.lrs, result.smoothed, mode)
    return result


@contextmanager
def _isolated(trainer: Any, module: LightningModule) -> Iterator[None]:
    """Take steps without callbacks, loggers and metrics, and restore all training state afterwards."""
    snapshot = StateSnapshot()
    callbacks = trainer.callbacks
    loggers = trainer.loggers
    progress = trainer.fit_loop.epoch_loop.batch_progress.current
    ready = progress.ready
    with isolate_rng():
        try:
            snapshot_training_state(snapshot, trainer, module)
            trainer.callbacks = []
            trainer.loggers = [DummyLogger() for _ in loggers]
            for part in module.modules():
                if isinstance(part, LightningModule):
                    vars(part).update(log=_no_log, log_dict=_no_log)
            yield
        finally:
            snapshot.restore()
            trainer.callbacks = callbacks
            trainer.loggers = loggers
            progress.ready = ready


def _diverges(smoothed: list[float], threshold: float) -> bool:
    lowest = min(smoothed)
    # The absolute value, as log-likelihoods may be negative.
    return smoothed[-1] > lowest + (threshold - 1) * abs(lowest)


def _no_log(*_: Any, **__: Any) -> None:
    """Replace ``log`` and ``log_dict`` during the sweep."""


def optimizer_step(trainer: Any, module: LightningModule, batches: Iterator[Any], step: int) -> float | None:
    """Take one optimizer step as Lightning does, with accumulation, precision and gradient clipping.

    Args:
        trainer: the trainer.
        module: the module in training.
        batches: training batches, of which one per micro-batch is read.
        step: index of the step.

    Returns:
        The mean loss over micro-batches and ranks, or None where ``training_step`` returned none.
    """
    strategy = trainer.strategy
    many = trainer.accumulate_grad_batches
    optimizer: Any = module.optimizers()
    losses: list[Tensor] = []
    for micro in range(many):
        index = step * many + micro
        # Lightning, and modules through it, infer from this count whether an accumulation window ends. The offset is
        # far from the end of an epoch, where the window would end early.
        trainer.fit_loop.epoch_loop.batch_progress.current.ready = 2**40 * many + index + 1
        batch = batch_to_device(trainer, next(batches))
        module.on_train_batch_start(batch, index)
        closure = partial(forward_backward, trainer, module, batch, index, micro == 0, losses)
        if micro < many - 1:
            with _no_sync(strategy):
                closure()
        else:
            module.optimizer_step(trainer.current_epoch, index, optimizer, closure)
        outputs = {"loss": losses[-1]} if losses else {}
        module.on_train_batch_end(outputs, batch, index)
    if not losses:
        return None
    # All ranks get the same loss, so they stop at the same step and choose the same rate.
    mean = torch.stack(losses).float().mean()
    return float(strategy.reduce(mean, reduce_op="mean"))


def _no_sync(strategy: Any) -> AbstractContextManager[Any]:
    """Return a context in which DDP does not reduce gradients."""
    if isinstance(strategy, ParallelStrategy):
        return strategy.block_backward_sync()
    return nullcontext()


def forward_backward(
    trainer: Any,
    module: LightningModule,
    batch: Any,
    index: int,
    first: bool,
    losses: list[Tensor],
) -> Tensor | None:
    """Run the forward and backward pass of one micro-batch; return its loss, or None, and append it to ``losses``.

    Args:
        trainer: the trainer.
        module: the module in training.
        batch: the micro-batch.
        index: index of the micro-batch.
        first: whether it is the first one of a step, before which gradients are set to zero.
        losses: extended by the detached loss.
    """
    optimizer = trainer.optimizers[0]
    with torch.enable_grad():
        output = trainer.strategy.training_step(*step_arguments(module, batch, index))
        if first:
            module.on_before_zero_grad(optimizer)
            module.optimizer_zero_grad(trainer.current_epoch, index, optimizer)
        if output is None:
            return None
        loss = output["loss"] if isinstance(output, dict) else output
        losses.append(loss.detach())
        trainer.strategy.backward(loss / trainer.accumulate_grad_batches, optimizer)
    return loss


def cycle_batches(trainer: Any) -> Iterator[Any]:
    """Yield training batches without end, from new iterators over the loaders.

    Raises:
        ValueError: for data that can be iterated only once.
    """
    loader = training_batches(trainer)
    while True:
        batch = None
        for batch, _, _ in loader:
            yield batch
        if batch is None:
            raise ValueError("LRFinder: the training data cannot be read twice; give a loader, not an iterator")


def snapshot_training_state(snapshot: StateSnapshot, trainer: Any, module: LightningModule) -> None:
    """Add everything that training changes to a snapshot.

    Args:
        snapshot: the snapshot.
        trainer: the trainer.
        module: the module in training.

    Raises:
        ValueError: for data that can be iterated only once.
    """
    snapshot.add(module)
    for optimizer in trainer.optimizers:
        snapshot.add(optimizer)
    snapshot.add(getattr(trainer.precision_plugin, "scaler", None))
    for loader in CombinedLoader(trainer.train_dataloader, "sequential").flattened:
        if hasattr(loader, "__next__"):
            raise ValueError("LRFinder: the training data cannot be read twice; give a loader, not an iterator")
        batch_sampler = getattr(loader, "batch_sampler", None)
        parts = [
            loader,
            getattr(loader, "sampler", None),
            batch_sampler,
            getattr(batch_sampler, "sampler", None),
            getattr(loader, "dataset", None),
        ]
        for part in parts:
            if hasattr(part, "__dict__"):
                snapshot.add(vars(part), deep=False)
        # With persistent workers, an existing iterator would be reset and used again instead of a new one.
        forget_iterator(loader)
