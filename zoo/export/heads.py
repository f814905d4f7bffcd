"""What an exported graph returns for each task, and the same read from the predictions of the module itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import lightning as L
import torch
from torch import Tensor

from zoo.errors import UserError
from zoo.tasks import (
    Autoencoder,
    Classifier,
    Diffusion,
    Forecaster,
    LanguageModel,
    MaskedLanguageModel,
    MetricLearner,
    Regressor,
    Tagger,
    Translator,
)

Outputs = dict[str, Tensor]
Columns = dict[str, list]

# Tasks that no single graph computes, and why.
REFUSED: dict[type, str] = {
    Translator: "generates its output in a loop, token by token",
    LanguageModel: "generates text in a loop, token by token",
    Diffusion: "denoises in a loop",
    Autoencoder: "has no prediction to export, only a reconstruction",
    MaskedLanguageModel: "predicts the tokens that training masks, which is no prediction of a sample",
}


class Head:
    """What a graph returns for a batch that is prepared.

    Args:
        module: the trained module.
    """

    descriptions: ClassVar[dict[str, str]] = {}  # of the outputs, by name

    def __init__(self, module: Any) -> None:
        self.module = module

    def outputs(self, *inputs: Tensor) -> Outputs:
        """Return the outputs of the graph, by name."""
        raise NotImplementedError

    def expected(self, columns: Columns) -> Outputs:
        """Return what the outputs should be, by the columns of ``predict_step``; NaN where there is no prediction."""
        raise NotImplementedError

    def before(self) -> None:
        """Let ``predict_step`` return all that ``expected`` reads."""


class ClassifierHead(Head):
    """Probabilities of all classes ``(b, k)``."""

    descriptions: ClassVar[dict[str, str]] = {"probabilities": "(batch, classes), in the order of class_names"}

    def before(self) -> None:
        # Two classes may have equal names, and columns may not.
        self.module.class_names = [str(i) for i in range(self.module.num_classes)]
        self.module.all_probabilities = True

    def outputs(self, *inputs: Tensor) -> Outputs:
        module = self.module
        probabilities = module._probabilities(module._scores(module(*inputs)))
        if module.task == "binary":
            probabilities = torch.stack([1 - probabilities, probabilities], 1)  # (b, 2)
        return {"probabilities": probabilities}

    def expected(self, columns: Columns) -> Outputs:
        values = [columns[f"probability_{i}"] for i in range(self.module.num_classes)]
        if self.module.task == "binary" and len(values) == 1:
            values.insert(0, [1 - value for value in values[0]])
        return {"probabilities": torch.tensor(values).T}


class TaggerHead(ClassifierHead):
    """Probabilities of all classes at each step ``(b, t, k)``."""

    descriptions: ClassVar[dict[str, str]] = {
        "probabilities": "(batch, length, classes), in the order of class_names; arbitrary in the padding"
    }

    def outputs(self, *inputs: Tensor) -> Outputs:
        return {"probabilities": self.module(*inputs).float().softmax(2)}

    def expected(self, columns: Columns) -> Outputs:
        by_class = [columns[f"probability_{i}"] for i in range(self.module.num_classes)]
        longest = max(len(row) for row in by_class[0])
        padded = []
        for rows in by_class:
            padded.append([row + [float("nan")] * (longest - len(row)) for row in rows])
        return {"probabilities": torch.tensor(padded).permute(1, 2, 0)}  # (b, t, k)


class RegressorHead(Head):
    """Predictions in the units of the targets ``(b,)``, or ``(b, k)`` for several targets."""

    descriptions: ClassVar[dict[str, str]] = {"prediction": "(batch,), or (batch, targets), in the units of the target"}

    def outputs(self, *inputs: Tensor) -> Outputs:
        prediction = self.module(*inputs).float()
        if prediction.shape[1] == 1:
            prediction = prediction[:, 0]
        return {"prediction": prediction}

    def expected(self, columns: Columns) -> Outputs:
        return {"prediction": torch.tensor(columns["prediction"])}


class ForecasterHead(Head):
    """Forecasts ``(b, h)`` and, where there are any, quantiles ``(b, h, q)``, both as the module standardizes them."""

    descriptions: ClassVar[dict[str, str]] = {
        "forecast": "(batch, horizon), in the units of the target",
        "quantiles": "(batch, horizon, quantiles), in the units of the target",
    }

    def outputs(self, *inputs: Tensor) -> Outputs:
        module = self.module
        out = module(*inputs).float()
        if not module.quantiles:
            return {"forecast": out}
        return {"forecast": out[:, :, module._median_index], "quantiles": out}

    def expected(self, columns: Columns) -> Outputs:
        module = self.module
        outputs = {"forecast": torch.tensor(columns["forecast"]).view(-1, module.horizon)}
        if module.quantiles:
            values = [columns[f"q{quantile:g}"] for quantile in module.quantiles]
            outputs["quantiles"] = torch.tensor(values).T.reshape(-1, module.horizon, len(values))
        return outputs


class EmbeddingHead(Head):
    """Embeddings ``(b, d)``."""

    descriptions: ClassVar[dict[str, str]] = {"embedding": "(batch, dimension)"}

    def outputs(self, *inputs: Tensor) -> Outputs:
        return {"embedding": self.module(*inputs).float()}

    def expected(self, columns: Columns) -> Outputs:
        values = [columns[f"e{i}"] for i in range(len(columns))]
        return {"embedding": torch.tensor(values).T}


HEADS: dict[type, Callable[[Any], Head]] = {
    Tagger: TaggerHead,
    Classifier: ClassifierHead,
    Regressor: RegressorHead,
    Forecaster: ForecasterHead,
    MetricLearner: EmbeddingHead,
}


def head_of(module: L.LightningModule) -> Head:
    """Return the head for the task of a module.

    Raises:
        UserError: no graph computes what it predicts.
    """
    for task, why in REFUSED.items():
        if isinstance(module, task):
            raise UserError(
                f"{type(module).__name__} {why}: it has no .onnx or .pt2 file; --out FILE.safetensors or a folder "
                "writes its weights"
            )
    for task, head in HEADS.items():
        if isinstance(module, task):
            return head(module)
    known = ", ".join(task.__name__ for task in HEADS)
    raise UserError(
        f"{type(module).__name__} is none of {known}, which .onnx and .pt2 files are for: --out FILE.safetensors "
        "writes its weights"
    )
