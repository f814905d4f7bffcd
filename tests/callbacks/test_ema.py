"""Every row of the truth table is compared bit for bit with `reference`, ten lines over the weights of a plain run."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Checkpoint, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader
from torchmetrics import SumMetric

from zoo.callbacks import BestAndLast
from zoo.callbacks.ema import EMA, ema_update
from zoo.callbacks.weight_choice import WeightChoice
from zoo.checkpoints import load_ema, with_ema

Weights = dict[str, Tensor]
PROBE = torch.linspace(-1, 1, 12).view(2, 6)


def reference(history: list[Weights], decay=0.9, warmup=True, start_step=0, every_n_steps=1, device=None) -> Weights:
    averages, t = {}, 0
    for step, weights in enumerate(history, 1):
        if step > start_step and step % every_n_steps == 0:
            d = min(decay, (1 + t) / (10 + t)) if warmup else decay
            for name, weight in weights.items():
                weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
                averages[name] = torch.lerp(averages[name], weight, 1 - d) if t else weight
            t += 1
    return averages


def assert_equal(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.narrow = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 5)
        self.second.weight = self.first.weight
        self.odd, self.norm, self.single = nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.narrow(self.second(self.first(x).relu()))
        return self.single(self.norm(self.odd(x)))


class Module(L.LightningModule):
    """Its data depend on the batch's number alone, so that a resumed run sees what an uninterrupted one sees."""

    def __init__(self, fail: Callable[[L.Trainer, str], None] = lambda trainer, stage: None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net, self.batches, self.fail = Net(), SumMetric(), fail
        self.batches.persistent(True)
        self.seen: dict[int, Weights] = {}  # the weights by the optimizer steps taken before validation

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.fail(self.trainer, "train")
        self.batches.update(1)
        seed = 1000 * self.global_rank + 100 * self.trainer.current_epoch + batch_idx
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
        x = x.to(self.net.narrow.weight.dtype)
        return (self.net(x) - x.sum(1, keepdim=True)).square().mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.net(torch.ones(2, 6, dtype=self.net.narrow.weight.dtype))
        self.fail(self.trainer, "validation")

    def on_validation_epoch_end(self) -> None:
        self.seen[self.trainer.global_step] = weights_of(self)

    test_step = validation_step

    def on_test_epoch_end(self) -> None:
        self.seen[-1] = weights_of(self)

    def predict_step(self, batch: Tensor, batch_idx: int) -> Weights:
        return weights_of(self)


def weights_of(module: nn.Module) -> Weights:
    named = module.named_parameters(remove_duplicate=False)
    return {n: (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone() for n, p in named}


class History(L.Callback):
    """The weights after each optimizer step."""

    def __init__(self) -> None:
        self.weights: list[Weights] = []
        self.steps = 0
        self.start: Weights = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.steps, self.start = trainer.global_step, weights_of(pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if trainer.global_step > self.steps:
            self.steps = trainer.global_step
            self.weights.append(weights_of(pl_module))


def make_trainer(*callbacks: L.Callback, **flags: Any) -> L.Trainer:
    saving = any(isinstance(callback, Checkpoint) for callback in callbacks)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    defaults = {"accelerator": "cpu", "devices": 1, "max_epochs": 2, "val_check_interval": 4, **quiet}
    return L.Trainer(callbacks=list(callbacks), enable_checkpointing=saving, **defaults | flags)


def fit(*callbacks: L.Callback, module: Any = None, ckpt_path: Any = None, **flags: Any) -> tuple[L.Trainer, Any]:
    module, trainer = module or Module(), make_trainer(*callbacks, **flags)
    if flags.get("precision") == "64-true":
        module.double()  # Lightning loads a checkpoint first and converts the module then: the low bits would be lost
    trainer.fit(module, DataLoader(range(8)), DataLoader(range(1)), ckpt_path=ckpt_path)
    return trainer, module


def plain_history(**flags: Any) -> list[Weights]:
    history = History()
    fit(history, **flags)
    return history.weights


def each_step(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1)


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def raw_of(saved: dict[str, Any], names: Any) -> Weights:
    """The trained weights in a checkpoint; where there are averages, `state_dict` holds them."""
    state, averages = saved["state_dict"], saved.get("ema_params", {})
    if "raw_params" in saved:
        assert_equal(only(state, averages), {name: tensor.to(state[name].dtype) for name, tensor in averages.items()})
    return only(state | saved.get("raw_params", {}), names)


def only(weights: Weights, names: Any) -> Weights:
    return {name: weights[name] for name in names}


SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "constant decay": ({"warmup": False}, {}),
    "delayed start": ({"start_step": 3}, {}),
    "every third step": ({"every_n_steps": 3, "start_step": 1, "device": "cpu"}, {}),
    "accumulation 4": ({}, {"accumulate_grad_batches": 4}),
    "bf16-mixed": ({}, {"precision": "bf16-mixed"}),
    "bf16-true": ({}, {"precision": "bf16-true"}),
    "64-true": ({}, {"precision": "64-true"}),
}
table = pytest.mark.parametrize(("options", "flags"), SETTINGS.values(), ids=SETTINGS)


@table
def test_save_mid_run(options, flags, tmp_path):
    history = plain_history(**flags)
    trainer, module = fit(EMA(decay=0.9, **options), each_step(tmp_path), **flags)
    assert len(list(tmp_path.iterdir())) == len(history)
    for step, raw in enumerate(history, 1):
        checkpoint, averages = load(tmp_path / f"step={step}.ckpt"), reference(history[:step], **options)
        assert_equal(raw_of(checkpoint, raw), raw)
        assert_equal(checkpoint.get("ema_params", {}), averages)
        if step in module.seen:
            assert_equal(module.seen[step], {n: w.to(raw[n].dtype) for n, w in (averages or raw).items()})
    assert len(module.seen) >= 3
    assert_equal(weights_of(module), {n: w.to(raw[n].dtype) for n, w in averages.items()})
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    assert_equal(load(tmp_path / "after.ckpt")["ema_params"], averages)
    assert_equal(raw_of(load(tmp_path / "after.ckpt"), raw), raw)


@table
def test_resume(options, flags, tmp_path):
    history = plain_history(**flags)
    _, module = fit(EMA(decay=0.9, **options), each_step(tmp_path), **flags)
    half = len(history) // 2  # the end of the first epoch
    for step in (1, half, half + 1):
        again, resumed = fit(EMA(decay=0.9, **options), ckpt_path=tmp_path / f"step={step}.ckpt", **flags)
        assert_equal(weights_of(resumed), weights_of(module))
        again.save_checkpoint(tmp_path / "again.ckpt")
        saved = load(tmp_path / "again.ckpt")
        assert_equal(saved["ema_params"], reference(history, **options))
        assert_equal(raw_of(saved, history[-1]), history[-1])
        assert saved["callbacks"]["EMA"] == load(tmp_path / f"step={len(history)}.ckpt")["callbacks"]["EMA"]


@table
@pytest.mark.parametrize("stage", ["train", "validation"])
def test_save_on_exception(options, flags, stage, tmp_path):
    def fail(trainer, at):
        if at == stage and trainer.fit_loop.total_batch_idx == (13 if at == "train" else 11):
            raise RuntimeError("planted")

    first, second = History(), History()
    module = Module(fail)
    with pytest.raises(RuntimeError, match="planted"):
        fit(
            EMA(decay=0.9, **options),
            first,
            ModelCheckpoint(tmp_path, "x", save_on_exception=True),
            module=module,
            **flags,
        )
    raw = first.weights[-1]
    assert_equal(weights_of(module), raw)
    saved = load(tmp_path / "x.ckpt")
    assert_equal(saved.get("ema_params", {}), reference(first.weights, **options))
    assert_equal(raw_of(saved, raw), raw)
    again, _ = fit(EMA(decay=0.9, **options), second, ckpt_path=tmp_path / "x.ckpt", **flags)
    again.save_checkpoint(tmp_path / "again.ckpt")
    assert_equal(load(tmp_path / "again.ckpt")["ema_params"], reference(first.weights + second.weights, **options))


# two processes: this file run as a script, once for all the tests below it


class ShardedModule(Module):
    def configure_model(self) -> None:
        if not isinstance(self.net, FSDPModule):
            for part in (self.net.odd, self.net.single, self.net):
                fully_shard(part, mesh=self.device_mesh["data_parallel"])

    def on_train_batch_end(self, *args: Any) -> None:
        with torch.no_grad():
            self.net.eval()(PROBE)  # without a backward pass the root's weights stay whole
        self.net.train()

    def on_validation_epoch_end(self) -> None:
        self.seen[self.trainer.global_step] = self.net(PROBE)

    def on_validation_end(self) -> None:
        assert all(isinstance(p, DTensor) for p in self.net.odd.parameters())


def two_processes(folder: Path) -> None:
    def sharded(distributed: bool = False) -> dict[str, Any]:
        strategy = ModelParallelStrategy(2, 1, distributed, process_group_backend="gloo")
        return {"strategy": strategy, "devices": 2}

    def outcome(kind: str, module_class: type[Module], flags: Callable[[], dict[str, Any]]) -> None:
        history, path = History(), folder / kind
        trainer, module = fit(EMA(decay=0.9), history, each_step(path), module=module_class(), **flags())
        trainer.save_checkpoint(path / "after.ckpt")
        again, resumed = fit(EMA(decay=0.9), module=module_class(), ckpt_path=path / "step=5.ckpt", **flags())
        again.save_checkpoint(path / "again.ckpt")
        fit(
            EMA(decay=0.9, start_step=1, every_n_steps=2), each_step(path / "options"), module=module_class(), **flags()
        )
        fresh, evaluator = module_class(), make_trainer(EMA(), **flags())
        evaluator.validate(fresh, DataLoader(range(1)), ckpt_path=path / "after.ckpt", verbose=False)
        result = {
            "history": history.weights,
            "live": [weights_of(m) for m in (module, resumed, fresh)],
            "seen": {**module.seen, -1: fresh.seen[0]},
            "shapes": {n: tuple(p.to_local().shape) for n, p in module.named_parameters() if isinstance(p, DTensor)},
        }
        torch.save(result, path / f"rank{trainer.global_rank}.pt")

    outcome("ddp", Module, lambda: {"strategy": DDPStrategy(process_group_backend="gloo"), "devices": 2})
    outcome("sharded", ShardedModule, sharded)
    outcome("sharded files", ShardedModule, lambda: sharded(distributed=True))
    try:
        fit(EMAWeightAveraging(), module=ShardedModule(), **sharded())
    except Exception as error:
        (folder / f"lightning{os.environ['LOCAL_RANK']}.txt").write_text(f"{type(error).__name__}: {error}")


@pytest.fixture(scope="module")
def processes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    ours = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    env = {k: v for k, v in os.environ.items() if k not in ("MASTER_PORT", "LOCAL_RANK", "NODE_RANK")} | ours
    done = subprocess.run([sys.executable, __file__, folder], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "sharded", "sharded files"])
def test_two_processes(kind, processes):
    path = processes / kind
    ranks = [load(path / f"rank{rank}.pt") for rank in (0, 1)]
    history = ranks[0]["history"]
    assert_equal(history, ranks[1]["history"])

    def saved(name: str) -> dict[str, Any]:
        return load(path / f"{name}.ckpt" / "meta.pt" if kind == "sharded files" else path / f"{name}.ckpt")

    for step, raw in enumerate(history, 1):
        assert_equal(saved(f"step={step}")["ema_params"], reference(history[:step]))
        options = saved(f"options/step={step}").get("ema_params", {})
        assert_equal(options, reference(history[:step], start_step=1, every_n_steps=2))
        if kind != "sharded files":
            assert_equal(raw_of(saved(f"step={step}"), raw), raw)
    averages = reference(history)
    for name in ("after", "again"):
        assert_equal(saved(name)["ema_params"], averages)
        if kind != "sharded files":
            assert_equal(raw_of(saved(name), raw), raw)
    for rank in ranks:
        assert_equal(rank["live"], [averages] * 3)
    if kind == "ddp":
        assert_equal(ranks[1]["seen"][4], reference(history[:4]))
    else:
        for step in (4, 8) if kind == "sharded" else ():
            whole = Module().eval()
            whole.load_state_dict(with_ema(saved(f"step={step}"), "ema")["state_dict"])
            assert_equal(ranks[0]["seen"][step], whole.net(PROBE).detach())
        assert ranks[0]["shapes"]["net.odd.weight"] == (4, 5)
        assert ranks[1]["shapes"]["net.odd.weight"] == (3, 5)
        assert ranks[1]["shapes"]["net.single.weight"] == (0, 7)


# ways out of validation, and of fit


def test_averages_live_through_every_hook_of_an_evaluation():
    history = plain_history()
    trainer, module = fit(EMA(decay=0.9))
    averages = reference(history)
    assert_equal(module.seen[4], reference(history[:4]))  # recorded in on_validation_epoch_end
    trainer.validate(module, DataLoader(range(1)), verbose=False)
    assert_equal(module.seen[16], averages)
    trainer.test(module, DataLoader(range(1)), verbose=False)
    assert_equal(module.seen[-1], averages)
    (predicted,) = trainer.predict(module, DataLoader(range(1)))
    assert_equal(predicted, averages)
    assert_equal(weights_of(module), averages)


@pytest.fixture
def _keeps_sigint():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    yield
    signal.signal(signal.SIGINT, before)  # Lightning ignores it after the first Ctrl-C


@pytest.mark.usefixtures("_keeps_sigint")
def test_ctrl_c_while_validating(tmp_path):
    def fail(trainer, stage):
        if stage == "validation" and trainer.global_step == 12:
            os.kill(os.getpid(), signal.SIGINT)

    history, module = History(), Module(fail)
    with pytest.raises(SystemExit):
        fit(EMA(decay=0.9), history, ModelCheckpoint(tmp_path, "x", save_on_exception=True), module=module)
    assert_equal(weights_of(module), history.weights[11])
    assert_equal(load(tmp_path / "x.ckpt")["ema_params"], reference(history.weights))
    assert_equal(raw_of(load(tmp_path / "x.ckpt"), history.weights[11]), history.weights[11])


@pytest.mark.usefixtures("_keeps_sigint")
@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_ctrl_c_while_weights_are_exchanged(call, monkeypatch):
    calls, copy = iter(range(1, 1000)), torch._foreach_copy_

    def interrupted(targets, sources):
        if next(calls) == call:
            copy(targets[:3], sources[:3])
            raise KeyboardInterrupt
        copy(targets, sources)

    history, module = History(), Module()
    monkeypatch.setattr(torch, "_foreach_copy_", interrupted)
    with pytest.raises(SystemExit):
        fit(EMA(decay=0.9), history, module=module)
    assert_equal(weights_of(module), history.weights[-1])


def test_stop_asked_for_while_validating():
    def stop(trainer, stage):
        trainer.should_stop |= stage == "validation" and trainer.global_step == 8

    history, module = History(), Module(stop)
    fit(EMA(decay=0.9), history, module=module)
    assert len(history.weights) == 8
    assert_equal(weights_of(module), reference(history.weights))


def test_saving_while_the_averages_are_live(tmp_path):
    class Saves(L.Callback):
        def on_train_batch_end(self, trainer, *args):  # listed before EMA, which has not seen this step yet
            trainer.save_checkpoint(tmp_path / f"batch{trainer.global_step}.ckpt")

        def on_validation_epoch_end(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / f"val{trainer.global_step}.ckpt")

    history = plain_history()
    fit(Saves(), EMA(decay=0.9))
    for name, step in (("batch", 1), ("batch", 7), ("batch", 16), ("val", 8), ("val", 16)):
        saved = load(tmp_path / f"{name}{step}.ckpt")
        assert_equal(saved["ema_params"], reference(history[:step]))
        assert_equal(raw_of(saved, history[0]), history[step - 1])
        assert saved["callbacks"]["EMA"] == {"updates": step}


def test_weights_only_files_hold_trained_weights(tmp_path):
    history = plain_history()
    saver = ModelCheckpoint(tmp_path, "x", save_weights_only=True, every_n_train_steps=16)
    with pytest.warns(UserWarning, match="save_weights_only"):
        fit(EMA(decay=0.9), saver)
    assert_equal(raw_of(load(tmp_path / "x.ckpt"), history[-1]), history[-1])


# starting, going on, starting anew


def test_fit_goes_on_from_the_trained_weights():
    history = History()
    trainer, module = fit(EMA(decay=0.9), history, num_sanity_val_steps=0)
    trainer.fit_loop.max_epochs = 3
    trainer.fit(module, DataLoader(range(8)), DataLoader(range(1)))
    assert_equal(history.start, history.weights[15])
    assert_equal(weights_of(module), reference(history.weights))


def test_a_callback_used_again_starts_anew():
    ema, history = EMA(decay=0.9), plain_history()
    fit(ema, module=Module())
    _, module = fit(ema, module=Module(), max_epochs=1)
    assert_equal(weights_of(module), reference(history[:8]))


def test_resume_of_a_finished_run_gives_averages(tmp_path):
    history = plain_history()
    fit(EMA(decay=0.9), each_step(tmp_path))
    _, module = fit(EMA(decay=0.9), ckpt_path=tmp_path / "step=16.ckpt")
    assert_equal(weights_of(module), reference(history))


def test_resume_without_the_callback_trains_the_raw_weights(tmp_path):
    history = plain_history()
    fit(EMA(decay=0.9), each_step(tmp_path))
    _, module = fit(BestAndLast(dirpath=str(tmp_path)), ckpt_path=tmp_path / "step=5.ckpt")
    assert_equal(weights_of(module), history[-1])


def test_resume_of_a_run_without_averages_starts_them(tmp_path):
    history = plain_history()
    fit(each_step(tmp_path))
    _, module = fit(EMA(decay=0.9), ckpt_path=tmp_path / "step=5.ckpt")
    assert_equal(weights_of(module), reference(history[5:]))


def test_several_optimizers_in_a_batch():
    class Adversarial(Module):
        automatic_optimization = False

        def configure_optimizers(self):
            return [torch.optim.SGD(self.net.first.parameters(), 0.1), torch.optim.SGD(self.net.odd.parameters(), 0.1)]

        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.manual_backward(super().training_step(batch, batch_idx))
                optimizer.step()

    history = History()
    ema = EMA(decay=0.9, every_n_steps=5)  # due at steps 5, 10, ..., 30: seen after batches 3, 5, 8, 10, 13 and 15
    _, module = fit(ema, history, module=Adversarial())
    assert_equal(weights_of(module), reference([history.weights[batch - 1] for batch in (3, 5, 8, 10, 13, 15)]))


# what is averaged, and what is not


def test_tied_weights_once_buffers_and_metrics_untouched(tmp_path):
    _, plain = fit(each_step(tmp_path / "plain"))
    ema = EMA(decay=0.9)
    _, module = fit(ema, each_step(tmp_path / "ema"))
    saved = load(tmp_path / "ema" / "step=16.ckpt")
    assert len(ema.ema_weights) == len(list(module.parameters())) == len(saved["ema_params"]) - 1
    tied = [saved["ema_params"][f"net.{name}.weight"] for name in ("first", "second")]
    assert tied[0].data_ptr() == tied[1].data_ptr()
    assert module.net.first.weight is module.net.second.weight
    assert_equal(raw_of(saved, saved["state_dict"]), load(tmp_path / "plain" / "step=16.ckpt")["state_dict"])
    assert_equal(dict(module.named_buffers()), dict(plain.named_buffers()))
    assert module.net.norm.num_batches_tracked == 16
    assert module.batches.compute() == 16


def test_compiled_net_keeps_its_keys(tmp_path):
    module = Module()
    keys = list(module.state_dict())
    module.net.compile(backend="aot_eager")
    history = History()
    trainer, _ = fit(EMA(decay=0.9), history, module=module)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    saved = load(tmp_path / "x.ckpt")
    assert list(saved["state_dict"]) == keys
    assert set(saved["ema_params"]) <= set(keys)
    assert_equal(saved["ema_params"], reference(history.weights))
    assert_equal(module.seen[8], reference(history.weights[:8]))


def test_update_of_many_dtypes():
    dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.complex64)
    weights = [torch.randn(7, 5, dtype=dtype) for dtype in dtypes]
    averages = [torch.randn(7, 5).to(torch.promote_types(dtype, torch.float32)) for dtype in dtypes]
    expected = [torch.lerp(a, w.to(a), 0.25) for a, w in zip(averages, weights, strict=True)]
    ema_update(averages, weights, 0.75)
    assert_equal(averages, expected)


