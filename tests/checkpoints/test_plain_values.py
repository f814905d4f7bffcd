"""A checkpoint that zoo writes can be read by zoo: numbers of numpy are saved as plain ones."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch

from zoo.callbacks import BestAndLast
from zoo.checkpoints import read_tensors
from zoo.checkpoints.plain_values import make_plain, plain
from zoo.models import MLPClassifier


def test_numbers_of_numpy_become_plain():
    value = {"a": [np.float64(1.5), (np.int64(2), "x")], np.str_("b"): np.bool_(True)}
    found = plain(value)
    assert found == {"a": [1.5, (2, "x")], "b": True}
    assert [type(item) for item in (found["a"][0], found["a"][1][0], found["b"])] == [float, int, bool]
    assert type(list(found)[1]) is str
    unchanged = {"a": [1, {"b": torch.ones(1)}], "c": (None, 2.0)}
    assert plain(unchanged) is unchanged


class Saves(L.Callback):
    """What somebody's module or callback might save."""

    def __init__(self, value: object) -> None:
        self.value = value

    def on_save_checkpoint(self, trainer, pl_module, checkpoint) -> None:
        checkpoint["mine"] = {"value": self.value}


def fit(folder: Path, value: object) -> Path:
    x = torch.randn(8, 4)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, torch.arange(8) % 2), batch_size=4)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    callbacks = [Saves(value), BestAndLast(dirpath=str(folder))]
    trainer = L.Trainer(max_epochs=2, limit_val_batches=0, callbacks=callbacks, **quiet)
    trainer.fit(MLPClassifier(input_dim=4, num_classes=2), loader)
    return folder / "last.ckpt"


def test_a_checkpoint_with_them_is_read(tmp_path):
    path = fit(tmp_path, [np.float32(0.5), np.str_("text")])
    assert read_tensors(path, "cpu")["mine"] == {"value": [0.5, "text"]}


def test_what_cannot_be_read_again_is_said_once(tmp_path):
    with pytest.warns(UserWarning, match="hold Python objects, so that zoo cannot read them") as warned:
        fit(tmp_path, Path("object"))
    assert len([w for w in warned if "Python objects" in str(w.message)]) == 1


def test_make_plain_leaves_tensors_alone():
    state = {"w": torch.ones(2)}
    checkpoint = {"state_dict": state, "epoch": np.int64(3)}
    make_plain(checkpoint)
    assert checkpoint["state_dict"] is state
    assert type(checkpoint["epoch"]) is int
