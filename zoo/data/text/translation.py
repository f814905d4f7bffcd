"""Pairs of texts, of which the second says the first in another language: dates, or files of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils.data import Dataset

from zoo.data.base import DataModule, split_indices
from zoo.data.sequences import SequenceDataset
from zoo.data.text.dates import COUNT, generate_dates
from zoo.distributed import say
from zoo.text.tokenizer import Tokenizer
from zoo.text.vocabulary import PAD, UNKNOWN

Pairs = list[tuple[str, str]]
PairLevel = Literal["characters", "words", "bpe"]
SPECIALS = {"pad": PAD, "unknown": UNKNOWN, "bos": "<bos>", "eos": "<eos>"}
PAD_ID, UNKNOWN_ID, BOS_ID, EOS_ID = range(4)  # special tokens come first


class PairDataset(Dataset):
    """Sources and targets as tokens; a batch is ``((src, tgt), labels)``, padded to its own longest.

    ``tgt`` is the target from its begin-of-sequence on, ``labels`` what comes behind each of its tokens, and -100 in
    the padding. Without targets a batch is ``((src,),)``.

    Args:
        sources: tokens of the sources.
        targets: those of the targets, from begin-of-sequence to end-of-sequence; null for none.
    """

    def __init__(self, sources: SequenceDataset, targets: SequenceDataset | None = None) -> None:
        self.sources, self.targets = sources, targets

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        """One sample without a batch dimension."""
        (source, _), *_ = self.sources[index]
        if self.targets is None:
            return ((source,),)
        (target, _), *_ = self.targets[index]
        return (source, target[:-1]), target[1:]

    def batch(self, indices: Tensor) -> tuple[Any, ...]:
        (source, _), *_ = self.sources.batch(indices)
        if self.targets is None:
            return ((source,),)
        (target, _), *_ = self.targets.batch(indices)
        return (source, target[:, :-1]), target[:, 1:].masked_fill(target[:, 1:] == PAD_ID, -100)


class TranslationData(DataModule):
    """What data of two languages share: ``pairs`` gives the texts of the splits, the rest is done here.

    Args:
        max_length: tokens of a text that are kept; the rest is left out.
        max_size: number of tokens in each of the two vocabularies, the most frequent; null for all.
        min_freq: how often a token must occur in training; rarer ones are all the same, unknown token.
        bucket_by_length: put pairs of similar lengths into a batch of training.
        predict_file: new texts for ``predict``, one a line; null takes those of the test.
        val_split: share of the texts kept for validation.
        test_split: share of the texts kept for the test.
        tokenizers: what the tokens of source and target are; null counts the training texts, a checkpoint brings its
            own.
    """

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
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if max_length < 1:
            raise ValueError(f"max_length must be 1 or more, got {max_length}")
        self.max_length, self.max_size, self.min_freq = max_length, max_size, min_freq
        self.bucket_by_length, self.predict_file = bucket_by_length, predict_file
        self.val_split, self.test_split = val_split, test_split
        if tokenizers is not None and len(tokenizers) != 2:
            raise ValueError(f"tokenizers are two, of source and target, got {len(tokenizers)}")
        self._tokenizers = None if tokenizers is None else tuple(Tokenizer.from_plain(plain) for plain in tokenizers)

    def pairs(self) -> dict[str, Pairs]:
        """Return the pairs of texts of ``train``, ``val`` and ``test``."""
        raise ValueError(f"{type(self).__name__} does not say what its texts are: write pairs()")

    def _split(self, n: int) -> dict[str, list[int]]:
        parts = split_indices(n, [1 - self.val_split - self.test_split, self.val_split, self.test_split], self.seed)
        if not all(map(len, parts)):
            raise ValueError(f"{n} texts are too few for train, val and test: {', '.join(str(len(p)) for p in parts)}")
        return {split: part.tolist() for split, part in zip(("train", "val", "test"), parts, strict=True)}

    @cached_property
    def new_sources(self) -> list[str] | None:
        """The texts of ``predict_file``."""
        if self.predict_file is None:
            return None
        lines = read_lines(self.predict_file)
        kept = [line.strip() for line in lines if line.strip()]
        if len(kept) < len(lines):
            say(f"{self.predict_file}: {len(lines) - len(kept):,} of {len(lines):,} lines are empty and left out")
        return kept

    # Data spec
    # ------------------------------------------------------------------------------------------------------------

    @property
    def tokenizers(self) -> tuple[Tokenizer, ...]:
        """Of source and target."""
        if self._tokenizers is None:
            sides = zip(*self._pairs["train"], strict=True)
            self._tokenizers = tuple(self._trained(side) for side in sides)
        return self._tokenizers

    def _trained(self, texts: Sequence[str]) -> Tokenizer:
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
        return self.max_length + 1  # the end

    def override_spec(self, name: str, value: Any) -> bool:
        return name == "max_new_tokens"  # data knows what may be enough; the user may know better

    # Encoding ---------------------------------------------------------------------------------------------------------

    @cached_property
    def _pairs(self) -> dict[str, Pairs]:
        return self.pairs()

    def splits(self) -> dict[str, Dataset]:
        return {split: self._encoded(pairs, split) for split, pairs in self._pairs.items()}

    def predict_dataset(self) -> PairDataset | None:
        texts = self.new_sources
        if texts is None:
            return None
        return PairDataset(self._numbers(texts, 0, "predict"))

    def _encoded(self, pairs: Pairs, split: str) -> PairDataset:
        return PairDataset(*(self._numbers([pair[side] for pair in pairs], side, split) for side in (0, 1)))

    def _numbers(self, texts: list[str], side: int, split: str) -> SequenceDataset:
        what, tokenizer = ("sources", "targets")[side], self.tokenizers[side]
        numbers = [tokenizer.encode(text) or [UNKNOWN_ID] for text in texts]
        if longer := [len(part) for part in numbers if len(part) > self.max_length]:
            cut = f"{len(longer):,} of {len(numbers):,} {what} are longer than max_length={self.max_length} tokens"
            say(f"{split}: {cut} (the longest has {max(longer):,}): their ends are left out")
            numbers = [part[: self.max_length] for part in numbers]
        unknown = sum(part.count(UNKNOWN_ID) for part in numbers)
        if unknown and split != "train":
            say(f"{split}: {unknown:,} of {sum(map(len, numbers)):,} tokens of {what} are not in the vocabulary")
        if side:
            numbers = [[BOS_ID, *part, EOS_ID] for part in numbers]
        lengths = torch.tensor([len(part) for part in numbers])
        return SequenceDataset(torch.tensor([i for part in numbers for i in part]), lengths, padding=PAD_ID)

    def bucket_lengths(self) -> Tensor | None:
        if not self.bucket_by_length:
            return None
        train: Any = self.datasets["train"]
        return train.sources.lengths * (self.max_length + 3) + train.targets.lengths


class DateTranslation(TranslationData):
    """Dates of 1969 to 2068 as people write them, to be written as ISO 8601 has them: ``Mar 3rd '24``, ``2024-03-03``.

    Drawn from the seed in 21 styles, characters as tokens; each date occurs once, in one split, so a network has to
    read dates it has never seen.

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
        return 11  # ten characters and the end

    def pairs(self) -> dict[str, Pairs]:
        pairs = generate_dates(self.samples, self.seed)
        return {split: [pairs[i] for i in part] for split, part in self._split(len(pairs)).items()}


