"""The private names of Lightning, jsonargparse and torch that zoo needs: each still there, and still what it was.

A failure here says what a new version has moved; ``zoo/_lightning.py`` and ``zoo/_torch.py`` are where to follow it.
"""

import copy
import inspect
import signal
import sys
import tomllib
import warnings
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import jsonargparse
import lightning as L
import pytest
import torch
from jsonargparse import _typehints
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.trainer.connectors.logger_connector import result
from lightning.pytorch.utilities import CombinedLoader
from packaging.requirements import Requirement
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

from tests.conftest import ROOT
from zoo import _lightning, _torch
from zoo.cli.lightning_cli import ZooCLI
from zoo.errors import UserError


class Module(L.LightningModule):
    def __init__(self, width: int = 2, net: nn.Module | None = None) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Linear(1, width)

    def training_step(self, batch, batch_idx):
        return self.net(batch[0]).mean()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SGD(torch.optim.SGD):
    """An optimizer with the name of another."""


class AtBatchEnd(L.Callback):
    """Note what a function of the trainer says at the end of each training batch."""

    def __init__(self, function) -> None:
        self.function, self.notes = function, []

    def on_train_batch_end(self, trainer, *args) -> None:
        self.notes.append(self.function(trainer))


def loader(batches: int = 5) -> DataLoader:
    return DataLoader(TensorDataset(torch.ones(batches, 1)))


