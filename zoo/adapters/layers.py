"""LoRA layers: low-rank updates of frozen layers (Hu et al. 2021, https://arxiv.org/abs/2106.09685).

Why these layers are not those of ``peft``: that package needs transformers and accelerate; it replaces a layer by a
wrapper, which renames the base's weights (``base_layer.weight``), so that published weights and checkpoints no longer
fit the network; and it adapts a fused projection of queries, keys and values only as a whole. Here a layer keeps its
place, its names and its class, of which it becomes a subclass, and gets two or three parameters more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from zoo._torch import conv_forward

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class LayerAdapter:
    """What a LoRA layer computes, beside its parameters.

    Args:
        rank: rank ``r`` of the update of each part.
        scale: factor on the update: ``alpha / r``, or ``alpha / sqrt(r)`` with rsLoRA.
        dropout: dropout probability for the input of the update.
        dora: scale each row of the updated weight to a trained magnitude.
        parts: adapted parts of a fused layer as name, first row and end; one without a name is the whole layer.
    """

    rank: int
    scale: float
    dropout: float
    dora: bool
    parts: tuple[tuple[str, int, int], ...]

    @property
    def rows(self) -> int:
        """Number of output features with an update."""
        return sum(stop - start for _, start, stop in self.parts)


class LoRALayer(nn.Module):
    """Mixin of layers with a low-rank update: ``y = W x + b + scale * B A dropout(x)``.

    ``lora_A`` holds the ``A`` of all parts, ``(parts * rank, in)``, and ``lora_B`` their ``B``, ``(rows, rank)``. With
    DoRA (Liu et al. 2024, https://arxiv.org/abs/2402.09353) ``lora_magnitude`` holds a norm for each row, ``(rows,)``.
    """

    lora: LayerAdapter
    lora_A: nn.Parameter
    lora_B: nn.Parameter
    lora_magnitude: nn.Parameter | None

    # What each kind of layer defines ---------------------------------------------------------------------------------

    # Dimension of the output that the update is along, from the end.
    out_dim = -1

    def matrix(self) -> Float[Tensor, "out ..."]:
        """Return the base weight with the output features first; a view."""
        raise NotImplementedError

    def down(self, x: Tensor) -> Tensor:
        """Return ``A dropout(x)`` with its features last: ``(..., parts * rank)``."""
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)  # type: ignore[misc]
        low = self.down(x)  # (..., parts * rank)
        first = 0
        pieces = []
        done = 0
        for part, (_, start, stop) in enumerate(self.lora.parts):
            rows = slice(first, first + stop - start)
            first = rows.stop
            narrow = low[..., part * self.lora.rank : (part + 1) * self.lora.rank]
            update = F.linear(narrow, self.lora_B[rows]).movedim(-1, self.out_dim) * self.lora.scale
            base = y.narrow(self.out_dim, start, stop - start)
            if start > done:
                pieces.append(y.narrow(self.out_dim, done, start - done))
            pieces.append(self._combined(base, update.to(y.dtype), start, rows))
            done = stop
        size = y.shape[self.out_dim]
        if done < size:
            pieces.append(y.narrow(self.out_dim, done, size - done))
        if len(pieces) == 1:
            return pieces[0]
        return torch.cat(pieces, self.out_dim)

    def _combined(self, base: Tensor, update: Tensor, start: int, rows: slice) -> Tensor:
        if self.lora_magnitude is None:
            return base + update
        # As in the paper's section 4.3 the norm is a constant for the gradient.
        gain = self.lora_magnitude[rows] / self._norms(start, rows)
        gain = _along(gain, self.out_dim).to(base.dtype)
        bias: Any = 0.0
        if self.bias is not None:
            bias = _along(self.bias[start : start + rows.stop - rows.start], self.out_dim)  # type: ignore[index]
        return (base - bias + update) * gain + bias

    @torch.no_grad()
    def _norms(self, start: int, rows: slice) -> Float[Tensor, " rows"]:
        weight = self.matrix()[start : start + rows.stop - rows.start].flatten(1)
        return (weight + self.updates()[rows].to(weight.dtype)).norm(dim=1)

    def updates(self, dtype: torch.dtype | None = None) -> Float[Tensor, "rows in"]:
        """Return ``scale * B A`` of all parts, one below the other, computed in a dtype; None is their own."""
        a = self.lora_A.to(dtype).flatten(1).unflatten(0, (len(self.lora.parts), -1))  # (parts, rank, in)
        b = self.lora_B.to(dtype).split([stop - start for _, start, stop in self.lora.parts])
        products = [b_part @ a_part for b_part, a_part in zip(b, a, strict=True)]
        return torch.cat(products) * self.lora.scale

    @torch.no_grad()
    def merge(self) -> None:
        """Add the update to the base weight, and become the plain layer again."""
        weight = self.matrix()
        # Summed in float64, and rounded once; Apple's GPUs have float32 at most.
        wide = torch.float32 if weight.device.type == "mps" else torch.float64
        updates = self.updates(wide)
        first = 0
        for _, start, stop in self.lora.parts:
            rows = slice(first, first + stop - start)
            first = rows.stop
            own = weight[start:stop]
            merged = own.to(wide) + updates[rows].view_as(own)
            if self.lora_magnitude is not None:
                norms = merged.flatten(1).norm(dim=1)
                gain = self.lora_magnitude[rows].to(wide) / norms
                merged *= gain.view(-1, *[1] * (merged.ndim - 1))
            own.copy_(merged)
        remove(self)

    def extra_repr(self) -> str:
        parts = [name for name, _, _ in self.lora.parts if name]
        text = f"{super().extra_repr()}, rank={self.lora.rank}"
        return f"{text}, parts={'+'.join(parts)}" if parts else text


def _along(vector: Tensor, dim: int) -> Tensor:
    """Return a vector with dimensions of size 1 behind it, so that it lies along ``dim`` of a larger tensor."""
    return vector.view(-1, *[1] * (-1 - dim))


class LoRALinear(LoRALayer):
    def matrix(self) -> Tensor:
        return self.weight  # type: ignore[return-value]

    def down(self, x: Float[Tensor, "... i"]) -> Float[Tensor, "... r"]:
        x = F.dropout(x.to(self.lora_A.dtype), self.lora.dropout, self.training)
        return F.linear(x, self.lora_A)


class LoRATransposed(LoRALinear):
    """For transformers' ``Conv1D``, a linear layer whose weight is ``(in, out)``."""

    def matrix(self) -> Tensor:
        return self.weight.mT  # type: ignore[operator]


class LoRAConv(LoRALayer):
    def matrix(self) -> Tensor:
        return self.weight  # type: ignore[return-value]

    @property
    def out_dim(self) -> int:  # type: ignore[override]
        return 1 - self.weight.ndim  # type: ignore[operator]

    def down(self, x: Tensor) -> Tensor:
        x = F.dropout(x.to(self.lora_A.dtype), self.lora.dropout, self.training)
        return conv_forward(self, x, self.lora_A).movedim(self.out_dim, -1)


class LoRAEmbedding(LoRALayer):
    """For embeddings: the update of a token is ``scale * B A[:, token]``, without dropout."""

    def matrix(self) -> Tensor:
        return self.weight.mT  # type: ignore[operator]

    def down(self, x: Int[Tensor, "*ids"]) -> Float[Tensor, "... r"]:
        return F.embedding(x, self.lora_A.mT, self.padding_idx)  # type: ignore[arg-type]


def is_transposed(layer: nn.Module) -> bool:
    """Return whether a layer is transformers' ``Conv1D``, without importing transformers."""
    for base in type(layer).__mro__:
        if base.__name__ == "Conv1D" and base.__module__.startswith("transformers."):
            return True
    return False


def adapter_class(layer: nn.Module) -> type[LoRALayer] | None:
    """Return the mixin for a layer, or None for a layer without an update of low rank."""
    if isinstance(layer, nn.Linear):
        return LoRALinear
    if isinstance(layer, nn.Embedding):
        return LoRAEmbedding
    if isinstance(layer, CONVOLUTIONS):
        return LoRAConv
    if is_transposed(layer):
        return LoRATransposed
    return None


_classes: dict[tuple[type, type], type] = {}


def add(layer: Any, adapter: LayerAdapter) -> None:
    """Make a layer a LoRA layer, in place; its output stays the same until the update is trained.

    As in PEFT ``A`` is Kaiming-uniform and ``B`` zero; of an embedding ``A`` is zero and ``B`` normal.

    Args:
        layer: a layer for which there is an ``adapter_class``.
        adapter: rank, scale and parts.
    """
    mixin = adapter_class(layer)
    assert mixin is not None
    kind = type(layer)
    if (mixin, kind) not in _classes:
        _classes[mixin, kind] = type(f"LoRA{kind.__name__}", (mixin, kind), {"base_class": kind})
    weight = layer.weight
    inner = weight.shape[1:]
    if mixin is LoRALinear:
        inner = (layer.in_features,)  # quantized weights are packed
    if mixin in (LoRATransposed, LoRAEmbedding):
        inner = weight.shape[:1]
    # Quantized weights are not of a dtype that can be trained.
    dtype = weight.dtype if weight.is_floating_point() else torch.float32
    options: dict[str, Any] = {"dtype": dtype, "device": weight.device}
    a = torch.empty(len(adapter.parts) * adapter.rank, *inner, **options)
    b = torch.zeros(adapter.rows, adapter.rank, **options)
    if mixin is LoRAEmbedding:
        nn.init.zeros_(a)
        nn.init.normal_(b)
    else:
        for part in a.split(adapter.rank):
            nn.init.kaiming_uniform_(part, a=math.sqrt(5))
    layer.__class__ = _classes[mixin, kind]
    adapted: Any = layer  # nn.Module declares every attribute as a tensor or a module
    adapted.lora = adapter
    adapted.lora_A = nn.Parameter(a)
    adapted.lora_B = nn.Parameter(b)
    adapted.lora_magnitude = None
    if adapter.dora:
        norms = [adapted.matrix()[start:stop].detach().flatten(1).norm(dim=1) for _, start, stop in adapter.parts]
        adapted.lora_magnitude = nn.Parameter(torch.cat(norms))


def remove(layer: Any) -> None:
    """Make a LoRA layer the plain one again, without its update."""
    layer.__class__ = layer.base_class
    for name in ("lora_A", "lora_B", "lora_magnitude"):
        delattr(layer, name)
    del layer.lora
