"""What users get wrong: one line that says what was given and what is allowed, exit code 2, nothing written.

Each row runs as a process. Most are forks of this one, which differ from a fresh interpreter in nothing but the time
that importing torch takes; ``test_in_a_fresh_interpreter`` runs some from the start.
"""

import os
import resource
import shlex
import shutil
import signal
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from tests.processes import Done, Fork

ROOT = Path(__file__).parents[2]
DIGITS = "fit -c configs/mlp_digits.yaml"
TABLE_FILE = "fit --model MLPClassifier --data Tabular --data.file"
OWN = "fit --model MLPClassifier --model.input_dim 5 --data owndata.Data --trainer.max_epochs 2"
OWN_DATA = """
import lightning
import torch
from torch.utils.data import DataLoader, TensorDataset


class Data(lightning.LightningDataModule):
    def __init__(self, low: int = 0, high: int = 6):
        super().__init__()
        self.low, self.high = low, high

    def loader(self):
        x = torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
        y = self.low + torch.arange(64) % (self.high - self.low)
        return DataLoader(TensorDataset(x, y), batch_size=16)

    train_dataloader = val_dataloader = loader
"""
CSV = "size,colour,kind\n" + "".join(f"{i},{'red' if i % 3 else 'blue'},{i % 2}\n" for i in range(40))
FILES = {
    "broken.yaml": "model: MLPClassifier\ndata: Digits\ntrainer:\n  max_epochs: [1\nseed_everything: 1\n",
    "list.yaml": "- model\n- data\n",
    "empty.yaml": "# nothing yet\n",
    "section.yaml": "model: MLPClassifier\ndata: Digits\ntrainr:\n  max_epochs: 1\n",
    "key.yaml": "model: MLPClassifier\ndata: Digits\ntrainer:\n  max_epoch: 1\n",
    "argument.yaml": "model:\n  class_path: MLPClassifier\n  init_args: {hiden: [3]}\ndata: Digits\n",
    "misplaced.yaml": "model:\n  class_path: MLPClassifier\n  hidden: [3]\ndata: Digits\n",
    "type.yaml": "model:\n  class_path: MLPClassifier\n  init_args: {lr: fast}\ndata: Digits\n",
    "table.csv": CSV,
    "ragged.csv": CSV + "1,2\n",
    "owndata.py": OWN_DATA,
    "file": "not a folder\n",
    "folder/inside.txt": "",
    "run/checkpoints/last.ckpt": "",
}


class Mistake(NamedTuple):
    """A command, and the words that its one line must hold."""

    args: str
    words: list[str]


