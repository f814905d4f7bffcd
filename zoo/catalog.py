"""The catalogue of what zoo offers, read from its source text: importing it would cost the seconds torch takes."""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from inspect import cleandoc
from pathlib import Path

COMMANDS: dict[str, str] = {
    "fit": "train a model; the run lands in runs/<config name>/<n>/",
    "validate": "compute the validation metrics of a checkpoint",
    "test": "compute the test metrics of a checkpoint",
    "predict": "write a checkpoint's predictions to a file",
    "plan": "print parameter groups and schedule of a config, without training",
    "diagnose": "check a model and its data for what goes wrong before training",
    "lr-find": "sweep the learning rate of a config and print the line to add",
    "verify": "prove that a run killed and resumed equals the one never killed: `zoo verify resume -c CONFIG`",
    "export": "write a checkpoint's weights alone to a .safetensors file",
    "list": "list what there is: models, data, callbacks, optimizers, configs, ...",
    "show": "show one of them: its arguments, paper and configs",
}

# What `zoo list` takes, and what a component of it is called.
KINDS: dict[str, str] = {
    "models": "model",
    "networks": "network",
    "tasks": "task",
    "data": "data",
    "callbacks": "callback",
    "optimizers": "optimizer",
    "schedules": "schedule",
    "losses": "loss",
    "layers": "layer",
    "helpers": "helper",
    "configs": "config",
}
GROUPS = ("models", "tasks", "data", "callbacks", "optim", "losses", "layers")
TORCH = {"optimizer": "torch.optim", "schedule": "torch.optim.lr_scheduler"}

_CITATION = re.compile(r"\s*\(([^()]*(?:\b(?:19|20)\d\d\b|https?://)[^()]*)\)")
_SENTENCE_END = re.compile(r"(?<!e\.g)(?<!i\.e)[.!?](?=\s+[A-Z`])")
_ARGUMENT = re.compile(r"\*{0,2}(\w+)(?: \(.*?\))?:(?: (.*)|$)")
_YAML_VALUE = re.compile(r"[:\-\[,{]\s*[\"']?([A-Za-z_][\w.]*)[\"']?\s*(?=[,}\]]|$)", re.MULTILINE)
_YAML_COMMENT = re.compile(r"(?:^|\s)#.*")


@dataclass
class Parameter:
    name: str
    type: str
    default: str | None
    doc: str
    owner: str


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

    def names(self, component: str, source: str) -> bool:
        """Whether a component stands in it by short name or by a class path in the package ``source``."""
        return not self.mentions.isdisjoint({("", component), (source, component)})


