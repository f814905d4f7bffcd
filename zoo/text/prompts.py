"""Prompts as CLIP reads them (Radford et al. 2021, https://arxiv.org/abs/2103.00020): 77 tokens, its ends included."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from zoo.text.engines import load_tokenizers
from zoo.text.tokenizer import Tokenizer

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class PromptTokenizer:
    """Turns prompts into numbers for a text encoder.

    Args:
        tokenizer: of the text encoder.
        length: number of tokens that every prompt is brought to.
    """

    def __init__(self, tokenizer: Tokenizer, length: int = 77) -> None:
        self.tokenizer, self.length = tokenizer, length
        ends = (tokenizer.bos_id, tokenizer.eos_id)
        if None in ends:
            raise ValueError(f"the tokenizer of a text encoder has the tokens {BOS} and {EOS}, this one has not")
        self.bos, self.eos = (int(i) for i in ends if i is not None)
        self.pad = self.eos if tokenizer.pad_id is None else tokenizer.pad_id
        self._warned = False  # that prompts are too long: once, not at every step

    @classmethod
    def load(cls, folder: str | Path, length: int = 77) -> PromptTokenizer:
        """Read the tokenizer of a Stable Diffusion folder.

        Args:
            folder: a pipeline's folder, or the tokenizer's own, with ``tokenizer.json`` or ``vocab.json`` and
                ``merges.txt``.
            length: number of tokens that every prompt is brought to.
        """
        folder = Path(folder).expanduser()
        if folder.is_file():
            config = "is a file and so holds no tokenizer: give a folder that does, as --model.tokenizer"
            raise ValueError(f"{folder} {config}")
        backend = folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder
        if (backend / "tokenizer.json").is_file():
            return cls(Tokenizer.load(backend), length)
        if not all((backend / name).is_file() for name in ("vocab.json", "merges.txt")):
            raise ValueError(f"{backend} holds no tokenizer: neither tokenizer.json nor vocab.json and merges.txt")
        specials = {"bos": BOS, "eos": EOS, "unknown": EOS, "pad": _pad_token(backend)}
        return cls(
            Tokenizer("huggingface", clip_tokenizer_json(backend / "vocab.json", backend / "merges.txt"), specials),
            length,
        )

    def __call__(self, prompts: Sequence[str]) -> Int[Tensor, "b t"]:
        encoded = self._encode(prompts)
        self._warn_if_truncated(prompts, encoded)
        return torch.tensor([self._row(ids) for ids in encoded], dtype=torch.long).view(len(encoded), self.length)

    def check_lengths(self, prompts: Sequence[str]) -> None:
        """Say how many of all prompts that are to come are too long; nothing more is said of them later."""
        self._warn_if_truncated(prompts, self._encode(prompts))
        self._warned = True

    def _encode(self, prompts: Sequence[str]) -> list[list[int]]:
        return [self.tokenizer.encode(prompt, parse_special=True) for prompt in prompts]  # as transformers has it

    def _row(self, ids: list[int]) -> list[int]:
        ids = [self.bos, *ids[: self.length - 2], self.eos]
        return ids + [self.pad] * (self.length - len(ids))

    def _warn_if_truncated(self, prompts: Sequence[str], encoded: list[list[int]]) -> None:
        room = self.length - 2
        long = {prompt: ids for prompt, ids in zip(prompts, encoded, strict=True) if len(ids) > room}
        if self._warned or not long:
            return
        self._warned, ids = True, next(iter(long.values()))
        rest = repr(self.tokenizer.decode(ids[room:]).replace("</w>", " ").strip()[:80])
        if len(set(prompts) - {""}) == 1:  # as when many pictures are made of one
            config = f"the prompt has {len(ids)} tokens, of which {room} are read, without its end: {rest}"
        else:
            count = f"{len(long)} of {len(set(prompts)):,} prompts are longer than the {room} tokens that are read"
            config = f"{count}: their ends are left out, of the first (of {len(ids)} tokens) {rest}"
        several = torch.distributed.is_available() and torch.distributed.is_initialized()
        if not several or torch.distributed.get_rank() == 0:
            print(f"zoo: {config}", file=sys.stderr)


def clip_tokenizer_json(vocab: Path, merges: Path) -> str:
    """CLIP's two older files as the JSON of the tokenizers library."""
    library = load_tokenizers()
    from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers
    from tokenizers.models import BPE

    try:
        table: dict[str, int] = json.loads(vocab.read_text(encoding="utf-8"))
        lines = merges.read_text(encoding="utf-8").split("\n")
        pairs: list[Any] = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
        suffix: dict[str, Any] = {"end_of_word_suffix": "</w>", "continuing_subword_prefix": ""}
        backend = library.Tokenizer(BPE(table, pairs, unk_token=EOS, fuse_unk=False, **suffix))
    except Exception as error:
        raise ValueError(f"{vocab.parent} holds a broken tokenizer: {error}") from None
    if missing := [name for name in (BOS, EOS) if name not in table]:
        raise ValueError(f"{vocab} is not of CLIP's text encoder: it has no {missing[0]}")
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_WORDS), "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in (BOS, EOS)])
    return backend.to_str()


def _pad_token(folder: Path) -> str:
    """What prompts are filled up with: their end in Stable Diffusion 1, an exclamation mark in 2."""
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            token = json.loads((folder / name).read_text(encoding="utf-8")).get("pad_token")
            token = token.get("content") if isinstance(token, dict) else token
            if token:
                return token
    return EOS
