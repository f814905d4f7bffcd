"""Tokens and their numbers: words or characters, counted in the training texts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Literal, get_args

Level = Literal["words", "characters"]
PAD, UNKNOWN = "<pad>", "<unk>"
_WORD = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]")


def tokenize(text: str, level: Level = "words") -> list[str]:
    """Cut a text into words in lower case and signs, or into characters as they are."""
    return _WORD.findall(text.lower()) if level == "words" else list(text)


class Vocabulary:
    """A number for each token: first the special ones (0 is padding, 1 stands for the unknown), then the others.

    Args:
        tokens: all tokens, by their numbers.
        specials: those that ``tokens`` must begin with; without ``<unk>`` among them no unknown token can be encoded.
    """

    def __init__(self, tokens: Sequence[str], specials: Sequence[str] = (PAD, UNKNOWN)) -> None:
        self.tokens, self.specials = list(tokens), list(specials)
        if self.tokens[: len(specials)] != self.specials:
            raise ValueError(f"a vocabulary begins with {', '.join(specials)}, got {', '.join(self.tokens[:4])}")
        self.index = {token: i for i, token in enumerate(self.tokens)}
        if len(self.index) != len(self.tokens):
            twice = next(token for token, n in Counter(self.tokens).items() if n > 1)
            raise ValueError(f"{twice!r} stands twice in the vocabulary")
        self.unknown = self.specials.index(UNKNOWN) if UNKNOWN in self.specials else None

    @classmethod
    def build(
        cls,
        texts: Iterable[Sequence[str]] | Counter[str],
        min_freq: int = 1,
        max_size: int | None = None,
        specials: Sequence[str] = (PAD, UNKNOWN),
    ) -> Vocabulary:
        """Count the tokens of training texts.

        Args:
            texts: as tokens; or already counted.
            min_freq: how often a token must occur; a rarer one is unknown.
            max_size: keep the most frequent, special ones included; null keeps all.
            specials: tokens that come first.
        """
        if min_freq < 1 or (max_size is not None and max_size <= len(specials)):
            least = f"min_freq from 1 and max_size from {len(specials) + 1}"
            raise ValueError(f"a vocabulary takes {least}, got {min_freq=}, {max_size=}")
        counts = texts if isinstance(texts, Counter) else Counter(chain.from_iterable(texts))
        kept = [t for t, n in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])) if n >= min_freq]
        tokens = [*specials, *(t for t in kept if t not in specials)]
        return cls(tokens[:max_size], specials)

    def __len__(self) -> int:
        return len(self.tokens)

    def encode(self, tokens: Iterable[str]) -> list[int]:
        """Numbers of tokens; one that is not known has that of ``<unk>``."""
        index, unknown = self.index, self.unknown
        if unknown is not None:
            return [index.get(token, unknown) for token in tokens]
        try:
            return [index[token] for token in tokens]
        except KeyError as error:
            (strange,) = error.args
            what = "characters" if all(len(token) == 1 for token in self.tokens) else "tokens"
            raise ValueError(f"{strange!r} is none of the {len(self)} {what} of the training texts") from None

    def decode(self, numbers: Iterable[int]) -> list[str]:
        """Tokens of numbers, without padding."""
        return [self.tokens[i] for i in numbers if self.tokens[i] != PAD]


def check_level(level: str) -> None:
    if level not in get_args(Level):
        raise ValueError(f"level must be {' or '.join(get_args(Level))}, got {level!r}")
