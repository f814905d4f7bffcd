"""Text formats read with bounds on their size and nesting: YAML, JSON, and what is packed in a checkpoint.

Files of others may be built so that reading them takes all memory: aliases that multiply, lists within lists, archives
that unpack to a thousand times their size. Nothing that zoo or other libraries write comes near the bounds here. The
environment variable ``ZOO_READ_LIMIT`` multiplies them, 10 for ten times as much.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from zoo.errors import UserError
from zoo.terminal import printable

MAX_YAML_SIZE = 4 * 2**20  # characters
MAX_YAML_NODES = 400_000  # values, with those that aliases repeat
MAX_JSON_SIZE = 64 * 2**20  # bytes; the tokenizers of the largest vocabularies have half of that
MAX_UNPACKED = 48 * 2**20  # bytes
MAX_HEADER_SIZE = 100 * 10**6  # bytes, as safetensors itself has it
MAX_DEPTH = 100


class TooLarge(yaml.YAMLError, ValueError):
    """Text beyond a bound. jsonargparse handles it as it does broken YAML."""


def limit(bound: int) -> int:
    """Return a bound, multiplied by ``ZOO_READ_LIMIT``."""
    factor = os.environ.get("ZOO_READ_LIMIT", "1")
    try:
        return int(bound * float(factor))
    except (ValueError, OverflowError):
        raise UserError(f"ZOO_READ_LIMIT is a number that multiplies bounds, such as 10, got {factor!r}") from None


# YAML -----------------------------------------------------------------------------------------------------------------


def check_yaml(text: str) -> None:
    """Raise TooLarge for YAML that is too long, nested too deep, or too large once its aliases are replaced.

    Raises:
        yaml.YAMLError: it is broken.
    """
    bound = limit(MAX_YAML_SIZE)
    if len(text) > bound:
        raise TooLarge(f"more than {bound:,} characters; ZOO_READ_LIMIT raises the bound")
    most = limit(MAX_YAML_NODES)
    sizes: dict[str, int] = {}  # of what an anchor names, with all aliases in it
    open_nodes: list[tuple[str | None, int]] = []  # anchor, and the number of nodes before it
    count = 0
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        if isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_nodes):
                raise TooLarge(f"the value named {printable(event.anchor)} contains itself")
            count += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, count))
            count += 1
            if len(open_nodes) > MAX_DEPTH:
                raise TooLarge(f"values are nested more than {MAX_DEPTH} deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            if anchor is not None:
                sizes[anchor] = count - before
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
            if event.anchor is not None:
                sizes[event.anchor] = 1 + len(event.value) // 100
        if count > most:
            raise TooLarge(f"more than {most:,} values; ZOO_READ_LIMIT raises the bound")


def parse_yaml(text: str) -> Any:
    """Return the plain values in YAML.

    Raises:
        yaml.YAMLError: it is broken, or beyond a bound.
    """
    check_yaml(text)
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise
    except (ValueError, TypeError, RecursionError, OverflowError) as error:  # a date in month 13, a number too long
        raise TooLarge(printable(error)) from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return the content of a YAML file: keys with values.

    Raises:
        UserError: it is not that, in one line with the file and the line in it.
    """
    path = Path(path)
    text = read_text(path, MAX_YAML_SIZE)
    try:
        content = parse_yaml(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise UserError(f"{path}, line {line}: broken YAML, {printable(error.problem)}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: broken YAML, {printable(str(error).splitlines()[0], 120)}") from None
    if content is None:
        raise UserError(f"{path} is empty")
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a config: it holds a {type(content).__name__}, not keys with values")
    for key in content:
        if not isinstance(key, str):
            raise UserError(f"{path}: the key {printable(key)} is a {type(key).__name__}, not text")
    return content


def bounded_loader(load: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a loader of YAML that checks the bounds first; short text is within them.

    Args:
        load: the loader.
    """

    def load_bounded(text: str) -> Any:
        if len(text) > MAX_DEPTH or "*" in text:
            check_yaml(text)
        try:
            return load(text)
        except RecursionError:
            raise TooLarge("values are nested too deep") from None

    return load_bounded


# JSON and packed text -------------------------------------------------------------------------------------------------


def read_json(path: str | Path) -> dict[str, Any]:
    """Return the content of a JSON file: an object.

    Raises:
        UserError: there is no such file, it is no JSON object, or beyond a bound.
    """
    path = Path(path)
    return parse_json_object(read_text(path, MAX_JSON_SIZE), path)


def parse_json_object(text: str | bytes, source: str | Path) -> dict[str, Any]:
    """Return the object in JSON text.

    Args:
        text: the JSON.
        source: where it is from, for the error.

    Raises:
        UserError: it is no JSON object, or beyond a bound.
    """
    try:
        content = json.loads(text)
    except RecursionError:
        raise UserError(f"{source}: values are nested too deep") from None
    except ValueError as error:  # broken, not UTF-8, or a number of too many digits
        raise UserError(f"{source} is not JSON, or half of it is missing: {printable(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{source} holds no JSON object, but a {type(content).__name__}")
    return content


def unpack(packed: Any, source: str) -> bytes:
    """Return what was compressed by zlib and written in base64.

    Args:
        packed: the text.
        source: where it is from, for the error.

    Raises:
        UserError: it is not that, or unpacks to more than a bound.
    """
    if not isinstance(packed, str):
        raise UserError(f"{source}: expected packed text, got a {type(packed).__name__}")
    most = limit(MAX_UNPACKED)
    try:
        unpacker = zlib.decompressobj()
        content = unpacker.decompress(base64.b64decode(packed), most)
    except (ValueError, zlib.error, binascii.Error):
        raise UserError(f"{source} is not whole: its packed text is damaged") from None
    if unpacker.unconsumed_tail:
        raise UserError(f"{source} unpacks to more than {most:,} bytes; ZOO_READ_LIMIT raises the bound")
    if not unpacker.eof:
        raise UserError(f"{source} is not whole: its packed text ends too early")
    return content


def read_safetensors_header(path: str | Path) -> tuple[dict[str, str], dict[str, tuple[str, list[int]]]]:
    """Return the metadata of a ``.safetensors`` file, and the dtype and shape of each tensor, without reading one.

    Raises:
        UserError: the header is damaged, beyond a bound, or does not fit the file.
    """
    path = Path(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > limit(MAX_HEADER_SIZE) or 8 + length > size:
            raise UserError(f"{path} is no .safetensors file: its header would have {length:,} bytes")
        header = parse_json_object(file.read(length), path)
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise UserError(f"{path}: the metadata in its header is not text by name")
    tensors = {}
    for name, entry in header.items():
        if not _is_tensor_entry(entry, size - 8 - length):
            raise UserError(f"{path}: the header does not describe the tensor {printable(name)}")
        tensors[name] = (entry["dtype"], entry["shape"])
    return metadata, tensors


def _is_tensor_entry(entry: Any, size: int) -> bool:
    """Return whether an entry of a header has a dtype, a shape, and a place within ``size`` bytes."""
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
        return False
    shape = entry.get("shape")
    place = entry.get("data_offsets")
    if not isinstance(shape, list) or not isinstance(place, list) or len(place) != 2:
        return False
    if not all(type(number) is int and number >= 0 for number in (*shape, *place)):
        return False
    return place[0] <= place[1] <= size


def read_text(path: Path, most: int) -> str:
    """Return the text of a file in UTF-8.

    Args:
        path: the file.
        most: bytes that it may have.

    Raises:
        UserError: there is no such file, it is not text, or larger.
    """
    if not path.is_file():
        raise UserError(f"no file {path}")
    bound = limit(most)
    with path.open("rb") as file:
        content = file.read(bound + 1)
    if len(content) > bound:
        raise UserError(f"{path} has more than {bound:,} bytes; ZOO_READ_LIMIT raises the bound")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text in UTF-8") from None
