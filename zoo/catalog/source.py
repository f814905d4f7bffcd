"""Classes, functions and their arguments, read from source text without importing it."""

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
    """A parameter of a constructor or function.

    Args:
        name: its name; of ``*args`` and ``**kwargs`` with the asterisks.
        type: its annotation; empty if there is none.
        default: source text of its default; None if it is required.
        doc: its text in the docstring.
        owner: class that has it.
    """

    name: str
    type: str
    default: str | None
    doc: str
    owner: str


@dataclass(eq=False)
class Definition:
    """A class, a function or an assigned name, such as a type alias, in a source file."""

    module: Module
    name: str
    node: ast.ClassDef | ast.FunctionDef | ast.Assign

    @property
    def file(self) -> str:
        """File and line, relative to the folder that holds the package."""
        path = self.module.path
        root = path.parents[self.module.depth]
        return f"{path.relative_to(root)}:{self.node.lineno}"

    @cached_property
    def doc(self) -> str:
        """The docstring; of an assigned name its value."""
        if isinstance(self.node, ast.Assign):
            return f"`{ast.unparse(self.node.value)}`"
        text = ast.get_docstring(self.node)
        if text is None:
            text = self._assigned_doc()
        return text.replace("``", "`")

    def _assigned_doc(self) -> str:
        """Return a docstring that is assigned below the class, as in ``SGD.__doc__ = "..." + common_text``."""
        strings = []
        for node in self.module.tree.body:
            if not isinstance(node, ast.Assign) or ast.unparse(node.targets[0]) != f"{self.name}.__doc__":
                continue
            for part in ast.walk(node.value):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    strings.append(part)
        strings.sort(key=lambda part: part.lineno)
        return cleandoc("".join(str(part.value) for part in strings))

    @property
    def bases(self) -> list[str]:
        """Full paths of the base classes."""
        if not isinstance(self.node, ast.ClassDef):
            return []
        return [self.module.qualify(base) for base in self.node.bases]

    @property
    def constructor(self) -> ast.FunctionDef | None:
        """The function whose signature it has; None for a class without an ``__init__`` of its own."""
        if isinstance(self.node, ast.FunctionDef):
            return self.node
        if isinstance(self.node, ast.ClassDef):
            for node in self.node.body:
                if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                    return node
        return None

    @cached_property
    def docs(self) -> dict[str, str]:
        """Texts of the arguments, from the docstrings of the class and its constructor."""
        texts = read_arguments(self.doc)
        constructor = self.constructor
        if constructor is not None:
            texts |= read_arguments(ast.get_docstring(constructor) or "")
        return texts

    def own_parameters(self) -> list[Parameter]:
        """Return its own parameters in order, without self and ``**kwargs``; of a dataclass its fields."""
        parameters = []
        for name, annotation, default in self._signature():
            parameter = Parameter(
                name=name,
                type=ast.unparse(annotation).strip("'") if annotation else "",
                default=ast.unparse(default) if default else None,
                doc=self.docs.get(name.lstrip("*"), ""),
                owner=self.name,
            )
            parameters.append(parameter)
        return parameters

    def _signature(self) -> list[tuple[str, ast.expr | None, ast.expr | None]]:
        """Return name, annotation and default of each parameter."""
        if self.constructor is None:
            return self._dataclass_fields()
        arguments = self.constructor.args
        positional = [*arguments.posonlyargs, *arguments.args]
        required = len(positional) - len(arguments.defaults)
        defaults = [*[None] * required, *arguments.defaults]
        found = []
        for argument, default in zip(positional, defaults, strict=True):
            found.append((argument.arg, argument.annotation, default))
        if isinstance(self.node, ast.ClassDef):
            found = found[1:]  # self
        if arguments.vararg:
            found.append((f"*{arguments.vararg.arg}", arguments.vararg.annotation, None))
        for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
            found.append((argument.arg, argument.annotation, default))
        return found

    def _dataclass_fields(self) -> list[tuple[str, ast.expr | None, ast.expr | None]]:
        if not isinstance(self.node, ast.ClassDef):
            return []
        if not any("dataclass" in ast.unparse(decorator) for decorator in self.node.decorator_list):
            return []
        fields = []
        for node in self.node.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                fields.append((node.target.id, node.annotation, node.value))
        return fields

    def super_call(self) -> ast.Call | None:
        """Find the call ``super().__init__(...)`` that passes ``**kwargs`` on."""
        constructor = self.constructor
        if constructor is None or constructor.args.kwarg is None:
            return None
        kwargs = constructor.args.kwarg.arg
        for node in ast.walk(constructor):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "super().__init__":
                passed_on = [ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg is None]
                return node if kwargs in passed_on else None
        return None


class Module:
    """A parsed source file: what it defines and imports at its top level.

    Args:
        name: its import path.
        path: the file.
    """

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.path = path
        self.root = name.partition(".")[0]
        # How many folders the package's parent is above the file.
        self.depth = name.count(".") + (path.name == "__init__.py")
        self.tree = ast.parse(path.read_text(encoding="utf-8"))
        self.definitions: dict[str, Definition] = {}
        self.imports: dict[str, str] = {}
        self.public: list[str] = []
        for node in self.tree.body:
            self._read(node)

    def _read(self, node: ast.stmt) -> None:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            self.definitions[node.name] = Definition(self, node.name, node)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                if alias.asname:
                    self.imports[alias.asname] = alias.name
                else:
                    self.imports[top] = top
        elif isinstance(node, ast.ImportFrom):
            origin = self._origin(node)
            for alias in node.names:
                self.imports[alias.asname or alias.name] = f"{origin}.{alias.name}"
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name == "__all__":
                self.public = list(ast.literal_eval(node.value))
            else:
                self.definitions.setdefault(name, Definition(self, name, node))

    def _origin(self, node: ast.ImportFrom) -> str:
        """Return the full path of the module that names are imported from."""
        if not node.level:
            return node.module or ""
        levels_up = node.level - (self.path.name == "__init__.py")
        parts = self.name.split(".")
        parts = parts[: len(parts) - levels_up]
        if node.module:
            parts.append(node.module)
        return ".".join(parts)

    def qualify(self, base: ast.expr) -> str:
        """Return the full path of a base class: ``nn.Module`` is ``torch.nn.Module``."""
        if isinstance(base, ast.Subscript):
            base = base.value
        head, dot, rest = ast.unparse(base).partition(".")
        return self.imports.get(head, f"{self.name}.{head}") + dot + rest


