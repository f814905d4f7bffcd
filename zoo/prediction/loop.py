"""``module.predict(x)``: predictions in Python, without a Trainer."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from typing import Any

import lightning as L
import torch

from zoo._lightning import trainer_of
from zoo.callbacks.prediction_writer import num_samples, rows
from zoo.data.base import DataModule
from zoo.data.new_samples import NewSamples, is_dataframe, tensor_samples
from zoo.data.progress import progress_bar
from zoo.distributed import say
from zoo.prediction.loading import data_of_description, fit_to_model

BATCH_SIZE = 256  # where no datamodule has one


def predict(
    module: L.LightningModule,
    x: Any,
    batch_size: int | None = None,
    progress: bool = False,
) -> Any:
    """Return the predictions of new samples, see ``Task.predict``."""
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size starts at 1, got {batch_size}")
    data = datamodule_of(module)
    if data is None:
        samples = tensor_samples(x, f"a tensor ({type(module).__name__} comes without its data)")
    else:
        samples = data.read_samples(x)
        batch_size = batch_size or data.eval_batch_size
    predicted: list[dict[str, Any]] = []
    with evaluating(module), torch.no_grad():
        bar = progress_bar(len(samples), "predicting") if progress else nullcontext(lambda done: None)
        with bar as advance:
            for start in range(0, len(samples), batch_size or BATCH_SIZE):
                stop = min(start + (batch_size or BATCH_SIZE), len(samples))
                predicted += predict_batch(module, samples, start, stop, move(module))
                advance(stop - start)
    for index, why in sorted(samples.failed.items()):
        say(f"{samples.name(index)} cannot be read: {why}")
    columns = {name: [row.get(name) for row in predicted] for name in _names(predicted)}
    if is_dataframe(x):
        pandas = importlib.import_module("pandas")
        index = samples.index if samples.index is not None and len(samples.index) == len(predicted) else None
        return pandas.DataFrame(columns, index=index)
    return columns


def predict_batch(
    module: L.LightningModule,
    samples: NewSamples,
    start: int,
    stop: int,
    to_device: Callable[[Any], Any],
) -> list[dict[str, Any]]:
    """Return the rows of some samples; of one that cannot be read, a row of None."""
    dataset: Any = samples.dataset
    batch = to_device(dataset.batch(torch.arange(start, stop)))
    if samples.prepare is not None:
        batch = samples.prepare(batch)
    found = list(rows(module.predict_step(batch, start)))
    per_sample = max(1, len(found) // (num_samples(batch) or stop - start))
    finished = []
    for i, row in enumerate(found):
        index = start + i // per_sample
        if index in samples.failed:
            row = dict.fromkeys(row)
        elif samples.finish is not None:
            row = samples.finish(row, index)
        finished.append(row)
    return finished


def datamodule_of(module: L.LightningModule) -> DataModule | None:
    """Return the datamodule that a module was trained with: of its checkpoint, or of its Trainer."""
    data = getattr(module, "datamodule", None)
    trainer = trainer_of(module)
    if data is None and trainer is not None:
        data = getattr(trainer, "datamodule", None)
    if data is None:
        described = getattr(module, "data_in_checkpoint", None)
        data = data_of_description(described) if described else None
        if data is not None:
            fit_to_model(data, module)
            object.__setattr__(module, "datamodule", data)
    return data if isinstance(data, DataModule) else None


def move(module: L.LightningModule) -> Callable[[Any], Any]:
    """Return a function that moves a batch to the device of a module, floats in its precision."""
    from lightning.fabric.utilities import move_data_to_device

    parameter = next(module.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    return lambda batch: move_data_to_device(batch, device)


@contextmanager
def evaluating(module: L.LightningModule) -> Any:
    """Put a module into eval mode, and each of its parts back into its own mode."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


def _names(rows: list[dict[str, Any]]) -> list[str]:
    names: dict[str, None] = {}
    for row in rows[:1000]:
        names |= dict.fromkeys(row)
    return list(names)
