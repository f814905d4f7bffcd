"""Changes of valid files for fuzzing: of bytes, and of what the bytes mean, so that a change gets past the parser."""

from __future__ import annotations

import json
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

import torch
import yaml

TOKENS = (
    b"\0", b"\n", b"\r", b'"', b"'", b",", b";", b"{", b"}", b"[", b"]", b"*", b"&", b":", b"-", b"null", b"NaN",
    b"1e999", b"-1", b"99999999999999999999", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"!!python/name:os",
    b"<<", b"\x1b[2J", b"\xe2\x80\xa8",
)  # fmt: skip
VALUES = (
    None, True, False, 0, 1, -1, 3, 10**9, 2**63, 2**70, -(2**70), 0.5, 1e308, float("nan"), float("inf"), "", "a", "0",
    "1e9", "null", "x" * 1000, "\x1b[2J", "a\nb", "../../../etc/passwd", "/dev/zero", "os.system", [], [[]], [0], [-1],
    [None], ["a", 1], {}, {"": None}, {"class_path": "os.system"}, {"class_path": "torch.nn.Linear", "init_args": [1]},
)  # fmt: skip
# What stands in a cell of a table, or in a line of text.
CELLS = (
    "", " ", "NaN", "inf", "-inf", "1e400", "-1", "9" * 400, "2**70", "1,5", "1.5.2", "true", "2026-13-45",
    "2026-02-30", "0000-00-00", "10000-01-01", "9999-12-31T23:59:60Z", "2026-01-01T00:00:00+99:99", "\x1b[2J", "\ufeff",
    "\u2028", "ä", "\U0001f600", '"', '""', "=1+1", "a" * 5000, "../a.png", "B-", "I-X", "-DOCSTART- O", "#", "\\N",
)  # fmt: skip
ENCODINGS = ("utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252", "utf-7", "shift_jis", "cp037")
DTYPES = (torch.float64, torch.float16, torch.int64, torch.bool, torch.complex64, torch.uint8)
MAX_CHANGES = 4

Change = Callable[[bytes, random.Random], bytes]


# Bytes and lines ------------------------------------------------------------------------------------------------------


