"""Every optimizer and schedule by its short name through `zoo fit`, and `zoo plan`, as a user runs them."""

import lightning as L
import pytest
import torch
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

import zoo.optim
from zoo.cli import main
from zoo.optim import MultiOptimizer

IRIS = ["-c", "configs/mlp_iris.yaml"]
MUON = (
    "--model.param_groups=[{match: '', matrices: true, optimizer: {class_path: Muon, init_args: {weight_decay: 0.0}}}]"
)
# short name: learning rate, and what else to say
OPTIMIZERS = {
    "SGD": (0.3, ["--model.optimizer.momentum", 0.9, "--model.optimizer.nesterov", "true"]),
    "Adam": (0.03, []),
    "AdamW": (0.03, ["--model.optimizer.weight_decay", 0.1]),
    "RMSprop": (0.01, []),
    "Adagrad": (0.1, []),
    "Adadelta": (3.0, []),
    "Adamax": (0.03, []),
    "NAdam": (0.03, []),
    "RAdam": (0.05, []),
    "LBFGS": (0.05, ["--model.optimizer.max_iter", 4]),
    "Adafactor": (0.1, []),
    "Muon": (0.03, []),
    "BatchedMuon": (0.03, ["--model.optimizer.adjust_lr_fn", "match_rms_adamw"]),
    "Lion": (0.01, ["--model.optimizer.weight_decay", 0.1]),
}
COMBINED = {"Muon": "AdamW", "BatchedMuon": "AdamW"}


class Lion(torch.optim.SGD):
    """Another library's class of a name that zoo has too, imported in the same process."""


class MLPClassifier(L.LightningModule):
    """Likewise, of a model."""


class Watch(L.Callback):
    """Losses, rates and momenta of every step, and the optimizer."""

    def __init__(self) -> None:
        self.losses, self.rates, self.momenta, self.validated = [], [], [], []

    def on_train_batch_end(self, trainer, module, outputs, *_):
        self.losses.append(float(outputs["loss"]))
        self.optimizer = trainer.optimizers[0]

    def on_before_optimizer_step(self, trainer, module, optimizer):
        group = optimizer.param_groups[0]
        self.rates.append(group["lr"])
        self.momenta.append(group["betas"][0] if "betas" in group else group.get("momentum"))

    def on_train_epoch_end(self, trainer, module):
        self.validated.append({k: float(v) for k, v in trainer.callback_metrics.items()})


def fit(*args: object) -> Watch:
    watch = Watch()
    assert main(["fit", *map(str, args)], [watch]) == 0
    return watch


def mean(values):
    return sum(values) / len(values)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_by_its_short_name_trains(here, name):
    lr, more = OPTIMIZERS[name]
    watch = fit(*IRIS, "--trainer.max_epochs", 4, "--model.lr", lr, "--model.optimizer", name, *more)
    members = getattr(watch.optimizer, "optimizers", [watch.optimizer])
    assert {type(member).__name__ for member in members} == {name, COMBINED.get(name, name)}
    assert mean(watch.losses[-4:]) < 0.7 * watch.losses[0]


@pytest.mark.parametrize(("rest", "lr"), [("AdamW", 0.03), ("Lion", 0.01)])
def test_muon_by_rule_beside_another_optimizer_trains(here, rest, lr):
    watch = fit(*IRIS, "--trainer.max_epochs", 4, "--model.lr", lr, "--model.optimizer", rest, MUON)
    assert isinstance(watch.optimizer, MultiOptimizer)
    assert [type(member).__name__ for member in watch.optimizer.optimizers] == ["Muon", rest]
    assert mean(watch.losses[-4:]) < 0.7 * watch.losses[0]
    saved = torch.load(here / "runs/mlp_iris/1/checkpoints/last.ckpt", weights_only=True)
    assert len(saved["optimizer_states"]) == 1, "one optimizer to everybody else"


@pytest.mark.parametrize(("name", "option"), [("AdamW", "fused"), ("SGD", "fused"), ("Adam", "foreach")])
def test_fused_and_foreach_are_clipped_in_mixed_precision_too(here, name, option):
    watch = fit(*IRIS, "--trainer.max_steps", 3, "--model.optimizer", name, f"--model.optimizer.{option}", "true",
                "--trainer.precision", "bf16-mixed", "--trainer.gradient_clip_val", 0.1)  # fmt: skip
    assert all(group[option] for group in watch.optimizer.param_groups)


def test_a_short_name_means_zoos_class_or_torchs_whatever_else_is_imported(here):
    watch = fit(*IRIS, "--trainer.max_steps", 1, "--model.optimizer", "Lion")
    assert type(watch.optimizer) is zoo.optim.Lion
    assert "class_path: zoo.models.MLPClassifier" in (here / "runs/mlp_iris/1/config.yaml").read_text()


