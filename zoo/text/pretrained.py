"""Tokenizers of published models, and what their special tokens are for."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Literal

from zoo.trust.reading import read_json

# What special tokens are called, of files that do not say what they are for; the first that is there is taken.
NAMES = {
    "pad": ("<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>"),
    "unknown": ("<unk>", "[UNK]"),
    "bos": ("<bos>", "<s>", "<|begin_of_text|>", "<|endoftext|>"),
    "eos": ("<eos>", "</s>", "<|end_of_text|>", "<|endoftext|>"),
    "mask": ("<mask>", "[MASK]"),
    "cls": ("[CLS]",),
    "sep": ("[SEP]",),
}
KEYS = {role: f"{'unk' if role == 'unknown' else role}_token" for role in NAMES}  # of Hugging Face
Parts = tuple[Literal["huggingface", "sentencepiece"], str, dict[str, str]]


def read_pretrained(path: Path) -> Parts:
    """Read a tokenizer's level, source and special tokens.

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
    return _read_sentencepiece(path) if path.suffix == ".model" else _read_json(path)


def _read_json(path: Path) -> Parts:
    content = read_json(path)
    if not isinstance(content.get("model"), dict):
        raise ValueError(f"{path} is no tokenizer of the tokenizers library: it has no 'model'")
    added = []
    for token in content.get("added_tokens") or []:
        if not isinstance(token, dict):
            raise ValueError(f"{path}: added_tokens holds a {type(token).__name__}, not tokens")
        if isinstance(token.get("content"), str):
            added.append(token["content"])
    specials = {role: name for role, names in NAMES.items() for name in reversed(names) if name in added}
    unknown = content["model"].get("unk_token")  # which may be the name of none
    if isinstance(unknown, str) and unknown in (*added, *(content["model"].get("vocab") or ())):
        specials["unknown"] = unknown
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        config = read_json(path.with_name(name)) if path.with_name(name).is_file() else {}
        for role, key in KEYS.items():
            token = config.get(key)
            token = token.get("content") if isinstance(token, dict) else token
            if token is None and key in config:
                specials.pop(role, None)
            elif isinstance(token, str) and token in added:
                specials[role] = token
    return "huggingface", path.read_text(encoding="utf-8"), specials


def _read_sentencepiece(path: Path) -> Parts:
    from zoo.text.engines import SentencePieceEngine

    content = path.read_bytes()
    head = content[:200].split(b"\n")[0].split(b" ")
    if len(head) == 2 and head[1].isdigit():
        raise ValueError(f"{path} is in the form of tiktoken (LLaMA 3): take the tokenizer.json that comes with it")
    source = base64.b64encode(content).decode()
    try:
        backend = SentencePieceEngine(source).backend
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    ids = {"pad": backend.pad_id(), "unknown": backend.unk_id(), "bos": backend.bos_id(), "eos": backend.eos_id()}
    return "sentencepiece", source, {role: backend.id_to_piece(i) for role, i in ids.items() if i >= 0}
