"""The catalogue of zoo: all public components and configs, read from source text, as importing torch takes seconds."""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from zoo.catalog.shipped_configs import shipped_configs
from zoo.catalog.source import Definition, Parameter, Source

# Arguments of `zoo list`, and what a component of each is called.
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
_TORCH_BASES = ("Optimizer", "LRScheduler")  # of the classes in those modules; nobody asks for them by name

_CITATION = re.compile(r"\s*\(([^()]*(?:\b(?:19|20)\d\d\b|https?://)[^()]*)\)")
_SENTENCE_END = re.compile(r"(?<!e\.g)(?<!i\.e)[.!?](?=\s+[A-Z`])")
_YAML_VALUE = re.compile(r"[:\-\[,{]\s*[\"']?([A-Za-z_][\w.]*)[\"']?\s*(?=[,}\]]|$)", re.MULTILINE)
_YAML_COMMENT = re.compile(r"(?:^|\s)#.*")


@dataclass
class Component:
    """A public class or function of zoo, or of torch where zoo uses torch's.

    Args:
        name: its name.
        kind: one of the values of ``KINDS``.
        summary: first sentence of the docstring.
        module: package to import it from.
        file: file and line of its definition.
        parameters: of its constructor, inherited ones included.
        paper: citation in the docstring.
        configs: paths of the configs that use it.
    """

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
        """Top-level package, ``zoo`` or ``torch``."""
        return self.module.partition(".")[0]

    def as_json(self) -> dict:
        """Return plain values; the key ``from`` of a parameter is the class that documents it."""
        parameters = []
        for parameter in self.parameters:
            values = dict(vars(parameter))
            values["from"] = values.pop("owner")
            parameters.append(values)
        return {**vars(self), "source": self.source, "parameters": parameters}


@dataclass
class Config:
    """A YAML file with the options of a run.

    Args:
        name: file name without suffix.
        path: the file.
        text: its content.
    """

    name: str
    path: Path
    text: str

    @property
    def summary(self) -> str:
        """The comment in the first line."""
        first = self.text.partition("\n")[0]
        if not first.startswith("#"):
            return ""
        return first.lstrip("# ")

    @cached_property
    def mentions(self) -> set[tuple[str, str]]:
        """Values that may be classes, as top-level package and name; the package of a short name is empty."""
        found = set()
        for value in _YAML_VALUE.findall(_YAML_COMMENT.sub("", self.text)):
            package, dot, _ = value.partition(".")
            name = value.rpartition(".")[2]
            found.add((package if dot else "", name))
        return found

    def names(self, component: str, source: str, slot: str | None = None) -> bool:
        """Return whether the config uses a component.

        Args:
            component: its name, searched as a short name and as a class path.
            source: its top-level package.
            slot: option of its own, for a callback that has one.
        """
        if slot and re.search(rf"^{slot}:(?! *null)", self.text, re.MULTILINE):
            return True
        return not self.mentions.isdisjoint({("", component), (source, component)})


