"""Sentences of Python's documentation, which ships with the standard library, by their subject."""

from __future__ import annotations

import re

# Topics of ``pydoc_data`` in order: a sentence that occurs in several belongs to the first.
GROUPS = {
    "debugger": "debugger",
    "text": "string-methods formatstrings strings",
    "containers": "typesseq typesseq-mutable typesmapping dict truth typesfunctions typesmethods typesmodules"
    " bltin-code-objects bltin-null-object",
    "statements": "assert assignment augassign del pass return raise break continue import global nonlocal compound if"
    " while for try with function class async yield else",
    "objects": "objects types specialnames attribute-access customization context-managers numeric-types"
    " sequence-types callable-types specialattrs",
}
_CODE = re.compile(r"\*{4}|={4}|-{4}|::=|\+--|>>>|^\s*\||\.\.\. ", re.MULTILINE)
_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"*“(])")


def documentation() -> tuple[list[str], list[str]]:
    """Return sentences of five words or more, each once, and the group that each belongs to."""
    from pydoc_data.topics import topics

    found: dict[str, str] = {}
    for group, names in GROUPS.items():
        for name in names.split():
            for sentence in sentences(topics.get(name, "")):
                found.setdefault(sentence, group)
    return list(found), list(found.values())


def sentences(text: str) -> list[str]:
    """Return the sentences of a page's prose, without headings, tables, grammar and code."""
    found = []
    for paragraph in re.split(r"\n\s*\n", text):
        if _CODE.search(paragraph):
            continue
        prose = " ".join(paragraph.split())
        for sentence in _END.split(prose):
            sentence = sentence.strip()
            num_words = len(re.findall(r"[^\W\d_]+", sentence))
            if num_words >= 5 and sentence.endswith((".", "!", "?", ":")):
                found.append(sentence)
    return found
