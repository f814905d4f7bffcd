"""Checkpoints: those of an older zoo in every command, EMA or raw weights, and what cannot be opened."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import zoo.callbacks
import zoo.data
import zoo.models
import zoo.optim
import zoo.tasks
from zoo.checkpoints import FORMAT, FORMAT_KEY, Checkpoint, renames, upgrade
from zoo.data import Digits
from zoo.errors import UserError

GOLDEN = Path(__file__).parent / "golden"
FAMILIES = sorted(path.stem for path in GOLDEN.glob("*.ckpt"))
QUIET = ["--trainer.enable_progress_bar", "false"]


@pytest.fixture
def golden(tmp_path: Path):
    """A copy of a golden checkpoint, as commands write beside what they read."""

    def copy(name: str) -> Path:
        return Path(shutil.copy(GOLDEN / f"{name}.ckpt", tmp_path))

    return copy


# Checkpoints of an older zoo ------------------------------------------------------------------------------------------


def test_every_family_has_its_metrics():
    assert len(FAMILIES) >= 24
    for name in FAMILIES:
        assert json.loads((GOLDEN / f"{name}.json").read_text())


@pytest.mark.parametrize("name", FAMILIES)
def test_old_checkpoint_has_its_metrics(name, golden, zoo):
    limit = ["--trainer.limit_test_batches", 1] if name == "seq2seq" else []
    code, out, err = zoo("test", "--ckpt_path", golden(name), "--plots", "false", *limit, *QUIET)
    assert code == 0, err
    metrics = {key: float(value) for key, value in re.findall(r"^\s+(test/\S+)\s+(\S+)$", out, re.MULTILINE)}
    assert metrics == pytest.approx(json.loads((GOLDEN / f"{name}.json").read_text()), abs=1e-3)


@pytest.mark.parametrize("name", FAMILIES)
def test_old_checkpoint_loads_in_python(name):
    """By Lightning's ``load_from_checkpoint`` of the class, with the weights that ``build`` gives."""
    path = GOLDEN / f"{name}.ckpt"
    checkpoint = Checkpoint(path)
    built = checkpoint.build()
    loaded = type(built).load_from_checkpoint(path)
    expected = checkpoint.state_dict()
    for model in (built, loaded):
        state = model.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[key], expected[key]) for key in state)
    assert not built.training
    assert checkpoint.metadata[FORMAT_KEY] == FORMAT


def test_old_data_loads_in_python():
    data = Digits.load_from_checkpoint(GOLDEN / "mlp.ckpt")
    assert (data.hparams.val_split, data.hparams.test_split) == (0.2, 0.3)
    assert "val_share" not in data.hparams


@pytest.mark.parametrize("name", FAMILIES)
def test_old_checkpoint_is_exported(name, golden, zoo):
    path = golden(name)
    out = path.with_suffix(".safetensors")
    code, _, err = zoo("export", "--ckpt_path", path, "--out", out)
    assert code == 0, err
    written = load_file(out)
    expected = Checkpoint(path).state_dict()
    assert written
    for key, tensor in written.items():
        assert torch.equal(tensor, expected.get(f"net.{key}", expected.get(key)))


@pytest.mark.parametrize("name", ["gpt", "llama"])
def test_old_language_model_generates(name, golden, zoo):
    code, out, err = zoo("generate", "--ckpt_path", golden(name), "--prompt", "def", "--max_new_tokens", 4)
    assert code == 0, err
    assert out.startswith("def")


def test_old_diffusion_model_samples(golden, zoo, here):
    code, _, err = zoo("sample", "--ckpt_path", golden("diffusion"), "--n", 2, "--steps", 2, "--out", "pictures")
    assert code == 0, err
    assert len(list(Path("pictures").glob("*.png"))) == 3, "two and the grid"


