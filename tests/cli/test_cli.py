"""The command line: run folders, configs that run again, data spec, precedence, resuming, predictions."""

import csv
import json
import os
import pty
import shlex
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import yaml

from tests.processes import Done, Fork
from zoo.data import Digits
from zoo.models import MLPClassifier

ROOT = Path(__file__).parents[2]
# Without its schedule, which would be another one for another number of epochs.
DIGITS = ["fit", "-c", "configs/mlp_digits.yaml", "--model.lr_scheduler", "null"]
# 20 steps an epoch; rows of the log at steps 5, 10, ...
EPOCHS = ["--trainer.log_every_n_steps", "5", "--trainer.max_epochs"]
OWN = """
import lightning
import torch
from torch.utils.data import DataLoader, TensorDataset


class Line(lightning.LightningModule):
    def __init__(self, width: int = 3):
        super().__init__()
        self.layer = torch.nn.Linear(width, 1)

    def training_step(self, batch, batch_idx):
        loss = (self.layer(batch[0]) - batch[1]).square().mean()
        self.log("fitness", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", (self.layer(batch[0]) - batch[1]).square().mean())

    def test_step(self, batch, batch_idx):
        self.log("tested", (self.layer(batch[0]) - batch[1]).square().mean())

    def predict_step(self, batch, batch_idx):
        return self.layer(batch[0])[:, 0]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Points(lightning.LightningDataModule):
    def loader(self):
        x = torch.arange(60.0).view(20, 3) / 60
        return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=8)

    train_dataloader = val_dataloader = test_dataloader = predict_dataloader = loader
"""
STOP = """
import os
import signal
import lightning


class CtrlC(lightning.Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (1, 6):
            os.kill(os.getpid(), signal.SIGINT)
"""


def load(path: Path | str) -> dict:
    return torch.load(path, weights_only=True)


def checkpoints(run: int | str = 1, name: str = "mlp_digits") -> Path:
    return Path("runs") / name / str(run) / "checkpoints"


def assert_same_training(a: Path, b: Path) -> None:
    """Weights, optimizer state and position of two checkpoints are the same to the last bit."""
    one, two = load(a), load(b)
    assert one["state_dict"].keys() == two["state_dict"].keys()
    assert all(torch.equal(value, two["state_dict"][key]) for key, value in one["state_dict"].items())
    assert one["global_step"] == two["global_step"]
    states = [c["optimizer_states"][0]["state"] for c in (one, two)]
    for key, state in states[0].items():
        assert all(torch.equal(v, states[1][key][k]) for k, v in state.items())


def rows(path: Path | str) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


# Run folders ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("logger", ["csv", "tensorboard"])
def test_a_run_is_one_folder_and_the_next_has_its_own(zoo, here, logger):
    for n in (1, 2):
        code, out, err = zoo(*DIGITS, *EPOCHS, 1, "--logger", logger)
        assert (code, err) == (0, "")
        assert f"runs/mlp_digits/{n}" in out
    for n in (1, 2):
        folder = here / "runs" / "mlp_digits" / str(n)
        names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
        events = {name for name in names if name.startswith("tensorboard/")}
        assert any("events.out.tfevents" in name for name in events) == (logger == "tensorboard")
        plain = {"config.yaml", "metrics.csv", "environment.json", "checkpoints/best.ckpt", "checkpoints/last.ckpt"}
        assert names - events == plain
    assert {p.name for p in here.iterdir()} == {"configs", "runs"}, "nothing beside the run folders"


def test_two_runs_at_the_same_moment_take_two_folders(here):
    forks = [Fork(*DIGITS, "--trainer.max_steps", 1, folder=here) for _ in range(2)]
    assert [fork.wait().code for fork in forks] == [0, 0]
    assert sorted(p.parent.name for p in here.glob("runs/mlp_digits/*/config.yaml")) == ["1", "2"]


def test_run_dir_puts_a_run_elsewhere(zoo, here):
    code, out, _ = zoo(*DIGITS, "--trainer.max_steps", 1, "--run_dir", "some/where")
    assert code == 0
    assert (here / "some/where/checkpoints/last.ckpt").exists()
    assert "some/where" in out
    assert not (here / "runs").exists()


