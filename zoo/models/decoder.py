"""What decoders share around their blocks, as networks: their start, a cache, and their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch

from zoo.layers.decoder import initialize_decoder
from zoo.layers.kv_cache import KVCache
from zoo.weights.files import Weights
from zoo.weights.formats.huggingface import Entry, HuggingFaceNet


class Decoder(HuggingFaceNet):
    """A decoder with published weights; ``format`` is the module of zoo.weights.formats that knows theirs."""

    format: ClassVar[Any]

    def reset_parameters(self) -> None:
        """Start afresh."""
        self.init_rng_state = torch.get_rng_state()  # where one without memory draws the same numbers from later
        initialize_decoder(self, self.arguments["depth"])

    def make_cache(self, batch: int, length: int) -> KVCache:
        """Make room for the keys and values of ``length`` tokens."""
        a, weight = self.arguments, next(self.parameters())
        heads, head_dim = a.get("kv_heads", a["heads"]), a.get("head_dim", a["dim"] // a["heads"])
        return KVCache(a["depth"], batch, heads, length, head_dim, weight.dtype, weight.device)

    # Files ------------------------------------------------------------------------------------------------------------

    @classmethod
    def open_pretrained(cls, path: str | Path) -> Weights:
        return cls.format.open_pretrained(path)

    @classmethod
    def infer_config(cls, weights: Weights) -> dict[str, Any]:
        return cls.format.infer_config(weights)

    def entries(self) -> list[Entry]:
        return self.format.entries(self.arguments)

    def config_json(self) -> dict[str, Any]:
        return self.format.config_json(self.arguments, self.config)