@dataclass(eq=False)
class Definition:
    """A class, a function or an assigned name (a type alias) in a source file."""

    module: Module
    name: str
    node: ast.ClassDef | ast.FunctionDef | ast.Assign

    @property
    def file(self) -> str:
        """File and line, from the folder that holds the package."""
        path = self.module.path
        return f"{path.relative_to(path.parents[self.module.depth])}:{self.node.lineno}"

    @cached_property
    def doc(self) -> str:
        if isinstance(self.node, ast.Assign):
            return f"`{ast.unparse(self.node.value)}`"
        text = ast.get_docstring(self.node)
        if text is None:
            # torch.optim writes `SGD.__doc__ = "..." + common_text` below the class.
            constants = [
                part
                for node in self.module.tree.body
                if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == f"{self.name}.__doc__"
                for part in ast.walk(node.value)
                if isinstance(part, ast.Constant) and isinstance(part.value, str)
            ]
            constants.sort(key=lambda part: part.lineno)
            text = cleandoc("".join(str(part.value) for part in constants))
        return text.replace("``", "`")

    @property
    def bases(self) -> list[str]:
        return [self.module.qualify(b) for b in self.node.bases] if isinstance(self.node, ast.ClassDef) else []

    @property
    def constructor(self) -> ast.FunctionDef | None:
        """The function whose signature it has; None where a class inherits its own."""
        inside = self.node.body if isinstance(self.node, ast.ClassDef) else []
        functions = [n for n in (self.node, *inside) if isinstance(n, ast.FunctionDef)]
        return next((f for f in functions if f.name in ("__init__", self.name)), None)

    @cached_property
    def docs(self) -> dict[str, str]:
        constructor = self.constructor
        return read_arguments(self.doc) | read_arguments((constructor and ast.get_docstring(constructor)) or "")

    def own_parameters(self) -> list[Parameter]:
        """Its parameters in order, without self and ``**kwargs``; a dataclass has its fields."""
        constructor = self.constructor
        if constructor is not None:
            a = constructor.args
            positional = [*a.posonlyargs, *a.args]
            defaults = [None] * (len(positional) - len(a.defaults)) + a.defaults
            pairs = list(zip(positional, defaults, strict=True))[isinstance(self.node, ast.ClassDef) :]
            found = [(p.arg, p.annotation, default) for p, default in pairs]
            if a.vararg:
                found.append((f"*{a.vararg.arg}", a.vararg.annotation, None))
            found += [(p.arg, p.annotation, d) for p, d in zip(a.kwonlyargs, a.kw_defaults, strict=True)]
        elif isinstance(self.node, ast.ClassDef) and any(
            "dataclass" in ast.unparse(d) for d in self.node.decorator_list
        ):
            fields = [n for n in self.node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
            found = [(ast.unparse(n.target), n.annotation, n.value) for n in fields]
        else:
            return []
        return [
            Parameter(
                name,
                ast.unparse(annotation).strip("'") if annotation else "",
                ast.unparse(default) if default else None,
                self.docs.get(name.lstrip("*"), ""),
                self.name,
            )
            for name, annotation, default in found
        ]

    def super_call(self) -> ast.Call | None:
        """Find the ``super().__init__(...)`` that passes ``**kwargs`` on."""
        constructor = self.constructor
        if constructor is None or constructor.args.kwarg is None:
            return None
        rest = constructor.args.kwarg.arg
        for node in ast.walk(constructor):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "super().__init__":
                passed_on = [ast.unparse(k.value) for k in node.keywords if k.arg is None]
                return node if rest in passed_on else None
        return None


class Module:
    """A parsed source file: what it defines and what it imports at its top level."""

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.path = name, path
        self.depth = name.count(".") + (path.name == "__init__.py")
        self.tree = ast.parse(path.read_text(encoding="utf-8"))
        self.definitions: dict[str, Definition] = {}
        self.imports: dict[str, str] = {}
        self.public: list[str] = []
        for node in self.tree.body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                self.definitions[node.name] = Definition(self, node.name, node)
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    top = alias.name.partition(".")[0]
                    self.imports[alias.asname or top] = alias.name if alias.asname else top
            elif isinstance(node, ast.ImportFrom):
                origin = self._origin(node)
                self.imports |= {alias.asname or alias.name: f"{origin}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                self.public = list(ast.literal_eval(node.value))
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                name = node.targets[0].id
                self.definitions.setdefault(name, Definition(self, name, node))

    def _origin(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        up = node.level - (self.path.name == "__init__.py")
        package = self.name.split(".")
        return ".".join([*package[: len(package) - up], *([node.module] if node.module else [])])

    def qualify(self, base: ast.expr) -> str:
        """Write a base class by the full path it was imported from: ``nn.Module`` is ``torch.nn.Module``."""
        head, dot, rest = ast.unparse(base.value if isinstance(base, ast.Subscript) else base).partition(".")
        return self.imports.get(head, f"{self.name}.{head}") + dot + rest


class Source:
    """The source files of zoo, and those of other packages that its classes lead to.

    Args:
        package: folder of the package.
    """

    def __init__(self, package: Path) -> None:
        self.package = package.name
        self.roots: dict[str, Path | None] = {package.name: package}
        self.modules: dict[str, Module | None] = {}

    def module(self, name: str) -> Module | None:
        if name not in self.modules:
            self.modules[name] = self._read(name)
        return self.modules[name]

    def _read(self, name: str) -> Module | None:
        top, *rest = name.split(".")
        if top not in self.roots:
            spec = find_spec(top)  # of a top-level package: finds it without importing it
            places = spec.submodule_search_locations if spec else None
            self.roots[top] = Path(places[0]) if places else None
        root = self.roots[top]
        if root is None:
            return None
        folder = root.joinpath(*rest)
        path = next((p for p in (folder / "__init__.py", folder.with_suffix(".py")) if p.is_file()), None)
        return Module(name, path) if path else None

    def find(self, path: str) -> Definition | None:
        """Follow imports from ``package.Name`` to where Name is defined."""
        where, _, name = path.rpartition(".")
        module = self.module(where) if where else None
        if module is None:
            return None
        target = module.imports.get(name, path)
        return module.definitions.get(name) or (self.find(target) if target != path else None)

    def ancestry(self, definition: Definition) -> list[Definition | str]:
        """List a class and its ancestors, nearest first; those outside its package by their path."""
        line: list[Definition | str] = [definition]
        for base in definition.bases:
            found = self.find(base) if base.startswith(f"{self.package}.") else None
            line += self.ancestry(found) if found else [base]
        return list(dict.fromkeys(reversed(line)))[::-1]  # a shared ancestor comes after all that share it

    def parameters(self, definition: Definition) -> list[Parameter]:
        """List the parameters of a class or function, with those that ``super().__init__(**kwargs)`` leads to."""
        found: dict[str, Parameter] = {}
        given: set[str] = set()
        skipped = 0
        rest = None
        line = self.ancestry(definition)
        while line:
            owner = line.pop(0)
            if isinstance(owner, str):
                outside = self.find(owner)
                line[:0] = self.ancestry(outside) if outside else []
                continue
            for parameter in owner.own_parameters()[skipped:]:
                if parameter.name not in given:
                    found.setdefault(parameter.name, parameter)
            if owner.constructor is None:
                continue
            rest, call = owner.constructor.args.kwarg, owner.super_call()
            if call is None:
                break
            given |= {k.arg for k in call.keywords if k.arg}
            skipped = len(call.args)
        if rest:
            found[f"**{rest.arg}"] = Parameter(f"**{rest.arg}", "", None, "", definition.name)
        for ancestor in self.ancestry(definition):
            for name, parameter in found.items():
                if isinstance(ancestor, Definition) and not parameter.doc:
                    parameter.doc = ancestor.docs.get(name, "")
        return list(found.values())


class Catalog:
    """What a package offers: the names in ``__all__`` of its sub-packages, and the configs that use them.

    Args:
        package: folder of the package.
        configs: folder of the configs; null is ``configs/`` here, or else beside the package.
    """

    def __init__(self, package: Path = Path(__file__).parent, configs: Path | None = None) -> None:
        self.source = Source(package)
        self.package = package.name
        if configs is None:
            here = Path("configs")
            configs = here if any(here.glob("*.yaml")) else package.parent / "configs"
        self.configs = [Config(p.stem, p, p.read_text(encoding="utf-8")) for p in sorted(configs.glob("*.yaml"))]

    def public(self) -> dict[str, str]:
        """Map each public name to the package it is imported from."""
        modules = (self.source.module(f"{self.package}.{group}") for group in GROUPS)
        return {name: module.name for module in modules if module for name in module.public}

    def components(self, kind: str | None = None) -> list[Component]:
        """List zoo's components; those of one kind with torch's of the same kind after them."""
        ours = [c for name, module in self.public().items() if (c := self._component(module, name))]
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
        return [name for name in self.public() if config.names(name, self.package)]

    def _torch_names(self, kind: str) -> list[str]:
        module = self.source.module(TORCH[kind]) if kind in TORCH else None
        names = module.public if module else []
        return [name for name in names if name[0].isupper() and name not in ("Optimizer", "LRScheduler")]

    def _component(self, module: str, name: str, kind: str | None = None) -> Component | None:
        definition = self.source.find(f"{module}.{name}")
        if definition is None:
            return None
        package = module.partition(".")[0]
        return Component(
            name=name,
            kind=kind or self._kind(module.rpartition(".")[2], definition),
            summary=first_sentence(definition.doc),
            module=module,
            file=definition.file,
            parameters=self.source.parameters(definition),
            paper=paper(definition.doc) or paper(ast.get_docstring(definition.module.tree) or ""),
            configs=[str(c.path) for c in self.configs if c.names(name, package)],
        )

    def _kind(self, group: str, definition: Definition) -> str:
        """Tell what it is by what it descends from: a class that fills no slot of the command line is a helper."""
        if group in ("losses", "layers"):
            return KINDS[group]
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


def first_sentence(doc: str) -> str:
    """Return the first sentence of a docstring, without citations and the full stop."""
    text = _CITATION.sub("", " ".join(doc.split("\n\n")[0].split()))
    end = _SENTENCE_END.search(text)
    return text[: end.start()] if end else text.rstrip(".")


def paper(doc: str) -> str | None:
    """Return what the first line of a docstring cites in parentheses: a year, a link."""
    return "; ".join(_CITATION.findall(" ".join(doc.split("\n\n")[0].split()))) or None


def read_arguments(doc: str) -> dict[str, str]:
    """Read the ``Args:`` section of a docstring into a text for each argument."""
    lines = iter(doc.splitlines())
    found: dict[str, str] = {}
    name, indent = None, 0
    if not any(line.strip() == "Args:" for line in lines):
        return found
    for line in lines:
        depth = len(line) - len(line.lstrip())
        if line.strip() and not depth:
            break
        indent = indent or depth
        entry = _ARGUMENT.fullmatch(line.strip()) if depth == indent else None
        if entry:
            name = entry[1]
            found[name] = entry[2] or ""
        elif name:
            found[name] = f"{found[name]} {line.strip()}".strip()
    return found


def did_you_mean(word: str, choices: Iterable[str], otherwise: str) -> str:
    """Return ``; did you mean X?`` for the nearest choices, or ``; otherwise`` where none is near."""
    by_lower = {choice.lower(): choice for choice in choices}
    matches = difflib.get_close_matches(word.lower(), by_lower, n=3)
    near = [by_lower[m] for m in matches if m == word.lower() or word.lower() not in by_lower]
    return f"; did you mean {' or '.join(near)}?" if near else f"; {otherwise}"
