"""Text cut into words as GPT-2 does (Radford 2019), the pieces of each word kept: faster than cutting them anew."""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from collections.abc import Callable
from functools import cache
from itertools import chain

import numpy as np

MAX_WORDS = 500_000  # words that are kept
# White_Space of Unicode, which is less than what Python's \s takes.
SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"


class WordCache(dict[str, list[int]]):
    """Numbers of the pieces of words, asked for once each.

    Args:
        encode: gives them.
    """

    def __init__(self, encode: Callable[[str], list[int]]) -> None:
        super().__init__()
        self.backend = encode

    def __missing__(self, word: str) -> list[int]:
        if len(self) >= MAX_WORDS:
            self.clear()
        found = self[word] = self.backend(word)
        return found

    def encode(self, text: str) -> np.ndarray | None:
        """Numbers of a text; None where it has characters that are newer than Python's tables."""
        ascii = text.isascii()
        if not ascii and any(unicodedata.category(c) == "Cn" for c in set(text)):
            return None
        words = gpt2_pattern(ascii).findall(text)
        return np.array(list(chain.from_iterable(map(self.__getitem__, words))), np.uint32)


def splits_like_gpt2(source: str) -> bool:
    """Whether a tokenizer of the tokenizers library does nothing to a text before it cuts it as GPT-2's does."""
    config = json.loads(source)
    cut, added = config["pre_tokenizer"] or {}, config.get("added_tokens", [])
    usual = cut.get("type") == "ByteLevel" and cut.get("use_regex", True) and not cut["add_prefix_space"]
    plain = config["normalizer"] is None and config["model"]["type"] == "BPE" and not config["model"].get("dropout")
    return bool(usual and plain and all(token["special"] for token in added))


@cache
def gpt2_pattern(ascii: bool) -> re.Pattern[str]:
    """GPT-2's expression, with the classes of characters that ``re`` has no names for.

    Args:
        ascii: for texts in ASCII alone, which is twice as fast.
    """
    letters, digits, space = ("A-Za-z", "0-9", "\t-\r ") if ascii else (category("L"), category("N"), SPACE)
    return re.compile(
        rf"'(?:[stmd]|re|ve|ll)| ?[{letters}]+| ?[{digits}]+| ?[^{space}{letters}{digits}]+"
        rf"|[{space}]+(?![^{space}])|[{space}]+"
    )


def category(name: str) -> str:
    """The characters of a category of Unicode, as ranges."""
    ranges: list[list[int]] = []
    for i in range(sys.maxunicode + 1):
        if unicodedata.category(chr(i))[0] == name:
            if ranges and ranges[-1][1] == i - 1:
                ranges[-1][1] = i
            else:
                ranges.append([i, i])
    return "".join(f"{chr(a)}-{chr(b)}" for a, b in ranges)
