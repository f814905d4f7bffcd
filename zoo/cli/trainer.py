"""zoo's own commands. Some look at a run before it trains: each starts a real fit and leaves it at its first step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import lightning as L
from torch.optim.lr_scheduler import ReduceLROnPlateau

from zoo._lightning import leave_fit
from zoo.callbacks import FineTuning, LRFinder
from zoo.callbacks.ema import load_ema, with_ema
from zoo.callbacks.phases import describe_plan
from zoo.cli.argv import option, options, without_option
from zoo.cli.parser import check_config
from zoo.errors import UserError
from zoo.optim import describe_groups
from zoo.optim.schedule_preview import describe_schedule

Weights = Literal["auto", "ema", "raw"]
VERIFY = "usage: zoo verify resume -c CONFIG [--kills 4] [options of zoo fit]"


class ZooTrainer(L.Trainer):
    """Lightning's Trainer, with zoo's commands as methods so that the command line lists them."""

    def plan(self, model: L.LightningModule, datamodule: L.LightningDataModule | None = None) -> None:
        """Print the parameter groups, the schedule and the fine-tuning plan, without training."""

    def lr_find(self, model: L.LightningModule, datamodule: L.LightningDataModule | None = None) -> None:
        """Sweep the learning rate, draw the curve, and print the line to add to the config."""

    def diagnose(self, model: L.LightningModule, datamodule: L.LightningDataModule | None = None) -> None:
        """Check a model and its data for what goes wrong before training; exit code 1 if something does."""

    def show_data(self, model: L.LightningModule, datamodule: L.LightningDataModule | None = None) -> None:
        """Print splits, class balance and statistics of the data, and draw augmented training inputs."""


setattr(ZooTrainer, "show-data", ZooTrainer.show_data)
setattr(ZooTrainer, "lr-find", ZooTrainer.lr_find)  # as it is typed


class AtStart(L.Callback):
    """Call a function when training would begin, with everything in place, and end there.

    Args:
        action: called with the trainer and the module.
    """

    def __init__(self, action: Callable[[L.Trainer, L.LightningModule], None]) -> None:
        self.action = action

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.action(trainer, pl_module)
        leave_fit()


def at_start(trainer: L.Trainer, model: L.LightningModule, data: Any, action: Callable) -> None:
    trainer.callbacks.append(AtStart(action))  # type: ignore[attr-defined]
    trainer.limit_val_batches = 0
    trainer.fit(model, datamodule=data)


def diagnose(trainer: L.Trainer, model: L.LightningModule, data: Any, as_json: bool) -> int:
    """Print the findings of a diagnosis; return the exit code."""
    from zoo.diagnosis import run

    if data is None:
        raise ValueError("diagnose needs data: give --data NAME, or a config with -c FILE")
    trainer.callbacks.clear()  # type: ignore[attr-defined]
    report = run(trainer, model, data)
    print(report.to_json() if as_json else report)
    return 0 if report.ok else 1


def lr_find(trainer: L.Trainer, model: L.LightningModule, data: Any, finder: LRFinder) -> None:
    """Sweep the learning rate without training, and print the line to add."""
    finder.apply = False
    trainer.callbacks.append(finder)  # type: ignore[attr-defined]

    def tell(trainer: L.Trainer, module: L.LightningModule) -> None:
        if finder.result is None or finder.result.chosen is None:
            raise ValueError("no rate to suggest: try another range, --lr_finder.min_lr and --lr_finder.max_lr")
        if trainer.is_global_zero:
            print(f"to take it, add: --model.lr {finder.result.chosen:.3g}")

    at_start(trainer, model, data, tell)


def plan(trainer: L.Trainer, model: L.LightningModule, data: Any, config: Any) -> None:
    """Print the table of parameter groups, the learning rate over the run, and what is trained when."""
    tuning = config.get("fine_tuning")
    at_start(trainer, model, data, lambda trainer, module: print(plan_text(trainer, module, tuning)))


def plan_text(trainer: L.Trainer, module: L.LightningModule, tuning: FineTuning | None = None) -> str:
    parts = []
    if tuning is not None:
        epochs, steps = trainer.max_epochs or math.inf, trainer.estimated_stepping_batches
        parts.append(columns(describe_plan(tuning.plan, module, epochs if epochs > 0 else math.inf, steps)))
    for optimizer in trainer.optimizers:
        rows = [{k: v for k, v in row.items() if k != "trainable"} for row in describe_groups(optimizer)]
        parts.append(columns(rows))
    steps = trainer.estimated_stepping_batches
    parts.append(f"{steps} steps, {trainer.num_training_batches} batches an epoch")
    for config in trainer.lr_scheduler_configs:
        schedule, length = config.scheduler, steps if config.interval == "step" else trainer.max_epochs
        name = type(schedule).__name__
        if isinstance(schedule, ReduceLROnPlateau):
            drop = f"the rate times {schedule.factor:g} after {schedule.patience + 1} epochs"
            parts.append(f"{name}: {drop} without a better {config.monitor} ({schedule.mode})")
        elif length and 0 < length < math.inf:
            rows = describe_schedule(schedule, config.interval, int(length))
            parts.append(f"{name}, the learning rate of each group:\n" + columns(rows))
        else:
            parts.append(f"{name}, stepped every {config.interval}")
    return "\n\n".join(parts)


def columns(rows: list[dict[str, Any]]) -> str:
    """A table with a header, numbers short."""

    def cell(value: Any) -> str:
        if value is None or isinstance(value, bool):
            return {None: "", True: "yes", False: "no"}[value]
        return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)

    head = list(rows[0])
    lines = [head, *([cell(row[k]) for k in head] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join("  " + "  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def verify(argv: list[str]) -> int:
    """``zoo verify resume -c CONFIG``: prove that a killed and resumed run equals the one that was never killed."""
    from zoo.cli.commands.verify import resume

    if {"-h", "--help"} & set(argv):
        print(VERIFY)
        return 0
    if argv[:1] != ["resume"] or len(argv) < 3:
        raise UserError(VERIFY)
    kills = option(argv, "--kills") or "4"
    if not kills.isdigit() or int(kills) < 1:
        raise UserError(f"--kills is a number from 1 up, got {kills}")
    for config in [*options(argv, "-c"), *options(argv, "--config")]:
        check_config(config)
    found = resume(without_option(argv[1:], "--kills"), int(kills))
    print(f"differs: {found}" if found else "resumed equals uninterrupted, bit for bit")
    return 1 if found else 0


def choose_weights(model: L.LightningModule, weights: Weights | None) -> None:
    """Let a module, zoo's or not, load averages or raw weights from its checkpoint."""
    if weights is None:
        return
    original = model.on_load_checkpoint

    def load(checkpoint: dict[str, Any]) -> None:
        chosen = with_ema(checkpoint, weights)
        averages = checkpoint.pop("ema_params", {})
        checkpoint.update(chosen)
        if "state_dict" not in checkpoint and weights != "raw":  # sharded weights are in the module already
            load_ema(model, averages)
        original(checkpoint)

    model.on_load_checkpoint = load
