"""Twelve kinds of faults in four families of nets, and the ways nets are wrapped: each must be named rightly."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from tests.callbacks.families import (
    BATCH,
    CLASSES,
    DIM,
    FAMILIES,
    MLP,
    SICK_STEP,
    BadVariance,
    BrainFloatOverflow,
    Division,
    Explosion,
    ExpOverflow,
    HalfOverflow,
    LogOfZero,
    MaskByArithmetic,
    Recurrent,
    RootAtZero,
    Task,
    batches,
    caught,
    named,
    trainer_with,
)
from zoo.callbacks.nan.guard import NaNGuard
from zoo.callbacks.nan.trace import Tracer

SLOT_FAULTS: list[tuple[Callable[[], nn.Module], str, str, str, str]] = [
    (ExpOverflow, "net.slot", "activation", "forward", "overflow in exp"),
    (LogOfZero, "net.slot", "activation", "forward", "log of zero"),
    (Division, "net.slot", "activation", "forward", "division by zero"),
    (RootAtZero, "net.slot", "gradient", "backward", "gradient of a root at zero"),
    (MaskByArithmetic, "net.slot", "activation", "forward", "zero times infinity"),
    (HalfOverflow, "net.slot", "activation", "forward", "overflow in float16"),
    (BrainFloatOverflow, "net.slot", "activation", "forward", "overflow in bfloat16"),
    (Explosion, "net.slot.cell", "activation", "forward", "exploding recurrence"),
    (BadVariance, "net.slot.norm", "activation", "forward", "batch norm with a bad variance"),
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("fault", "module", "kind", "phase", "cause"), SLOT_FAULTS, ids=[f[4] for f in SLOT_FAULTS])
def test_names_a_fault_in_a_module(family, fault, module, kind, phase, cause, tmp_path):
    torch.manual_seed(0)
    net = family()
    net.slot = fault()
    report = caught(Task(net), batches(net), tmp_path)
    assert named(report) == (module, kind, phase)
    assert report["cause"] == cause
    assert report["module_class"] == type(Task(net).get_submodule(module)).__name__
    assert report["batch_idx"] == (0 if fault is BadVariance else SICK_STEP)
    assert "families.py" in report["source"]
    assert report["statistics"]["output"]["non_finite_share"] > 0


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_names_an_exploding_rnn(direction, tmp_path):
    net = Recurrent()
    with torch.no_grad():
        # 1e9 ** 5 overflows; in the backward pass a small state hides what its slope multiplies
        nn.init.eye_(net.rnn.weight_hh_l0).mul_(1e9 if direction == "forward" else 1e8)  # pyright: ignore
        if direction == "backward":
            net.rnn.weight_ih_l0.mul_(1e-30)  # pyright: ignore
            nn.init.constant_(net.rnn.bias_ih_l0, 1e-30)  # pyright: ignore
            nn.init.constant_(net.rnn.bias_hh_l0, 1e-30)  # pyright: ignore
    report = caught(Task(net), batches(net), tmp_path)
    kind = "activation" if direction == "forward" else "gradient"
    assert named(report) == ("net.rnn", kind, direction)
    assert report["cause"] == "exploding recurrence"


@pytest.mark.parametrize("family", FAMILIES)
def test_names_a_bad_sample(family, tmp_path):
    net = family()
    report = caught(Task(net), batches(net, nan_sample=3), tmp_path)
    assert (report["kind"], report["operation"], report["samples"]) == ("input data", "batch[0]", [3])
    saved = torch.load(tmp_path / "nan_batch.pt", weights_only=True)
    assert saved["batch"][0].isnan().any(dim=tuple(range(1, saved["batch"][0].dim()))).tolist() == [False] * 3 + [True]


@pytest.mark.parametrize("family", FAMILIES)
def test_names_a_bad_weight(family, tmp_path):
    net = family()
    with torch.no_grad():
        net.head.weight[0, 1] = float("nan")
    report = caught(Task(net), batches(net), tmp_path)
    assert (report["kind"], report["operation"], report["module"]) == ("weight", "net.head.weight", "net.head")
    assert report["module_class"] == "Linear"


@pytest.mark.parametrize("family", FAMILIES)
def test_names_an_infinite_loss(family, tmp_path):
    net = family()
    report = caught(Task(net, inf_loss=True), batches(net), tmp_path)
    assert named(report) == ("", "loss", "forward")
    assert report["batch_idx"] == SICK_STEP
    assert "1e30" in report["source"]


class SpoilState(L.Callback):
    """Writes NaN into Adam's second moment of the head, or an infinite learning rate, after the first step."""

    def __init__(self, what: str):
        self.what = what

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        optimizer = trainer.optimizers[0]
        if batch_idx == 0 and self.what == "lr":
            optimizer.param_groups[0]["lr"] = float("inf")
        elif batch_idx == 0:
            optimizer.state[pl_module.get_parameter("net.head.weight")]["exp_avg_sq"].fill_(float("nan"))


@pytest.mark.parametrize("what", ["lr", "state"])
@pytest.mark.parametrize("family", FAMILIES)
def test_names_the_optimizer(family, what, tmp_path):
    net = family()
    report = caught(Task(net), batches(net), tmp_path, callbacks=[SpoilState(what)])
    assert (report["kind"], report["batch_idx"]) == ("optimizer state", 2)
    assert ("exp_avg_sq" if what == "state" else "lr=inf") in report["advice"]
    if what == "state":
        assert report["operation"] == "net.head.weight"