def trainer_with(*callbacks, **kwargs) -> L.Trainer:
    given = {"max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(callbacks=list(callbacks), **{**given, **quiet, **kwargs})


def fit(*callbacks, module=None, data=None, ckpt_path=None, **kwargs) -> L.Trainer:
    trainer = trainer_with(*callbacks, **kwargs)
    trainer.fit(module or Module(), loader() if data is None else data, loader(1), ckpt_path=ckpt_path)
    return trainer


pytestmark = pytest.mark.filterwarnings("ignore")

# Progress of a fit ----------------------------------------------------------------------------------------------------


def test_accumulates():
    note = AtBatchEnd(_lightning.accumulates)
    fit(note, accumulate_grad_batches=2)
    assert note.notes == [True, False, True, False, False], "the epoch's last batch ends a window"


def test_epoch_done():
    note = AtBatchEnd(_lightning.epoch_done)
    fit(note)
    assert note.notes == [False, False, False, False, True]


def test_validates_next():
    note = AtBatchEnd(_lightning.validates_next)
    fit(note, val_check_interval=2)
    assert note.notes == [False, True, False, True, False]


def test_logged_step(tmp_path):
    note = AtBatchEnd(_lightning.logged_step)
    trainer = fit(note, accumulate_grad_batches=2)
    assert note.notes == [0, 0, 1, 1, 2], "counted after the hook"
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert _lightning.logged_step_of(torch.load(tmp_path / "last.ckpt", weights_only=True)) == 3
    assert _lightning.logged_step_of({"state_dict": {}}) == 0


@pytest.mark.parametrize("limit", [{}, {"max_steps": 8, "max_epochs": -1}])
def test_end_restart(limit, tmp_path):
    class Saves(L.Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "within.ckpt")

    class Ends(L.Callback):
        def __init__(self):
            self.seen = []

        def on_train_batch_start(self, trainer, *args):
            before = trainer.fit_loop.restarting
            _lightning.end_restart(trainer)
            self.seen.append((before, trainer.fit_loop.restarting))

    fit(Saves(), **limit)
    ends = Ends()
    fit(ends, ckpt_path=tmp_path / "within.ckpt", **limit)
    assert ends.seen[0] == (True, False)


def test_restart_validation(tmp_path):
    """A checkpoint from the middle of a validation: its resume begins with this validation, from its first batch."""

    class Saves(L.Callback):
        def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 5 and batch_idx == 1:
                trainer.save_checkpoint(tmp_path / "within.ckpt")

        def on_save_checkpoint(self, trainer, pl_module, checkpoint):
            _lightning.restart_validation(checkpoint)

    class Counts(L.Callback):
        def __init__(self):
            self.batches = []

        def on_validation_start(self, trainer, *args):
            _lightning.begin_validation(trainer)

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.batches.append(("train", batch_idx))

        def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
            if not trainer.sanity_checking:
                self.batches.append(("val", batch_idx))

    def run(*callbacks, **kwargs):
        trainer = trainer_with(*callbacks, max_epochs=2)
        trainer.fit(Module(), loader(5), loader(3), **kwargs)
        return trainer

    run(Saves())
    counts = Counts()
    trainer = run(counts, ckpt_path=tmp_path / "within.ckpt")
    validation = [("val", i) for i in range(3)]
    assert counts.batches == validation + [("train", i) for i in range(5)] + validation
    total = trainer.fit_loop.epoch_loop.val_loop.batch_progress.total
    assert total.started == total.processed == total.ready


def test_checks_at_epoch_end():
    for at_epoch_end in (True, False):
        callback = EarlyStopping("x", check_on_train_epoch_end=at_epoch_end)
        assert _lightning.checks_at_epoch_end(callback) is at_epoch_end


def test_cluster_environment(monkeypatch):
    assert type(_lightning.cluster_environment(trainer_with())).__name__ == "LightningEnvironment"
    for name, value in {"NTASKS": "1", "JOB_ID": "77", "JOB_NAME": "fit", "PROCID": "0", "LOCALID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    environment = _lightning.cluster_environment(trainer_with())
    assert type(environment).__name__ == "SLURMEnvironment"
    assert environment.auto_requeue
    assert environment.requeue_signal is None or environment.requeue_signal == signal.SIGUSR1


def test_leave_fit():
    class Leaves(L.Callback):
        seen: list = []

        def on_train_start(self, trainer, pl_module):
            _lightning.leave_fit()

        def on_exception(self, *args):
            self.seen.append("exception")

        def teardown(self, *args, **kwargs):
            self.seen.append("teardown")

    trainer = fit(Leaves())
    assert Leaves.seen == ["teardown"]
    assert (trainer.state.finished, trainer.global_step) == (True, 0)


# Batches --------------------------------------------------------------------------------------------------------------


def test_training_batches():
    class Reads(L.Callback):
        def on_train_start(self, trainer, pl_module):
            batches = _lightning.training_batches(trainer)
            self.read, self.limits = [set(batch) for batch, _, _ in batches], batches.limits

    class OfTwo(Module):
        def training_step(self, batch, batch_idx):
            return self.net(batch["long"][0]).mean()

    reads = Reads()
    data = CombinedLoader({"long": loader(4), "short": loader(1)}, "max_size_cycle")
    trainer = fit(reads, module=OfTwo(), data=data, limit_train_batches=3)
    assert reads.read == [{"long", "short"}] * 4, "the short one again and again"
    assert reads.limits == [3, 1]
    assert trainer.global_step == 3, "the run still has all its own batches"


def test_batch_to_device():
    class Transfers(Module):
        def on_before_batch_transfer(self, batch, dataloader_idx):
            return [x + 1 for x in batch]

        def on_after_batch_transfer(self, batch, dataloader_idx):
            return [x * 10 for x in batch]

    note = AtBatchEnd(lambda trainer: _lightning.batch_to_device(trainer, [torch.ones(1)]))
    fit(note, module=Transfers(), precision="64-true", limit_train_batches=1)
    ((batch,),) = note.notes
    assert (batch.item(), batch.dtype) == (20, torch.float64)


@pytest.mark.parametrize("takes_index", [True, False])
def test_step_arguments(takes_index):
    class WithoutIndex(Module):
        def training_step(self, batch):
            return super().training_step(batch, 0)

    module = Module() if takes_index else WithoutIndex()
    # What Lightning itself calls it with.
    note = AtBatchEnd(lambda trainer: tuple(trainer.fit_loop.epoch_loop._build_kwargs({}, "batch", 7).values()))
    fit(note, module=module, limit_train_batches=1)
    assert _lightning.step_arguments(module, "batch", 7) == note.notes[0]
    assert len(note.notes[0]) == 1 + takes_index


# Modules and loggers --------------------------------------------------------------------------------------------------


def test_trainer_of():
    module = Module()
    assert _lightning.trainer_of(module) is None
    trainer = fit(module=module, limit_train_batches=1)
    assert _lightning.trainer_of(module) is trainer
    of_fabric = Module()
    L.Fabric(accelerator="cpu").setup(of_fabric)
    assert _lightning.trainer_of(of_fabric) is None


def test_log_global(monkeypatch):
    """The hint that is silenced is Lightning's, and only that of this name."""
    source = inspect.getsource(result._ResultCollection._get_cache)
    assert "It is recommended to use `self.log({result_metric.meta.name!r}, ..., sync_dist=True)`" in source
    module = Module()
    module._trainer = SimpleNamespace(world_size=2)
    seen = []
    monkeypatch.setattr(module, "log", lambda name, value, **options: seen.append((name, value, options)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _lightning.log_global(module, "val/f1", 0.5, prog_bar=True)
        for name in ("val/f1", "val/f10"):
            warnings.warn(f"It is recommended to use `self.log({name!r}, ..., sync_dist=True)` when", stacklevel=1)
    assert seen == [("val/f1", 0.5, {"prog_bar": True, "batch_size": 1})]
    assert len(caught) == 1
    assert "'val/f10'" in str(caught[0].message)


def test_weigh_logged_means():
    """Two processes with 3 and 2 samples: Lightning's mean of the counts is 2, not 2.5."""
    assert _lightning.weigh_logged_means()
    assert _lightning.weigh_logged_means(), "again"
    meta = result._Metadata("validation_step", "ones")

    def average(value, **_):  # in place, as torch.distributed does: with a process of 2 samples of value 1
        return value.copy_((value + 2) / 2)

    meta.sync = result._Sync(fn=average, _should=True)
    metric = result._ResultMetric(meta, is_tensor=True)
    metric.update(torch.tensor(1.0), 3)
    assert float(metric.compute()) == 1.0


def test_forget_hyperparameter():
    module = Module(width=3, net=nn.ReLU())
    assert set(module.hparams) == set(module.hparams_initial) == {"width", "net"}
    for name in ("net", "never there"):
        _lightning.forget_hyperparameter(module, name)
    assert dict(module.hparams) == dict(module.hparams_initial) == {"width": 3}
    _lightning.forget_hyperparameter(L.LightningDataModule(), "never saved")


def test_hook_name():
    class Notes(Module):
        names: list = []

        def on_train_start(self):
            self.names.append(getattr(self, _lightning.HOOK_NAME))

    module = Notes()
    fit(module=module, limit_train_batches=1)
    assert (Notes.names, vars(module)[_lightning.HOOK_NAME]) == (["on_train_start"], None)


def test_drop_anonymous(tmp_path):
    logger = L.pytorch.loggers.WandbLogger(save_dir=str(tmp_path), offline=True)
    assert "anonymous" in logger._wandb_init, "else the function may go"
    _lightning.drop_anonymous(logger)
    assert "anonymous" not in logger._wandb_init


# Parsers --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def own_resolver(monkeypatch):
    """jsonargparse as it is without zoo, until the end of the test."""
    own = inspect.unwrap(_typehints.resolve_class_path_by_name)
    monkeypatch.setattr(_typehints, "resolve_class_path_by_name", own)
    return own


def parse(name: str) -> str:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(torch.optim.Optimizer, "optimizer", skip={"params"})
    return parser.parse_args([f"--optimizer={name}", "--optimizer.lr=0.1"]).optimizer.class_path


def test_set_name_resolver(own_resolver):
    with pytest.raises(jsonargparse.ArgumentError, match="Multiple subclasses with name SGD"):
        parse("SGD")
    for ending in ("wrong", "SGD"):  # the second replaces the first
        assert _lightning.set_name_resolver(lambda own, cls, name, ending=ending: f"torch.optim.{ending}")
    assert parse("SGD") == "torch.optim.SGD"
    seen = []
    _lightning.set_name_resolver(lambda own, cls, name: seen.append((own, cls, name)) or own(cls, name))
    assert parse("Adam") == "torch.optim.Adam"
    assert (own_resolver, torch.optim.Optimizer, "Adam") in seen


def test_without_a_resolver_to_replace(monkeypatch, own_resolver):
    monkeypatch.delattr(_typehints, "resolve_class_path_by_name")
    assert not _lightning.set_name_resolver(lambda own, cls, name: name)


def test_subclass_paths():
    paths = _lightning.subclass_paths(torch.optim.Optimizer)
    assert {"torch.optim.SGD", f"{__name__}.SGD"} <= set(paths)


@pytest.fixture
def own_imports(monkeypatch):
    """jsonargparse's own functions, whatever a test puts in their place."""
    from jsonargparse import _actions, _loaders_dumpers, _typehints

    for module in (_actions, _typehints):
        original = getattr(module.import_object, "__wrapped__", module.import_object)
        monkeypatch.setattr(module, "import_object", original)
    loader = jsonargparse.get_loader("yaml")
    loader = getattr(loader, "__wrapped__", loader)
    monkeypatch.setattr(_loaders_dumpers, "yaml_load", loader)
    monkeypatch.setitem(_loaders_dumpers.loaders, "yaml", loader)


def test_set_import_gate(own_imports, monkeypatch):
    """Each way by which a value names something passes the gate; what stands in code does not."""
    seen = []

    class Refused(ImportError, ValueError):
        pass

    def gate(path):
        seen.append(path)
        raise Refused

    _lightning.set_import_gate(gate)
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--base", type=nn.Module)
    parser.add_argument("--function", type=Callable)
    parser.add_argument("--factory", type=Callable[[int], nn.Module])
    parser.add_argument("--kind", type=type[nn.Module])
    parser.add_argument("--anything", type=Any)
    for option in ("base", "function", "factory", "kind", "anything"):
        for value in ("a.b", {"class_path": "a.b"}):
            with suppress(jsonargparse.ArgumentError):
                parser.parse_object({option: value})
        assert seen[-1:] == ["a.b"] or option == "anything"
        seen.clear()
    with suppress(SystemExit, jsonargparse.ArgumentError):
        parser.parse_args(["--base.help", "a.b"])
    assert seen == ["a.b"]
    monkeypatch.delattr("jsonargparse._typehints.import_object")
    with pytest.raises(UserError, match="imports in a way that zoo cannot check"):
        _lightning.set_import_gate(gate)


def test_set_yaml_loader(own_imports):
    """For configs, and for text within them."""
    seen = []

    def wrap(load):
        def loader(text):
            seen.append(text)
            return load(text)

        return loader

    _lightning.set_yaml_loader(wrap)
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--numbers", type=list[int])
    parser.add_argument("--config", action="config")
    assert parser.parse_string("numbers: [1, 2]").numbers == [1, 2]
    assert parser.parse_object({"numbers": "[3, 4]"}).numbers == [3, 4]
    assert seen[0] == "numbers: [1, 2]"
    assert "[3, 4]" in seen


def test_share_long_lists(monkeypatch):
    copies = []

    class Word(str):
        def __deepcopy__(self, memo):
            copies.append(self)
            return self

    words = [Word(i) for i in range(100)]

    def parsed():
        copies.clear()
        parser = jsonargparse.ArgumentParser(exit_on_error=False)
        parser.add_argument("--words", type=list[str] | None)
        parser.add_argument("--more", type=list[dict[str, int]], default=[{"a": 1}])
        parser.set_defaults({"words": words})
        found = parser.parse_object({"words": words})
        assert found.words == words
        found.more[0]["a"] = 2
        assert parser.parse_object({}).more == [{"a": 1}], "whatever can be changed is copied"
        return len(copies)

    monkeypatch.setattr(_typehints, "deepcopy", copy.deepcopy)
    assert parsed() > len(words) ** 2, "as jsonargparse has it"
    assert _lightning.share_long_lists()
    assert parsed() < 20 * len(words)
    monkeypatch.delattr(_typehints, "deepcopy")
    assert not _lightning.share_long_lists()


def test_the_command_line_replaces_no_private_method():
    theirs = {name for name in dir(LightningCLI) if name.startswith("_") and not name.startswith("__")}
    assert len(theirs) > 10
    assert not theirs & set(vars(ZooCLI))


# torch ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "name", "layers", "other"),
    [
        (_torch.LOSS, "_Loss", [nn.CrossEntropyLoss, nn.MSELoss, nn.CTCLoss, nn.TripletMarginLoss], nn.Linear),
        (_torch.DROPOUT, "_DropoutNd", [nn.Dropout, nn.Dropout2d, nn.AlphaDropout], nn.RReLU),
        (_torch.BATCH_NORM, "_BatchNorm", [nn.BatchNorm1d, nn.BatchNorm3d, nn.SyncBatchNorm], nn.InstanceNorm1d),
        (_torch.INSTANCE_NORM, "_InstanceNorm", [nn.InstanceNorm1d, nn.InstanceNorm3d], nn.BatchNorm1d),
    ],
)
def test_bases_without_a_name(base, name, layers, other):
    assert base.__name__ == name
    assert all(issubclass(layer, base) for layer in layers)
    assert not issubclass(other, base)


def test_buffers():
    module = nn.BatchNorm1d(2)
    _torch.buffers(module)["running_mean"] = torch.ones(2)
    assert module.running_mean.tolist() == [1, 1]
    assert set(_torch.buffers(module)) == set(dict(module.named_buffers()))


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_has_forward_hooks(register):
    module = nn.ReLU()
    assert not _torch.has_forward_hooks(module)
    handle = getattr(module, register)(lambda *args: None)
    assert _torch.has_forward_hooks(module)
    handle.remove()
    assert not _torch.has_forward_hooks(module)


def test_conv_forward():
    conv = nn.Conv2d(2, 3, 3, stride=2, padding=1, padding_mode="circular", bias=False)
    x = torch.randn(1, 2, 5, 5)
    assert torch.equal(_torch.conv_forward(conv, x, conv.weight), conv(x))


def test_uncompile():
    module = nn.Linear(1, 1)

    def refuses(*args):
        raise AssertionError("compiled")

    module.compile(backend=refuses)
    assert any(value is not None for name, value in vars(module).items() if "compiled" in name)
    _torch.uncompile(module)
    assert module(torch.ones(1)).shape == (1,)


def test_has_bfloat16_products():
    assert isinstance(torch.ops.mkldnn._is_mkldnn_bf16_supported(), bool)
    assert _torch.has_bfloat16_products() in ((True, False) if torch.backends.mkldnn.is_available() else (False,))


def test_forget_iterator():
    workers = DataLoader(torch.arange(4), num_workers=1, persistent_workers=True)
    first = iter(workers)
    assert iter(workers) is first, "rewound"
    _torch.forget_iterator(workers)
    assert iter(workers) is not first
    _torch.forget_iterator(object.__new__(type("Loader", (), {})))


def test_leave_unscaling_to_scaler():
    from lightning.pytorch.plugins import MixedPrecision

    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(1))], fused=True)
    precision = MixedPrecision("16-mixed", "cuda", scaler=torch.amp.GradScaler("cpu"))
    with pytest.raises(RuntimeError, match="does not allow for gradient clipping"):
        precision.clip_gradients(optimizer, 1.0)
    _torch.leave_unscaling_to_scaler(optimizer)
    precision.clip_gradients(optimizer, 1.0)


