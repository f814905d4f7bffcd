"""Fuzzing of all readers: samples of each kind of file, changed at random; only clear errors may come of it.

``python tests/hostile/fuzz.py 100000`` runs that many inputs, ``... 100000 7`` with another seed. A failure names the
reader, the seed and the number of the input, which make the same input again.
"""

from __future__ import annotations

import copy
import io
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save

from zoo.checkpoints import Checkpoint
from zoo.cli.error_messages import explain
from zoo.cli.file_report import describe
from zoo.data.csv_tables import read_table
from zoo.data.images.image_files import decode_all
from zoo.data.images.resizing import DEFAULT_VIEW
from zoo.data.text.conll import read_conll
from zoo.data.text.text_files import read_texts
from zoo.runs.loggers import MetricsCSV
from zoo.runs.run_folder import write_environment
from zoo.text.tokenizer import Tokenizer
from zoo.trust.reading import read_safetensors_header, read_yaml
from zoo.weights.files import read

MAX_SECONDS = 10
GOLDEN = Path(__file__).parent.parent / "golden"
TOKENS = (b"\0", b"\n", b"\r", b'"', b"'", b",", b";", b"{", b"}", b"[", b"]", b"*", b"&", b":", b"-", b"null", b"NaN",
          b"1e999", b"-1", b"99999999999999999999", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"!!python/name:os",
          b"<<", b"\x1b[2J", b"\xe2\x80\xa8")  # fmt: skip
VALUES = (None, True, -1, 2**70, float("nan"), "", "x" * 1000, b"\xff", [], [[]], {}, {"class_path": "os.system"}, (1,))


# Changing samples -----------------------------------------------------------------------------------------------------


def changed(sample: bytes, rng: random.Random) -> bytes:
    """Return a sample with one to four changes."""
    content = bytearray(sample)
    for _ in range(rng.randint(1, 4)):
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


def changed_tree(value: Any, rng: random.Random) -> Any:
    """Return nested values in which one, at any depth, is another one."""
    is_nested = isinstance(value, (dict, list)) and len(value) > 0
    if not is_nested or rng.random() < 0.15:
        return rng.choice(VALUES)
    if isinstance(value, list):
        i = rng.randrange(len(value))
        return [*value[:i], changed_tree(value[i], rng), *value[i + 1 :]]
    key = rng.choice(list(value))
    inner = {name: item for name, item in value.items() if name != key}
    if rng.random() < 0.1:
        return {**inner, rng.choice((1, None, "", "unknown")): value[key]}
    return {**inner, key: changed_tree(value[key], rng)}


# Readers --------------------------------------------------------------------------------------------------------------

CONFIG = (
    b"model: {class_path: zoo.models.MLPClassifier, init_args: {hidden: [4, 8], lr: 0.1}}\ndata: &d Digits\nx: *d\n"
)
TOKENIZER = {
    "version": "1.0",
    "added_tokens": [{"id": 0, "content": "[UNK]", "special": True, "single_word": False, "lstrip": False,
                      "rstrip": False, "normalized": False}],
    "normalizer": {"type": "Lowercase"},
    "pre_tokenizer": {"type": "Whitespace"},
    "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "a": 1, "b": 2}, "unk_token": "[UNK]"},
}  # fmt: skip


def image() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (9, 7), (200, 30, 60)).save(buffer, "PNG")
    return buffer.getvalue()


def decode_image(path: Path) -> None:
    for found in decode_all(path.parent, [path.name], 3, 8, DEFAULT_VIEW, "images"):
        if isinstance(found, str):  # the reason, which is shown beside the file
            raise ValueError(found)


def build_tokenizer(path: Path) -> None:
    Tokenizer.load(path).encode("a b c")


def metrics(path: Path) -> None:
    MetricsCSV(path.parent, upto=3)


