"""Decoder-only language models with published weights: what GPT and LLaMA share."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch

from zoo.layers.decoder import initialize_decoder
from zoo.layers.kv_cache import KVCache
from zoo.weights.files import Weights
from zoo.weights.formats.huggingface import Entry, HuggingFaceNet


class Decoder(HuggingFaceNet):
    """Decoder-only Transformer; ``format`` is the module of ``zoo.weights.formats`` for its published weights."""

    format: ClassVar[Any]

    def reset_parameters(self) -> None:
        """Initialise all weights anew."""
        self.init_rng_state = torch.get_rng_state()  # from which a network on the meta device is initialised later
        initialize_decoder(self, self.arguments["depth"])

    def make_cache(self, batch: int, length: int) -> KVCache:
        """Allocate a key-value cache for ``batch`` sequences of up to ``length`` tokens."""
        arguments = self.arguments
        heads = arguments["heads"]
        kv_heads = arguments.get("kv_heads", heads)
        head_dim = arguments.get("head_dim", arguments["dim"] // heads)
        weight = next(self.parameters())
        return KVCache(arguments["depth"], batch, kv_heads, length, head_dim, weight.dtype, weight.device)

    # Published weights ------------------------------------------------------------------------------------------------

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
