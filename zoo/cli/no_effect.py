"""Options that cannot act in this combination: named in one line before training, or refused where it is a mistake."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from zoo._lightning import checks_at_epoch_end
from zoo.callbacks import EMA, BestAndLast, GradientDiagnostics
from zoo.checkpoints import Checkpoint
from zoo.errors import UserError
from zoo.runs import run_folder
from zoo.runs.record import RESTORED
from zoo.runs.run_folder import changes

# Options of training alone: in other commands they have no effect.
OF_TRAINING = (
    "--model.lr",
    "--model.lr_scheduler",
    "--model.optimizer",
    "--trainer.accumulate_grad_batches",
    "--trainer.check_val_every_n_epoch",
    "--trainer.gradient_clip_val",
    "--trainer.limit_train_batches",
    "--trainer.max_epochs",
    "--trainer.max_steps",
    "--trainer.max_time",
    "--trainer.min_epochs",
    "--trainer.min_steps",
    "--trainer.num_sanity_val_steps",
    "--trainer.val_check_interval",
    "--checkpoint",
    "--early_stopping",
    "--ema",
    "--fine_tuning",
    "--gradients",
    "--logger",
    "--lr_finder",
    "--nan_guard",
)
NO_VALIDATION = "this run has no validation"


def check_typed(command: str, typed: Sequence[str], config: Any) -> None:
    """Refuse options that were typed and that cannot act, and warn of those that rarely are meant so.

    Args:
        command: name of the command.
        typed: the command line.
        config: the parsed options.

    Raises:
        UserError: an option contradicts another one.
    """
    names = typed_names(typed)
    if command == "fit":
        check_places(names, config)
        warn_of_fit(config)
        return
    if command not in ("validate", "test", "predict"):
        return
    if "--weights" in names and not config.get("ckpt_path"):
        raise UserError("--weights chooses between those in a checkpoint: give --ckpt_path FILE, too")
    useless = [name for name in names if any(belongs(name, option) for option in OF_TRAINING)]
    if useless:
        rank_zero_warn(f"no effect in zoo {command}: {', '.join(useless)}")


def check_places(names: Sequence[str], config: Any) -> None:
    """Refuse a second place for a run: its folder has everything."""
    resumes = "--resume" in names
    if resumes and "--run_dir" in names:
        raise UserError("--run_dir has no effect with --resume: a resumed run goes on in its own folder")
    if resumes and "--ckpt_path" in names:
        raise UserError(
            "--ckpt_path has no effect with --resume, which takes the last checkpoint of the run; "
            "a new run goes on from a checkpoint: zoo fit -c CONFIG --ckpt_path FILE"
        )
    if "--trainer.default_root_dir" in names:
        raise UserError("--trainer.default_root_dir has no effect: --run_dir DIR is the folder of a run")
    if config.trainer.get("fast_dev_run"):
        useless = [name for name in names if belongs(name, "--run_dir") or belongs(name, "--logger")]
        if useless:
            rank_zero_warn(f"no effect with fast_dev_run, which writes nothing: {', '.join(useless)}")


def warn_of_fit(config: Any) -> None:
    """Warn of options of a fit that cannot act, whatever the data are."""
    trainer = config.trainer
    if trainer.get("enable_checkpointing") is False:
        rank_zero_warn(
            "trainer.enable_checkpointing false has no effect: zoo fit always keeps the best and the last one"
        )
    if trainer.get("logger") is False:
        rank_zero_warn("trainer.logger false has no effect: zoo fit always writes metrics.csv")
    if trainer.get("gradient_clip_algorithm") and trainer.get("gradient_clip_val") is None:
        rank_zero_warn("trainer.gradient_clip_algorithm has no effect without trainer.gradient_clip_val")
    for unit in ("epochs", "steps"):
        least = trainer.get(f"min_{unit}") or 0
        most = trainer.get(f"max_{unit}")
        if most is not None and 0 <= most < least:
            rank_zero_warn(f"trainer.min_{unit} has no effect: it is {least}, and trainer.max_{unit} is {most}")


def check_restored(checkpoint: Checkpoint, config: Mapping[str, Any], names: Sequence[str]) -> None:
    """Refuse options of the optimizer that a new run with ``--ckpt_path`` would not use, as the checkpoint has its own.

    Args:
        checkpoint: that training goes on from.
        config: of the run, with every default.
        names: of the options that were typed.

    Raises:
        UserError: the learning rate, the optimizer or its parameter groups differ from those of the checkpoint.
    """
    if not checkpoint.metadata.get("optimizer_states"):
        return
    saved = saved_arguments(checkpoint)
    arguments = (config.get("model") or {}).get("init_args") or {}
    starts_anew = ""
    if "weights" in arguments:
        starts_anew = f"; to begin anew from its weights alone: --model.weights {checkpoint.path}, no --ckpt_path"
    for option in RESTORED:
        name = option.removeprefix("model.")
        if name in saved:
            differs = bool(changes(saved[name], arguments.get(name)))
            was = f", where it was {saved[name]!r}"
        else:
            differs = any(belongs(typed, f"--{option}") for typed in names)
            was = ""
        if differs:
            raise UserError(
                f"--{option} would change nothing: training goes on with the optimizer of {checkpoint.path}{was}"
                f"{starts_anew}"
            )
    if config.get("lr_finder"):
        rank_zero_warn("lr_finder has no effect with --ckpt_path: training goes on with the learning rate of the file")
    if "--model.weights" in names:
        rank_zero_warn("--model.weights has no effect with --ckpt_path, whose weights replace them")


def saved_arguments(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the arguments of the model that a checkpoint was trained with, as far as it or its run names them."""
    arguments: dict[str, Any] = {}
    run = run_folder.of_checkpoint(checkpoint.path)
    if run is not None:
        arguments |= (run_folder.read_config(run).get("model") or {}).get("init_args") or {}
    saved = checkpoint.hyperparameters.get("model")
    if saved is not None:
        arguments |= saved["init_args"]
    return arguments


