"""What cuts text into tokens: a table of characters or words, bytes, the tokenizers library, sentencepiece."""

from __future__ import annotations

import abc
import base64
import binascii
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np

from zoo.terminal import printable
from zoo.text.vocabulary import Level, Vocabulary, tokenize
from zoo.text.word_cache import WordCache, splits_like_gpt2

Array = np.ndarray
CANNOT_TOKENIZE = "the tokenizer cannot cut the text, perhaps for a character that it does not know"
MAX_TOKENS = 2**23  # a number beyond it would make embeddings of that size
CACHE_AFTER = 1 << 20  # characters after which keeping the pieces of words is worth the tables it needs


class Engine(abc.ABC):
    """Numbers of a text's tokens, and the text of numbers; all specials are named, and known by their names."""

    source: Any
    specials: set[int]

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of tokens."""

    @abc.abstractmethod
    def encode(self, text: str) -> list[int]:
        """Numbers of a text's tokens; a text that says "<eos>" does not end there."""

    @abc.abstractmethod
    def decode(self, ids: list[int], unknown: str, skip: bool) -> str:
        """The text of numbers; ``unknown`` stands for the unknown token of a table, ``skip`` leaves out specials."""

    @abc.abstractmethod
    def name(self, i: int) -> str:
        """What a token is called."""

    @abc.abstractmethod
    def number(self, token: str) -> int | None:
        """Of a special token."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def encode_array(self, text: str) -> Array:
        return np.array(self.encode(text), np.uint32)

    def encode_with_special_tokens(self, text: str) -> list[int]:
        """The same with the special tokens that belong around a text, where the tokenizer says which."""
        return self.encode(text)

    def encode_parsing_special_tokens(self, text: str) -> list[int]:
        """The same where the names of special tokens in the text mean these."""
        names = {self.name(i): i for i in self.specials}
        longest_first = sorted(names, key=len, reverse=True)
        parts = re.split(f"({'|'.join(map(re.escape, longest_first))})", text) if names else [text]
        return [i for part in parts if part for i in ([names[part]] if part in names else self.encode(part))]


class VocabularyEngine(Engine):
    """Characters as they are, or words in lower case and signs.

    Args:
        level: ``characters`` or ``words``.
        tokens: all, by their numbers.
        specials: those that ``tokens`` begin with.
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
    def _numbers(self) -> Array:
        """Numbers by code point, up to one behind the highest known."""
        known = {ord(token): i for i, token in enumerate(self.source) if i not in self.specials}
        numbers = np.full(max(known, default=0) + 2, -1 if self.unknown is None else self.unknown, np.int32)
        numbers[list(known)] = list(known.values())
        return numbers

    def encode_array(self, text: str) -> Array:
        if self.level == "words":
            return super().encode_array(text)
        points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        ids = self._numbers[np.minimum(points, len(self._numbers) - 1)]
        if len(ids) and ids.min() < 0:
            self.vocabulary.encode([text[int((ids < 0).argmax())]])  # which says what it does not know
        return ids

    def decode(self, ids: list[int], unknown: str, skip: bool) -> str:
        left_out = self.specials - {self.unknown} if skip else set()
        words = (unknown if i == self.unknown else self.source[i] for i in ids if i not in left_out)
        return (" " if self.level == "words" else "").join(word for word in words if word)

    def name(self, i: int) -> str:
        return self.source[i]

    def number(self, token: str) -> int | None:
        return self.vocabulary.index.get(token)


