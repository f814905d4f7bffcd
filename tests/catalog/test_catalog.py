"""The catalogue: what it reads from a small package written here, and whether it agrees with the imported zoo."""

import importlib
import inspect
import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from jsonargparse import ArgumentParser

from zoo.catalog.components import GROUPS, KINDS, TORCH, Catalog, did_you_mean, first_sentence, paper
from zoo.catalog.source import read_arguments
from zoo.cli import main

PRESENT = [group for group in GROUPS if find_spec(f"zoo.{group}")]
REAL = Catalog()
BUILT_BY_CLI = [c for c in REAL.components() if c.kind in ("model", "task", "data", "callback")]

FILES = {
    "tasks/__init__.py": "from toy.tasks.base import Task\n__all__ = ['Task']",
    "tasks/base.py": '''
import lightning as L

class Task(L.LightningModule):
    """A task.

    Args:
        net: the network.
        lr: learning rate, in
            units of its own.
    """

    def __init__(self, net, lr: float = 1e-3, *, compile: bool = False) -> None:
        super().__init__()
''',
    "models/__init__.py": """
from .tower import Tower, TowerClassifier, Wrapped
__all__ = ['Tower', 'TowerClassifier', 'Wrapped']
""",
    "models/tower.py": '''"""Towers (Babel et al. 1999, https://example.org/tower)."""
from torch import nn
from toy.tasks import Task

class Tower(nn.Module):
    """Stack blocks. Then look down."""

    def __init__(self, depth: int, *names: str) -> None: ...

class TowerTask(Task):
    """Towers' own.

    Args:
        head: what sits on top (a roof, say): tiles.
    """

    def __init__(self, head: "str | None" = None, **kwargs) -> None:
        super().__init__(None, **kwargs)

class TowerClassifier(TowerTask):
    """Tell towers apart, e.g. Tall ones (Eiffel 1889, https://example.org/eiffel)."""

    def __init__(self, depth: int = 3, lr: float = 0.1, **options) -> None:
        super().__init__(lr=lr, compile=True, **options)

class Wrapped(nn.Module):
    def __init__(self, **anything) -> None:
        self.net = Tower(**anything)
''',
    "data/__init__.py": "from toy.data.sets import Bricks, Box\n__all__ = ['Bricks', 'Box']",
    "data/sets.py": '''
from dataclasses import dataclass
import lightning.pytorch as pl

class Base(pl.LightningDataModule):
    def __init__(self, seed: int = 0) -> None: ...

class Bricks(Base):
    """Bricks."""

@dataclass
class Box:
    """A box.

    Args:
        width: in cm.
    """
    width: float
    open: bool = True
''',
    "optim/__init__.py": """
from toy.optim.all import Make, Slow, Steps, groups
__all__ = ['Make', 'Slow', 'Steps', 'groups']
""",
    "optim/all.py": """
import torch
from torch.optim import lr_scheduler

class Slow(torch.optim.Optimizer):
    def __init__(self, params, lr: float = 1.0) -> None: ...

class Steps(lr_scheduler.StepLR):
    def __init__(self, optimizer, every: int, **kwargs) -> None:
        super().__init__(optimizer, every, **kwargs)

Make = Callable[[list, float], Slow]

def groups(module, decay: float = 0.0): ...
""",
    "losses.py": "__all__ = ['huber']\ndef huber(x, delta: float = 1.0): ...",
}


@pytest.fixture
def toy(tmp_path: Path) -> Catalog:
    for name, text in FILES.items():
        path = tmp_path / "toy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    configs = tmp_path / "configs"
    configs.mkdir()
    (configs / "tower_bricks.yaml").write_text(
        "# A tower of bricks: 99 %.\nmodel: TowerClassifier  # not Tower\n"
        "data: {class_path: toy.data.Bricks, init_args: {seed: 1}}\ntrainer:\n  callbacks: [Steps, 'Slow']\n"
    )
    (configs / "other.yaml").write_text("model:\n  class_path: other.Tower\n  init_args:\n    name: Towers\n")
    return Catalog(tmp_path / "toy", configs)


def parameters(catalog: Catalog, name: str) -> dict:
    return {p["name"]: p for p in catalog.find(name).as_json()["parameters"]}


