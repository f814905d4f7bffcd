"""Errors of jsonargparse, Lightning and torch in one sentence: what was given, what is allowed, what to type next.

jsonargparse reports a mistake as a tree of all types that it tried, and offers it as text alone. ``find_complaint``
finds the one line in the tree that matters, and ``ROWS`` holds a sentence for each kind of line.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import yaml
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from zoo.cli.known_names import argument_names, class_names, option_names, sections_with
from zoo.cli.suggestions import near_config, nearest
from zoo.errors import UserError

# Lines of jsonargparse around a complaint, which say nothing themselves.
FRAME = ("Does not validate against", "Subtypes:", "Errors:", "Given value", "Expected a path but")
TYPES = {
    "<class 'int'>": "a whole number",
    "<class 'float'>": "a number",
    "<class 'bool'>": "true or false",
    "<class 'str'>": "text",
    "<class 'list'>": "a list",
    "<class 'dict'>": "keys with values",
}
# Base classes that jsonargparse names when the class of a section was not given.
BASES = ("lightning.LightningModule", "lightning.LightningDataModule", "lightning.Callback")
# Loggers that zoo puts into the folder of the run.
LOGGERS = {"CSVLogger": "csv", "TensorBoardLogger": "tensorboard"}
OUT_OF_MEMORY = ("out of memory", "can't allocate memory")  # of CUDA, and of the allocator for the CPU
MAX_OPTIONS = 12  # listed in a sentence
MAX_VALUE = 80  # characters of a value in a sentence
MAX_TEXT = 900  # characters of an error that no row knows, which may quote a value of any length


@dataclass
class Complaint:
    """The line of a report that matters.

    Args:
        text: this line and those after it, without indentation.
        key: key of the option, such as ``model.optimizer``; empty if unknown.
        owner: class path of the class that the argument belongs to; empty if unknown.
        parser: the parser that reports.
    """

    text: str
    key: str = ""
    owner: str = ""
    parser: Any = field(default=None, repr=False)

    @property
    def prefix(self) -> str:
        """The key with a colon, to begin a sentence with."""
        return f"{self.key}: " if self.key else ""

    @property
    def lines(self) -> list[str]:
        """The lines of the text."""
        return self.text.split("\n")


class Row(NamedTuple):
    """A kind of complaint.

    Args:
        pattern: regular expression, searched in the text of a complaint; a dot matches the ends of lines.
        sentence: makes the sentence of a match and the complaint.
    """

    pattern: str
    sentence: Callable[[re.Match[str], Complaint], str]


def explain(error: BaseException) -> str | None:
    """Return one line for a mistake of the user, or None for what may be a bug and deserves its traceback."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    text = str(error)
    if isinstance(error, (ValueError, MisconfigurationException, yaml.YAMLError)):
        return one_line(text)
    if isinstance(error, OSError):
        reason = error.strerror or one_line(text)
        return f"{error.filename}: {reason}" if error.filename else reason
    if "does not support dense gradients" in text:
        return "SparseAdam takes sparse gradients only, as of nn.Embedding(sparse=True): give --model.optimizer Adam"
    is_memory_error = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    if is_memory_error or any(words in text.lower() for words in OUT_OF_MEMORY):
        return (
            "out of memory: try a smaller --data.batch_size with --trainer.accumulate_grad_batches to match, "
            "or --trainer.precision bf16-mixed"
        )
    return None


def one_line(message: str, parser: Any = None) -> str:
    """Return one sentence for the report of a mistake, with the nearest allowed name.

    Args:
        message: the report, or the text of any other error.
        parser: the parser that reports.
    """
    complaint = find_complaint(message, parser)
    found = find_row(complaint)
    if found is None:
        return first_lines(complaint)
    row, match = found
    sentence = " ".join(row.sentence(match, complaint).splitlines())
    if len(sentence) > MAX_TEXT:
        sentence = f"{sentence[:MAX_TEXT]}..."
    return sentence


def find_row(complaint: Complaint) -> tuple[Row, re.Match[str]] | None:
    """Return the first row whose pattern is in the text of a complaint."""
    for row in ROWS:
        match = re.search(row.pattern, complaint.text, re.DOTALL | re.MULTILINE)
        if match:
            return row, match
    return None


# Reading reports ------------------------------------------------------------------------------------------------------


