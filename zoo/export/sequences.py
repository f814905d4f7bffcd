"""Graphs of models of texts, sequences and vectors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.data.base import DataModule
from zoo.errors import UserError
from zoo.export.graph import NUM_SAMPLES, Export, Graph, predicted, without_messages
from zoo.export.heads import Head, Outputs
from zoo.tasks.base import inputs_of

LONGEST = 16  # tokens of a generated text
UNREADABLE = (OSError, ValueError, ImportError)


class TextGraph(Graph):
    """Take token ids and an attention mask, as tokenizers return them, padded at the end."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Outputs:
        return self.head(input_ids, attention_mask.long().sum(1))


class SequenceGraph(Graph):
    """Take sequences, padded at the end, and their lengths."""

    def forward(self, x: Tensor, lengths: Tensor) -> Outputs:
        return self.head(x, lengths)


class TensorGraph(Graph):
    """Take one tensor, as the network does."""

    def forward(self, x: Tensor) -> Outputs:
        return self.head(x)


class PairGraph(Graph):
    """Take pairs of texts, whose token types say which text a token is of."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Outputs:
        return self.head(input_ids, attention_mask.long().sum(1), token_type_ids)


def is_text(data: Any) -> bool:
    """Return whether samples are texts, which a tokenizer or a vocabulary makes ids of."""
    return hasattr(data, "tokenizer") or hasattr(data, "vocabulary")


def export_of_text(head: Head, data: Any, source: Sequence[str] | None) -> Export:
    """Return the graph of a model of texts, with texts to compare it on.

    Args:
        head: what the task returns.
        data: of the training, restored from the checkpoint, with its tokenizer or vocabulary.
        source: files of texts; null takes those of the test split, or generates token ids.
    """
    inputs, kind = sample_ids(head, data, source)
    ids, lengths = inputs[:2]
    mask = (torch.arange(ids.shape[1]) < lengths.unsqueeze(1)).long()
    named = {"input_ids": ids, "attention_mask": mask}
    if len(inputs) == 3:
        named["token_type_ids"] = inputs[2]
    return Export(
        graph=PairGraph(head) if len(inputs) == 3 else TextGraph(head),
        inputs=named,
        expected=predicted(head, (inputs,)),
        descriptions={
            "input_ids": "token ids (batch, length), padded at the end",
            "attention_mask": "1 for tokens, 0 in the padding (batch, length)",
            "token_type_ids": "0 for tokens of the first text, 1 for those of the second (batch, length)",
        },
        length_of=tuple(named),
        facts=tokenization(data),
        source=kind,
    )


def tokenization(data: Any) -> dict[str, Any]:
    """Return by what texts become ids: a tokenizer, or a vocabulary and what its tokens are."""
    tokenizer = getattr(data, "tokenizer", None)
    facts: dict[str, Any] = {"max_length": getattr(data, "max_length", None)}
    if tokenizer is not None:
        return {"tokenizer": tokenizer.plain(), **facts}
    return {"vocabulary": list(data.vocabulary.tokens), "level": data.level, **facts}


def sample_ids(head: Head, data: Any, source: Sequence[str] | None) -> tuple[tuple[Tensor, ...], str]:
    """Return token ids ``(b, t)``, lengths ``(b,)`` and, for pairs, token types; and what they are."""
    if source is not None:
        samples = data.read_samples([Path(name) for name in source])
        dataset: Any = samples.dataset
        return inputs_of(dataset.batch(torch.arange(min(NUM_SAMPLES, len(samples))))), "texts of --samples"
    try:
        with without_messages():
            dataset = data.dataset("test")
            batch = dataset.batch(torch.arange(min(NUM_SAMPLES, len(dataset))))
    except UNREADABLE:
        return generated_ids(head, data), "generated texts"
    return inputs_of(batch), "texts of the test split"


def generated_ids(head: Head, data: Any) -> tuple[Tensor, ...]:
    """Return token ids ``(b, t)`` with padding, the lengths ``(b,)``, and for pairs token types."""
    longest = LONGEST
    for owner in (data, head.module.net):
        longest = min(longest, getattr(owner, "max_length", None) or LONGEST)
    generator = torch.Generator().manual_seed(0)
    vocab_size = data.spec().vocab_size
    ids = torch.randint(0, vocab_size, (NUM_SAMPLES, longest), generator=generator)
    pad_id = data.spec().pad_id or 0
    ids = torch.where(ids == pad_id, torch.full_like(ids, vocab_size - 1), ids)
    lengths = longest - torch.arange(NUM_SAMPLES).flip(0) % max(1, longest - 1)
    padding = torch.arange(longest) >= lengths.unsqueeze(1)
    inputs = (ids.masked_fill(padding, pad_id), lengths)
    if getattr(data, "text_pair", None) is None:
        return inputs
    types = (torch.arange(longest) >= lengths.unsqueeze(1) // 2).long()
    return *inputs, types.masked_fill(padding, 0)


def export_of_tensors(head: Head, data: DataModule, source: Sequence[str] | None) -> Export:
    """Return the graph of a model of vectors or sequences, with samples to compare it on.

    Args:
        head: what the task returns.
        data: of the training, restored from the checkpoint.
        source: files; null takes the test split.

    Raises:
        UserError: there are no samples.
    """
    kind = "samples of the test split"
    try:
        if source is not None:
            kind = "samples of --samples"
            dataset: Any = data.read_samples(list(source)).dataset
        else:
            dataset = data.dataset("test")
        batch = dataset.batch(torch.arange(min(NUM_SAMPLES, len(dataset))))
    except UNREADABLE as error:
        if source is not None:
            raise
        why = " ".join(str(error).split())[:120]
        raise UserError(f"the samples to compare the export on cannot be read ({why}): give some, --samples") from None
    inputs = inputs_of(batch)
    x = inputs[0]
    named: dict[str, Tensor] = dict(zip(("x", "lengths"), inputs, strict=False))
    if len(inputs) > 2:
        raise UserError(f"{type(data).__name__} has batches of {len(inputs)} inputs: only one and its lengths export")
    shape = ", ".join(["batch", *map(str, x.shape[1:])])
    is_sequence = x.ndim == 3 or (x.ndim == 2 and not x.is_floating_point())
    graph = SequenceGraph(head) if len(inputs) == 2 else TensorGraph(head)
    return Export(
        graph=graph,
        inputs=named,
        expected=predicted(head, (inputs,) if len(inputs) == 2 else x),
        descriptions={"x": f"{x.dtype} ({shape})".replace("torch.", ""), "lengths": "steps of each sequence (batch,)"},
        length_of=("x",) if is_sequence else (),
        source=kind,
    )