def test_kinds_follow_descent(toy):
    assert {c.name: c.kind for c in toy.components()} == {
        "Tower": "network",
        "TowerClassifier": "model",
        "Wrapped": "network",
        "Task": "task",
        "Bricks": "data",
        "Box": "helper",
        "Make": "helper",
        "Slow": "optimizer",
        "Steps": "schedule",
        "groups": "helper",
        "huber": "loss",
    }


def test_kwargs_lead_to_the_parents_arguments_but_for_those_already_given(toy):
    found = parameters(toy, "TowerClassifier")
    # net is given by position, compile by keyword, and the own lr hides Task's.
    assert [(n, p["type"], p["default"], p["from"]) for n, p in found.items()] == [
        ("depth", "int", "3", "TowerClassifier"),
        ("lr", "float", "0.1", "TowerClassifier"),
        ("head", "str | None", "None", "TowerTask"),
    ]
    assert found["head"]["doc"] == "what sits on top (a roof, say): tiles."
    assert found["lr"]["doc"] == "learning rate, in units of its own."


def test_signatures_of_other_shapes(toy):
    assert list(parameters(toy, "Task")) == ["net", "lr", "compile"]
    assert [(p["name"], p["default"]) for p in parameters(toy, "Tower").values()] == [("depth", None), ("*names", None)]
    assert list(parameters(toy, "Wrapped")) == ["**anything"]
    assert parameters(toy, "Bricks")["seed"]["from"] == "Base"
    assert [(p["type"], p["default"], p["doc"]) for p in parameters(toy, "Box").values()] == [
        ("float", None, "in cm."),
        ("bool", "True", ""),
    ]
    assert list(parameters(toy, "huber")) == ["x", "delta"]


def test_kwargs_are_followed_into_torch(toy):
    assert list(parameters(toy, "Steps")) == ["optimizer", "every", "gamma", "last_epoch"]
    assert parameters(toy, "Steps")["gamma"]["from"] == "StepLR"


def test_summary_paper_and_place(toy):
    tower, classifier = toy.find("Tower"), toy.find("toy.models.TowerClassifier")
    assert (tower.summary, tower.paper) == ("Stack blocks", "Babel et al. 1999, https://example.org/tower")
    assert classifier.summary == "Tell towers apart, e.g. Tall ones"
    assert classifier.paper == "Eiffel 1889, https://example.org/eiffel"
    assert (tower.module, tower.file) == ("toy.models", "toy/models/tower.py:5")
    assert toy.find("toy.data.Tower") is None
    assert toy.find("Make").summary == "`Callable[[list, float], Slow]`"


def test_configs_name_a_class_by_short_name_or_by_its_class_path(toy):
    config = toy.find("tower_bricks")
    assert toy.uses(config) == ["TowerClassifier", "Bricks", "Slow", "Steps"]
    assert config.summary == "A tower of bricks: 99 %."
    assert toy.find("Bricks").configs == [str(config.path)]
    assert toy.find("Tower").configs == []
    assert toy.find("other").summary == ""


def test_torchs_own_come_after_ours(toy):
    found = toy.components("optimizer")
    assert found[0].name == "Slow"
    theirs = {c.name: c for c in found if c.source == "torch"}
    assert {"AdamW", "SGD", "LBFGS"} <= set(theirs)
    assert not {"Optimizer", "functional", "lr_scheduler"} & set(theirs)
    assert theirs["SGD"].summary == "Implements stochastic gradient descent (optionally with momentum)"
    assert toy.find("torch.optim.SGD").parameters == theirs["SGD"].parameters


@pytest.mark.parametrize("kind", TORCH)
def test_torchs_signatures_are_right(kind):
    module = importlib.import_module(TORCH[kind])
    for component in Catalog().components(kind):
        if component.source == "torch":
            signature = inspect.signature(getattr(module, component.name))
            assert [p.name.lstrip("*") for p in component.parameters] == list(signature.parameters)


def test_docstring_readers():
    assert first_sentence("Learn, i.e. Train\nfor 2.5 hours. Then rest.\n\nMore.") == "Learn, i.e. Train for 2.5 hours"
    assert paper("Both (A 2001, https://a.org) and (B 2002).\n\n(C 2003)") == "A 2001, https://a.org; B 2002"
    assert paper("Points (1,000 of them).") is None
    assert read_arguments(
        "X.\n\nArgs:\n    a (int, optional): one\n        more\n    b: two\nReturns:\n    c: three"
    ) == {
        "a": "one more",
        "b": "two",
    }
    assert did_you_mean("resnet", ["ResNet", "MLP"], "look") == "; did you mean ResNet?"
    assert did_you_mean("qqq", ["ResNet"], "look") == "; look"