@pytest.mark.parametrize("name", ["mlp", "bert_ner", "seq2seq", "forecaster", "tabular"])
def test_old_checkpoint_predicts(name, golden, zoo):
    path = golden("mlp_regressor" if name == "tabular" else name)
    code, _, err = zoo("predict", "--ckpt_path", path, "--out", "predictions.jsonl", *QUIET)
    assert code == 0, err
    rows = Path("predictions.jsonl").read_text().splitlines()
    assert rows
    assert all(json.loads(row) for row in rows)


def test_old_run_is_resumed(zoo, here):
    """With EMA, parameter groups, gradient diagnostics and image samples, whose options and states have new names."""
    run = Path(shutil.copytree(GOLDEN / "run", here / "run"))
    old = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    metrics = (run / "metrics.csv").read_text()
    code, _, err = zoo("fit", "--resume", "run", "--trainer.max_epochs", 2)
    assert code == 0, err
    assert "callbacks used to create the checkpoint" not in err
    new = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert new["global_step"] == 2 * old["global_step"]
    assert new[FORMAT_KEY] == FORMAT
    states = new["callbacks"]
    assert states["ImageSamples"]["validations"] == old["callbacks"]["SampleGrid"]["seen"] + 1
    assert states["EMA"]["updates"] == 2 * old["callbacks"]["EMA"]["updates"]
    steps = old["callbacks"]["GradientDiagnostics"]["steps"]
    assert states["GradientDiagnostics"]["steps"][: len(steps)] == steps
    assert "BestAndLast" in states
    scales = [group["lr_scale"] for group in new["optimizer_states"][0]["param_groups"]]
    assert scales == [group["lr_scale"] for group in old["optimizer_states"][0]["param_groups"]]
    environment = json.loads((run / "environment.json").read_text())
    assert environment["changes"].keys() == {"trainer.max_epochs"}, "renames are no changes of the user's"
    rows = (run / "metrics.csv").read_text().splitlines()
    assert len(rows) > len(metrics.splitlines())


def test_upgrading_twice_changes_nothing():
    for path in [*GOLDEN.glob("*.ckpt"), *GOLDEN.glob("run/checkpoints/*.ckpt")]:
        once = Checkpoint(path).metadata
        again = {key: value for key, value in once.items() if key != FORMAT_KEY}
        upgrade(again)
        assert list(again) == list(once)
        for key in ("hyper_parameters", "datamodule_hyper_parameters", "callbacks"):
            assert str(again.get(key)) == str(once.get(key))


@pytest.mark.parametrize("old", [path for path in renames.MODULES if path.count(".") > 1])
def test_moved_module_is_where_the_table_says(old):
    __import__(renames.MODULES[old])


def public_classes() -> dict[str, type]:
    packages = (zoo.models, zoo.tasks, zoo.data, zoo.callbacks, zoo.optim, zoo.losses, zoo.layers)
    classes = {}
    for package in packages:
        for name in package.__all__:
            if isinstance(getattr(package, name), type):
                classes[name] = getattr(package, name)
    return classes


@pytest.mark.parametrize("name", sorted(renames.ARGUMENTS.keys() & public_classes().keys()))
def test_renamed_argument_exists_under_its_new_name_only(name):
    import inspect

    arguments: set[str] = set()
    for base in public_classes()[name].__mro__:
        if "__init__" in vars(base):
            arguments |= inspect.signature(base).parameters.keys()
    for old, new in renames.ARGUMENTS[name].items():
        assert new in arguments
        assert old not in arguments


