"""Prompts as the 77 token ids that CLIP reads (Radford et al. 2021, https://arxiv.org/abs/2103.00020)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from zoo.distributed import say
from zoo.text.library_engines import load_tokenizers
from zoo.text.tokenizer import Tokenizer
from zoo.trust.reading import read_json

BOS = "<|startoftext|>"
EOS = "<|endoftext|>"
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
SHOWN_CHARACTERS = 80  # of the end of a prompt that is too long


class PromptTokenizer:
    """Turns prompts into token ids for a text encoder.

    Args:
        tokenizer: tokenizer of the text encoder.
        length: number of tokens to which every prompt is padded or truncated.
    """

    def __init__(self, tokenizer: Tokenizer, length: int = 77) -> None:
        if tokenizer.bos_id is None or tokenizer.eos_id is None:
            raise ValueError(f"the tokenizer of a text encoder needs the tokens {BOS} and {EOS}, this one lacks them")
        self.tokenizer = tokenizer
        self.length = length
        self.bos = tokenizer.bos_id
        self.eos = tokenizer.eos_id
        self.pad = self.eos
        if tokenizer.pad_id is not None:
            self.pad = tokenizer.pad_id
        self._warned = False  # of prompts that are too long: once, not at every step

    @classmethod
    def load(cls, folder: str | Path, length: int = 77) -> PromptTokenizer:
        """Read the tokenizer of a Stable Diffusion folder.

        Args:
            folder: a pipeline's folder, or the tokenizer's own, with ``tokenizer.json`` or ``vocab.json`` and
                ``merges.txt``.
            length: number of tokens to which every prompt is padded or truncated.
        """
        folder = Path(folder).expanduser()
        if folder.is_file():
            advice = "give a folder that holds a tokenizer, as --model.tokenizer"
            raise ValueError(f"{folder} is a file and so holds no tokenizer: {advice}")
        if (folder / "tokenizer").is_dir():
            folder = folder / "tokenizer"
        if (folder / "tokenizer.json").is_file():
            return cls(Tokenizer.load(folder), length)
        vocab = folder / "vocab.json"
        merges = folder / "merges.txt"
        if not vocab.is_file() or not merges.is_file():
            raise ValueError(f"{folder} holds no tokenizer: neither tokenizer.json nor vocab.json and merges.txt")
        specials = {"bos": BOS, "eos": EOS, "unknown": EOS, "pad": _pad_token(folder)}
        tokenizer = Tokenizer("huggingface", clip_tokenizer_json(vocab, merges), specials)
        return cls(tokenizer, length)

    def __call__(self, prompts: Sequence[str]) -> Int[Tensor, "b t"]:
        encoded = self._encode(prompts)
        self._warn_if_truncated(prompts, encoded)
        rows = [self._row(ids) for ids in encoded]
        return torch.tensor(rows, dtype=torch.long).view(len(encoded), self.length)  # (b, t), of no prompts too

    def check_lengths(self, prompts: Sequence[str]) -> None:
        """Print how many of all prompts to come are too long; nothing more is printed about them later."""
        self._warn_if_truncated(prompts, self._encode(prompts))
        self._warned = True

    def _encode(self, prompts: Sequence[str]) -> list[list[int]]:
        # Names of special tokens in a prompt mean these, as in transformers.
        return [self.tokenizer.encode(prompt, parse_special=True) for prompt in prompts]

    def _row(self, ids: list[int]) -> list[int]:
        ids = [self.bos, *ids[: self.length - 2], self.eos]
        return ids + [self.pad] * (self.length - len(ids))

    def _warn_if_truncated(self, prompts: Sequence[str], encoded: list[list[int]]) -> None:
        room = self.length - 2
        long = {prompt: ids for prompt, ids in zip(prompts, encoded, strict=True) if len(ids) > room}
        if self._warned or not long:
            return
        self._warned = True
        ids = next(iter(long.values()))
        cut = self.tokenizer.decode(ids[room:]).replace("</w>", " ").strip()
        rest = repr(cut[:SHOWN_CHARACTERS])
        different = set(prompts)
        if len(different - {""}) == 1:  # as when many images are generated from one prompt
            say(f"the prompt has {len(ids)} tokens, of which {room} are read, without its end: {rest}")
            return
        count = f"{len(long)} of {len(different):,} prompts are longer than the {room} tokens that are read"
        say(f"{count}: their ends are left out, of the first (of {len(ids)} tokens) {rest}")


def clip_tokenizer_json(vocab: Path, merges: Path) -> str:
    """Return CLIP's two older files as JSON of the tokenizers library."""
    library = load_tokenizers()
    try:
        table: dict[str, int] = read_json(vocab)
        pairs: list[Any] = []
        for line in merges.read_text(encoding="utf-8").split("\n"):
            if line and not line.startswith("#version"):
                pairs.append(tuple(line.split()))
        model = library.models.BPE(
            table,
            pairs,
            unk_token=EOS,
            fuse_unk=False,
            end_of_word_suffix="</w>",
            continuing_subword_prefix="",
        )
        backend = library.Tokenizer(model)
    except Exception as error:
        # The library raises bare exceptions.
        raise ValueError(f"{vocab.parent} holds a broken tokenizer: {error}") from None
    for name in (BOS, EOS):
        if name not in table:
            raise ValueError(f"{vocab} is not of CLIP's text encoder: it has no {name}")
    normalizers = library.normalizers
    pre_tokenizers = library.pre_tokenizers
    spaces = normalizers.Replace(library.Regex(r"\s+"), " ")
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    words = pre_tokenizers.Split(library.Regex(_WORDS), "removed", invert=True)
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, to_bytes])
    backend.decoder = library.decoders.ByteLevel()
    specials = [library.AddedToken(name, special=True, normalized=False) for name in (BOS, EOS)]
    backend.add_special_tokens(specials)
    return backend.to_str()


def _pad_token(folder: Path) -> str:
    """Return the token with which prompts are padded: their end in Stable Diffusion 1, an exclamation mark in 2."""
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        token = read_json(path).get("pad_token")
        if isinstance(token, dict):
            token = token.get("content")
        if token:
            return token
    return EOS
