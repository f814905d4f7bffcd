"""Text as numbers and back: characters, words, or parts of words (Sennrich 2016, https://arxiv.org/abs/1508.07909)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

from zoo.text.vocabulary import PAD, UNKNOWN, Vocabulary, tokenize

CodecLevel = Literal["characters", "words", "bpe"]
SPECIALS = (PAD, UNKNOWN, "<bos>", "<eos>")
PAD_ID, UNKNOWN_ID, BOS_ID, EOS_ID = range(4)


class Codec:
    """What the tokens of a language are, counted in training texts.

    Args:
        level: tokens are ``characters``, ``words`` (in lower case; signs too) or ``bpe``: pieces of words, down to
            bytes, so that no text is unknown.
        source: all tokens by their numbers, or the JSON of a tokenizer for ``bpe``.
    """

    def __init__(self, level: CodecLevel, source: Sequence[str] | str) -> None:
        if level not in get_args(CodecLevel):
            raise ValueError(f"level must be {', '.join(get_args(CodecLevel))}, got {level!r}")
        self.level: CodecLevel = level
        self.bpe: Any = _tokenizers().Tokenizer.from_str(source) if level == "bpe" else None
        if level == "bpe":
            self.bpe.encode_special_tokens = True  # a text that says "<eos>" does not end there
        self.vocabulary = None if level == "bpe" else Vocabulary(source, SPECIALS)

    @classmethod
    def build(cls, level: CodecLevel, texts: Iterable[str], max_size: int | None = None, min_freq: int = 1) -> Codec:
        """Count the tokens of training texts.

        Args:
            level: as in the class.
            texts: of training.
            max_size: keep the most frequent tokens, special ones included; null keeps all (8,000 of ``bpe``).
            min_freq: how often a token must occur.
        """
        if level == "bpe":
            return cls(level, _train_bpe(texts, max_size or 8000, min_freq))
        cut: Literal["characters", "words"] = "words" if level == "words" else "characters"
        tokens = Vocabulary.build((tokenize(text, cut) for text in texts), min_freq, max_size, SPECIALS).tokens
        return cls(level, tokens)

    def __len__(self) -> int:
        return len(self.vocabulary) if self.vocabulary is not None else self.bpe.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Numbers of a text's tokens, without special ones."""
        if self.vocabulary is None:
            return self.bpe.encode(text).ids
        return self.vocabulary.encode(tokenize(text, "words" if self.level == "words" else "characters"))

    def decode(self, numbers: Iterable[int], unknown: str = UNKNOWN) -> str:
        """The text of numbers, without special tokens.

        Args:
            numbers: of tokens.
            unknown: what stands for a token that is not known.
        """
        numbers = list(numbers)
        if self.vocabulary is None:
            return self.bpe.decode(numbers)
        known = [unknown if i == UNKNOWN_ID else self.vocabulary.tokens[i] for i in numbers if i == 1 or i > EOS_ID]
        return (" " if self.level == "words" else "").join(token for token in known if token)

    def names(self, numbers: Iterable[int]) -> list[str]:
        """The tokens of numbers one by one, special ones too."""
        if self.vocabulary is not None:
            return [self.vocabulary.tokens[i] for i in numbers]
        return [SPECIALS[i] if i < len(SPECIALS) else self.bpe.decode([i]) for i in numbers]

    def plain(self) -> dict[str, Any]:
        """Everything, in strings and lists."""
        return {"level": self.level, "source": self.bpe.to_str() if self.vocabulary is None else self.vocabulary.tokens}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Codec:
        if not isinstance(plain, dict) or set(plain) != {"level", "source"}:
            raise ValueError(f"a codec is a dict of level and source, got {str(plain)[:60]}")
        return cls(**plain)


def _train_bpe(texts: Iterable[str], max_size: int, min_freq: int) -> str:
    tokenizers = _tokenizers()
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    if max_size < len(alphabet) + len(SPECIALS):
        raise ValueError(
            f"bpe needs a max_size of {len(alphabet) + len(SPECIALS)} or more, one for each byte: {max_size=}"
        )
    options = {"vocab_size": max_size, "min_frequency": min_freq, "show_progress": False}
    trainer = tokenizers.trainers.BpeTrainer(special_tokens=list(SPECIALS), initial_alphabet=alphabet, **options)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.to_str()


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ModuleNotFoundError:
        raise ValueError("level bpe needs the tokenizers library: pip install 'lightning-zoo[text]'") from None
    return tokenizers
