"""Causal language models that start from published weights, and may be sharded over devices."""

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
from zoo.weights.pretrained import PretrainedNet
from zoo.weights.sharded import UnshardedInit, materialize

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


# Initializations that read values before they sample more, so a sharded parameter cannot repeat them.
UNSHARDABLE_INITS = {"orthogonal", "trunc_normal"}


class DecoderLanguageModel(LanguageModel):
    """Causal language model of a decoder, from scratch or from published weights.

    With ``trainer.strategy: ModelParallelStrategy`` weights, gradients and optimizer state are sharded over the
    devices, block by block (FSDP2; Zhao et al. 2023, https://arxiv.org/abs/2304.11277). No process ever holds the whole
    model: a network on the meta device is sharded first, and then each parameter is initialized or read and cut.

    Args:
        weights: published weights to start from: a model directory of Hugging Face, or a file that zoo wrote, which
            also gives the sizes; null starts from scratch.
        activation_checkpointing: recompute the activations within each block in the backward pass, for a third more
            arithmetic and far less memory (Chen et al. 2016, https://arxiv.org/abs/1604.06174).
    """

    net: Any

    def __init__(
        self,
        net: Any,
        weights: str | None = None,
        activation_checkpointing: bool = False,
        **kwargs: Any,
    ) -> None:
        self._weights = weights
        self._init = kwargs.get("init") or []
        if is_meta(net) and kwargs.get("adapters"):
            raise ValueError("adapters need a network in memory: give --model.meta_device false")
        unshardable = any({rule.weight, rule.bias} & UNSHARDABLE_INITS for rule in self._init)
        if is_meta(net) and unshardable:
            materialize_and_init(net)
        with UnshardedInit():  # a network on the meta device consumes the same random numbers
            super().__init__(net=net, **kwargs)
        net.activation_checkpointing = activation_checkpointing
        if weights is not None:
            self.pretrained_tokenizer = find_tokenizer(weights)
            if "preset" in self.hparams:  # its values must not replace arguments that are null for these weights
                self.hparams["preset"] = "baby"
        # A checkpoint holds the weights themselves: loading it needs neither file nor preset.
        for name, value in net.arguments.items():
            if name in self.hparams and name != "block_size":
                self.hparams[name] = value
        for name in ("weights", "meta_device"):
            if name in self.hparams:
                self.hparams[name] = None
        self.hparams["context"] = net.arguments["block_size"]

    def adapt(self) -> None:
        if self._weights is not None:
            self.net.load_pretrained(self._weights)  # on the meta device this only checks that they fit
        super().adapt()

    def configure_model(self) -> None:
        """Shard the weights over devices if the strategy asks for it; materialize a network on the meta device."""
        device = torch.device("cpu")
        if trainer_of(self) is not None and isinstance(self.trainer.strategy, ModelParallelStrategy):
            shard(self.net, self.device_mesh["data_parallel"])  # type: ignore[index]
            device = self.trainer.strategy.root_device
        if is_meta(self.net):
            materialize_and_init(self.net, device, self._weights, self._init)


def is_meta(net: PretrainedNet) -> bool:
    """Return whether a network is on the meta device, without memory for its weights."""
    return next(net.parameters()).is_meta


def materialize_and_init(
    net: Any, device: torch.device | str = "cpu", weights: str | None = None, init: Sequence[InitRule] = ()
) -> None:
    """Move a network from the meta device to memory, one whole parameter at a time.

    Its weights are those that it would have had without the meta device.

    Args:
        net: a decoder of zoo.models on the meta device; of a sharded one, this process gets its shard.
        device: the device to move to.
        weights: a folder or file of published weights; None initializes them, equally in every process.
        init: initialization rules applied after the network's own.
    """
    materialize(net, device)
    if weights is not None:
        net.load_pretrained(weights)
        return
    with torch.random.fork_rng(devices=[]), UnshardedInit():
        torch.set_rng_state(net.init_rng_state)
        net.reset_parameters()
        initialize(net, list(init))


def shard(net: Any, mesh: DeviceMesh) -> None:
    """Shard each parameter over the devices; a block's parameters are gathered only while it computes."""
    from torch.distributed.fsdp import FSDPModule, fully_shard

    if isinstance(net, FSDPModule):
        return  # sharded by an earlier stage of this run
    for block in net.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(net, mesh=mesh)


def network(
    cls: type[PretrainedNet],
    module: LanguageModel,
    vocab_size: int | None,
    block_size: int | None,
    preset: Mapping[str, Any],
    weights: str | None,
    meta_device: bool | None = None,
    **chosen: Any,
) -> Any:
    """Build a decoder with the arguments of its weights or of a preset, changed by the user's own.

    Args:
        cls: class of the network.
        module: module that the network is for.
        vocab_size: vocabulary size of the data.
        block_size: sequence length of the data.
        preset: arguments of the constructor.
        weights: a folder or file of published weights; where they contradict the user, loading them raises an error.
        meta_device: whether to build the network on the meta device.
        chosen: arguments by the user; null is not a choice, nor, with weights, the constructor's default.
    """
    tokens, data_block = require(module, vocab_size=vocab_size, block_size=block_size)
    chosen = {name: value for name, value in chosen.items() if value is not None}
    context = chosen.pop("context", None)
    if weights is None:
        arguments = {**preset, **chosen, "block_size": context or data_block}
    else:
        arguments = cls.pretrained_arguments(weights)
        defaults = inspect.signature(cls).parameters
        for name, value in chosen.items():
            if name == "dropout" or value != defaults[name].default:
                arguments[name] = value
        if context:
            arguments["block_size"] = context
    if arguments["block_size"] < data_block:
        raise ValueError(
            f"the data's block_size={data_block} is above the model's context of {arguments['block_size']}"
        )
    arguments["vocab_size"] = tokens
    if not meta_device:
        return cls(**arguments)
    # Fresh weights consume random numbers on the meta device too, so that whatever is sampled later is the same.
    sampling = UnshardedInit() if weights is None else nullcontext()
    with torch.device("meta"), sampling:
        return cls(**arguments)
