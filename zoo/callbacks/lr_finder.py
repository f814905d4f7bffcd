"""The learning rate range test of Smith, "Cyclical Learning Rates for Training Neural Networks", 2017,
https://arxiv.org/abs/1506.01186."""

import math
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
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
from zoo.callbacks.state_snapshot import StateSnapshot


class LRFinder(Callback):
    """Finds a learning rate before training starts, and sets it in the optimizer and its schedule.

    Small steps are taken at rising rates with the real optimizer, from its initial state; then weights, buffers,
    metrics, optimizer, random generators and data are put back, so the run equals one started at the rate found.
    The rates of all parameter groups move by one common factor. Needs automatic optimisation with one optimizer;
    does nothing in a resumed run. Logs no keys: writes `lr_find.csv` and `lr_find.png`, and says what it took.

    Args:
        min_lr: first rate tried, as the module's `lr`: that of a group with `lr_scale` 1, else the largest group's.
            With a schedule its peak is meant.
        max_lr: last rate tried.
        steps: number of optimizer steps in the sweep.
        mode: spacing of the rates, `exponential` or `linear`.
        suggestion: which rate is taken: `steepest` (where the loss falls fastest), `valley` (midway between those
            where a tenth and nine tenths of the fall are done) or `minimum/10` (a tenth of that with the least loss).
        smoothing: weight of the past in the running mean of the loss, from 0 (none) to below 1.
        early_stop_threshold: the sweep ends once the smoothed loss exceeds this many times its least value.
        apply: whether the rate is set; if not, the sweep only reports.
        dirpath: folder for the two files; by default the logger's, or else the trainer's `default_root_dir`.
    """

    def __init__(
        self,
        min_lr: float = 1e-7,
        max_lr: float = 10.0,
        steps: int = 100,
        mode: Mode = "exponential",
        suggestion: Suggestion = "steepest",
        smoothing: float = 0.9,
        early_stop_threshold: float = 4.0,
        apply: bool = True,
        dirpath: str | None = None,
    ) -> None:
        if not 0 < min_lr < max_lr:
            raise ValueError(f"min_lr={min_lr} and max_lr={max_lr}: 0 < min_lr < max_lr is needed")
        if steps < 10:
            raise ValueError(f"steps={steps}: at least 10 are needed to see a curve")
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing={smoothing}: 0 <= smoothing < 1 is needed")
        if early_stop_threshold <= 1:
            raise ValueError(f"early_stop_threshold={early_stop_threshold}: must be above 1")
        if mode not in Mode.__args__:
            raise ValueError(f"mode={mode!r}: must be one of {', '.join(Mode.__args__)}")
        if suggestion not in Suggestion.__args__:
            raise ValueError(f"suggestion={suggestion!r}: must be one of {', '.join(Suggestion.__args__)}")
        self.min_lr, self.max_lr, self.steps = min_lr, max_lr, steps
        self.mode: Mode = mode
        self.suggestion, self.smoothing, self.early_stop_threshold = suggestion, smoothing, early_stop_threshold
        self.apply, self.dirpath = apply, dirpath
        self.result: Sweep | None = None

    # Not on_fit_start: only now are the loaders built, a checkpoint restored and the module's own on_fit_start done.
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.ckpt_path or trainer.global_step or getattr(trainer, "fast_dev_run", False):
            return
        rates = lr_grid(self.min_lr, self.max_lr, self.steps, self.mode)
        result = self.result = sweep(trainer, pl_module, rates, self.mode, self.smoothing, self.early_stop_threshold)
        folder = output_folder(trainer, self.dirpath)
        if not result.suggestions:
            rank_zero_warn(
                f"LRFinder: the loss never falls between lr={result.lrs[0]:.2g} and {result.lrs[-1]:.2g};"
                f" lr={result.base:.3g} stays"
            )
        else:
            result.chosen = result.suggestions[self.suggestion]
            if self.apply:
                set_lr(trainer, result.chosen)
            others = ", ".join(f"{name} {lr:.3g}" for name, lr in result.suggestions.items() if name != self.suggestion)
            verb = "takes" if self.apply else "suggests"
            if trainer.is_global_zero:
                print(
                    f"LRFinder: {verb} lr={result.chosen:.3g} ({self.suggestion}; {others}; was {result.base:.3g}),"
                    f" see {folder / 'lr_find.png'}"
                )
        if trainer.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            write_csv(result, folder / "lr_find.csv")
            plot_sweep(result).savefig(folder / "lr_find.png", dpi=120)


