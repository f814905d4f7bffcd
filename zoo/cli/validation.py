"""What no option says by itself: values and combinations that make no sense, told before a run begins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from zoo.callbacks import BestAndLast, FineTuning
from zoo.errors import UserError

Slots = Mapping[str, tuple[Any, str]]


def check(command: str, own: Namespace, built: Any, slots: Slots) -> None:
    """Refuse what cannot be meant, and warn of what is rarely meant.

    Args:
        command: name of the subcommand.
        own: its options as given.
        built: its options, with objects in place of classes.
        slots: options that take a callback: its class, and a text.
    """
    check_trainer(own.trainer)
    if command == "predict" and untrained(own):
        weights = " or --model.weights" if "weights" in own.model.get("init_args", {}) else ""
        raise UserError(f"predict needs a trained model: give --ckpt_path FILE{weights}")
    if command == "fit":
        listed = built["trainer"].get("callbacks") or []
        listed = listed if isinstance(listed, list) else [listed]
        check_callbacks(built, listed, {**slots, "checkpoint": (BestAndLast, "")})
        warn_of_untrained(own, [built.get("fine_tuning"), *listed])


def check_trainer(options: Namespace) -> None:
    """Refuse numbers that Lightning takes, and divides by or ignores."""
    every, clip = options.get("accumulate_grad_batches", 1), options.get("gradient_clip_val")
    if every < 1:
        raise UserError(f"--trainer.accumulate_grad_batches is {every}: batches for one step, 1 or more")
    if clip is not None and clip < 0:
        raise UserError(f"--trainer.gradient_clip_val is {clip}: a limit above 0, or null for none")


def check_callbacks(built: Any, listed: list[L.Callback], slots: Slots) -> None:
    """Refuse a callback twice; two that differ in their state's key, as by what they monitor, may stay."""
    for slot, (kind, _) in slots.items():
        filled = built.get(slot) or (BestAndLast() if slot == "checkpoint" else None)  # every run has one
        keys = [callback.state_key for callback in [filled, *listed] if isinstance(callback, kind)]
        if len(set(keys)) < len(keys):
            where = f"both in --{slot} and in trainer.callbacks" if filled else "twice in trainer.callbacks"
            raise UserError(f"{kind.__name__} stands {where}: give it once, by --{slot}")


def has_weights(own: Namespace) -> bool:
    """Whether a model is given a checkpoint, or weights by an option of that name."""
    return bool(own.get("ckpt_path")) or any(values(own.model, "weights"))


def untrained(own: Namespace) -> bool:
    """Whether a model that is all zoo's and torch's, which load nothing by themselves, is given no weights."""
    names = values(own.model, "class_path")
    return not has_weights(own) and all(path.partition(".")[0] in ("zoo", "torch") for path in names)


def warn_of_untrained(own: Namespace, callbacks: list[L.Callback | None]) -> None:
    """Tell of layers that never learnt anything, where others are to learn from them."""
    init = own.model.get("init_args") or Namespace()
    tuning = next((callback for callback in callbacks if isinstance(callback, FineTuning)), None)
    frozen = tuning is not None and tuning.plan[0].train != "all"
    if frozen and init.get("weights", "") is None and not own.get("ckpt_path"):
        rank_zero_warn("the frozen layers are untrained: give --model.weights")
    if init.get("teacher") and init.get("teacher_checkpoint", "") is None:
        rank_zero_warn("the teacher is untrained: give --model.teacher_checkpoint")


def values(node: Any, key: str) -> Iterator[Any]:
    """All values of a key, however deep in mappings and lists."""
    if isinstance(node, Namespace):
        node = vars(node)
    if isinstance(node, Mapping):
        yield from (value for name, value in node.items() if name == key)
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from values(child, key)
