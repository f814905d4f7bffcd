"""Changes to a network between reading its weights and building its optimizer, such as low-rank adapters."""

from abc import ABC, abstractmethod

from torch import nn


class NetAdapter(ABC):
    """Base of what a task lets change its network, by its option ``adapters``.

    The run's config and its checkpoints hold class path and arguments, so that a resumed or tested model is adapted
    again before its weights are loaded.
    """

    @abstractmethod
    def adapt(self, net: nn.Module) -> None:
        """Change a network in place: replace submodules, freeze parameters.

        Args:
            net: the network, with its published weights where it started from any.
        """
