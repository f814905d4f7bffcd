"""Words and what they name: CoNLL files, or sentences drawn from a seed."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from zoo.data.base import split_indices
from zoo.data.text.conll import Sentence, read_conll_splits
from zoo.data.text.subword import SubwordData, TokenColumnsDataset, make_tokenizer, tokenize_texts, truncate
from zoo.data.text.synthetic_entities import generate_sentences
from zoo.data.text.text_files import read_texts
from zoo.text import Tokenizer

IGNORE_INDEX = -100
WORD = re.compile(r"\w+|[^\w\s]")


class TaggedDataset(TokenColumnsDataset):
    """Sentences as tokens with a tag each, -100 where none is asked for; a batch is ``((x, lengths), y)``."""

    def batch(self, indices: Tensor) -> tuple[Any, ...]:
        ((x, lengths, y),) = super().batch(indices)
        return (x, lengths), y


class NER(SubwordData):
    """Sentences whose words have tags such as ``B-PER``: CoNLL files, or sentences drawn from the seed.

    A batch is ``((x, lengths), y)``: tokens ``(b, t)``, padded behind their ends; lengths ``(b,)``; tags ``(b, t)`` of
    the first piece of each word, -100 for further pieces, special tokens and padding. Tags are read as IOB1, IOB2 or
    IOBES, whichever they are, and given as IOB2.

    Args:
        path: a file, or a folder with ``train`` (and ``valid`` or ``dev``, ``test``) ``.txt``, ``.conll``, ``.iob`` or
            ``.tsv``: a word a line, its tag in the last column, empty lines between sentences; null draws sentences
            with people, places, organisations and dates.
        samples: number of sentences drawn, without ``path``.
        lowercase: put texts into lower case for tokens that are learned; names are easier to tell with capitals.
        predict_file: new texts for ``predict``, one a line (``.txt``), or a column ``text``.
        tags: by their numbers; null takes them from the training sentences.
    """

    def __init__(
        self,
        path: str | None = None,
        samples: int = 3000,
        lowercase: bool = False,
        predict_file: str | None = None,
        tags: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if samples < 10:
            raise ValueError(f"samples must be 10 or more, got {samples}")
        self.path, self.samples, self.lowercase, self.predict_file = path, samples, lowercase, predict_file
        self._tags = tags

    # Data spec
    # ------------------------------------------------------------------------------------------------------------

    def build_tokenizer(self) -> Tokenizer:
        def texts() -> list[str]:
            return [" ".join(words) for words, _ in self._sentences["train"]]

        options = {"lowercase": self.lowercase} if self._tokenizer_option == "wordpiece" else {}
        return make_tokenizer(self._tokenizer_option, texts, self._vocab_size, **options)

    @property
    def class_names(self) -> list[str]:
        """``O``, and ``B-`` and ``I-`` of each type, whether or not both occur."""
        if self._tags is None:
            kinds = sorted({tag[2:] for _, tags in self._sentences["train"] for tag in tags if tag != "O"})
            if not kinds:
                raise ValueError(f"{self.path}: no training sentence names anything, all tags are O")
            self._tags = ["O", *(f"{prefix}-{kind}" for kind in kinds for prefix in "BI")]
        return self._tags

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def fitted_hparams(self) -> dict[str, Any]:
        return {**super().fitted_hparams(), "tags": self.class_names}

    # Reading ----------------------------------------------------------------------------------------------------------

    @cached_property
    def _sentences(self) -> dict[str, list[Sentence]]:
        found = (
            {"": generate_sentences(self.samples, self.seed)}
            if self.path is None
            else read_conll_splits(Path(self.path))
        )
        rest = found.pop("") if "" in found else found["train"]
        shares = {s: share for s, share in (("val", self.val_split), ("test", self.test_split)) if s not in found}
        parts = split_indices(len(rest), [1 - sum(shares.values()), *shares.values()], self.seed)
        for split, part in zip(("train", *shares), parts, strict=True):
            if not len(part):
                raise ValueError(f"{len(rest)} sentences are too few: nothing is left for {split}")
            found[split] = [rest[i] for i in part.tolist()]
        return {split: found[split] for split in ("train", "val", "test")}

    def splits(self) -> dict[str, Dataset]:
        return {s: self._encoded(sentences, s) for s, sentences in self._sentences.items()}

    def predict_dataset(self) -> TaggedDataset | None:
        """New texts, of whose words the tags are asked for: which ones is not known."""
        if self.predict_file is None:
            return None
        texts, _ = read_texts(Path(self.predict_file), "text", None)
        words = [WORD.findall(text) or [text] for text in texts]
        return self._encoded([(part, [self.class_names[0]] * len(part)) for part in words], "predict")

    def _encoded(self, sentences: list[Sentence], split: str) -> TaggedDataset:
        index = {tag: i for i, tag in enumerate(self.class_names)}
        if unknown := {tag for _, tags in sentences for tag in tags} - set(index):
            known = ", ".join(self.class_names[:9])
            raise ValueError(f"{self.path}: {split} has the tag {min(unknown)}; training has {known}")
        found = tokenize_texts(self.tokenizer, [words for words, _ in sentences])
        found = truncate(self.tokenizer, found, self.max_length, f"sentences of {split}")
        numbers = ([index[tag] for tag in tags] for _, tags in sentences)
        targets = [_first_subword_tags(words, tags) for (_, words), tags in zip(found, numbers, strict=True)]
        return TaggedDataset([[ids for ids, _ in found], targets], padding=(self.pad_id or 0, IGNORE_INDEX))


def _first_subword_tags(words: list[int | None], tags: list[int]) -> list[int]:
    """The tag of each word at its first piece, and nothing asked for elsewhere."""
    before = [None, *words[:-1]]
    return [IGNORE_INDEX if w is None or w == b else tags[w] for w, b in zip(words, before, strict=True)]
