"""Running text for language models, as blocks of tokens: files of one's own, or what Python ships."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from torch.utils.data import DataLoader, Dataset

from zoo.data import disk_cache
from zoo.data.base import run_seed
from zoo.data.new_samples import NewSamples
from zoo.data.text import token_cache
from zoo.data.text.corpus_files import Text, exclude, find_texts, from_file, from_memory, split_tail
from zoo.data.text.encoding import DEFAULT_ENCODING, check_encoding
from zoo.data.text.new_blocks import NewBlocks
from zoo.data.text.new_texts import collect_texts
from zoo.data.text.separators import Separators, check_separator, choose_separators
from zoo.data.text.token_blocks import ShiftedBlockSampler, TokenBlocks
from zoo.data.text.tokenized import TokenizedData
from zoo.distributed import say
from zoo.text import Tokenizer
from zoo.text.tokenizer import SPECIALS, TrainedLevel
from zoo.text.vocabulary import UNKNOWN

BLOCK_SIZE = 256
MAX_MEMORY_BYTES = 4 << 20  # bytes of text up to which ``auto`` keeps the tokens in memory
NOT_SOURCE = ("site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__")
SPLIT_NAMES = {"train": "training", "val": "validation", "test": "test"}
Caching = Literal["auto", "memory", "disk"]
T = TypeVar("T")


class Corpus(TokenizedData):
    """Base of data of running text: subclasses implement ``texts()``, which returns the files of the splits.

    A batch is ``(x, y)``: tokens ``(b, block_size)``, and the tokens that follow each of them. An epoch has as many
    blocks as fit into the training text and reads every token once, but for less than a block at each end: the blocks
    begin at another place in each epoch, and come in another order. Validation reads blocks from the beginning of its
    text. Behind each text stands the end-of-text token, or where the tokenizer has none, a line break between two
    texts.

    Texts are tokenized once. From 4 MB on the token ids are cached in a file that is mapped into memory, and reused by
    the next run as long as texts and tokenizer stay the same.

    Args:
        tokenizer: a tokenizer trained on the training texts: ``characters`` (of all texts), ``bytes``, ``words``,
            ``bpe`` or ``wordpiece``; or a path: a ``tokenizer.json``, LLaMA's ``tokenizer.model``, or a folder with one
            of them. A checkpoint brings its own.
        vocab_size: vocabulary size of ``bpe`` and ``wordpiece``, 8,000 if null; of ``characters`` and ``words`` the
            maximum, unlimited if null.
        min_freq: minimum number of occurrences of a token; rarer characters and words become the unknown token.
        block_size: context length in tokens; null takes the model's, or 256.
        val_split: fraction of the texts, by bytes, kept for validation: the last texts, or the end of the last one.
        cache: where token ids are kept: ``memory``, ``disk``, or ``auto``, which depends on the size of the texts.
        cache_dir: folder of the caches; null is ``zoo/text`` in the user's cache.
    """

    separator: str | None = None
    """The option of ``TextCorpus``."""

    def __init__(
        self,
        tokenizer: str | dict[str, Any] = "characters",
        vocab_size: int | None = None,
        min_freq: int = 1,
        block_size: int | None = None,
        val_split: float = 0.1,
        cache: Caching = "auto",
        cache_dir: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if block_size is not None and block_size < 1:
            raise ValueError(f"block_size must be 1 or more, got {block_size}")
        if not 0 < val_split < 1:
            raise ValueError(f"val_split must be a fraction of the text between 0 and 1, got {val_split}")
        if cache not in get_args(Caching):
            raise ValueError(f"cache must be {', '.join(get_args(Caching))}, got {cache!r}")
        self._tokenizer_option = tokenizer
        self._vocab_size = vocab_size
        self._min_freq = min_freq
        self._block_size = block_size
        self.val_split = val_split
        self.cache = cache
        self.cache_dir = disk_cache.user_folder("text")
        if cache_dir:
            self.cache_dir = Path(cache_dir)

    def texts(self) -> dict[str, list[Text]]:
        """Return the texts of ``train`` and, where they are files of their own, of ``val`` and ``test``."""
        raise ValueError(f"{type(self).__name__} has no texts: implement texts()")

    # Data spec
    # ------------------------------------------------------------------------------------------------------------

    def build_tokenizer(self) -> Tokenizer:
        option = self._tokenizer_option
        if isinstance(option, dict):  # from a checkpoint
            return Tokenizer.from_plain(option)
        levels = get_args(TrainedLevel)
        if option in levels:
            return self._train_tokenizer(option)
        if not Path(option).exists():
            raise ValueError(f"tokenizer is {', '.join(levels)} or the path of a file or folder, got {option!r}")
        return Tokenizer.load(option)

    @property
    def block_size(self) -> int:
        return self._block_size or BLOCK_SIZE

    def read_samples(self, source: Any) -> NewSamples:
        """Read new texts, whose loss is computed: a row for each, or for each block of a longer text.

        Args:
            source: a text or a list of texts; a DataFrame with the column ``text``; or as ``pathlib.Path``: ``.txt``
                with a text a line, a folder of ``.txt``, ``.jsonl``, ``.csv``, ``.tsv`` or ``.parquet``.
        """
        names = [getattr(self, "text", "text")]
        found = collect_texts(source, names, encoding=getattr(self, "encoding", None))
        blocks = NewBlocks(found.texts, self.tokenizer, self.block_size)
        columns = {name: [values[i] for i in blocks.text_of] for name, values in found.columns.items()}
        is_whole = len(blocks) == len(found.texts)
        if not is_whole:
            columns["block"] = blocks.number
        return NewSamples(blocks, columns, index=found.index if is_whole else None)

    @property
    def bytes_per_token(self) -> float | None:
        """Mean number of bytes in UTF-8 of a token: of the validation text, while testing of a test text there is."""
        if self._new_samples is not None:
            return None  # known from the checkpoint
        testing = self.trainer is not None and self.trainer.testing
        split = "val"
        if testing and "test" in self._tokens:
            split = "test"
        tokens = self._tokens[split]
        return tokens.counts.size / len(tokens.ids)

    def describe(self) -> str:
        """Return what ``zoo show-data`` prints about the texts."""
        lines = []
        for split, tokens in self._tokens.items():
            num_blocks = len(TokenBlocks(tokens.ids, self.block_size))
            plural = "s" if tokens.counts.texts > 1 else ""
            texts = f"{tokens.counts.texts:,} text{plural} of {tokens.counts.size:,} bytes"
            lines.append(f"{split}: {texts}, {len(tokens.ids):,} tokens, {num_blocks:,} blocks of {self.block_size}")
        train = self._tokens["train"].ids
        place = "in memory" if self._in_memory else "on disk"
        each = f"{self.bytes_per_token:.3g} bytes each in the validation text"
        level = self.tokenizer.level
        lines.append(f"{level}: a vocabulary of {self.vocab_size:,}; {each}; kept as {train.dtype} {place}")
        lines.append(f"it begins with {self.tokenizer.decode(train[:40])!r}")
        return "\n".join(lines)

    def override_spec(self, name: str, value: Any) -> bool:
        if name == "block_size":
            # A network may see more tokens at once than it is trained on, but not fewer.
            self._block_size = self._block_size or value
            return value >= self._block_size
        # Vocabulary sizes are rounded up for speed.
        return name == "vocab_size" and value >= self.vocab_size

    # Tokens -----------------------------------------------------------------------------------------------------------

    @cached_property
    def _texts(self) -> dict[str, list[Text]]:
        found = self.texts()
        train = found["train"]
        if not any(map(len, train)):
            names = ", ".join(text.name for text in train[:3])
            verb = "have" if len(train) > 1 else "has"
            raise ValueError(f"the corpus is empty: {names} {verb} no text")
        if "val" not in found:
            found["train"], found["val"] = split_tail(train, self.val_split, self._separators)
        return {split: found[split] for split in SPLIT_NAMES if split in found}

    @property
    def _in_memory(self) -> bool:
        if self.cache != "auto":
            return self.cache == "memory"
        size = sum(len(text) for texts in self._texts.values() for text in texts)
        return size <= MAX_MEMORY_BYTES

    @cached_property
    def _separators(self) -> Separators:
        option = self._tokenizer_option
        if isinstance(option, str) and option in SPECIALS:
            end = SPECIALS[option].get("eos")  # of a tokenizer that is yet to be trained on the texts
        else:
            end = self.tokenizer.specials.get("eos")
        return choose_separators(self.separator, end)

    def _train_tokenizer(self, level: str) -> Tokenizer:
        if level == "bytes":
            return Tokenizer("bytes")
        options: dict[str, Any] = {"level": level, "vocab_size": self._vocab_size, "min_freq": self._min_freq}
        if level == "characters" and (self._vocab_size or self._min_freq > 1):
            options["specials"] = {"unknown": UNKNOWN}
        texts = self._texts["train"]
        if level == "characters":
            # A character that training lacks would be an error in validation.
            texts = [text for split in self._texts.values() for text in split]
        separators = self._separators
        if self._in_memory:
            return token_cache.train(texts, options, separators)
        return self._on_disk(lambda folder: token_cache.load_or_train(folder, texts, options, separators))

    @cached_property
    def _tokens(self) -> dict[str, token_cache.Tokens]:
        texts = self._texts
        tokenizer = self.tokenizer
        separators = self._separators
        if self._in_memory:
            found = token_cache.build_in_memory(texts, tokenizer, separators)
        else:
            found = self._on_disk(lambda folder: token_cache.load_or_build(folder, texts, tokenizer, separators))
        self._print_counts([tokens.counts for tokens in found.values()])
        for split, tokens in found.items():
            if len(tokens.ids) <= self.block_size:
                self._raise_too_short(split, len(tokens.ids))
        return found

    def _print_counts(self, counts: list[token_cache.Counts]) -> None:
        """Print how many texts were left out as empty, and what was done with separators."""
        num_texts = sum(count.texts for count in counts)
        num_empty = sum(count.empty for count in counts)
        num_separators = sum(count.separators for count in counts)
        num_inline = sum(count.inline for count in counts)
        separators = self._separators
        names = " or ".join(repr(name) for name in separators.names)
        if num_empty:
            say(f"{num_empty:,} of {num_texts + num_empty:,} texts are empty and left out")
        if num_separators and not separators.anywhere:
            keep = "--data.separator '' keeps them as text"
            say(f"{num_separators:,} lines {names} end a text of their file; {keep}")
        if num_inline:
            option = f"--data.separator '{separators.names[-1]}' makes it end a text"
            say(f"{names} within a line is text, {num_inline:,} times: {option}")
        if separators.anywhere and not num_separators:
            say(f"separator {names} does not occur in the texts")

    def _on_disk(self, build: Callable[[Path], T]) -> T:
        try:
            return build(self.cache_dir)
        except OSError as error:
            reason = error.strerror or error
            if error.filename is not None and not str(error.filename).startswith(str(self.cache_dir)):
                raise ValueError(f"{error.filename} cannot be read ({reason})") from None
            choices = "--data.cache_dir names another folder, --data.cache memory does without"
            raise ValueError(f"the tokens cannot be written to {self.cache_dir} ({reason}): {choices}") from None

    def _raise_too_short(self, split: str, tokens: int) -> None:
        what = f"the {SPLIT_NAMES[split]} text"
        if not tokens:
            raise ValueError(f"{what} is empty")
        least = f"a block of {self.block_size} and the token behind it"
        raise ValueError(f"{what} has {tokens:,} tokens, fewer than {least}: --data.block_size is too large")

    # Blocks -----------------------------------------------------------------------------------------------------------

    def splits(self) -> dict[str, Dataset]:
        found: dict[str, Dataset] = {}
        for split, tokens in self._tokens.items():
            found[split] = TokenBlocks(tokens.ids, self.block_size)
        found.setdefault("test", found["val"])
        return found

    def train_dataloader(self) -> DataLoader:
        if self.trainer is not None and self.trainer.overfit_batches > 0:  # type: ignore[attr-defined]
            return super().train_dataloader()
        sampler = ShiftedBlockSampler(
            self.block_size,
            len(self.datasets["train"]),  # type: ignore[arg-type]
            self.batch_size,
            seed=run_seed(),
            drop_last=self.drop_last,
            skip=self._pop_position,
            **self._rank_and_world(),
        )
        return self._loader("train", sampler, seeded=False)


class TextCorpus(Corpus):
    """Text files for a language model: plain ones, each a text, or JSON lines (``.jsonl``), each line a text.

    A file may also hold several texts with a separator between them: a line of the tokenizer's end-of-text token or of
    ``<|endoftext|>``, or what ``separator`` names.

    Args:
        path: files, folders (whose ``.txt``, ``.md``, ``.rst`` and ``.jsonl`` are taken, at any depth) or patterns such
            as ``src/**/*.py``.
        val_path: files for validation, named in the same way; null takes the end of ``path``. Files named here are left
            out of ``path``.
        test_path: files for the test; null tests on the validation text.
        text: name of the field that holds the text of JSON lines.
        separator: string that ends a text within a file wherever it stands, such as ``<|endoftext|>``; null takes the
            end-of-text token where it stands alone on a line, ``""`` nothing.
        encoding: encoding of the files, such as ``latin-1`` or ``cp1252``; a byte order mark takes precedence. Files in
            other encodings than UTF-8 are read whole.
    """

    def __init__(
        self,
        path: str | list[str],
        val_path: str | list[str] | None = None,
        test_path: str | list[str] | None = None,
        text: str = "text",
        separator: str | None = None,
        encoding: str = DEFAULT_ENCODING,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_separator(separator)
        check_encoding(encoding)
        self.path = path
        self.val_path = val_path
        self.test_path = test_path
        self.text = text
        self.separator = separator
        self.encoding = encoding

    def texts(self) -> dict[str, list[Text]]:
        given = {"val": self.val_path, "test": self.test_path}
        found: dict[str, list[Text]] = {}
        held_out = []
        for split, paths in given.items():
            if paths:
                found[split] = find_texts(paths, self.text, self.encoding)
                held_out += found[split]
        found["train"] = exclude(find_texts(self.path, self.text, self.encoding), held_out)
        if not found["train"]:
            raise ValueError(f"all files of path={self.path} are those of val_path or test_path: none is left to train")
        return found


class PythonDocs(Corpus):
    """The documentation that ships with Python, a text per topic: about 460,000 characters of English."""

    def texts(self) -> dict[str, list[Text]]:
        from pydoc_data.topics import topics

        return {"train": [from_memory(name, topics[name]) for name in sorted(topics)]}


class PythonSource(Corpus):
    """The source code of Python's standard library, without its tests."""

    def texts(self) -> dict[str, list[Text]]:
        root = Path(sysconfig.get_path("stdlib"))
        files = sorted(python_files(root))
        if not files:
            raise ValueError(f"Python {sys.version.split()[0]} came without its source: no .py file in {root}")
        return {"train": [from_file(path, path.relative_to(root).as_posix(), "") for path in files]}


def python_files(root: Path) -> Iterator[Path]:
    """Yield Python's own source files, without installed packages and tests."""
    for place, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in NOT_SOURCE]
        for name in files:
            if name.endswith(".py"):
                yield Path(place, name)
