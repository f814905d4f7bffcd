"""Checks before a run begins: values and combinations of options that no single option can refuse."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import lightning as L
import torch
from jsonargparse import Namespace
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from zoo.callbacks import BestAndLast, FineTuning
from zoo.cli.suggestions import nearest
from zoo.errors import UserError

Slots = Mapping[str, tuple[Any, str]]
MAX_SEED = 2**32 - 1  # of numpy
# What torchrun, SLURM, LSF and MPI set, or the user, where a training runs on several machines.
LAUNCHER_VARIABLES = (
    "MASTER_ADDR",
    "NODE_RANK",
    "GROUP_RANK",
    "SLURM_JOB_ID",
    "LSB_JOBID",
    "OMPI_COMM_WORLD_SIZE",
)
# Processes that a machine can take: at least this many, or so many for each core.
MANY_PROCESSES = 64
PROCESSES_PER_CORE = 8


def check_required(command: str, config: Namespace) -> None:
    """Raise an error for a model that is missing, or a seed out of range, before anything is built."""
    if config.get("model") is None:
        checkpoint = "--ckpt_path FILE, " if "ckpt_path" in config and command != "fit" else ""
        raise UserError(
            f"{command} needs a model: give {checkpoint}--model NAME, or a config with -c FILE; "
            "`zoo list models` lists the models"
        )
    seed = config.seed_everything
    if not isinstance(seed, bool) and not 0 <= seed <= MAX_SEED:
        raise UserError(f"--seed_everything is {seed}: a seed is a whole number from 0 to {MAX_SEED}")


def check(command: str, config: Namespace, built: Any, slots: Slots) -> None:
    """Raise an error for options that cannot work, and warn about those that rarely make sense.

    Args:
        command: name of the command.
        config: the parsed options.
        built: the same, with objects in place of classes and arguments.
        slots: options that take a callback: the class, and a help text.
    """
    check_trainer(config.trainer)
    check_processes(config)
    if command == "predict" and is_untrained(config):
        weights = " or --model.weights" if "weights" in config.model.get("init_args", {}) else ""
        raise UserError(f"predict needs a trained model: give --ckpt_path FILE{weights}")
    if command != "fit":
        return
    listed = built["trainer"].get("callbacks") or []
    if not isinstance(listed, list):
        listed = [listed]
    check_callbacks(built, listed, {**slots, "checkpoint": (BestAndLast, "")})
    warn_of_untrained(config, [built.get("fine_tuning"), *listed])


def check_trainer(options: Namespace) -> None:
    """Raise an error for numbers that Lightning accepts, but divides by or ignores."""
    every = options.get("accumulate_grad_batches", 1)
    if every < 1:
        raise UserError(
            f"--trainer.accumulate_grad_batches is {every}: number of batches per optimizer step, 1 or more"
        )
    strategy = options.get("strategy", "auto")
    if isinstance(strategy, str):
        check_strategy(strategy)
    clip = options.get("gradient_clip_val")
    if clip is not None and clip < 0:
        raise UserError(f"--trainer.gradient_clip_val is {clip}: a limit above 0, or null for none")


def check_processes(config: Namespace) -> None:
    """Raise an error for machines that are not there to wait for, and for more processes than a machine can start."""
    nodes = config.trainer.get("num_nodes") or 1
    started_by_launcher = any(name in os.environ for name in LAUNCHER_VARIABLES)
    if nodes > 1 and not started_by_launcher and not config.trainer.get("plugins"):
        raise UserError(
            f"--trainer.num_nodes is {nodes}, but nothing says which of the machines this is: start the command on all "
            "of them with torchrun or srun, or set MASTER_ADDR and NODE_RANK"
        )
    cores = os.cpu_count() or 1
    most = max(MANY_PROCESSES, PROCESSES_PER_CORE * cores)
    counts = {"--data.num_workers": values(config.get("data") or {}, "num_workers")}
    if config.trainer.get("accelerator") == "cpu" or not torch.cuda.is_available():
        counts["--trainer.devices"] = iter([config.trainer.get("devices")])
    for option, given in counts.items():
        for value in given:
            number = int(value) if str(value).isdecimal() else 0
            if number > most:
                raise UserError(f"{option} is {value}: with {cores} CPU cores at most {most} processes make sense")


def check_strategy(name: str) -> None:
    """Raise an error for a strategy that Lightning does not have."""
    names = StrategyRegistry.available_strategies()
    if name == "auto" or name in names:
        return
    main = []  # without variants such as ddp_spawn
    for candidate in names:
        if not any(candidate.startswith(f"{other}_") for other in names):
            main.append(candidate)
    raise UserError(f"--trainer.strategy: no {name!r}{nearest(name, names)}; there is auto, {', '.join(main)}")


def check_callbacks(built: Any, listed: Sequence[L.Callback], slots: Slots) -> None:
    """Raise an error for a callback that is there twice.

    Two callbacks of a class may stay if their state keys differ, such as by the metric that they monitor.

    Args:
        built: callbacks by option.
        listed: callbacks of ``trainer.callbacks``.
        slots: options that take a callback.
    """
    for slot, (kind, _) in slots.items():
        filled = built.get(slot)
        if filled is None and slot == "checkpoint":
            filled = BestAndLast()  # every run has one
        keys = [callback.state_key for callback in [filled, *listed] if isinstance(callback, kind)]
        if len(set(keys)) == len(keys):
            continue
        where = "twice in trainer.callbacks"
        if filled:
            where = f"both in --{slot} and in trainer.callbacks"
        raise UserError(f"{kind.__name__} is {where}: give it once, by --{slot}")


def has_weights(config: Namespace) -> bool:
    """Return whether a model gets a checkpoint, or weights by an option of that name."""
    return bool(config.get("ckpt_path")) or any(values(config.model, "weights"))


def is_untrained(config: Namespace) -> bool:
    """Return whether a model gets no weights, and has only classes of zoo and torch, which load none by themselves."""
    if has_weights(config):
        return False
    class_paths = values(config.model, "class_path")
    return all(path.partition(".")[0] in ("zoo", "torch") for path in class_paths)


def warn_of_untrained(config: Namespace, callbacks: Sequence[L.Callback | None]) -> None:
    """Warn of frozen layers and of teachers that were never trained."""
    arguments = config.model.get("init_args") or Namespace()
    for callback in callbacks:
        if not isinstance(callback, FineTuning):
            continue
        freezes = callback.plan[0].train != "all"
        has_no_weights = arguments.get("weights", "") is None and not config.get("ckpt_path")
        if freezes and has_no_weights:
            rank_zero_warn("the frozen layers are untrained: give --model.weights")
        break
    if arguments.get("teacher") and arguments.get("teacher_checkpoint", "") is None:
        rank_zero_warn("the teacher is untrained: give --model.teacher_checkpoint")


def values(node: Any, key: str) -> Iterator[Any]:
    """Yield all values of a key, however deep in mappings and lists."""
    if isinstance(node, Namespace):
        node = vars(node)
    if isinstance(node, Mapping):
        if key in node:
            yield node[key]
        children = list(node.values())
    elif isinstance(node, list):
        children = node
    else:
        return
    for child in children:
        yield from values(child, key)