@dataclass
class Output:
    """What some libraries return in place of a tensor."""

    hidden: Tensor
    logits: dict[str, Tensor]


class Structured(nn.Module):
    """A shared module, and an output that is a dataclass with a dict in it."""

    def __init__(self, slot: nn.Module, wrap: Callable[..., Tensor] = lambda run, x: run(x)):
        super().__init__()
        self.shared, self.slot, self.wrap = nn.Linear(DIM, DIM), slot, wrap
        self.drop = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Output:
        x = self.shared(self.drop(x))
        x = self.shared(self.wrap(self.slot, x))
        return Output(x, {"all": x[:, :3]})


class StructuredTask(Task):
    """Takes a dict as batch and gives one back."""

    def training_step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        logits = self.net(batch["x"]).logits["all"]
        return {"loss": F.cross_entropy(logits, batch["y"]), "logits": logits}


def dict_batches(n: int = 5) -> DataLoader:
    return DataLoader([{"x": x, "y": y} for x, y in batches(MLP(), n)], batch_size=None)  # pyright: ignore


def reentrant(run: Callable, x: Tensor) -> Any:
    return checkpoint(run, x, use_reentrant=True)


def non_reentrant(run: Callable, x: Tensor) -> Any:
    return checkpoint(run, x, use_reentrant=False)


@pytest.mark.parametrize("fault", [ExpOverflow, RootAtZero])
@pytest.mark.parametrize("wrap", [lambda run, x: run(x), reentrant, non_reentrant], ids=["plain", "reentrant", "other"])
def test_structured_outputs_and_checkpointing(wrap, fault, tmp_path):
    # a checkpoint runs its part twice, which a count in a buffer would not survive
    class Now(fault):
        def forward(self, x: Tensor) -> Tensor:
            return self.harm(x)

    task = StructuredTask(Structured(Now(), wrap))
    report = caught(task, dict_batches(), tmp_path)
    kind = ("activation", "forward") if fault is ExpOverflow else ("gradient", "backward")
    assert named(report) == ("net.slot", *kind)
    assert torch.load(tmp_path / "nan_batch.pt", weights_only=True)["batch"]["x"].shape == (BATCH, DIM)


def test_a_freed_output_is_not_taken_for_the_loss():
    """Tensors are identified by address, and the loss may get the address of an output that was freed."""
    net = MLP()
    tracer = Tracer(net, None)
    with tracer:
        healthy = torch.ones(3)
        tracer.leave(net.stem, (), healthy)
        assert not tracer.is_only_output(healthy, "stem")
        overflowed = healthy * float("inf")
        tracer.leave(net.stem, (), overflowed)
    assert tracer.is_only_output(overflowed, "stem")
    assert not tracer.is_only_output(overflowed, "head")


def test_names_the_call_of_a_shared_module(tmp_path):
    class Big(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 0 + 3e38

    task = StructuredTask(Structured(Big()))
    with torch.no_grad():
        task.net.shared.weight.fill_(1.0)  # pyright: ignore
    report = caught(task, dict_batches(), tmp_path)
    assert (*named(report), report["call"]) == ("net.shared", "activation", "forward", 2)


@pytest.mark.parametrize("fault", [Division, RootAtZero])
def test_compiled_net(fault, tmp_path):
    net = MLP()
    net.slot = fault()
    net.compile(backend="aot_eager")
    report = caught(Task(net), batches(net), tmp_path)
    assert report["module"] == "net.slot"
    assert report["batch_idx"] == SICK_STEP


def test_a_row_masked_wholly_is_named_at_the_softmax(tmp_path):
    class Masked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            closed = torch.zeros_like(x, dtype=torch.bool)
            closed[2] = True
            return x.masked_fill(closed, float("-inf")).softmax(-1)

    net = MLP()
    net.slot = Masked()
    report = caught(Task(net), batches(net), tmp_path)
    assert (report["module"], report["cause"]) == ("net.slot", "everything in a row is masked")
    assert report["samples"] == [2]


def test_a_log_masked_afterwards_is_named_on_the_way_back(tmp_path):
    class MaskedLog(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x - 0.5
            return torch.where(x > 0, torch.log(x * (x > 0)), 0.0)

    net = MLP()
    net.slot = MaskedLog()
    report = caught(Task(net), batches(net), tmp_path)
    assert named(report) == ("net.slot", "gradient", "backward")
    assert report["cause"] == "gradient of log at zero"


def test_sparse_gradients(tmp_path):
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(5, CLASSES, sparse=True)
            self.slot: nn.Module = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.slot(self.table((x[:, 0] > 0).long()))

    net = Words()
    trainer_with(NaNGuard(), tmp_path).fit(Task(net, "SGD"), batches(MLP()))
    net.slot = RootAtZero()
    report = caught(Task(net, "SGD"), batches(MLP()), tmp_path)
    assert (*named(report), report["non_finite_gradients"]) == (
        "net.slot",
        "gradient",
        "backward",
        ["net.table.weight"],
    )