def sweep(
    trainer: Any, module: LightningModule, rates: list[float], mode: Mode, smoothing: float, early_stop_threshold: float
) -> Sweep:
    """One optimizer step at each main rate until the loss diverges; afterwards everything is as it was.

    Can be called in any hook between `on_train_start` and the first batch.
    """
    name, count = type(module).__name__, len(trainer.optimizers)
    if count != 1:
        raise ValueError(f"LRFinder needs one optimizer, {name} has {count}")
    if not module.automatic_optimization:
        raise ValueError(f"LRFinder needs automatic optimisation, {name} steps its optimizer by itself")
    groups = trainer.optimizers[0].param_groups
    peaks = peak_lrs(trainer)
    base = main_lr(groups, peaks)
    # half the weight of the running mean lies on what is older than this
    lag = round(math.log(0.5, smoothing)) if smoothing else 0
    result, mean = Sweep(base, mode, lag), 0.0
    snapshot = StateSnapshot()
    callbacks, loggers = trainer.callbacks, trainer.loggers
    progress = trainer.fit_loop.epoch_loop.batch_progress.current
    ready = progress.ready
    with isolate_rng():
        try:
            snapshot_training_state(snapshot, trainer, module)
            trainer.callbacks, trainer.loggers = [], [DummyLogger() for _ in loggers]
            for part in module.modules():
                if isinstance(part, LightningModule):
                    vars(part).update(log=_no_log, log_dict=_no_log)
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
                mean = smoothing * mean + (1 - smoothing) * loss
                smoothed = mean / (1 - smoothing ** (len(result.lrs) + 1))
                result.lrs.append(lr)
                result.losses.append(loss)
                result.smoothed.append(smoothed)
                least = min(result.smoothed)
                # abs: likelihoods may be negative
                if smoothed > least + (early_stop_threshold - 1) * abs(least):
                    break
        finally:
            snapshot.restore()
            trainer.callbacks, trainer.loggers = callbacks, loggers
            progress.ready = ready
    if not result.lrs:
        raise ValueError(f"LRFinder: training_step of {name} never returned a loss")
    if len(result.lrs) < 3:
        raise ValueError(f"LRFinder: the loss diverged within {len(result.lrs)} steps; lower min_lr={rates[0]:.2g}")
    if loss_decreases(result):
        result.suggestions = suggest(*result.curve, mode)
    return result


def _no_log(*_: Any, **__: Any) -> None:
    """Stands in for `log` during the sweep."""


def optimizer_step(trainer: Any, module: LightningModule, batches: Iterator[Any], step: int) -> float | None:
    """One step as Lightning takes it, with accumulation, precision and clipping; the mean loss of all it read."""
    strategy, many = trainer.strategy, trainer.accumulate_grad_batches
    optimizer: Any = module.optimizers()
    losses: list[Tensor] = []
    for micro in range(many):
        index = step * many + micro
        # Lightning, and modules through it, tell by this count whether a window of accumulation ends; 2**40: no epoch's
        # end, where it would end early
        trainer.fit_loop.epoch_loop.batch_progress.current.ready = 2**40 * many + index + 1
        batch = batch_to_device(trainer, next(batches))
        module.on_train_batch_start(batch, index)
        closure = partial(forward_backward, trainer, module, batch, index, micro == 0, losses)
        if micro < many - 1:
            with strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext():
                closure()
        else:
            module.optimizer_step(trainer.current_epoch, index, optimizer, closure)
        module.on_train_batch_end({"loss": losses[-1]} if losses else {}, batch, index)
    if not losses:
        return None
    # every rank sees the same number, so all of them stop at the same step and take the same rate
    return float(strategy.reduce(torch.stack(losses).float().mean(), reduce_op="mean"))


def forward_backward(
    trainer: Any, module: LightningModule, batch: Any, index: int, first: bool, losses: list[Tensor]
) -> Tensor | None:
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
    """Training batches from iterators of our own, begun again whenever they end."""
    loader = training_batches(trainer)
    while True:
        batch = None
        for batch, _, _ in loader:
            yield batch
        if batch is None:
            raise ValueError("LRFinder: the training data cannot be read twice; give a loader, not an iterator")


def snapshot_training_state(snapshot: StateSnapshot, trainer: Any, module: LightningModule) -> None:
    snapshot.add(module)
    snapshot.add(trainer.optimizers[0])
    snapshot.add(getattr(trainer.precision_plugin, "scaler", None))
    for loader in CombinedLoader(trainer.train_dataloader, "sequential").flattened:
        if hasattr(loader, "__next__"):
            raise ValueError("LRFinder: the training data cannot be read twice; give a loader, not an iterator")
        batch_sampler = getattr(loader, "batch_sampler", None)
        parts = [loader, getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None)]
        for part in [*parts, getattr(loader, "dataset", None)]:
            if hasattr(part, "__dict__"):
                snapshot.add(vars(part), deep=False)
        # persistent workers: an iterator that exists would be rewound instead of a new one begun
        forget_iterator(loader)
