"""Every dataset that needs no file: worker processes change no batch."""

from itertools import islice

import pytest
import torch
from torch.utils._pytree import tree_flatten

from zoo.data import (
    AddingProblem,
    CopyTask,
    DateTranslation,
    Digits,
    SyntheticSequences,
    TextClassification,
    TimeSeries,
)

DATA = {
    "digits as images": lambda n: Digits(image_size=16, augment=[], num_workers=n),
    "synthetic sequences": lambda n: SyntheticSequences(num_workers=n),
    "adding problem": lambda n: AddingProblem(num_workers=n),
    "copy task": lambda n: CopyTask(num_workers=n),
    "dates": lambda n: DateTranslation(num_workers=n),
    "texts": lambda n: TextClassification(augment={"mask": 0.2, "swap": 0.1}, num_workers=n),
    "series": lambda n: TimeSeries(calendar=["hour_of_day"], num_workers=n),
    "series with gaps": lambda n: TimeSeries("google_volume", past=["log_close"], num_workers=n),
}


@pytest.mark.parametrize("name", DATA)
def test_workers_change_no_batch(name):
    found = []
    for workers in (0, 1):
        data = DATA[name](workers)
        data.setup("fit")
        loaders = {"train": data.train_dataloader(), "val": data.val_dataloader()}
        loaders["train"].sampler.set_epoch(1)
        found.append({split: list(islice(loader, 2)) for split, loader in loaders.items()})
    (alone, kind), (helped, same_kind) = (tree_flatten(batches) for batches in found)
    assert kind == same_kind
    assert len(alone) > 3
    assert all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(alone, helped, strict=True))
