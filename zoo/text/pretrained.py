"""Tokenizers of published models, and the roles of their special tokens."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any, Literal

from zoo.text.library_engines import SentencePieceEngine
from zoo.trust.reading import read_json

# Names of special tokens by their roles, for files that do not state them; the first one in the file is taken.
NAMES = {
    "pad": ("<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>"),
    "unknown": ("<unk>", "[UNK]"),
    "bos": ("<bos>", "<s>", "<|begin_of_text|>", "<|endoftext|>"),
    "eos": ("<eos>", "</s>", "<|end_of_text|>", "<|endoftext|>"),
    "mask": ("<mask>", "[MASK]"),
    "cls": ("[CLS]",),
    "sep": ("[SEP]",),
}
# Hugging Face's keys for them.
KEYS = {
    "pad": "pad_token",
    "unknown": "unk_token",
    "bos": "bos_token",
    "eos": "eos_token",
    "mask": "mask_token",
    "cls": "cls_token",
    "sep": "sep_token",
}
Parts = tuple[Literal["huggingface", "sentencepiece"], str, dict[str, str]]
"""The arguments of ``Tokenizer``: level, source and special tokens."""


def read_pretrained(path: Path) -> Parts:
    """Read a published tokenizer.

    Args:
        path: a ``tokenizer.json``, a ``tokenizer.model``, or a folder with one of them.
    """
    if path.is_dir():
        found = [path / name for name in ("tokenizer.json", "tokenizer.model") if (path / name).is_file()]
        if not found:
            raise ValueError(f"{path} holds no tokenizer.json and no tokenizer.model")
        path = found[0]
    if not path.is_file():
        raise ValueError(f"no tokenizer {path}: a tokenizer.json, a tokenizer.model or a folder with one is needed")
    if path.suffix == ".model":
        return _read_sentencepiece(path)
    return _read_json(path)


def _read_json(path: Path) -> Parts:
    content = read_json(path)
    model = content.get("model")
    if not isinstance(model, dict):
        raise ValueError(f"{path} is no tokenizer of the tokenizers library: it has no 'model'")
    added = _added_tokens(path, content)
    specials = {}
    for role, names in NAMES.items():
        known = [name for name in names if name in added]
        if known:
            specials[role] = known[0]
    unknown = model.get("unk_token")
    # It may be the name of a token that does not exist.
    if isinstance(unknown, str) and unknown in (*added, *(model.get("vocab") or ())):
        specials["unknown"] = unknown
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        config_path = path.with_name(name)
        if config_path.is_file():
            _update_specials(specials, read_json(config_path), added)
    return "huggingface", path.read_text(encoding="utf-8"), specials


def _added_tokens(path: Path, content: dict[str, Any]) -> list[str]:
    added = []
    tokens = content.get("added_tokens") or []
    if not isinstance(tokens, list):
        raise ValueError(f"{path}: added_tokens is a {type(tokens).__name__}, not a list of tokens")
    for token in tokens:
        if not isinstance(token, dict):
            raise ValueError(f"{path}: added_tokens holds a {type(token).__name__}, not tokens")
        if isinstance(token.get("content"), str):
            added.append(token["content"])
    return added


def _update_specials(specials: dict[str, str], config: dict[str, Any], added: list[str]) -> None:
    """Set the roles that a config file states, and remove those that it sets to null."""
    for role, key in KEYS.items():
        token = config.get(key)
        if isinstance(token, dict):
            token = token.get("content")
        if token is None and key in config:
            specials.pop(role, None)
        elif isinstance(token, str) and token in added:
            specials[role] = token


def _read_sentencepiece(path: Path) -> Parts:
    content = path.read_bytes()
    first_line = content[:200].split(b"\n")[0].split(b" ")
    if len(first_line) == 2 and first_line[1].isdigit():
        raise ValueError(f"{path} is in the form of tiktoken (LLaMA 3): take the tokenizer.json that comes with it")
    source = base64.b64encode(content).decode()
    try:
        backend = SentencePieceEngine(source).backend
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    ids = {"pad": backend.pad_id(), "unknown": backend.unk_id(), "bos": backend.bos_id(), "eos": backend.eos_id()}
    specials = {role: backend.id_to_piece(i) for role, i in ids.items() if i >= 0}
    return "sentencepiece", source, specials