MISTAKES = {
    "--model.optimizer MultiOptimizer": "an optimizer is built from parameters and a learning rate",
    "--model.optimizer LBFGS --trainer.accumulate_grad_batches 2": "LBFGS cannot accumulate",
    "--model.param_groups [{match:'3',optimizer:Muon}]": "rule '3': Muon is for hidden matrices, not for 3.bias",
    "--model.param_groups [{match:'3',optimizer:{class_path:SGD,init_args:{lr:1}}}]": "--model.lr, times",
    "--model.param_groups [{match:nothing}]": "rule 'nothing' matches no parameter",
    "--model.lr_scheduler StepLR": "StepLR needs step_size",
    "--model.lr_scheduler Plateau --model.lr_scheduler.factor 2": "factor is 2.0, but must be between 0 and 1",
    "--model.lr_scheduler Plateau --model.lr_scheduler.monitor val/acc": "val/accuracy",
    "--model.lr_scheduler OneCycle --model.lr_scheduler.pct_start 2": "pct_start is 2.0",
}


@pytest.mark.parametrize("args", MISTAKES)
def test_a_mistake_is_one_line(zoo, here, args):
    args, words = [a.replace(":", ": ").replace(": :", "::") if "{" in a else a for a in args.split()], MISTAKES[args]
    code, _, err = zoo("fit", *IRIS, "--trainer.max_epochs", 1, *args)
    assert (code, len(err.splitlines())) == (2, 1), err
    assert words in err
    assert not (here / "runs").exists()


# Schedules


def test_one_cycle_moves_rate_and_momentum_as_torchs(here):
    watch = fit(*IRIS, "--trainer.max_epochs", 3, "--model.lr_scheduler", "OneCycle")
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], 0.01)
    torchs, rates, momenta = OneCycleLR(optimizer, 0.01, 12), [], []
    for _ in range(12):
        rates.append(optimizer.param_groups[0]["lr"])
        momenta.append(optimizer.param_groups[0]["betas"][0])
        optimizer.step()
        torchs.step()
    assert watch.rates == pytest.approx(rates, rel=1e-12)
    assert watch.momenta == pytest.approx(momenta, rel=1e-12)


# what is said: the metric watched, and the way that is better
PLATEAUS = {
    "Plateau": ("val/accuracy", "max"),
    "Plateau --model.lr_scheduler.monitor val/loss": ("val/loss", "min"),
    "ReduceLROnPlateau": ("val/loss", "min"),
    "ReduceLROnPlateau --model.lr_scheduler.mode max": ("val/accuracy", "max"),
    "lightning.pytorch.cli.ReduceLROnPlateau --model.lr_scheduler.monitor val/loss": ("val/loss", "min"),
}
DROPS = ["--model.lr_scheduler.factor", 0.5, "--model.lr_scheduler.patience", 0, "--model.lr_scheduler.threshold", 0.2]


@pytest.mark.parametrize("given", PLATEAUS)
def test_a_plateau_schedule_watches_the_right_metric_the_right_way(here, given):
    monitor, mode = PLATEAUS[given]
    watch = fit(*IRIS, "--trainer.max_epochs", 6, "--model.lr_scheduler", *given.split(), *DROPS)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 0.01)
    torchs, rates = ReduceLROnPlateau(optimizer, mode, 0.5, 0, 0.2), []
    for metrics in watch.validated:
        rates += [optimizer.param_groups[0]["lr"]] * 4
        torchs.step(metrics[monitor])
    assert watch.rates == rates
    assert rates[-1] < rates[0]


def test_a_plateau_schedule_waits_for_rare_validations(here):
    watch = fit(*IRIS, "--trainer.max_epochs", 6, "--trainer.check_val_every_n_epoch", 2,
                "--model.lr_scheduler", "Plateau", *DROPS)  # fmt: skip
    assert len(set(watch.rates)) > 1


@pytest.mark.parametrize("schedule", [["Plateau", *DROPS], ["OneCycle"]])
def test_a_resumed_schedule_goes_on_exactly(here, schedule):
    """The first epoch after a resume too, in which plain Lightning skips a plateau's step."""
    args = [*IRIS, "--model.lr_scheduler", *schedule, "--trainer.max_epochs"]
    whole = fit(*args, 6, "--run_dir", "whole")
    first = fit(*args, 3, "--run_dir", "part") if schedule[0] == "Plateau" else None
    if first is None:  # its length is that of the run, so this is a run of six epochs that stops
        first = fit(*args, 6, "--run_dir", "part", "--trainer.max_steps", 12, "--model.lr_scheduler.total_steps", 24)
    second = fit("--resume", "part", "--trainer.max_epochs", 6, "--trainer.max_steps", -1)
    assert first.rates + second.rates == whole.rates
    assert first.momenta + second.momenta == whole.momenta
    assert first.losses + second.losses == whole.losses


