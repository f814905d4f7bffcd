"""The catalogue of what zoo offers, read from its source text."""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from zoo.catalog.source import Definition, Parameter, Source

COMMANDS: dict[str, str] = {
    "fit": "train a model; the run lands in runs/<config name>/<n>/",
    "validate": "compute the validation metrics of a checkpoint",
    "test": "compute the test metrics of a checkpoint",
    "predict": "write a checkpoint's predictions to a file",
    "plan": "print parameter groups and schedule of a config, without training",
    "diagnose": "check a model and its data for what goes wrong before training",
    "show-data": "print splits, class balance and statistics of the data, and draw augmented inputs",
    "lr-find": "sweep the learning rate of a config and print the line to add",
    "verify": "prove that a run killed and resumed equals the one never killed: `zoo verify resume -c CONFIG`",
    "export": "write a checkpoint's weights alone to a file, or as a folder that transformers or diffusers loads",
    "generate": "let a language model in a checkpoint write on from a prompt",
    "sample": "let a diffusion model in a checkpoint make pictures",
    "list": "list what there is: models, data, callbacks, optimizers, configs, ...",
    "show": "show one of them: its arguments, paper and configs",
}

# What `zoo list` takes, and what a component of it is called.
KINDS: dict[str, str] = {
    "models": "model",
    "networks": "network",
    "tasks": "task",
    "data": "data",
    "augmentations": "augmentation",
    "callbacks": "callback",
    "optimizers": "optimizer",
    "schedules": "schedule",
    "losses": "loss",
    "layers": "layer",
    "helpers": "helper",
    "configs": "config",
}
GROUPS = (
    "models",
    "tasks",
    "data",
    "data.augment",
    "callbacks",
    "optim",
    "losses",
    "layers",
    "text",
    "diffusion",
    "metrics",
)
TORCH = {"optimizer": "torch.optim", "schedule": "torch.optim.lr_scheduler"}

_CITATION = re.compile(r"\s*\(([^()]*(?:\b(?:19|20)\d\d\b|https?://)[^()]*)\)")
_SENTENCE_END = re.compile(r"(?<!e\.g)(?<!i\.e)[.!?](?=\s+[A-Z`])")
_YAML_VALUE = re.compile(r"[:\-\[,{]\s*[\"']?([A-Za-z_][\w.]*)[\"']?\s*(?=[,}\]]|$)", re.MULTILINE)
_YAML_COMMENT = re.compile(r"(?:^|\s)#.*")


@dataclass
class Component:
    """A public name: of zoo, or of torch where zoo takes torch's."""

    name: str
    kind: str
    summary: str
    module: str
    file: str
    parameters: list[Parameter]
    paper: str | None
    configs: list[str]

    @property
    def source(self) -> str:
        return self.module.partition(".")[0]

    def as_json(self) -> dict:
        parameters = [{"from" if k == "owner" else k: v for k, v in vars(p).items()} for p in self.parameters]
        return {**vars(self), "source": self.source, "parameters": parameters}


@dataclass
class Config:
    name: str
    path: Path
    text: str

    @property
    def summary(self) -> str:
        first = self.text.partition("\n")[0]
        return first.lstrip("# ") if first.startswith("#") else ""

    @cached_property
    def mentions(self) -> set[tuple[str, str]]:
        """The values that may be classes, as package and name; a short name has no package."""
        paths = [value.split(".") for value in _YAML_VALUE.findall(_YAML_COMMENT.sub("", self.text))]
        return {(path[0] if len(path) > 1 else "", path[-1]) for path in paths}

    def names(self, component: str, source: str, slot: str | None = None) -> bool:
        """Whether a component stands in it: by its slot, short name, or a class path in the package ``source``."""
        if slot and re.search(rf"^{slot}:(?! *null)", self.text, re.MULTILINE):
            return True
        return not self.mentions.isdisjoint({("", component), (source, component)})


