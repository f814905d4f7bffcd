"""Reading classes and their arguments from source text: importing them would cost the seconds that torch takes."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from inspect import cleandoc
from pathlib import Path

_ARGUMENT = re.compile(r"\*{0,2}(\w+)(?: \(.*?\))?:(?: (.*)|$)")


@dataclass
class Parameter:
    name: str
    type: str
    default: str | None
    doc: str
    owner: str


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
        self.name, self.path, self.root = name, path, name.partition(".")[0]
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
                    parameter.type = self.spelled(parameter.type, owner.module)
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

    def spelled(self, annotation: str, module: Module) -> str:
        """Write out the aliases of the package in a type, as what may be given stands in them."""
        source = self

        class Spell(ast.NodeTransformer):
            def visit_Name(self, node: ast.Name) -> ast.expr:
                found = source.find(f"{module.name}.{node.id}")
                if found is None or not isinstance(found.node, ast.Assign) or found.module.root != source.package:
                    return node
                return ast.parse(source.spelled(ast.unparse(found.node.value), found.module), mode="eval").body

        return ast.unparse(Spell().visit(ast.parse(annotation, mode="eval"))) if annotation else ""


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