def schedules():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    first = lr_scheduler.LinearLR(optimizer, 0.5, total_iters=2)
    second = lr_scheduler.StepLR(optimizer, 1)
    return optimizer, first, second


def test_inner_schedules():
    optimizer, first, second = schedules()
    assert _torch.inner_schedules(lr_scheduler.ChainedScheduler([first, second])) == [first, second]
    assert _torch.inner_schedules(lr_scheduler.SequentialLR(optimizer, [first, second], [2])) == [first, second]
    assert _torch.inner_schedules(first) == []


def test_repeat_first_step_and_note_rates():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    schedule = lr_scheduler.LinearLR(optimizer, 0.5, total_iters=2)
    assert optimizer.param_groups[0]["lr"] == 0.5
    optimizer.param_groups[0]["lr"] = 4.0
    _torch.repeat_first_step(schedule)
    assert (optimizer.param_groups[0]["lr"], schedule.last_epoch) == (2.0, 0)
    optimizer.param_groups[0]["lr"] = 3.0
    _torch.note_rates(schedule)
    assert schedule.get_last_lr() == [3.0]


def test_trees():
    tree = {"image": [torch.ones(1), None], "text": ("a",)}
    assert [type(leaf).__name__ for leaf in _torch.leaves(tree)] == ["Tensor", "NoneType", "str"]
    assert [name for name, _ in _torch.named_leaves(tree)] == ["['image'][0]", "['image'][1]", "['text'][0]"]
    doubled = _torch.map_tensors(lambda x: x * 2, tree)
    assert (doubled["image"][0].item(), doubled["text"]) == (2, ("a",))


