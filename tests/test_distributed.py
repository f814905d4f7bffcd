"""Two processes do what one does with the same global batch."""

import csv
import inspect
import json
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml

from tests.processes import on_two
from tests.test_configs import SHORT, configs, fake_writer, teachers
from zoo import models, tasks
from zoo.cli import main
from zoo.data import BatchTensorDataset, DataModule
from zoo.optim import OneCycle, Plateau, StepDecay, WarmupCosine, WarmupLinear, WarmupStableDecay

DDP = ["--trainer.strategy", "ddp", "--trainer.devices", "2", "--trainer.accelerator", "cpu"]


def table(path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def weights(path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.mark.slow
@pytest.mark.parametrize("windows", [1, 4])
def test_ddp_equals_one_process(zoo_process, here, windows):
    common = ["fit", "-c", "configs/mlp_digits.yaml", "--trainer.precision", "64-true", "--trainer.max_epochs", "2",
              "--trainer.gradient_clip_val", "1.0", "--model.dropout", "0",
              "--trainer.accumulate_grad_batches", windows]  # fmt: skip
    one = zoo_process(*common, "--run_dir", "one", "--data.batch_size", "64")
    two = zoo_process(*common, "--run_dir", "two", "--data.batch_size", "32", *DDP)
    assert one.returncode == 0, one.stderr
    assert two.returncode == 0, two.stderr
    a, b = weights(here / "one/checkpoints/last.ckpt"), weights(here / "two/checkpoints/last.ckpt")
    assert a.keys() == b.keys()
    assert max(float((a[k] - b[k]).abs().max()) for k in a) < 1e-10

    rows = [table(here / run / "metrics.csv") for run in ("one", "two")]
    for single, double in zip(*rows, strict=True):
        assert single.keys() == double.keys()
        for key in single:
            if single[key]:
                assert float(single[key]) == pytest.approx(float(double[key]), rel=1e-6), key


FORKS = ["--trainer.strategy", "ddp_fork", "--trainer.devices", "2", "--trainer.accelerator", "cpu"]


@pytest.mark.parametrize("windows", [1, 4])
def test_padded_tokens_on_two_processes_weigh_as_on_one(here, windows):
    """90 sentences, 32 a step; the last window is of 26, so that neither processes nor batches have as many each."""
    argv = ["fit", "--allow-import", "tests", "--model", "tests.tokens.Tagger", "--data", "tests.tokens.Sentences",
            "--trainer.precision", "64-true", "--trainer.max_epochs", "3", "--trainer.limit_val_batches", "0",
            "--model.optimizer", "SGD", "--model.lr", "1"]  # fmt: skip
    parts = ["--data.batch_size", str(16 // windows), "--trainer.accumulate_grad_batches", str(windows), *FORKS]
    assert main([*argv, "--run_dir", "one", "--data.batch_size", "32"]) == 0
    assert main([*argv, "--run_dir", "two", *parts]) == 0
    a, b = weights(here / "one/checkpoints/last.ckpt"), weights(here / "two/checkpoints/last.ckpt")
    assert max(float((a[k] - b[k]).abs().max()) for k in a) < 1e-12
    losses = [float(table(here / run / "metrics.csv")[-1]["train/loss"]) for run in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


class Rates(L.Callback):
    """Writes down every rate that the first process trains with."""

    def on_before_optimizer_step(self, trainer, module, optimizer):
        if trainer.is_global_zero:
            with open("rates", "a") as file:
                file.write(json.dumps(optimizer.param_groups[0]["lr"]) + "\n")


@pytest.mark.parametrize("schedule", [WarmupCosine, WarmupLinear, WarmupStableDecay, OneCycle, StepDecay, Plateau])
def test_schedules_find_the_length_of_a_run_of_two_processes(here, schedule):
    """800 points in batches of 50 on each of two processes, two at a time: 8 batches, 4 steps an epoch."""
    argv = ["fit", "--model", "MLPClassifier", "--model.hidden", "[4]", "--data", "Quadrants",
            "--data.batch_size", "50", "--trainer.max_epochs", "3", *FORKS]  # fmt: skip
    argv += ["--trainer.accumulate_grad_batches", "2", "--model.lr_scheduler", schedule.__name__]
    assert main(argv, [Rates()]) == 0
    used = [json.loads(line) for line in Path("rates").read_text().splitlines()]
    assert len(used) == 12
    if schedule is not Plateau:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 1e-3)
        whole = schedule(optimizer, total_steps=12)
        assert used == pytest.approx([1e-3 * whole.factor(i) for i in range(12)], rel=1e-12)


@pytest.mark.slow
def test_ddp_predictions_come_in_the_order_of_the_data(zoo_process, here):
    assert (
        zoo_process("fit", "-c", "configs/mlp_quadrants.yaml", "--trainer.max_epochs", "2", "--run_dir", "r").returncode
        == 0
    )
    for name, extra in (("one", []), ("two", DDP)):
        done = zoo_process("predict", "--ckpt_path", "r/checkpoints/last.ckpt", "--out", f"{name}.csv",
                           "--data.samples", "1010", "--data.eval_batch_size", "9", *extra)  # fmt: skip
        assert done.returncode == 0, done.stderr
    one, two = (table(here / f"{n}.csv") for n in ("one", "two"))
    assert f"{len(one)} predictions in two.csv" in done.stdout
    assert [r["class"] for r in one] == [r["class"] for r in two]
    assert sorted(p.name for p in here.iterdir() if p.name.startswith(".")) == [], "no part is left"


def test_a_test_of_a_classifier_prints_the_same_on_two_processes(zoo, here):
    """The confusion matrix too, which only the main process prints, and no hint to log otherwise."""
    fit = ["fit", "--model", "MLPClassifier", "--data", "Tabular", "--data.name", "iris", "--run_dir", "r"]
    assert zoo(*fit, "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu")[0] == 0
    args = ["test", "--ckpt_path", here / "r/checkpoints/best.ckpt"]
    one = zoo(*args, "--trainer.accelerator", "cpu")
    main, other = on_two(here, *args)
    assert (main.code, other.code) == (0, 0), main.err + other.err
    assert one[1].count("setosa") == 2
    assert main.out == one[1]
    assert other.out == ""
    assert "sync_dist" not in main.err


class Logs(L.LightningModule):
    """Somebody's module that logs means with ``sync_dist``."""

    def validation_step(self, batch, batch_idx):
        (x,) = batch
        self.log("ones", x.mean() * 0 + 1, sync_dist=True, batch_size=len(x))
        self.log("mean", x.mean(), sync_dist=True, batch_size=len(x))


class Drifts(L.LightningModule):
    """Somebody's module whose validation loss falls on one process and rises on the other."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.net(batch[0].unsqueeze(1)).mean()

    def validation_step(self, batch, batch_idx):
        sign = 2 * self.trainer.global_rank - 1
        self.log("val_loss", torch.tensor(float(sign * self.trainer.global_step)))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Numbers(DataModule):
    """Nine samples: five on one process, four on the other."""

    def splits(self) -> dict[str, BatchTensorDataset]:
        numbers = BatchTensorDataset(torch.arange(9.0))
        return {"train": numbers, "val": numbers}


def test_all_processes_save_when_the_main_one_has_a_better_value(here):
    """Saving takes all of them; that one of them alone found an improvement would end in a deadlock."""
    args = ["fit", "--allow-import", "tests", "--model", "tests.test_distributed.Drifts",
            "--data", "tests.test_distributed.Numbers", "--data.batch_size", "2", "--trainer.val_check_interval", "1",
            "--trainer.max_epochs", "1", "--run_dir", here / "r"]  # fmt: skip
    main, other = on_two(here, *args)
    assert (main.code, other.code) == (0, 0), main.err + other.err
    assert "best val_loss  -2.0000" in main.out
    assert (here / "r/checkpoints/best.ckpt").is_file()


class Points(DataModule):
    """Three samples: two on one process, and a single one, which has no r2, on the other."""

    def splits(self) -> dict[str, BatchTensorDataset]:
        return {"val": BatchTensorDataset(torch.arange(6.0).view(3, 2), torch.tensor([1e6, 1e6 + 1, 1e6 + 5]))}


@pytest.mark.parametrize(
    ("model", "data", "values"),
    [
        (["tests.test_distributed.Logs"], "Numbers", {"ones": 1.0, "mean": 4.0}),
        (
            ["MLPRegressor", "--model.input_dim", "2", "--model.hidden", "[]", "--model.output_dim", "1"],
            "Points",
            {},
        ),
    ],
    ids=["means of ones own module", "r2"],
)
def test_uneven_shards(zoo, here, model, data, values):
    args = ["validate", "--allow-import", "tests", "--model", *model, "--data", f"tests.test_distributed.{data}",
            "--data.eval_batch_size", "2", "--seed_everything", "0"]  # fmt: skip
    code, out, err = zoo(*args, "--trainer.accelerator", "cpu")
    assert code == 0, err
    main, other = on_two(here, *args)
    assert (main.code, other.code) == (0, 0), main.err + other.err
    assert main.out == out
    printed = dict(line.split() for line in out.splitlines())
    assert {name: float(printed[name]) for name in values} == values
    assert values or float(printed["val/rmse"]) > 0


def without_chance(config) -> list[object]:
    """Options that leave out dropout and BatchNorm, which see only their own process's part of a batch."""
    given = yaml.safe_load(config.read_text())["model"]
    name, given = (given, {}) if isinstance(given, str) else (given["class_path"], given.get("init_args", {}))
    line = [c for c in (getattr(models, name, None) or getattr(tasks, name)).__mro__ if c.__module__.startswith("zoo.")]
    known = {parameter for c in line for parameter in inspect.signature(c).parameters}
    flags = []
    for key, off in (("dropout", "0"), ("norm", "none")):
        if key in known and not (key == "norm" and "heads" in known):  # transformers have no BatchNorm
            value = given.get(key)
            flags += [f"--model.{key}", f"[{', '.join([off] * len(value))}]" if isinstance(value, list) else off]
    return flags


@pytest.mark.slow
@configs
def test_every_config_on_two_processes(config, zoo_process, here):
    """The same weights after 20 steps, or, where batches or chance make parts differ, training all the same."""
    if write := fake_writer(config):
        write(here / "data", train=600)
    batch = yaml.safe_load(config.read_text()).get("data")
    batch = batch.get("init_args", {}).get("batch_size", 64) if isinstance(batch, dict) else 64
    if config.stem.endswith(("cifar10", "svhn")):
        batch = 32  # large images in float64 take long
    common = ["fit", "-c", config, "--trainer.precision", "64-true", "--trainer.max_steps", "20",
              "--trainer.max_epochs", "20", "--data.eval_batch_size", "64", *without_chance(config)]  # fmt: skip
    for argument, teacher in teachers(config).items():
        assert zoo_process("fit", "-c", teacher, "--run_dir", teacher.stem, *SHORT).returncode == 0
        common += [f"--model.{argument}", f"{teacher.stem}/checkpoints/best.ckpt"]
    if config.stem in ("vanilla_rnn_adding", "gru_google_volume"):
        common += ["--model.optimizer", "SGD"]  # Adam makes steps of full size out of what vanishes but for rounding
    two = zoo_process(*common, "--run_dir", "two", "--data.batch_size", batch // 2, *DDP)
    assert two.returncode == 0, two.stderr
    b = torch.load(here / "two/checkpoints/last.ckpt", weights_only=True)
    assert b["global_step"] == 20
    assert all(torch.isfinite(v).all() for v in b["state_dict"].values() if v.is_floating_point())
    text = config.read_text()
    # each process draws for itself, or looks at all of its own samples together
    chance = ("MetricLearner", "Embedding", "augment", "MaskedText", "Diffusion", "Autoencoder", "WhitenFirstLayer")
    alone = any(name in text for name in chance)
    if alone or any("running_mean" in key for key in b["state_dict"] if key.startswith("net.")):
        return
    one = zoo_process(*common, "--run_dir", "one", "--data.batch_size", batch)
    assert one.returncode == 0, one.stderr
    a = weights(here / "one/checkpoints/last.ckpt")
    assert max(float((a[k] - v).abs().max()) for k, v in b["state_dict"].items() if v.numel()) < 1e-10
