"""The learning rate range test of Smith, "Cyclical Learning Rates for Training Neural Networks", 2017,
https://arxiv.org/abs/1506.01186."""

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.loops.utilities import _block_parallel_sync_behavior
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from zoo.callbacks.memory import Memory
from zoo.callbacks.rates import assign, main_lr, peaks, rescaled, set_lr

Mode = Literal["exponential", "linear"]
Suggestion = Literal["steepest", "valley", "minimum/10"]


@dataclass
class Sweep:
    """What a sweep saw: one entry a step, rates as the module's main `lr`. Without suggestions the loss never fell."""

    base: float
    lag: int = 0
    lrs: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    smoothed: list[float] = field(default_factory=list)
    suggestions: dict[str, float] = field(default_factory=dict)
    chosen: float | None = None

    @property
    def curve(self) -> tuple[list[float], list[float]]:
        """Rates and smoothed losses; a running mean tells of the rates some steps back, so it is moved back to them."""
        lag = max(0, min(self.lag, len(self.lrs) - 3))
        return self.lrs[: len(self.lrs) - lag], self.smoothed[lag:]


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
        diverge: the sweep ends once the smoothed loss exceeds this many times its least value.
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
        diverge: float = 4.0,
        apply: bool = True,
        dirpath: str | None = None,
    ) -> None:
        if not 0 < min_lr < max_lr:
            raise ValueError(f"min_lr={min_lr} and max_lr={max_lr}: 0 < min_lr < max_lr is needed")
        if steps < 10:
            raise ValueError(f"steps={steps}: at least 10 are needed to see a curve")
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing={smoothing}: 0 <= smoothing < 1 is needed")
        if diverge <= 1:
            raise ValueError(f"diverge={diverge}: must be above 1")
        if mode not in Mode.__args__:
            raise ValueError(f"mode={mode!r}: must be one of {', '.join(Mode.__args__)}")
        if suggestion not in Suggestion.__args__:
            raise ValueError(f"suggestion={suggestion!r}: must be one of {', '.join(Suggestion.__args__)}")
        self.min_lr, self.max_lr, self.steps = min_lr, max_lr, steps
        self.mode: Mode = mode
        self.suggestion, self.smoothing, self.diverge = suggestion, smoothing, diverge
        self.apply, self.dirpath = apply, dirpath
        self.result: Sweep | None = None

    # Not on_fit_start: only now are the loaders built, a checkpoint restored and the module's own on_fit_start done.
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.ckpt_path or trainer.global_step or getattr(trainer, "fast_dev_run", False):
            return
        rates = spaced(self.min_lr, self.max_lr, self.steps, self.mode)
        result = self.result = sweep(trainer, pl_module, rates, self.smoothing, self.diverge)
        folder = Path(self.dirpath or trainer.log_dir or trainer.default_root_dir)
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
            picture(result).savefig(folder / "lr_find.png", dpi=120)


def spaced(first: float, last: float, steps: int, mode: Mode) -> list[float]:
    space = np.geomspace if mode == "exponential" else np.linspace
    return space(first, last, steps).tolist()


def suggest(lrs: list[float], losses: list[float]) -> dict[str, float]:
    """Three rates read off a (smoothed) curve, all of them from its way down to the least loss."""
    x, y = np.log(lrs), np.asarray(losses)
    least = int(y.argmin())
    down = slice(0, max(least, 1) + 1)
    fallen = (y[0] - y[down]) / max(y[0] - y[least], 1e-12)
    start, end = int((fallen >= 0.1).argmax()), int((fallen >= 0.9).argmax())
    return {
        "steepest": lrs[int(np.gradient(y, x)[down].argmin())],
        "valley": float(np.exp((x[start] + x[end]) / 2)),
        "minimum/10": lrs[least] / 10,
    }


