"""What trains in which phase, against plain loops; and the two rows of FIELD.md that Lightning gets wrong."""

import copy
from functools import partial
from typing import Any

import lightning as L
import pytest
import torch
import torchvision
from lightning.pytorch.callbacks import BackboneFinetuning, ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader

from zoo.callbacks.fine_tuning import FineTuning
from zoo.callbacks.phases import Phase, describe_plan, frozen_modules, matching_tensors, phase_at
from zoo.optim import Lion, MultiOptimizer, StepDecay, WarmupCosine

BATCHES = 4  # an epoch


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.ReLU())
        self.layer1 = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8, affine=False), nn.ReLU())
        self.drop, self.fc = nn.Dropout(0.2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(self.layer1(self.stem(x))))


class Module(L.LightningModule):
    """Data, dropout and all depend on the batch's number alone, so that a resumed run can equal the uninterrupted."""

    def __init__(self, net: nn.Module | None = None, optimizer: Any = None, scheduler: Any = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = net or Net()
        self.make = optimizer or partial(torch.optim.AdamW, lr=0.02, weight_decay=0.1)
        self.scheduler = scheduler
        self.rates: list[float] = []

    def configure_optimizers(self) -> Any:
        optimizer = self.make(self.parameters())
        if self.scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.scheduler(optimizer), "interval": "step"}}

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        torch.manual_seed(100 * self.current_epoch + batch_idx)
        x = torch.randn(16, 6)
        self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])  # within the optimizer's step
        return nn.functional.cross_entropy(self.net(x), (x[:, 0] > 0).long())

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.net(torch.ones(2, 6))

    def on_validation_model_train(self) -> None:
        self.train()  # as Lightning did up to 2.1, and as some modules do themselves


class Watch(L.Callback):
    """The state after each step, and which parameters had a gradient."""

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []
        self.moved: list[set[str]] = []
        self.still: list[set[str]] = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.before = state_of(pl_module)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.still.append({name for name, module in pl_module.net.named_modules() if not module.training})

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        now = state_of(pl_module)
        self.states.append(now)
        self.moved.append({name for name in now if not torch.equal(now[name], self.before[name])})


def state_of(module: L.LightningModule) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.net.state_dict().items()}


def fit(*callbacks: L.Callback, module: Any = None, ckpt_path: Any = None, **flags: Any) -> tuple[L.Trainer, Any]:
    saving = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    defaults = {"accelerator": "cpu", "devices": 1, "max_epochs": 4, "num_sanity_val_steps": 1, **quiet}
    trainer = L.Trainer(callbacks=list(callbacks), enable_checkpointing=saving, **defaults | flags)
    module = module or Module()
    trainer.fit(module, DataLoader(range(BATCHES)), DataLoader(range(1)), ckpt_path=ckpt_path)
    return trainer, module


def assert_equal(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def three_phases() -> list[Phase]:
    return [Phase("1 epoch", "head"), Phase("10 steps", ["layer1", "head"], 0.1), Phase(train="all")]


HEAD = {"fc.weight", "fc.bias"}
LAYER1 = {f"layer1.{n}" for n in ("0.weight", "0.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked")}
PHASES = [HEAD, HEAD | LAYER1, set(Net().state_dict())]


# the plan, without a trainer


@pytest.mark.parametrize(
    ("epoch", "step", "phase"),
    [(0, 0, 0), (0, 499, 0), (0, 500, 1), (1, 499, 0), (1, 9999, 1), (2, 600, 2), (9, 9999, 2)],
)
def test_phase_is_a_function_of_progress(epoch, step, phase):
    assert phase_at([Phase("500 steps", "head"), Phase("2 epochs", "fc"), Phase()], epoch, step) == phase


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (list, "empty"),
        (lambda: [Phase("2 epochs")], "until is '2 epochs' in the last phase"),
        (lambda: [Phase(), Phase()], "until is missing in phase 1 of 2"),
        (lambda: [Phase("3 epochs"), Phase("3 epochs"), Phase()], "phase 2 lasts until 3 epochs, but that is over"),
        (lambda: [Phase("2 weeks")], "'2 weeks'"),
        (lambda: [Phase("0 steps")], "'0 steps'"),
        (lambda: [Phase(lr_scale=0)], "above 0, got 0"),
        (lambda: [Phase(train=[])], "has to train something"),
        (lambda: [Phase(train="layer(")], "not a regular expression"),
    ],
)
def test_error_messages_of_a_plan(make, message):
    with pytest.raises(ValueError, match="^[^\n]*" + message.replace("(", r"\(")):
        FineTuning(make())


