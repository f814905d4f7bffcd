"""Tensors of files by name, each read or put together only when it is asked for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor


class NamedTensors(Mapping[str, Tensor]):
    """Tensors by name, each read or made when it is asked for.

    Args:
        names: the names, and for each what is needed to get its tensor.
    """

    def __init__(self, names: Mapping[str, Any]) -> None:
        self.names = names

    @abstractmethod
    def __getitem__(self, name: str) -> Tensor:
        """Read or make a tensor."""

    def __contains__(self, name: object) -> bool:
        return name in self.names  # without reading it

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


class LazyTensors(NamedTensors):
    """Tensors in one or several memory-mapped files.

    Args:
        names: file of each.
        opened: the files: of safetensors, or mappings of tensors.
    """

    def __init__(self, names: Mapping[str, Path], opened: Mapping[Path, Any]) -> None:
        super().__init__(names)
        self.opened = opened

    def __getitem__(self, name: str) -> Tensor:
        file = self.opened[self.names[name]]
        if isinstance(file, Mapping):
            return file[name]
        return file.get_tensor(name)


class RenamedTensors(NamedTensors):
    """Tensors by other names than those in their file.

    Args:
        state: the tensors.
        names: from the new name to the file's.
    """

    def __init__(self, state: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
        super().__init__(names)
        self.state = state

    def __getitem__(self, name: str) -> Tensor:
        return self.state[self.names[name]]
