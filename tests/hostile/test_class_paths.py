"""Class paths: only classes of the packages that zoo names are built, whoever names them and wherever."""

import inspect
import re

import pytest
import torch
import yaml

import zoo.data
import zoo.models
import zoo.tasks
from zoo.catalog.components import KINDS, Catalog
from zoo.checkpoints import Checkpoint
from zoo.cli.parser import ZooParser, allow_imports
from zoo.errors import UserError
from zoo.trust import class_paths
from zoo.trust.allowed_classes import accepted_class_paths, bases_of
from zoo.trust.class_paths import RefusedClassPath, resolve

# Functions and classes of the allowed packages that run text, read pickles, import, start processes, write or delete
# files; names that lead elsewhere; and names of nothing.
NAMES = """
    builtins.eval builtins.exec builtins.open os.system posix.system subprocess.Popen pickle.loads
    shutil.rmtree torch.load torch.save torch.compile torch.Tensor torch.hub.load
    torch.hub.load_state_dict_from_url torch.fx.graph_module.reduce_graph_module
    torch.fx.graph_module.GraphModule torch.fx.GraphModule torch.fx.graph_module._exec_with_source
    torch.jit.load torch.jit._script.RecursiveScriptModule torch.jit.script torch.package.PackageImporter
    torch.package.PackageExporter torch.serialization.load torch.export.load torch.onnx.export
    torch.distributed.launch torch.distributed.run.main torch.distributed.init_process_group
    torch.distributed.checkpoint.FileSystemReader torch.utils.cpp_extension.load_inline
    torch.utils.cpp_extension.load torch.utils.data.datapipes.utils.common.StreamWrapper
    torch.utils.collect_env.run torch.utils.bundled_inputs.augment_model_with_bundled_inputs
    torch.utils.model_zoo.load_url torch._dynamo.debug_utils.BuckTargetWriter
    torch._inductor.codecache.PyCodeCache torch._inductor.utils.run_and_get_code torch.multiprocessing.spawn
    torch.nn.DataParallel torch.nn.parallel.DistributedDataParallel
    torch.nn.parallel.data_parallel.DataParallel torch.nn.utils.parametrize.ParametrizationList
    torch.nn.utils.parametrize.register_parametrization torch.nn.modules.lazy.LazyModuleMixin
    torch.nn.Embedding.from_pretrained torch.nn.Module.register_forward_hook torch.nn.init.normal_
    torch.nn.functional.handle_torch_function torch.nn.functional.torch torch.optim.sys
    torch.optim.lr_scheduler.types torch.ops.load_library torch.classes.load_library
    torchvision.datasets.FakeData torchvision.datasets.CIFAR10 torchvision.datasets.DatasetFolder
    torchvision.models.resnet18 torchvision.models.get_model
    torchvision.models.feature_extraction.DualGraphModule
    torchvision.models.feature_extraction.create_feature_extractor torchvision.io.write_file
    torchvision.io.read_image torchmetrics.image.fid.FrechetInceptionDistance
    torchmetrics.image.fid.NoTrainInceptionV3 torchmetrics.functional.image.dists.DISTSNetwork
    torchmetrics.text.bert.BERTScore torchmetrics.text.infolm.InfoLM torchmetrics.multimodal.CLIPScore
    lightning.Trainer lightning.Fabric lightning.pytorch.cli.LightningCLI
    lightning.pytorch.cli.instantiate_class lightning.fabric.utilities.load._lazy_load
    lightning.fabric.utilities.cloud_io._load lightning.pytorch.core.saving.load_hparams_from_yaml
    lightning.pytorch.strategies.DeepSpeedStrategy
    lightning.pytorch.strategies.launchers._SubprocessScriptLauncher
    lightning.fabric.plugins.io.torch_io.get_filesystem lightning.pytorch.LightningModule.load_from_checkpoint
    lightning.pytorch.loggers.os lightning.pytorch.callbacks.model_checkpoint.shutil.rmtree
    lightning.pytorch.plugins.io.XLACheckpointIO zoo.__main__.main zoo.cli.main.main zoo.cli.main
    zoo.checkpoints.Checkpoint zoo.checkpoints.read_tensors zoo.files.write_text zoo.weights.fetch
    zoo.weights.read zoo._lightning.leave_fit zoo.runs.loggers.MetricsCSV zoo.models.mlp.torch.load
    zoo.models.mlp.nn zoo.data.images.cifar.read_pickle zoo.data.images.cifar.pickle.loads
    zoo.models.MLP.from_pretrained zoo.models.GPTLanguageModel.load_from_checkpoint zoo.layers.build
    zoo.models.nothing.Net zoo.data.base.Dataset zoo.text.Tokenizer zoo.models.resnet.Any typing.Any
    pytorch_lightning.Trainer
"""
GADGETS = NAMES.split()


