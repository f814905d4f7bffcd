"""Modules and datamodules from checkpoints, with the state that was fitted to the training data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L

import zoo.data
from zoo.checkpoints import Checkpoint, Weights
from zoo.data.base import DataModule


def load(path: str | Path, weights: Weights = "auto") -> L.LightningModule:
    """Load the module of a checkpoint in eval mode, ready for ``module.predict(...)``; no file of the data is read.

    Args:
        path: checkpoint of ``zoo fit``, such as ``runs/mlp_digits/1/checkpoints/best.ckpt``.
        weights: ``auto`` takes EMA weights where there are any, ``ema`` requires them, ``raw`` takes the trained ones.

    Raises:
        UserError: it is not a checkpoint, it does not name its class, or it names a class that may not be built.
    """
    module, _ = load_with_data(path, weights)
    return module


def load_with_data(
    path: str | Path,
    weights: Weights = "auto",
) -> tuple[L.LightningModule, L.LightningDataModule | None]:
    """Load the module of a checkpoint, and its datamodule with its fitted state; no file of the data is read.

    The datamodule has what prediction needs (statistics, columns, vocabularies, sizes); its splits are read only when
    they are asked for.

    Args:
        path: checkpoint of ``zoo fit``.
        weights: see :func:`load`.

    Returns:
        The module in eval mode, and the datamodule, None where the checkpoint does not describe it.
    """
    checkpoint = Checkpoint(path)
    module = checkpoint.build(weights)
    data = None
    if "data" in checkpoint.hyperparameters:
        data = checkpoint.build_data()
        restore_data(data, checkpoint)
        fit_to_model(data, module)
    # A module that is not of zoo may have an attribute of this name.
    if not hasattr(module, "datamodule"):
        object.__setattr__(module, "datamodule", data)
    return module, data


DATA = "datamodule_hyper_parameters"


def description_of_data(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint says about its data, as plain values: arguments and state of the datamodule."""
    described = {}
    for key, value in content.items():
        is_state = isinstance(value, dict) and "batches_done" in value
        if key == DATA or is_state:
            described[key] = value
    return described


def data_of_description(described: Mapping[str, Any]) -> L.LightningDataModule | None:
    """Build the datamodule of ``description_of_data``; None where its class is not known.

    A checkpoint of a Trainer in Python does not hold the path of the class, but a dataset of zoo is known by the name
    under which its state is saved.
    """
    arguments = described.get(DATA)
    if not isinstance(arguments, Mapping):
        return None
    arguments = dict(arguments)
    if "_class_path" not in arguments:
        name = next((name for name in described if name in zoo.data.__all__), None)
        if name is None:
            return None
        arguments["_class_path"] = f"zoo.data.{name}"
    checkpoint = Checkpoint.of_content({**described, DATA: arguments})
    data = checkpoint.build_data()
    restore_data(data, checkpoint)
    return data


def restore_data(data: L.LightningDataModule, checkpoint: Checkpoint) -> None:
    """Give a datamodule the state that Lightning saved for its class."""
    state = checkpoint.metadata.get(type(data).__qualname__)
    if isinstance(state, dict):
        data.load_state_dict(state)


def fit_to_model(data: L.LightningDataModule, module: L.LightningModule) -> None:
    """Let a datamodule prepare inputs as a module needs them, as it did in training."""
    if not isinstance(data, DataModule):
        return
    for name in ("in_channels", "block_size"):
        value = module.hparams.get(name)
        if value is not None and getattr(data, name, value) != value:
            data.override_spec(name, value)
    follow_model = getattr(data, "follow_model", None)
    if follow_model is not None:
        follow_model(module)
