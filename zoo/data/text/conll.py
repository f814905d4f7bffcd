"""Files of words with a tag each, one word a line, in the format of CoNLL-2003 (https://aclanthology.org/W03-0419)."""

from __future__ import annotations

import re
from pathlib import Path

from zoo.data.text.encoding import read_lines
from zoo.data.text.text_files import find_split_files
from zoo.distributed import say

Sentence = tuple[list[str], list[str]]
"""Words, and their tags."""

SUFFIXES = (".txt", ".conll", ".iob", ".iob2", ".bio", ".tsv")
# Prefixes: begin, inside, end, single of IOBES; last and unit of BILOU; middle of BMES.
_TAG = re.compile(r"O|[BIESLUM]-\S+")


def read_conll_splits(path: Path, encoding: str | None = None) -> dict[str, list[Sentence]]:
    """Read a file, all of it under the empty name, or files ``train``, ``valid`` (``val``, ``dev``) and ``test``."""
    if not path.is_dir():
        return {"": read_conll(path, encoding)}
    named = find_split_files(path, SUFFIXES)
    if "train" not in named:
        raise ValueError(f"{path} holds no train{', train'.join(SUFFIXES)}")
    return {split: read_conll(file, encoding) for split, file in named.items()}


def read_conll(path: Path, encoding: str | None = None) -> list[Sentence]:
    """Read sentences: a word a line, the word in the first column, its tag in the last; empty lines between sentences.

    Tags in IOB1 (``B-`` only between two entities of a type), IOBES, BILOU or BMES are converted to IOB2.

    Args:
        path: the file.
        encoding: of a file without a byte order mark; null is UTF-8, in a dataset that has no option for it.
    """
    sentences: list[Sentence] = [([], [])]
    num_columns = 0
    for i, line in enumerate(read_lines(path, encoding), 1):
        columns = _split_columns(line)
        if _is_border(line, columns, num_columns):
            sentences.append(([], []))
            continue
        num_columns = num_columns or len(columns)
        where = f"{path}, line {i}"
        if num_columns < 2:
            raise ValueError(f"{where}: a word and its tag needed, got {line[:40]!r}")
        if len(columns) != num_columns:
            raise ValueError(f"{where}: {num_columns} columns as in the first line needed, got {line[:40]!r}")
        word, tag = columns[0], columns[-1]
        if not word.strip():
            raise ValueError(f"{where}: the tag {tag} has no word, got {line[:40]!r}")
        if not _TAG.fullmatch(tag):
            raise ValueError(f"{where}: a tag is O, B-TYPE or I-TYPE, got {tag!r}")
        words, tags = sentences[-1]
        words.append(word)
        tags.append(tag)
    sentences = [(words, tags) for words, tags in sentences if words]
    if not sentences:
        raise ValueError(f"{path} holds no sentences")
    scheme = scheme_of([tags for _, tags in sentences])
    if scheme != "IOB2":
        say(f"{path}: its tags are {scheme}, taken as IOB2")
    return [(words, to_iob2(tags)) for words, tags in sentences]


def _split_columns(line: str) -> list[str]:
    """Return the columns of a line; where there are tabs, a space is part of a word."""
    if "\t" in line:
        return [column.strip() for column in line.rstrip("\t ").split("\t")]
    return [column for column in line.split(" ") if column]


def _is_border(line: str, columns: list[str], num_columns: int) -> bool:
    """Return whether a line is no word, but stands between sentences: empty, a comment, or the start of a document."""
    if not line.strip() or columns[0] == "-DOCSTART-":
        return True
    if not line.startswith(("# ", "#\t")):
        return False
    # A number sign may be a word too: then it has the columns of a word.
    is_word = num_columns in (0, len(columns)) and _TAG.fullmatch(columns[-1]) is not None
    return not is_word


# Tagging schemes ------------------------------------------------------------------------------------------------------


def scheme_of(sentences: list[list[str]]) -> str:
    """Return the scheme of tags: ``BMES``, ``IOBES`` or BILOU, ``IOB1`` if an entity begins with ``I-``, ``IOB2``."""
    prefixes = {tag[0] for tags in sentences for tag in tags}
    if "M" in prefixes:
        return "BMES"
    if prefixes & {"E", "S", "L", "U"}:
        return "IOBES"
    for tags in sentences:
        for before, tag in zip(["O", *tags], tags, strict=False):
            if tag[0] == "I" and (before == "O" or before[2:] != tag[2:]):
                return "IOB1"
    return "IOB2"


def to_iob2(tags: list[str]) -> list[str]:
    """Return the tags of the same entities, each of which begins with ``B-``."""
    found = []
    for before, tag in zip(["O", *tags], tags, strict=False):
        if tag == "O":
            found.append("O")
            continue
        kind = tag[2:]
        begins = tag[0] in "BSU" or before[0] in "OESLU" or before[2:] != kind
        prefix = "B" if begins else "I"
        found.append(f"{prefix}-{kind}")
    return found