# loading


def test_evaluation_of_a_checkpoint(tmp_path):
    history = plain_history()
    trainer, _ = fit(EMA(decay=0.9), each_step(tmp_path))
    fresh = Module()
    trainer.test(fresh, DataLoader(range(1)), ckpt_path=tmp_path / "step=6.ckpt", verbose=False)
    assert_equal(weights_of(fresh), reference(history[:6]))
    make_trainer().test(fresh, DataLoader(range(1)), ckpt_path=tmp_path / "step=6.ckpt", verbose=False)
    assert_equal(weights_of(fresh), reference(history[:6]))
    make_trainer(WeightChoice("raw")).test(
        fresh, DataLoader(range(1)), ckpt_path=tmp_path / "step=6.ckpt", verbose=False
    )
    assert_equal(weights_of(fresh), history[5])
    assert_equal(weights_of(Module.load_from_checkpoint(tmp_path / "step=6.ckpt")), reference(history[:6]))


@pytest.mark.parametrize("other", [EMA(decay=0.5), EMAWeightAveraging()], ids=["EMA", "Lightning's"])
def test_two_averages_of_the_weights_are_refused(other):
    trainer = make_trainer()
    trainer.callbacks += [EMA(decay=0.9), other]
    with pytest.raises(ValueError, match="would both replace the weights for validation: give one of them"):
        EMA().setup(trainer, Module(), "fit")


