"""Texts and their classes: files of one's own, or sentences of Python's documentation."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from zoo.data.base import DataModule
from zoo.data.csv_tables import check_format, number
from zoo.data.new_samples import NewSamples
from zoo.data.sequences import AugmentFn, SequenceDataset
from zoo.data.text.encoding import DEFAULT_ENCODING
from zoo.data.text.new_texts import collect_texts
from zoo.data.text.python_docs import documentation
from zoo.data.text.splits import split_shares, split_texts
from zoo.data.text.subword import (
    TokenColumnsDataset,
    concatenate,
    make_tokenizer,
    tokenize_pairs,
    tokenize_texts,
    truncate,
)
from zoo.data.text.text_files import FORMATS, Texts, read_splits
from zoo.data.text.token_augmentation import CHANGES, augment_tokens
from zoo.data.text.truncation import report_truncated
from zoo.distributed import say
from zoo.text import Tokenizer
from zoo.text.vocabulary import Level, Vocabulary, check_level, tokenize

UNKNOWN_ID = 1  # of a vocabulary


class TextClassification(DataModule):
    """Texts, or pairs of texts, with a class each: from a file, from folders by class, or of Python's documentation.

    A batch is ``((x, lengths), y)``: token ids ``(b, t)``, padded behind their ends to the longest text of the batch,
    lengths ``(b,)``, class indices ``(b,)``. Training batches hold texts of similar length. The vocabulary is that of
    the training texts; a checkpoint keeps it, so that new texts are encoded as the training texts were. Equal texts are
    in the same split.

    With ``text_pair`` a sample is two texts with one class, such as a premise and a hypothesis, or a question and an
    answer. The batch is then ``((x, lengths, token_types), y)``, as BERT takes it: both texts with the special tokens
    of a pair around them, and types ``(b, t)``, 1 in the second text.

    Args:
        path: a ``.csv``, ``.tsv`` or ``.jsonl`` file, a folder with a folder of ``.txt`` files for each class, or a
            folder with ``train`` (and ``val``, ``test``) of these kinds; null takes sentences of Python's
            documentation, by the part they come from.
        text: name of the column of the texts.
        label: name of the column of the classes.
        level: tokens are ``words`` (in lower case; punctuation too) or ``characters``.
        max_length: maximum number of tokens of a text; longer texts are truncated.
        min_freq: minimum number of occurrences in the training texts; rarer tokens become the unknown token.
        max_size: maximum size of the vocabulary, which keeps the most frequent tokens; null for all.
        augment: random augmentation of training texts, as fractions of their tokens: ``mask`` (made unknown),
            ``delete``, ``swap`` (with a neighbour), such as ``{mask: 0.1, swap: 0.1}``.
        bucket_by_length: batch texts of similar lengths.
        predict_file: new texts for ``predict``, without classes: a file as above, or ``.txt`` with a text a line.
        val_split: fraction of the texts kept for validation, where there is no ``val``.
        test_split: fraction of the texts kept for the test, where there is no ``test``.
        vocabulary: all tokens, in the order of their ids; null builds it from the training texts.
        classes: names of the classes, in the order of their indices; null takes them from the training texts.
        tokenizer: a subword tokenizer in place of ``level``, with the special tokens of BERT: ``wordpiece``, trained on
            the training texts with a vocabulary of ``max_size``, or a path: a ``tokenizer.json`` or a folder with one.
        text_pair: name of the column of the second texts, for pairs, which need a ``tokenizer``. Pairs that are too
            long are truncated as by ``longest_first`` of Hugging Face.
        separator: separator of the columns of ``.csv``, such as ``;`` or ``tab``; null finds it out.
        encoding: encoding of the files, such as ``latin-1`` or ``cp1252``; a byte order mark takes precedence.
    """

    fitted_names = ("classes", "vocabulary", "tokenizer")

    def __init__(
        self,
        path: str | None = None,
        text: str = "text",
        label: str = "label",
        level: Level = "words",
        max_length: int = 256,
        min_freq: int = 2,
        max_size: int | None = 20000,
        augment: dict[str, float] | None = None,
        bucket_by_length: bool = True,
        predict_file: str | None = None,
        val_split: float = 0.1,
        test_split: float = 0.1,
        vocabulary: list[str] | None = None,
        classes: list[str] | None = None,
        tokenizer: str | dict[str, Any] | None = None,
        text_pair: str | None = None,
        separator: str | None = None,
        encoding: str = DEFAULT_ENCODING,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        augment = augment or {}
        check_level(level)
        separator = check_format(separator, encoding)
        if tokenizer is not None and any(augment.values()):
            raise ValueError("augment changes words or characters: leave it out, or the tokenizer")
        if text_pair is not None and (tokenizer is None or path is None):
            raise ValueError("text_pair is for pairs of a file, and needs path and tokenizer, such as wordpiece")
        if max_length < 1:
            raise ValueError(f"max_length must be 1 or more, got {max_length}")
        for name, fraction in augment.items():
            if name not in CHANGES or not 0 <= fraction < 1:
                raise ValueError(f"augment takes fractions below 1 of {', '.join(CHANGES)}, got {name}: {fraction}")
        self.path = path
        self.text = text
        self.text_pair = text_pair
        self.label = label
        self.level: Level = level
        self.max_length = max_length
        self.min_freq = min_freq
        self.max_size = max_size
        self.augment = augment
        self.bucket_by_length = bucket_by_length
        self.predict_file = predict_file
        self.val_split = val_split
        self.test_split = test_split
        self.separator = separator
        self.encoding = encoding
        self._vocabulary: Vocabulary | None = None
        if vocabulary is not None:
            self._vocabulary = Vocabulary(vocabulary)
        self._classes = classes
        self._tokenizer_option = tokenizer

    # Data spec
    # ------------------------------------------------------------------------------------------------------------

    @property
    def vocabulary(self) -> Vocabulary:
        if self._vocabulary is None:
            self._vocabulary = Vocabulary.build(self._tokens["train"], self.min_freq, self.max_size)
        return self._vocabulary

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        if self._tokenizer_option is None:
            return None
        return make_tokenizer(self._tokenizer_option, self._training_texts, self.max_size)

    def _training_texts(self) -> list[str]:
        texts = []
        for sample in self._texts["train"][0]:
            texts += as_text_tuple(sample)
        return texts

    @property
    def pad_id(self) -> int:
        if self.tokenizer is None:
            return 0
        return self.tokenizer.pad_id or 0

    @property
    def vocab_size(self) -> int:
        if self.tokenizer is None:
            return len(self.vocabulary)
        return len(self.tokenizer)

    @property
    def class_names(self) -> list[str]:
        if self._classes is None:
            self._classes = sort_classes(set(self._texts["train"][1]))
        if len(self._classes) < 2:
            raise ValueError(f"{self.path}: all texts are of one class, {self._classes[0]!r}; two are needed")
        return self._classes

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def fitted_hparams(self) -> dict[str, Any]:
        if self.tokenizer is None:
            return {"classes": self.class_names, "vocabulary": self.vocabulary.tokens}
        return {"classes": self.class_names, "tokenizer": self.tokenizer.plain()}

    # Reading ----------------------------------------------------------------------------------------------------------

    @cached_property
    def _texts(self) -> dict[str, Texts]:
        """Texts and labels of the three splits."""
        if self.path:
            found = read_splits(Path(self.path), self.text, self.label, self.text_pair, self.encoding, self.separator)
        else:
            found = {"": self.default_texts()}
        found = {split: self._drop_empty(*texts) for split, texts in found.items()}
        shares = split_shares(found, self.val_split, self.test_split)
        texts, labels = found.pop("") if "" in found else found["train"]
        what = "texts" if self.text_pair is None else "pairs"
        for split, part in split_texts(texts, shares, self.seed, labels, what).items():
            found[split] = ([texts[i] for i in part], [labels[i] for i in part])
        return {split: found[split] for split in ("train", "val", "test")}

    def default_texts(self) -> Texts:
        """Return texts and labels where no path is given."""
        return documentation()

    def _drop_empty(self, texts: list[Any], labels: list[str]) -> Texts:
        kept = [i for i, text in enumerate(texts) if all(part.strip() for part in as_text_tuple(text))]
        if len(kept) < len(texts):
            what = "texts are empty"
            if self.text_pair is not None:
                what = "pairs lack a text"
            say(f"{len(texts) - len(kept)} of {len(texts):,} {what} and are left out")
        if not kept:
            raise ValueError(f"{self.path}: all texts are empty")
        return [texts[i] for i in kept], [labels[i] for i in kept]

    @cached_property
    def _tokens(self) -> dict[str, list[Any]]:
        return self._tokenize({split: texts for split, (texts, _) in self._texts.items()})

    def _tokenize(self, texts: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Cut texts by splits into tokens, of a subword tokenizer as ids, and truncate them."""
        tokenizer = self.tokenizer
        if tokenizer is None:
            return self._tokenize_words(texts)
        found: dict[str, list[Any]] = {}
        for split, part in texts.items():
            if self.text_pair is not None:
                found[split] = tokenize_pairs(tokenizer, part, self.max_length, f"pairs of {split}")
                continue
            whole = tokenize_texts(tokenizer, part)
            kept = truncate(tokenizer, whole, self.max_length, f"texts of {split}")
            found[split] = [ids for ids, _ in kept]
        return found

    def _tokenize_words(self, texts: dict[str, list[str]]) -> dict[str, list[list[str]]]:
        found: dict[str, list[list[str]]] = {}
        lengths = []
        for split, part in texts.items():
            tokens = [tokenize(text, self.level) for text in part]
            lengths += [len(row) for row in tokens]
            found[split] = [row[: self.max_length] for row in tokens]
        report_truncated(lengths, self.max_length, "texts")
        return found

    # Encoding ---------------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        module = getattr(self.trainer, "lightning_module", None)
        net = getattr(module, "net", None)
        if self.text_pair is not None and net is not None and not takes_token_types(net):
            raise ValueError(f"{type(net).__name__} takes no pairs of texts (text_pair): BERTClassifier does")
        super().setup(stage)

    def splits(self) -> dict[str, Dataset]:
        index = {name: i for i, name in enumerate(self.class_names)}
        sets: dict[str, Dataset] = {}
        for split, tokens in self._tokens.items():
            labels = self._texts[split][1]
            unknown = sorted(set(labels) - set(self.class_names))
            if unknown:
                known = ", ".join(self.class_names[:10])
                raise ValueError(f"{self.path}: {split} has the class {unknown[0]!r}; training has {known}")
            targets = torch.tensor([index[name] for name in labels])
            change = None
            if split == "train":
                change = self._change
            sets[split] = self._sequence_dataset(tokens, targets, change)
        return sets

    def predict_dataset(self) -> Dataset | None:
        if self.predict_file is None:
            return None
        self._new_samples = self.read_samples(Path(self.predict_file))
        return self._new_samples.dataset

    def read_samples(self, source: Any) -> NewSamples:
        """Read new texts, or pairs of texts.

        Args:
            source: a text or a list of texts; a DataFrame with the column of the texts; or as ``pathlib.Path``:
                ``.txt`` with a text a line, a folder of ``.txt``, ``.jsonl``, ``.csv``, ``.tsv`` or ``.parquet``.
        """
        names = [self.text] if self.text_pair is None else [self.text, self.text_pair]
        found = collect_texts(source, names, self.label, self.encoding, self.separator)
        dataset = self._sequence_dataset(self._tokenize({"predict": found.texts})["predict"])
        return NewSamples(dataset, found.columns, found.labels, index=found.index)

    @property
    def target_name(self) -> str | None:
        """Name of the column of the labels, under which predictions are written."""
        is_table = self.path is not None and Path(self.path).suffix.lower() in FORMATS
        return self.label if is_table else None

    def predict_columns(self) -> dict[str, Sequence[Any]]:
        if self._new_samples is None and self.predict_split == "test":
            return self._columns_of(self._texts["test"][0])
        return super().predict_columns()

    def predict_targets(self) -> Sequence[Any] | None:
        if self._new_samples is None and self.predict_split == "test":
            return self._texts["test"][1]
        return super().predict_targets()

    def _columns_of(self, texts: Sequence[Any]) -> dict[str, Sequence[Any]]:
        if self.text_pair is None:
            return {self.text: texts}
        return {name: [pair[i] for pair in texts] for i, name in enumerate((self.text, self.text_pair))}

    def _sequence_dataset(
        self,
        tokens: list[Any],
        targets: Tensor | None = None,
        change: AugmentFn | None = None,
    ) -> SequenceDataset:
        if self.text_pair is not None:
            ids = [pair_ids for pair_ids, _ in tokens]
            types = [pair_types for _, pair_types in tokens]
            return TokenColumnsDataset((ids, types), (self.pad_id, 0), targets)
        if self.tokenizer is None:
            empty = [UNKNOWN_ID]
            rows = [self.vocabulary.encode(row) or empty for row in tokens]
        else:
            # Of a tokenizer without an unknown token, an empty text is padding.
            empty = [self.tokenizer.unknown_id or self.pad_id]
            rows = [row or empty for row in tokens]
        values, lengths = concatenate(rows)
        return SequenceDataset(values, lengths, targets, padding=self.pad_id, change=change)

    @property
    def _change(self) -> AugmentFn | None:
        if not any(self.augment.values()):
            return None
        return partial(augment_tokens, **self.augment)

    def bucket_lengths(self) -> Tensor | None:
        if not self.bucket_by_length:
            return None
        return self.datasets["train"].lengths  # type: ignore[attr-defined]


def takes_token_types(net: nn.Module) -> bool:
    """Return whether a network reads token types, as BERT does, and so pairs of texts."""
    return "token_types" in inspect.signature(net.forward).parameters


def sort_classes(names: set[str]) -> list[str]:
    """Return names of classes in order: numbers by their values, so that 9 is in front of 10."""
    if any(math.isnan(number(name)) for name in names):
        return sorted(names)
    return sorted(names, key=lambda name: (number(name), name))


def as_text_tuple(text: str | tuple[str, str]) -> tuple[str, ...]:
    """Return a text as a tuple of one, a pair of texts as it is."""
    if isinstance(text, str):
        return (text,)
    return text
