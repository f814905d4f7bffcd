"""The base of all datasets: seeded splits, whole-batch loading, exact resume, and the data spec for the model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Self

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from zoo._lightning import weigh_logged_means
from zoo.checkpoints import load_upgraded
from zoo.data.loading import BatchTensorDataset as BatchTensorDataset
from zoo.data.loading import batch_loader
from zoo.data.new_samples import NewSamples, tensor_samples
from zoo.data.sampler import (
    BucketBatchSampler,
    ResumableBatchSampler,
    SequentialBatchSampler,
    ShardedBatchSampler,
    mix_seeds,
)
from zoo.data.spec import DataSpec
from zoo.trust.class_paths import checked


class DataModule(L.LightningDataModule):
    """A dataset in three splits. Subclasses implement ``splits()`` and say what a model needs to know in ``spec()``.

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
    # Arguments that `fitted_hparams` fills in. With a checkpoint they are the checkpoint's, unless given as options.
    fitted_names: ClassVar[tuple[str, ...]] = ()

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
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or 4 * batch_size
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self.persistent_workers = persistent_workers
        self.drop_last = drop_last
        self.seed = seed
        self._datasets: dict[str, Dataset] | None = None
        self._predict_dataset: Dataset | None = None
        self._new_samples: NewSamples | None = None
        self._predicts_test = False
        self._batches_done = 0

    # What subclasses implement ----------------------------------------------------------------------------------------

    def splits(self) -> dict[str, Dataset]:
        """Return the datasets ``train``, ``val`` and ``test``; a missing one is an error only where it is needed."""
        raise ValueError(f"{type(self).__name__} has no splits: implement splits()")

    def predict_dataset(self) -> Dataset | None:
        """Return new samples for ``predict``; None predicts the test split.

        What it needs of the training data (a vocabulary, a mean) should come from the hyperparameters of a checkpoint
        where they have it, so that the training data need not be there.
        """
        return None

    def read_samples(self, source: Any) -> NewSamples:
        """Read new samples for ``predict``, with the state that a checkpoint keeps; no file of training is read.

        Args:
            source: paths of files or folders, or objects in memory of the kind of this data.

        Raises:
            UserError: they are of another kind, or there are none.
        """
        return tensor_samples(source, f"a tensor with the inputs of {type(self).__name__}")

    def spec(self) -> DataSpec:
        """Return what a model needs to know; by default the attributes that are named like fields of ``DataSpec``."""
        return DataSpec.from_attributes(self)

    def override_spec(self, name: str, value: Any) -> bool:
        """Adapt the data to the value of a spec field that the user gave the model; return whether that is possible."""
        return False

    def fitted_hparams(self) -> dict[str, Any]:
        """Return hyperparameters that were computed from the training data, such as a vocabulary, for checkpoints."""
        return {}

    def predict_columns(self) -> dict[str, Sequence[Any]]:
        """Return columns that identify the samples of ``predict``, in order; predictions are written beside them."""
        if self._new_samples is not None:
            return dict(self._new_samples.columns)
        names = getattr(self, "predict_names", None)
        if names is None:
            count = len(self.dataset("predict"))  # type: ignore[arg-type]
            return {"row": range(1, count + 1)}
        return {"file": names}

    def predict_targets(self) -> Sequence[Any] | None:
        """Return the true targets of the samples of ``predict``, in order; null where they are not known."""
        if self._new_samples is not None:
            return self._new_samples.targets
        if self.predict_split != "test":
            return None
        return known_targets(self.dataset("test"), getattr(self, "class_names", None))

    @property
    def new_samples(self) -> NewSamples | None:
        """The samples of ``predict_samples``."""
        return self._new_samples

    def predict_samples(self, samples: NewSamples | None) -> None:
        """Let ``predict`` read new samples, see ``read_samples``; null: those of its options, or the test split."""
        self._new_samples = samples
        self._predict_dataset = None

    def predict_test(self) -> None:
        """Let ``predict`` read the test split, whatever its options name."""
        self._predicts_test = True
        self._predict_dataset = None

    def check_model(self, model: Any) -> None:
        """Raise ValueError where a model cannot take this data; called before a run folder is made."""

    def bucket_lengths(self) -> Tensor | None:
        """Return the lengths of the training samples to batch similar ones together; None does not sort by length."""
        return None

    # Datasets ---------------------------------------------------------------------------------------------------------

    @property
    def datasets(self) -> dict[str, Dataset]:
        """The splits, built when they are first needed; ``predict`` is among them once new samples were read."""
        if self._datasets is None:
            self._datasets = self.build_datasets()
        if self._predict_dataset is None:
            return self._datasets
        return {**self._datasets, "predict": self._predict_dataset}

    def build_datasets(self) -> dict[str, Dataset]:
        """Return ``splits()``; the base of a kind of data may wrap them here."""
        return self.splits()

    def reset_datasets(self) -> None:
        """Drop the datasets; they are built anew when they are next needed."""
        self._datasets = None
        self._predict_dataset = None

    @property
    def predict_split(self) -> str:
        """The name of what ``predict`` reads: ``predict`` where there are new samples, else ``test``."""
        if self._predicts_test:
            return "test"
        if self._predict_dataset is None and self._new_samples is not None:
            self._predict_dataset = self._new_samples.dataset
        if self._predict_dataset is None:
            self._predict_dataset = self.predict_dataset()
        if self._predict_dataset is None:
            return "test"
        return "predict"

    def dataset(self, split: str) -> Dataset:
        """Return the dataset of a split, ``predict`` among them."""
        if split == "predict":
            split = self.predict_split
        if split == "predict":
            assert self._predict_dataset is not None
            return self._predict_dataset
        if split not in self.datasets:
            raise ValueError(f"{type(self).__name__} has no {split} split, only {', '.join(self.datasets)}")
        return self.datasets[split]

    def setup(self, stage: str) -> None:
        # New samples are predicted without the training data, which may be gone.
        if stage != "predict" or self.predict_split == "test":
            _ = self.datasets
        self.hparams.update(self.fitted_hparams())

    # Loaders ----------------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader:
        arguments: dict[str, Any] = {
            "n": len(self.datasets["train"]),  # type: ignore[arg-type]
            "batch_size": self.batch_size,
            "seed": run_seed(),
            "drop_last": self.drop_last,
            "skip": self._pop_position,
            **self._rank_and_world(),
        }
        if self.trainer is not None and self.trainer.overfit_batches > 0:  # type: ignore[attr-defined]
            sampler = SequentialBatchSampler(**arguments)
        elif (lengths := self.bucket_lengths()) is not None:
            sampler = BucketBatchSampler(lengths, shuffle=True, **arguments)
        else:
            sampler = ResumableBatchSampler(shuffle=True, **arguments)
        return self._loader("train", sampler, seeded=True)

    def val_dataloader(self) -> DataLoader:
        return self._eval_loader("val")

    def test_dataloader(self) -> DataLoader:
        return self._eval_loader("test")

    def predict_dataloader(self) -> DataLoader:
        return self._eval_loader(self.predict_split)

    def _eval_loader(self, split: str) -> DataLoader:
        n = len(self.dataset(split))  # type: ignore[arg-type]
        if n == 0:
            why = ""
            option = f"{split}_split"
            if option in self.hparams:
                why = f", as {option} is {self.hparams[option]}: set {option} above 0"
            raise ValueError(f"{type(self).__name__} has no samples in its {split} split{why}")
        sampler = ShardedBatchSampler(n, self.eval_batch_size, **self._rank_and_world())
        return self._loader(split, sampler, seeded=False)

    def _loader(self, split: str, sampler: ResumableBatchSampler | ShardedBatchSampler, seeded: bool) -> DataLoader:
        pin_memory = self.pin_memory
        if pin_memory is None:
            pin_memory = self.trainer is not None and "CUDA" in type(self.trainer.accelerator).__name__
        return batch_loader(
            self.dataset(split),
            sampler,
            self.collate,
            seeded,
            num_workers=self.num_workers,
            pin_memory=pin_memory,
            persistent_workers=self.persistent_workers,
            seed=mix_seeds(run_seed(), self.num_workers),
        )

    def ordered_loader(self, split: str) -> DataLoader:
        """Return all batches of a split in order, ``batch_size`` samples each, whatever the number of processes."""
        n = len(self.dataset(split))  # type: ignore[arg-type]
        return self._loader(split, ShardedBatchSampler(n, self.batch_size), seeded=False)

    def _rank_and_world(self) -> dict[str, int]:
        """Return this process's rank among those that share the data, and their number."""
        strategy = getattr(self.trainer, "strategy", None)
        distributed = getattr(strategy, "distributed_sampler_kwargs", None)
        if not distributed:
            return {"rank": 0, "world": 1}
        weigh_logged_means()  # the shards of validation and test may be uneven by a sample
        return {"rank": distributed["rank"], "world": distributed["num_replicas"]}

    # Checkpoints ------------------------------------------------------------------------------------------------------

    def _pop_position(self) -> int:
        """Return how many batches of this epoch were trained on before a resume, the first time only."""
        done = self._batches_done
        self._batches_done = 0
        return done

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: Any,
        map_location: Any = None,
        hparams_file: Any = None,
        weights_only: bool | None = True,
        **kwargs: Any,
    ) -> Self:
        """Load data as Lightning does, also from a checkpoint of an older zoo, whose names have changed since."""
        file = load_upgraded(checkpoint_path, cls)
        with checked("checkpoint", cls):
            return super().load_from_checkpoint(file, map_location, hparams_file, weights_only, **kwargs)

    def state_dict(self) -> dict[str, Any]:
        """Return the number of batches of the current epoch that were trained on: a resumed run continues there."""
        total = 0 if self.trainer is None else self.trainer.num_training_batches
        # An iterable dataset of unknown length has infinitely many.
        if self.trainer is None or not total or total == float("inf"):
            return {"batches_done": 0}
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.current
        return {"batches_done": progress.processed % int(total)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._batches_done = state_dict["batches_done"]


def known_targets(dataset: Any, class_names: Sequence[str] | None) -> list[Any] | None:
    """Return the targets of a dataset that has one for each sample: numbers, or names of classes; else None."""
    targets = getattr(dataset, "targets", None)
    if targets is None:
        targets = getattr(dataset, "labels", None)
    tensors = getattr(dataset, "tensors", None)
    if targets is None and isinstance(dataset, BatchTensorDataset) and tensors is not None and len(tensors) == 2:
        targets = tensors[1]
    if not isinstance(targets, Tensor) or targets.ndim != 1:
        return None
    if targets.is_floating_point() or class_names is None:
        return targets.tolist()
    return [class_names[i] for i in targets.tolist()]


def spec_of(datamodule: Any, names: Iterable[str] | None = None) -> DataSpec:
    """Return the data spec of any LightningDataModule.

    Args:
        datamodule: one of zoo's, whose ``spec()`` is asked, or any other object, whose attributes are read.
        names: fields that are needed; others of an object that is not zoo's are not read, as properties of it may be
            expensive or raise before ``setup``. Null reads all.
    """
    if isinstance(datamodule, DataModule):
        return datamodule.spec()
    return DataSpec.from_attributes(datamodule, names)


def run_seed() -> int:
    """Return the seed of the run (``seed_everything``), which decides the order of the samples; 0 where none is set."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))


def split_indices(n: int, shares: Sequence[float], seed: int, labels: Tensor | None = None) -> list[Tensor]:
    """Split ``range(n)`` at random into parts of the given shares.

    Args:
        n: number of samples.
        shares: of the parts, adding up to 1; the last takes what rounding leaves.
        seed: decides the split, on every machine alike.
        labels: ``(n,)`` class indices for a stratified split: each part holds each class in the same share.

    Returns:
        For each part its sorted indices.
    """
    if abs(sum(shares) - 1) > 1e-6 or min(shares) < 0:
        raise ValueError(f"shares of a split must be positive and add up to 1, got {list(shares)}")
    generator = torch.Generator().manual_seed(seed)
    if labels is None:
        groups = [torch.arange(n)]
    else:
        groups = [(labels == label).nonzero().flatten() for label in labels.unique()]
    parts: list[list[Tensor]] = [[] for _ in shares]
    for group in groups:
        shuffled = group[torch.randperm(len(group), generator=generator)]
        start = 0
        for i, part in enumerate(parts):
            # Cumulative shares are rounded, so that rounding errors do not add up.
            stop = round(sum(shares[: i + 1]) * len(group))
            part.append(shuffled[start:stop])
            start = stop
    nothing = torch.empty(0, dtype=torch.long)  # as there may be no class at all
    return [torch.cat([nothing, *part]).sort().values for part in parts]


def split_train_val_test(
    n: int,
    val_split: float,
    test_split: float,
    seed: int,
    labels: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return the sorted indices of ``train``, ``val`` and ``test``; the arguments are those of ``split_indices``."""
    shares = [1 - val_split - test_split, val_split, test_split]
    parts = split_indices(n, shares, seed, labels)
    return dict(zip(("train", "val", "test"), parts, strict=True))
