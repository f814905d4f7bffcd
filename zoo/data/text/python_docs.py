"""Sentences of Python's documentation, which the standard library carries, by what they are about."""

from __future__ import annotations

import re

# Topics of `pydoc_data`, in this order: a sentence that stands in several belongs to the first.
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
    """Sentences of five words or more, each once, and the group that each belongs to."""
    from pydoc_data.topics import topics

    found: dict[str, str] = {}
    for group, names in GROUPS.items():
        for name in names.split():
            for sentence in sentences(topics.get(name, "")):
                found.setdefault(sentence, group)
    return list(found), list(found.values())


def sentences(text: str) -> list[str]:
    """Cut the prose of a page into sentences; headings, tables, grammar and code are left out."""
    parts = [part for part in re.split(r"\n\s*\n", text) if not _CODE.search(part)]
    cut = [s.strip() for part in parts for s in _END.split(" ".join(part.split()))]
    return [s for s in cut if s.endswith((".", "!", "?", ":")) and len(re.findall(r"[^\W\d_]+", s)) >= 5]
