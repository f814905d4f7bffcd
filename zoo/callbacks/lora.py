"""Low-rank adaptation, LoRA (Hu et al. 2021, https://arxiv.org/abs/2106.09685)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn

from zoo.adapters import (
    AdapterRecord,
    adapter_of,
    add_adapter,
    choose_layers,
    find_modules,
    frozen_params,
    network,
    without_base,
)
from zoo.adapters.layers import LoRALayer
from zoo.adapters.quantized import Quantization
from zoo.checkpoints import Checkpoint
from zoo.checkpoints.checkpoint import ADAPTER_KEY, state_differences
from zoo.errors import UserError


class LoRA(L.Callback):
    """Low-rank adaptation (LoRA) of any network: its weights stay frozen, and only small updates of them are trained.

    Layers keep their places and names, and get parameters ``lora_A`` and ``lora_B``. Checkpoints hold only what is
    trained, with a digest of the base weights: to resume, or to use an adapter, the same base is needed. The optimizer
    and EMA hold only what is trained, too. Batch normalization keeps the running statistics of the base. Parameters of
    the module outside its network, such as those of a loss, are trained as usual. Together with ``fine_tuning`` the
    base stays frozen all the same: the phases are those of the updates. Works on one device and with DDP. Logs no
    metrics.

    Args:
        rank: rank of the updates.
        alpha: scale of the updates, which are multiplied by ``alpha / rank``.
        target: layers with an update: ``all-linear`` (all linear layers but the output layer), or one or more regular
            expressions, each of which has to match the end of a layer's name in the network, from a dot on. The parts
            of fused projections are named ``q``, ``k``, ``v``, and ``gate`` and ``up``: ``q|v``. There are updates of
            linear layers, convolutions and embeddings.
        dropout: dropout probability for the input of the updates.
        dora: train the magnitude of each row of the weights, too (DoRA, Liu et al. 2024,
            https://arxiv.org/abs/2402.09353).
        rslora: scale by ``alpha / sqrt(rank)`` (rsLoRA, Kalajdzievski 2023, https://arxiv.org/abs/2312.03732).
        modules_to_save: modules that are trained whole and saved with the adapter, such as a new ``head``; regular
            expressions as for ``target``.
        base: checkpoint of ``zoo fit`` whose weights are adapted; null adapts those that the model was built with,
            such as by ``model.weights``.
        quantize: hold the weights of frozen linear layers in fewer bits (QLoRA, Dettmers et al. 2023,
            https://arxiv.org/abs/2305.14314): ``nf4``, 4 bits by the package bitsandbytes, or ``int8``, 8 bits by
            torchao; null for none. The adapter fits the base that is not quantized, too.
    """

    def __init__(
        self,
        rank: int = 16,
        alpha: float = 32.0,
        target: str | list[str] = "all-linear",
        dropout: float = 0.0,
        dora: bool = False,
        rslora: bool = False,
        modules_to_save: str | list[str] | None = None,
        base: str | None = None,
        quantize: Quantization | None = None,
    ) -> None:
        if rank < 1:
            raise ValueError(f"rank must be at least 1, got {rank}")
        if alpha <= 0:
            raise ValueError(f"alpha must be above 0, got {alpha}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be at least 0 and less than 1, got {dropout}")
        self.rank = rank
        self.alpha = alpha
        self.target = target
        self.dropout = dropout
        self.dora = dora
        self.rslora = rslora
        self.modules_to_save = modules_to_save
        self.base = base
        self.quantize: Quantization | None = quantize
        self._norms: list[nn.Module] = []
        self._checked = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if isinstance(trainer.strategy, (FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy)):
            name = type(trainer.strategy).__name__
            raise ValueError(f"LoRA cannot adapt parameters that {name} shards: use ddp")
        self.apply(pl_module)

    def apply(self, module: L.LightningModule) -> AdapterRecord:
        """Give a module its adapter, unless it has one; return what is known of it."""
        # The base is not in the checkpoints of the run; `on_load_checkpoint` compares the names instead.
        module.strict_loading = False
        injected = adapter_of(module)
        if injected is None:
            if self.base is not None:
                load_base(module, self.base)
            net = network(module)
            record = AdapterRecord(
                rank=self.rank,
                alpha=float(self.alpha),
                layers=choose_layers(net, self.target),
                dropout=float(self.dropout),
                dora=self.dora,
                rslora=self.rslora,
                modules_to_save=find_modules(net, self.modules_to_save),
                quantize=self.quantize or "",
                base=self.base or "",
            )
            injected = add_adapter(net, record, "lora", self.quantize)
        net = network(module)
        self._norms = [net.get_submodule(name) for name in injected.frozen_norms]
        return injected.record

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # An optimizer of somebody else's module was given all parameters.
        frozen = frozen_params(pl_module)
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["params"] = [param for param in group["params"] if param not in frozen]

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        for norm in self._norms:
            norm.training = False

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Warn once of updates that the first backward pass did not reach."""
        if self._checked:
            return
        self._checked = True
        unused = []
        for name, module in network(pl_module).named_modules():
            if isinstance(module, LoRALayer) and module.lora_B.requires_grad and module.lora_B.grad is None:
                unused.append(name)
        if unused:
            more = ", ..." if len(unused) > 2 else ""
            rank_zero_warn(
                f"LoRA: {len(unused)} layers have no gradient, as the network does not call them: "
                f"{', '.join(unused[:2])}{more}"
            )

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        injected = adapter_of(pl_module)
        assert injected is not None
        checkpoint["state_dict"] = dict(without_base(checkpoint["state_dict"], pl_module))
        checkpoint[ADAPTER_KEY] = injected.record.to_dict()

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        injected = adapter_of(pl_module)
        assert injected is not None
        if ADAPTER_KEY not in checkpoint:
            raise UserError("lora: this checkpoint holds no adapter; to adapt its weights, give it as --lora.base")
        check_same(injected.record, AdapterRecord.from_dict(checkpoint[ADAPTER_KEY], "the checkpoint"))
        own = dict(without_base(pl_module.state_dict(), pl_module))
        differing = sorted(own.keys() ^ checkpoint["state_dict"].keys())
        if differing:
            raise UserError(f"lora: the checkpoint has other trained weights than this model: {differing[0]}")


def check_same(own: AdapterRecord, theirs: AdapterRecord) -> None:
    """Raise a UserError if an adapter in a checkpoint is not the one of this run."""
    if own.base_digest != theirs.base_digest:
        base = f" ({theirs.base})" if theirs.base else ""
        raise UserError(
            f"lora: the checkpoint is an adapter of other base weights{base}: their digest is {theirs.base_digest}, "
            f"that of these is {own.base_digest}"
        )
    for name in ("rank", "alpha", "dora", "rslora", "layers", "modules_to_save"):
        if getattr(own, name) != getattr(theirs, name):
            raise UserError(f"lora: {name} of the adapter in the checkpoint differs from this run's")


def load_base(module: L.LightningModule, path: str | Path) -> None:
    """Load the weights of a checkpoint, EMA weights where there are any, into a module of the same architecture."""
    checkpoint = Checkpoint(path)
    if checkpoint.is_adapter:
        raise UserError(f"lora.base: {path} holds an adapter alone, not the weights of a model")
    net = network(module)
    state = checkpoint.state_dict()
    prefix = "net." if net is not module else ""
    own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    if differences := state_differences(net.state_dict(), own):
        raise UserError(f"lora.base: {path} was not made by this {type(module).__name__}: {'; '.join(differences)}")
    net.load_state_dict(own)
