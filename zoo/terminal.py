"""Text of others on the terminal: without control characters, which could erase lines or change what a user reads.

File names, labels, arguments in checkpoints and generated texts are written by whoever made them.
"""

from __future__ import annotations

from typing import Any

KEPT = "\n\t\u00a0\u2002\u2003\u2009\u202f\u3000"  # breaks, and spaces that Python does not count as printable
MAX_ERROR = 2_000  # characters
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def printable(value: Any, length: int = 80) -> str:
    """Return text for a message of one line: without control characters and line breaks, and shortened.

    Args:
        value: the text, or a value.
        length: in characters, after which it is cut.
    """
    text = str(value)[: length + 1]
    if not text.isprintable():
        text = "".join(char if char.isprintable() else REPLACEMENT for char in text)
    return text if len(text) <= length else f"{text[:length]}..."


def one_line(text: str) -> str:
    """Return text in one line, whole and without control characters."""
    return visible(" ".join(text.splitlines())).replace("\t", " ")


def error_line(text: str) -> str:
    """Return the message of an error in one line, shortened where it quotes values of any length."""
    text = one_line(text)
    return text if len(text) <= MAX_ERROR else f"{text[:MAX_ERROR]}..."


def visible(text: str) -> str:
    """Return text of any length without control characters; line breaks, tabs and spaces stay."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in KEPT else REPLACEMENT for char in text)
