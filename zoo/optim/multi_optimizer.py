"""Several optimizers over one network, combined into one."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import LBFGS, Optimizer

from zoo.optim.closure import evaluate_closure


class MultiOptimizer(Optimizer):
    """Several optimizers over disjoint parameters as one, such as Muon for matrices and AdamW for the rest.

    The groups are the members' own dictionaries, one list after the other, and the state is one table that all members
    share. So schedules, gradient clipping and gradient scalers reach every member, and a checkpoint has torch's two
    usual entries. Each member keeps its own update rule.

    Args:
        optimizers: the members; no parameter may be in two of them.

    Raises:
        ValueError: there is no member, a parameter is in two, or a member is LBFGS (it has to call the closure itself).
    """

    def __init__(self, optimizers: Iterable[Optimizer]) -> None:
        members = list(optimizers)
        if not members:
            raise ValueError("MultiOptimizer was given no optimizer, but needs at least one")
        if any(isinstance(member, LBFGS) for member in members):
            raise ValueError(
                "MultiOptimizer cannot hold LBFGS, which evaluates the loss several times a step: use it alone"
            )
        super().__init__([group for member in members for group in member.param_groups], defaults={})
        self.optimizers = members
        for member in members:
            self.state.update(member.state)
            member.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Let every member take its step.

        Args:
            closure: computes the loss and its gradients again; called once, first.

        Returns:
            The closure's loss, or None.
        """
        loss = evaluate_closure(closure)
        for member in self.optimizers:
            member.step()
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuse new groups after construction: a group does not say which member it is for.

        Args:
            param_group: the group, as for any torch optimizer.

        Raises:
            ValueError: always, after construction.
        """
        if hasattr(self, "optimizers"):
            raise ValueError(
                "MultiOptimizer takes no new groups, as they do not say which member they are for: build it with them"
            )
        super().add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "optimizers": self.optimizers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Distribute groups and state among the members; torch also loads a checkpoint this way."""
        super().__setstate__(state)
        groups = iter(self.param_groups)
        for member in self.optimizers:
            own = [next(groups) for _ in member.param_groups]
            # Some members update old formats here, and may look at the first state they find: it has to be their own.
            params = [p for group in own for p in group["params"] if p in self.state]
            member.__setstate__({"state": defaultdict(dict, {p: self.state[p] for p in params}), "param_groups": own})
            member.state = self.state