class Catalog:
    """All names in ``__all__`` of a package's sub-packages, and the configs that use them.

    Args:
        package: folder of the package.
        configs: folder of the configs; None takes ``configs/`` in the working directory, or else those of zoo.
    """

    def __init__(self, package: Path = Path(__file__).parent.parent, configs: Path | None = None) -> None:
        self.source = Source(package)
        self.package = package.name
        self.slots = slots(package / "cli" / "slots.py")
        paths = sorted((configs or Path("configs")).glob("*.yaml"))
        if configs is None and not paths:
            paths = list(shipped_configs().values())
        self.configs = []
        for path in paths:
            self.configs.append(Config(path.stem, path, path.read_text(encoding="utf-8")))

    def public(self) -> dict[str, str]:
        """Map each public name to the package to import it from."""
        packages = {}
        for group in GROUPS:
            module = self.source.module(f"{self.package}.{group}")
            if module is not None:
                packages.update(dict.fromkeys(module.public, module.name))
        return packages

    def components(self, kind: str | None = None) -> list[Component]:
        """List zoo's components by name; for a kind that torch has, too, torch's follow.

        Args:
            kind: of the components; None lists all kinds, of zoo alone.
        """
        found = []
        for name, module in sorted(self.public().items(), key=lambda item: item[0].lower()):
            found.append(self._component(module, name))
        if kind is not None:
            found += [self._component(TORCH[kind], name, kind) for name in self._torch_names(kind)]
        return [c for c in found if c is not None and kind in (None, c.kind)]

    def names(self) -> list[str]:
        """List all names that ``find`` knows."""
        names = list(self.public())
        for kind in TORCH:
            names += self._torch_names(kind)
        names += [config.name for config in self.configs]
        return list(dict.fromkeys(names))

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
        """List the public names that a config uses."""
        return [name for name in self.public() if config.names(name, self.package, self.slots.get(name))]

    def _torch_names(self, kind: str) -> list[str]:
        if kind not in TORCH:
            return []
        module = self.source.module(TORCH[kind])
        if module is None:
            return []
        return [name for name in module.public if name[0].isupper() and name not in _TORCH_BASES]

    def _component(self, module: str, name: str, kind: str | None = None) -> Component | None:
        definition = self.source.find(f"{module}.{name}")
        if definition is None:
            return None
        parameters = []
        for parameter in self.source.parameters(definition):
            if parameter.owner.startswith("_"):  # a name that users cannot look up
                parameter = replace(parameter, owner=name)
            parameters.append(parameter)
        package = module.partition(".")[0]
        slot = self.slots.get(name)
        module_doc = ast.get_docstring(definition.module.tree) or ""
        return Component(
            name=name,
            kind=kind or self._kind(module.rpartition(".")[2], definition),
            summary=first_sentence(definition.doc),
            module=module,
            file=definition.file,
            parameters=parameters,
            paper=paper(definition.doc) or paper(module_doc),
            configs=[str(config.path) for config in self.configs if config.names(name, package, slot)],
        )

    def _kind(self, group: str, definition: Definition) -> str:
        """Return the kind of a component by its base classes; one that the command line cannot build is a helper."""
        if group in ("losses", "layers"):
            return KINDS[group]
        if group == "augment":
            return "augmentation"
        modules = []
        for ancestor in self.source.ancestry(definition):
            modules.append(ancestor if isinstance(ancestor, str) else ancestor.module.name)

        def descends_from(*packages: str) -> bool:
            return any(f"{module}.".startswith(f"{package}.") for module in modules for package in packages)

        is_lightning = descends_from("lightning", "pytorch_lightning")
        if group == "models":
            is_module = is_lightning or descends_from(f"{self.package}.tasks")
            return "model" if is_module else "network"
        if group == "optim":
            for kind, package in reversed(TORCH.items()):  # schedules first: their package is within torch.optim
                if descends_from(package):
                    return kind
            return "helper"
        return KINDS[group] if is_lightning else "helper"


def slots(path: Path) -> dict[str, str]:
    """Map each callback with an option of its own to that option: ``EMA`` to ``ema``.

    Args:
        path: source file with the table ``SLOTS``.
    """
    found = {"BestAndLast": "checkpoint"}  # not in the table, as every run has it
    if not path.is_file():
        return found
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.AnnAssign) or ast.unparse(node.target) != "SLOTS":
            continue
        assert isinstance(node.value, ast.Dict)
        for option, entry in zip(node.value.keys, node.value.values, strict=True):
            assert option is not None
            assert isinstance(entry, ast.Tuple)
            callback = ast.unparse(entry.elts[0])
            found[callback] = ast.literal_eval(option)
    return found


def first_sentence(doc: str) -> str:
    """Return the first sentence of a docstring, without citations and the full stop."""
    paragraph = " ".join(doc.split("\n\n")[0].split())
    text = _CITATION.sub("", paragraph)
    end = _SENTENCE_END.search(text)
    if end is None:
        return text.rstrip(".")
    return text[: end.start()]


def paper(doc: str) -> str | None:
    """Return the citations in the first paragraph of a docstring: what stands in parentheses with a year or a link."""
    paragraph = " ".join(doc.split("\n\n")[0].split())
    return "; ".join(_CITATION.findall(paragraph)) or None


def did_you_mean(word: str, choices: Iterable[str], otherwise: str) -> str:
    """Return ``; did you mean X?`` for the nearest choices, or ``; otherwise`` if none is near."""
    by_lower = {choice.lower(): choice for choice in choices}
    lower = word.lower()
    if lower in by_lower:
        near = [by_lower[lower]]
    else:
        near = [by_lower[match] for match in difflib.get_close_matches(lower, by_lower, n=3)]
    if not near:
        return f"; {otherwise}"
    return f"; did you mean {' or '.join(near)}?"