TABLE = {
    # Names
    "model": Mistake("fit --model MLPClasifier --data Digits", ["'MLPClasifier'", "did you mean MLPClassifier"]),
    "model far from all": Mistake("fit --model Zebra --data Digits", ["model: unknown class 'Zebra'", "zoo list"]),
    "network, not a module": Mistake(
        "fit --model torch.nn.Linear --data Digits", ["torch.nn.Linear", "LightningModule"]
    ),
    "dataset": Mistake("fit --model MLPClassifier --data Digit", ["data: ", "'Digit'", "did you mean Digits"]),
    "optimizer": Mistake(f"{DIGITS} --model.optimizer Adm", ["model.optimizer", "'Adm'", "Adam"]),
    "sparse optimizer": Mistake(f"{DIGITS} --model.optimizer SparseAdam", ["SparseAdam", "sparse gradients", "Adam"]),
    "callback": Mistake(f"{DIGITS} --trainer.callbacks+=LearningRateMonitr", ["LearningRateMonitor"]),
    "layer": Mistake(f"{DIGITS} --model.activation Relu", ["'Relu'", "ReLU"]),
    "logger": Mistake(f"{DIGITS} --logger wandbb", ["logger", "'wandbb'", "csv, wandb, tensorboard"]),
    "command": Mistake("fitt -c configs/mlp_digits.yaml", ["'fitt'", "fit"]),
    # Keys
    "section in YAML": Mistake("fit -c section.yaml", ["'trainr.max_epochs'", "did you mean trainer.max_epochs"]),
    "key in YAML": Mistake("fit -c key.yaml", ["'trainer.max_epoch'", "did you mean trainer.max_epochs"]),
    "argument in YAML": Mistake("fit -c argument.yaml", ["MLPClassifier", "'hiden'", "did you mean hidden?"]),
    "argument beside init_args": Mistake("fit -c misplaced.yaml", ["model: ", "init_args"]),
    "flag": Mistake(f"{DIGITS} --trainer.max_epoch 3", ["--trainer.max_epoch;", "did you mean --trainer.max_epochs"]),
    "flag of the model": Mistake(f"{DIGITS} --model.hiden [3]", ["'hiden'", "did you mean hidden?"]),
    "flag of the optimizer": Mistake(
        f"{DIGITS} --model.optimizer AdamW --model.optimizer.weight_dcay 1", ["AdamW", "did you mean weight_decay?"]
    ),
    "flag of a slot": Mistake(f"{DIGITS} --early_stopping.monitr x", ["early_stopping", "did you mean monitor?"]),
    "rate of the optimizer": Mistake(f"{DIGITS} --model.optimizer.lr 3", ["--model.lr"]),
    "flag without dashes": Mistake(f"{DIGITS} max_epochs", ["unexpected argument 'max_epochs'"]),
    "beginning of a flag": Mistake(f"{DIGITS} --seed 7", ["--seed;", "did you mean --seed_everything?"]),
    "flag of another section": Mistake(f"{DIGITS} --model.batch_size 3", ["did you mean --data.batch_size?"]),
    "flag of other libraries": Mistake(
        "fit --model MLPClassifier --data Tabular --data.path table.csv", ["'path'", "did you mean file?"]
    ),
    "flag of nobody": Mistake(f"{DIGITS} --model.zebra 3", ["it takes hidden, activation, norm,", ", lr, ..."]),
    "switch": Mistake(f"{DIGITS} --ema true", ["got true", "--ema '{}' turns it on"]),
    "callback in no list": Mistake(f"{DIGITS} --trainer.callbacks EmbeddingPlo", ["did you mean EmbeddingPlot?"]),
    "logger's folder": Mistake(f"{DIGITS} --trainer.logger TensorBoardLogger", ["--logger tensorboard"]),
    "strategy": Mistake(f"{DIGITS} --trainer.strategy dpp", ["'dpp'", "did you mean ddp?", "there is auto, ddp, "]),
    "config without -c": Mistake("fit mlp_digits", ["'mlp_digits'", "did you mean -c configs/mlp_digits.yaml?"]),
    "no model": Mistake("fit --data Digits", ["--model NAME", "-c FILE"]),
    # Types and values
    "type in YAML": Mistake("fit -c type.yaml", ["model.lr", "a number", "'fast'"]),
    "type of a flag": Mistake(
        f"{DIGITS} --trainer.max_epochs many", ["trainer.max_epochs", "a whole number", "'many'"]
    ),
    "list wanted": Mistake(f"{DIGITS} --model.hidden 3", ["model.hidden", "a list", "'3'"]),
    "negative rate": Mistake(f"{DIGITS} --model.lr -1", ["lr", "above 0", "-1.0"]),
    "dropout above 1": Mistake(f"{DIGITS} --model.dropout 1.5", ["dropout", "between 0 and 1", "1.5"]),
    "negative width": Mistake(f"{DIGITS} --model.hidden [-4]", ["1 or more", "hidden=[-4]"]),
    "negative size": Mistake(
        "fit -c configs/small_cnn_digits.yaml --model.stages [[-8]]", ["width or size", "-8", "at least 1"]
    ),
    "negative seed": Mistake(f"{DIGITS} --seed_everything -5", ["--seed_everything is -5", "from 0 to 4294967295"]),
    "no samples to validate": Mistake(f"{DIGITS} --data.val_split 0", ["val_split is 0.0", "above 0"]),
    "no rows to validate": Mistake(
        f"{TABLE_FILE} table.csv --data.target kind --data.val_split 0", ["val_split=0.0", "nothing for val"]
    ),
    "no batches for a step": Mistake(f"{DIGITS} --trainer.accumulate_grad_batches 0", ["is 0", "1 or more"]),
    "negative limit": Mistake(f"{DIGITS} --trainer.gradient_clip_val -1", ["gradient_clip_val is -1", "above 0"]),
    "callback twice": Mistake(
        f"{DIGITS} --trainer.callbacks+=EMA --ema.decay 0.9", ["EMA is both in --ema and in trainer.callbacks"]
    ),
    "batch of none": Mistake(f"{DIGITS} --data.batch_size 0", ["batch_size=0", "start at 1"]),
    "shares of a split": Mistake(f"{DIGITS} --data.val_split 0.9", ["shares", "add up to 1"]),
    "interval": Mistake(f"{DIGITS} --checkpoint.save_every often", ["'often'", "500 steps", "5 min"]),
    "image too small": Mistake(
        "fit -c configs/small_cnn_flatten_digits.yaml --model.stages [[8],[8],[8],[8]]", ["16 pixels", "image_size=8"]
    ),
    "patience": Mistake(f"{DIGITS} --early_stopping.patience 0", ["patience", "1 or more", "got 0"]),
    "metric to stop by": Mistake(f"{DIGITS} --early_stopping.monitor val/acc", ["'val/acc'", "val/accuracy"]),
    "metric of the best": Mistake(
        f"{DIGITS} --checkpoint.monitor val/acc --trainer.max_epochs 2", ["'val/acc'", "val/accuracy"]
    ),
    # Configs
    "missing config": Mistake(
        "fit -c configs/mlp_digit.yaml", ["configs/mlp_digit.yaml;", "mean -c configs/mlp_digits.yaml"]
    ),
    "name of a config": Mistake("fit -c mlp_digitss", ["did you mean -c configs/mlp_digits.yaml"]),
    "copy of no config": Mistake("config copy mlp_digitss", ["no config mlp_digitss; did you mean mlp_digits"]),
    "copy onto a folder that is absent": Mistake("config copy mlp_digits no/x.yaml", ["cannot write no/x.yaml"]),
    "config like no other": Mistake("fit -c configs/nope.yaml", ["no config configs/nope.yaml; `zoo list configs`"]),
    "folder as config": Mistake("fit -c configs", ["configs is a folder"]),
    "broken YAML": Mistake("fit -c broken.yaml", ["broken.yaml, line 5"]),
    "YAML that is a list": Mistake("fit -c list.yaml", ["list.yaml", "list"]),
    "empty YAML": Mistake("fit -c empty.yaml", ["empty.yaml is empty"]),
    # Data
    "missing CSV": Mistake(f"{TABLE_FILE} no.csv --data.target y", ["no file no.csv"]),
    "folder as CSV": Mistake(f"{TABLE_FILE} folder --data.target y", ["folder", "it is a folder"]),
    "CSV without the target": Mistake(
        f"{TABLE_FILE} table.csv --data.target species",
        ["table.csv has no column 'species'", "size, colour, kind"],
    ),
    "CSV with a short row": Mistake(
        f"{TABLE_FILE} ragged.csv --data.target kind",
        ["ragged.csv, row 42", "3 col"],
    ),
    "no data for the facts": Mistake("fit --model MLPClassifier", ["MLPClassifier", "input_dim"]),
    "fewer classes than labels": Mistake(f"{DIGITS} --model.num_classes 3", ["num_classes is 3", "num_classes 10"]),
    "label out of range": Mistake(
        f"{OWN} --model.num_classes 3",
        ["label 3 is out of range", "num_classes=3", "0 to 2"],
    ),
    "label below 0": Mistake(
        f"{OWN} --model.num_classes 3 --data.low -1 --data.high 2",
        ["label -1 is out of range", "0 to 2"],
    ),
    "label of a binary task": Mistake(
        f"{OWN} --model.task binary --model.num_classes 2", ["label 2 is out of range", "0 or 1"]
    ),
    # Checkpoints
    "absent checkpoint": Mistake("test -c configs/mlp_digits.yaml --ckpt_path no.ckpt", ["no checkpoint no.ckpt"]),
    "absent checkpoint alone": Mistake("test --ckpt_path no.ckpt", ["no checkpoint no.ckpt"]),
    "no checkpoint": Mistake("test", ["test needs a model", "--ckpt_path FILE"]),
    "run as checkpoint": Mistake("test --ckpt_path run", ["run is the folder of a run", "run/checkpoints/best.ckpt"]),
    "predictions of nothing": Mistake(
        "predict -c configs/mlp_digits.yaml --out out.csv", ["needs a trained model", "--ckpt_path FILE"]
    ),
    "truncated checkpoint": Mistake("test --ckpt_path truncated.ckpt", ["truncated.ckpt", "not a whole checkpoint"]),
    "checkpoint with code in it": Mistake("test --ckpt_path payload.ckpt", ["payload.ckpt", "only plain tensors"]),
    "other architecture": Mistake(
        "test -c configs/small_cnn_digits.yaml --ckpt_path digits.ckpt",
        ["digits.ckpt", "SmallCNNClassifier", "missing (net.features.0.0.weight", "unexpected (net.1.weight"],
    ),
    "other widths": Mistake(
        "test --ckpt_path digits.ckpt --model.hidden [64,32]",
        ["another shape", "net.3.weight (64, 64) instead of (32, 64)"],
    ),
    "nothing to resume": Mistake("fit --resume", ["no run to resume", "runs"]),
    "no such run": Mistake("fit --resume mlp_digits/7", ["no run 'mlp_digits/7'"]),
    # Where to write
    "run folder below a file": Mistake(f"{DIGITS} --run_dir file/run", ["file/run", "Not a directory"]),
    "run folder in use": Mistake(f"{DIGITS} --run_dir folder", ["folder is not empty", "--resume folder"]),
    "suffix of predictions": Mistake("predict --ckpt_path digits.ckpt --out out.txt", ["'out.txt'", ".csv", ".jsonl"]),
    "folder of predictions": Mistake("predict --ckpt_path digits.ckpt --out no/out.csv", ["no folder 'no'", "out.csv"]),
    # The machine, and what may be imported
    "no GPU": Mistake(f"{DIGITS} --trainer.accelerator gpu", ["--trainer.accelerator", "GPU", "cpu"]),
    "no CUDA": Mistake(f"{DIGITS} --trainer.accelerator cuda", ["--trainer.accelerator", "cuda", "cpu"]),
    "standard library": Mistake(
        f"{DIGITS} --trainer.callbacks+=subprocess.Popen", ["subprocess.Popen", "--allow-import"]
    ),
}
FRESH = ("model", "truncated checkpoint", "label out of range")


