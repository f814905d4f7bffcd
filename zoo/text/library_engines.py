"""Tokenizers of two libraries: Hugging Face's tokenizers, and sentencepiece."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np

from zoo.terminal import printable
from zoo.text.engines import Array, Engine
from zoo.text.word_cache import WordCache, splits_like_gpt2
from zoo.trust.reading import parse_json_object

CANNOT_TOKENIZE = "the tokenizer cannot cut the text, perhaps for a character that it does not know"
MAX_TOKENS = 2**23  # an id beyond it would make embeddings of that size
CACHE_AFTER = 1 << 20  # characters after which a cache of words is worth the tables that it needs


def load_tokenizers() -> Any:
    """Return the tokenizers library.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import tokenizers
    except ModuleNotFoundError:
        raise ValueError("these tokens need the tokenizers library: pip install tokenizers") from None
    return tokenizers


@contextmanager
def as_value_error(what: str) -> Iterator[None]:
    """Turn errors of the tokenizers library, which are bare exceptions, into ValueErrors."""
    try:
        yield
    except BaseException as error:
        # A panic of the library's Rust code is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())
        raise ValueError(f"{what}: {printable(reason, 200)}") from None


def check_ids(source: str) -> None:
    """Raise an error for ids of tokens so high that the tokenizers library would run out of memory over them.

    Args:
        source: JSON of the tokenizers library.
    """
    content = parse_json_object(source, "the tokenizer")
    model = content.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else []
    added = content.get("added_tokens")
    for token in added if isinstance(added, list) else ():
        ids.append(token.get("id") if isinstance(token, dict) else None)
    for token_id in ids:
        if type(token_id) is not int or not 0 <= token_id < MAX_TOKENS:
            raise ValueError(f"a token has the id {printable(token_id)}, but an id is from 0 to {MAX_TOKENS - 1:,}")


class TokenizersEngine(Engine):
    """A tokenizer of the tokenizers library.

    Args:
        source: its JSON, as in ``tokenizer.json``.
    """

    def __init__(self, source: str) -> None:
        tokenizers = load_tokenizers()
        check_ids(source)
        with as_value_error("no tokenizer in the form of tokenizer.json"):
            self.backend: Any = tokenizers.Tokenizer.from_str(source)
        # Published files may truncate and pad to 128 tokens.
        self.backend.no_truncation()
        self.backend.no_padding()
        self.source = self.backend.to_str()
        self.backend.encode_special_tokens = True  # as text
        added = self.backend.get_added_tokens_decoder()
        self.specials = {i for i, token in added.items() if token.special}
        # Ids may have gaps.
        self.size = max(self.backend.get_vocab().values(), default=-1) + 1
        if not 0 < self.size <= MAX_TOKENS:
            allowed = f"at most {MAX_TOKENS - 1:,} is allowed"
            raise ValueError(f"the tokens have numbers up to {self.size - 1:,}, but {allowed}")
        self._words: WordCache | None = None
        if splits_like_gpt2(self.source):
            self._words = WordCache(self.encode)
        self._seen = 0  # characters encoded so far

    def __len__(self) -> int:
        return self.size

    def encode(self, text: str) -> list[int]:
        return self._encode_with(self.backend, text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        with as_value_error(CANNOT_TOKENIZE):
            encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def encode_array(self, text: str) -> Array:
        self._seen += len(text)
        if self._words is not None and self._seen > CACHE_AFTER:
            ids = self._words.encode(text)
            if ids is not None:
                return ids
        return np.array(self.encode(text), np.uint32)

    def encode_with_special_tokens(self, text: str) -> list[int]:
        return self._encode_with(self.backend, text, add_special_tokens=True)

    @cached_property
    def _parsing_backend(self) -> Any:
        """The tokenizer as the library has it by default: names of special tokens in a text mean these."""
        return load_tokenizers().Tokenizer.from_str(self.source)

    def encode_parsing_special_tokens(self, text: str) -> list[int]:
        return self._encode_with(self._parsing_backend, text)

    def _encode_with(self, backend: Any, text: str, add_special_tokens: bool = False) -> list[int]:
        with as_value_error(CANNOT_TOKENIZE):
            return backend.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, ids: list[int], unknown: str, skip: bool) -> str:
        return self.backend.decode(ids, skip_special_tokens=skip)

    def id_to_token(self, i: int) -> str:
        token = self.backend.id_to_token(i) or ""
        if i in self.specials:
            return token
        # The text of a token, as its name may write bytes and spaces otherwise.
        return self.backend.decode([i], skip_special_tokens=False) or token

    def token_to_id(self, token: str) -> int | None:
        return self.backend.token_to_id(token)


class SentencePieceEngine(Engine):
    """A sentencepiece model, as published with LLaMA and LLaMA 2.

    Args:
        source: the file in base64.
    """

    def __init__(self, source: str) -> None:
        try:
            import sentencepiece  # pyright: ignore[reportMissingImports]
        except ModuleNotFoundError:
            raise ValueError("a tokenizer.model needs sentencepiece: pip install sentencepiece") from None
        try:
            content = base64.b64decode(source, validate=True)
            self.backend: Any = sentencepiece.SentencePieceProcessor(model_proto=content)
        except (RuntimeError, binascii.Error):
            raise ValueError("no model of sentencepiece") from None
        self.source = source
        self.specials = {i for i in range(len(self)) if self.backend.is_control(i)}

    def __len__(self) -> int:
        return self.backend.get_piece_size()

    def encode(self, text: str) -> list[int]:
        return self.backend.encode(text)

    def encode_with_special_tokens(self, text: str) -> list[int]:
        has_bos = self.backend.bos_id() >= 0
        return self.backend.encode(text, add_bos=has_bos)

    def decode(self, ids: list[int], unknown: str, skip: bool) -> str:
        if skip or not self.specials & set(ids):
            return self.backend.decode(ids)
        # The library leaves out special tokens: the texts between them are decoded one by one.
        parts = []
        start = 0
        for stop, i in enumerate(ids):
            if i in self.specials:
                parts.append(self.backend.decode(ids[start:stop]))
                parts.append(self.id_to_token(i))
                start = stop + 1
        parts.append(self.backend.decode(ids[start:]))
        return "".join(parts)

    def id_to_token(self, i: int) -> str:
        return self.backend.id_to_piece(i).replace("\u2581", " ")

    def token_to_id(self, token: str) -> int | None:
        i = self.backend.piece_to_id(token)
        if self.backend.id_to_piece(i) != token:
            return None  # piece_to_id gives the unknown token then
        return i