def test_choice_of_weights(tmp_path):
    fit(EMA(decay=0.9, start_step=10), each_step(tmp_path))
    early, late = load(tmp_path / "step=10.ckpt"), load(tmp_path / "step=16.ckpt")
    raw, averages = late["state_dict"] | late["raw_params"], late["ema_params"]
    assert_equal(with_ema(late, "raw")["state_dict"], raw)
    assert_equal(with_ema(late, "ema")["state_dict"], raw | averages)
    assert_equal(with_ema(late)["state_dict"], raw | averages)
    assert list(with_ema(late)) == [key for key in late if key not in ("ema_params", "raw_params")]
    assert_equal(late["state_dict"], raw | averages)
    old = {"state_dict": raw, "ema_params": averages}
    assert_equal(with_ema(old, "raw")["state_dict"], raw)
    assert_equal(with_ema(old)["state_dict"], raw | averages)
    assert_equal(with_ema(early)["state_dict"], early["state_dict"])
    with pytest.raises(ValueError, match="holds no EMA weights"):
        with_ema(early, "ema")
    with pytest.raises(ValueError, match="'EMA'"):
        with_ema(late, "EMA")
    assert with_ema({"ema_params": averages, "epoch": 1}) == {"epoch": 1}  # as ModelParallelStrategy hands it on
    module = Module()
    load_ema(module, averages)
    assert_equal(weights_of(module), averages)


