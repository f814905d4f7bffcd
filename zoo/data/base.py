"""The base of all datasets: seeded splits, whole-batch loading, exact position, the data spec for the model."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from zoo.data.sampler import (
    BucketBatchSampler,
    ResumableBatchSampler,
    SequentialBatchSampler,
    ShardedBatchSampler,
    mix_seeds,
)
from zoo.distributed import is_main_process

# What a dataset may tell a model. A model that has an argument of this name, left at None, is given the data's value.
SPEC_FIELDS = (
    "num_classes",
    "class_names",
    "task",
    "input_dim",
    "output_dim",
    "target_mean",
    "target_std",
    "in_channels",
    "image_size",
    "vocab_size",
    "src_vocab_size",
    "tgt_vocab_size",
    "pad_id",
    "bos_id",
    "eos_id",
    "max_new_tokens",
    "block_size",
    "horizon",
    "future_dim",
)


class BatchTensorDataset(Dataset):
    """A dataset held in memory as tensors whose first dimension counts the samples; a batch is one indexing."""

    def __init__(self, *tensors: Tensor) -> None:
        if len({len(t) for t in tensors}) != 1:
            raise ValueError(f"tensors of one length needed, got {[len(t) for t in tensors]}")
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return tuple(t[index] for t in self.tensors)

    def batch(self, indices: Tensor) -> tuple[Tensor, ...]:
        return tuple(t.index_select(0, indices) for t in self.tensors)


class _BatchDataset(Dataset):
    """Answers a whole batch of indices; random augmentation is seeded by the batch, whichever worker does it."""

    def __init__(self, dataset: Dataset, collate: Callable[[list], Any], seeded: bool) -> None:
        self.dataset, self.collate = dataset, collate
        self.seeded = seeded and not isinstance(dataset, BatchTensorDataset)  # which draws nothing

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, key: tuple[int, Tensor]) -> Any:
        seed, indices = key
        if self.seeded:
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed & 0xFFFFFFFF)
        if (batch := getattr(self.dataset, "batch", None)) is not None:
            return batch(indices)
        return self.collate([self.dataset[i] for i in indices.tolist()])


def _ignore_ctrl_c(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process finishes its step and stops the workers itself


def _identity(batch: Any) -> Any:
    return batch


class _Loader(DataLoader):
    # Lightning asks for the first iterator before it has set the epoch and restored the loops; wait for the first next.
    def __iter__(self) -> Iterator:  # type: ignore[override]
        if self.num_workers or self.pin_memory:
            yield from super().__iter__()
        else:  # the same without the iterator's bookkeeping
            for key in self.sampler:
                yield self.dataset[key]


class DataModule(L.LightningDataModule):
    """A dataset in three splits. Subclasses write ``splits`` and set the data spec fields that they know (``num_classes``, ...).

    Args:
        batch_size: samples per step and process.
        eval_batch_size: samples per batch in validation, test and prediction; null means 4 times ``batch_size``.
        num_workers: loading processes; 0 loads in the main one.
        pin_memory: page-locked batches; null means only when training on CUDA.
        persistent_workers: keep the workers from one epoch to the next.
        drop_last: leave out a last training batch that is not full.
        seed: of the split into train, validation and test.
    """

    collate: Callable[[list], Any] = staticmethod(default_collate)

    def __init__(
        self,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        pin_memory: bool | None = None,
        persistent_workers: bool = True,
        drop_last: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1 or (eval_batch_size is not None and eval_batch_size < 1):
            raise ValueError(f"batch sizes start at 1, got batch_size={batch_size}, eval_batch_size={eval_batch_size}")
        if num_workers < 0:
            raise ValueError(f"num_workers must be 0 or more, got {num_workers}")
        # Not to the loggers: Lightning refuses an option, as image_size, that model and data have in different values.
        self.save_hyperparameters(logger=False)
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or 4 * batch_size
        self.num_workers, self.pin_memory, self.persistent_workers = num_workers, pin_memory, persistent_workers
        self.drop_last, self.seed = drop_last, seed
        self._done = 0

    def splits(self) -> dict[str, Dataset]:
        """Return the datasets by name: ``train``, ``val``, ``test``, and ``predict`` where it is not the test set."""
        raise ValueError(f"{type(self).__name__} does not say what its splits are: write splits()")

    def override_spec(self, name: str, value: Any) -> bool:
        """Change to the value of a spec field that the user gave the model, where the data can; return whether it did."""
        return False

    def check_model(self, model: Any) -> None:
        """Raise ValueError where a model cannot take this data; called before a run folder is made."""

    @cached_property
    def datasets(self) -> dict[str, Dataset]:
        return self.splits()

    def bucket_lengths(self) -> Tensor | None:
        """Lengths of the training samples where batches should hold samples of similar length; None where not."""
        return None

    def setup(self, stage: str) -> None:
        _ = self.datasets

    def train_dataloader(self) -> DataLoader:
        ordered = self.trainer is not None and self.trainer.overfit_batches > 0  # type: ignore[attr-defined]
        lengths = None if ordered else self.bucket_lengths()
        kind = (
            SequentialBatchSampler
            if ordered
            else ResumableBatchSampler
            if lengths is None
            else partial(BucketBatchSampler, lengths)
        )
        sampler = kind(
            len(self.datasets["train"]),  # type: ignore[arg-type]
            self.batch_size,
            shuffle=not ordered,
            seed=run_seed(),
            drop_last=self.drop_last,
            skip=self._pop_position,
            **self._rank_and_world(),
        )
        return self._loader("train", sampler, seeded=True)

    def val_dataloader(self) -> DataLoader:
        return self._eval_loader("val")

    def test_dataloader(self) -> DataLoader:
        return self._eval_loader("test")

    def predict_dataloader(self) -> DataLoader:
        return self._eval_loader("predict" if "predict" in self.datasets else "test")

    def _eval_loader(self, split: str) -> DataLoader:
        if split not in self.datasets:
            raise ValueError(f"{type(self).__name__} has no {split} split, only {', '.join(self.datasets)}")
        n: int = len(self.datasets[split])  # type: ignore[arg-type]
        if not n:
            share = self.hparams.get(f"{split}_split")
            why = "" if share is None else f", as {split}_split is {share}: give a share above 0"
            raise ValueError(f"{type(self).__name__} has no samples in its {split} split{why}")
        return self._loader(split, ShardedBatchSampler(n, self.eval_batch_size, **self._rank_and_world()), seeded=False)

    def _loader(self, split: str, sampler: ResumableBatchSampler | ShardedBatchSampler, seeded: bool) -> DataLoader:
        workers, accelerator = self.num_workers, type(self.trainer.accelerator).__name__ if self.trainer else ""
        return _Loader(
            _BatchDataset(self.datasets[split], self.collate, seeded),
            batch_size=None,
            sampler=sampler,
            collate_fn=_identity,  # the dataset answers whole batches
            num_workers=workers,
            pin_memory="CUDA" in accelerator if self.pin_memory is None else self.pin_memory,
            persistent_workers=self.persistent_workers and workers > 0,
            worker_init_fn=_ignore_ctrl_c,
            generator=torch.Generator().manual_seed(mix_seeds(run_seed(), workers)),  # leaves the global one alone
        )

    def _rank_and_world(self) -> dict[str, int]:
        if self.trainer is None:
            return {"rank": 0, "world": 1}
        kwargs = getattr(self.trainer.strategy, "distributed_sampler_kwargs", None) or {"rank": 0, "num_replicas": 1}
        return {"rank": kwargs["rank"], "world": kwargs["num_replicas"]}

    def _pop_position(self) -> int:
        done, self._done = self._done, 0
        return done

    def state_dict(self) -> dict[str, Any]:
        """Batches of the current epoch that have been trained on: a resumed run goes on behind them."""
        if self.trainer is None or not (total := self.trainer.num_training_batches) or total == float("inf"):
            return {"batches_done": 0}
        return {"batches_done": self.trainer.fit_loop.epoch_loop.batch_progress.current.processed % int(total)}  # type: ignore

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._done = state_dict["batches_done"]


def say(text: str) -> None:
    """Tell the user, once and not by every process, what was done to the data."""
    if is_main_process():
        print(f"zoo: {text}", file=sys.stderr)


def run_seed() -> int:
    """The seed of the run (``seed_everything``), which decides the order of the samples; 0 where none was set."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))


def split_indices(n: int, shares: Sequence[float], seed: int, labels: Tensor | None = None) -> list[Tensor]:
    """Split ``range(n)`` at random into parts of the given shares.

    Args:
        n: number of samples.
        shares: of the parts, adding up to 1; the last takes what rounding leaves.
        seed: decides the split, on every machine alike.
        labels: ``(n,)`` classes; given, each part holds each class in the same share.
    """
    if abs(sum(shares) - 1) > 1e-6 or min(shares) < 0:
        raise ValueError(f"shares of a split must be positive and add up to 1, got {list(shares)}")
    generator = torch.Generator().manual_seed(seed)
    groups = [torch.arange(n)] if labels is None else [(labels == c).nonzero().flatten() for c in labels.unique()]
    parts: list[list[Tensor]] = [[] for _ in shares]
    for group in groups:
        shuffled = group[torch.randperm(len(group), generator=generator)]
        stops = [round(sum(shares[: i + 1]) * len(group)) for i in range(len(shares))]
        for part, start, stop in zip(parts, [0, *stops], stops, strict=False):
            part.append(shuffled[start:stop])
    return [torch.cat(part).sort().values for part in parts]
