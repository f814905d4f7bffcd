"""Tokenizers: characters, bytes, words, or subwords (Sennrich 2016, https://arxiv.org/abs/1508.07909)."""

from __future__ import annotations

import base64
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from zoo.terminal import printable
from zoo.text.engines import Array, ByteEngine, Engine, VocabularyEngine
from zoo.text.library_engines import SentencePieceEngine, TokenizersEngine
from zoo.text.pretrained import read_pretrained
from zoo.text.training import count_characters, train_bpe, train_wordpiece
from zoo.text.vocabulary import UNKNOWN, Vocabulary, tokenize
from zoo.trust.reading import unpack

TrainedLevel = Literal["characters", "bytes", "words", "bpe", "wordpiece"]
PublishedLevel = Literal["huggingface", "sentencepiece"]
TokenizerLevel = Literal[TrainedLevel, PublishedLevel]
LEVELS = (*get_args(TrainedLevel), *get_args(PublishedLevel))
Role = Literal["pad", "unknown", "bos", "eos", "mask", "cls", "sep"]
SUBWORD_VOCAB_SIZE = 8000  # of trained subwords, unless another size is given

# The special tokens of trained tokenizers, unless others are given: those of GPT-2 and of BERT.
SPECIALS: dict[str, dict[str, str]] = {
    "characters": {},
    "bytes": {},
    "words": {"unknown": UNKNOWN},
    "bpe": {"bos": "<|endoftext|>", "eos": "<|endoftext|>"},
    "wordpiece": {"pad": "[PAD]", "unknown": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
}


class Tokenizer:
    """Tokenizer, trained on texts or read from published files.

    Texts are encoded without special tokens by default. ``pad_id``, ``unknown_id``, ``bos_id``, ``eos_id``,
    ``mask_id``, ``cls_id`` and ``sep_id`` are the ids of these, None where there is no such token.

    Args:
        level: tokens are ``characters``, ``bytes`` (of UTF-8), ``words`` (in lower case; punctuation too), ``bpe`` or
            ``wordpiece`` (subwords), or those of a file: ``huggingface`` or ``sentencepiece``.
        source: all tokens in the order of their ids for ``characters`` and ``words``, nothing for ``bytes``, the JSON
            of the tokenizers library, or the base64 of sentencepiece's file.
        specials: special tokens by their roles, such as ``{"eos": "<|endoftext|>"}``.
    """

    def __init__(
        self,
        level: TokenizerLevel,
        source: Sequence[str] | str = (),
        specials: Mapping[str, str] | None = None,
    ) -> None:
        if level not in LEVELS:
            raise ValueError(f"level must be one of {', '.join(LEVELS)}, got {level!r}")
        if specials is None:
            specials = SPECIALS.get(level, {})
        roles = get_args(Role)
        unknown_roles = sorted(set(specials) - set(roles))
        if unknown_roles:
            raise ValueError(f"specials are {', '.join(roles)}, got {', '.join(unknown_roles)}")
        self.level = level
        self.specials = dict(specials)
        self.engine = _make_engine(level, source, list(dict.fromkeys(self.specials.values())))
        ids = {role: self.engine.token_to_id(name) for role, name in self.specials.items()}
        for role, i in ids.items():
            if i is None:
                raise ValueError(f"the {role} token {self.specials[role]!r} is not among the {len(self)} tokens")
        self.pad_id = ids.get("pad")
        self.unknown_id = ids.get("unknown")
        self.bos_id = ids.get("bos")
        self.eos_id = ids.get("eos")
        self.mask_id = ids.get("mask")
        self.cls_id = ids.get("cls")
        self.sep_id = ids.get("sep")

    # Making -----------------------------------------------------------------------------------------------------------

    @classmethod
    def train(
        cls,
        level: TrainedLevel,
        texts: Iterable[str],
        vocab_size: int | None = None,
        min_freq: int = 1,
        specials: Mapping[str, str] | None = None,
        lowercase: bool = True,
    ) -> Tokenizer:
        """Train a tokenizer.

        Args:
            level: as in the class.
            texts: training texts.
            vocab_size: vocabulary size of subwords, special tokens included, 8,000 if null; of characters and words the
                maximum, unlimited if null.
            min_freq: minimum number of occurrences of a token.
            specials: special tokens by their roles, in the order of their ids; null takes those of GPT-2 for ``bpe``,
                those of BERT for ``wordpiece``, ``<unk>`` for words, and none for characters and bytes.
            lowercase: whether ``wordpiece`` puts texts into lower case and removes accents.
        """
        if level not in get_args(TrainedLevel):
            raise ValueError(f"trained tokens are {', '.join(get_args(TrainedLevel))}, got {level!r}")
        if specials is None:
            specials = SPECIALS[level]
        if level == "bytes":
            return cls(level, (), specials)
        names = list(dict.fromkeys(specials.values()))
        if level in ("characters", "words"):
            vocabulary = Vocabulary.build(_count_tokens(level, texts), min_freq, vocab_size, names)
            return cls(level, vocabulary.tokens, specials)
        if min_freq < 1:
            raise ValueError(f"min_freq starts at 1, got {min_freq}")
        if vocab_size is None:
            vocab_size = SUBWORD_VOCAB_SIZE
        if level == "bpe":
            source = train_bpe(texts, vocab_size, min_freq, names)
        else:
            source = train_wordpiece(texts, vocab_size, min_freq, specials, lowercase)
        return cls(level, source, specials)

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a published tokenizer.

        Args:
            path: a ``tokenizer.json``, LLaMA's ``tokenizer.model``, or a folder with one of them.
        """
        level, source, specials = read_pretrained(Path(path))
        try:
            return cls(level, source, specials)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @property
    def source(self) -> Any:
        """The ``source`` from which an equal tokenizer can be made."""
        return self.engine.source

    def plain(self) -> dict[str, str]:
        """Return everything in plain values, as one string that a command line does not take for JSON."""
        content = json.dumps([self.level, self.source, self.specials])
        packed = base64.b64encode(zlib.compress(content.encode()))
        return {"packed": packed.decode()}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Tokenizer:
        """Return the tokenizer of what ``plain`` returned."""
        if not isinstance(plain, dict) or "packed" not in plain:
            raise ValueError(f"a tokenizer in a checkpoint is a dict with 'packed', got {printable(plain, 60)}")
        text = unpack(plain["packed"], "the tokenizer")
        try:
            level, source, specials = json.loads(text)
            if not all(isinstance(token, str) for token in source):
                raise ValueError("its tokens are not text")
            return cls(level, source, specials)
        except (TypeError, KeyError, AttributeError, RecursionError, ValueError) as error:
            raise ValueError(f"the tokenizer in the checkpoint cannot be used: {printable(error)}") from None

    def __eq__(self, other: object) -> bool:
        """Return whether both cut and number texts alike."""
        if not isinstance(other, Tokenizer):
            return NotImplemented
        if self.level != other.level or self.specials != other.specials:
            return False
        return self.source == other.source

    def __hash__(self) -> int:
        return hash((self.level, len(self)))

    # Using ------------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.engine)

    def encode(self, text: str, add_special_tokens: bool = False, parse_special: bool = False) -> list[int]:
        """Return the token ids of a text.

        Args:
            text: the text.
            add_special_tokens: whether to add the special tokens around a text, such as BERT's ``[CLS]`` and ``[SEP]``.
            parse_special: whether names of special tokens in the text mean these, as in a prompt that one has written
                oneself; else they are text as any.
        """
        try:
            text.encode()
        except UnicodeEncodeError:
            mistake = "the text has bytes that are not UTF-8, or half of a surrogate pair: no character"
            raise ValueError(mistake) from None
        if add_special_tokens:
            return self.engine.encode_with_special_tokens(text)
        if parse_special:
            return self.engine.encode_parsing_special_tokens(text)
        return self.engine.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of several texts, computed in parallel where the level can."""
        return self.engine.encode_batch(texts)

    def encode_array(self, text: str) -> Array:
        """Return the token ids as an array, for long texts."""
        return self.engine.encode_array(text)

    def decode(self, ids: Iterable[int], unknown: str = UNKNOWN, skip_special_tokens: bool = True) -> str:
        """Return the text of token ids; bytes that are not UTF-8, or not yet, are U+FFFD.

        Args:
            ids: token ids.
            unknown: stands for an unknown character or word.
            skip_special_tokens: whether special tokens are left out.
        """
        return self.engine.decode(self._check_ids(ids), unknown, skip_special_tokens)

    def names(self, ids: Iterable[int]) -> list[str]:
        """Return the tokens of ids one by one, special ones too."""
        return [self.engine.id_to_token(i) for i in self._check_ids(ids)]

    def _check_ids(self, ids: Iterable[int]) -> list[int]:
        ids = [int(i) for i in ids]
        size = len(self)
        if ids and (min(ids) < 0 or max(ids) >= size):
            wrong = next(i for i in ids if not 0 <= i < size)
            raise ValueError(f"token {wrong} is none of the {size} that the tokenizer knows")
        return ids


def _make_engine(level: str, source: Sequence[str] | str, specials: Sequence[str]) -> Engine:
    if level == "characters" or level == "words":
        return VocabularyEngine(level, source, specials)
    if level == "bytes":
        return ByteEngine(specials)
    if level == "sentencepiece":
        return SentencePieceEngine(str(source))
    return TokenizersEngine(str(source))


def _count_tokens(level: str, texts: Iterable[str]) -> Counter[str] | Iterable[list[str]]:
    if level == "characters":
        return count_characters(texts)
    return (tokenize(text) for text in texts)
