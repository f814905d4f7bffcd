"""A cache of the tokens of words, which GPT-2's tokenizer (Radford 2019) cuts texts into: faster than the library."""

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
    """Token ids by words, each computed once.

    Args:
        encode: computes the token ids of a word.
    """

    def __init__(self, encode: Callable[[str], list[int]]) -> None:
        super().__init__()
        self.backend = encode

    def __missing__(self, word: str) -> list[int]:
        if len(self) >= MAX_WORDS:
            self.clear()
        ids = self.backend(word)
        self[word] = ids
        return ids

    def encode(self, text: str) -> np.ndarray | None:
        """Return the token ids of a text; None where it has characters that are newer than Python's tables."""
        is_ascii = text.isascii()
        if not is_ascii and any(unicodedata.category(character) == "Cn" for character in set(text)):
            return None
        words = gpt2_pattern(is_ascii).findall(text)
        ids = chain.from_iterable(map(self.__getitem__, words))
        return np.array(list(ids), np.uint32)


def splits_like_gpt2(source: str) -> bool:
    """Return whether a tokenizer cuts texts into words as GPT-2's does, and changes nothing in them before.

    Args:
        source: JSON of the tokenizers library.
    """
    config = json.loads(source)
    if config["normalizer"] is not None:
        return False
    if config["model"]["type"] != "BPE" or config["model"].get("dropout"):
        return False
    split = config["pre_tokenizer"] or {}
    if split.get("type") != "ByteLevel" or not split.get("use_regex", True) or split["add_prefix_space"]:
        return False
    # Other added tokens would be cut out of a text before it is cut into words.
    return all(token["special"] for token in config.get("added_tokens", []))


@cache
def gpt2_pattern(ascii: bool) -> re.Pattern[str]:
    """Return GPT-2's regular expression, with Unicode's categories, which ``re`` has no names for, as ranges.

    Args:
        ascii: for texts in ASCII only, which is twice as fast.
    """
    if ascii:
        letters, digits, space = "A-Za-z", "0-9", "\t-\r "
    else:
        letters, digits, space = category("L"), category("N"), SPACE
    return re.compile(
        rf"'(?:[stmd]|re|ve|ll)| ?[{letters}]+| ?[{digits}]+| ?[^{space}{letters}{digits}]+"
        rf"|[{space}]+(?![^{space}])|[{space}]+"
    )


def category(name: str) -> str:
    """Return the characters of one of Unicode's categories as ranges of a regular expression."""
    ranges: list[list[int]] = []
    for i in range(sys.maxunicode + 1):
        if unicodedata.category(chr(i))[0] != name:
            continue
        if ranges and ranges[-1][1] == i - 1:
            ranges[-1][1] = i
        else:
            ranges.append([i, i])
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges)
