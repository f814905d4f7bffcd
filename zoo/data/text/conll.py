"""Files of words in lines with a tag each, as CoNLL-2003 has them (https://aclanthology.org/W03-0419)."""

from __future__ import annotations

import re
from pathlib import Path

from zoo.data.text.text_files import SPLITS
from zoo.distributed import say

Sentence = tuple[list[str], list[str]]
"""Words, and their tags."""

SUFFIXES = (".txt", ".conll", ".iob", ".iob2", ".bio", ".tsv")
_TAG = re.compile(r"O|[BIESLU]-\S+")


def read_conll_splits(path: Path) -> dict[str, list[Sentence]]:
    """Read a file, all of it under the empty name, or files ``train``, ``valid`` (``val``, ``dev``) and ``test``."""
    if not path.is_dir():
        return {"": read_conll(path)}
    named = {SPLITS[p.stem]: p for p in sorted(path.iterdir()) if p.stem in SPLITS and p.suffix in SUFFIXES}
    if "train" not in named:
        raise ValueError(f"{path} holds no train{', train'.join(SUFFIXES)}")
    return {split: read_conll(p) for split, p in named.items()}


def read_conll(path: Path) -> list[Sentence]:
    """Read sentences: a word a line, first the word, last its tag; empty lines between sentences.

    Tags that are IOB1 (``B-`` only between two entities of a type) or IOBES are turned into IOB2.
    """
    if not path.is_file():
        raise ValueError(f"no file {path}")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not text in UTF-8") from None
    sentences: list[Sentence] = [([], [])]
    columns = 0
    for i, line in enumerate(lines, 1):
        parts = line.split("\t") if "\t" in line else [part for part in line.split(" ") if part]
        tagged = columns in (0, len(parts)) and bool(parts) and _TAG.fullmatch(parts[-1])  # where "#" is a word
        if not line.strip() or parts[0] == "-DOCSTART-" or (line.startswith(("# ", "#\t")) and not tagged):
            sentences.append(([], []))
            continue
        columns = columns or len(parts)
        if len(parts) != columns or columns < 2:
            need = f"{columns} columns as in the first line" if columns > 1 else "a word and its tag"
            raise ValueError(f"{path}, line {i}: {need} needed, got {line[:40]!r}")
        if not _TAG.fullmatch(parts[-1]):
            raise ValueError(f"{path}, line {i}: a tag is O, B-TYPE or I-TYPE, got {parts[-1]!r}")
        sentences[-1][0].append(parts[0])
        sentences[-1][1].append(parts[-1])
    sentences = [sentence for sentence in sentences if sentence[0]]
    if not sentences:
        raise ValueError(f"{path} holds no sentences")
    scheme = scheme_of([tags for _, tags in sentences])
    if scheme != "IOB2":
        say(f"{path}: its tags are {scheme}, taken as IOB2")
    return [(words, to_iob2(tags)) for words, tags in sentences]


def scheme_of(sentences: list[list[str]]) -> str:
    """IOBES where entities have ends or singles; IOB1 where any begins with ``I-``; else IOB2."""
    if any(tag[0] in "ESLU" for tags in sentences for tag in tags):
        return "IOBES"
    for tags in sentences:
        for before, tag in zip(["O", *tags], tags, strict=False):
            if tag[0] == "I" and (before == "O" or before[2:] != tag[2:]):
                return "IOB1"
    return "IOB2"


def to_iob2(tags: list[str]) -> list[str]:
    """The same entities, each beginning with ``B-``."""
    found = []
    for before, tag in zip(["O", *tags], tags, strict=False):
        kind, ended = tag[2:], before == "O" or before[0] in "ESLU" or before[2:] != tag[2:]
        begins = tag[0] in "BSU" or (tag != "O" and ended)
        found.append("O" if tag == "O" else f"{'B' if begins else 'I'}-{kind}")
    return found