def test_nested_class_paths_are_renamed():
    callbacks = [{"class_path": "zoo.callbacks.SampleGrid", "init_args": {"every": 2, "guidance": 3.0}}]
    model = {
        "class_path": "zoo.models.MLPClassifier",
        "init_args": {
            "loss": {"class_path": "zoo.losses.fitting.PerClass"},
            "optimizer": {"class_path": "zoo.optim.Combined"},
            "net": {"class_path": "zoo.models.TextEncoder", "init_args": {"skip": 1}},
            "rules": None,
            "layer_decay": 0.5,
        },
    }
    config = renames.upgrade_config({"model": model, "trainer": {"callbacks": callbacks}, "sample_measures": None})
    assert config["trainer"]["callbacks"] == [
        {"class_path": "zoo.callbacks.ImageSamples", "init_args": {"every_n_validations": 2, "guidance_scale": 3.0}}
    ]
    arguments = config["model"]["init_args"]
    assert arguments["loss"] == {"class_path": "zoo.losses.adapt.OneVsRest"}
    assert arguments["optimizer"] == {"class_path": "zoo.optim.MultiOptimizer"}
    assert arguments["net"] == {"class_path": "zoo.models.CLIPTextEncoder", "init_args": {"clip_skip": 1}}
    assert arguments["param_groups"] is None
    assert config["generation_metrics"] is None
    assert "sample_measures" not in config


def test_names_of_other_packages_are_kept():
    arguments = {"_class_path": "mine.Diffusion", "loss": {"class_path": "mine.fitting.PerClass"}, "every": 1}
    assert renames.upgrade_arguments({"loss": arguments["loss"], "every": 1}) == {"loss": arguments["loss"], "every": 1}
    assert renames.upgrade_class_path("mine.data.digits.Digits") == "mine.data.digits.Digits"


# What new checkpoints say of themselves -------------------------------------------------------------------------------


