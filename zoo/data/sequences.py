"""Sequences of any lengths as padded batches, and three problems that ask for memory, drawn from a seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from zoo.data.base import BatchTensorDataset, DataModule, split_indices

DIFFICULTY = {"easy": 3.0, "medium": 2.0, "hard": 1.5}
AugmentFn = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class SequenceDataset(Dataset):
    """Sequences of different lengths, held one behind the other; a batch is padded to its own longest.

    A batch is ``((x, lengths), y)``: ``x`` ``(b, t)`` or ``(b, t, d)``, lengths ``(b,)``; without targets
    ``((x, lengths),)``.

    Args:
        values: ``(total,)`` tokens or ``(total, d)`` vectors of all sequences.
        lengths: ``(n,)``, adding up to ``total``, none of them 0.
        targets: ``(n,)`` or ``(n, k)``; null for none.
        padding: what fills the rows behind the ends: a number, or one for each of ``d``.
        change: a random change of a batch of training, from ``x`` and lengths to new ones.
    """

    def __init__(
        self,
        values: Tensor,
        lengths: Tensor,
        targets: Tensor | None = None,
        padding: float | Tensor = 0,
        change: AugmentFn | None = None,
    ) -> None:
        if int(lengths.sum()) != len(values) or (targets is not None and len(targets) != len(lengths)):
            found = f"{len(values)} values, {len(lengths)} lengths that add up to {int(lengths.sum())}"
            more = "" if targets is None else f", {len(targets)} targets"
            raise ValueError(f"lengths of a SequenceDataset must fit, got {found}{more}")
        if len(lengths) and int(lengths.min()) < 1:
            raise ValueError(f"sequence {int(lengths.argmin())} is empty")
        self.values, self.lengths, self.targets = values, lengths, targets
        self.padding, self.change = padding, change
        self._starts = lengths.cumsum(0) - lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        """One sample without a batch dimension, as it is without ``change``."""
        start, length = int(self._starts[index]), int(self.lengths[index])
        inputs = (self.values[start : start + length], self.lengths[index])
        return (inputs,) if self.targets is None else (inputs, self.targets[index])

    def batch(self, indices: Tensor) -> tuple[Any, ...]:
        lengths = self.lengths[indices]
        steps = torch.arange(int(lengths.max()))
        where = self._starts[indices].unsqueeze(1) + steps
        x = self.values[where.clamp_(max=len(self.values) - 1)]
        padding = steps >= lengths.unsqueeze(1)
        x[padding] = self.padding
        inputs = (x, lengths) if self.change is None else self.change(x, lengths)
        return (inputs,) if self.targets is None else (inputs, self.targets[indices])


class _SyntheticData(DataModule):
    def __init__(self, samples: int, val_split: float, test_split: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if samples < 10:
            raise ValueError(f"samples must be 10 or more, got {samples}")
        self.samples, self.val_split, self.test_split = samples, val_split, test_split

    def generate(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor | None]:
        raise ValueError(f"{type(self).__name__} does not say how to generate its samples: write generate(generator)")

    def splits(self) -> dict[str, Dataset]:
        x, y, lengths = self.generate(torch.Generator().manual_seed(self.seed))
        shares = [1 - self.val_split - self.test_split, self.val_split, self.test_split]
        classes = y.ndim == 1 and not y.is_floating_point()
        parts = split_indices(len(y), shares, self.seed, labels=y if classes else None)
        sets = [
            BatchTensorDataset(x[i], y[i]) if lengths is None else _variable_length(x[i], y[i], lengths[i])
            for i in parts
        ]
        return dict(zip(("train", "val", "test"), sets, strict=True))

    def bucket_lengths(self) -> Tensor | None:
        return getattr(self.datasets["train"], "lengths", None)


def _variable_length(x: Tensor, y: Tensor, lengths: Tensor) -> SequenceDataset:
    return SequenceDataset(x[torch.arange(x.shape[1]) < lengths.unsqueeze(1)], lengths, y)


class SyntheticSequences(_SyntheticData):
    """Noise in which two events are hidden, at random times; the class, one of two, is which comes first.

    Inputs ``(b, 50, 16)`` as in the notes, whose labels are random so that nothing can be learned; with ``min_steps``
    they are ``(x, lengths)``. An event is a direction in space, three steps long. The mean over time knows nothing of
    the order, so a network has to remember.

    Args:
        samples: number of sequences.
        steps: their length.
        features: numbers a step.
        difficulty: how loud the events are against noise of deviation 1: ``easy`` 3, ``medium`` 2, ``hard`` 1.5.
        min_steps: draw lengths from here to ``steps``; null gives all sequences the same.
        val_split: share of the sequences kept for validation.
        test_split: share of the sequences kept for the test.
    """

    num_classes = 2
    class_names = ["A before B", "B before A"]

    def __init__(
        self,
        samples: int = 2000,
        steps: int = 50,
        features: int = 16,
        difficulty: Literal["easy", "medium", "hard"] = "medium",
        min_steps: int | None = None,
        val_split: float = 0.1,
        test_split: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(samples, val_split, test_split, **kwargs)
        if difficulty not in DIFFICULTY:
            raise ValueError(f"difficulty must be {', '.join(DIFFICULTY)}, got {difficulty!r}")
        if not 8 <= (steps if min_steps is None else min_steps) <= steps:
            raise ValueError(f"sequences need 8 steps or more, got {steps=}, {min_steps=}")
        self.steps, self.input_dim, self.difficulty, self.min_steps = steps, features, difficulty, min_steps

    def generate(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor | None]:
        n, width = self.samples, 3
        x = torch.randn(n, self.steps, self.input_dim, generator=generator)
        low = self.steps if self.min_steps is None else self.min_steps
        lengths = torch.randint(low, self.steps + 1, (n,), generator=generator)
        events = F.normalize(torch.randn(2, self.input_dim, generator=generator), dim=1)
        y = torch.randint(0, 2, (n,), generator=generator)
        # two different slots of three steps, the earlier one first
        slots = torch.rand(n, self.steps // width, generator=generator)
        slots[torch.arange(self.steps // width) >= (lengths // width).unsqueeze(1)] = 0.0
        times = slots.topk(2, dim=1).indices.sort(dim=1).values * width
        for place in range(2):
            event = DIFFICULTY[self.difficulty] * events[torch.where(y == place, 0, 1)]
            for step in range(width):
                x[torch.arange(n), times[:, place] + step] += event
        return x, y, None if self.min_steps is None else lengths


class AddingProblem(_SyntheticData):
    """Two numbers of a long sequence are marked; the target is their sum (Hochreiter and Schmidhuber 1997).

    https://doi.org/10.1162/neco.1997.9.8.1735, in the form of https://arxiv.org/abs/1504.00941: inputs
    ``(b, steps, 2)``, a number from 0 to 1 and a mark, one in either half; targets ``(b,)``. Who always answers 1 has
    a root mean square error of 0.41.

    Args:
        samples: number of sequences.
        steps: their length: over how many steps the first number must be remembered, at the most.
        val_split: share of the sequences kept for validation.
        test_split: share of the sequences kept for the test.
    """

    input_dim, output_dim = 2, 1
    target_mean, target_std = 1.0, math.sqrt(1 / 6)

    def __init__(
        self, samples: int = 10000, steps: int = 200, val_split: float = 0.1, test_split: float = 0.1, **kwargs: Any
    ) -> None:
        super().__init__(samples, val_split, test_split, **kwargs)
        if steps < 2:
            raise ValueError(f"the adding problem needs 2 steps or more, got {steps=}")
        self.steps = steps

    def generate(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor | None]:
        n, half = self.samples, self.steps // 2
        numbers = torch.rand(n, self.steps, generator=generator)
        first = torch.randint(0, half, (n,), generator=generator)
        second = torch.randint(half, self.steps, (n,), generator=generator)
        rows, marks = torch.arange(n), torch.zeros(n, self.steps)
        marks[rows, first] = marks[rows, second] = 1.0
        return torch.stack([numbers, marks], 2), numbers[rows, first] + numbers[rows, second], None


class CopyTask(_SyntheticData):
    """Repeat a few symbols after a long pause (Hochreiter and Schmidhuber 1997, in the form of Arjovsky et al. 2016).

    https://arxiv.org/abs/1511.06464: inputs are tokens ``(b, 2 symbols + pause + 1)``: the symbols (1 to ``kinds``),
    blanks (0), a sign to begin (``kinds + 1``), blanks. Targets: the symbols at the last steps, as classes from 0.
    Where the answer would be a blank nothing is asked (-100), so that accuracy is that of memory: by guessing,
    ``1 / kinds``.

    Args:
        samples: number of sequences.
        symbols: how many symbols to remember.
        kinds: how many different symbols there are.
        pause: steps between the last symbol and the sign to begin.
        val_split: share of the sequences kept for validation.
        test_split: share of the sequences kept for the test.
    """

    def __init__(
        self,
        samples: int = 5000,
        symbols: int = 10,
        kinds: int = 8,
        pause: int = 30,
        val_split: float = 0.1,
        test_split: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(samples, val_split, test_split, **kwargs)
        if symbols < 1 or kinds < 2 or pause < 1:
            least = "symbols=1, kinds=2, pause=1"
            raise ValueError(f"the copy task needs at least {least}, got {symbols=}, {kinds=}, {pause=}")
        self.symbols, self.kinds, self.pause = symbols, kinds, pause
        self.num_classes, self.vocab_size = kinds, kinds + 2
        self.class_names = [str(i + 1) for i in range(kinds)]

    def generate(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor | None]:
        symbols = torch.randint(1, self.kinds + 1, (self.samples, self.symbols), generator=generator)
        x = torch.zeros(self.samples, 2 * self.symbols + self.pause + 1, dtype=torch.long)
        x[:, : self.symbols], x[:, self.symbols + self.pause] = symbols, self.kinds + 1
        nothing = torch.full((self.samples, self.symbols + self.pause + 1), -100)
        return x, torch.cat([nothing, symbols - 1], 1), None
