"""Tokenizers without a library: a table of characters or words, and bytes."""

from __future__ import annotations

import abc
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from zoo.text.vocabulary import Level, Vocabulary, tokenize

Array = np.ndarray
NUM_BYTES = 256


class Engine(abc.ABC):
    """Texts as token ids and back. Every special token has a name, by which it is found."""

    source: Any
    """What the engine is built from, in plain values."""
    specials: set[int]
    """Ids of the special tokens."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """Return the number of tokens."""

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text; names of special tokens in it are text as any."""

    @abc.abstractmethod
    def decode(self, ids: list[int], unknown: str, skip: bool) -> str:
        """Return the text of token ids.

        Args:
            ids: token ids.
            unknown: stands for the unknown token of a table.
            skip: whether special tokens are left out.
        """

    @abc.abstractmethod
    def id_to_token(self, i: int) -> str:
        """Return the name of a token."""

    @abc.abstractmethod
    def token_to_id(self, token: str) -> int | None:
        """Return the id of a special token by its name, None where there is none."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def encode_array(self, text: str) -> Array:
        return np.array(self.encode(text), np.uint32)

    def encode_with_special_tokens(self, text: str) -> list[int]:
        """Return the token ids with the special tokens around a text, where the tokenizer has a rule for these."""
        return self.encode(text)

    def encode_parsing_special_tokens(self, text: str) -> list[int]:
        """Return the token ids, those of special tokens for their names in the text."""
        names = {self.id_to_token(i): i for i in self.specials}
        if not names:
            return self.encode(text)
        longest_first = sorted(names, key=len, reverse=True)
        pattern = "|".join(re.escape(name) for name in longest_first)
        ids = []
        for part in re.split(f"({pattern})", text):
            if part in names:
                ids.append(names[part])
            elif part:
                ids += self.encode(part)
        return ids


class VocabularyEngine(Engine):
    """Characters as they are, or words in lower case and punctuation.

    Args:
        level: ``characters`` or ``words``.
        tokens: all tokens, in the order of their ids.
        specials: special tokens, which ``tokens`` begin with.
    """

    def __init__(self, level: Level, tokens: Sequence[str], specials: Sequence[str]) -> None:
        self.level: Level = level
        self.vocabulary = Vocabulary(tokens, specials)
        self.source = self.vocabulary.tokens
        self.specials = set(range(len(specials)))
        self.unknown = self.vocabulary.unknown

    def __len__(self) -> int:
        return len(self.vocabulary)

    def encode(self, text: str) -> list[int]:
        return self.vocabulary.encode(tokenize(text, self.level))

    @cached_property
    def _ids_by_code_point(self) -> Array:
        """Ids by code point, up to one behind the highest that is known; -1 where unknown characters are an error."""
        known = {ord(token): i for i, token in enumerate(self.source) if i not in self.specials}
        unknown = self.unknown
        if unknown is None:
            unknown = -1
        table = np.full(max(known, default=0) + 2, unknown, np.int32)
        table[list(known)] = list(known.values())
        return table

    def encode_array(self, text: str) -> Array:
        if self.level == "words":
            return super().encode_array(text)
        table = self._ids_by_code_point
        code_points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        ids = table[np.minimum(code_points, len(table) - 1)]
        if len(ids) and ids.min() < 0:
            first = int((ids < 0).argmax())
            self.vocabulary.encode([text[first]])  # raises the error that names the character
        return ids

    def decode(self, ids: list[int], unknown: str, skip: bool) -> str:
        left_out: set[int] = set()
        if skip:
            left_out = {i for i in self.specials if i != self.unknown}
        words = []
        for i in ids:
            if i in left_out:
                continue
            word = self.source[i]
            if i == self.unknown:
                word = unknown
            if word:
                words.append(word)
        if self.level == "words":
            return " ".join(words)
        return "".join(words)

    def id_to_token(self, i: int) -> str:
        return self.source[i]

    def token_to_id(self, token: str) -> int | None:
        return self.vocabulary.index.get(token)


class ByteEngine(Engine):
    """The 256 bytes of UTF-8, and special tokens behind them.

    Args:
        names: names of the special tokens.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self.source = []
        self.specials = set(range(NUM_BYTES, NUM_BYTES + len(names)))

    def __len__(self) -> int:
        return NUM_BYTES + len(self.names)

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))

    def encode_array(self, text: str) -> Array:
        return np.frombuffer(text.encode("utf-8"), np.uint8)

    def decode(self, ids: list[int], unknown: str, skip: bool) -> str:
        content = bytearray()
        for i in ids:
            if i < NUM_BYTES:
                content.append(i)
            elif not skip:
                content += self.names[i - NUM_BYTES].encode()
        return content.decode("utf-8", errors="replace")

    def id_to_token(self, i: int) -> str:
        if i >= NUM_BYTES:
            return self.names[i - NUM_BYTES]
        if 32 <= i < 127:  # printable
            return chr(i)
        return f"<0x{i:02X}>"

    def token_to_id(self, token: str) -> int | None:
        if token not in self.names:
            return None
        return NUM_BYTES + self.names.index(token)