class Plain(L.LightningModule):
    """A module that knows nothing of zoo, with EMA weights in its checkpoints."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Linear(width, 1)

    def forward(self, x: Any) -> Any:
        return self.net(x)


def write(path: Path, model: L.LightningModule, **more: Any) -> Path:
    """Write a checkpoint as a Trainer does, with keys in addition."""
    trainer = L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.strategy.connect(model)
    trainer.save_checkpoint(path)
    torch.save({**torch.load(path, weights_only=True), **more}, path)
    return path


def test_checkpoints_carry_the_format(tmp_path):
    """Of zoo's tasks in any Trainer; of other modules where zoo's checkpoint callback saves them."""
    path = write(tmp_path / "a.ckpt", Checkpoint(GOLDEN / "mlp.ckpt").build())
    assert torch.load(path, weights_only=True)[FORMAT_KEY] == FORMAT
    checkpoint = {"loops": {}}
    zoo.callbacks.BestAndLast().on_save_checkpoint(L.Trainer(logger=False), Plain(), checkpoint)
    assert checkpoint[FORMAT_KEY] == FORMAT


def test_checkpoint_of_a_newer_zoo_is_refused(tmp_path):
    path = write(tmp_path / "a.ckpt", Plain(), **{FORMAT_KEY: FORMAT + 1})
    with pytest.raises(UserError, match=f"format {FORMAT + 1}, of a newer zoo"):
        Checkpoint(path)


# EMA or raw weights ---------------------------------------------------------------------------------------------------


def test_ema_or_raw_weights():
    checkpoint = Checkpoint(GOLDEN / "mlp.ckpt")
    saved = torch.load(GOLDEN / "mlp.ckpt", weights_only=True)
    ema = saved["state_dict"] | saved["ema_params"]
    for weights, expected in {"auto": ema, "ema": ema, "raw": saved["state_dict"]}.items():
        state = checkpoint.state_dict(weights)  # type: ignore[arg-type]
        assert all(torch.equal(state[key], expected[key]) for key in expected)
        built = checkpoint.build(weights).state_dict()  # type: ignore[arg-type]
        assert all(torch.equal(built[key], expected[key]) for key in expected)
    with pytest.raises(UserError, match=r"gpt.ckpt holds no EMA weights"):
        Checkpoint(GOLDEN / "gpt.ckpt").state_dict("ema")


@pytest.mark.parametrize("weights", ["auto", "ema", "raw"])
def test_any_module_is_tested_with_the_chosen_weights(weights, zoo, here):
    """Through the command line, a module that knows nothing of EMA among them."""
    source = """
        import torch, lightning as L
        class Mine(L.LightningModule):
            def __init__(self):
                super().__init__()
                self.net = torch.nn.Linear(1, 1, bias=False)
            def test_step(self, batch, batch_idx):
                self.log("test/weight", self.net.weight.detach().sum())
        class Data(L.LightningDataModule):
            def test_dataloader(self):
                return torch.utils.data.DataLoader(torch.zeros(2, 1))
    """
    import textwrap

    (here / "mine_of_weights.py").write_text(textwrap.dedent(source))
    names = ["--model", "mine_of_weights.Mine", "--data", "mine_of_weights.Data"]
    content = {
        "state_dict": {"net.weight": torch.full((1, 1), 2.0)},
        "ema_params": {"net.weight": torch.full((1, 1), 5.0)},
        "pytorch-lightning_version": L.__version__,
        "callbacks": {},
        "epoch": 0,
        "global_step": 1,
    }
    torch.save(content, "a.ckpt")
    code, out, err = zoo("test", *names, "--ckpt_path", "a.ckpt", "--weights", weights, *QUIET)
    assert code == 0, err
    assert float(re.search(r"test/weight\s+(\S+)", out)[1]) == (2.0 if weights == "raw" else 5.0)  # type: ignore[index]


# What cannot be opened or built ---------------------------------------------------------------------------------------


def test_files_that_are_no_checkpoints(tmp_path):
    (tmp_path / "half.ckpt").write_bytes((GOLDEN / "mlp.ckpt").read_bytes()[:5000])
    torch.save(torch.zeros(1), tmp_path / "tensor.ckpt")
    torch.save({"model": nn.Linear(1, 1)}, tmp_path / "object.ckpt")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    messages = {
        "absent.ckpt": "no checkpoint",
        "half.ckpt": "is not a whole checkpoint",
        "tensor.ckpt": "holds a Tensor, which is not a checkpoint",
        "object.ckpt": "Python objects, which could run code",
        "run": r"is the folder of a run: give one of its checkpoints, .*best\.ckpt",
    }
    for name, message in messages.items():
        with pytest.raises(UserError, match=message):
            Checkpoint(tmp_path / name)


def test_checkpoint_that_names_no_class_is_not_built(tmp_path):
    path = write(tmp_path / "a.ckpt", Plain())
    assert Checkpoint(path).model_arguments == {"width": 3}
    with pytest.raises(UserError, match="does not name the class of its model"):
        Checkpoint(path).build()


def test_class_of_a_package_nobody_has_imported_is_not_built(tmp_path):
    content = torch.load(GOLDEN / "mlp.ckpt", weights_only=True)
    content["hyper_parameters"]["loss"] = {"class_path": "antigravity.Loss", "init_args": {}}
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"a.ckpt: model.loss: antigravity.Loss is outside .*antigravity"):
        Checkpoint(tmp_path / "a.ckpt").build()


def test_weights_of_another_model_are_named(tmp_path):
    path = write(tmp_path / "a.ckpt", Plain(width=3))
    with pytest.raises(UserError, match=r"1 of another shape \(net.weight \(1, 3\) instead of \(1, 4\)\)"):
        Checkpoint(path).check(Plain(width=4))
    other = Plain(width=4)
    other.strict_loading = False
    Checkpoint(path).check(other)
    Checkpoint(path).check(Plain(width=3))


def test_sharded_checkpoint_is_a_folder(tmp_path):
    """Lightning writes everything but weights and optimizer into one file of it."""
    torch.save({"epoch": 1, "hyper_parameters": {"_class_path": "zoo.models.AutoencoderTrainer"}}, tmp_path / "meta.pt")
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.is_sharded
    assert checkpoint.hyperparameters["model"]["class_path"] == "zoo.models.AutoencoderKLModule"
    with pytest.raises(UserError, match="holds no state_dict in one file"):
        checkpoint.state_dict()
    with pytest.raises(UserError, match="in one file is needed"):
        checkpoint.build()