def names(net: nn.Module, train: str | list[str]) -> set[str]:
    found = matching_tensors(net, Phase(train=train))
    return {name for name, param in net.named_parameters(remove_duplicate=False) if param in found}


def test_names_are_whole_modules_parameters_or_expressions():
    net = torchvision.models.resnet18(num_classes=3)
    assert names(net, "head") == {"fc.weight", "fc.bias"}
    assert names(net, "layer4") == {n for n, _ in net.named_parameters() if n.startswith("layer4.")}
    assert names(net, "layer[34]") == {n for n, _ in net.named_parameters() if n.startswith(("layer3.", "layer4."))}
    assert names(net, r".*\.bn2\.bias") == {f"layer{i}.{j}.bn2.bias" for i in (1, 2, 3, 4) for j in (0, 1)}
    assert names(net, ["conv1.weight", "bn1"]) == {"conv1.weight", "bn1.weight", "bn1.bias"}
    assert names(net, "all") == {n for n, _ in net.named_parameters()}
    with pytest.raises(ValueError, match=r"'layer' matches nothing in ResNet; the nearest names are layer1|layer"):
        matching_tensors(net, Phase(train="layer"))


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("vgg11", "classifier.6"),
        ("efficientnet_b0", "classifier.1"),
        ("vit_b_16", "heads"),
        ("densenet121", "classifier"),
    ],
)
def test_head_is_the_layer_that_computes_the_output(name, head):
    with torch.device("meta"):
        net = torchvision.models.get_model(name)
    assert {n.rpartition(".")[0] for n in names(net, "head")} <= {head, f"{head}.head"}
    assert len(names(net, "head")) == 2


def test_head_by_name_comes_before_head_by_order():
    net = nn.Sequential()
    net.add_module("head", nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2)))
    net.add_module("other", nn.Linear(2, 2))
    assert names(net, "head") == {n for n, _ in net.named_parameters() if n.startswith("head.")}


def test_a_tied_parameter_counts_under_all_its_names():
    net = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 5, bias=False))
    net[2].weight = net[0].weight
    assert names(net, "head") == {"0.weight", "2.weight"}
    assert not any(module is net[0] for module in frozen_modules(net, matching_tensors(net, Phase(train="head"))))


def test_table_shows_what_is_never_trained():
    net = Net()
    net.stem[0].weight.requires_grad_(False)  # by the network's own will: neither trained nor forgotten
    rows = describe_plan(three_phases(), net, epochs=2)
    assert [(r["phase"], r["until"], r["train"], r["parameters"], r["lr_scale"], r["reached"]) for r in rows] == [
        (1, "1 epoch", "head", 27, 1.0, True),
        (2, "10 steps", "layer1, head", 27 + 72, 0.1, True),
        (3, None, "all", 27 + 72 + 16, 1.0, True),
    ]
    rows = describe_plan(three_phases(), net, epochs=2, steps=9)
    assert [r["reached"] for r in rows] == [True, True, False, None]
    assert (rows[-1]["phase"], rows[-1]["train"], rows[-1]["parameters"]) == ("never", "stem.1", 16)
    assert describe_plan([Phase(train=["layer1"])], Module(net))[-1]["train"] == "stem.1, fc"


# training


