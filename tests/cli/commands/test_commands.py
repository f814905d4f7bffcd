"""zoo's own commands, and the choice between averaged and trained weights, through the command line."""

import csv
import json
import re
import shlex
from pathlib import Path

import lightning as L
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from zoo.data import Digits
from zoo.models import MLPClassifier

DIGITS = ["-c", "configs/mlp_digits.yaml"]
IRIS = ["-c", "configs/mlp_iris.yaml"]
QUICK = ["--lr_finder.steps", 30]
SICK = """
import lightning
import torch
from torch.utils.data import DataLoader, TensorDataset


class Sick(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)

    def training_step(self, batch, batch_idx):
        loss = (self.layer(batch[0]) - batch[1]).square().mean()
        return loss + (self.global_step == 5) * self.layer(batch[0]).sum() * torch.log(0 * batch[0].sum())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Points(lightning.LightningDataModule):
    def train_dataloader(self):
        x = torch.arange(60.0).view(20, 3) / 60
        return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=4)
"""


@pytest.fixture(scope="module")
def averaged(tmp_path_factory) -> Path:
    """The checkpoint of a run whose averages are far behind its weights."""
    from zoo.cli import main

    folder = tmp_path_factory.mktemp("averaged") / "run"
    config = Path(__file__).parents[3] / "configs" / "mlp_digits.yaml"
    options = "--ema.decay 0.99 --ema.warmup false --trainer.max_epochs 2 --model.lr_scheduler null"
    assert main(["fit", "-c", str(config), *options.split(), "--run_dir", str(folder)]) == 0
    return folder / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """The checkpoint of a run without averages."""
    from zoo.cli import main

    folder = tmp_path_factory.mktemp("plain") / "run"
    config = Path(__file__).parents[3] / "configs" / "mlp_digits.yaml"
    assert main(["fit", "-c", str(config), "--trainer.max_steps", "1", "--run_dir", str(folder)]) == 0
    return folder / "checkpoints" / "last.ckpt"