def test_sparse_values():
    twice = torch.sparse_coo_tensor(torch.tensor([[0, 0]]), torch.tensor([1.0, 2.0]), (3,))
    assert _torch.sparse_values(twice).tolist() == [1, 2]


def test_storage_key():
    x = torch.ones(4)
    assert _torch.storage_key(x) == _torch.storage_key(x[1:]) == _torch.storage_key(x.view(2, 2))
    assert _torch.storage_key(x) != _torch.storage_key(x.clone())


def test_an_operation_under_watch():
    """The node that a forward operation made is the one that runs backward, and is found by its number."""
    seen: dict[str, list] = {"forward": [], "backward": []}

    class Watch(_torch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            node = _torch.current_backward_node()
            if node is None:
                seen["forward"].append((func.overloadpacket.__name__, _torch.last_sequence_number()))
            else:
                seen["backward"].append(_torch.sequence_number(node))
            return func(*args, **(kwargs or {}))

    x = torch.ones(1, requires_grad=True)
    with Watch():
        y = x.exp()
        y.backward()
    assert ("exp", _torch.sequence_number(y.grad_fn)) in seen["forward"]
    assert _torch.sequence_number(y.grad_fn) in seen["backward"]


def test_changes_inputs():
    aten = torch.ops.aten
    assert _torch.changes_inputs(aten.add_.Tensor)
    assert _torch.changes_inputs(aten.add.out)
    assert not _torch.changes_inputs(aten.add.Tensor)


# Versions that were not tested ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("package", "version", "tested"),
    [
        ("lightning", "2.6.6", True),
        ("lightning", "2.6.9.post0", True),
        ("lightning", "2.7.0", False),
        ("lightning", "2.7.0rc1", False),
        ("lightning", "3.0", False),
        ("jsonargparse", "4.52.0", True),
        ("jsonargparse", "4.53.0", True),
        ("jsonargparse", "4.54.0", False),
        ("jsonargparse", "5.0.0", False),
    ],
)
def test_untested(package, version, tested, monkeypatch):
    monkeypatch.setattr(sys.modules[package], "__version__", version)
    said = _lightning.untested(package)
    assert said is None if tested else f"{package} {version} is not among the tested versions" in said