def test_there_are_enough_gadgets():
    assert len(GADGETS) > 80


@pytest.mark.parametrize("origin", ["config", "checkpoint"])
@pytest.mark.parametrize("path", GADGETS)
def test_gadget_is_refused(path, origin):
    with pytest.raises((RefusedClassPath, ImportError, AttributeError)):
        resolve(path, origin)


def test_every_accepted_class_path_is_a_class_of_a_named_base():
    """And none has an argument for a file that was not looked at: see ``REVIEWED``."""
    seen = set()
    for path, cls, entry in accepted_class_paths():
        assert resolve(path) is cls
        assert inspect.isclass(cls)
        assert issubclass(cls, bases_of(entry))
        assert not cls.__name__.startswith("_")
        assert not any(part in class_paths.REFUSED for part in (path, f"{cls.__module__}.{cls.__qualname__}"))
        if not entry.in_checkpoint:
            with pytest.raises(RefusedClassPath):
                resolve(path, "checkpoint")
        seen.add(cls)
    assert len(seen) > 800
    unknown = {argument for cls in seen for argument in arguments_with_files(cls)} - REVIEWED
    assert not unknown, "what do these do with the file that they are given?"


# Arguments of accepted classes that sound like files. Those of the data are read as text, tables, images and plain
# tensors; ``cache_dir``, ``download`` and ``teacher_checkpoint`` are not taken over from a checkpoint; loggers,
# callbacks and profilers, which a checkpoint cannot name, write where the user says.
REVIEWED = {
    "path", "val_path", "test_path", "file", "predict_file", "cache_dir", "root", "teacher_checkpoint", "weights",
    "dirpath", "filename", "save_dir", "sub_dir", "dir", "add_file_policy", "exclude_batches_path", "profiler_kwargs",
    "lr_scheduler_file",
}  # fmt: skip


def arguments_with_files(cls: type) -> set[str]:
    try:
        names = inspect.signature(cls).parameters
    except (TypeError, ValueError):
        return set()
    return {name for name in names if re.search(r"path|file|dir$|url|command|script$|root|teacher_checkpoint", name)}


def test_what_zoo_lists_and_its_configs_name_is_accepted():
    catalog = Catalog()
    for kind in KINDS.values():
        if kind in ("helper", "config"):
            continue
        for component in catalog.components(kind):
            found = getattr(__import__(component.module, fromlist=["x"]), component.name)
            if inspect.isclass(found) and component.kind != "helper":
                assert resolve(f"{component.module}.{component.name}") is found


# Slots of a config ----------------------------------------------------------------------------------------------------

CODE = {"body": {"_code": "open('ran', 'w').close()\ndef forward(self): pass\n"}, "import_block": ""}
RUN_TEXT = {"class_path": "torch.fx.graph_module.reduce_graph_module", "init_args": CODE}
LOAD = {"class_path": "torch.load", "init_args": {"f": "evil.pt", "weights_only": False}}
NET = {"class_path": "zoo.models.MLP", "init_args": {"input_dim": 64, "hidden": [4], "output_dim": 10}}
VECTORS = "torch.nn.TripletMarginWithDistanceLoss"
LAYER = "torch.nn.TransformerEncoderLayer"
LAMBDA = "lightning.pytorch.callbacks.LambdaCallback"


def within(class_path, argument, **others):
    return lambda gadget: {"class_path": class_path, "init_args": {**others, argument: gadget}}


