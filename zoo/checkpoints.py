"""Looking into a checkpoint before Lightning does: what made it, whether it is whole, whether it fits."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import lightning as L
import torch

from zoo._lightning import logged_step_of
from zoo.errors import UserError


def is_url(path: str) -> bool:
    return re.match(r"\w+://", path) is not None


def hyperparameters(path: Path) -> dict[str, Any]:
    """Class and arguments of the model and the data in a checkpoint, as parser defaults."""
    checkpoint = readable_checkpoint(path)
    defaults = {}
    for key, name in (("model", "hyper_parameters"), ("data", "datamodule_hyper_parameters")):
        saved = {k: v for k, v in (checkpoint.get(name) or {}).items() if k != "_instantiator"}
        if "_class_path" in saved:
            defaults[key] = {"class_path": saved.pop("_class_path"), "init_args": saved}
    return defaults


def readable_checkpoint(path: Path) -> dict[str, Any]:
    """Open a checkpoint without running anything in it or reading its weights, or say what is wrong with it."""
    if not path.exists():
        raise UserError(f"no checkpoint {path}")
    if (path / "checkpoints").is_dir():
        raise UserError(f"{path} is the folder of a run: give one of its checkpoints, {path}/checkpoints/best.ckpt")
    if path.is_dir():
        return {}
    try:
        return torch.load(path, weights_only=True, map_location="meta", mmap=True)
    except Exception as error:
        if "Weights only load failed" in str(error) or "weights_only" in str(error):
            raise UserError(f"{path} holds Python objects, which could run code; only plain tensors are read") from None
        raise UserError(f"{path} is not a whole checkpoint") from None


def fits(path: Path, model: L.LightningModule) -> None:
    """Compare the weights in a checkpoint with the model's before Lightning fails on them."""
    state = readable_checkpoint(path).get("state_dict") if path.is_file() else None
    own = model.state_dict()
    if state is None or not own:  # sharded, or built later in configure_model
        return
    wrong = {
        "missing": [k for k in own if k not in state],
        "unexpected": [k for k in state if k not in own],
        "of another shape": [
            f"{k} {tuple(state[k].shape)} instead of {tuple(own[k].shape)}"
            for k in own
            if k in state and state[k].shape != own[k].shape
        ],
    }
    if any(wrong.values()) and model.strict_loading:
        parts = [f"{len(v)} {k} ({', '.join(v[:2])}{', ...' if len(v) > 2 else ''})" for k, v in wrong.items() if v]
        raise UserError(f"{path} was not made by this {type(model).__name__}: " + "; ".join(parts))


def steps_done(path: Path) -> int:
    """The number of the first step still to come, as the log counts them, after a checkpoint."""
    checkpoint = readable_checkpoint(path)
    between = (checkpoint.get("callbacks") or {}).get("BestAndLast", {}).get("between_epochs", False)
    return logged_step_of(checkpoint) + (not between)  # within an epoch Lightning counts a step only after it is saved
