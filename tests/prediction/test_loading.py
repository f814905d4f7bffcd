"""Modules and datamodules from checkpoints, without the training data."""

import lightning as L
import pytest
import torch

import zoo
from zoo.cli.main import main
from zoo.errors import UserError
from zoo.prediction import load_with_data


@pytest.fixture(scope="module")
def table_checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    rows = "\n".join(f"{i},{i * 2},{'ab'[i % 2]}" for i in range(40))
    table = folder / "t.csv"
    table.write_text(f"x,y,kind\n{rows}\n")
    options = f"--data.file {table} --data.target kind --data.batch_size 4 --ema.decay 0.5 --run_dir {folder / 'run'}"
    trainer = "--trainer.max_epochs 1 --trainer.enable_progress_bar false"
    code = main(["fit", "--model", "MLPClassifier", "--data", "Tabular", *options.split(), *trainer.split()])
    assert code == 0
    table.unlink()
    return folder / "run" / "checkpoints" / "last.ckpt"


def test_module_and_data_without_the_file_of_training(table_checkpoint):
    module, data = load_with_data(table_checkpoint)
    assert not module.training
    assert data.fitted.names == ["x", "y"]
    assert data.input_dim == 2
    assert module.datamodule is data
    again = zoo.load(table_checkpoint)
    x = torch.ones(1, 2)
    assert torch.equal(module(x), again(x))
    raw = zoo.load(table_checkpoint, weights="raw")
    assert any(not torch.equal(a, b) for a, b in zip(module.parameters(), raw.parameters(), strict=True))


def test_a_checkpoint_that_does_not_name_its_class(tmp_path):
    torch.save({"state_dict": {}, "pytorch-lightning_version": L.__version__}, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match="does not name the class of its model"):
        zoo.load(tmp_path / "x.ckpt")