def typed_names(typed: Sequence[str]) -> list[str]:
    """Return the names of the options that were typed, dashes included."""
    return [word.partition("=")[0] for word in typed if word.startswith("--")]


def belongs(name: str, option: str) -> bool:
    """Return whether an option is this one, or an argument of it such as ``--ema.decay``."""
    return name == option or name.startswith(f"{option}.")


# Once the data are known ----------------------------------------------------------------------------------------------


class NoEffect(L.Callback):
    """Warn, before the first step, of callbacks and schedules that cannot act in a run of this length. Logs nothing."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for line in lines_without_effect(trainer):
            rank_zero_warn(line)


def lines_without_effect(trainer: Any) -> Iterator[str]:
    """Yield a line for everything in a trainer that cannot act in its run.

    Raises:
        UserError: the learning rate is to fall by a metric of a validation that never comes.
    """
    steps = num_steps(trainer)
    validations = num_validations(trainer)
    why = why_no_validation(trainer)
    if validations == 0:
        for schedule in trainer.lr_scheduler_configs:
            if schedule.reduce_on_plateau and str(schedule.monitor).startswith("val"):
                raise UserError(f"the learning rate is to fall by {schedule.monitor}, but {NO_VALIDATION}: {why}")
    batches = trainer.num_training_batches
    if trainer.accumulate_grad_batches > batches:
        yield (
            f"trainer.accumulate_grad_batches is {trainer.accumulate_grad_batches}, but an epoch has {batches} batches "
            "and makes one optimizer step"
        )
    for callback in trainer.callbacks:
        yield from lines_of_early_stopping(callback, validations, why)
        if isinstance(callback, BestAndLast) and callback.monitor_given and validations == 0:
            yield f"checkpoint.monitor has no effect: it is {callback.monitor}, and {NO_VALIDATION}: {why}"
        every = getattr(callback, "every_n_validations", None)
        name = type(callback).__name__
        if every and validations == 0:
            yield f"{name} has no effect: it acts after validations, and {NO_VALIDATION}: {why}"
        elif every and every > validations:
            yield f"{name} has no effect: every_n_validations is {every}, and this run has {validations}"
        if isinstance(callback, EMA) and callback.start_step >= steps:
            yield f"EMA has no effect: start_step is {callback.start_step}, and this run has {steps} steps"
        if isinstance(callback, (EMA, GradientDiagnostics)) and callback.every_n_steps > steps:
            yield f"{name} has no effect: every_n_steps is {callback.every_n_steps}, and this run has {steps} steps"


def lines_of_early_stopping(callback: L.Callback, validations: float, why: str) -> Iterator[str]:
    """Yield a line for early stopping, zoo's or Lightning's, that cannot stop this run."""
    if not isinstance(callback, EarlyStopping) or checks_at_epoch_end(callback):
        return
    if validations == 0:
        yield f"early stopping has no effect: it watches {callback.monitor}, and {NO_VALIDATION}: {why}"
    elif validations <= callback.patience and callback.stopping_threshold is None:
        yield (
            f"early stopping has no effect: its patience is {callback.patience} validations, and this run has "
            f"{validations} in all"
        )


def num_batches(trainer: Any) -> float:
    """Return the number of batches that a whole run trains on; infinite if nothing limits it but time."""
    epochs = trainer.max_epochs
    per_epoch = trainer.num_training_batches
    total = math.inf
    if epochs is not None and epochs >= 0:
        total = epochs * per_epoch
    if trainer.max_steps >= 0:
        windows = math.ceil(per_epoch / trainer.accumulate_grad_batches) if per_epoch < math.inf else math.inf
        if windows < math.inf:
            whole = trainer.max_steps // windows * per_epoch
            total = min(total, whole + trainer.max_steps % windows * trainer.accumulate_grad_batches)
        else:
            total = min(total, trainer.max_steps * trainer.accumulate_grad_batches)
    return total


def num_steps(trainer: Any) -> float:
    """Return the number of optimizer steps of a whole run, with one optimizer."""
    total = num_batches(trainer)
    per_epoch = trainer.num_training_batches
    if math.isinf(total) or math.isinf(per_epoch) or not per_epoch:
        return total
    windows = math.ceil(per_epoch / trainer.accumulate_grad_batches)
    return total // per_epoch * windows + math.ceil(total % per_epoch / trainer.accumulate_grad_batches)


def num_validations(trainer: Any) -> float:
    """Return the number of validations of a whole run; infinite if it is unknown beforehand."""
    if not trainer.enable_validation:
        return 0
    total = num_batches(trainer)
    per_epoch = trainer.num_training_batches
    interval = trainer.val_check_batch
    if interval is None:  # by the clock
        return math.inf
    if trainer.check_val_every_n_epoch is None:
        return total // interval
    if math.isinf(per_epoch) or math.isinf(total) or not per_epoch:
        return math.inf
    epochs, rest = divmod(total, per_epoch)
    count = epochs // trainer.check_val_every_n_epoch * (per_epoch // interval)
    if (epochs + 1) % trainer.check_val_every_n_epoch == 0:
        count += rest // interval
    return int(count)


def why_no_validation(trainer: Any) -> str:
    """Return why a run without validations has none."""
    if trainer.limit_val_batches == 0:
        return "trainer.limit_val_batches is 0"
    if not trainer.enable_validation:
        return "module or data have no validation"
    every = trainer.check_val_every_n_epoch
    epochs = trainer.max_epochs
    if every is not None and epochs is not None and 0 <= epochs < every:
        return f"trainer.check_val_every_n_epoch is {every}, and trainer.max_epochs is {epochs}"
    return f"it ends after {num_batches(trainer)} batches, before the first one"