def find_complaint(message: str, parser: Any = None) -> Complaint:
    """Return the first complaint in a nested report, with the keys and the class that it is nested in.

    Args:
        message: the report.
        parser: the parser that reports.
    """
    # jsonargparse nests everything by indentation but this.
    report = message.replace("expects a function or a callable class: ", "\n" + 99 * " ")
    keys: list[tuple[int, str]] = []  # with their indentation
    owner = ""
    lines = report.splitlines()
    for i, line in enumerate(lines):
        text = without_dash(line)
        indentation = len(line) - len(line.lstrip())
        key = re.match(r'Parser key "([\w.]+)":?\s*', text)
        cls = re.match(r"Problem with given class_path '([\w.]+)'", text)
        if key:
            keys = [(n, outer) for n, outer in keys if n < indentation]
            keys.append((indentation, key[1]))
            text = text[key.end() :]
        elif cls:
            owner = cls[1]
            continue
        if not text or text.startswith((*FRAME, "Type ")):
            continue
        if not keys and not owner and i == 0:
            return Complaint(message, parser=parser)  # no report, but the text of some error
        rest = [text, *(without_dash(later) for later in lines[i + 1 :])]
        return Complaint("\n".join(rest), ".".join(key for _, key in keys), owner, parser)
    return Complaint("\n".join(without_dash(line) for line in lines), ".".join(key for _, key in keys), owner, parser)


def without_dash(line: str) -> str:
    """Return a line without indentation and the dash of a list item; the minus of a number stays."""
    return re.sub(r"^[ \t]*(?:-+[ \t]+)*|[ \t-]+$", "", line)


def given_value(complaint: Complaint) -> str:
    """Return the value that a complaint is about, in quotes."""
    for line in complaint.lines:
        match = re.search(r"(?:Got|Given) value: (.*?)(?:\. Got value: .*)?$", line)
        if match is None:
            continue
        nested = re.fullmatch(r"NestedArg\(key='[\w.]+', val=(.*)\)", match[1])
        value = (nested or match)[1].strip("'")
        if len(value) >= MAX_VALUE:
            value = value[: MAX_VALUE - 3] + "..."
        return repr(value)
    return "something else"


def first_lines(complaint: Complaint) -> str:
    """Return the beginning of a complaint that no row knows, such as an error raised by the constructor of a class."""
    lines = [line.rstrip(":") for line in complaint.lines if line and not line.startswith(FRAME)]
    text = ": ".join(lines[:3])
    text = re.sub(r": Expected a <class 'NoneType'>.*", "", text)
    if len(text) > MAX_TEXT:
        text = f"{text[:MAX_TEXT]}..."
    if complaint.owner:
        text = f"{complaint.owner}: {text}"
    return complaint.prefix + text


# Sentences: options and keys ------------------------------------------------------------------------------------------


def unknown_argument(match: re.Match[str], complaint: Complaint) -> str:
    name = match[1].partition("=")[0]
    if not name.startswith("-"):
        return f"unexpected argument {name!r}{near_config(name) or ': options begin with --'}"
    return f"unknown option {name}{nearest(name.lstrip('-'), option_names(complaint.parser), '--')}"


def unknown_key_of_section(match: re.Match[str], complaint: Complaint) -> str:
    name = f"{match[1]}.{match[2]}"
    return f"unknown key {name!r}{nearest(name, option_names(complaint.parser))}"


def unknown_key(match: re.Match[str], complaint: Complaint) -> str:
    name = match[1]
    owner = complaint.owner
    with_class = re.search(r"Got value: Namespace\(class_path='([\w.]+)'", complaint.lines[0])
    if with_class:
        owner = with_class[1]
    key = complaint.key
    if not owner and not key:
        return f"unknown key {name!r}{nearest(name, option_names(complaint.parser))}"
    if name == "lr" and key.endswith("optimizer"):
        factor = ", times the lr_scale of the group" if ".param_groups." in key else ""
        return f"{key} takes no lr: the learning rate is --{key.partition('.')[0]}.lr{factor}"
    if owner in BASES:
        if name == "class_path":
            return f"{complaint.prefix}expected class_path and init_args only; arguments of the class go in init_args"
        return f"{complaint.prefix}give its class before {name!r}: --{key} NAME"
    known = argument_names(owner)
    hint = nearest(name, known)
    if not hint:
        elsewhere = sections_with(name)
        if elsewhere:
            hint = f"; did you mean {' or '.join(elsewhere)}?"
        elif known:
            dots = ", ..." if len(known) > MAX_OPTIONS else ""
            hint = f"; it takes {', '.join(known[:MAX_OPTIONS])}{dots}"
    return f"{complaint.prefix}{owner.rpartition('.')[2]} has no option {name!r}{hint}"


def missing_argument(match: re.Match[str], complaint: Complaint) -> str:
    cls = complaint.owner.rpartition(".")[2]
    with_class = re.search(r"^Given value: Namespace\(class_path='([\w.]+)'", complaint.text, re.MULTILINE)
    if with_class:
        cls = with_class[1].rpartition(".")[2]
    sentence = f"{complaint.prefix}{cls} needs {match[1]}"
    if cls in LOGGERS:
        sentence += f"; in the folder of the run: --logger {LOGGERS[cls]}"
    return sentence