class ParallelText(TranslationData):
    """Texts and their translations: two files with a text a line, or a TSV file with both in a row.

    A source stands in one split only, however often it occurs. The vocabularies are those of the training texts; a
    checkpoint keeps them, so that new texts are read as the old ones were.

    Args:
        source: a file with a text a line, or a ``.tsv`` file whose first two columns are text and translation.
        target: a file with the translations, line by line; null with ``.tsv``.
        level: tokens are ``characters``, ``words`` (in lower case; signs too) or ``bpe``, pieces of words.
    """

    def __init__(self, source: str, target: str | None = None, level: PairLevel = "words", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if level not in get_args(PairLevel):
            raise ValueError(f"level must be {', '.join(get_args(PairLevel))}, got {level!r}")
        if (target is None) != source.endswith(".tsv"):
            raise ValueError(f"ParallelText takes a source and a target file, or one .tsv: got {source=}, {target=}")
        if self._tokenizers is not None and {tokenizer.level for tokenizer in self._tokenizers} != {level}:
            raise ValueError(
                f"level is {level}, but the tokenizers (of a checkpoint, say) are for {self._tokenizers[0].level}"
            )
        self.source, self.target, self.level = source, target, level

    def pairs(self) -> dict[str, Pairs]:
        pairs = read_tsv(self.source) if self.target is None else read_two(self.source, self.target)
        kept = [(source, target) for source, target in pairs if source and target]
        if len(kept) < len(pairs):
            say(f"{len(pairs) - len(kept):,} of {len(pairs):,} pairs are empty on one side or both, and left out")
        kept = list(dict.fromkeys(kept))
        sources = {source: i for i, source in enumerate(dict.fromkeys(source for source, _ in kept))}
        names = {i: split for split, part in self._split(len(sources)).items() for i in part}
        found: dict[str, Pairs] = {"train": [], "val": [], "test": []}
        for source, target in kept:
            found[names[sources[source]]].append((source, target))
        return found


def read_two(source: str, target: str) -> Pairs:
    """Read two files of as many lines each."""
    sources, targets = read_lines(source), read_lines(target)
    if len(sources) != len(targets):
        counts = f"{source} has {len(sources):,} lines, {target} has {len(targets):,}"
        raise ValueError(f"{counts}: line by line, one must be the translation of the other")
    return [(source.strip(), target.strip()) for source, target in zip(sources, targets, strict=True)]


def read_tsv(path: str) -> Pairs:
    """Read the first two columns of a file; further ones do not matter."""
    pairs = []
    for i, line in enumerate(read_lines(path), 1):
        first, tab, rest = line.partition("\t")
        if line.strip() and not tab:
            raise ValueError(f"{path}, line {i}: a text, a tab and its translation needed, got {line[:40]!r}")
        pairs.append((first.strip(), rest.partition("\t")[0].strip()))
    return pairs


def read_lines(path: str) -> list[str]:
    """Read the lines of a text file, or say what is wrong with it."""
    if not Path(path).is_file():
        raise ValueError(f"no file {path}" + (" (it is a folder)" if Path(path).is_dir() else ""))
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not text in UTF-8") from None
    if not text.strip():
        raise ValueError(f"{path} is empty")
    return text.removesuffix("\n").split("\n")
