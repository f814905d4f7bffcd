"""Entities as spans of characters, from the tags of words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Span = tuple[int, int]


def spans_of_words(words: Sequence[str]) -> list[Span]:
    """Return where words are in the text that they make with spaces between them."""
    spans = []
    start = 0
    for word in words:
        spans.append((start, start + len(word)))
        start += len(word) + 1
    return spans


def with_entities(row: dict[str, Any], text: str, spans: Sequence[Span], tagged: Sequence[int]) -> dict[str, Any]:
    """Return a row of a tagger with a value for each word, and the entities.

    Args:
        row: lists with a value for each tagged word; ``name`` has the tags.
        text: of the sample.
        spans: beginning and end of each word in it.
        tagged: indices of the words that have a tag; words without one, as those beyond ``max_length``, get null.

    Returns:
        The row, and ``entities``: ``start`` and ``end`` (exclusive) in characters, ``type``, ``text``, and the lowest
        ``probability`` of its words.
    """
    complete = {}
    for name, values in row.items():
        by_word = dict(zip(tagged, values, strict=False))
        complete[name] = [by_word.get(i) for i in range(len(spans))]
    complete["entities"] = find_entities(complete["name"], complete["probability"], text, spans)
    return complete


def find_entities(
    tags: Sequence[str | None],
    probabilities: Sequence[float | None],
    text: str,
    spans: Sequence[Span],
) -> list[dict[str, Any]]:
    """Return the entities of tags in IOB2; an ``I-`` that continues nothing begins an entity."""
    found: list[dict[str, Any]] = []
    before = "O"
    for tag, probability, (start, end) in zip(tags, probabilities, spans, strict=True):
        tag = tag or "O"
        if tag != "O":
            continues = tag.startswith("I-") and before[2:] == tag[2:]
            if not continues:
                found.append({"start": start, "end": end, "type": tag[2:], "text": "", "probability": 1.0})
            entity = found[-1]
            entity["end"] = end
            entity["text"] = text[entity["start"] : end]
            entity["probability"] = min(entity["probability"], probability or 0.0)
        before = tag
    return found