def falls(result: Sweep) -> bool:
    """Whether the smoothed loss falls below where it began by more than the noise of single batches."""
    start = np.mean(result.losses[: max(1, len(result.losses) // 10)])
    noise = np.median(np.abs(np.subtract(result.losses, result.smoothed)))
    return bool(start - min(result.smoothed) > 2 * noise)


def sweep(
    trainer: Any, module: LightningModule, rates: list[float], smoothing: float = 0.9, diverge: float = 4.0
) -> Sweep:
    """One optimizer step at each main rate until the loss diverges; afterwards everything is as it was.

    Can be called in any hook between `on_train_start` and the first batch.
    """
    if not module.automatic_optimization or len(trainer.optimizers) != 1:
        raise ValueError(
            f"LRFinder needs automatic optimisation with one optimizer, {type(module).__name__} has"
            f" {len(trainer.optimizers)} and automatic_optimization={module.automatic_optimization}"
        )
    groups = trainer.optimizers[0].param_groups
    tops = peaks(trainer)
    base = main_lr(groups, tops)
    # half the weight of the running mean lies on what is older than this
    lag = round(math.log(0.5, smoothing)) if smoothing else 0
    result, mean = Sweep(base, lag), 0.0
    memory = Memory()
    callbacks, loggers = trainer.callbacks, trainer.loggers
    progress = trainer.fit_loop.epoch_loop.batch_progress.current
    ready = progress.ready
    with isolate_rng():
        try:
            remember(memory, trainer, module)
            trainer.callbacks, trainer.loggers = [], [DummyLogger() for _ in loggers]
            for part in module.modules():
                if isinstance(part, LightningModule):
                    vars(part).update(log=_silent, log_dict=_silent)
            batches = endless(trainer)
            for step, lr in enumerate(rates):
                for group, rate in zip(groups, rescaled(groups, tops, base, lr), strict=True):
                    assign(group, "lr", rate)
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
                if smoothed > least + (diverge - 1) * abs(least):
                    break
        finally:
            memory.restore()
            trainer.callbacks, trainer.loggers = callbacks, loggers
            progress.ready = ready
    if not result.lrs:
        raise ValueError(f"LRFinder: training_step of {type(module).__name__} never returned a loss")
    if len(result.lrs) < 3:
        raise ValueError(f"LRFinder: the loss diverged within {len(result.lrs)} steps; lower min_lr={rates[0]:.2g}")
    if falls(result):
        result.suggestions = suggest(*result.curve)
    return result


def _silent(*_: Any, **__: Any) -> None:
    """Stands in for `log` during the sweep."""


def optimizer_step(trainer: Any, module: LightningModule, batches: Iterator[Any], step: int) -> float | None:
    """One step as Lightning takes it, with accumulation, precision and clipping; the mean loss of all it read."""
    strategy, many = trainer.strategy, trainer.accumulate_grad_batches
    optimizer, losses = strategy._lightning_optimizers[0], []
    for micro in range(many):
        index = step * many + micro
        # Lightning, and modules through it, tell by this count whether a window of accumulation ends; 2**40: no epoch's
        # end, where it would end early
        trainer.fit_loop.epoch_loop.batch_progress.current.ready = 2**40 * many + index + 1
        batch = trainer.precision_plugin.convert_input(next(batches))
        batch = module._on_before_batch_transfer(batch, dataloader_idx=0)
        batch = strategy.batch_to_device(batch, dataloader_idx=0)
        module.on_train_batch_start(batch, index)
        closure = partial(forward_backward, trainer, module, batch, index, micro == 0, losses)
        if micro < many - 1:
            with _block_parallel_sync_behavior(strategy):
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
    arguments = trainer.fit_loop.epoch_loop._build_kwargs({}, batch, index)
    with torch.enable_grad():
        output = trainer.strategy.training_step(*arguments.values())
        if first:
            module.on_before_zero_grad(optimizer)
            module.optimizer_zero_grad(trainer.current_epoch, index, optimizer)
        if output is None:
            return None
        loss = output["loss"] if isinstance(output, dict) else output
        losses.append(loss.detach())
        trainer.strategy.backward(loss / trainer.accumulate_grad_batches, optimizer)
    return loss


def endless(trainer: Any) -> Iterator[Any]:
    """Training batches from iterators of our own, begun again whenever they end."""
    run = trainer.fit_loop._combined_loader
    loader = CombinedLoader(run.iterables, run._mode)
    loader.limits = run.limits
    while True:
        batch = None
        for batch, _, _ in loader:
            yield batch
        if batch is None:
            raise ValueError("LRFinder: the training data cannot be read twice; give a loader, not an iterator")


def remember(memory: Memory, trainer: Any, module: LightningModule) -> None:
    memory.keep(module)
    memory.keep(trainer.optimizers[0])
    memory.keep(getattr(trainer.precision_plugin, "scaler", None))
    for loader in trainer.fit_loop._combined_loader.flattened:
        if hasattr(loader, "__next__"):
            raise ValueError("LRFinder: the training data cannot be read twice; give a loader, not an iterator")
        batch_sampler = getattr(loader, "batch_sampler", None)
        parts = [loader, getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None)]
        for part in [*parts, getattr(loader, "dataset", None)]:
            if hasattr(part, "__dict__"):
                memory.keep(vars(part), deep=False)
        # persistent workers: an iterator that exists would be rewound instead of a new one begun
        if "_iterator" in vars(loader):
            vars(loader)["_iterator"] = None


def write_csv(result: Sweep, path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["factor", "lr", "loss", "smoothed"])
        for lr, loss, smoothed in zip(result.lrs, result.losses, result.smoothed, strict=True):
            writer.writerow([lr / result.base, lr, loss, smoothed])


def picture(result: Sweep) -> Any:
    """The curve as a matplotlib figure, suggestions marked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(result.lrs, result.losses, color="0.75", linewidth=1, label="loss")
    axes.plot(*result.curve, color="tab:blue", linewidth=2, label="smoothed loss")
    colors = ("tab:red", "tab:green", "tab:purple")
    for (name, lr), color in zip(result.suggestions.items(), colors, strict=False):
        height = float(np.interp(lr, *result.curve))
        taken = " (chosen)" if lr == result.chosen else ""
        axes.plot(lr, height, "o", color=color, markersize=8, label=f"{name}: {lr:.2g}{taken}")
        axes.axvline(lr, color=color, linewidth=1, linestyle=":")
    low, start = min(result.smoothed), result.smoothed[0]
    room = max(start - low, 1e-3 * abs(start), 1e-12)
    # the diverging end would flatten all the rest
    axes.set_ylim(low - 0.2 * room, start + 0.8 * room)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss")
    axes.set_title("Learning rate range test")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    return figure
