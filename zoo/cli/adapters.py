"""Adapters on the command line: the slot ``lora``, and ``--adapter`` of commands that use a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L

from zoo.adapters import adapter_of, load_adapter, network, save_peft
from zoo.callbacks import LoRA
from zoo.checkpoints import Checkpoint, Weights
from zoo.cli.tables import number_table

EVALUATION = ("validate", "test", "predict")


class AdapterWeights(L.Callback):
    """Add an adapter to the weights of a model, once those are there.

    Args:
        path: checkpoint of a run with ``lora``, or folder of PEFT.
        after_checkpoint: whether the weights of the model come from a checkpoint, which the trainer will load.
        weights: ``auto`` takes EMA weights of the adapter if there are any.
    """

    def __init__(self, path: str, after_checkpoint: bool, weights: Weights = "auto") -> None:
        self.path = path
        self.after_checkpoint = after_checkpoint
        self.weights: Weights = weights
        self.is_loaded = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if not self.after_checkpoint:
            self._load(pl_module)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._load(pl_module)

    def _load(self, module: L.LightningModule) -> None:
        if not self.is_loaded:
            load_adapter(module, self.path, self.weights)
            self.is_loaded = True


def apply_lora(cli: Any) -> None:
    """Give the model of a command the adapter that ``lora`` describes, before a run is opened.

    To evaluate a whole checkpoint, with the config of a run that adapted it, is to evaluate the base.
    """
    lora = cli.config_init.get("lora")
    if lora is not None and (cli.command.name not in EVALUATION or _is_adapter(cli)):
        lora.apply(cli.model)


def adapter_callbacks(cli: Any) -> list[L.Callback]:
    """Return the callbacks that bring an adapter into an evaluation."""
    if cli.command.name not in EVALUATION:
        return []
    path = cli.config.get("adapter")
    if path:
        return [AdapterWeights(path, bool(cli.config.get("ckpt_path")), cli.config.get("weights") or "auto")]
    lora = cli.config_init.get("lora")
    if isinstance(lora, LoRA) and _is_adapter(cli):
        return [lora]
    return []


def _is_adapter(cli: Any) -> bool:
    path = cli.config.get("ckpt_path")
    return bool(path) and Checkpoint(path).is_adapter


def adapter_report(module: L.LightningModule) -> str | None:
    """Return a table of the adapted layers, with the same layers of all blocks in a row; None without an adapter."""
    injected = adapter_of(module)
    if injected is None:
        return None
    record = injected.record
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    total = sum(parameter.numel() for parameter in module.parameters())
    trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    for name, parts in record.layers.items():
        pattern = ".".join("*" if piece.isdigit() else piece for piece in name.split("."))
        key = (pattern, "+".join(parts) or "all")
        row = rows.setdefault(key, {"lora": pattern, "parts": key[1], "layers": 0})
        row["layers"] += 1
    for name in record.modules_to_save:
        rows[name, ""] = {"lora": name, "parts": "trained whole", "layers": 1}
    share = 100 * trained / total
    kind = "DoRA" if record.dora else "LoRA"
    scale = f"{kind}: rank {record.rank}, scale {record.scale:g}, {trained:,} of {total:,} parameters ({share:.2g} %)"
    return f"{number_table(list(rows.values()))}\n{scale}"


def export_adapter(path: str, adapter: str, out: Path, weights: Weights = "auto") -> list[str]:
    """Write an adapter as a folder of PEFT; return the names in it.

    Args:
        path: the base: a checkpoint, or a Hugging Face folder of a GPT-2 or LLaMA model.
        adapter: checkpoint of a run with ``lora``.
        out: the folder, new or empty.
        weights: ``auto`` takes EMA weights if there are any.
    """
    if (Path(path) / "config.json").is_file():
        from zoo.cli.text_generation import load_hugging_face_folder

        model: L.LightningModule = load_hugging_face_folder(Path(path))
    else:
        model = Checkpoint(path).build(weights)
    load_adapter(model, adapter, weights, merge=False)
    save_peft(network(model), out)
    return sorted(item.name for item in out.iterdir())