def test_a_run_without_a_config_is_named_after_model_and_data(zoo, here):
    code, *_ = zoo("fit", "--model", "MLPClassifier", "--data", "Quadrants", "--trainer.max_steps", 1)
    assert code == 0
    assert (here / "runs/mlpclassifier_quadrants/1/config.yaml").exists()


def test_fast_dev_run_leaves_nothing(zoo, here):
    code, _, err = zoo(*DIGITS, "--trainer.fast_dev_run", "true")
    assert (code, err) == (0, "")
    assert {p.name for p in here.iterdir()} == {"configs"}


def test_environment_says_what_it_takes_to_run_again(here):
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for command in ("init -q", "add configs", "commit -q -m first"):
        subprocess.run([*git, *command.split()], check=True, cwd=here)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, cwd=here, capture_output=True, text=True).stdout
    args = [*DIGITS, *EPOCHS, "1", "--seed_everything", "5"]
    assert Fork(*args, folder=here).wait().code == 0
    path = here / "runs/mlp_digits/1/environment.json"
    found = json.loads(path.read_text())
    assert found["git_commit"] == commit.strip()
    assert found["command"] == "zoo " + " ".join(args)
    assert found["seed"] == 5
    assert found["devices"].startswith("1 x CPU")
    assert found["versions"]["torch"] == torch.__version__
    assert found["versions"].keys() >= {"zoo", "torch", "lightning", "torchmetrics", "jsonargparse"}
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert "resumed" not in found
    assert Fork("fit", "--resume", "--trainer.max_epochs", 2, folder=here).wait().code == 0
    again = json.loads(path.read_text())
    assert [entry["command"] for entry in again["resumed"]] == ["zoo fit --resume --trainer.max_epochs 2"]
    assert {k: v for k, v in again.items() if k != "resumed"} == found


def test_environment_outside_a_repository_names_no_commit(zoo, here):
    assert zoo(*DIGITS, "--trainer.max_steps", 1)[0] == 0
    found = json.loads((here / "runs/mlp_digits/1/environment.json").read_text())
    assert (found["git_commit"], found["git_dirty"]) == (None, None)


def test_the_end_names_a_next_command_that_works(zoo):
    _, out, _ = zoo(*DIGITS, *EPOCHS, 1)
    (line,) = [line for line in out.splitlines() if line.strip().startswith("next ")]
    command = shlex.split(line)[1:]
    assert command[:2] == ["zoo", "test"]
    code, out, err = zoo(*command[1:])
    assert (code, err) == (0, "")
    assert "test/accuracy" in out


def test_a_line_an_epoch_without_a_terminal(zoo, monkeypatch):
    clock = iter(range(0, 10**6, 2))  # lines come at most once a second
    monkeypatch.setattr("zoo.callbacks.progress.time.monotonic", lambda: float(next(clock)))
    code, out, _ = zoo(*DIGITS, "--trainer.max_epochs", 3)
    assert code == 0
    lines = [line for line in out.splitlines() if line.startswith("epoch ")]
    assert [line.split()[1] for line in lines] == ["1/3", "2/3", "3/3"]
    for line in lines:
        assert {"train/loss", "val/loss", "val/accuracy"} <= set(line.split())
    accuracy = [float(line.split()[line.split().index("val/accuracy") + 1]) for line in lines]
    logged = [float(row["val/accuracy"]) for row in rows("runs/mlp_digits/1/metrics.csv") if row["val/accuracy"]]
    assert accuracy == pytest.approx(logged, rel=1e-3), "each line holds the numbers of its own epoch"


def test_no_line_an_epoch_where_none_is_wanted(zoo):
    code, out, _ = zoo(*DIGITS, "--trainer.max_epochs", 1, "--trainer.enable_progress_bar", "false")
    assert code == 0
    assert "epoch 1/1" not in out
    assert "val/accuracy" in out


def test_a_bar_on_a_terminal(here):
    mine, its = pty.openpty()
    seen = bytearray()

    def read() -> None:
        while True:
            try:
                seen.extend(os.read(mine, 4096))
            except OSError:
                return

    def terminal() -> None:
        os.dup2(its, 1)
        os.environ.update(TERM="xterm", COLUMNS="160")
        sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115

    reader = threading.Thread(target=read, daemon=True)
    fork = Fork(*DIGITS, "--trainer.max_epochs", 40, folder=here, before=terminal)
    reader.start()
    os.close(its)
    assert fork.wait().code == 0
    reader.join(10)
    text = seen.decode()
    assert "epoch 40/40" in text
    assert "left" in text
    assert "val/accuracy" in text
    assert "\nepoch 2/10  " not in text, "no plain lines beside the bar"