def weights_in(path: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The network's weights in a checkpoint: trained and averaged."""
    checkpoint = torch.load(path, weights_only=True)
    trained = checkpoint["state_dict"] | checkpoint["raw_params"]
    raw = {k.removeprefix("net."): v for k, v in trained.items() if k.startswith("net.")}
    averages = {k.removeprefix("net."): v for k, v in checkpoint["ema_params"].items()}
    assert averages.keys() <= raw.keys()
    return {"raw": raw, "ema": raw | averages}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# lr-find --------------------------------------------------------------------------------------------------------------


def test_lr_find_reports_the_rate_that_fit_takes(zoo, here):
    code, out, err = zoo("lr-find", *DIGITS, *QUICK)
    assert (code, err) == (0, "")
    suggested, line = out.splitlines()
    rate = re.search(r"suggests lr=([\d.e-]+) \(minimum; steepest", suggested)[1]  # type: ignore[index]
    assert {p.name for p in here.iterdir()} == {"configs", "lr_find.csv", "lr_find.png"}, "no run"
    with open("lr_find.csv", newline="") as file:
        rates = [float(row["lr"]) for row in csv.DictReader(file)]
    assert rates[0] < float(rate) < rates[-1]
    assert line == f"to use it, add: --model.lr {rate}"
    options = shlex.split(line.partition(": ")[2])
    code, out, _ = zoo("fit", *DIGITS, *QUICK, "--trainer.max_steps", 1, "--run_dir", "with")
    assert code == 0
    assert f"takes lr={rate} (minimum" in out
    assert Path("with/lr_find.csv").read_text() == Path("lr_find.csv").read_text()
    assert zoo("fit", *DIGITS, *options, "--trainer.max_steps", 1, "--run_dir", "by_hand")[0] == 0


def test_lr_find_takes_the_finders_options(zoo):
    code, out, _ = zoo("lr-find", *DIGITS, *QUICK, "--lr_finder.suggestion", "valley", "--lr_finder.dirpath", "there")
    assert code == 0
    valley = re.search(r"suggests lr=([\d.e-]+) \(valley", out)[1]  # type: ignore[index]
    assert f"--model.lr {valley}\n" in out
    assert Path("there/lr_find.png").exists()
    assert not Path("lr_find.png").exists()


# plan -----------------------------------------------------------------------------------------------------------------


class Rates(L.Callback):
    """The rate of each group at each step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.seen.append({group["name"]: float(group["lr"]) for group in optimizer.param_groups})


def table(lines: list[str]) -> list[dict[str, str]]:
    """A printed table, its cells two spaces apart."""
    rows = [re.split(r" {2,}", line.strip()) for line in lines]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]


def test_plan_prints_the_groups_and_rates_of_the_real_run(zoo, here):
    from zoo.cli import main

    options = [*IRIS, "--trainer.max_epochs", "10", "--model.lr_scheduler", "WarmupCosine"]
    options += ["--model.lr_scheduler.warmup", "5"]
    code, out, err = zoo("plan", *options)
    assert (code, err) == (0, "")
    assert {p.name for p in here.iterdir()} == {"configs"}
    groups, steps, rates = (part.splitlines() for part in out.strip("\n").split("\n\n"))
    spy = Rates()
    assert main(["fit", *options, "--run_dir", "run"], [spy]) == 0
    assert steps == [f"{len(spy.seen)} steps, {len(spy.seen) // 10} batches an epoch"]
    model = MLPClassifier.load_from_checkpoint("run/checkpoints/last.ckpt", map_location="cpu", weights_only=True)
    rows = table(groups)
    assert sum(int(row["parameters"].replace(",", "")) for row in rows) == sum(p.numel() for p in model.parameters())
    assert [row["name"] for row in rows] == list(spy.seen[0])
    assert rates[0].startswith("WarmupCosine")
    printed = table(rates[1:])
    assert len(printed) > 5
    for row in printed:
        real = spy.seen[int(row.pop("step"))]
        assert [float(row["rest"])] * len(real) == pytest.approx(list(real.values()), rel=1e-3, abs=1e-12)


# diagnose -------------------------------------------------------------------------------------------------------------


def test_diagnose_of_something_sound(zoo, here):
    code, out, err = zoo("diagnose", *IRIS, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert (found["ok"], found["module"], found["data"]) == (True, "MLPClassifier", "Tabular")
    assert {f["status"] for f in found["findings"]} == {"ok", "skipped"}
    assert {p.name for p in here.iterdir()} == {"configs"}, "no run"


def test_diagnose_of_something_broken(zoo):
    wrong = [*IRIS, "--model.lr", 30]
    code, out, err = zoo("diagnose", *wrong)
    assert (code, err) == (1, "")
    assert "the learning rate is too high" in " ".join(out.split())
    code, out, _ = zoo("diagnose", *wrong, "--json")
    found = json.loads(out)
    assert (code, found["ok"]) == (1, False)
    assert {f["name"] for f in found["findings"] if f["status"] in ("warning", "error")} == {"overfit", "learning rate"}


# export ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("weights", "which"), [("raw", "raw"), ("ema", "ema"), (None, "ema")])
def test_export_writes_the_chosen_weights_alone(zoo, here, averaged, weights, which):
    chosen = ["--weights", weights] if weights else []
    code, out, err = zoo("export", "--ckpt_path", averaged, "--out", "net.safetensors", *chosen)
    assert (code, err) == (0, "")
    found = load_file("net.safetensors")
    assert f"{len(found)} tensors in net.safetensors" in out
    expected = weights_in(averaged)
    assert same(found, expected[which])
    assert not same(expected["raw"], expected["ema"])
    net = MLPClassifier.load_from_checkpoint(averaged, map_location="cpu", weights_only=True).net
    net.load_state_dict(found)
    assert {p.name for p in here.iterdir()} == {"configs", "net.safetensors"}


def test_export_without_averages_writes_the_trained_weights(zoo, plain):
    assert zoo("export", "--ckpt_path", plain, "--out", "net.safetensors")[0] == 0
    state = torch.load(plain, weights_only=True)["state_dict"]
    assert same(load_file("net.safetensors"), {k.removeprefix("net."): v for k, v in state.items()})


# --weights ------------------------------------------------------------------------------------------------------------


def expected(averaged: Path, split: str) -> dict[str, torch.Tensor]:
    """Logits with either weights, computed without the command line."""
    model = MLPClassifier.load_from_checkpoint(averaged, map_location="cpu", weights_only=True).eval()
    logits = {}
    for which, state in weights_in(averaged).items():
        model.net.load_state_dict(state)
        with torch.no_grad():
            logits[which] = model(Digits().datasets[split].tensors[0])
    return logits


@pytest.mark.parametrize(("command", "split"), [("validate", "val"), ("test", "test")])
def test_evaluation_of_the_chosen_weights(zoo, averaged, command, split):
    logits, labels = expected(averaged, split), Digits().datasets[split].tensors[1]
    losses = {which: float(cross_entropy(x, labels)) for which, x in logits.items()}
    assert abs(losses["raw"] - losses["ema"]) > 0.1
    for options, which in ([["--weights", "raw"], "raw"], [["--weights", "ema"], "ema"], [[], "ema"]):
        code, out, err = zoo(command, "--ckpt_path", averaged, *options)
        assert (code, err) == (0, "")
        printed = dict(line.split()[:2] for line in out.splitlines() if line.strip().startswith(split))
        assert float(printed[f"{split}/loss"]) == pytest.approx(losses[which], abs=1e-4)
        accuracy = float((logits[which].argmax(1) == labels).float().mean())
        assert float(printed[f"{split}/accuracy"]) == pytest.approx(accuracy, abs=1e-4)


@pytest.mark.parametrize("which", ["raw", "ema"])
def test_predictions_of_the_chosen_weights(zoo, averaged, which):
    assert zoo("predict", "--ckpt_path", averaged, "--weights", which, "--out", "out.jsonl")[0] == 0
    found = [json.loads(line)["probability"] for line in Path("out.jsonl").read_text().splitlines()]
    sure = {name: x.softmax(1).amax(1).tolist() for name, x in expected(averaged, "test").items()}
    assert found == pytest.approx(sure[which], abs=1e-5)
    assert found != pytest.approx(sure["raw" if which == "ema" else "ema"], abs=1e-2)


# Exit codes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guarded", [True, False])
def test_training_that_is_no_longer_finite_ends_with_code_3(zoo, here, guarded):
    (here / "sickness.py").write_text(SICK)
    guard = ["--nan_guard", "NaNGuard"] if guarded else []
    both = ["--model", "sickness.Sick", "--data", "sickness.Points"]
    code, _, err = zoo("fit", *both, *guard, "--trainer.max_epochs", 2, "--run_dir", "run")
    assert code == 3
    (line,) = err.splitlines()
    assert line.startswith("zoo: error: ")
    if guarded:
        assert "log of zero" in line
        assert json.loads(Path("run/nan_report.json").read_text())["cause"] == "log of zero"
    else:
        assert "--nan_guard" in line


MISTAKES = {
    "lr-find, missing config": ("lr-find -c configs/mlp_iri.yaml", ["no config", "mlp_iris"]),
    "lr-find, unknown key": ("lr-find -c configs/mlp_iris.yaml --lr_finder.step 3", ["'step'", "did you mean steps"]),
    "lr-find, no range": (
        "lr-find -c configs/mlp_iris.yaml --lr_finder.min_lr 1 --lr_finder.max_lr 0.1",
        ["min_lr=1.0", "max_lr=0.1"],
    ),
    "lr-find, by hand": (
        "lr-find -c configs/scratch_mlp_quadrants.yaml",
        ["automatic optimisation", "manual optimisation"],
    ),
    "plan, missing config": ("plan -c configs/absent.yaml", ["no config configs/absent.yaml"]),
    "plan, unknown key": ("plan -c configs/mlp_iris.yaml --model.lrr 3", ["'lrr'", "did you mean lr"]),
    "plan, no data": ("plan --model MLPClassifier", ["needs input_dim"]),
    "diagnose, unknown flag": ("diagnose -c configs/mlp_iris.yaml --jsn", ["--jsn", "did you mean --json"]),
    "diagnose, no data": (
        "diagnose --model MLPClassifier --model.num_classes 3 --model.input_dim 4",
        ["diagnose needs data", "--data NAME"],
    ),
    "diagnose, two processes": (
        "diagnose -c configs/mlp_iris.yaml --trainer.accelerator cpu --trainer.devices 2",
        ["one process", "devices=1"],
    ),
    "export, missing checkpoint": ("export --ckpt_path no.ckpt --out x.safetensors", ["no checkpoint no.ckpt"]),
    "export, nothing to write": ("export --ckpt_path PLAIN", ["--out"]),
    "export, unknown key": ("export --ckpt_path PLAIN --out x.safetensors --weight raw", ["--weight"]),
    "export, unknown weights": ("export --ckpt_path PLAIN --out x.safetensors --weights eme", ["'eme'", "'ema'"]),
    "export, no averages": ("export --ckpt_path PLAIN --out x.safetensors --weights ema", ["holds no EMA weights"]),
    "export, other format": ("export --ckpt_path PLAIN --out x.pt", ["x.pt", ".safetensors"]),
    "export, no folder": ("export --ckpt_path PLAIN --out there/x.safetensors", ["no folder 'there'"]),
    "export, a folder": ("export --ckpt_path configs --out x.safetensors", ["configs is a folder without .metadata"]),
    "verify, nothing": ("verify", ["verify: ", "required: what", "zoo verify --help"]),
    "verify, no config": ("verify resume", ["nothing to train", "-c CONFIG"]),
    "verify, no kills": ("verify resume -c configs/mlp_iris.yaml --kills none", ["--kills", "none"]),
    "test, no averages": ("test --ckpt_path PLAIN --weights ema", ["holds no EMA weights"]),
    "validate, unknown weights": ("validate --ckpt_path PLAIN --weights best", ["weights", "auto, ema, raw", "'best'"]),
    "predict, missing checkpoint": ("predict --ckpt_path no.ckpt --weights raw --out x.csv", ["no checkpoint no.ckpt"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(zoo, here, plain, name):
    command, words = MISTAKES[name]
    code, out, err = zoo(*command.replace("PLAIN", str(plain)).split())
    assert code == 2
    (line,) = err.splitlines()
    assert line.startswith("zoo: error: ")
    assert all(word in line for word in words), line
    assert out == ""
    assert {p.name for p in here.iterdir()} == {"configs"}, "nothing is written"


def test_commands_without_a_trainer_have_a_help_text(zoo):
    for command, word in (("export", "--ckpt_path"), ("verify", "--kills")):
        code, out, err = zoo(command, "--help")
        assert (code, err) == (0, "")
        assert word in out