# Sentences: classes ---------------------------------------------------------------------------------------------------


def forbidden_import(match: re.Match[str], complaint: Complaint) -> str:
    path, reason = match.groups()
    if path.startswith("typing."):  # the class of a section was not given
        return f"{complaint.prefix}give its class before its arguments: --{complaint.key} NAME"
    return f"{complaint.prefix}{path} {reason}"


def unknown_class(match: re.Match[str], complaint: Complaint) -> str:
    name = match[1]
    key = complaint.key
    if name in ("true", "false") and key not in ("model", "data"):
        return (
            f"{complaint.prefix}expected a class or its arguments, got {name}: "
            f"--{key} '{{}}' turns it on, --{key} null turns it off"
        )
    hint = nearest(name, class_names(key)) or "; `zoo list` lists the classes of zoo"
    return f"{complaint.prefix}unknown class {name!r}{hint}"


def other_class(match: re.Match[str], complaint: Complaint) -> str:
    return f"{complaint.prefix}{given_value(complaint)} is not a {match[1]}"


def not_a_class(match: re.Match[str], complaint: Complaint) -> str:
    value = given_value(complaint)
    return f"{complaint.prefix}a {match[1]} is given by its name, or by class_path and init_args; got {value}"


def ambiguous_class(match: re.Match[str], complaint: Complaint) -> str:
    paths = match[2].replace(", ", " or ")
    return f"{complaint.prefix}{match[1]} is the name of several classes; give one as {paths}"


# Sentences: values ----------------------------------------------------------------------------------------------------


def other_type(match: re.Match[str], complaint: Complaint) -> str:
    expected = []
    for line in complaint.lines:
        of_line = re.match(r"Expected a (.*?)(?:\. Got value: .*)?$", line)
        if of_line is None:
            break
        kind = of_line[1]
        if kind.startswith("typing.Literal["):
            choices = kind.removeprefix("typing.Literal[").removesuffix("]")
            expected.append("one of " + re.sub(r"['\"]", "", choices))
        elif "NoneType" not in kind:
            expected.append(TYPES.get(kind, kind))
        if "Got value:" in line:
            break
    kinds = ", or ".join(dict.fromkeys(expected))
    return f"{complaint.prefix}expected {kinds}, got {given_value(complaint)}"


def negative_size(match: re.Match[str], complaint: Complaint) -> str:
    return f"a width or size of the model is {match[1]}, but must be at least 1"


def no_gpu(match: re.Match[str], complaint: Complaint) -> str:
    return "--trainer.accelerator is gpu, but torch finds no GPU; use cpu or auto"


def no_accelerator(match: re.Match[str], complaint: Complaint) -> str:
    available = match[2].replace("'", "")
    return f"--trainer.accelerator is {match[1].lower()}, which this machine does not have; there is {available}"


def error_of_worker(match: re.Match[str], complaint: Complaint) -> str:
    return match[1].strip()  # the last line of the traceback of the worker


# The first row that matches makes the sentence. Each one is provoked in tests/cli/test_error_messages.py.
ROWS = (
    # jsonargparse: options and keys
    Row(r"\Aunrecognized arguments: (\S+)", unknown_argument),
    Row(r"\AGroup '([\w.]+)' does not accept option '([\w.-]+)'", unknown_key_of_section),
    Row(r"Importing '([\w.]+)' is not allowed(?:: it|,) ([^\n]*?)(?:\. Got value:[^\n]*)?$", forbidden_import),
    Row(r"\AOption '([\w.-]+)' is not accepted", unknown_key),
    Row(r"\Athe following arguments are required: ([^\n]*)", missing_argument),
    # jsonargparse: classes and values
    Row(
        r"\A(?=Expected a ).*?(?:Expected a|, or) dot import path string: ([^\n]+?)(?:\. Got value:[^\n]*)?$",
        unknown_class,
    ),
    Row(r"\AImport path does not correspond to a subclass of (\w+)", other_class),
    Row(r"\ANot a valid subclass of (\w+)", not_a_class),
    Row(
        r"\A(?:Expected a [^\n]*\n){0,2}Multiple subclasses with name (\w+)\..*?ambiguity: ([^\n]*?)\.?$",
        ambiguous_class,
    ),
    Row(r"\AExpected a ", other_type),
    # torch and Lightning
    Row(r"Trying to create tensor with negative dimension (-\d+)", negative_size),
    Row(r"No supported gpu backend found", no_gpu),
    Row(r"`(\w+?)Accelerator` can not run on your system.*: \[([^\n]*)\]", no_accelerator),
    Row(r"\ACaught \w+ in DataLoader worker process .*\n[\w.]+: (.*)", error_of_worker),
)
