"""A module from its checkpoint alone, without a config: for commands that use a model rather than train it."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import torch

from zoo.checkpoints import fits, hyperparameters, readable_checkpoint
from zoo.cli.parser import ZooParser
from zoo.cli.trainer import Weights, choose_weights
from zoo.errors import UserError


def rebuild(path: Path, weights: Weights = "auto") -> L.LightningModule:
    """The module that a checkpoint of ``zoo fit`` is of, in eval mode, with its weights.

    Args:
        path: the checkpoint.
        weights: averages of EMA where there are any, or raw weights.
    """
    if not path.is_dir() and "state_dict" not in readable_checkpoint(path):
        raise UserError(f"{path} is no checkpoint of a model")
    made_by = hyperparameters(path).get("model")
    if made_by is None:
        raise UserError(f"{path} does not say which model it is of: a checkpoint of `zoo fit` in one file is needed")
    made_by["init_args"].pop("compile", None)  # for a call or two it takes longer than it saves
    parser = ZooParser()
    parser.add_lightning_class_args(L.LightningModule, "model", subclass_mode=True)
    model = parser.instantiate_classes(parser.parse_object({"model": made_by}))["model"]
    fits(path, model)
    choose_weights(model, weights)
    checkpoint = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    model.on_load_checkpoint(checkpoint)
    model.load_state_dict(checkpoint["state_dict"])
    return model.eval()