class Payload:
    def __reduce__(self):
        return os.system, ("touch payload-ran",)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A checkpoint of the perceptron on digits."""
    folder = tmp_path_factory.mktemp("trained")
    config = ROOT / "configs" / "mlp_digits.yaml"
    done = Fork("fit", "-c", config, "--trainer.max_steps", 2, "--run_dir", "run", folder=folder).wait()
    assert done.code == 0, done.err
    return folder / "run" / "checkpoints" / "last.ckpt"


@pytest.fixture
def place(here: Path, checkpoint: Path) -> Path:
    """A working directory with all that the commands of the table name."""
    for name, text in FILES.items():
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(text)
    whole = checkpoint.read_bytes()
    (here / "digits.ckpt").write_bytes(whole)
    (here / "truncated.ckpt").write_bytes(whole[: len(whole) // 2])
    torch.save({"state_dict": {"w": torch.zeros(2)}, "hyper_parameters": Payload()}, here / "payload.ckpt")
    return here


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if "__pycache__" not in p.parts}


def assert_told(done: Done, words: list[str], place: Path, before: set[str]) -> None:
    lines = done.err.splitlines()
    assert done.code == 2, done.err
    assert len(lines) == 1, done.err
    assert lines[0].startswith("zoo: error: ")
    assert "Traceback" not in done.out
    assert [w for w in words if w not in lines[0]] == [], lines[0]
    assert files(place) == before, "nothing is written, and nothing left behind"


@pytest.mark.parametrize("name", TABLE)
def test_one_line_and_nothing_written(name, place):
    before = files(place)
    done = Fork(*shlex.split(TABLE[name].args), folder=place).wait()
    assert_told(done, TABLE[name].words, place, before)


@pytest.mark.parametrize("name", FRESH)
def test_in_a_fresh_interpreter(name, place, zoo_process):
    before = files(place)
    done = zoo_process(*shlex.split(TABLE[name].args))
    assert_told(Done(done.returncode, done.stdout, done.stderr), TABLE[name].words, place, before)


def test_debug_shows_the_traceback(place):
    done = Fork(*shlex.split(TABLE["negative rate"].args), folder=place, env={"ZOO_DEBUG": "1"}).wait()
    assert done.code != 0
    assert "Traceback" in done.err
    assert "lr must be above 0" in done.err
    assert not (place / "runs").exists()


def test_no_space_for_a_checkpoint(place):
    def small_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    before = files(place)
    done = Fork(*DIGITS.split(), "--trainer.max_epochs", 1, folder=place, before=small_disk).wait()
    assert_told(done, ["last.ckpt", "File too large"], place, before)


def test_no_space_later_keeps_the_last_whole_checkpoint(place):
    """The first checkpoint fits; then the disk is full."""
    (place / "full.py").write_text(
        "import resource\nimport lightning\n\n"
        "class Full(lightning.Callback):\n"
        "    def on_train_epoch_start(self, trainer, module):\n"
        "        if trainer.current_epoch == 2:\n"
        "            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
    )
    done = Fork(*DIGITS.split(), "--trainer.max_epochs", 4, "--trainer.callbacks+=full.Full", folder=place).wait()
    assert done.code == 2
    assert [line.startswith("zoo: error: ") for line in done.err.splitlines()] == [True], done.err
    folder = place / "runs" / "mlp_digits" / "1" / "checkpoints"
    assert torch.load(folder / "last.ckpt", weights_only=True)["epoch"] >= 0
    assert not list(folder.glob(".*.new-*")), "no half file"


@pytest.fixture
def outside(tmp_path_factory, monkeypatch) -> Path:
    """A package that can be imported but lies outside the working directory; importing it leaves a mark."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "faraway.py").write_text(
        "import pathlib\nfrom zoo.models import MLPClassifier\n\n"
        f"pathlib.Path({str(folder / 'imported')!r}).touch()\n\nclass Net(MLPClassifier):\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    return folder


