"""Text as numbers and back: characters, bytes, words, or parts of words (Sennrich 2016, https://arxiv.org/abs/1508.07909)."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from zoo.terminal import printable
from zoo.text.engines import Array, ByteEngine, Engine, SentencePieceEngine, TokenizersEngine, VocabularyEngine
from zoo.text.pretrained import read_pretrained
from zoo.text.training import count_characters, train_bpe, train_wordpiece
from zoo.text.vocabulary import UNKNOWN, Vocabulary, tokenize
from zoo.trust.reading import unpack

TrainedLevel = Literal["characters", "bytes", "words", "bpe", "wordpiece"]
TokenizerLevel = Literal[TrainedLevel, "huggingface", "sentencepiece"]
Role = Literal["pad", "unknown", "bos", "eos", "mask", "cls", "sep"]

# The special tokens of trained tokenizers, unless others are asked for: those of GPT-2 and of BERT.
SPECIALS: dict[str, dict[str, str]] = {
    "characters": {},
    "bytes": {},
    "words": {"unknown": UNKNOWN},
    "bpe": {"bos": "<|endoftext|>", "eos": "<|endoftext|>"},
    "wordpiece": {"pad": "[PAD]", "unknown": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
}


class Tokenizer:
    """What the tokens of a text are: trained on texts, or read from published files.

    It is encoded without special tokens unless they are asked for, and ``pad_id``, ``unknown_id``, ``bos_id``,
    ``eos_id``, ``mask_id``, ``cls_id`` and ``sep_id`` are their numbers, or None where there is none.

    Args:
        level: tokens are ``characters``, ``bytes`` (of UTF-8), ``words`` (in lower case; signs too), ``bpe`` or
            ``wordpiece`` (pieces of words), or those of a file: ``huggingface`` or ``sentencepiece``.
        source: all tokens by their numbers for ``characters`` and ``words``, nothing for ``bytes``, the JSON of the
            tokenizers library, or the base64 of sentencepiece's file.
        specials: special tokens by their roles, such as ``{"eos": "<|endoftext|>"}``.
    """

    def __init__(
        self, level: TokenizerLevel, source: Sequence[str] | str = (), specials: Mapping[str, str] | None = None
    ) -> None:
        levels = [name for part in get_args(TokenizerLevel) for name in (get_args(part) or (part,))]
        if level not in levels:
            raise ValueError(f"level must be one of {', '.join(levels)}, got {level!r}")
        self.level, self.specials = level, dict(SPECIALS.get(level, {}) if specials is None else specials)
        if strange := set(self.specials) - set(get_args(Role)):
            raise ValueError(f"specials are {', '.join(get_args(Role))}, got {', '.join(sorted(strange))}")
        names = list(dict.fromkeys(self.specials.values()))
        self.engine: Engine
        if level == "characters" or level == "words":
            self.engine = VocabularyEngine(level, source, names)
        elif level == "bytes":
            self.engine = ByteEngine(names)
        else:
            self.engine = (SentencePieceEngine if level == "sentencepiece" else TokenizersEngine)(str(source))
        ids = {role: self.engine.number(name) for role, name in self.specials.items()}
        for role, i in ids.items():
            if i is None:
                raise ValueError(f"the {role} token {self.specials[role]!r} is not among the {len(self)} tokens")
        self.pad_id, self.unknown_id = ids.get("pad"), ids.get("unknown")
        self.bos_id, self.eos_id = ids.get("bos"), ids.get("eos")
        self.mask_id, self.cls_id, self.sep_id = ids.get("mask"), ids.get("cls"), ids.get("sep")

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
        """Count the tokens of texts.

        Args:
            level: as in the class.
            texts: of training.
            vocab_size: keep the most frequent tokens, special ones included; null keeps all characters and words, and
                8,000 pieces of words.
            min_freq: how often a token must occur.
            specials: special tokens by their roles, in their order; null takes those of GPT-2 for ``bpe``, those of
                BERT for ``wordpiece``, ``<unk>`` for words, and none for characters and bytes.
            lowercase: of ``wordpiece``: whether texts are put into lower case, and accents left out.
        """
        if level not in get_args(TrainedLevel):
            raise ValueError(f"trained tokens are {', '.join(get_args(TrainedLevel))}, got {level!r}")
        specials = SPECIALS[level] if specials is None else specials
        size = 8000 if vocab_size is None else vocab_size
        names = list(dict.fromkeys(specials.values()))
        if level == "bytes":
            return cls(level, (), specials)
        if level in ("bpe", "wordpiece") and min_freq < 1:
            raise ValueError(f"min_freq starts at 1, got {min_freq}")
        if level == "bpe":
            return cls(level, train_bpe(texts, size, min_freq, names), specials)
        if level == "wordpiece":
            return cls(level, train_wordpiece(texts, size, min_freq, specials, lowercase), specials)
        counts = count_characters(texts) if level == "characters" else (tokenize(text) for text in texts)
        return cls(level, Vocabulary.build(counts, min_freq, vocab_size, names).tokens, specials)

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a published tokenizer.

        Args:
            path: a ``tokenizer.json``, LLaMA's ``tokenizer.model``, or a folder with one of them.
        """
        parts = read_pretrained(Path(path))
        try:
            return cls(*parts)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @property
    def source(self) -> Any:
        """What the class is built from, beside the level and the special tokens."""
        return self.engine.source

    def plain(self) -> dict[str, str]:
        """Everything as one string, which a command line does not take for the JSON that is in it."""
        parts = [self.level, self.source, self.specials]
        return {"packed": base64.b64encode(zlib.compress(json.dumps(parts).encode())).decode()}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Tokenizer:
        """The tokenizer that said so of itself."""
        if not isinstance(plain, dict) or "packed" not in plain:
            raise ValueError(f"a tokenizer in a checkpoint is a dict with 'packed', got {printable(plain, 60)}")
        text = unpack(plain["packed"], "the tokenizer")
        try:
            level, source, specials = json.loads(text)
            return cls(level, source, specials)
        except (TypeError, KeyError, AttributeError, RecursionError, ValueError) as error:
            raise ValueError(f"the tokenizer in the checkpoint cannot be used: {printable(error)}") from None

    def __eq__(self, other: object) -> bool:
        """Whether both cut and number texts alike."""
        if not isinstance(other, Tokenizer):
            return NotImplemented
        ours, theirs = ((t.level, t.source, t.specials) for t in (self, other))
        return ours == theirs

    def __hash__(self) -> int:
        return hash((self.level, len(self)))

    # Using ------------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.engine)

    def encode(self, text: str, add_special_tokens: bool = False, parse_special: bool = False) -> list[int]:
        """Numbers of a text's tokens.

        Args:
            text: to be cut.
            add_special_tokens: with those that belong around a text, such as BERT's ``[CLS]`` and ``[SEP]``.
            parse_special: whether names of special tokens in the text mean these, as in a prompt one has written
                oneself; else they are text as any.
        """
        try:
            text.encode()
        except UnicodeEncodeError:
            config = "the text has bytes that are not UTF-8, or half of a surrogate pair: no character"
            raise ValueError(config) from None
        if add_special_tokens:
            return self.engine.encode_with_special_tokens(text)
        return self.engine.encode_parsing_special_tokens(text) if parse_special else self.engine.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The same of several texts, at once where the level can."""
        return self.engine.encode_batch(texts)

    def encode_array(self, text: str) -> Array:
        """The same as an array, for long texts."""
        return self.engine.encode_array(text)

    def decode(self, ids: Iterable[int], unknown: str = UNKNOWN, skip_special_tokens: bool = True) -> str:
        """The text of numbers; bytes that are no UTF-8, or not yet, are U+FFFD.

        Args:
            ids: numbers of tokens.
            unknown: what stands for an unknown character or word.
            skip_special_tokens: leave out special tokens.
        """
        return self.engine.decode(self._known(ids), unknown, skip_special_tokens)

    def names(self, ids: Iterable[int]) -> list[str]:
        """The tokens of numbers one by one, special ones too."""
        return [self.engine.name(i) for i in self._known(ids)]

    def _known(self, ids: Iterable[int]) -> list[int]:
        found = [int(i) for i in ids]
        if found and not 0 <= min(found) <= max(found) < len(self):
            strange = next(i for i in found if not 0 <= i < len(self))
            raise ValueError(f"token {strange} is none of the {len(self)} that the tokenizer knows")
        return found