def test_each_phase_trains_what_it_names_and_nothing_else():
    watch = Watch()
    trainer, module = fit(FineTuning(three_phases()), watch)
    at = [0] * 4 + [1] * 6 + [2] * 6
    for moved, phase in zip(watch.moved, at, strict=True):
        assert moved == PHASES[phase]
    # Layers without state follow the module around them: the dropout before the head is on, that in the stem is off.
    stem, layer1 = ({n for n, _ in module.net.named_modules() if n.split(".")[0] == top} for top in ("stem", "layer1"))
    assert watch.still == [[stem | layer1, stem, set()][phase] for phase in at]
    assert not trainer.optimizers[0]._optimizer_step_pre_hooks


def test_equals_a_plain_loop():
    """Weights, momentum and decay of AdamW over three phases, to the last bit."""
    module = Module()
    net, optimizer = module.net, module.make(module.parameters())
    expected = []
    for step in range(4 * BATCHES):
        phase = 0 if step < BATCHES else 1 if step < 10 else 2
        for name, param in net.named_parameters():
            param.requires_grad_(name in PHASES[phase])
        net.train()
        net.stem.train(phase == 2), net.layer1.train(phase > 0)
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (0.1 if phase == 1 else 1.0)
        torch.manual_seed(100 * (step // BATCHES) + step % BATCHES)
        x = torch.randn(16, 6)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), (x[:, 0] > 0).long()).backward()
        optimizer.step()
        expected.append(state_of(module))
    watch = Watch()
    fit(FineTuning(three_phases()), watch)
    assert_equal(watch.states, expected)


@pytest.mark.parametrize("stopped", [2, 4, 7, 8, 10, 12, 13])
def test_a_resume_in_any_phase_equals_the_uninterrupted_run(stopped, tmp_path):
    scheduler = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.9)  # goes on from the rate it finds
    whole, rest = Watch(), Watch()
    make = partial(Module, scheduler=scheduler)
    save = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)
    _, first = fit(FineTuning(three_phases()), whole, save, module=make())
    _, second = fit(FineTuning(three_phases()), rest, module=make(), ckpt_path=tmp_path / f"step={stopped}.ckpt")
    assert_equal(rest.states, whole.states[stopped:])
    assert second.rates == first.rates[stopped:]


# rates


@pytest.mark.parametrize(
    "scheduler",
    [
        None,
        partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.9),
        partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.02, total_steps=16),
        partial(WarmupCosine, total_steps=16, warmup=3),
        partial(StepDecay, total_steps=16, milestones=(0.5,)),
    ],
    ids=lambda s: s.func.__name__ if s else "none",
)
def test_rates_are_the_schedule_s_times_the_phase_s(scheduler):
    _, plain = fit(module=Module(scheduler=scheduler))
    _, tuned = fit(FineTuning(three_phases()), module=Module(scheduler=scheduler))
    scales = [1.0] * 4 + [0.1] * 6 + [1.0] * 6
    assert tuned.rates == [lr * scale for lr, scale in zip(plain.rates, scales, strict=True)]


def test_a_failure_within_a_step_leaves_nothing_behind(tmp_path):
    class Failing(Module):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            if self.global_step == 6:
                raise RuntimeError("planted")
            return loss

    module = Failing()
    with pytest.raises(RuntimeError, match="planted"):
        fit(ModelCheckpoint(tmp_path, "failed", save_on_exception=True), FineTuning(three_phases()), module=module)
    assert module.rates[-1] == 0.02 * 0.1
    saved = torch.load(tmp_path / "failed.ckpt", weights_only=True)
    assert saved["optimizer_states"][0]["param_groups"][0]["lr"] == 0.02
    assert all(p.requires_grad for p in module.parameters())
    assert all(m.training for m in module.modules())


# every optimizer