def test_a_class_from_elsewhere_is_not_even_imported(place, outside):
    before = files(place)
    done = Fork("fit", "--model", "faraway.Net", "--data", "Digits", folder=place).wait()
    assert_told(done, ["faraway.Net is outside", "--allow-import faraway"], place, before)
    assert not (outside / "imported").exists()


@pytest.mark.parametrize("how", ["flag", "variable"])
def test_a_class_from_elsewhere_when_allowed(how, place, outside):
    flag, env = (["--allow-import", "faraway"], {}) if how == "flag" else ([], {"ZOO_ALLOW_IMPORT": "other,faraway"})
    steps = ["--trainer.max_steps", 1]
    done = Fork("fit", "--model", "faraway.Net", "--data", "Digits", *steps, *flag, folder=place, env=env).wait()
    assert done.code == 0, done.err
    assert (outside / "imported").exists()
    saved = torch.load(place / "runs" / "net_digits" / "1" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["hyper_parameters"]["_class_path"] == "faraway.Net"


def test_a_class_of_the_working_directory_needs_no_leave(place, outside):
    shutil.copy(outside / "faraway.py", place / "nearby.py")
    done = Fork("fit", "--model", "nearby.Net", "--data", "Digits", "--trainer.max_steps", 1, folder=place).wait()
    assert done.code == 0, done.err
    assert (place / "runs" / "net_digits" / "1" / "config.yaml").exists()


SLOW = """
import pathlib
import time
import lightning


class Slow(lightning.Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.current_epoch == 1 and batch_idx >= 3:
            pathlib.Path("in-epoch-1").touch()
            time.sleep(0.5)
"""


def test_ctrl_c_in_the_middle_of_an_epoch(place):
    (place / "slow.py").write_text(SLOW)
    epochs = ["--trainer.max_epochs", 2]
    run = Fork(*DIGITS.split(), *epochs, "--trainer.callbacks+=slow.Slow", folder=place)
    end = time.monotonic() + 120
    while not (place / "in-epoch-1").exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    os.kill(run.pid, signal.SIGINT)
    done = run.wait()
    assert done.code == 130, done.err
    assert "Traceback" not in done.err
    assert [line for line in done.err.splitlines() if line] == [
        "Ctrl-C: finishing this step and saving a checkpoint; once more stops at once",
        "stopped; to resume: zoo fit --resume runs/mlp_digits/1",
    ]
    folder = place / "runs" / "mlp_digits" / "1" / "checkpoints"
    saved = torch.load(folder / "last.ckpt", weights_only=True)
    assert 20 + 3 < saved["global_step"] < 2 * 20, "in the middle of the second of two epochs of 20 steps"
    done = Fork("fit", "--resume", "--trainer.callbacks", "null", folder=place).wait()
    assert done.code == 0, done.err
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 2 * 20
    assert [p.name for p in (place / "runs" / "mlp_digits").iterdir()] == ["1"], "in its own folder"
