"""Language models that may start from published weights, and may be too large for one device."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy

from zoo._lightning import trainer_of
from zoo.layers.init import InitRule, initialize
from zoo.tasks.base import require
from zoo.tasks.language import LanguageModel
from zoo.tasks.tokenized import find_tokenizer
from zoo.weights.formats.huggingface import HuggingFaceNet
from zoo.weights.sharded import UnshardedInit, materialize

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


UNSHARDABLE_INITS = {"orthogonal", "trunc_normal"}  # which look at numbers before they draw more


class DecoderLanguageModel(LanguageModel):
    """Train a decoder, from scratch or from published weights.

    With ``trainer.strategy: ModelParallelStrategy`` weights, gradients and the optimizer's state are divided among the
    devices, block by block (FSDP2; Zhao et al. 2023, https://arxiv.org/abs/2304.11277). No process ever holds them all:
    a network on the meta device is divided first, and each parameter then drawn or read whole, and cut.

    Args:
        weights: to start from: a model directory of Hugging Face, or a file that zoo wrote, which also tells the
            sizes; null starts fresh.
        activation_checkpointing: compute the inside of each block again in the backward pass in place of keeping it,
            for a third more arithmetic and far less memory (Chen et al. 2016, https://arxiv.org/abs/1604.06174).
    """

    net: HuggingFaceNet

    def __init__(
        self, net: HuggingFaceNet, weights: str | None = None, activation_checkpointing: bool = False, **kwargs: Any
    ) -> None:
        self._weights, self._init = weights, kwargs.get("init") or []
        if is_meta(net) and any({rule.weight, rule.bias} & UNSHARDABLE_INITS for rule in self._init):
            materialize_and_init(net)
        with UnshardedInit():  # rules use up random numbers without memory too
            super().__init__(net=net, **kwargs)
        if weights is not None:
            net.load_pretrained(weights)  # without memory, only to see whether they fit
            self.pretrained_tokenizer = find_tokenizer(weights)
            if "preset" in self.hparams:  # of which a null below would take what these weights do not have
                self.hparams["preset"] = "baby"
        net.activation_checkpointing = activation_checkpointing
        # A checkpoint holds the weights themselves, and needs neither file nor preset again.
        sizes = {k: v for k, v in net.arguments.items() if k in self.hparams and k != "block_size"}
        gone = {k: None for k in ("weights", "meta_device") if k in self.hparams}
        self.hparams.update(**sizes, **gone, context=net.arguments["block_size"])

    def configure_model(self) -> None:
        """Divide the weights among devices, where the strategy asks for it; give memory to a network without."""
        device = torch.device("cpu")
        if trainer_of(self) is not None and isinstance(self.trainer.strategy, ModelParallelStrategy):
            shard(self.net, self.device_mesh["data_parallel"])  # type: ignore[index]
            device = self.trainer.strategy.root_device
        if is_meta(self.net):
            materialize_and_init(self.net, device, self._weights, self._init)


def is_meta(net: HuggingFaceNet) -> bool:
    return next(net.parameters()).is_meta


def materialize_and_init(
    net: Any, device: torch.device | str = "cpu", weights: str | None = None, init: Sequence[InitRule] = ()
) -> None:
    """Give a network memory, and the weights that it would have had from the start, one whole parameter at a time.

    Args:
        net: a decoder of zoo.models without memory; where it is divided, this process gets its part.
        device: where to.
        weights: a folder or file; null draws them, by the same numbers in every process.
        init: rules after which some are drawn again.
    """
    materialize(net, device)
    if weights is not None:
        net.load_pretrained(weights)
        return
    with torch.random.fork_rng(devices=[]), UnshardedInit():
        torch.set_rng_state(net.init_rng_state)
        net.reset_parameters()
        initialize(net, list(init))


def shard(net: HuggingFaceNet, mesh: DeviceMesh) -> None:
    """Keep of each parameter one part a device; all of a block's are there only while it computes."""
    from torch.distributed.fsdp import FSDPModule, fully_shard

    if isinstance(net, FSDPModule):
        return  # by an earlier stage of this run
    for block in net.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(net, mesh=mesh)


def network(
    cls: type[HuggingFaceNet],
    module: LanguageModel,
    vocab_size: int | None,
    block_size: int | None,
    preset: Mapping[str, Any],
    weights: str | None,
    meta_device: bool | None = None,
    **chosen: Any,
) -> Any:
    """Build a decoder of the sizes that weights have, or else a preset, and the user changed.

    Args:
        cls: the network's class.
        module: for which it is.
        vocab_size: of the data.
        block_size: of the data.
        preset: arguments of the constructor.
        weights: a folder or file; where it differs from what the user chose, loading says so.
        meta_device: whether to build it without memory.
        chosen: arguments by the user; null is not chosen, and beside weights nor is the constructor's default.
    """
    tokens, data_block = require(module, vocab_size=vocab_size, block_size=block_size)
    chosen = {k: v for k, v in chosen.items() if v is not None}
    context = chosen.pop("context", None)
    if weights is None:
        arguments = {**preset, **chosen, "block_size": context or data_block}
    else:
        defaults = inspect.signature(cls).parameters
        chosen = {k: v for k, v in chosen.items() if k == "dropout" or v != defaults[k].default}
        arguments = {**cls.pretrained_arguments(weights), **chosen, **({"block_size": context} if context else {})}
    if arguments["block_size"] < data_block:
        raise ValueError(
            f"the data's block_size={data_block} is above the model's context of {arguments['block_size']}"
        )
    # Fresh weights use up random numbers without memory too, so that those drawn later are the same.
    draws = UnshardedInit() if meta_device and weights is None else nullcontext()
    with torch.device("meta") if meta_device else nullcontext(), draws:
        return cls(**{**arguments, "vocab_size": tokens})
