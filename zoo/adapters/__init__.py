"""Low-rank adapters (LoRA, DoRA, rsLoRA) of any network: layers, what is frozen, files."""

from zoo.adapters.inject import (
    adapter_of,
    add_adapter,
    choose_layers,
    find_modules,
    frozen_names,
    frozen_params,
    merge_adapter,
    network,
    without_base,
)
from zoo.adapters.loading import load_adapter
from zoo.adapters.peft_files import save_peft
from zoo.adapters.record import AdapterRecord

__all__ = [
    "AdapterRecord",
    "adapter_of",
    "add_adapter",
    "choose_layers",
    "find_modules",
    "frozen_names",
    "frozen_params",
    "load_adapter",
    "merge_adapter",
    "network",
    "save_peft",
    "without_base",
]