# users' mistakes


@pytest.mark.parametrize(
    "wrong", [{"decay": 1.0}, {"decay": -0.1}, {"start_step": -1}, {"every_n_steps": 0}, {"device": "graphics card"}]
)
def test_impossible_options(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"^{name} must be .* not "):
        EMA(**wrong)


def test_other_ways_of_sharding_are_refused():
    trainer, module = make_trainer(), Module()
    trainer._accelerator_connector.strategy = FSDPStrategy()  # a Trainer without a GPU does not take it itself
    with pytest.raises(ValueError, match="FSDPStrategy shards: use ModelParallelStrategy"):
        EMA().setup(trainer, module, "fit")


# the table of FIELD.md: what Lightning's own callback does, and ours


def test_ema_delayed_start_never_reached():
    start, trained = weights_of(Module()), plain_history()[-1]
    _, theirs = fit(EMAWeightAveraging(update_starting_at_step=1000))
    assert_equal(weights_of(theirs), start)  # wrong: 16 steps of training are gone
    _, ours = fit(EMA(start_step=1000))
    assert_equal(weights_of(ours), trained)


def test_ema_exception_while_validating(tmp_path):
    def fail(trainer, stage):
        if stage == "validation" and trainer.global_step == 12:
            raise RuntimeError("planted")

    def run(callback: L.Callback, name: str) -> tuple[Weights, dict[str, Any], Weights]:
        history, module = History(), Module(fail)
        with pytest.raises(RuntimeError, match="planted"):
            fit(callback, history, ModelCheckpoint(tmp_path, name, save_on_exception=True), module=module)
        return weights_of(module), load(tmp_path / f"{name}.ckpt"), history.weights[-1]

    live, saved, raw = run(EMAWeightAveraging(decay=0.9), "theirs")
    averages = only(saved["current_model_state"], raw)
    assert_equal(live, averages)  # wrong: the averages stay live
    assert_equal(only(saved["state_dict"], raw), raw)  # wrong: it puts the averages here otherwise
    assert not torch.equal(averages["net.odd.weight"], raw["net.odd.weight"])
    live, saved, raw = run(EMA(decay=0.9), "ours")
    assert_equal(live, raw)
    assert_equal(raw_of(saved, raw), raw)


def test_ema_sharded_model(processes):
    for rank in (0, 1):  # wrong: a sharded model cannot be averaged at all
        assert "FSDP does not support deepcopy" in (processes / f"lightning{rank}.txt").read_text()
    history = load(processes / "sharded" / "rank0.pt")["history"]
    assert_equal(load(processes / "sharded" / "again.ckpt")["ema_params"], reference(history))


if __name__ == "__main__":
    two_processes(Path(sys.argv[1]))