class ByteEngine(Engine):
    """The 256 bytes of UTF-8, and special tokens behind them.

    Args:
        names: of the special tokens.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names, self.source = list(names), []
        self.specials = set(range(256, 256 + len(names)))

    def __len__(self) -> int:
        return 256 + len(self.names)

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8"))

    def encode_array(self, text: str) -> Array:
        return np.frombuffer(text.encode("utf-8"), np.uint8)

    def decode(self, ids: list[int], unknown: str, skip: bool) -> str:
        if skip or max(ids, default=0) < 256:
            return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")
        whole = b"".join(bytes([i]) if i < 256 else self.names[i - 256].encode() for i in ids)
        return whole.decode("utf-8", errors="replace")

    def name(self, i: int) -> str:
        return self.names[i - 256] if i >= 256 else chr(i) if 32 <= i < 127 else f"<0x{i:02X}>"

    def number(self, token: str) -> int | None:
        return 256 + self.names.index(token) if token in self.names else None


@contextmanager
def as_value_error(what: str) -> Iterator[None]:
    """Tell errors of the tokenizers library, which are bare exceptions, as mistakes of a user."""
    try:
        yield
    except BaseException as error:
        # A panic of the library's Rust code is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"{what}: {printable(' '.join(str(error).split()), 200)}") from None


class TokenizersEngine(Engine):
    """A tokenizer of the tokenizers library.

    Args:
        source: its JSON, as ``tokenizer.json`` holds it.
    """

    def __init__(self, source: str) -> None:
        tokenizers = load_tokenizers()
        with as_value_error("no tokenizer in the form of tokenizer.json"):
            self.backend: Any = tokenizers.Tokenizer.from_str(source)
        self.backend.no_truncation()  # published files may cut at 128 tokens and pad to them
        self.backend.no_padding()
        self.source = self.backend.to_str()
        self.backend.encode_special_tokens = True
        self.specials = {i for i, token in self.backend.get_added_tokens_decoder().items() if token.special}
        self.size = max(self.backend.get_vocab().values(), default=-1) + 1  # numbers may have gaps
        if not 0 < self.size <= MAX_TOKENS:
            raise ValueError(
                f"the tokens have numbers up to {self.size - 1:,}, but at most {MAX_TOKENS - 1:,} is allowed"
            )
        self._words = WordCache(self.encode) if splits_like_gpt2(self.source) else None
        self._seen = 0

    def __len__(self) -> int:
        return self.size

    def encode(self, text: str) -> list[int]:
        return self._cut(self.backend, text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        with as_value_error(CANNOT_TOKENIZE):
            return [found.ids for found in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_array(self, text: str) -> Array:
        self._seen += len(text)
        if self._words is not None and self._seen > CACHE_AFTER:
            found = self._words.encode(text)
            if found is not None:
                return found
        return np.array(self.encode(text), np.uint32)

    def encode_with_special_tokens(self, text: str) -> list[int]:
        return self._cut(self.backend, text, add_special_tokens=True)

    @cached_property
    def _parsing(self) -> Any:
        return load_tokenizers().Tokenizer.from_str(self.source)

    def encode_parsing_special_tokens(self, text: str) -> list[int]:
        return self._cut(self._parsing, text)

    def _cut(self, library: Any, text: str, add_special_tokens: bool = False) -> list[int]:
        with as_value_error(CANNOT_TOKENIZE):
            return library.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, ids: list[int], unknown: str, skip: bool) -> str:
        return self.backend.decode(ids, skip_special_tokens=skip)

    def name(self, i: int) -> str:
        token = self.backend.id_to_token(i) or ""
        return token if i in self.specials else self.backend.decode([i], skip_special_tokens=False) or token

    def number(self, token: str) -> int | None:
        return self.backend.token_to_id(token)


class SentencePieceEngine(Engine):
    """A model of sentencepiece, as LLaMA's first two versions publish it.

    Args:
        source: the file, in base64.
    """

    def __init__(self, source: str) -> None:
        try:
            import sentencepiece  # pyright: ignore[reportMissingImports]
        except ModuleNotFoundError:
            raise ValueError("a tokenizer.model needs sentencepiece: pip install sentencepiece") from None
        try:
            self.backend: Any = sentencepiece.SentencePieceProcessor(
                model_proto=base64.b64decode(source, validate=True)
            )
        except (RuntimeError, binascii.Error):
            raise ValueError("no model of sentencepiece") from None
        self.source = source
        self.specials = {i for i in range(len(self)) if self.backend.is_control(i)}

    def __len__(self) -> int:
        return self.backend.get_piece_size()

    def encode(self, text: str) -> list[int]:
        return self.backend.encode(text)

    def encode_with_special_tokens(self, text: str) -> list[int]:
        return self.backend.encode(text, add_bos=self.backend.bos_id() >= 0)

    def decode(self, ids: list[int], unknown: str, skip: bool) -> str:
        if skip or not self.specials & set(ids):
            return self.backend.decode(ids)
        parts, start = [], 0
        for stop, i in enumerate([*ids, None]):
            if i is None or i in self.specials:
                parts += [self.backend.decode(ids[start:stop]), "" if i is None else self.name(i)]
                start = stop + 1
        return "".join(parts)

    def name(self, i: int) -> str:
        return self.backend.id_to_piece(i).replace("\u2581", " ")

    def number(self, token: str) -> int | None:
        i = self.backend.piece_to_id(token)
        return i if self.backend.id_to_piece(i) == token else None


def load_tokenizers() -> Any:
    """The tokenizers library, or how to get it."""
    try:
        import tokenizers
    except ModuleNotFoundError:
        raise ValueError("these tokens need the tokenizers library: pip install tokenizers") from None
    return tokenizers
