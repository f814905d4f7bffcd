"""Texts for language models: files of one's own, or what Python brings, as blocks of tokens."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from torch.utils.data import DataLoader, Dataset

from zoo.data import disk_cache
from zoo.data.base import run_seed
from zoo.data.text import token_cache
from zoo.data.text.corpus_files import Text, exclude, find_texts, from_file, from_memory, split_tail
from zoo.data.text.token_blocks import ShiftedBlockSampler, TokenBlocks
from zoo.data.text.tokenized import TokenizedData
from zoo.text import Tokenizer
from zoo.text.tokenizer import TrainedLevel
from zoo.text.vocabulary import UNKNOWN

BLOCK_SIZE = 256
SMALL = 4 << 20  # bytes of text up to which tokens are made in memory
LEFT_OUT = ("site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__")
Caching = Literal["auto", "memory", "disk"]


class Corpus(TokenizedData):
    """What data of running text share: ``texts`` gives the files of the splits, the rest is done here.

    A batch is ``(x, y)``: tokens ``(b, block_size)``, and those one token on. An epoch has as many blocks as fit into
    the training text; it reads every token once, but for less than a block at each end: the blocks begin at another
    place in each epoch, and come in another order. Validation reads blocks from the beginning of its text. Behind each
    text stands the end-of-text token, or where the tokenizer has none, an end of line between two texts.

    Texts are tokenised once. From 4 MB on the tokens are kept in a file that is mapped into memory, and found again by
    the next run as long as texts and tokenizer stay the same.

    Args:
        tokenizer: what a token is: ``characters``, ``bytes``, ``words``, ``bpe`` or ``wordpiece``, counted in the
            training texts (characters in all texts); or a path: a ``tokenizer.json``, LLaMA's ``tokenizer.model``, or
            a folder with one of them. A checkpoint brings its own.
        vocab_size: of ``bpe`` and ``wordpiece``, how many tokens are learned, 8,000 if null; of ``characters`` and
            ``words``, how many are kept, all if null.
        min_freq: how often a token must occur; rarer characters and words are all the same, unknown token.
        block_size: tokens that a network sees at once; null takes the model's, or 256.
        val_split: share of the texts, by bytes, kept for validation: the last ones, or the end of the last.
        cache: of tokens: ``memory``, ``disk``, or ``auto``.
        cache_dir: folder of the caches; null is ``zoo/text`` in the user's cache.
    """

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
            raise ValueError(f"val_split is a share of the text, between 0 and 1: got {val_split}")
        if cache not in get_args(Caching):
            raise ValueError(f"cache must be {', '.join(get_args(Caching))}, got {cache!r}")
        self._tokenizer_option, self._vocab_size, self._min_freq = tokenizer, vocab_size, min_freq
        self._block_size, self.val_split, self.cache = block_size, val_split, cache
        self.cache_dir = Path(cache_dir) if cache_dir else disk_cache.user_folder("text")

    def texts(self) -> dict[str, list[Text]]:
        """Return the texts of ``train`` and, where they are files of their own, of ``val`` and ``test``."""
        raise ValueError(f"{type(self).__name__} does not say what its texts are: write texts()")

    # Data spec
    # ------------------------------------------------------------------------------------------------------------

    def build_tokenizer(self) -> Tokenizer:
        option = self._tokenizer_option
        if isinstance(option, dict):  # out of a checkpoint
            return Tokenizer.from_plain(option)
        levels = get_args(TrainedLevel)
        if option not in levels and not Path(option).exists():
            raise ValueError(f"tokenizer is {', '.join(levels)} or the path of a file or folder, got {option!r}")
        return self._trained(option) if option in levels else Tokenizer.load(option)

    @property
    def block_size(self) -> int:
        return self._block_size or BLOCK_SIZE

    @property
    def bytes_per_token(self) -> float:
        """Bytes in UTF-8 for a token of the validation text, and in a test of the test's own."""
        testing = self.trainer is not None and self.trainer.testing
        found = self._tokens["test" if testing and "test" in self._tokens else "val"]
        return found.size / len(found.ids)

    def describe(self) -> str:
        """What ``zoo show-data`` says of the texts."""
        lines = []
        for split, tokens in self._tokens.items():
            blocks = f"{len(TokenBlocks(tokens.ids, self.block_size)):,} blocks of {self.block_size}"
            texts = f"{tokens.texts:,} text{'s' if tokens.texts > 1 else ''} of {tokens.size:,} bytes"
            lines.append(f"{split}: {texts}, {len(tokens.ids):,} tokens, {blocks}")
        kept = f"kept as {self._tokens['train'].ids.dtype} {'in memory' if self._in_memory else 'on disk'}"
        each = f"{self.bytes_per_token:.3g} bytes each in the validation text"
        lines.append(f"{self.tokenizer.level}: a vocabulary of {self.vocab_size:,}; {each}; {kept}")
        return "\n".join([*lines, f"it begins with {self.tokenizer.decode(self._tokens['train'].ids[:40])!r}"])

    def override_spec(self, name: str, value: Any) -> bool:
        if name == "block_size":  # a network may see more than it is trained on
            self._block_size = self._block_size or value
            return value >= self._block_size
        return name == "vocab_size" and value >= self.vocab_size  # numbers of tokens are rounded up for speed

    # Tokens -----------------------------------------------------------------------------------------------------------

    @cached_property
    def _texts(self) -> dict[str, list[Text]]:
        found = self.texts()
        if not any(map(len, found["train"])):
            names = ", ".join(text.name for text in found["train"][:3])
            raise ValueError(f"the corpus is empty: {names} {'have' if len(found['train']) > 1 else 'has'} no text")
        if "val" not in found:
            found["train"], found["val"] = split_tail(found["train"], self.val_split)
        return {split: found[split] for split in ("train", "val", "test") if split in found}

    @property
    def _in_memory(self) -> bool:
        size = sum(len(text) for texts in self._texts.values() for text in texts)
        return self.cache == "memory" or (self.cache == "auto" and size <= SMALL)

    def _trained(self, level: str) -> Tokenizer:
        options: dict[str, Any] = {"level": level, "vocab_size": self._vocab_size, "min_freq": self._min_freq}
        if level == "bytes":
            return Tokenizer("bytes")
        if level == "characters" and (self._vocab_size or self._min_freq > 1):
            options["specials"] = {"unknown": UNKNOWN}
        all_texts = [text for texts in self._texts.values() for text in texts]
        texts = all_texts if level == "characters" else self._texts["train"]
        if self._in_memory:
            return token_cache.train(texts, options)
        return self._on_disk(lambda folder: token_cache.load_or_train(folder, texts, options))

    @cached_property
    def _tokens(self) -> dict[str, token_cache.Tokens]:
        texts, tokenizer = self._texts, self.tokenizer
        if self._in_memory:
            found = token_cache.build_in_memory(texts, tokenizer)
        else:
            found = self._on_disk(lambda folder: token_cache.load_or_build(folder, texts, tokenizer))
        for split, tokens in found.items():
            if len(tokens.ids) <= self.block_size:
                self._raise_too_short(split, len(tokens.ids))
        return found

    def _on_disk(self, make: Any) -> Any:
        try:
            return make(self.cache_dir)
        except OSError as error:
            if error.filename is not None and not str(error.filename).startswith(str(self.cache_dir)):
                raise ValueError(f"{error.filename} cannot be read ({error.strerror or error})") from None
            choices = "--data.cache_dir names another folder, --data.cache memory does without"
            reason = f"the tokens cannot be written to {self.cache_dir} ({error.strerror or error})"
            raise ValueError(f"{reason}: {choices}") from None

    def _raise_too_short(self, split: str, tokens: int) -> None:
        what = {"train": "training", "val": "validation", "test": "test"}[split]
        if not tokens:
            raise ValueError(f"the {what} text is empty")
        least = f"a block of {self.block_size} and the one behind it"
        raise ValueError(f"the {what} text has {tokens:,} tokens, less than {least}: --data.block_size is too large")

    # Blocks -----------------------------------------------------------------------------------------------------------

    def splits(self) -> dict[str, Dataset]:
        found: dict[str, Dataset] = {s: TokenBlocks(tokens.ids, self.block_size) for s, tokens in self._tokens.items()}
        return {"test": found["val"]} | found

    def train_dataloader(self) -> DataLoader:
        if self.trainer is not None and self.trainer.overfit_batches > 0:  # type: ignore[attr-defined]
            return super().train_dataloader()
        sampler = ShiftedBlockSampler(
            self.block_size, len(self.datasets["train"]), self.batch_size, seed=run_seed(),  # type: ignore[arg-type]
            drop_last=self.drop_last, skip=self._pop_position, **self._rank_and_world(),
        )  # fmt: skip
        return self._loader("train", sampler, seeded=False)


