"""Heads on BERT (Devlin et al. 2018, https://arxiv.org/abs/1810.04805): hidden tokens, classes of texts or words."""

from __future__ import annotations

from typing import Any, ClassVar

from jaxtyping import Bool, Float
from torch import Tensor, nn

from zoo.models.bert import ACTIVATIONS, BERT, Activation, init_weights
from zoo.weights.files import Weights


class MLMHead(nn.Module):
    """Tell which token it was: a layer, and the embedding turned round.

    Args:
        token: the embedding, whose matrix it shares.
        activation: of the layer.
        eps: of the normalisation.
    """

    def __init__(self, token: nn.Embedding, activation: Activation, eps: float) -> None:
        super().__init__()
        tokens, dim = token.weight.shape
        self.dense, self.norm, self.activation = nn.Linear(dim, dim), nn.LayerNorm(dim, eps), ACTIVATIONS[activation]
        self.decoder = nn.Linear(dim, tokens)
        self.decoder.weight = token.weight

    def forward(self, states: Float[Tensor, "*n d"]) -> Float[Tensor, "*n v"]:
        return self.decoder(self.norm(self.activation(self.dense(states))))


class ClassificationHead(nn.Module):
    """Dropout and a layer, on one vector or one a token.

    Args:
        dim: width of the vectors.
        num_classes: number of classes.
        dropout: share dropped.
    """

    def __init__(self, dim: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout, self.linear = nn.Dropout(dropout), nn.Linear(dim, num_classes)

    def forward(self, states: Float[Tensor, "*n d"]) -> Float[Tensor, "*n k"]:
        return self.linear(self.dropout(states))


class BERTForMaskedLM(BERT):
    """BERT that tells for every token which one it was: logits ``(b, t, v)``, or ``(n, v)`` at ``positions``.

    Args:
        vocab_size: number of tokens.
    """

    architecture: ClassVar[str] = "ForMaskedLM"

    def __init__(self, vocab_size: int, **kwargs: Any) -> None:
        super().__init__(vocab_size, **{**kwargs, "pooler": None})
        self.head = MLMHead(self.embeddings.token, self.arguments["activation"], self.arguments["norm_eps"])
        self.head.apply(init_weights)
        self.embeddings.token.apply(init_weights)

    def forward(
        self, *inputs: Tensor | None, positions: Bool[Tensor, "b t"] | None = None, **more: Tensor | None
    ) -> Float[Tensor, "b t v"] | Float[Tensor, "n v"]:
        states = super().forward(*inputs, **more)  # type: ignore[arg-type]
        # the head on all tokens costs as much as BERT
        return self.head(states if positions is None else states[positions])


class BERTForTokenClassification(BERT):
    """BERT that tells the class of every token: logits ``(b, t, k)``.

    Args:
        vocab_size: number of tokens.
        num_classes: number of classes.
        head_dropout: share dropped in front of the last layer; null is ``dropout``.
    """

    architecture: ClassVar[str] = "ForTokenClassification"
    pooled: ClassVar[bool] = False

    def __init__(self, vocab_size: int, num_classes: int, head_dropout: float | None = None, **kwargs: Any) -> None:
        super().__init__(vocab_size, **{**kwargs, "pooler": (kwargs.get("pooler") or "tanh") if self.pooled else None})
        self.arguments |= {"num_classes": num_classes, "head_dropout": head_dropout}
        dropout = self.arguments["dropout"] if head_dropout is None else head_dropout
        self.head = ClassificationHead(self.arguments["dim"], num_classes, dropout)
        self.class_names = [f"LABEL_{i}" for i in range(num_classes)]
        self.head.apply(init_weights)

    def apply_head(self, states: Float[Tensor, "b t d"]) -> Float[Tensor, "b ..."]:
        return self.head(states)

    @classmethod
    def infer_config(cls, weights: Weights) -> dict[str, Any]:
        found = super().infer_config(weights)
        config, distil = weights.config, found["token_types"] == 0
        if "classifier.weight" in weights.state:
            found["num_classes"] = len(weights.state["classifier.weight"])
        if cls.pooled or not distil:  # DistilBERT has a dropout of its own in front of the classes of texts only
            found["head_dropout"] = config.get("seq_classif_dropout" if distil else "classifier_dropout")
        if cls.pooled:
            found["pooler"] = "relu" if distil else "tanh"
        return found

    def _load_weights(self, weights: Weights) -> None:
        super()._load_weights(weights)
        names, count = self.config.get("id2label") or {}, self.arguments["num_classes"]
        if len(names) == count:
            self.class_names = [names[str(i)] for i in range(count)]
        else:  # of a head that was replaced
            self.config = {k: v for k, v in self.config.items() if k not in ("id2label", "label2id")}


class BERTForSequenceClassification(BERTForTokenClassification):
    """BERT that tells the class of a text: logits ``(b, k)``.

    Args:
        vocab_size: number of tokens.
        num_classes: number of classes.
        head_dropout: share dropped in front of the last layer; null is ``dropout``.
    """

    architecture, pooled = "ForSequenceClassification", True

    def apply_head(self, states: Float[Tensor, "b t d"]) -> Float[Tensor, "b k"]:
        assert self.pooler is not None
        return self.head(self.pooler(states))