OPTIMIZERS = {
    name: partial(getattr(torch.optim, name), lr=0.01, **more)
    for name, more in {
        "SGD": {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True},
        "Adam": {"weight_decay": 0.1},
        "AdamW": {"fused": True},
        "RMSprop": {"momentum": 0.9, "weight_decay": 0.1},
        "Adagrad": {"weight_decay": 0.1},
        "Adadelta": {"weight_decay": 0.1},
        "Adamax": {"weight_decay": 0.1},
        "NAdam": {"weight_decay": 0.1},
        "RAdam": {"weight_decay": 0.1},
        "Adafactor": {"weight_decay": 0.1},
    }.items()
} | {"Lion": partial(Lion, lr=0.001, weight_decay=0.1)}


def muon_and_adamw(params: Any) -> MultiOptimizer:
    matrices, rest = [], []
    for param in params:
        (matrices if param.ndim == 2 else rest).append(param)
    return MultiOptimizer([torch.optim.Muon(matrices, lr=0.01), torch.optim.AdamW(rest, lr=0.01)])


@pytest.mark.parametrize("make", [*OPTIMIZERS.values(), muon_and_adamw], ids=[*OPTIMIZERS, "MultiOptimizer"])
def test_frozen_again_is_at_rest_with_every_optimizer(make):
    """The head learns, then everything, then the head alone: momentum and decay must not move the rest."""
    watch = Watch()
    plan = [Phase("1 epoch", "head"), Phase("2 epochs", "all"), Phase(train="head")]
    fit(FineTuning(plan), watch, module=Module(optimizer=make), max_epochs=3)
    assert watch.moved == [PHASES[0]] * 4 + [PHASES[2]] * 4 + [PHASES[0]] * 4


def test_lbfgs_may_thaw_and_not_freeze():
    make = partial(torch.optim.LBFGS, lr=0.1, max_iter=3)
    watch = Watch()
    fit(FineTuning([Phase("1 epoch", "head"), Phase()]), watch, module=Module(optimizer=make), max_epochs=2)
    assert watch.moved == [PHASES[0]] * 4 + [PHASES[2]] * 4
    with pytest.raises(ValueError, match="phase 2 of FineTuning freezes layers, but LBFGS"):
        fit(FineTuning([Phase("1 epoch"), Phase(train="head")]), module=Module(optimizer=make))


# what is refused, what is message


def test_run_too_short_for_the_plan_warns():
    with pytest.warns(UserWarning, match="run ends before phase 3 begins, so these are never trained: stem$"):
        fit(FineTuning(three_phases()), max_epochs=2)


def test_the_network_s_own_frozen_parameters_stay_so():
    module = Module()
    module.net.stem[0].weight.requires_grad_(False)
    watch = Watch()
    fit(FineTuning([Phase("1 epoch", "head"), Phase()]), watch, module=module, max_epochs=2)
    assert watch.moved[-1] == PHASES[2] - {"stem.0.weight"}
    assert not module.net.stem[0].weight.requires_grad
    with pytest.raises(
        ValueError, match=r"phase 1 of FineTuning would train nothing: the network itself freezes stem\.0"
    ):
        fit(FineTuning([Phase(train="stem.0")]), module=module)


def test_an_optimizer_without_the_layers_is_refused():
    class HeadOnly(Module):
        def configure_optimizers(self):
            return torch.optim.SGD(self.net.fc.parameters(), 0.1)

    with pytest.raises(ValueError, match="phase 2 of FineTuning trains stem, layer1, but no optimizer holds them"):
        fit(FineTuning([Phase("1 epoch", "head"), Phase()]), module=HeadOnly())


def test_flattened_parameters_are_refused():
    callback = FineTuning(three_phases())
    trainer, module = fit(max_epochs=1)
    trainer._accelerator_connector.strategy = FSDPStrategy()
    with pytest.raises(ValueError, match="cannot freeze parameters that FSDPStrategy flattens"):
        callback._check_plan(trainer, module.net)


def callbacks(*phases: str) -> str:
    plan = f"[{', '.join(phases)}]"
    return f"--trainer.callbacks=[{{class_path: zoo.callbacks.fine_tuning.FineTuning, init_args: {{plan: {plan}}}}}]"