class TextCorpus(Corpus):
    """Texts of files: plain ones, each a text, or JSON lines (``.jsonl``), each line a text.

    Args:
        path: files, folders (whose ``.txt``, ``.md``, ``.rst`` and ``.jsonl`` are taken, at any depth) or patterns such
            as ``src/**/*.py``.
        val_path: the same for validation; null takes the end of ``path``. Files named here are left out of ``path``.
        test_path: the same for the test; null tests on the validation text.
        text: name of the field that holds the text of JSON lines.
    """

    def __init__(
        self,
        path: str | list[str],
        val_path: str | list[str] | None = None,
        test_path: str | list[str] | None = None,
        text: str = "text",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.path, self.val_path, self.test_path, self.text = path, val_path, test_path, text

    def texts(self) -> dict[str, list[Text]]:
        given = {"val": self.val_path, "test": self.test_path}
        others = {split: find_texts(paths, self.text) for split, paths in given.items() if paths}
        train = exclude(find_texts(self.path, self.text), [text for texts in others.values() for text in texts])
        if not train:
            raise ValueError(f"all files of path={self.path} are those of val_path or test_path: none is left to train")
        return {"train": train, **others}


class PythonDocs(Corpus):
    """The documentation that Python carries, a text a topic: about 460,000 characters of English."""

    def texts(self) -> dict[str, list[Text]]:
        from pydoc_data.topics import topics

        return {"train": [from_memory(name, topics[name]) for name in sorted(topics)]}


class PythonSource(Corpus):
    """The source of Python's standard library, without its tests."""

    def texts(self) -> dict[str, list[Text]]:
        root = Path(sysconfig.get_path("stdlib"))
        files = sorted(python_files(root))
        if not files:
            raise ValueError(f"Python {sys.version.split()[0]} came without its source: no .py file in {root}")
        return {"train": [from_file(path, path.relative_to(root).as_posix(), "") for path in files]}


def python_files(root: Path) -> Iterator[Path]:
    """Python's own source, without what was installed beside it and without tests."""
    for place, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in LEFT_OUT]
        yield from (Path(place, name) for name in files if name.endswith(".py"))
