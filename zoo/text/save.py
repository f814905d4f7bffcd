"""Tokenizers written for transformers: ``tokenizer.json`` or ``tokenizer.model``, and what it asks for beside them."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from zoo.text.engines import load_tokenizers
from zoo.text.pretrained import KEYS
from zoo.text.tokenizer import Tokenizer


def save_tokenizer(
    folder: str | Path,
    tokenizer: Tokenizer,
    max_length: int,
    kind: str = "PreTrainedTokenizerFast",
    inputs: list[str] | None = None,
) -> None:
    """Write a tokenizer into a folder that is there.

    Args:
        folder: where to.
        tokenizer: of any level but words, which are cut by rules that the tokenizers library does not know.
        max_length: how many tokens the model of it reads.
        kind: the class that transformers reads a ``tokenizer.json`` with.
        inputs: what it is to give the model, by transformers' names; null is what ``kind`` gives.
    """
    folder = Path(folder)
    config: dict[str, Any] = {"model_max_length": max_length, "clean_up_tokenization_spaces": False}
    config |= {} if inputs is None else {"model_input_names": inputs}
    config |= {KEYS[role]: name for role, name in tokenizer.specials.items()}
    if tokenizer.level == "sentencepiece":
        (folder / "tokenizer.model").write_bytes(base64.b64decode(tokenizer.source))
        kind = "LlamaTokenizer"
    else:
        _write(folder / "tokenizer.json", json.loads(tokenizer_json(tokenizer)))
    _write(folder / "tokenizer_config.json", {"tokenizer_class": kind, **config})


def tokenizer_json(tokenizer: Tokenizer) -> str:
    """The JSON of the tokenizers library, of which characters and bytes are simple cases."""
    if tokenizer.level == "words":
        raise ValueError("a tokenizer of words has no tokenizer.json: transformers would cut texts in other places")
    if tokenizer.level not in ("characters", "bytes"):
        return str(tokenizer.source)
    library = load_tokenizers()
    from tokenizers import Regex, decoders, pre_tokenizers
    from tokenizers.models import BPE, WordLevel

    names = list(dict.fromkeys(tokenizer.specials.values()))
    if tokenizer.level == "bytes":  # as GPT-2 names them, of which no two become one
        backend = library.Tokenizer(BPE({name: i for i, name in enumerate(_byte_names())}, []))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.decoder = decoders.ByteLevel()
    else:
        table = {token: i for i, token in enumerate(tokenizer.source)}
        unknown = tokenizer.specials.get("unknown", "<unk>")  # without one, what is not known is an error
        backend = library.Tokenizer(WordLevel(table, unk_token=unknown))
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        backend.decoder = decoders.Fuse()
    backend.add_special_tokens(names)
    return backend.to_str()


def _byte_names() -> list[str]:
    """A character for each byte: its own where it can be seen, or one from 256 on."""
    seen = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in seen else next(others)) for byte in range(256)]


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