def changed_bytes(sample: bytes, rng: random.Random) -> bytes:
    """Return a file with a few changes of its bytes."""
    content = bytearray(sample)
    for _ in range(rng.randint(1, MAX_CHANGES)):
        at = rng.randrange(len(content) + 1)
        kind = rng.randrange(6)
        if kind == 0 and at < len(content):
            content[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            content[at:at] = rng.choice(TOKENS)
        elif kind == 2:
            del content[at : at + rng.randrange(1, 20)]
        elif kind == 3:
            content = content[:at]
        elif kind == 4:
            part = content[at : at + rng.randrange(1, 50)]
            content[at:at] = part * rng.randrange(1, 5)
        else:
            content[at : at + 1] = rng.choice(TOKENS)
    return bytes(content)


def changed_encoding(sample: bytes, rng: random.Random) -> bytes:
    """Return a text file in another encoding, in part or as a whole."""
    text = sample.decode("utf-8", "replace")
    other = text.encode(rng.choice(ENCODINGS), "replace")
    return other if rng.random() < 0.7 else sample + other


def changed_lines(sample: bytes, rng: random.Random) -> bytes:
    """Return a text file in which a few lines or cells are others, missing, in another order, or there twice."""
    lines = sample.decode("utf-8", "replace").split("\n")
    separator = max(",;\t| ", key=lambda sign: sample.count(sign.encode()))
    for _ in range(rng.randint(1, MAX_CHANGES)):
        i = rng.randrange(len(lines))
        cells = lines[i].split(separator)
        j = rng.randrange(len(cells))
        kind = rng.randrange(9)
        if kind <= 2:
            cells[j] = rng.choice(CELLS)
        elif kind == 3:
            cells[j:j] = [rng.choice(cells)]
        elif kind == 4:
            del cells[j]
        elif kind == 5:  # a whole column
            value = rng.choice(CELLS)
            lines[1:] = [_with_cell(line, separator, j, value) for line in lines[1:]]
        lines[i] = separator.join(cells)
        if kind == 6:
            lines[i:i] = [rng.choice(lines)] * rng.randint(1, 30)
        elif kind == 7 and len(lines) > 1:
            del lines[i]
        elif kind == 8:
            rng.shuffle(lines)
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _with_cell(line: str, separator: str, column: int, value: str) -> str:
    cells = line.split(separator)
    cells[column : column + 1] = [value]
    return separator.join(cells)


# Trees of values ------------------------------------------------------------------------------------------------------


def changed_tree(value: Any, rng: random.Random) -> Any:
    """Return nested values in which one, at any depth, is another one, missing, renamed, or nested deeper."""
    is_nested = isinstance(value, (dict, list)) and len(value) > 0
    if not is_nested or rng.random() < 0.1:
        return _another(value, rng)
    if isinstance(value, list):
        i = rng.randrange(len(value))
        if rng.random() < 0.1:
            return value[:i] + value[i:] * rng.randint(0, 3)
        return [*value[:i], changed_tree(value[i], rng), *value[i + 1 :]]
    key = rng.choice(list(value))
    inner = {name: item for name, item in value.items() if name != key}
    chance = rng.random()
    if chance < 0.1:
        return inner
    if chance < 0.2:
        return {**inner, rng.choice((1, None, "", "unknown", rng.choice(list(value)))): value[key]}
    return {**inner, key: changed_tree(value[key], rng)}


def _another(value: Any, rng: random.Random) -> Any:
    """Return another value: of any kind, or like the first one but out of range."""
    if isinstance(value, bool) or rng.random() < 0.5:
        return rng.choice(VALUES)
    if isinstance(value, (int, float)):
        return rng.choice((-value, value + 1, value - 1, value * 1000, value * 10**12, str(value), [value]))
    if isinstance(value, str):
        return rng.choice((value[: len(value) // 2], value + "x", value.upper(), [value], value.encode().hex()))
    return rng.choice(([value], {"a": value}, str(value)[:100]))


def changed_json(sample: bytes, rng: random.Random) -> bytes:
    """Return JSON, or lines of it, that is still JSON, but says something else."""
    lines = [json.loads(line) for line in sample.split(b"\n") if line] if b"}\n{" in sample else [json.loads(sample)]
    for _ in range(rng.randint(1, MAX_CHANGES)):
        i = rng.randrange(len(lines))
        lines[i] = changed_tree(lines[i], rng)
    text = "\n".join(json.dumps(line) for line in lines)
    chance = rng.random()
    if chance < 0.03:
        depth = rng.choice((200, 5_000, 100_000))
        text = text.replace(":", ":" + "[" * depth, 1) + "]" * rng.choice((0, depth))
    elif chance < 0.06:
        text = text.replace("{", '{"a": 1, "a": 2, ', 1)
    elif chance < 0.09:
        text = text.replace("1", "1" * rng.choice((30, 5_000)), 1)
    return text.encode("utf-8", "surrogatepass")


def changed_yaml(sample: bytes, rng: random.Random) -> bytes:
    """Return YAML that is still YAML, but says something else."""
    content = yaml.safe_load(sample)
    for _ in range(rng.randint(1, MAX_CHANGES)):
        content = changed_tree(content, rng)
    return yaml.safe_dump(content).encode("utf-8", "surrogatepass")


def changed_header(sample: bytes, rng: random.Random) -> bytes:
    """Return a ``.safetensors`` file whose header is still JSON of its length, but says something else."""
    size = int.from_bytes(sample[:8], "little")
    header = changed_json(sample[8 : 8 + size].rstrip(b" "), rng)
    length = len(header)
    if rng.random() < 0.1:
        length = rng.choice((0, 1, length - 1, length + 1, 10**9, 2**64 - 1))
    return length.to_bytes(8, "little") + header + sample[8 + size :]


def changed_png(sample: bytes, rng: random.Random) -> bytes:
    """Return a PNG file with other numbers in a chunk, whose checksum is right, or with chunks in another order."""
    chunks = []
    at = 8
    while at < len(sample):
        (size,) = struct.unpack(">I", sample[at : at + 4])
        chunks.append((sample[at + 4 : at + 8], sample[at + 8 : at + 8 + size]))
        at += 12 + size
    i = rng.randrange(len(chunks))
    kind, data = chunks[i]
    if rng.random() < 0.5:
        kind, data = chunks[0]  # IHDR: width, height, depth, colour type, ...
        field = rng.randrange(7)
        width, height, *rest = struct.unpack(">IIBBBBB", data)
        values = [width, height, *rest]
        values[field] = rng.choice((0, 1, 2, 3, 4, 6, 16, 255) if field > 1 else (0, 1, 20_000, 10**6, 2**31 - 1))
        chunks[0] = (kind, struct.pack(">IIBBBBB", *values))
    elif rng.random() < 0.5:
        chunks[i] = (kind, changed_bytes(data, rng))
    else:
        rng.shuffle(chunks)
    parts = [sample[:8]]
    for kind, data in chunks:
        parts.append(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
    return b"".join(parts)


def changed_content(content: Any, rng: random.Random) -> Any:
    """Return the content of a checkpoint in which a value, a key or a tensor, at any depth, is another one."""
    if isinstance(content, torch.Tensor):
        return changed_tensor(content, rng)
    if isinstance(content, (dict, list)) and len(content) > 0 and rng.random() > 0.05:
        keys = list(content) if isinstance(content, dict) else list(range(len(content)))
        key = rng.choice(keys)
        inner = type(content)(content)
        if rng.random() < 0.1:
            del inner[key]
        else:
            inner[key] = changed_content(content[key], rng)
        return inner
    return _another(content, rng)


def changed_tensor(tensor: torch.Tensor, rng: random.Random) -> Any:
    """Return a tensor of another shape or type, with values that are not finite, or something that is no tensor."""
    kind = rng.randrange(9)
    if kind == 0:
        return tensor.flatten()[:-1].clone()
    if kind == 1:
        return tensor.to(rng.choice(DTYPES))
    if kind == 2:
        return tensor.float() * rng.choice((float("nan"), float("inf"), 1e38))
    if kind == 3:
        return torch.zeros(1).expand(*([10**6] * 2))  # 4 bytes in the file
    if kind == 4:
        return tensor.to_sparse()
    if kind == 5:
        return tensor.unsqueeze(0)
    if kind == 6:
        return torch.empty(0)
    if kind == 7:
        return tensor.tolist() if tensor.numel() < 100 else "text"
    return rng.choice(VALUES)
