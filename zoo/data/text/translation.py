"""Parallel texts, the second of a pair being the translation of the first: files of one's own, or dates."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils.data import Dataset

from zoo.data.base import DataModule
from zoo.data.new_samples import NewSamples
from zoo.data.sequences import SequenceDataset
from zoo.data.text.dates import COUNT, generate_dates
from zoo.data.text.encoding import DEFAULT_ENCODING, check_encoding, read_lines
from zoo.data.text.new_texts import collect_texts
from zoo.data.text.splits import split_texts
from zoo.data.text.truncation import report_truncated
from zoo.distributed import say
from zoo.text.tokenizer import Tokenizer
from zoo.text.vocabulary import PAD, UNKNOWN

Pairs = list[tuple[str, str]]
PairLevel = Literal["characters", "words", "bpe"]
SPECIALS = {"pad": PAD, "unknown": UNKNOWN, "bos": "<bos>", "eos": "<eos>"}
PAD_ID, UNKNOWN_ID, BOS_ID, EOS_ID = range(4)  # special tokens come first
IGNORE_INDEX = -100


class PairDataset(Dataset):
    """Token ids of sources and targets; a batch is ``((src, tgt), labels)``, padded to its own longest.

    ``tgt`` is the target from its begin-of-sequence token on; ``labels`` is the token that follows each of its tokens,
    and -100 in the padding. Without targets a batch is ``((src,),)``.

    Args:
        sources: token ids of the sources.
        targets: token ids of the targets, from begin-of-sequence to end-of-sequence; null for none.
    """

    def __init__(self, sources: SequenceDataset, targets: SequenceDataset | None = None) -> None:
        self.sources = sources
        self.targets = targets

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        """Return one sample without a batch dimension."""
        (source, _), *_ = self.sources[index]
        if self.targets is None:
            return ((source,),)
        (target, _), *_ = self.targets[index]
        return (source, target[:-1]), target[1:]

    def batch(self, indices: Tensor) -> tuple[Any, ...]:
        (source, _), *_ = self.sources.batch(indices)  # (b, s)
        if self.targets is None:
            return ((source,),)
        (target, _), *_ = self.targets.batch(indices)  # (b, t + 1)
        labels = target[:, 1:]  # (b, t)
        return (source, target[:, :-1]), labels.masked_fill(labels == PAD_ID, IGNORE_INDEX)


class TranslationData(DataModule):
    """Base of data in two languages: subclasses implement ``pairs()``, which returns the texts of the splits.

    Args:
        max_length: maximum number of tokens of a text; longer texts are truncated.
        max_size: maximum size of each of the two vocabularies, which keep the most frequent tokens; null for all.
        min_freq: minimum number of occurrences in the training texts; rarer tokens become the unknown token.
        bucket_by_length: batch training pairs of similar lengths.
        predict_file: new texts for ``predict``, one a line; null takes the test texts.
        val_split: fraction of the texts kept for validation.
        test_split: fraction of the texts kept for the test.
        tokenizers: tokenizers of source and target; null trains them on the training texts. A checkpoint brings its
            own.
        encoding: encoding of the files, such as ``latin-1`` or ``cp1252``; a byte order mark takes precedence.
    """

    fitted_names = ("tokenizers",)

    pad_id, bos_id, eos_id = PAD_ID, BOS_ID, EOS_ID
    level: PairLevel = "characters"

    def __init__(
        self,
        max_length: int = 128,
        max_size: int | None = None,
        min_freq: int = 1,
        bucket_by_length: bool = True,
        predict_file: str | None = None,
        val_split: float = 0.1,
        test_split: float = 0.1,
        tokenizers: list[dict[str, Any]] | None = None,
        encoding: str = DEFAULT_ENCODING,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if max_length < 1:
            raise ValueError(f"max_length must be 1 or more, got {max_length}")
        check_encoding(encoding)
        self.max_length = max_length
        self.max_size = max_size
        self.min_freq = min_freq
        self.bucket_by_length = bucket_by_length
        self.predict_file = predict_file
        self.val_split = val_split
        self.test_split = test_split
        self.encoding = encoding
        self._tokenizers: tuple[Tokenizer, ...] | None = None
        if tokenizers is not None:
            if len(tokenizers) != 2:
                raise ValueError(f"tokenizers must be two, of source and target, got {len(tokenizers)}")
            self._tokenizers = tuple(Tokenizer.from_plain(plain) for plain in tokenizers)

    def pairs(self) -> dict[str, Pairs]:
        """Return the pairs of texts of ``train``, ``val`` and ``test``."""
        raise ValueError(f"{type(self).__name__} has no texts: implement pairs()")

    def split_pairs(self, pairs: Pairs, keys: Sequence[str], what: str) -> dict[str, Pairs]:
        """Split pairs at random; pairs with equal keys are in the same split.

        Args:
            pairs: the pairs.
            keys: a key of each.
            what: what the keys are called in messages.
        """
        shares = {"train": 1 - self.val_split - self.test_split, "val": self.val_split, "test": self.test_split}
        parts = split_texts(keys, shares, self.seed, what=what)
        return {split: [pairs[i] for i in part] for split, part in parts.items()}

    # Data spec
    # ------------------------------------------------------------------------------------------------------------

    @property
    def tokenizers(self) -> tuple[Tokenizer, ...]:
        """The tokenizers of source and target."""
        if self._tokenizers is None:
            sides = zip(*self._pairs["train"], strict=True)
            self._tokenizers = tuple(self._train_tokenizer(side) for side in sides)
        return self._tokenizers

    def _train_tokenizer(self, texts: Sequence[str]) -> Tokenizer:
        return Tokenizer.train(self.level, texts, self.max_size, self.min_freq, SPECIALS)

    def fitted_hparams(self) -> dict[str, Any]:
        return {"tokenizers": [tokenizer.plain() for tokenizer in self.tokenizers]}

    @property
    def src_vocab_size(self) -> int:
        return len(self.tokenizers[0])

    @property
    def tgt_vocab_size(self) -> int:
        return len(self.tokenizers[1])

    @property
    def max_new_tokens(self) -> int:
        return self.max_length + 1  # one for the end-of-sequence token

    def override_spec(self, name: str, value: Any) -> bool:
        return name == "max_new_tokens"  # the data's value is a guess, which the user may know better

    # Encoding ---------------------------------------------------------------------------------------------------------

    @cached_property
    def _pairs(self) -> dict[str, Pairs]:
        return self.pairs()

    def splits(self) -> dict[str, Dataset]:
        return {split: self._pair_dataset(pairs, split) for split, pairs in self._pairs.items()}

    def predict_dataset(self) -> Dataset | None:
        if self.predict_file is None:
            return None
        self._new_samples = self.read_samples(Path(self.predict_file))
        return self._new_samples.dataset

    def read_samples(self, source: Any) -> NewSamples:
        """Read new texts to translate.

        Args:
            source: a text or a list of texts; a DataFrame with the column ``text``; or as ``pathlib.Path``: ``.txt``
                with a text a line, a folder of ``.txt``, ``.jsonl``, ``.csv``, ``.tsv`` or ``.parquet``.
        """
        found = collect_texts(source, encoding=self.encoding)
        columns = {name: values for name, values in found.columns.items() if name != "text"}

        def with_source(row: dict[str, Any], index: int) -> dict[str, Any]:
            return {**row, "source": found.texts[index]}  # as it was, not as it was tokenized

        dataset = PairDataset(self._encode(found.texts, 0, "predict"))
        return NewSamples(dataset, columns, finish=with_source, index=found.index)

    def predict_targets(self) -> Sequence[Any] | None:
        if self._new_samples is None and self.predict_split == "test":
            return [target for _, target in self._pairs["test"]]
        return super().predict_targets()

    def _pair_dataset(self, pairs: Pairs, split: str) -> PairDataset:
        sources = self._encode([source for source, _ in pairs], 0, split)
        targets = self._encode([target for _, target in pairs], 1, split)
        return PairDataset(sources, targets)

    def _encode(self, texts: list[str], side: int, split: str) -> SequenceDataset:
        """Return the token ids of texts, and print how many of them were truncated or are unknown.

        Args:
            texts: the texts.
            side: 0 for sources, 1 for targets, which are put between begin-of-sequence and end-of-sequence.
            split: name of the split, for messages.
        """
        what = ("sources", "targets")[side]
        tokenizer = self.tokenizers[side]
        rows = [tokenizer.encode(text) or [UNKNOWN_ID] for text in texts]
        if report_truncated([len(row) for row in rows], self.max_length, f"{what} of {split}"):
            rows = [row[: self.max_length] for row in rows]
        unknown = sum(row.count(UNKNOWN_ID) for row in rows)
        if unknown and split != "train":
            total = sum(map(len, rows))
            say(f"{split}: {unknown:,} of {total:,} tokens of {what} are not in the vocabulary")
        if side == 1:
            rows = [[BOS_ID, *row, EOS_ID] for row in rows]
        lengths = torch.tensor([len(row) for row in rows])
        ids = [i for row in rows for i in row]
        return SequenceDataset(torch.tensor(ids), lengths, padding=PAD_ID)

    def bucket_lengths(self) -> Tensor | None:
        if not self.bucket_by_length:
            return None
        train: Any = self.datasets["train"]
        # By the length of the source, then by that of the target, which is at most max_length + 2.
        return train.sources.lengths * (self.max_length + 3) + train.targets.lengths


class DateTranslation(TranslationData):
    """Dates in the ways in which people write them, and their ISO 8601 form: ``Mar 3rd '24``, ``2024-03-03``.

    Dates from 1969 to 2068 are generated from the seed in 21 styles, with characters as tokens. Each date occurs once,
    in one split, so a network has to read dates that it was not trained on.

    Args:
        samples: number of dates, of 36,525 that there are.
    """

    def __init__(self, samples: int = 10000, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 20 <= samples <= COUNT:
            raise ValueError(f"samples must be from 20 to {COUNT:,}, as many as there are dates: got {samples}")
        self.samples = samples

    @property
    def max_new_tokens(self) -> int:
        return 11  # ten characters and the end-of-sequence token

    def pairs(self) -> dict[str, Pairs]:
        pairs = generate_dates(self.samples, self.seed)
        # By the date, not by the source: several dates could be written alike.
        return self.split_pairs(pairs, [date for _, date in pairs], "dates")


class ParallelText(TranslationData):
    """Texts and their translations: two files with a text a line, or a TSV file with both in a row.

    All pairs of a source are in the same split, however often it occurs. The vocabularies are those of the training
    texts; a checkpoint keeps them, so that new texts are encoded as the training texts were.

    Args:
        source: a file with a text a line, or a ``.tsv`` file whose first two columns are text and translation.
        target: a file with the translations, line by line; null with ``.tsv``.
        level: tokens are ``characters``, ``words`` (in lower case; punctuation too) or ``bpe``, subwords.
    """

    def __init__(self, source: str, target: str | None = None, level: PairLevel = "words", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if level not in get_args(PairLevel):
            raise ValueError(f"level must be {', '.join(get_args(PairLevel))}, got {level!r}")
        if (target is None) != source.endswith(".tsv"):
            raise ValueError(f"ParallelText takes a source and a target file, or one .tsv: got {source=}, {target=}")
        if self._tokenizers is not None:
            levels = {tokenizer.level for tokenizer in self._tokenizers}
            if levels != {level}:
                given = f"the tokenizers (of a checkpoint, say) are for {self._tokenizers[0].level}"
                raise ValueError(f"level is {level}, but {given}")
        self.source = source
        self.target = target
        self.level = level

    def pairs(self) -> dict[str, Pairs]:
        if self.target is None:
            pairs = read_tsv(self.source, self.encoding)
        else:
            pairs = read_two(self.source, self.target, self.encoding)
        kept = [(source, target) for source, target in pairs if source and target]
        if len(kept) < len(pairs):
            say(f"{len(pairs) - len(kept):,} of {len(pairs):,} pairs are empty on one side or both, and left out")
        return self.split_pairs(kept, [source for source, _ in kept], "sources")


def read_two(source: str, target: str, encoding: str | None = None) -> Pairs:
    """Read two files with the same number of lines."""
    sources = read_filled_file(source, encoding)
    targets = read_filled_file(target, encoding)
    if len(sources) != len(targets):
        counts = f"{source} has {len(sources):,} lines, {target} has {len(targets):,}"
        raise ValueError(f"{counts}: line by line, one must be the translation of the other")
    return [(source.strip(), target.strip()) for source, target in zip(sources, targets, strict=True)]


def read_tsv(path: str, encoding: str | None = None) -> Pairs:
    """Read the first two columns of a file; further columns are ignored."""
    pairs = []
    for i, line in enumerate(read_filled_file(path, encoding), 1):
        first, tab, rest = line.partition("\t")
        if line.strip() and not tab:
            raise ValueError(f"{path}, line {i}: a text, a tab and its translation needed, got {line[:40]!r}")
        second = rest.partition("\t")[0]
        pairs.append((first.strip(), second.strip()))
    return pairs


def read_filled_file(path: str, encoding: str | None = None) -> list[str]:
    """Read the lines of a text file that is not empty."""
    lines = read_lines(Path(path), encoding)
    if not any(line.strip() for line in lines):
        raise ValueError(f"{path} is empty")
    return lines