SAMPLES: dict[str, tuple[str, bytes, Callable[[Path], object]]] = {
    "config": ("c.yaml", CONFIG, read_yaml),
    "config, inspected": ("c.yaml", CONFIG, describe),
    "CSV": ("a.csv", b'a,b,"c, d"\n1,2,x\n3,4,"y\nz"\n5,,w\n', read_table),
    "CSV of texts": ("a.csv", b"text,label\ngood,1\nbad,0\n", lambda path: read_texts(path, "text", "label")),
    "JSON lines": ("a.jsonl", b'{"text": "good", "label": 1}\n{"text": "bad", "label": 0}\n',
                   lambda path: read_texts(path, "text", "label")),
    "CoNLL": ("a.conll", b"EU NNP B-ORG\nrejects VBZ O\n\nPeter NNP B-PER\nB. NNP I-PER\n", read_conll),
    "tokenizer": ("tokenizer.json", json.dumps(TOKENIZER).encode(), build_tokenizer),
    "safetensors header": ("a.safetensors", save({"w": torch.ones(2), "b": torch.zeros(1)}), read_safetensors_header),
    "safetensors": ("a.safetensors", save({"w": torch.ones(2)}, {"zoo": '{"arguments": {"dim": 4}}'}), read),
    "environment.json": ("environment.json", b'{"command": "zoo fit", "seed": 0, "resumed": [{"seed": 1}]}',
                         lambda path: write_environment(path.parent, {"seed": 2})),
    "metrics.csv": ("metrics.csv", b"step,epoch,train/loss,val/loss\n0,0,1.5,\n1,0,,0.5\n5,1,0.1,\n", metrics),
    "image": ("a.png", image(), decode_image),
    "checkpoint, damaged": ("a.ckpt", (GOLDEN / "mlp.ckpt").read_bytes(), Checkpoint),
}  # fmt: skip


def is_clear(error: BaseException) -> bool:
    """Return whether the command line prints an error as one line that is short enough to read."""
    text = explain(error)
    return text is not None and "\n" not in text and 0 < len(text) < 1000


def fuzz(count: int, seed: int = 0) -> dict[str, int]:
    """Give ``count`` inputs to the readers in turn; return how many each of them refused.

    Raises:
        AssertionError: another error than a clear one, or a reader took longer than ten seconds.
    """
    refused = dict.fromkeys((*SAMPLES, "checkpoint, odd inside"), 0)
    names = list(refused)
    good = torch.load(GOLDEN / "mlp.ckpt", weights_only=True)
    with tempfile.TemporaryDirectory() as folder:
        for i in range(count):
            name = names[i % len(names)]
            rng = random.Random(f"{seed} {i}")
            place = Path(folder) / str(i)
            place.mkdir()
            if name in SAMPLES:
                file, sample, read_it = SAMPLES[name]
                (place / file).write_bytes(changed(sample, rng))
            else:
                file, read_it = "a.ckpt", open_odd
                torch.save(odd_checkpoint(good, rng), place / file)
            begin = time.monotonic()
            try:
                read_it(place / file)
            except BaseException as error:
                if not is_clear(error):
                    raise AssertionError(f"{name}, seed {seed}, input {i}: {type(error).__name__}: {error}") from error
                refused[name] += 1
            seconds = time.monotonic() - begin
            assert seconds < MAX_SECONDS, f"{name}, seed {seed}, input {i}: {seconds:.0f} s"
            for path in place.iterdir():
                path.unlink()
            place.rmdir()
    return refused


def odd_checkpoint(good: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """Return a checkpoint in which one value, but for the weights, is another one."""
    content = copy.copy(good)
    key = rng.choice(
        ("hyper_parameters", "datamodule_hyper_parameters", "callbacks", "loops", "zoo_format", "ema_params")
    )
    if rng.random() < 0.1:
        content[key] = rng.choice(VALUES)
    elif key in content:
        content[key] = changed_tree(content[key], rng)
    return content


def open_odd(path: Path) -> None:
    checkpoint = Checkpoint(path)
    _ = (checkpoint.hyperparameters, checkpoint.steps_done, checkpoint.has_ema)
    describe(path)
    checkpoint.build()


if __name__ == "__main__":
    torch.set_num_threads(1)
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    print(fuzz(number, int(sys.argv[2]) if len(sys.argv) > 2 else 0))
