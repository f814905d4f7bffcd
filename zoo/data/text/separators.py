"""End-of-text separators: strings such as ``<|endoftext|>`` that stand between the texts of a file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

END_OF_TEXT = "<|endoftext|>"  # GPT-2's, with which dumps of texts such as TinyStories come


@dataclass(frozen=True)
class Separators:
    """The strings that end a text within a file.

    Args:
        names: the strings; none of them has an end of line.
        anywhere: whether they end a text wherever they stand. Else they do so alone on a line, and elsewhere are text.
    """

    names: tuple[str, ...] = ()
    anywhere: bool = False

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """The separators with the end of their line."""
        return re.compile(self._expression, re.MULTILINE)

    @cached_property
    def bytes_pattern(self) -> re.Pattern[bytes]:
        """The same for bytes."""
        return re.compile(self._expression.encode(), re.MULTILINE)

    @property
    def _expression(self) -> str:
        names = "|".join(re.escape(name) for name in self.names)
        end_of_line = r"[ \t]*(?:\r?\n|\Z)"
        if self.anywhere:
            # A line break right behind a separator ends its line, not a line of the next text.
            return rf"(?:{names})(?:{end_of_line})?"
        return rf"^(?:{names}){end_of_line}"

    def count(self, text: str) -> int:
        """Return how often the names occur in a text, as separators or not."""
        return sum(text.count(name) for name in self.names)

    def plain(self) -> list[Any]:
        """Return everything that decides where texts end, for a cache's key."""
        return [list(self.names), self.anywhere]


NO_SEPARATORS = Separators()


def choose_separators(option: str | None, end: str | None) -> Separators:
    """Return the separators of a corpus.

    Args:
        option: the user's; empty for none, null for the end-of-text tokens where they stand alone on a line.
        end: the tokenizer's end-of-text token; null if it has none.
    """
    if option == "":
        return NO_SEPARATORS
    if option is not None:
        return Separators((option,), anywhere=True)
    if end is None or end == END_OF_TEXT:
        return Separators((END_OF_TEXT,))
    return Separators((end, END_OF_TEXT))


def check_separator(option: str | None) -> None:
    """Raise ValueError where the option is not a separator."""
    if option and (option.isspace() or "\n" in option or "\r" in option):
        given = f"got {option!r}"
        raise ValueError(f"separator must be a text within a line, such as {END_OF_TEXT!r}, or empty for none: {given}")


@dataclass
class Piece:
    """A text, or a part of one.

    Args:
        text: the text.
        ends: whether the text ends with it.
    """

    text: str
    ends: bool


class TextSplitter:
    """Cuts the parts of one text, read one after the other, at separators.

    ``num_separators``, ``num_inline`` (names of separators that are text) and ``num_empty`` (texts left out as empty)
    are counted over all parts.

    Args:
        separators: where to cut.
    """

    def __init__(self, separators: Separators) -> None:
        self.separators = separators
        self.num_separators = 0
        self.num_inline = 0
        self.num_empty = 0
        self._begun = False  # whether the text that is being read has any characters yet
        self._cut = False  # whether a separator was in front of it
        self._spaces = ""  # what it begins with, as long as that is nothing but spaces

    def split(self, part: str, ends: bool) -> list[Piece]:
        """Return the pieces of the next part.

        Args:
            part: the part; it ends at the end of a line.
            ends: whether the text ends with it.
        """
        part = self._spaces + part
        self._spaces = ""
        names = self.separators.count(part)
        if not names:
            return self._last(part, ends)
        pieces: list[Piece] = []
        start = 0
        matches = 0
        for match in self.separators.pattern.finditer(part):
            matches += 1
            pieces += self._end(part[start : match.start()])
            start = match.end()
        self.num_separators += matches
        self.num_inline += names - matches
        return pieces + self._last(part[start:], ends)

    def _end(self, text: str) -> list[Piece]:
        """Return the last piece of a text in front of a separator."""
        if not self._begun and not text.strip():
            # In front of the first separator of a file there need not be a text.
            self.num_empty += int(self._cut)
            self._cut = True
            return []
        self._begun = False
        self._cut = True
        return [Piece(text, True)]

    def _last(self, text: str, ends: bool) -> list[Piece]:
        """Return what is behind the last separator of a part."""
        if ends and self._cut and not self._begun and not text.strip():
            self._cut = False
            return []
        begun = self._begun or bool(text)
        if not ends and not self._begun and text.isspace():
            self._spaces = text  # a separator may follow: then there is no text
            return []
        if ends:
            self._begun = False
            self._cut = False
            self.num_empty += int(not begun)
        else:
            self._begun = begun
        if not begun:
            return []
        return [Piece(text, ends)]
