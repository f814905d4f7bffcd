"""Words and what they name: CoNLL files, or sentences drawn from a seed."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from zoo.data.base import DataModule, split_indices
from zoo.data.conll import Sentence, read_conll_splits
from zoo.data.made_up_entities import draw_sentences
from zoo.data.pieces import cut, packed, pieces, tokenizer_of
from zoo.data.sequences import SequenceSet
from zoo.data.text_files import read_texts
from zoo.text import Tokenizer

IGNORED = -100
WORD = re.compile(r"\w+|[^\w\s]")


class TaggedSet(Dataset):
    """Sentences as tokens with a tag each; a batch is ``((x, lengths), y)``, ``y`` as long as ``x``.

    Args:
        sentences: tokens and tags ``(total, 2)``; a tag of -100 is not asked for.
        pad_id: what fills the rows behind the ends.
    """

    def __init__(self, sentences: SequenceSet, pad_id: int) -> None:
        self.sentences, self.pad_id, self.lengths = sentences, pad_id, sentences.lengths

    def __len__(self) -> int:
        return len(self.sentences)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        """One sample without a batch dimension."""
        (both, length), *_ = self.sentences[index]
        return (both[:, 0], length), both[:, 1]

    def batch(self, indices: Tensor) -> tuple[Any, ...]:
        ((both, lengths),) = self.sentences.batch(indices)
        x, y = both.unbind(2)
        padding = torch.arange(x.shape[1]) >= lengths.unsqueeze(1)
        return (x.masked_fill(padding, self.pad_id), lengths), y.masked_fill(padding, IGNORED)


class NER(DataModule):
    """Sentences whose words have tags such as ``B-PER``: CoNLL files, or sentences drawn from the seed.

    A batch is ``((x, lengths), y)``: tokens ``(b, t)``, padded behind their ends; lengths ``(b,)``; tags ``(b, t)`` of
    the first piece of each word, -100 for further pieces, special tokens and padding. Tags are read as IOB1, IOB2 or
    IOBES, whichever they are, and given as IOB2.

    Args:
        path: a file, or a folder with ``train`` (and ``valid`` or ``dev``, ``test``) ``.txt``, ``.conll``, ``.iob`` or
            ``.tsv``: a word a line, its tag in the last column, empty lines between sentences; null draws sentences
            with people, places, organisations and dates.
        samples: number of sentences drawn, without ``path``.
        tokenizer: ``wordpiece``, learned from the training sentences, or a path: a ``tokenizer.json`` or a folder with
            one. A checkpoint brings its own.
        vocab_size: how many tokens are learned; null for 8,000.
        lowercase: put texts into lower case for tokens that are learned; names are easier to tell with capitals.
        max_length: tokens of a sentence that are kept; the rest is left out.
        buckets: put sentences of similar length into a batch.
        predict_file: new texts for ``predict``, one a line (``.txt``), or a column ``text``.
        val_share: share of the sentences kept for validation, where there is no such file.
        test_share: share of the sentences kept for the test, where there is no such file.
        tags: by their numbers; null takes them from the training sentences.
    """

    def __init__(
        self,
        path: str | None = None,
        samples: int = 3000,
        tokenizer: str | dict[str, Any] = "wordpiece",
        vocab_size: int | None = None,
        lowercase: bool = False,
        max_length: int = 128,
        buckets: bool = True,
        predict_file: str | None = None,
        val_share: float = 0.1,
        test_share: float = 0.1,
        tags: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if samples < 10 or max_length < 3:
            raise ValueError(f"samples start at 10 and max_length at 3: got {samples=}, {max_length=}")
        self.path, self.samples, self.lowercase, self.max_length = path, samples, lowercase, max_length
        self.buckets, self.predict_file, self.val_share, self.test_share = buckets, predict_file, val_share, test_share
        self._wanted, self._size, self._tags = tokenizer, vocab_size, tags

    # Facts ------------------------------------------------------------------------------------------------------------

    @cached_property
    def tokenizer(self) -> Tokenizer:
        def texts() -> list[str]:
            return [" ".join(words) for words, _ in self._sentences["train"]]

        options = {"lowercase": self.lowercase} if self._wanted == "wordpiece" else {}
        found = tokenizer_of(self._wanted, texts, self._size, **options)
        self.hparams["tokenizer"] = found.plain()  # into the checkpoint
        return found

    @property
    def vocab_size(self) -> int:
        return len(self.tokenizer)

    @property
    def pad_id(self) -> int | None:
        return self.tokenizer.pad_id

    @property
    def class_names(self) -> list[str]:
        """``O``, and ``B-`` and ``I-`` of each type, whether or not both occur."""
        if self._tags is None:
            kinds = sorted({tag[2:] for _, tags in self._sentences["train"] for tag in tags if tag != "O"})
            if not kinds:
                raise ValueError(f"{self.path}: no training sentence names anything, all tags are O")
            self._tags = ["O", *(f"{prefix}-{kind}" for kind in kinds for prefix in "BI")]
            self.hparams["tags"] = self._tags  # into the checkpoint
        return self._tags

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    # Reading ----------------------------------------------------------------------------------------------------------

    @cached_property
    def _sentences(self) -> dict[str, list[Sentence]]:
        found = (
            {"": draw_sentences(self.samples, self.seed)} if self.path is None else read_conll_splits(Path(self.path))
        )
        rest = found.pop("") if "" in found else found["train"]
        shares = {s: share for s, share in (("val", self.val_share), ("test", self.test_share)) if s not in found}
        parts = split_indices(len(rest), [1 - sum(shares.values()), *shares.values()], self.seed)
        for split, part in zip(("train", *shares), parts, strict=True):
            if not len(part):
                raise ValueError(f"{len(rest)} sentences are too few: nothing is left for {split}")
            found[split] = [rest[i] for i in part.tolist()]
        return {split: found[split] for split in ("train", "val", "test")}

    def setup(self, stage: str) -> None:
        if stage == "predict" and self.predict_file and self._tags and isinstance(self._wanted, dict):
            self.__dict__["datasets"] = {"predict": self._new_texts()}  # the training sentences need not be there
        elif "train" not in self.__dict__.get("datasets", {"train": None}):
            del self.__dict__["datasets"]
        super().setup(stage)

    def splits(self) -> dict[str, Dataset]:
        sets: dict[str, Dataset] = {s: self._encoded(sentences, s) for s, sentences in self._sentences.items()}
        return sets | ({"predict": self._new_texts()} if self.predict_file else {})

    def _new_texts(self) -> TaggedSet:
        """New texts, of whose words the tags are asked for: which ones is not known."""
        texts, _ = read_texts(Path(str(self.predict_file)), "text", None)
        words = [WORD.findall(text) or [text] for text in texts]
        return self._encoded([(part, [self.class_names[0]] * len(part)) for part in words], "predict")

    def _encoded(self, sentences: list[Sentence], split: str) -> TaggedSet:
        index = {tag: i for i, tag in enumerate(self.class_names)}
        if unknown := {tag for _, tags in sentences for tag in tags} - set(index):
            known = ", ".join(self.class_names[:9])
            raise ValueError(f"{self.path}: {split} has the tag {min(unknown)}; training has {known}")
        found = pieces(self.tokenizer, [words for words, _ in sentences])
        found = cut(self.tokenizer, found, self.max_length, f"sentences of {split}")
        values, lengths = packed([ids for ids, _ in found])
        numbers = ([index[tag] for tag in tags] for _, tags in sentences)
        targets, _ = packed([_of_first_pieces(w, tags) for (_, w), tags in zip(found, numbers, strict=True)])
        return TaggedSet(SequenceSet(torch.stack([values, targets], 1), lengths), self.pad_id or 0)

    def bucket_lengths(self) -> Tensor | None:
        return self.datasets["train"].lengths if self.buckets else None  # type: ignore[attr-defined]


def _of_first_pieces(words: list[int | None], tags: list[int]) -> list[int]:
    """The tag of each word at its first piece, and nothing asked for elsewhere."""
    before = [None, *words[:-1]]
    return [IGNORED if w is None or w == b else tags[w] for w, b in zip(words, before, strict=True)]
