"""What a user reads of a mistake or a warning: one sentence, with what was given and what is allowed."""

from __future__ import annotations

import difflib
import importlib
import inspect
import logging
import os
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from jsonargparse._parameter_resolvers import get_signature_parameters
from lightning.pytorch.strategies import StrategyRegistry
from torch import nn

ALLOWED = ("zoo", "lightning", "torch", "torchvision", "torchmetrics")
# Lines of jsonargparse that frame a complaint and say nothing themselves.
FRAME = ("Does not validate against", "Subtypes:", "Errors:", "Given value", "Expected a path but")
TYPES = {
    "<class 'int'>": "a whole number",
    "<class 'float'>": "a number",
    "<class 'bool'>": "true or false",
    "<class 'str'>": "text",
    "<class 'list'>": "a list",
    "<class 'dict'>": "keys with values",
}
# Where an option of no class at hand may be meant: what every model and every dataset has.
SECTIONS = {"model": "zoo.tasks.base.Task", "data": "zoo.data.base.DataModule", "trainer": "lightning.Trainer"}
# Names that libraries give to the same thing.
SYNONYMS = ({"path", "file", "folder", "root", "data_dir"}, {"lr", "learning_rate"})


def one_line(message: str, parser: Any = None) -> str:
    """Make one sentence of jsonargparse's many lines, with the nearest allowed name.

    Args:
        message: the report, or any other error's text.
        parser: the parser that reports.
    """
    if m := re.search(r"required: (\w+)\.(model|data)\b", message):
        checkpoint = "--ckpt_path FILE, " if m[1] in ("validate", "test", "predict") else ""
        ways = f"{checkpoint}--{m[2]} NAME, or a config with -c FILE"
        return f"{m[1]} needs a {m[2]}: give {ways}; `zoo list` tells what there is"
    if m := re.search(r"unrecognized arguments: (\S+)", message, re.IGNORECASE):
        name = m[1].partition("=")[0]
        if not name.startswith("-"):
            return f"unexpected argument {name!r}" + (near_config(name) or ": options begin with --")
        return f"unknown option {name}{nearest(name.lstrip('-'), option_names(parser), '--')}"
    if m := re.search(r"Subcommand '(\w+)' does not accept option '([\w.-]+)'", message):
        return f"unknown key {m[2]!r}{nearest(m[2], option_names(subparser(parser, m[1])))}"
    if m := re.search(r"Key '([\w.]+)' is not expected|No action for (?:destination )?key \"([\w.]+)\"", message):
        name = m[1] or m[2]
        return f"unknown key {name!r}{nearest(name, option_names(parser))}"
    if m := re.match(r"(-?\d+) is not in bounds, numpy accepts from (\d+) to (\d+)", message):
        return f"--seed_everything is {m[1]}: a seed is a whole number from {m[2]} to {m[3]}"
    if m := re.match(r"You selected an invalid strategy name: `strategy='(.*?)'`", message):
        names = StrategyRegistry.available_strategies()
        main = [name for name in names if not any(name.startswith(f"{other}_") for other in names)]
        return f"--trainer.strategy: no {m[1]!r}{nearest(m[1], names)}; there is auto, {', '.join(main)}"
    if m := re.search(r"Trying to create tensor with negative dimension (-\d+)", message):
        return f"a width or size of the model is {m[1]}: they start at 1"
    if "No supported gpu backend found" in message:
        return "--trainer.accelerator asks for a GPU, and torch finds none here; cpu and auto will do"
    if m := re.search(r"`(\w+?)Accelerator` can not run on your system.*: \[(.*)\]", message):
        return f"--trainer.accelerator asks for {m[1].lower()}, which is not here; there is {m[2]}".replace("'", "")
    if m := re.match(r"Caught \w+ in DataLoader worker process .*\n[\w.]+: (.*)", message, re.DOTALL):
        return m[1].strip()  # behind the worker's traceback, of which this is the last line
    return _complaint(*_innermost(message))


def _innermost(message: str) -> tuple[str, str, list[str]]:
    """The first real complaint in a nested report: its key, the class whose argument that is, the lines from there."""
    keys: list[tuple[int, str]] = []
    owner = ""
    lines = message.replace("expects a function or a callable class: ", "\n" + 99 * " ").splitlines()
    for i, line in enumerate(lines):
        text, indent = _bare(line), len(line) - len(line.lstrip())
        if m := re.match(r'Parser key "([\w.]+)":?\s*', text):
            keys = [(n, key) for n, key in keys if n < indent] + [(indent, m[1])]
            text = text[m.end() :]
        elif m := re.match(r"Problem with given class_path '([\w.]+)'", text):
            owner, text = m[1], ""
        if text and not text.startswith((*FRAME, "Type ")):
            return ".".join(key for _, key in keys), owner, [text, *map(_bare, lines[i + 1 :])]
    return ".".join(key for _, key in keys), owner, [_bare(line) for line in lines]


def _bare(line: str) -> str:
    """A line without indent and without the dash of a list; that of a negative number stays."""
    return re.sub(r"^[ \t]*(?:-+[ \t]+)*|[ \t-]+$", "", line)