class Source:
    """The source files of a package, and those of other packages that its classes lead to.

    Args:
        package: folder of the package.
    """

    def __init__(self, package: Path) -> None:
        self.package = package.name
        self.roots: dict[str, Path | None] = {package.name: package}
        self.modules: dict[str, Module | None] = {}

    def module(self, name: str) -> Module | None:
        """Return a parsed module by its import path; None if there is no source file."""
        if name not in self.modules:
            self.modules[name] = self._read(name)
        return self.modules[name]

    def _read(self, name: str) -> Module | None:
        top, *rest = name.split(".")
        if top not in self.roots:
            self.roots[top] = _package_folder(top)
        root = self.roots[top]
        if root is None:
            return None
        folder = root.joinpath(*rest)
        for path in (folder / "__init__.py", folder.with_suffix(".py")):
            if path.is_file():
                return Module(name, path)
        return None

    def find(self, path: str) -> Definition | None:
        """Follow imports from ``package.Name`` to where Name is defined."""
        where, _, name = path.rpartition(".")
        module = self.module(where) if where else None
        if module is None:
            return None
        if name in module.definitions:
            return module.definitions[name]
        target = module.imports.get(name, path)
        if target == path:
            return None
        return self.find(target)

    def ancestry(self, definition: Definition) -> list[Definition | str]:
        """List a class and its ancestors, nearest first; those outside its package by their path."""
        line: list[Definition | str] = [definition]
        for base in definition.bases:
            found = None
            if base.startswith(f"{self.package}."):
                found = self.find(base)
            line += self.ancestry(found) if found else [base]
        # A shared ancestor comes after all that share it.
        last_first = dict.fromkeys(reversed(line))
        return list(last_first)[::-1]

    def parameters(self, definition: Definition) -> list[Parameter]:
        """List the parameters of a class or function, with those that ``super().__init__(**kwargs)`` leads to."""
        found: dict[str, Parameter] = {}
        passed: set[str] = set()  # by keyword, so not among the **kwargs any more
        passed_by_position = 0
        kwargs = None
        line = self.ancestry(definition)
        while line:
            owner = line.pop(0)
            if isinstance(owner, str):
                outside = self.find(owner)
                if outside is not None:
                    line = [*self.ancestry(outside), *line]
                continue
            for parameter in owner.own_parameters()[passed_by_position:]:
                if parameter.name not in passed:
                    parameter.type = self.spelled(parameter.type, owner.module)
                    found.setdefault(parameter.name, parameter)
            if owner.constructor is None:
                continue
            kwargs = owner.constructor.args.kwarg
            call = owner.super_call()
            if call is None:
                break
            passed |= {keyword.arg for keyword in call.keywords if keyword.arg}
            passed_by_position = len(call.args)
        if kwargs:
            name = f"**{kwargs.arg}"
            found[name] = Parameter(name, "", None, "", definition.name)
        self._inherit_docs(definition, found)
        return list(found.values())

    def _inherit_docs(self, definition: Definition, parameters: dict[str, Parameter]) -> None:
        """Give a parameter without text the text of the nearest ancestor that has one."""
        for ancestor in self.ancestry(definition):
            if isinstance(ancestor, str):
                continue
            for name, parameter in parameters.items():
                if not parameter.doc:
                    parameter.doc = ancestor.docs.get(name, "")

    def spelled(self, annotation: str, module: Module) -> str:
        """Return a type with the package's aliases written out, so that the allowed values are seen."""
        if not annotation:
            return ""
        source = self

        class Spell(ast.NodeTransformer):
            def visit_Name(self, node: ast.Name) -> ast.expr:
                alias = source.find(f"{module.name}.{node.id}")
                if alias is None or not isinstance(alias.node, ast.Assign) or alias.module.root != source.package:
                    return node
                text = source.spelled(ast.unparse(alias.node.value), alias.module)
                return ast.parse(text, mode="eval").body

        return ast.unparse(Spell().visit(ast.parse(annotation, mode="eval")))


def _package_folder(name: str) -> Path | None:
    """Return the folder of a top-level package, without importing it."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0])


def read_arguments(doc: str) -> dict[str, str]:
    """Read the ``Args:`` section of a docstring into a text for each argument."""
    lines = iter(doc.splitlines())
    texts: dict[str, str] = {}
    if not any(line.strip() == "Args:" for line in lines):  # leaves the lines below it
        return texts
    name = None
    indent = 0
    for line in lines:
        text = line.strip()
        depth = len(line) - len(line.lstrip())
        if text and not depth:
            break  # the next section
        indent = indent or depth
        entry = _ARGUMENT.fullmatch(text) if depth == indent else None
        if entry:
            name = entry[1]
            texts[name] = entry[2] or ""
        elif name:
            texts[name] = f"{texts[name]} {text}".strip()
    return texts
