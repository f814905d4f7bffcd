"""Tokenizers written for transformers: ``tokenizer.json`` or ``tokenizer.model``, and their config."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from zoo.files import atomic_file, write_text
from zoo.text.library_engines import load_tokenizers
from zoo.text.pretrained import KEYS
from zoo.text.tokenizer import Tokenizer


def save_tokenizer(
    folder: str | Path,
    tokenizer: Tokenizer,
    max_length: int,
    kind: str = "PreTrainedTokenizerFast",
    inputs: list[str] | None = None,
) -> None:
    """Write a tokenizer into an existing folder.

    Args:
        folder: the folder.
        tokenizer: of any level but words, whose rules the tokenizers library does not have.
        max_length: maximum number of tokens of its model.
        kind: class with which transformers reads a ``tokenizer.json``.
        inputs: transformers' names of the inputs that it makes for the model; null takes those of ``kind``.
    """
    folder = Path(folder)
    config: dict[str, Any] = {"model_max_length": max_length, "clean_up_tokenization_spaces": False}
    if inputs is not None:
        config["model_input_names"] = inputs
    for role, name in tokenizer.specials.items():
        config[KEYS[role]] = name
    if tokenizer.level == "sentencepiece":
        kind = "LlamaTokenizer"
        with atomic_file(folder / "tokenizer.model") as temporary:
            temporary.write_bytes(base64.b64decode(tokenizer.source))
    else:
        _write(folder / "tokenizer.json", json.loads(tokenizer_json(tokenizer)))
    _write(folder / "tokenizer_config.json", {"tokenizer_class": kind, **config})


def tokenizer_json(tokenizer: Tokenizer) -> str:
    """Return a tokenizer as JSON of the tokenizers library, of which characters and bytes are simple cases."""
    if tokenizer.level == "words":
        raise ValueError("a tokenizer of words has no tokenizer.json: transformers would cut texts in other places")
    if tokenizer.level == "bytes":
        backend = _byte_backend()
    elif tokenizer.level == "characters":
        backend = _character_backend(tokenizer)
    else:
        return str(tokenizer.source)
    backend.add_special_tokens(list(dict.fromkeys(tokenizer.specials.values())))
    return backend.to_str()


def _byte_backend() -> Any:
    """Return bytes as byte-level BPE without merges."""
    library = load_tokenizers()
    vocabulary = {name: i for i, name in enumerate(_byte_names())}
    backend = library.Tokenizer(library.models.BPE(vocabulary, []))
    backend.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = library.decoders.ByteLevel()
    return backend


def _character_backend(tokenizer: Tokenizer) -> Any:
    library = load_tokenizers()
    vocabulary = {token: i for i, token in enumerate(tokenizer.source)}
    unknown = tokenizer.specials.get("unknown", "<unk>")  # which has no id then: an unknown character is an error
    backend = library.Tokenizer(library.models.WordLevel(vocabulary, unk_token=unknown))
    backend.pre_tokenizer = library.pre_tokenizers.Split(library.Regex(r"[\s\S]"), "isolated")
    backend.decoder = library.decoders.Fuse()
    return backend


def _byte_names() -> list[str]:
    """Return GPT-2's character for each byte: the byte's own if it is printable, or one from 256 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    names = []
    for byte in range(256):
        code_point = byte
        if byte not in printable:
            code_point = next(others)
        names.append(chr(code_point))
    return names


def _write(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
