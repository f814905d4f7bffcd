"""Files of predictions: which sample a row is of, the target's name, the truth, and the order of several processes."""

import csv
import json
import os
from types import SimpleNamespace

import pytest
import torch

from zoo.callbacks import PredictionWriter
from zoo.callbacks.prediction_writer import num_samples


class Data:
    """Five samples, in files of their own or rows of a table."""

    def __init__(self, target_name=None, targets=None, columns=None):
        self.target_name = target_name
        self.targets = targets
        self.columns = columns or {}

    def predict_columns(self):
        return self.columns

    def predict_targets(self):
        return self.targets


def write(path, data, batches, world=1):
    """Write ``batches[rank]``, a list of (outputs, batch), on each of several processes; rank 0 is the last to end."""
    writers = []
    shared = []

    def broadcast(value):
        shared.append(value)
        return shared[0]

    strategy = SimpleNamespace(barrier=lambda name: None, broadcast=broadcast)
    for rank in range(world):
        trainer = SimpleNamespace(
            global_rank=rank, world_size=world, is_global_zero=rank == 0, datamodule=data, strategy=strategy
        )
        writers.append((PredictionWriter(str(path)), trainer))
    for rank, (writer, trainer) in enumerate(writers):
        writer.on_predict_start(trainer, None)
        for i, (outputs, batch) in enumerate(batches[rank]):
            writer.on_predict_batch_end(trainer, None, outputs, batch, i)
    for writer, trainer in reversed(writers):
        writer.on_predict_end(trainer, None)
    with open(path, newline="") as file:
        if path.suffix == ".jsonl":
            return writers[0][0].rows, [json.loads(line) for line in file]
        return writers[0][0].rows, list(csv.DictReader(file))


def test_row_target_and_truth(tmp_path):
    data = Data("price", ["5", "7"], {"row": [2, 3]})
    outputs = {"prediction": [5.5, 6.5]}
    _, rows = write(tmp_path / "p.csv", data, [[(outputs, (torch.zeros(2, 3),))]])
    assert rows == [
        {"row": "2", "price": "5.5", "price_true": "5"},
        {"row": "3", "price": "6.5", "price_true": "7"},
    ]
    outputs = {"class": [0], "name": ["cat"], "probability": [0.9]}
    _, rows = write(tmp_path / "p.csv", Data("kind", None, {"id": ["x7"]}), [[(outputs, torch.zeros(1, 3))]])
    assert rows == [{"id": "x7", "class": "0", "kind": "cat", "probability": "0.9"}]
    _, rows = write(tmp_path / "p.csv", Data("class", ["dog"]), [[(outputs, torch.zeros(1, 3))]])
    assert rows == [{"predicted_class": "0", "class": "cat", "class_true": "dog", "probability": "0.9"}]
    _, rows = write(tmp_path / "p.csv", None, [[(outputs, torch.zeros(1, 3))]])
    assert rows == [{"class": "0", "name": "cat", "probability": "0.9"}], "data that say nothing"


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
@pytest.mark.parametrize("world", [2, 3])
def test_forecasts_of_several_processes_are_in_order(tmp_path, world, suffix):
    """Five windows of two steps; a name of a series may have a line break."""
    names = ["a", 'b"\n', "c", "d,", "e"]
    batches = []
    for rank in range(world):
        own = names[rank::world]
        outputs = {
            "series": [name for name in own for _ in range(2)],
            "step": [1, 2] * len(own),
            "forecast": [0.5] * (2 * len(own)),
        }
        batches.append([(outputs, ((torch.zeros(len(own), 8, 1),), torch.zeros(len(own), 2)))])
    count, rows = write(tmp_path / f"p.{suffix}", Data("y"), batches, world)
    assert [(row["series"], int(row["step"])) for row in rows] == [(name, s) for name in names for s in (1, 2)]
    assert count == 10
    assert list(rows[0]) == ["series", "step", "y"]
    assert [path.name for path in tmp_path.iterdir()] == [f"p.{suffix}"]


def test_truth_of_forecasts_stands_beside_them(tmp_path):
    outputs = {"step": [1, 2], "forecast": [3.0, 4.0], "truth": [3.5, None], "q0.5": [3.0, 4.0]}
    _, rows = write(tmp_path / "p.csv", Data("y"), [[(outputs, (torch.zeros(1, 8, 1),))]])
    assert rows[0] == {"step": "1", "y": "3.0", "y_true": "3.5", "q0.5": "3.0"}
    assert rows[1]["y_true"] == ""


def test_number_of_samples():
    assert num_samples(((torch.zeros(3, 2), torch.zeros(3)), torch.zeros(5))) == 3
    assert num_samples({"text": ["a"], "x": torch.zeros(4)}) == 4
    assert num_samples(["a", "b"]) is None


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_file_name_that_is_not_in_utf8(tmp_path, suffix):
    """As an archive from another country unpacks it: the bytes that are no text are written as escapes."""
    data = Data(columns={"file": [os.fsdecode(b"caf\xe9.png")]})
    path = tmp_path / f"p{suffix}"
    if suffix == ".csv":
        _, rows = write(path, data, [[({"name": ["cat"]}, (torch.zeros(1, 3),))]])
        assert rows == [{"file": "caf\\udce9.png", "name": "cat"}]
        return
    _, rows = write(path, data, [[({"name": ["cat"]}, (torch.zeros(1, 3),))]])
    assert rows == [{"file": os.fsdecode(b"caf\xe9.png"), "name": "cat"}]