# Where a config takes a class or a function, at any depth: the key, and what stands there around the gadget.
SLOTS = {
    "the model": ("model", lambda gadget: gadget),
    "the data": ("data", lambda gadget: gadget),
    "the network": ("model.net", lambda gadget: gadget),
    "the loss": ("model.loss", lambda gadget: gadget),
    "the optimizer": ("model.optimizer", lambda gadget: gadget),
    "the schedule": ("model.lr_scheduler", lambda gadget: gadget),
    "a rule": ("model.param_groups", lambda gadget: [gadget]),
    "the optimizer of a rule": ("model.param_groups", lambda gadget: [{"params": ".*", "optimizer": gadget}]),
    "an initialization": ("model.init", lambda gadget: [gadget]),
    "an adapter": ("model.adapters", lambda gadget: [gadget]),
    "an augmentation": ("data.augment", lambda gadget: [gadget]),
    "a callback": ("trainer.callbacks", lambda gadget: [gadget]),
    "a logger": ("trainer.logger", lambda gadget: gadget),
    "a strategy": ("trainer.strategy", lambda gadget: gadget),
    "a plugin": ("trainer.plugins", lambda gadget: [gadget]),
    "a profiler": ("trainer.profiler", lambda gadget: gadget),
    "an accelerator": ("trainer.accelerator", lambda gadget: gadget),
    "a slot of callbacks": ("ema", lambda gadget: gadget),
    "the checkpoint callback": ("checkpoint", lambda gadget: gadget),
    "a distance in a loss": ("model.loss", within(VECTORS, "distance_function")),
    "an activation in a layer": ("model.net", within(LAYER, "activation", d_model=8, nhead=2)),
    "a layer in a stack": ("model.net", lambda gadget: {"class_path": "zoo.layers.Stack",
                                                        "init_args": {"layers": [gadget]}}),
    "a function of a schedule": ("model.lr_scheduler", within("torch.optim.lr_scheduler.LambdaLR", "lr_lambda")),
    "a hook": ("trainer.callbacks", lambda gadget: [within(LAMBDA, "on_train_start")(gadget)]),
    "a pruning function": ("trainer.callbacks", lambda gadget: [
        within("lightning.pytorch.callbacks.ModelPruning", "pruning_fn")(gadget)]),
    "a policy of a strategy": ("trainer.strategy", within("lightning.pytorch.strategies.FSDPStrategy",
                                                           "auto_wrap_policy")),
    "a communication hook": ("trainer.strategy", within("lightning.pytorch.strategies.DDPStrategy", "ddp_comm_hook")),
    "checkpoint files of a strategy": ("trainer.strategy", within("lightning.pytorch.strategies.DDPStrategy",
                                                                   "checkpoint_io")),
    "a transform's function": ("data.augment", lambda gadget: [
        within("torchvision.transforms.v2.Lambda", "lambd")(gadget)]),
}  # fmt: skip


@pytest.fixture
def config(tmp_path, runs):
    torch.save(runs, "evil.pt", pickle_protocol=2)

    def write(key: str, value: object) -> str:
        model = {"class_path": "zoo.tasks.Classifier", "init_args": {"num_classes": 10, "net": NET}}
        content = {"model": model, "data": {"class_path": "zoo.data.Digits", "init_args": {"flat": True}},
                   "trainer": {"max_steps": 1, "limit_val_batches": 0, "accelerator": "cpu"}}  # fmt: skip
        section, _, argument = key.partition(".")
        if not argument:
            content[section] = value
        elif section == "trainer":
            content[section][argument] = value
        else:
            content[section]["init_args"][argument] = value
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
        return "c.yaml"

    return write


@pytest.mark.parametrize("slot", SLOTS)
def test_no_slot_of_a_config_runs_a_gadget(slot, config, refused):
    key, around = SLOTS[slot]
    for gadget in (RUN_TEXT, "os.getcwd"):
        refused("fit", "-c", config(key, around(gadget)))


def test_what_is_listed_is_still_called():
    allow_imports()
    parser = ZooParser(exit_on_error=False)
    parser.add_argument("--loss", type=torch.nn.Module)
    near = within(VECTORS, "distance_function")("torch.nn.functional.pairwise_distance")
    loss = parser.instantiate_classes(parser.parse_object({"loss": near}))["loss"]
    assert loss.distance_function is torch.nn.functional.pairwise_distance
    assert "torch.nn.functional.pairwise_distance" in parser.dump(parser.parse_object({"loss": near}))


def test_option_runs_no_gadget(refused):
    argv = ("fit", "--model", "MLPClassifier", "--data", "Digits")
    for option in ("--model.optimizer", "--model.lr_scheduler", "--model.loss", "--trainer.callbacks+", "--ema"):
        for gadget in ("torch.load", "subprocess.Popen", "torch.fx.graph_module.reduce_graph_module"):
            assert gadget in refused(*argv, option, gadget)


def test_help_runs_no_gadget(refused):
    assert "torch.jit.load" in refused("fit", "--model.help", "torch.jit.load")


# Checkpoints ----------------------------------------------------------------------------------------------------------

