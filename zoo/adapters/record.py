"""What is known of an adapter beside its weights: plain values, as a checkpoint and a PEFT file hold them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from zoo.checkpoints.checkpoint import ADAPTER_KEY
from zoo.checkpoints.integrity import digest
from zoo.errors import UserError
from zoo.terminal import printable

FORMAT = 1
MAX_RANK = 2**16


@dataclass
class AdapterRecord:
    """A low-rank adapter: where it is in a network, and of which base.

    Args:
        rank: rank of the updates.
        alpha: the updates are scaled by ``alpha / rank``, or with rsLoRA by ``alpha / sqrt(rank)``.
        layers: adapted layers by name, with the adapted parts of each; no parts is the whole layer.
        dropout: dropout probability for the input of the updates.
        dora: whether rows have trained magnitudes (DoRA).
        rslora: whether the scale is that of rsLoRA.
        quantize: how the base was quantized in training (QLoRA); empty for not at all.
        modules_to_save: further modules that are trained whole, and belong to the adapter.
        base_digest: digest of the base weights; empty if unknown.
        base: where the base weights came from, for messages; empty if unknown.
    """

    rank: int
    alpha: float
    layers: dict[str, list[str]]
    dropout: float = 0.0
    dora: bool = False
    rslora: bool = False
    quantize: str = ""
    modules_to_save: list[str] = field(default_factory=list)
    base_digest: str = ""
    base: str = ""

    @property
    def scale(self) -> float:
        if self.rslora:
            return self.alpha / math.sqrt(self.rank)
        return self.alpha / self.rank

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {"format": FORMAT, "type": "lora", **asdict(self)}

    @classmethod
    def from_dict(cls, values: Any, source: Any) -> AdapterRecord:
        """Read what ``to_dict`` returned.

        Args:
            values: from a file, so of any kind.
            source: the file, for the error.

        Raises:
            UserError: a value is absent, of another kind or out of range.
        """
        if not isinstance(values, Mapping):
            raise UserError(f"{source}: {ADAPTER_KEY} is a {type(values).__name__}, not the description of an adapter")
        if values.get("format") != FORMAT or values.get("type") != "lora":
            raise UserError(f"{source}: an adapter of a kind that this version of zoo does not know")
        read = {}
        for name, kinds in _KINDS.items():
            value = values.get(name)
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                raise UserError(f"{source}: {ADAPTER_KEY}.{name} is a {type(value).__name__}: {printable(value, 60)}")
            read[name] = value
        for texts in (read["modules_to_save"], read["layers"], *read["layers"].values()):
            if not isinstance(texts, (list, dict)) or not all(isinstance(text, str) for text in texts):
                raise UserError(f"{source}: {ADAPTER_KEY}: names of layers have to be text")
        record = cls(**read)
        if not 1 <= record.rank <= MAX_RANK or not math.isfinite(record.alpha) or not 0 <= record.dropout < 1:
            raise UserError(
                f"{source}: {ADAPTER_KEY}: rank {record.rank}, alpha {record.alpha}, dropout {record.dropout}"
            )
        return record


_KINDS: dict[str, tuple[type, ...]] = {
    "rank": (int,),
    "alpha": (int, float),
    "layers": (dict,),
    "dropout": (int, float),
    "dora": (bool,),
    "rslora": (bool,),
    "quantize": (str,),
    "modules_to_save": (list,),
    "base_digest": (str,),
    "base": (str,),
}


def weights_digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return a digest of weights by name, which does not depend on their order or on a wider dtype.

    Args:
        tensors: names and weights; values that are no floating-point numbers do not count.
    """
    total = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            continue
        # All of float16 and bfloat16 are float32 numbers: a base that is read in either gives the same digest.
        values: Any = tensor.detach().to("cpu", torch.float32).contiguous().view(-1).numpy()
        own = digest(memoryview(values).cast("B"), 0, values.nbytes)
        total.update(f"{name} {tuple(tensor.shape)} {own}\n".encode())
    return total.hexdigest()[:32]