# Configs --------------------------------------------------------------------------------------------------------------


def test_the_saved_config_is_complete_and_runs_again_to_the_same_weights(zoo):
    assert zoo(*DIGITS, *EPOCHS, 2, "--model.hidden", "[24]", "--model.dropout", "0.2", "--seed_everything", 3)[0] == 0
    config = yaml.safe_load(Path("runs/mlp_digits/1/config.yaml").read_text())
    assert config["seed_everything"] == 3
    assert config["trainer"]["max_epochs"] == 2
    given = config["model"]["init_args"]
    assert given.items() >= {"hidden": [24], "dropout": 0.2, "lr": 0.002, "norm": "none"}.items()
    assert (given["num_classes"], given["input_dim"]) == (10, 64), "data spec"
    assert config["data"]["class_path"].endswith("Digits")
    assert config["data"]["init_args"]["batch_size"] == 64, "defaults too"
    code, _, err = zoo("fit", "-c", "runs/mlp_digits/1/config.yaml", "--run_dir", "again")
    assert (code, err) == (0, "")
    assert_same_training(checkpoints() / "last.ckpt", Path("again/checkpoints/last.ckpt"))
    assert Path("again/metrics.csv").read_text() == Path("runs/mlp_digits/1/metrics.csv").read_text()
    assert yaml.safe_load(Path("again/config.yaml").read_text()) == config


def test_running_a_saved_config_keeps_the_name_of_the_run(zoo):
    assert zoo(*DIGITS, "--trainer.max_steps", 1)[0] == 0
    assert zoo("fit", "-c", "runs/mlp_digits/1/config.yaml")[0] == 0
    assert checkpoints(2).is_dir()


def test_print_config_prints_a_config_that_runs(zoo, here):
    code, out, err = zoo(*DIGITS, "--model.hidden", "[12]", "--trainer.max_steps", 1, "--print_config")
    assert (code, err) == (0, "")
    assert yaml.safe_load(out)["model"]["init_args"]["hidden"] == [12]
    assert not (here / "runs").exists()
    (here / "printed.yaml").write_text(out)
    code, _, err = zoo("fit", "-c", "printed.yaml")
    assert (code, err) == (0, "")
    assert load(checkpoints(name="printed") / "last.ckpt")["state_dict"]["net.1.weight"].shape == (12, 64)


def test_later_configs_win_key_by_key(zoo, here):
    (here / "a.yaml").write_text(
        "trainer: {max_epochs: 5, limit_train_batches: 3}\nmodel: {init_args: {hidden: [7]}}\n"
    )
    (here / "b.yaml").write_text("trainer: {max_epochs: 1}\nearly_stopping: {monitor: val/loss}\n")
    (here / "c.yaml").write_text("early_stopping: null\n")
    assert zoo(*DIGITS, "-c", "a.yaml", "-c", "b.yaml")[0] == 0
    first = yaml.safe_load(Path("runs/mlp_digits/1/config.yaml").read_text())
    assert (first["trainer"]["max_epochs"], first["trainer"]["limit_train_batches"]) == (1, 3)
    assert first["model"]["init_args"]["hidden"] == [7]
    assert first["model"]["init_args"]["lr"] == 0.002, "of the first config"
    assert first["early_stopping"]["init_args"]["monitor"] == "val/loss"
    assert zoo(*DIGITS, "-c", "a.yaml", "-c", "b.yaml", "-c", "c.yaml")[0] == 0
    assert yaml.safe_load(Path("runs/mlp_digits/2/config.yaml").read_text())["early_stopping"] is None


def test_a_slot_of_a_config_can_be_switched_off(zoo, here):
    (here / "stop.yaml").write_text("early_stopping: {monitor: val/loss, stopping_threshold: 1000.0}\n")
    both = ["-c", "stop.yaml", "--trainer.max_epochs", 3]
    for run, (flags, epochs) in enumerate([([], 1), (["--early_stopping", "null"], 3)]):
        assert zoo(*DIGITS, *both, *flags)[0] == 0
        assert load(checkpoints(run + 1) / "last.ckpt")["global_step"] == 20 * epochs


