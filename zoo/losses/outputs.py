"""Losses on the outputs of a network: focal, distillation and quantile (pinball) loss."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

Reduction = Literal["mean", "sum", "none"]


class FocalLoss(nn.Module):
    """Focal loss, which down-weights well-classified examples (Lin et al. 2017, https://arxiv.org/abs/1708.02002).

    The factor on cross-entropy is (1 - p)^gamma. Integer targets are classes, one per example; floating-point targets
    of the logits' shape are independent binary labels. Computed in log space, so values and gradients stay finite for
    logits of 10,000.

    Args:
        gamma: focusing parameter; 0 is plain cross-entropy.
        alpha: for binary targets the weight of the positive class, with 1 - alpha for the negative one, as one number
            or one per column; for classes one weight per class. None weighs all alike.
        ignore_index: target that is ignored.
        reduction: mean over the targets that are not ignored, sum, or none (zero where ignored).
    """

    def __init__(
        self,
        gamma: float = 2.0,
        alpha: float | list[float] | None = None,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        if gamma < 0:
            raise ValueError(f"FocalLoss: gamma is {gamma}, but must be at least 0")
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"FocalLoss: reduction is {reduction!r}, but must be mean, sum or none")
        self.gamma = gamma
        self.alpha = alpha
        self.ignore_index = ignore_index
        self.reduction = reduction

    def forward(self, logits: Float[Tensor, "*logits"], target: Shaped[Tensor, "*target"]) -> Tensor:
        """Return the loss.

        Args:
            logits: (b, k) or (b, k, ...) for classes, any shape for binary labels.
            target: (b) or (b, ...) class indices, or floats in [0, 1] of the logits' shape.

        Returns:
            A scalar, or a tensor of the target's shape for reduction "none".

        Raises:
            ValueError: the shapes of logits, targets and alpha do not fit together.
        """
        keep = target != self.ignore_index
        # Any valid target will do where it is ignored: the loss there is set to zero below.
        valid_target = target.masked_fill(~keep, 0)
        if target.is_floating_point():
            losses = self._binary(logits, valid_target)
        else:
            losses = self._multiclass(logits, valid_target)
        losses = losses.masked_fill(~keep, 0.0)
        if self.reduction == "none":
            return losses
        if self.reduction == "sum":
            return losses.sum()
        return losses.sum() / keep.sum().clamp(min=1)

    def _binary(self, logits: Tensor, target: Tensor) -> Tensor:
        if target.shape != logits.shape:
            raise ValueError(f"FocalLoss: targets are {tuple(target.shape)}, but logits {tuple(logits.shape)}")
        losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        # log(1 - p), where p is the probability of the target: p(1) (1 - target) + p(0) target
        log_positive = F.logsigmoid(logits)
        log_negative = F.logsigmoid(-logits)
        log_miss = torch.logaddexp(log_positive + torch.log1p(-target), log_negative + target.log())
        if self.alpha is not None:
            if isinstance(self.alpha, list) and (logits.ndim < 2 or len(self.alpha) != logits.shape[-1]):
                raise ValueError(f"FocalLoss: alpha is {self.alpha}, but must be one number, or one for each column")
            alpha = logits.new_tensor(self.alpha)
            losses = losses * (alpha * target + (1 - alpha) * (1 - target))
        return losses * torch.exp(self.gamma * log_miss)

    def _multiclass(self, logits: Tensor, target: Tensor) -> Tensor:
        classes = logits.shape[1] if logits.ndim > 1 else 0
        if classes < 2 or target.shape != logits.shape[:1] + logits.shape[2:]:
            raise ValueError(
                f"FocalLoss: logits are {tuple(logits.shape)} and class indices {tuple(target.shape)}, "
                "but must be (b, k, ...) with k > 1 and (b, ...); binary targets have to be floats"
            )
        log_p = logits.log_softmax(1)
        index = target.unsqueeze(1)  # (b, 1, ...)
        # log(1 - p) from the other classes: 1 - p itself rounds to 0 where p is nearly 1.
        log_miss = log_p.scatter(1, index, -math.inf).logsumexp(1)
        losses = -log_p.gather(1, index).squeeze(1)
        if self.alpha is not None:
            if not isinstance(self.alpha, list) or len(self.alpha) != classes:
                raise ValueError(f"FocalLoss: alpha is {self.alpha}, but must be a list of {classes} class weights")
            losses = losses * logits.new_tensor(self.alpha)[target]
        return losses * torch.exp(self.gamma * log_miss)


class DistillationLoss(nn.Module):
    """Knowledge distillation from soft targets and labels (Hinton et al. 2015, https://arxiv.org/abs/1503.02531).

    The loss is alpha T^2 KL(teacher at T, student at T) + (1 - alpha) cross-entropy.

    Args:
        temperature: T, above 0; higher values give unlikely classes more weight.
        alpha: weight of the teacher, in [0, 1]; at 1 no labels are needed.
        ignore_index: label whose samples are ignored, in both parts.
    """

    def __init__(self, temperature: float = 2.0, alpha: float = 0.5, ignore_index: int = -100) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"DistillationLoss: temperature is {temperature}, but must be above 0")
        if not 0 <= alpha <= 1:
            raise ValueError(f"DistillationLoss: alpha is {alpha}, but must be in [0, 1]")
        self.temperature = temperature
        self.alpha = alpha
        self.ignore_index = ignore_index

    def forward(
        self,
        student: Float[Tensor, "*b k"],
        teacher: Float[Tensor, "*b k"],
        target: Int[Tensor, "*b"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the loss.

        Args:
            student: logits ``(..., k)``.
            teacher: logits of the same shape; no gradient flows into them.
            target: class indices ``(...)``; may be left out if alpha is 1.

        Returns:
            A scalar, the mean over the targets that are not ignored.

        Raises:
            ValueError: labels are needed but missing.
        """
        if target is None and self.alpha < 1:
            raise ValueError(f"DistillationLoss: alpha is {self.alpha}, so labels are needed, but there are none")
        log_student = (student / self.temperature).log_softmax(-1)
        log_teacher = (teacher.detach() / self.temperature).log_softmax(-1)
        divergence = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(-1)
        # T^2 keeps the gradients of both parts of one size, whatever T is (section 2 of the paper).
        soft = divergence * self.temperature**2
        if target is None:
            return soft.mean()
        hard = F.cross_entropy(student.movedim(-1, 1), target, ignore_index=self.ignore_index, reduction="none")
        losses = self.alpha * soft + (1 - self.alpha) * hard
        keep = target != self.ignore_index
        return losses.masked_fill(~keep, 0.0).sum() / keep.sum().clamp(min=1)


class PinballLoss(nn.Module):
    """Pinball (quantile) loss (Koenker and Bassett 1978, https://doi.org/10.2307/1913643).

    A prediction below the target costs q times the distance, one above it 1 - q times the distance.

    Args:
        quantiles: numbers in (0, 1), such as [0.1, 0.5, 0.9]; the prediction's last dimension is in this order.
    """

    def __init__(self, quantiles: list[float]) -> None:
        super().__init__()
        if not quantiles or not all(0 < q < 1 for q in quantiles):
            raise ValueError(f"PinballLoss: quantiles are {quantiles}, but must be one or more numbers in (0, 1)")
        self.quantiles = list(quantiles)

    def forward(self, prediction: Float[Tensor, "*b q"], target: Float[Tensor, "*b"]) -> Float[Tensor, ""]:
        """Return the loss.

        Args:
            prediction: (..., q).
            target: (...), without the dimension of quantiles.

        Returns:
            A scalar, the mean over targets and quantiles.

        Raises:
            ValueError: the shapes do not fit together.
        """
        if prediction.shape != (*target.shape, len(self.quantiles)):
            raise ValueError(
                f"PinballLoss: predictions are {tuple(prediction.shape)}, but must be the targets' "
                f"{tuple(target.shape)} and {len(self.quantiles)} quantiles"
            )
        error = target.unsqueeze(-1) - prediction  # (..., q)
        q = error.new_tensor(self.quantiles)
        return torch.maximum(q * error, (q - 1) * error).mean()
