"""Named entity recognition: CoNLL files, or sentences generated from a seed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from zoo.data.new_samples import NewSamples
from zoo.data.text.conll import Sentence, read_conll_splits
from zoo.data.text.encoding import DEFAULT_ENCODING, check_encoding
from zoo.data.text.entity_spans import spans_of_words, with_entities
from zoo.data.text.new_texts import collect_texts
from zoo.data.text.splits import split_shares, split_texts
from zoo.data.text.subword import SubwordData, TokenColumnsDataset, make_tokenizer, tokenize_texts, truncate
from zoo.data.text.synthetic_entities import generate_sentences
from zoo.distributed import say
from zoo.text import Tokenizer

IGNORE_INDEX = -100
WORD = re.compile(r"\w+|[^\w\s]")


class TaggedDataset(TokenColumnsDataset):
    """Sentences as tokens with a tag each, -100 where there is none; a batch is ``((x, lengths), y)``."""

    def batch(self, indices: Tensor) -> tuple[Any, ...]:
        ((x, lengths, y),) = super().batch(indices)  # (b, t), (b,), (b, t)
        return (x, lengths), y


class NER(SubwordData):
    """Sentences whose words have tags such as ``B-PER``: CoNLL files, or sentences generated from the seed.

    A batch is ``((x, lengths), y)``: tokens ``(b, t)``, padded behind their ends; lengths ``(b,)``; tags ``(b, t)`` of
    the first subword of each word, -100 for further subwords, special tokens and padding. Tags are read in IOB1, IOB2,
    IOBES or BMES, whichever it is, and returned in IOB2. Equal sentences are in the same split.

    Args:
        path: a file, or a folder with ``train`` (and ``valid`` or ``dev``, ``test``) ``.txt``, ``.conll``, ``.iob``,
            ``.bio`` or ``.tsv``: a word a line, its tag in the last column, empty lines between sentences; null
            generates sentences with people, places, organisations and dates.
        samples: number of generated sentences, without ``path``.
        lowercase: whether a trained tokenizer puts texts into lower case; names are easier to find with capitals.
        predict_file: new texts for ``predict``, one a line (``.txt``), or a column ``text``.
        tags: tags in the order of their indices; null takes them from the training sentences.
        encoding: encoding of the files, such as ``latin-1`` or ``cp1252``; a byte order mark takes precedence.
    """

    fitted_names = ("tokenizer", "tags")

    def __init__(
        self,
        path: str | None = None,
        samples: int = 3000,
        lowercase: bool = False,
        predict_file: str | None = None,
        tags: list[str] | None = None,
        encoding: str = DEFAULT_ENCODING,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if samples < 10:
            raise ValueError(f"samples must be 10 or more, got {samples}")
        check_encoding(encoding)
        self.path = path
        self.samples = samples
        self.lowercase = lowercase
        self.predict_file = predict_file
        self.encoding = encoding
        self._tags = tags

    # Data spec
    # ------------------------------------------------------------------------------------------------------------

    def build_tokenizer(self) -> Tokenizer:
        options = {}
        if self._tokenizer_option == "wordpiece":
            options["lowercase"] = self.lowercase
        return make_tokenizer(self._tokenizer_option, self._training_texts, self._vocab_size, **options)

    def _training_texts(self) -> list[str]:
        return [" ".join(words) for words, _ in self._sentences["train"]]

    @property
    def class_names(self) -> list[str]:
        """``O``, and ``B-`` and ``I-`` of each type, whether or not both occur."""
        if self._tags is None:
            kinds = {tag[2:] for _, tags in self._sentences["train"] for tag in tags if tag != "O"}
            if not kinds:
                raise ValueError(f"{self.path}: no training sentence has an entity, all tags are O")
            self._tags = ["O"]
            for kind in sorted(kinds):
                self._tags += [f"B-{kind}", f"I-{kind}"]
        return self._tags

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def fitted_hparams(self) -> dict[str, Any]:
        return {**super().fitted_hparams(), "tags": self.class_names}

    # Reading ----------------------------------------------------------------------------------------------------------

    @cached_property
    def _sentences(self) -> dict[str, list[Sentence]]:
        if self.path is None:
            found = {"": generate_sentences(self.samples, self.seed)}
        else:
            found = read_conll_splits(Path(self.path), self.encoding)
        shares = split_shares(found, self.val_split, self.test_split)
        sentences = found.pop("") if "" in found else found["train"]
        keys = [tuple(words) for words, _ in sentences]
        for split, part in split_texts(keys, shares, self.seed, what="sentences").items():
            found[split] = [sentences[i] for i in part]
        return {split: found[split] for split in ("train", "val", "test")}

    def splits(self) -> dict[str, Dataset]:
        return {split: self._tagged_dataset(sentences, split) for split, sentences in self._sentences.items()}

    def predict_dataset(self) -> Dataset | None:
        if self.predict_file is None:
            return None
        self._new_samples = self.read_samples(Path(self.predict_file))
        return self._new_samples.dataset

    def read_samples(self, source: Any) -> NewSamples:
        """Read new texts, whose words are tagged and whose entities have the positions of their characters.

        Args:
            source: a text, a list of texts or of lists of words; a DataFrame with the column ``text``; or as
                ``pathlib.Path``: ``.txt`` with a text a line, a folder of ``.txt``, ``.jsonl``, ``.csv`` or ``.tsv``.
        """
        is_words = isinstance(source, (list, tuple)) and bool(source) and isinstance(source[0], (list, tuple))
        found = collect_texts([" ".join(words) for words in source] if is_words else source, encoding=self.encoding)
        spans = []
        for i, text in enumerate(found.texts):
            spans.append(spans_of_words(source[i]) if is_words else [match.span() for match in WORD.finditer(text)])
        words = [[text[start:stop] for start, stop in span] for text, span in zip(found.texts, spans, strict=True)]
        columns = {**found.columns, "words": words}
        dataset, tagged = self.words_dataset([row or [""] for row in words], "predict")

        def finish(row: dict[str, Any], index: int) -> dict[str, Any]:
            return with_entities(row, found.texts[index], spans[index], tagged[index])

        return NewSamples(dataset, columns, finish=finish, index=found.index)

    def words_dataset(self, sentences: list[list[str]], split: str) -> tuple[TaggedDataset, list[list[int]]]:
        """Return sentences to be tagged, and for each the indices of its words that are."""
        # Any tag marks the words that are to be tagged.
        dataset = self._tagged_dataset([(words, [self.class_names[0]] * len(words)) for words in sentences], split)
        tokens = tokenize_texts(self.tokenizer, sentences)
        tagged = []
        for _, words in truncate(self.tokenizer, tokens, self.max_length, f"sentences of {split}"):
            tagged.append(list(dict.fromkeys(word for word in words if word is not None)))
        return dataset, tagged

    def predict_columns(self) -> dict[str, Sequence[Any]]:
        if self._new_samples is None and self.predict_split == "test":
            return {"words": [words for words, _ in self._sentences["test"]]}
        return super().predict_columns()

    def predict_targets(self) -> Sequence[Any] | None:
        if self._new_samples is None and self.predict_split == "test":
            return [tags for _, tags in self._sentences["test"]]
        return super().predict_targets()

    def _tagged_dataset(self, sentences: list[Sentence], split: str) -> TaggedDataset:
        index = {tag: i for i, tag in enumerate(self.class_names)}
        unknown = {tag for _, tags in sentences for tag in tags if tag not in index}
        if unknown:
            known = ", ".join(self.class_names[:9])
            raise ValueError(f"{self.path}: {split} has the tag {min(unknown)}; training has {known}")
        tokens = tokenize_texts(self.tokenizer, [words for words, _ in sentences])
        self._report_words_without_tokens(sentences, [words for _, words in tokens], split)
        tokens = truncate(self.tokenizer, tokens, self.max_length, f"sentences of {split}")
        ids = []
        targets = []
        for (row, words), (_, tags) in zip(tokens, sentences, strict=True):
            ids.append(row)
            targets.append(_first_subword_tags(words, [index[tag] for tag in tags]))
        return TaggedDataset([ids, targets], padding=(self.pad_id or 0, IGNORE_INDEX))

    def _report_words_without_tokens(
        self,
        sentences: list[Sentence],
        token_words: list[list[int | None]],
        split: str,
    ) -> None:
        """Print how many words have no token, such as a zero-width space, which BERT's tokenizer drops."""
        lost = []
        for (words, _), of_tokens in zip(sentences, token_words, strict=True):
            with_tokens = set(of_tokens)
            lost += [word for i, word in enumerate(words) if i not in with_tokens]
        if lost:
            total = sum(len(words) for words, _ in sentences)
            counts = f"{len(lost):,} of {total:,} words have no token and so no tag"
            say(f"{split}: {counts}, the first is {lost[0]!r}")


def _first_subword_tags(words: list[int | None], tags: list[int]) -> list[int]:
    """Return a tag for each token: that of the word at its first subword, and -100 elsewhere.

    Args:
        words: for each token the index of its word, None for special tokens.
        tags: for each word its tag.
    """
    found = []
    before = None
    for word in words:
        if word is None or word == before:
            found.append(IGNORE_INDEX)
        else:
            found.append(tags[word])
        before = word
    return found