# Checkpoints ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(zoo) -> Path:
    """A run of one epoch with options that are not the defaults."""
    args = ["--model.hidden", "[16]", "--data.batch_size", 32, "--data.eval_batch_size", 50, "--data.test_split", 0.1]
    assert zoo("fit", "--model", "MLPClassifier", "--data", "Digits", *EPOCHS, 1, *args, "--run_dir", "run")[0] == 0
    return Path("run/checkpoints/best.ckpt")


def built(*args: object):
    """What the command line makes of its arguments; the trainer does nothing."""
    from zoo.cli.commands import load_command
    from zoo.cli.lightning_cli import ZooCLI
    from zoo.cli.set_up import set_up

    set_up()
    return ZooCLI(load_command(args[0]), [str(arg) for arg in args[1:]])


def test_a_checkpoint_alone_is_enough(zoo, trained):
    code, out, err = zoo("test", "--ckpt_path", trained)
    assert (code, err) == (0, "")
    assert "test/accuracy" in out
    hyper = load(trained)["hyper_parameters"]
    assert (hyper["num_classes"], hyper["input_dim"], hyper["hidden"]) == (10, 64, [16])
    assert hyper["class_names"] == [str(i) for i in range(10)]


def test_precedence_command_line_config_checkpoint_default(trained, here):
    (here / "data.yaml").write_text("data: {class_path: Digits, init_args: {batch_size: 9, eval_batch_size: 8}}\n")
    cli = built("test", "--ckpt_path", trained)
    assert (cli.datamodule.batch_size, cli.datamodule.eval_batch_size, cli.datamodule.test_split) == (32, 50, 0.1)
    assert cli.model.net[1].out_features == 16
    cli = built("test", "--ckpt_path", trained, "--data.batch_size", 7)
    assert (cli.datamodule.batch_size, cli.datamodule.eval_batch_size) == (7, 50)
    cli = built("test", "-c", "data.yaml", "--ckpt_path", trained)
    assert (cli.datamodule.batch_size, cli.datamodule.test_split) == (9, 0.1), "what the config leaves open is kept"
    cli = built("test", "-c", "data.yaml", "--ckpt_path", trained, "--data.batch_size", 7)
    assert (cli.datamodule.batch_size, cli.datamodule.eval_batch_size) == (7, 8)


def test_a_checkpoint_meets_other_data(zoo, trained):
    """The data spec of the training data is in the checkpoint; contradicting ones are named."""
    code, _, err = zoo("test", "--ckpt_path", trained, "--data", "Quadrants")
    assert code == 2
    assert "num_classes" in err
    assert "Quadrants" in err


def test_load_from_checkpoint_needs_no_data(trained):
    model = MLPClassifier.load_from_checkpoint(trained, map_location="cpu", weights_only=True)
    data = Digits(test_split=0.1)
    x, y = data.datasets["val"].tensors
    accuracy = float((model.eval()(x).argmax(1) == y).float().mean())
    best = load(trained)["callbacks"]
    (best,) = [state["best"] for state in best.values() if "best" in state]
    assert accuracy == pytest.approx(best, abs=1e-6), "the weights are those that were measured"


def test_every_file_zoo_writes_loads_without_running_code(zoo, trained):
    assert zoo(*DIGITS, *EPOCHS, 3, "--early_stopping.monitor", "val/loss")[0] == 0
    assert zoo("fit", "-c", "configs/small_cnn_digits.yaml", *EPOCHS, 1)[0] == 0
    assert zoo("fit", "-c", "configs/mlp_diabetes.yaml", *EPOCHS, 1)[0] == 0
    found = [*Path("runs").rglob("*.ckpt"), *trained.parent.glob("*.ckpt")]
    assert len(found) >= 3 + 2 + 2 + 2
    for path in found:
        assert load(path)["state_dict"]


# Validating, testing, predicting --------------------------------------------------------------------------------------


