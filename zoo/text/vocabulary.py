"""Vocabularies of words or characters, counted in the training texts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, Literal, get_args

Level = Literal["words", "characters"]
PAD, UNKNOWN = "<pad>", "<unk>"
_WORD = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]")


def tokenize(text: str, level: Level = "words") -> list[str]:
    """Cut a text into words in lower case and punctuation, or into characters as they are."""
    if level == "words":
        return _WORD.findall(text.lower())
    return list(text)


class Vocabulary:
    """An id for each token: first the special ones (0 is padding, 1 the unknown token), then the others.

    Args:
        tokens: all tokens, in the order of their ids.
        specials: special tokens, which ``tokens`` must begin with; without ``<unk>`` an unknown token is an error.
    """

    def __init__(self, tokens: Sequence[str], specials: Sequence[str] = (PAD, UNKNOWN)) -> None:
        self.tokens = list(tokens)
        self.specials = list(specials)
        if self.tokens[: len(specials)] != self.specials:
            raise ValueError(f"a vocabulary begins with {', '.join(specials)}, got {', '.join(self.tokens[:4])}")
        self.index = {token: i for i, token in enumerate(self.tokens)}
        if len(self.index) != len(self.tokens):
            repeated = next(token for token, count in Counter(self.tokens).items() if count > 1)
            raise ValueError(f"{repeated!r} is in the vocabulary twice")
        self.unknown: int | None = None
        if UNKNOWN in self.specials:
            self.unknown = self.specials.index(UNKNOWN)

    @classmethod
    def build(
        cls,
        texts: Iterable[Sequence[str]] | Counter[str],
        min_freq: int = 1,
        max_size: int | None = None,
        specials: Sequence[str] = (PAD, UNKNOWN),
    ) -> Vocabulary:
        """Build a vocabulary of the most frequent tokens.

        Args:
            texts: training texts as tokens, or the counts of their tokens.
            min_freq: minimum number of occurrences of a token.
            max_size: maximum size, special tokens included; null for no limit.
            specials: special tokens, which come first.
        """
        if min_freq < 1 or (max_size is not None and max_size <= len(specials)):
            least = f"min_freq from 1 and max_size from {len(specials) + 1}"
            raise ValueError(f"a vocabulary takes {least}, got {min_freq=}, {max_size=}")
        counts: Counter[Any]
        if isinstance(texts, Counter):
            counts = texts
        else:
            counts = Counter(chain.from_iterable(texts))
        # Of equally frequent tokens the order is that of the alphabet, so that it does not depend on the texts' order.
        by_frequency = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
        tokens = list(specials)
        for token, count in by_frequency:
            if count >= min_freq and token not in specials:
                tokens.append(token)
        return cls(tokens[:max_size], specials)

    def __len__(self) -> int:
        return len(self.tokens)

    def encode(self, tokens: Iterable[str]) -> list[int]:
        """Return the ids of tokens, that of ``<unk>`` for unknown ones."""
        index = self.index
        unknown = self.unknown
        if unknown is not None:
            return [index.get(token, unknown) for token in tokens]
        try:
            return [index[token] for token in tokens]
        except KeyError as error:
            (token,) = error.args
        what = "tokens"
        if all(len(known) == 1 for known in self.tokens):
            what = "characters"
        raise ValueError(f"{token!r} is none of the {len(self)} {what} of the training texts")

    def decode(self, numbers: Iterable[int]) -> list[str]:
        """Return the tokens of ids, without padding."""
        return [self.tokens[i] for i in numbers if self.tokens[i] != PAD]


def check_level(level: str) -> None:
    """Raise ValueError unless a vocabulary can be of this level."""
    if level not in get_args(Level):
        raise ValueError(f"level must be {' or '.join(get_args(Level))}, got {level!r}")
