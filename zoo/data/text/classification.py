"""Texts and their classes: files of one's own, or sentences of Python's documentation."""

from __future__ import annotations

import inspect
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from zoo.data.base import DataModule, split_indices
from zoo.data.sequences import SequenceDataset
from zoo.data.tabular import number
from zoo.data.text.python_docs import documentation
from zoo.data.text.subword import TokenColumnsDataset, make_tokenizer, tokenize_pairs, tokenize_texts, truncate
from zoo.data.text.text_files import Texts, read_splits, read_texts
from zoo.distributed import say
from zoo.text import Tokenizer
from zoo.text.vocabulary import Level, Vocabulary, check_level, tokenize

CHANGES = ("mask", "delete", "swap")


class TextClassification(DataModule):
    """Texts, or pairs of texts, with a class each, as tokens: of a file, of folders by class, or of Python's docs.

    A batch is ``((x, lengths), y)``: token numbers ``(b, t)``, padded behind their ends to the longest text of the
    batch, lengths ``(b,)``, classes ``(b,)``. Training batches hold texts of similar length. The vocabulary is that of
    the training texts; a checkpoint keeps it, so that new texts are read as the old ones were.

    With ``text_pair`` a row is two texts whose class both tell, as a premise and a hypothesis, or a question and an
    answer. The batch is then ``((x, lengths, token_types), y)``, as BERT takes it: both texts between the special
    tokens that belong around a pair, and types ``(b, t)``, 1 in the second.

    Args:
        path: a ``.csv``, ``.tsv`` or ``.jsonl`` file, a folder with a folder of ``.txt`` files for each class, or a
            folder with ``train`` (and ``val``, ``test``) of these kinds; null takes sentences of the documentation that
            Python carries, by the part they come from.
        text: name of the column of the texts.
        label: name of the column of the classes.
        level: tokens are ``words`` (in lower case; signs too) or ``characters``.
        max_length: tokens of a text that are kept; the rest is left out.
        min_freq: how often a token must occur in training; rarer ones are all the same, unknown token.
        max_size: number of tokens in the vocabulary, the most frequent; null for all.
        augment: random changes of training texts, as shares of their tokens: ``mask`` (made unknown), ``delete``,
            ``swap`` (trading places with a neighbour), such as ``{mask: 0.1, swap: 0.1}``.
        bucket_by_length: put texts of similar length into a batch.
        predict_file: new texts for ``predict``, without classes: a file as above, or ``.txt`` with a text a line.
        val_split: share of the texts kept for validation, where there is no ``val``.
        test_split: share of the texts kept for the test, where there is no ``test``.
        vocabulary: all tokens, by their numbers; null takes them from the training texts.
        classes: names of the classes, by their numbers; null takes them from the training texts.
        tokenizer: pieces of words in place of ``level``, with the special tokens of BERT: ``wordpiece``, ``max_size``
            of them learned from the training texts, or a path: a ``tokenizer.json`` or a folder with one.
        text_pair: name of the column of the second texts, for pairs, which need a ``tokenizer``. Of a pair that is too
            long the longer text loses its end, and at last both (``longest_first`` of Hugging Face).
    """

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
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_level(level)
        if tokenizer is not None and any((augment or {}).values()):
            raise ValueError("augment changes words or characters: leave it out, or the tokenizer")
        if text_pair is not None and (tokenizer is None or path is None):
            raise ValueError("text_pair is for pairs of a file, and needs path and tokenizer, such as wordpiece")
        if max_length < 1:
            raise ValueError(f"max_length must be 1 or more, got {max_length}")
        for name, share in (augment or {}).items():
            if name not in CHANGES or not 0 <= share < 1:
                raise ValueError(f"augment takes shares below 1 of {', '.join(CHANGES)}, got {name}: {share}")
        self.path, self.text, self.text_pair, self.label = path, text, text_pair, label
        self.level: Level = level
        self.max_length, self.min_freq, self.max_size = max_length, min_freq, max_size
        self.augment, self.bucket_by_length, self.predict_file = augment or {}, bucket_by_length, predict_file
        self.val_split, self.test_split = val_split, test_split
        self._vocabulary = None if vocabulary is None else Vocabulary(vocabulary)
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

        def training_texts() -> list[str]:
            texts = []
            for sample in self._texts["train"][0]:
                texts += as_text_tuple(sample)
            return texts

        return make_tokenizer(self._tokenizer_option, training_texts, self.max_size)

    @property
    def pad_id(self) -> int:
        return 0 if self.tokenizer is None else self.tokenizer.pad_id or 0

    @property
    def vocab_size(self) -> int:
        return len(self.vocabulary if self.tokenizer is None else self.tokenizer)

    @property
    def class_names(self) -> list[str]:
        if self._classes is None:
            names = set(self._texts["train"][1])
            numeric = all(number(name) == number(name) for name in names)
            self._classes = sorted(names, key=lambda name: (number(name), name) if numeric else (0.0, name))
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
        columns = self.text, self.label, self.text_pair
        found = read_splits(Path(self.path), *columns) if self.path else {"": self.default_texts()}
        found = {split: self._drop_empty(*texts) for split, texts in found.items()}
        rest = found.pop("") if "" in found else found["train"]
        shares = {s: share for s, share in (("val", self.val_split), ("test", self.test_split)) if s not in found}
        index = {name: i for i, name in enumerate(sorted(set(rest[1])))}
        labels = torch.tensor([index[name] for name in rest[1]], dtype=torch.long)
        parts = split_indices(len(labels), [1 - sum(shares.values()), *shares.values()], self.seed, labels)
        for split, part in zip(("train", *shares), parts, strict=True):
            if not len(part):
                raise ValueError(f"{len(labels)} texts are too few: nothing is left for {split}")
            found[split] = ([rest[0][i] for i in part.tolist()], [rest[1][i] for i in part.tolist()])
        return {split: found[split] for split in ("train", "val", "test")}

    def default_texts(self) -> Texts:
        """Texts and labels where no path is given."""
        return documentation()

    def _drop_empty(self, texts: list[Any], labels: list[str]) -> Texts:
        kept = [i for i, text in enumerate(texts) if all(part.strip() for part in as_text_tuple(text))]
        if len(kept) < len(texts):
            what = "texts are empty" if self.text_pair is None else "pairs lack a text"
            say(f"{len(texts) - len(kept)} of {len(texts):,} {what} and are left out")
        if not kept:
            raise ValueError(f"{self.path}: no text that is not empty")
        return [texts[i] for i in kept], [labels[i] for i in kept]

    @cached_property
    def _tokens(self) -> dict[str, list[Any]]:
        return self._tokenized({split: texts for split, (texts, _) in self._texts.items()})

    def _tokenized(self, texts: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Cut into tokens (their numbers, by a tokenizer), as many as are kept; say how often that was not all."""
        if (tokenizer := self.tokenizer) is not None and self.text_pair is not None:
            return {s: tokenize_pairs(tokenizer, part, self.max_length, f"pairs of {s}") for s, part in texts.items()}
        if tokenizer is not None:
            whole = {split: tokenize_texts(tokenizer, part) for split, part in texts.items()}
            kept = {s: truncate(tokenizer, part, self.max_length, f"texts of {s}") for s, part in whole.items()}
            return {split: [ids for ids, _ in part] for split, part in kept.items()}
        tokens = {split: [tokenize(text, self.level) for text in part] for split, part in texts.items()}
        everything = [part for parts in tokens.values() for part in parts]
        longer = [len(part) for part in everything if len(part) > self.max_length]
        if longer:
            found = f"{len(longer)} of {len(everything):,} texts are longer than max_length={self.max_length} tokens"
            say(f"{found} (the longest has {max(longer):,}): their ends are left out")
        return {split: [part[: self.max_length] for part in parts] for split, parts in tokens.items()}

    # Encoding ---------------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        net = getattr(getattr(self.trainer, "lightning_module", None), "net", None)
        takes = net is None or "token_types" in inspect.signature(net.forward).parameters
        if self.text_pair is not None and not takes:
            raise ValueError(f"{type(net).__name__} takes no pairs of texts (text_pair): BERTClassifier does")
        super().setup(stage)

    def splits(self) -> dict[str, Dataset]:
        sets: dict[str, Dataset] = {}
        for split, tokens in self._tokens.items():
            labels = self._texts[split][1]
            if unknown := sorted(set(labels) - set(self.class_names)):
                known = ", ".join(self.class_names[:10])
                raise ValueError(f"{self.path}: {split} has the class {unknown[0]!r}; training has {known}")
            index = {name: i for i, name in enumerate(self.class_names)}
            targets = torch.tensor([index[name] for name in labels])
            sets[split] = self._encoded(tokens, targets, change=self._change if split == "train" else None)
        return sets

    def predict_dataset(self) -> SequenceDataset | None:
        if self.predict_file is None:
            return None
        texts, _ = read_texts(Path(self.predict_file), self.text, None, self.text_pair)
        return self._encoded(self._tokenized({"predict": texts})["predict"])

    def _encoded(self, tokens: list[Any], targets: Tensor | None = None, change: Any = None) -> SequenceDataset:
        if self.text_pair is not None:
            columns = [ids for ids, _ in tokens], [types for _, types in tokens]
            return TokenColumnsDataset(columns, (self.pad_id, 0), targets)
        # an empty text is one unknown token, or padding
        if self.tokenizer is not None:
            numbers = [part or [self.tokenizer.unknown_id or self.pad_id] for part in tokens]
        else:
            numbers = [self.vocabulary.encode(part) or [1] for part in tokens]
        lengths = torch.tensor([len(part) for part in numbers])
        values = torch.tensor([i for part in numbers for i in part])
        return SequenceDataset(values, lengths, targets, padding=self.pad_id, change=change)

    @property
    def _change(self) -> Any:
        return partial(augment_tokens, **self.augment) if any(self.augment.values()) else None

    def bucket_lengths(self) -> Tensor | None:
        return self.datasets["train"].lengths if self.bucket_by_length else None  # type: ignore[attr-defined]


def as_text_tuple(text: str | tuple[str, str]) -> tuple[str, ...]:
    """A text as a tuple of one, a pair of texts as it is."""
    return (text,) if isinstance(text, str) else text


def augment_tokens(
    x: Tensor, lengths: Tensor, mask: float = 0.0, delete: float = 0.0, swap: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Change tokens of padded texts at random; at least one of a text is kept (Wei and Zou 2019).

    https://arxiv.org/abs/1901.11196, on all texts of a batch at once.

    Args:
        x: token numbers ``(b, t)``, padded with 0.
        lengths: of the texts, ``(b,)``.
        mask: share of the tokens that become unknown (1).
        delete: share that is left out.
        swap: share that trades places with a neighbour.

    Returns:
        New token numbers, as wide as the longest text left, and new lengths.
    """
    x, (b, t) = x.clone(), x.shape
    steps = torch.arange(t)
    if swap and t > 1:
        # pairs (0, 1), (2, 3), ... of some texts and (1, 2), (3, 4), ... of the others
        left = (
            (steps % 2 == torch.randint(0, 2, (b, 1))) & (steps + 1 < lengths.unsqueeze(1)) & (torch.rand(b, t) < swap)
        )
        right = left.roll(1, 1)
        x = torch.where(left, x.roll(-1, 1), torch.where(right, x.roll(1, 1), x))
    if mask:
        x[(torch.rand(b, t) < mask) & (steps < lengths.unsqueeze(1))] = 1
    if delete:
        kept = (torch.rand(b, t) >= delete) & (steps < lengths.unsqueeze(1))
        spared = (torch.rand(b) * lengths).long()
        kept[torch.arange(b), spared] |= ~kept.any(1)
        lengths = kept.sum(1)
        x = (x * kept).gather(1, (~kept).byte().argsort(dim=1, stable=True))[:, : int(lengths.max())]
    return x, lengths