# The plan

TRANSFORMER = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, dim: int = 8, depth: int = 2):
        super().__init__()
        self.embed = nn.Linear(8, dim)
        self.pos_embed = nn.Parameter(torch.zeros(8, dim))
        block = nn.TransformerEncoderLayer(dim, 2, 4 * dim, batch_first=True)
        self.encoder = nn.TransformerEncoder(block, depth, enable_nested_tensor=False)
        self.head = nn.Linear(dim, 10)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x.squeeze(1)) + self.pos_embed).mean(1))
"""
PLANS = {
    "MLP": (
        ["-c", "configs/mlp_digits.yaml", "--model.lr", 0.001, "--trainer.max_epochs", 10, "--data.batch_size", 64,
         "--model.hidden", "[64,64]", "--model.optimizer", "AdamW", "--model.lr_scheduler", "WarmupLinear",
         "--fine_tuning.plan", "[{until: 2 epochs, train: head}, {until: 40 epochs, train: ['3', head], lr_scale: 0.1},"
         "{train: all}]"],
        """\
  phase      until    train  tensors  parameters  lr_scale  reached
      1   2 epochs     head        2         650         1      yes
      2  40 epochs  3, head        4       4,810       0.1      yes
      3                 all        6       8,970         1       no
  never                   1        2       4,160

            name  optimizer  tensors  parameters     lr  lr_scale  weight_decay
            rest      AdamW        3       8,832  0.001         1          0.01
  rest, no decay      AdamW        3         138  0.001         1             0

200 steps, 20 batches an epoch

WarmupLinear, the learning rate of each group:
  step       rest
     0     0.0001
    10  0.0009947
    20  0.0009421
    50  0.0007842
   100  0.0005211
   149  0.0002632
   179  0.0001053
   199          0
""",
    ),
    "CNN with rates by stage": (
        ["-c", "configs/small_cnn_digits.yaml", "--model.lr", 0.001, "--trainer.max_epochs", 2,
         "--model.stages", "[[8],[16]]", "--model.hidden", 32, "--model.optimizer", "SGD",
         "--model.optimizer.weight_decay", 0.1, "--model.lr_scheduler", "StepDecay",
         "--model.param_groups", "[{match: '^features.0', lr_scale: 0.05}, {match: '^features', lr_scale: 0.1}]"],
        """\
                   name  optimizer  tensors  parameters      lr  lr_scale  weight_decay
            ^features.0        SGD        1          72   5e-05      0.05           0.1
  ^features.0, no decay        SGD        2          16   5e-05      0.05             0
              ^features        SGD        1       1,152  0.0001       0.1           0.1
    ^features, no decay        SGD        2          32  0.0001       0.1             0
                   rest        SGD        2         832   0.001         1           0.1
         rest, no decay        SGD        2          42   0.001         1             0

40 steps, 20 batches an epoch

StepDecay, the learning rate of each group:
  step  ^features.0  ^features    rest
     0        5e-05     0.0001   0.001
     2        5e-05     0.0001   0.001
     4        5e-05     0.0001   0.001
    10        5e-05     0.0001   0.001
    20        5e-06      1e-05  0.0001
    29        5e-06      1e-05  0.0001
    35        5e-07      1e-06   1e-05
    39        5e-07      1e-06   1e-05
""",
    ),
    "transformer with Muon and layer decay": (
        ["--model", "Classifier", "--model.net", "own_transformer.Net", "--data", "Digits", "--trainer.max_epochs", 2,
         "--model.optimizer", "Lion", "--model.lr", 0.001, "--model.layer_decay", 0.5,
         "--model.param_groups", "[{match: encoder, matrices: true, lr_scale: 20, optimizer: Muon}]",
         "--model.lr_scheduler", "Plateau"],
        """\
                         name  optimizer  tensors  parameters        lr  lr_scale  weight_decay
                rest, layer 0       Lion        3         136  0.000125     0.125             0
                rest, layer 1       Lion        8         104   0.00025      0.25             0
                rest, layer 2       Lion        8         104    0.0005       0.5             0
                rest, layer 3       Lion        2          90     0.001         1             0
  encoder (matrices), layer 1       Muon        4         768     0.005         5           0.1
  encoder (matrices), layer 2       Muon        4         768      0.01        10           0.1

40 steps, 20 batches an epoch

Plateau: multiplies the learning rate by 0.1 after 11 epochs without a better val/accuracy (max)
""",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PLANS)
def test_plan_prints_groups_schedule_and_phases(zoo, here, case):
    (here / "own_transformer.py").write_text(TRANSFORMER)
    args, expected = PLANS[case]
    code, out, err = zoo("plan", *args)
    assert (code, err) == (0, "")
    assert out == expected
    assert not (here / "runs").exists()