def test_validate_and_test_measure_what_training_measured(zoo, trained):
    _, out, _ = zoo("validate", "--ckpt_path", trained)
    measured = float(next(line.split()[1] for line in out.splitlines() if "val/accuracy" in line))
    logged = [float(row["val/accuracy"]) for row in rows("run/metrics.csv") if row["val/accuracy"]]
    assert measured == pytest.approx(logged[-1], abs=1e-4)


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_predictions_are_in_the_order_of_the_data(zoo, trained, here, suffix):
    code, out, err = zoo("predict", "--ckpt_path", trained, "--out", f"out.{suffix}")
    assert (code, err) == (0, "")
    model = MLPClassifier.load_from_checkpoint(trained, map_location="cpu", weights_only=True).eval()
    x, _ = Digits(test_split=0.1).datasets["test"].tensors
    with torch.no_grad():
        expected = model(x).softmax(1)
    text = (here / f"out.{suffix}").read_text()
    lines = list(csv.DictReader(text.splitlines())) if suffix == "csv" else [json.loads(x) for x in text.splitlines()]
    assert f"{len(x)} predictions" in out
    assert [int(line["class"]) for line in lines] == expected.argmax(1).tolist()
    assert [line["name"] for line in lines] == [str(i) for i in expected.argmax(1).tolist()]
    assert [float(line["probability"]) for line in lines] == pytest.approx(expected.max(1).values.tolist(), abs=1e-5)
    assert [p.name for p in here.iterdir() if "out" in p.name] == [f"out.{suffix}"], "no part of it left"


def test_predictions_of_numbers(zoo, here):
    assert zoo("fit", "-c", "configs/mlp_diabetes.yaml", *EPOCHS, 5)[0] == 0
    best = checkpoints(name="mlp_diabetes") / "best.ckpt"
    assert zoo("predict", "--ckpt_path", best, "--out", "out.csv")[0] == 0
    values = [float(row["prediction"]) for row in rows("out.csv")]
    assert min(values) > 25
    assert max(values) < 350, "in the units of the data"


def test_a_prediction_that_fails_leaves_no_file(here):
    good = "return self.layer(batch[0])[:, 0]"
    broken = OWN.replace(good, "return self.first(batch_idx, batch[1])")
    broken = broken.replace(
        "    def configure_optimizers(self):",
        "    def first(self, batch_idx, values):\n        if batch_idx:\n            raise ValueError('no more')\n"
        "        return values\n\n    def configure_optimizers(self):",
    )
    (here / "halfway.py").write_text(broken)
    done = Fork(
        "predict", "--model", "halfway.Line", "--data", "halfway.Points", "--out", "out.csv", folder=here
    ).wait()
    assert (done.code, done.err.splitlines()[-1]) == (2, "zoo: error: no more")
    assert {p.name for p in here.iterdir()} == {"configs", "halfway.py"}


def test_a_users_own_module_and_data_from_the_working_directory(here):
    (here / "mine.py").write_text(OWN)
    both = ["--model", "mine.Line", "--data", "mine.Points"]

    def run(*args: object) -> Done:
        done = Fork(*args, folder=here).wait()
        assert done.code == 0, done.err
        return done

    run("fit", *both, "--trainer.max_epochs", 2, "--model.width", 3)
    folder = here / "runs" / "line_points" / "1"
    assert {p.name for p in folder.iterdir()} == {"config.yaml", "metrics.csv", "environment.json", "checkpoints"}
    last = folder / "checkpoints" / "last.ckpt"
    assert load(last)["global_step"] == 6
    assert (folder / "checkpoints" / "best.ckpt").exists(), "by val/loss, which it logs"
    run("fit", "--resume", "--trainer.max_epochs", 3)
    assert load(last)["global_step"] == 9
    assert "tested" in run("test", *both, "--ckpt_path", last).out
    assert "val/loss" in run("validate", *both, "--ckpt_path", last).out
    run("predict", *both, "--ckpt_path", last, "--out", "out.jsonl")
    layer = load(last)["state_dict"]
    x = torch.arange(60.0).view(20, 3) / 60
    expected = (x @ layer["layer.weight"].T + layer["layer.bias"])[:, 0].tolist()
    found = [json.loads(line)["prediction"] for line in (here / "out.jsonl").read_text().splitlines()]
    assert found == pytest.approx(expected, abs=1e-5)