def test_a_mistake_on_the_command_line_is_one_line(zoo):
    code, _, err = zoo(
        "fit", "-c", "configs/mlp_digits.yaml", callbacks("{until: 1 epoch, train: tail}", "{train: all}")
    )
    assert (code, err.count("\n")) == (2, 1)
    assert "'tail' matches nothing in MLP; the nearest names are" in err


@pytest.mark.slow
def test_two_processes_equal_one(zoo_process, here):
    """Thawed layers are reduced too: DDP knows only what required a gradient when it was built."""
    plan = callbacks("{until: 1 epochs, train: head}", "{until: 30 steps, train: ['4', head], lr_scale: 0.1}", "{}")
    common = ["fit", "-c", "configs/mlp_digits.yaml", "--model.norm", "layer", "--trainer.precision", "64-true",
              "--trainer.max_epochs", "3", plan]  # fmt: skip
    ddp = ["--trainer.strategy", "ddp", "--trainer.devices", "2", "--trainer.accelerator", "cpu"]
    one = zoo_process(*common, "--run_dir", "one", "--data.batch_size", "64")
    two = zoo_process(*common, "--run_dir", "two", "--data.batch_size", "32", *ddp)
    assert (one.returncode, two.returncode) == (0, 0), one.stderr + two.stderr
    a, b = (torch.load(here / f"{n}/checkpoints/last.ckpt", weights_only=True)["state_dict"] for n in ("one", "two"))
    assert max(float((a[key] - b[key]).abs().max()) for key in a) < 1e-10


# the table of FIELD.md


class Halves(Module):
    """BackboneFinetuning wants the network in these two."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = self.net.stem, nn.Sequential(self.net.layer1, self.net.fc)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], 0.1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        x = torch.randn(16, 6)
        return nn.functional.cross_entropy(self.net(x), (x[:, 0] > 0).long())


def test_field_backbone_finetuning_after_a_resume(tmp_path):
    def moved_after_resume(make: Any, module: Any) -> bool:
        save = ModelCheckpoint(tmp_path / make.__name__, "two")
        fit(make(), save, module=module(), max_epochs=2)
        resumed = module()
        start = torch.load(save.best_model_path, weights_only=False)["state_dict"]["net.stem.0.weight"]
        fit(make(), module=resumed, ckpt_path=save.best_model_path, max_epochs=3, inference_mode=False)
        return not torch.equal(resumed.net.stem[0].weight, start)

    def theirs() -> L.Callback:
        return BackboneFinetuning(unfreeze_backbone_at_epoch=1, backbone_initial_lr=0.1)

    def ours() -> L.Callback:
        return FineTuning([Phase("1 epoch", ["layer1", "fc"]), Phase()])

    assert not moved_after_resume(theirs, Halves)  # wrong: thawed since epoch 1, frozen again by the resume
    assert moved_after_resume(ours, Module)


class Probe(L.Callback):
    """Whether the frozen stem answers in training as it does in evaluation."""

    same = True

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        stem, probe = pl_module.net.stem, torch.linspace(-1, 1, 60).view(10, 6)
        modes = {module: module.training for module in stem.modules()}
        self.same &= torch.equal(copy.deepcopy(stem)(probe), stem.eval()(probe))
        for module, mode in modes.items():
            module.training = mode


def test_field_frozen_batch_norm():
    theirs, ours = Probe(), Probe()
    fit(BackboneFinetuning(unfreeze_backbone_at_epoch=9, train_bn=False), theirs, module=Halves(), max_epochs=2)
    assert not theirs.same  # wrong: frozen by name, yet it normalises by the batch's statistics
    module = Module()
    start = state_of(module)
    fit(FineTuning([Phase(train="head")]), ours, module=module, max_epochs=2)
    assert ours.same
    assert_equal(
        {k: v for k, v in state_of(module).items() if k not in HEAD}, {k: v for k, v in start.items() if k not in HEAD}
    )
