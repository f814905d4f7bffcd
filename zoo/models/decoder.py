"""Decoder-only language models with published weights: what GPT and LLaMA share."""

from __future__ import annotations

import torch
from torch import nn

from zoo.layers.decoder import initialize_decoder
from zoo.layers.kv_cache import KVCache
from zoo.weights.pretrained import PretrainedNet


class Decoder(PretrainedNet):
    """Decoder-only Transformer with a key-value cache."""

    blocks: nn.ModuleList
    # Whether to recompute the activations of the blocks in the backward pass.
    activation_checkpointing: bool = False

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