@pytest.mark.parametrize("group", PRESENT)
def test_names_are_those_of_the_package(group):
    module = importlib.import_module(f"zoo.{group}")
    listed = [c for c in REAL.components() if c.module == f"zoo.{group}"]
    assert [c.name for c in listed] == sorted(module.__all__, key=str.lower)
    for component in listed:
        assert component.summary, f"{component.name} has no docstring"
        file, _, line = component.file.rpartition(":")
        assert (
            component.name in Path(*REAL.source.roots["zoo"].parts[:-1], file).read_text().splitlines()[int(line) - 1]
        )


def test_no_name_is_public_twice():
    names = [name for group in PRESENT for name in importlib.import_module(f"zoo.{group}").__all__]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("component", BUILT_BY_CLI, ids=lambda c: c.name)
def test_parameters_are_those_jsonargparse_finds(component):
    cls = getattr(importlib.import_module(component.module), component.name)
    found = ArgumentParser(exit_on_error=False).add_class_arguments(cls, "x", fail_untyped=False)
    assert sorted(p.name for p in component.parameters if p.name[0] != "*") == sorted(
        n.removeprefix("x.") for n in found
    )


@pytest.mark.parametrize("component", BUILT_BY_CLI, ids=lambda c: c.name)
def test_every_argument_of_the_command_line_is_documented(component):
    undocumented = [f"{p.owner}.{p.name}" for p in component.parameters if not p.doc and p.name[0] != "*"]
    assert not undocumented


@pytest.mark.parametrize("columns", ["80", "120"])
def test_the_table_fits_and_keeps_all_names(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines if line.startswith("  ")) <= int(columns)
    shown = {line.split()[0] for line in lines if line.startswith("  ")}
    assert {c.name for c in REAL.components()} <= shown


@pytest.mark.parametrize("kind", KINDS)
def test_list_of_a_kind(kind, capsys):
    assert main(["list", kind, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {c["kind"] for c in found} <= {KINDS[kind]}
    expected = REAL.configs if kind == "configs" else REAL.components(KINDS[kind])
    assert [c["name"] for c in found] == [c.name for c in expected]
    assert main(["list", kind]) == 0
    text = capsys.readouterr().out
    assert all(c["name"] in text for c in found)


@pytest.mark.parametrize("name", [c.name for c in REAL.components()] + ["AdamW", "OneCycleLR"])
def test_show(name, capsys):
    assert main(["show", name]) == 0
    text = capsys.readouterr().out
    assert main(["show", name, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert f"from {found['module']} import {name}" in text
    assert all(f"\n  {p['name']}" in text for p in found["parameters"])


def test_a_callback_with_an_option_of_its_own_is_shown_by_it(capsys):
    from zoo.cli.slots import SLOTS

    own = {kind.__name__: slot for slot, (kind, _) in SLOTS.items()}
    assert REAL.slots == {"BestAndLast": "checkpoint", **own}
    for name, option in (("EMA", "--ema '{}'"), ("MisclassifiedImages", "--trainer.callbacks+=MisclassifiedImages")):
        assert main(["show", name]) == 0
        assert option in capsys.readouterr().out
    assert "configs/transfer_plain_head_digits.yaml" in REAL.find("FineTuning").configs, "by the slot alone"


def test_types_and_owners_are_names_that_a_user_can_look_up(toy):
    assert parameters(REAL, "MLP")["activation"]["type"] == "str | dict[str, Any]"
    assert parameters(REAL, "GPTLanguageModel")["norm"]["type"].startswith("Literal['")
    owners = {p.owner for c in REAL.components() for p in c.parameters}
    assert [owner for owner in owners if owner.startswith("_")] == []
    assert parameters(REAL, "WarmupCosine")["warmup"]["from"] == "WarmupCosine"


def test_show_prints_a_config(capsys, monkeypatch, tmp_path):
    (tmp_path / "configs").mkdir()
    text = "# Mine: 100 %.\nmodel: MLPClassifier\n"
    (tmp_path / "configs" / "mine.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "configs/mine.yaml"):
        assert main(["show", name]) == 0
        assert capsys.readouterr().out == text
    assert main(["list", "configs", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["summary"] == "Mine: 100 %."