def test_a_module_that_logs_another_metric_is_told_of_it_once(zoo, here):
    (here / "underlined.py").write_text(OWN.replace("val/loss", "val_error"))
    args = ["fit", "--model", "underlined.Line", "--data", "underlined.Points", "--trainer.max_epochs", 3]
    with pytest.warns(
        UserWarning, match="no best.ckpt, as val/loss is not logged; there are fitness, val_error"
    ) as told:
        assert zoo(*args)[0] == 0
    (text,) = [str(warning.message) for warning in told]
    options = text[text.index("--") :]
    assert options == "--checkpoint.monitor val_error --checkpoint.mode min"
    assert zoo(*args, *options.split())[0] == 0
    assert [(checkpoints(n, "line_points") / "best.ckpt").exists() for n in (1, 2)] == [False, True]


def test_a_module_that_logs_val_loss_gets_a_best_checkpoint(zoo, here):
    (here / "usual.py").write_text(OWN.replace("val/loss", "val_loss"))
    code, out, err = zoo("fit", "--model", "usual.Line", "--data", "usual.Points", "--trainer.max_epochs", 2)
    assert (code, "best val_loss" in out) == (0, True), err
    assert (checkpoints(1, "line_points") / "best.ckpt").exists()


def test_the_next_command_works_with_data_that_save_no_hyperparameters(zoo, here):
    (here / "unsaved.py").write_text(OWN)
    code, out, err = zoo("fit", "--model", "unsaved.Line", "--data", "unsaved.Points", "--trainer.max_epochs", 1)
    assert code == 0, err
    (command,) = [line.partition("next")[2] for line in out.splitlines() if line.strip().startswith("next")]
    code, out, err = zoo(*shlex.split(command)[1:])
    assert (code, "tested" in out) == (0, True), err


# Resuming -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def whole(zoo) -> Path:
    """The run folder of three epochs without interruption."""
    assert zoo(*DIGITS, *EPOCHS, 3, "--model.dropout", 0.1, "--run_dir", "whole")[0] == 0
    return Path("whole")


def test_the_log_has_each_step_once(whole):
    steps = [int(row["step"]) for row in rows(whole / "metrics.csv")]
    assert steps == sorted(set(steps))
    assert {4, 9, 14, 19, 24, 59} <= set(steps)
    assert len([row for row in rows(whole / "metrics.csv") if row["val/loss"]]) == 3