class Catalog:
    """What a package offers: the names in ``__all__`` of its sub-packages, and the configs that use them.

    Args:
        package: folder of the package.
        configs: folder of the configs; null is ``configs/`` here, or else beside the package.
    """

    def __init__(self, package: Path = Path(__file__).parent.parent, configs: Path | None = None) -> None:
        self.source = Source(package)
        self.package = package.name
        self.slots = slots(package / "cli" / "lightning_cli.py")
        if configs is None:
            here = Path("configs")
            configs = here if any(here.glob("*.yaml")) else package.parent / "configs"
        self.configs = [Config(p.stem, p, p.read_text(encoding="utf-8")) for p in sorted(configs.glob("*.yaml"))]

    def public(self) -> dict[str, str]:
        """Map each public name to the package it is imported from."""
        modules = (self.source.module(f"{self.package}.{group}") for group in GROUPS)
        return {name: module.name for module in modules if module for name in module.public}

    def components(self, kind: str | None = None) -> list[Component]:
        """List zoo's components by name; those of one kind with torch's of the same kind after them."""
        public = sorted(self.public().items(), key=lambda item: item[0].lower())
        ours = [c for name, module in public if (c := self._component(module, name))]
        if kind is None:
            return ours
        theirs = [self._component(TORCH[kind], name, kind) for name in self._torch_names(kind)]
        return [c for c in [*ours, *theirs] if c and c.kind == kind]

    def names(self) -> list[str]:
        """List all names that ``find`` knows."""
        theirs = [name for kind in TORCH for name in self._torch_names(kind)]
        return list(dict.fromkeys([*self.public(), *theirs, *(c.name for c in self.configs)]))

    def find(self, name: str) -> Component | Config | None:
        """Find a component by name or class path, or a config by name or path."""
        for config in self.configs:
            if name in (config.name, f"{config.name}.yaml", str(config.path)):
                return config
        path, _, short = name.rpartition(".")
        module = self.public().get(short)
        if module and (not path or f"{path}.".startswith(f"{module}.")):
            return self._component(module, short)
        for kind, module in TORCH.items():
            if path in ("", module) and short in self._torch_names(kind):
                return self._component(module, short, kind)
        return None

    def uses(self, config: Config) -> list[str]:
        return [name for name in self.public() if config.names(name, self.package, self.slots.get(name))]

    def _torch_names(self, kind: str) -> list[str]:
        module = self.source.module(TORCH[kind]) if kind in TORCH else None
        names = module.public if module else []
        return [name for name in names if name[0].isupper() and name not in ("Optimizer", "LRScheduler")]

    def _component(self, module: str, name: str, kind: str | None = None) -> Component | None:
        definition = self.source.find(f"{module}.{name}")
        if definition is None:
            return None
        package = module.partition(".")[0]
        parameters = self.source.parameters(definition)
        return Component(
            name=name,
            kind=kind or self._kind(module.rpartition(".")[2], definition),
            summary=first_sentence(definition.doc),
            module=module,
            file=definition.file,
            parameters=[replace(p, owner=name) if p.owner.startswith("_") else p for p in parameters],
            paper=paper(definition.doc) or paper(ast.get_docstring(definition.module.tree) or ""),
            configs=[str(c.path) for c in self.configs if c.names(name, package, self.slots.get(name))],
        )

    def _kind(self, group: str, definition: Definition) -> str:
        """Tell what it is by what it descends from: a class that fills no slot of the command line is a helper."""
        if group in ("losses", "layers"):
            return KINDS[group]
        if group == "augment":
            return "augmentation"
        ancestry = [a if isinstance(a, str) else f"{a.module.name}." for a in self.source.ancestry(definition)]

        def descends(*origins: str) -> bool:
            return any(a.startswith(f"{origin}.") for a in ancestry for origin in origins)

        lightning = descends("lightning", "pytorch_lightning")
        if group == "models":
            return "model" if lightning or descends(f"{self.package}.tasks") else "network"
        if group == "optim":
            if descends("torch.optim.lr_scheduler"):
                return "schedule"
            return "optimizer" if descends("torch.optim") else "helper"
        return KINDS[group] if lightning else "helper"


def slots(path: Path) -> dict[str, str]:
    """The callbacks with an option of their own, as ``EMA`` has ``--ema``: read from SLOTS of the command line."""
    tree = ast.parse(path.read_text(encoding="utf-8") if path.is_file() else "")
    tables = [n.value for n in tree.body if isinstance(n, ast.AnnAssign) and ast.unparse(n.target) == "SLOTS"]
    pairs = [pair for t in tables if isinstance(t, ast.Dict) for pair in zip(t.keys, t.values, strict=True)]
    own = {ast.unparse(cls.elts[0]): ast.literal_eval(key) for key, cls in pairs if key and isinstance(cls, ast.Tuple)}
    return {"BestAndLast": "checkpoint", **own}  # the former is no slot, as it is never empty


def first_sentence(doc: str) -> str:
    """Return the first sentence of a docstring, without citations and the full stop."""
    text = _CITATION.sub("", " ".join(doc.split("\n\n")[0].split()))
    end = _SENTENCE_END.search(text)
    return text[: end.start()] if end else text.rstrip(".")


def paper(doc: str) -> str | None:
    """Return what the first line of a docstring cites in parentheses: a year, a link."""
    return "; ".join(_CITATION.findall(" ".join(doc.split("\n\n")[0].split()))) or None


def did_you_mean(word: str, choices: Iterable[str], otherwise: str) -> str:
    """Return ``; did you mean X?`` for the nearest choices, or ``; otherwise`` where none is near."""
    by_lower = {choice.lower(): choice for choice in choices}
    matches = difflib.get_close_matches(word.lower(), by_lower, n=3)
    near = [by_lower[m] for m in matches if m == word.lower() or word.lower() not in by_lower]
    return f"; did you mean {' or '.join(near)}?" if near else f"; {otherwise}"
