"""Sequences of different lengths as padded batches, and three synthetic problems that need memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from zoo.data.base import BatchTensorDataset
from zoo.data.synthetic import SyntheticData

AMPLITUDES = {"easy": 3.0, "medium": 2.0, "hard": 1.5}
EVENT_STEPS = 3
IGNORE_INDEX = -100
AugmentFn = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class SequenceDataset(Dataset):
    """Sequences of different lengths, stored one behind the other; a batch is padded to its own longest.

    A batch is ``((x, lengths), y)``: ``x`` ``(b, t)`` or ``(b, t, d)``, lengths ``(b,)``; without targets
    ``((x, lengths),)``.

    Args:
        values: ``(total,)`` token ids or ``(total, d)`` vectors of all sequences.
        lengths: ``(n,)``, adding up to ``total``, none of them 0.
        targets: ``(n,)`` or ``(n, k)``; null for none.
        padding: value of the padded steps: a number, or one for each of ``d``.
        change: random augmentation of a training batch, from ``x`` and lengths to new ones.
    """

    def __init__(
        self,
        values: Tensor,
        lengths: Tensor,
        targets: Tensor | None = None,
        padding: float | Tensor = 0,
        change: AugmentFn | None = None,
    ) -> None:
        total = int(lengths.sum())
        if total != len(values) or (targets is not None and len(targets) != len(lengths)):
            sizes = f"{len(values)} values, {len(lengths)} lengths that add up to {total}"
            if targets is not None:
                sizes += f", {len(targets)} targets"
            raise ValueError(f"lengths of a SequenceDataset must fit, got {sizes}")
        if len(lengths) and int(lengths.min()) < 1:
            raise ValueError(f"sequence {int(lengths.argmin())} is empty")
        self.values = values
        self.lengths = lengths
        self.targets = targets
        self.padding = padding
        self.change = change
        self._starts = lengths.cumsum(0) - lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        """Return one sample without a batch dimension, and without ``change``."""
        start = int(self._starts[index])
        stop = start + int(self.lengths[index])
        inputs = (self.values[start:stop], self.lengths[index])
        if self.targets is None:
            return (inputs,)
        return inputs, self.targets[index]

    def batch(self, indices: Tensor) -> tuple[Any, ...]:
        lengths = self.lengths[indices]
        steps = torch.arange(int(lengths.max()))
        rows = self._starts[indices].unsqueeze(1) + steps  # (b, t)
        x = self.values[rows.clamp_(max=len(self.values) - 1)]  # (b, t) or (b, t, d)
        x[steps >= lengths.unsqueeze(1)] = self.padding
        inputs = (x, lengths)
        if self.change is not None:
            inputs = self.change(x, lengths)
        if self.targets is None:
            return (inputs,)
        return inputs, self.targets[indices]


class SyntheticSequences(SyntheticData):
    """Noise with two hidden events at random times; the class, one of two, is which comes first.

    Inputs ``(b, 50, 16)``; with ``min_steps`` they are ``(x, lengths)``. An event is a direction in the space of the
    features, three steps long. The mean over time does not depend on the order, so a network needs memory.

    Args:
        samples: number of sequences.
        steps: length of the sequences.
        features: number of features of a step.
        difficulty: amplitude of the events in noise of standard deviation 1: ``easy`` 3, ``medium`` 2, ``hard`` 1.5.
        min_steps: sample lengths from here to ``steps``; null gives all sequences the same length.
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
        if difficulty not in AMPLITUDES:
            raise ValueError(f"difficulty must be {', '.join(AMPLITUDES)}, got {difficulty!r}")
        shortest = steps if min_steps is None else min_steps
        if not 8 <= shortest <= steps:
            raise ValueError(f"sequences need 8 steps or more, got {steps=}, {min_steps=}")
        self.steps = steps
        self.shortest = shortest
        self.input_dim = features
        self.difficulty = difficulty
        self.has_lengths = min_steps is not None

    def generate(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        n = self.samples
        rows = torch.arange(n)
        x = torch.randn(n, self.steps, self.input_dim, generator=generator)
        lengths = torch.randint(self.shortest, self.steps + 1, (n,), generator=generator)
        events = F.normalize(torch.randn(2, self.input_dim, generator=generator), dim=1)
        y = torch.randint(0, 2, (n,), generator=generator)
        # Two different slots within each sequence, the earlier one first.
        num_slots = self.steps // EVENT_STEPS
        priorities = torch.rand(n, num_slots, generator=generator)
        priorities[torch.arange(num_slots) >= (lengths // EVENT_STEPS).unsqueeze(1)] = 0.0
        slots = priorities.topk(2, dim=1).indices.sort(dim=1).values
        starts = slots * EVENT_STEPS  # (n, 2)
        for place in range(2):
            which = torch.where(y == place, 0, 1)
            event = AMPLITUDES[self.difficulty] * events[which]  # (n, d)
            for step in range(EVENT_STEPS):
                x[rows, starts[:, place] + step] += event
        return x, y, lengths

    def build_dataset(self, *parts: Tensor) -> Dataset:
        x, y, lengths = parts
        if not self.has_lengths:
            return BatchTensorDataset(x, y)
        within = torch.arange(x.shape[1]) < lengths.unsqueeze(1)  # (n, t)
        return SequenceDataset(x[within], lengths, y)

    def new_dataset(self, x: Tensor) -> Dataset:
        dataset = super().new_dataset(x)
        if not self.has_lengths:
            return dataset
        lengths = torch.full((len(x),), x.shape[1])
        return SequenceDataset(x.flatten(0, 1), lengths)

    def bucket_lengths(self) -> Tensor | None:
        return getattr(self.datasets["train"], "lengths", None)


class AddingProblem(SyntheticData):
    """The adding problem: the target is the sum of two marked numbers in a long sequence (Hochreiter and Schmidhuber
    1997, https://doi.org/10.1162/neco.1997.9.8.1735), in the form of https://arxiv.org/abs/1504.00941.

    Inputs ``(b, steps, 2)``, a number from 0 to 1 and a mark, one in either half; targets ``(b,)``. The constant
    prediction 1 has a root mean square error of 0.41.

    Args:
        samples: number of sequences.
        steps: length of the sequences, so at most how long the first number must be remembered.
        val_split: share of the sequences kept for validation.
        test_split: share of the sequences kept for the test.
    """

    input_dim = 2
    output_dim = 1
    target_mean = 1.0
    target_std = math.sqrt(1 / 6)

    def __init__(
        self,
        samples: int = 10000,
        steps: int = 200,
        val_split: float = 0.1,
        test_split: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(samples, val_split, test_split, **kwargs)
        if steps < 2:
            raise ValueError(f"the adding problem needs 2 steps or more, got {steps=}")
        self.steps = steps

    def generate(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        n = self.samples
        half = self.steps // 2
        numbers = torch.rand(n, self.steps, generator=generator)
        first = torch.randint(0, half, (n,), generator=generator)
        second = torch.randint(half, self.steps, (n,), generator=generator)
        rows = torch.arange(n)
        marks = torch.zeros(n, self.steps)
        marks[rows, first] = 1.0
        marks[rows, second] = 1.0
        x = torch.stack([numbers, marks], 2)  # (n, t, 2)
        return x, numbers[rows, first] + numbers[rows, second]


class CopyTask(SyntheticData):
    """The copy task: repeat a few symbols after a long pause (Hochreiter and Schmidhuber 1997), in the form of Arjovsky
    et al. 2016, https://arxiv.org/abs/1511.06464.

    Inputs are tokens ``(b, 2 symbols + pause + 1)``: the symbols (1 to ``kinds``), blanks (0), a delimiter
    (``kinds + 1``), blanks. Targets: the symbols at the last steps, as classes from 0, and -100 (ignored) elsewhere, so
    that accuracy measures memory alone: guessing has ``1 / kinds``.

    Args:
        samples: number of sequences.
        symbols: number of symbols to remember.
        kinds: number of different symbols.
        pause: steps between the last symbol and the delimiter.
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
        self.symbols = symbols
        self.kinds = kinds
        self.pause = pause
        self.num_classes = kinds
        self.vocab_size = kinds + 2
        self.class_names = [str(i + 1) for i in range(kinds)]

    def generate(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        symbols = torch.randint(1, self.kinds + 1, (self.samples, self.symbols), generator=generator)
        x = torch.zeros(self.samples, 2 * self.symbols + self.pause + 1, dtype=torch.long)
        x[:, : self.symbols] = symbols
        x[:, self.symbols + self.pause] = self.kinds + 1
        ignored = torch.full((self.samples, self.symbols + self.pause + 1), IGNORE_INDEX)
        return x, torch.cat([ignored, symbols - 1], 1)