def test_ctrl_c_and_resume_equal_a_run_without_interruption(whole, here):
    (here / "stop.py").write_text(STOP)
    args = [*DIGITS, *EPOCHS, "3", "--model.dropout", "0.1", "--trainer.callbacks+=stop.CtrlC"]
    done = Fork(*args, folder=here).wait()
    assert done.code == 130
    assert load(checkpoints() / "last.ckpt")["global_step"] == 20 + 7
    stopped, _, command = done.err.splitlines()[-1].partition(": ")
    assert stopped == "stopped; to resume"
    done = Fork(*shlex.split(command)[1:], "--trainer.callbacks", "null", folder=here).wait()
    assert (done.code, done.err) == (0, "")
    assert_same_training(checkpoints() / "last.ckpt", whole / "checkpoints/last.ckpt")
    assert Path("runs/mlp_digits/1/metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    assert not checkpoints(2).exists()


@pytest.mark.parametrize("which", [[], ["mlp_digits/1"], ["mlp_digits"], ["runs/mlp_digits/1"], None])
def test_resume_with_more_epochs(zoo, whole, which):
    assert zoo(*DIGITS, *EPOCHS, 2, "--model.dropout", 0.1)[0] == 0
    resume = [*DIGITS, "--resume"] if which is None else ["fit", "--resume", *which]
    code, _, err = zoo(*resume, "--trainer.max_epochs", 3)
    assert (code, err) == (0, "")
    assert_same_training(checkpoints() / "last.ckpt", whole / "checkpoints/last.ckpt")
    assert Path("runs/mlp_digits/1/metrics.csv").read_text() == (whole / "metrics.csv").read_text()


def test_resume_takes_the_newest_run_and_a_named_one(zoo):
    for epochs in (1, 2):
        assert zoo(*DIGITS, *EPOCHS, epochs)[0] == 0
    assert zoo("fit", "--resume", "--trainer.max_epochs", 3)[0] == 0
    steps = [load(checkpoints(n) / "last.ckpt")["global_step"] for n in (1, 2)]
    assert steps == [20, 60]
    assert zoo("fit", "--resume", "mlp_digits/1", "--trainer.max_epochs", 2)[0] == 0
    assert load(checkpoints(1) / "last.ckpt")["global_step"] == 40


@pytest.mark.parametrize("epochs", [2, 3])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(zoo, whole, epochs):
    assert zoo(*DIGITS, *EPOCHS, epochs, "--model.dropout", 0.1)[0] == 0
    last = checkpoints() / "last.ckpt"
    data = last.read_bytes()
    last.unlink()  # best.ckpt may share its bytes
    last.write_bytes(data[: len(data) // 2])
    code, _, err = zoo("fit", "--resume", "--trainer.max_epochs", 3)
    assert code == 0
    assert [line for line in err.splitlines() if line.startswith("zoo: warning") and "last.ckpt" in line]
    assert_same_training(last, whole / "checkpoints/last.ckpt")
    assert Path("runs/mlp_digits/1/metrics.csv").read_text() == (whole / "metrics.csv").read_text()


def test_no_readable_checkpoint_at_all(zoo):
    assert zoo(*DIGITS, *EPOCHS, 2)[0] == 0
    for path in (checkpoints() / "last.ckpt", checkpoints() / "previous.ckpt"):
        path.unlink()
        path.write_bytes(b"half")
    before = sorted(p.name for p in checkpoints().parent.rglob("*"))
    code, _, err = zoo("fit", "--resume")
    assert code == 2
    assert "no readable checkpoint" in err.splitlines()[-1]
    assert sorted(p.name for p in checkpoints().parent.rglob("*")) == before, "the run is kept as it is"


@pytest.mark.slow
def test_a_resumed_run_continues_the_same_wandb_run(here):
    done = Fork(*DIGITS, "--logger", "wandb", *EPOCHS, 1, folder=here).wait()
    assert done.code == 0, done.err
    folder = here / "runs/mlp_digits/1"
    run_id = (folder / "wandb_id").read_text().strip()
    done = Fork("fit", "--resume", "--trainer.max_epochs", 2, folder=here).wait()
    assert done.code == 0, done.err
    assert (folder / "wandb_id").read_text().strip() == run_id
    kept = [p.name for p in (folder / "wandb").glob("offline-run-*")]
    assert len(kept) == 2
    assert all(name.endswith(f"-{run_id}") for name in kept)
    assert all(list((folder / "wandb" / name).glob("*.wandb")) for name in kept)
    assert (folder / "metrics.csv").exists(), "CSV always"
    assert {p.name for p in here.iterdir()} == {"configs", "runs"}
    assert Fork(*DIGITS, "--logger", "wandb", *EPOCHS, 1, folder=here).wait().code == 0
    assert (here / "runs/mlp_digits/2/wandb_id").read_text().strip() != run_id, "a new run is a new one there too"


def test_wandb_without_a_key_stays_offline_and_says_so_once(here):
    def bare():
        os.environ.pop("WANDB_MODE")
        os.environ.pop("WANDB_API_KEY", None)
        os.environ["NETRC"] = os.environ["HOME"] = str(here / "nobody")

    done = Fork(*DIGITS, "--logger", "wandb", "--trainer.max_steps", 1, folder=here, before=bare).wait()
    assert done.code == 0, done.err
    assert done.err == "zoo: wandb: no API key, so the run is logged offline; `wandb sync` uploads it later\n"
    assert list((here / "runs/mlp_digits/1/wandb").glob("offline-run-*"))


# Help -----------------------------------------------------------------------------------------------------------------


def test_help_imports_nothing_heavy(here):
    code = (
        "import sys; from zoo.cli import main\n"
        "try: code = main(['fit', '--help'])\n"
        "except SystemExit as stop: code = stop.code\n"
        "heavy = [m for m in ('wandb', 'transformers', 'diffusers', 'matplotlib') if m in sys.modules]\n"
        "print(heavy, file=sys.stderr); sys.exit(code)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=here, env=env, timeout=300)
    assert (done.returncode, done.stderr) == (0, "[]\n")
    for name in ("--model", "--data", "--trainer.max_epochs", "--resume", "--early_stopping", "--logger"):
        assert name in done.stdout


def test_help_of_a_model_shows_each_argument_with_type_and_default(zoo):
    code, out, _ = zoo("fit", "--model.help", "MLPClassifier")
    assert code == 0
    for name in ("hidden", "activation", "dropout", "num_classes", "lr", "optimizer", "compile"):
        assert f"--model.init_args.{name}" in out or f"--model.{name}" in out