@pytest.mark.parametrize("package", _lightning.TESTED)
def test_the_lowest_version_that_installs_is_tested(package, monkeypatch):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (needed,) = (r for r in map(Requirement, project["dependencies"]) if r.name == package)
    (lowest,) = (part.version for part in needed.specifier if part.operator == ">=")
    monkeypatch.setattr(sys.modules[package], "__version__", lowest)
    assert _lightning.untested(package) is None


FIT = ("fit", "-c", "configs/mlp_digits.yaml", "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "3")


def weights(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_an_untested_lightning_trains_with_its_own_loop(zoo, here, monkeypatch):
    code, out, _ = zoo(*FIT, "--run_dir", "tested")
    assert (code, out.count("training loop: ")) == (0, 1)
    assert "training loop: zoo's fast loop\n" in out
    monkeypatch.setattr(L, "__version__", "2.7.0")
    monkeypatch.setitem(sys.modules, "zoo.runs.fast_epoch_loop", None)  # so that it cannot be imported
    code, out, _ = zoo(*FIT, "--run_dir", "untested")
    assert (code, out.count("training loop: ")) == (0, 1)
    tested = _lightning.TESTED["lightning"]
    assert f"training loop: Lightning's own (lightning 2.7.0 is not among the tested versions, {tested})\n" in out
    ours, theirs = weights(here / "tested"), weights(here / "untested")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_why_the_fast_loop_is_not_used_is_said(zoo):
    code, out, _ = zoo(*FIT, "--trainer.accumulate_grad_batches", "2")
    assert (code, out.count("training loop: ")) == (0, 1)
    assert "training loop: Lightning's own (accumulate_grad_batches 2)\n" in out


def test_an_untested_jsonargparse_goes_on_with_its_own_resolver(zoo, here, monkeypatch, own_resolver):
    config = (ROOT / "configs" / "mlp_digits.yaml").read_text()
    assert "class_path: MLPClassifier" in config
    # Its full path: another test file defines a class of that name, too.
    (here / "mlp.yaml").write_text(config.replace("MLPClassifier", "zoo.models.MLPClassifier"))
    fit = ("fit", "-c", "mlp.yaml", *FIT[3:])
    ambiguous = (*fit, "--model.optimizer", "SGD")
    code, _, err = zoo(*ambiguous)
    assert (code, err) == (0, ""), "torch's, whatever else is imported"
    monkeypatch.setattr(_typehints, "resolve_class_path_by_name", own_resolver)
    monkeypatch.setattr(jsonargparse, "__version__", "4.99.0")
    line = (
        f"zoo: jsonargparse 4.99.0 is not among the tested versions, {_lightning.TESTED['jsonargparse']}: "
        "a class name that several packages have needs its full path\n"
    )
    assert zoo(*fit)[::2] == (0, line)
    assert _typehints.resolve_class_path_by_name is own_resolver
    code, _, err = zoo(*ambiguous)
    assert code == 2
    assert err.startswith(line)
    assert "SGD is the name of several classes" in err.removeprefix(line)
    assert zoo(*fit, "--model.optimizer", "torch.optim.SGD")[0] == 0