def _complaint(key: str, owner: str, lines: list[str]) -> str:
    first, at = lines[0] if lines else "", f"{key}: " if key else ""
    name = owner.rpartition(".")[2]
    if m := re.search(r"Importing '([\w.]+)' is not allowed", first):
        if m[1].startswith("typing."):
            return f"{at}give its class before its arguments: --{key} NAME"
        package = m[1].partition(".")[0]
        return f"{at}{m[1]} is outside {', '.join(ALLOWED)} and this folder; allow it with --allow-import {package}"
    if m := re.match(r"Option '([\w.-]+)' is not accepted", first):
        if made := re.search(r"Got value: Namespace\(class_path='([\w.]+)'", first):
            owner, name = made[1], made[1].rpartition(".")[2]
        if m[1] == "lr" and key.endswith("optimizer"):
            times = ", times the rule's lr_scale" if ".param_groups." in key else ""
            return f"{key} takes no lr: the learning rate is --{key.partition('.')[0]}.lr{times}"
        if owner in ("lightning.LightningModule", "lightning.LightningDataModule", "lightning.Callback"):
            if m[1] == "class_path":
                return f"{at}only class_path and init_args stand here; arguments of the class go under init_args"
            return f"{at}give its class before {m[1]!r}: --{key} NAME"
        known = arguments(owner)
        near = nearest(m[1], known) or elsewhere(m[1]) or (f"; it takes {some_of(known)}" if known else "")
        return f"{at}{name} has no option {m[1]!r}{near}"
    classes = (re.search(r"(?:Expected a|, or) dot import path string: (.+?)(?:\. Got value:.*)?$", x) for x in lines)
    if re.match(r"Expected a ", first) and (m := next(filter(None, classes), None)):
        if m[1] in ("true", "false") and key not in ("model", "data"):
            return f"{at}a class or its arguments stand here, got {m[1]}: --{key} '{{}}' is on, --{key} null is off"
        near = nearest(m[1], class_names(key)) or "; `zoo list` tells what there is"
        return f"{at}unknown class {m[1]!r}{near}"
    if m := re.match(r"Import path does not correspond to a subclass of (\w+)", first):
        return f"{at}{given(lines)} is no {m[1]}"
    if m := re.match(r"Not a valid subclass of (\w+)", first):
        return f"{at}a {m[1]} is given by its name, or by class_path and init_args; got {given(lines)}"
    if m := re.match(r"Multiple subclasses with name (\w+)\. .* ambiguity: (.*?)\.?$", "".join(lines[:2])):
        return f"{at}{m[1]} is the name of several classes; give one as {m[2].replace(', ', ' or ')}"
    if re.match(r"Expected a ", first):
        several = next((x for x in lines[1:3] if x.startswith("Multiple subclasses")), None)
        if several:
            return _complaint(key, owner, [several])
        return f"{at}expected {_kinds(lines)}, got {given(lines)}"
    if m := re.match(r"the following arguments are required: (.*)", first):
        made = (re.match(r"Given value: Namespace\(class_path='([\w.]+)'", line) for line in lines)
        cls = next((x[1].rpartition(".")[2] for x in made if x), name)
        short = {"CSVLogger": "csv", "TensorBoardLogger": "tensorboard"}.get(cls)
        return f"{at}{cls} needs {m[1]}" + (f"; in the run's folder: --logger {short}" if short else "")
    text = ": ".join(line.rstrip(":") for line in [x for x in lines if x and not x.startswith(FRAME)][:3])
    text = re.sub(r": Expected a <class 'NoneType'>.*", "", text)
    return f"{at}{owner}: {text}" if owner else f"{at}{text}"


def _kinds(lines: list[str]) -> str:
    """The types that would have been right, in words."""
    kinds = []
    for line in lines:
        m = re.match(r"Expected a (.*?)(?:\. Got value: .*)?$", line)
        if not m:
            break
        if m[1].startswith("typing.Literal["):
            kinds.append("one of " + re.sub(r"['\"]", "", m[1][len("typing.Literal[") : -1]))
        elif "NoneType" not in m[1]:
            kinds.append(TYPES.get(m[1], m[1]))
        if "Got value:" in line:
            break
    return ", or ".join(dict.fromkeys(kinds))


def given(lines: list[str]) -> str:
    """The value that a report complains about."""
    for line in lines:
        if m := re.search(r"(?:Got|Given) value: (.*?)(?:\. Got value: .*)?$", line):
            nested = re.fullmatch(r"NestedArg\(key='[\w.]+', val=(.*)\)", m[1])
            value = (nested[1] if nested else m[1]).strip("'")
            return repr(value) if len(value) < 80 else repr(value[:77] + "...")
    return "something else"


def nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """``; did you mean X?`` for the names close to a wrong one, or nothing."""
    names = sorted(set(known) - {name})
    same = next((group for group in SYNONYMS if name in group), set())
    # First the names that it is the beginning of: --seed is not --data.seed.
    close = [k for k in names if k.startswith(f"{name}_") or k in same][:2]
    close = close or difflib.get_close_matches(name, names, 2)
    if not close:  # compare the last part only: a misspelt key deep in a config
        by_tail = {k.rpartition(".")[2]: k for k in names}
        close = [by_tail[k] for k in difflib.get_close_matches(name.rpartition(".")[2], by_tail, 2)]
    return f"; did you mean {' or '.join(prefix + k for k in close)}?" if close else ""


def near_config(path: str) -> str:
    """``; did you mean -c FILE?`` for the configs whose name is close to that of a path, or nothing."""
    folders = (Path(path).parent, Path("configs"))
    files = {file.stem: str(file) for folder in folders for file in sorted(folder.glob("*.y*ml"))}
    stem = Path(path).name.removesuffix(".yaml").removesuffix(".yml")
    close = [stem] if stem in files else difflib.get_close_matches(stem, files, 2, cutoff=0.7)
    return f"; did you mean {' or '.join(f'-c {files[name]}' for name in close)}?" if close else ""


def elsewhere(option: str) -> str:
    """``; did you mean --data.X?`` for an option given to the wrong section, or nothing."""
    found = [f"--{section}.{option}" for section, owner in SECTIONS.items() if option in arguments(owner)]
    return f"; did you mean {' or '.join(found)}?" if found else ""


def some_of(names: list[str], n: int = 12) -> str:
    return ", ".join(names[:n]) + (", ..." if len(names) > n else "")


def class_names(key: str) -> set[str]:
    """Short names of the classes that may stand under a key of a config."""
    from torch.nn.modules.loss import _Loss
    from torch.optim.lr_scheduler import LRScheduler

    import zoo.callbacks
    import zoo.data
    import zoo.data.augment
    import zoo.losses
    import zoo.models

    bases: dict[str, tuple[type, Any]] = {
        "model": (L.LightningModule, zoo.models),
        "data": (L.LightningDataModule, zoo.data),
        "augment": (zoo.data.augment.Augmentation, zoo.data.augment),
        "callbacks": (L.Callback, zoo.callbacks),
        "optimizer": (torch.optim.Optimizer, None),
        "lr_scheduler": (LRScheduler, None),
        "loss": (_Loss, zoo.losses),
    }
    chosen = [bases[tail]] if (tail := key.rpartition(".")[2]) in bases else list(bases.values())
    names = set()
    for base, room in chosen:
        wanted = nn.Module if base is _Loss else base
        exported = [(n, getattr(room, n)) for n in getattr(room, "__all__", ())]
        names |= {n for n, cls in exported if inspect.isclass(cls) and issubclass(cls, wanted)}
        todo = [base]
        while todo:
            for child in todo.pop().__subclasses__():
                todo.append(child)
                if not child.__name__.startswith("_"):
                    names.add(child.__name__)
    return names


def arguments(class_path: str) -> list[str]:
    """Names of the arguments that a class takes on the command line, those of its bases too."""
    module, _, name = class_path.rpartition(".")
    try:
        return [p.name for p in get_signature_parameters(getattr(importlib.import_module(module), name), "__init__")]
    except (ImportError, AttributeError, ValueError):
        return []


def subparser(parser: Any, name: str) -> Any:
    """The parser of a subcommand."""
    actions = [a for a in getattr(parser, "_actions", []) if isinstance(a.choices, dict)]
    return next((a.choices[name] for a in actions if name in a.choices), parser)


def option_names(parser: Any) -> set[str]:
    """Every key of a parser, the sections they stand in, and the arguments of all models and datasets."""
    import zoo.data
    import zoo.models

    names = {a.dest for a in getattr(parser, "_actions", []) if a.dest not in ("help", "subcommand")}
    names |= {name.partition(".")[0] for name in names}
    for key, room in (("model", zoo.models), ("data", zoo.data)):
        bases = {base for name in room.__all__ for base in inspect.getmro(getattr(room, name))}
        signatures = [inspect.signature(base) for base in bases if "__init__" in vars(base) and base is not object]
        names |= {f"{key}.{argument}" for signature in signatures for argument in signature.parameters}
    return names


def quiet() -> None:
    """Silence Lightning's hints that do not apply here, or say again what zoo says; a warning takes one line."""
    if torch.cuda.device_count() == 0:
        # Lightning sets this to 1, by which Adam looks for NVIDIA's library at every single step: 0.07 ms
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for text in (
        ".*does not have many workers.*",
        ".*is smaller than the logging interval.*",
        ".*Using `DistributedSampler` with the dataloaders.*",
        ".*enable_checkpointing.*",
        ".*your dataloader is not resumable.*",
        ".*callbacks used to create the checkpoint need to be provided.*",
        ".*LeafSpec.*",
        ".*No positive samples in targets.*",
        ".*No negative samples in targets.*",
    ):
        warnings.filterwarnings("ignore", text)
    warnings.formatwarning = lambda message, *_, **__: f"zoo: warning: {' '.join(str(message).split())}\n"