CLASSIFIER = {"_class_path": "zoo.tasks.Classifier", "num_classes": 10}
# Hyperparameters of the model, what they replace and what the error has to name.
MODELS = {
    "a function as network": ({**CLASSIFIER, "net": RUN_TEXT}, "model.net"),
    "a function by its name alone": ({**CLASSIFIER, "net": RUN_TEXT["class_path"]}, "model.net"),
    "a function as loss": ({**CLASSIFIER, "net": NET, "loss": LOAD}, "model.loss"),
    "a function as model": ({**RUN_TEXT["init_args"], "_class_path": RUN_TEXT["class_path"]}, "model"),
    "a function in a list": ({**CLASSIFIER, "net": SLOTS["a layer in a stack"][1](RUN_TEXT)}, "model.net.layers"),
    "a function in a loss": ({**CLASSIFIER, "net": NET, "loss": within(VECTORS, "distance_function")("torch.load")},
                             "model.loss.distance_function"),
    "an optimizer": ({**CLASSIFIER, "net": NET, "optimizer": {"class_path": "torch.optim.SGD"}}, "model.optimizer"),
    "a schedule": ({**CLASSIFIER, "net": NET, "lr_scheduler": "zoo.optim.Constant"}, "model.lr_scheduler"),
    "groups": ({**CLASSIFIER, "net": NET, "param_groups": [{"params": "x"}]}, "model.param_groups"),
    "a callback": ({**CLASSIFIER, "net": {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint"}}, "model.net"),
    "a metric with a file": ({**CLASSIFIER, "net": {"class_path": "zoo.metrics.InceptionFeatures",
                                                    "init_args": {"path": "evil.pt"}}}, "model.net"),
    "other weights": ({"_class_path": "zoo.models.ResNetClassifier", "weights": "evil.pt"}, "model.weights"),
    "an autoencoder's file": ({"_class_path": "zoo.models.LatentDiffusion", "autoencoder": "evil.ckpt"},
                              "model.autoencoder"),
    "another instantiator": ({**CLASSIFIER, "net": NET, "_instantiator": "os.system"}, "model"),
    "no text as class path": ({"_class_path": ["zoo.models.MLPClassifier"]}, "model"),
    "a class that is no model": ({"_class_path": "zoo.models.MLP"}, "model"),
    "a class that is not there": ({"_class_path": "zoo.models.NoSuchClass"}, "model"),
    "a path with a line break": ({"_class_path": "zoo.models\nX"}, "model"),
    "a package nobody allowed": ({**CLASSIFIER, "net": {"class_path": "antigravity.Net"}}, "model.net"),
    "a list": ([1, 2], "model"),
    "a text": ("text", "model"),
    "numbers as names": ({1: 2, "_class_path": "zoo.models.MLPClassifier"}, "model"),
}  # fmt: skip


@pytest.mark.parametrize("case", MODELS)
def test_hyperparameters_of_a_model_are_refused(case, good, runs):
    hyperparameters, where = MODELS[case]
    torch.save(runs, "evil.pt")
    torch.save({**good, "hyper_parameters": hyperparameters}, "a.ckpt")
    with pytest.raises(UserError, match=rf"^a\.ckpt: {re.escape(where)}: "):
        Checkpoint("a.ckpt").build()
    with pytest.raises(UserError, match=rf"^a\.ckpt: {re.escape(where)}: "):
        zoo.tasks.Task.load_from_checkpoint("a.ckpt")
    with open("a.ckpt", "rb") as file, pytest.raises(UserError):
        zoo.tasks.Task.load_from_checkpoint(file)


@pytest.mark.parametrize("command", ["test", "validate", "predict", "export", "fit", "generate", "sample"])
def test_no_command_runs_what_a_checkpoint_names(command, good, refused):
    for hyperparameters in (MODELS["a function as network"][0], {**good["hyper_parameters"], "loss": RUN_TEXT}):
        torch.save({**good, "hyper_parameters": hyperparameters}, "a.ckpt")
        more = {"predict": ["--out", "p.csv"], "export": ["--out", "folder"], "generate": ["--prompt", "a"],
                "sample": ["--out", "images"]}  # fmt: skip
        assert "reduce_graph_module" in refused(command, "--ckpt_path", "a.ckpt", *more.get(command, ()))


@pytest.mark.parametrize(
    "hyperparameters",
    [
        {"_class_path": "torch.load", "f": "evil.pt"},
        {"_class_path": "zoo.data.Digits", "augment": [RUN_TEXT]},
        {"_class_path": "zoo.data.Latents", "data": {"class_path": "torch.load", "init_args": {"f": "evil.pt"}}},
        {"_class_path": "zoo.models.MLPClassifier"},
    ],
)
def test_hyperparameters_of_data_are_refused(hyperparameters, good, refused):
    torch.save({**good, "datamodule_hyper_parameters": hyperparameters}, "a.ckpt")
    assert "data" in refused("test", "--ckpt_path", "a.ckpt")
    with pytest.raises(UserError):
        zoo.data.Digits.load_from_checkpoint("a.ckpt")


def test_a_checkpoint_names_no_place_to_write_to_and_downloads_nothing(good, nothing_happens):
    arguments = {"_class_path": "zoo.data.CIFAR10", "download": True, "root": str(nothing_happens)}
    torch.save({**good, "datamodule_hyper_parameters": arguments}, "a.ckpt")
    assert Checkpoint("a.ckpt").hyperparameters["data"]["init_args"]["download"] is False
    arguments = {"_class_path": "zoo.data.ImageFolder", "train": "x", "cache_dir": str(nothing_happens)}
    torch.save({**good, "datamodule_hyper_parameters": arguments}, "a.ckpt")
    assert Checkpoint("a.ckpt").hyperparameters["data"]["init_args"]["cache_dir"] is None


def test_a_checkpoint_names_no_second_checkpoint(good, capsys):
    student = {
        "_class_path": "zoo.tasks.Distiller",
        "net": NET,
        "num_classes": 10,
        "teacher_checkpoint": "evil.ckpt",
        "_instantiator": "lightning.pytorch.cli.instantiate_module",
    }
    state = zoo.tasks.Distiller(zoo.models.MLP(64, [4], 10), zoo.models.MLP(64, [4], 10), num_classes=10).state_dict()
    torch.save({**good, "hyper_parameters": student, "state_dict": state}, "a.ckpt")
    torch.save(good, "evil.ckpt")
    loaded = zoo.tasks.Distiller.load_from_checkpoint("a.ckpt")
    loaded.setup("predict")  # which needs no teacher
    with pytest.raises(UserError, match=r"give --model\.teacher_checkpoint FILE; this one was trained with evil\.ckpt"):
        loaded.setup("fit")
    loaded.setup("test")
    assert "a checkpoint may not name its teacher" in capsys.readouterr().err
    batch = (torch.randn(5, 64), torch.arange(5))
    expected = torch.nn.functional.cross_entropy(loaded(batch[0]), batch[1])
    assert torch.equal(loaded.step(batch, "test"), expected)


def test_url_is_refused(refused):
    for url in ("https://example.org/a.ckpt", "file:///tmp/a.ckpt", "s3://bucket/a.ckpt"):
        assert "is a URL" in refused("test", "--ckpt_path", url)
        with pytest.raises(UserError, match="is a URL"):
            zoo.models.MLPClassifier.load_from_checkpoint(url)


# The user's own folder ------------------------------------------------------------------------------------------------

OWN = """
import subprocess
from torch import nn

class Net(nn.Module):
    pass

def clean_up(*args):
    open("ran", "w").close()
"""


def test_own_module_is_run_for_a_class_that_it_defines_and_not_otherwise(tmp_path, good, refused, monkeypatch):
    (tmp_path / "own_net.py").write_text(OWN)
    (tmp_path / "own_script.py").write_text("open('ran', 'w').close()")
    for path in ("own_script.Net", "own_net.clean_up", "own_net.subprocess", "own_net.Net.forward"):
        for net in (path, {"class_path": path}):
            torch.save({**good, "hyper_parameters": {**CLASSIFIER, "net": net}}, "a.ckpt")
            refused("test", "--ckpt_path", "a.ckpt")
    refused("fit", "--model", "own_script.Net", "--data", "Digits")
    allowed = class_paths.allow_in_process()
    assert resolve("own_net.Net", "checkpoint", allowed).__name__ == "Net"
    assert callable(resolve("own_net.clean_up", "config", allowed))


def test_class_that_is_only_passed_on_counts_by_where_it_is_from(tmp_path):
    (tmp_path / "own_aliases.py").write_text("from subprocess import Popen\nfrom torch.nn import Linear\n")
    allowed = class_paths.allow_in_process()
    assert resolve("own_aliases.Linear", "config", allowed) is torch.nn.Linear
    with pytest.raises(RefusedClassPath, match=r"is subprocess\.Popen, outside"):
        resolve("own_aliases.Popen", "config", allowed)


def test_allowed_package_may_be_a_part_of_a_framework():
    assert resolve("torchvision.datasets.FakeData", "config", class_paths.Allowed(("torchvision.datasets",)))
