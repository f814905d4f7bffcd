import random

import lightning as L
import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from zoo.data import BatchTensorDataset, DataModule, Digits, Quadrants, SignOfSum
from zoo.data.base import split_indices


class Noisy(Dataset):
    """Samples with random augmentation by three generators, as users write them."""

    def __len__(self):
        return 40

    def __getitem__(self, i):
        return i, torch.rand(1) + random.random() + np.random.rand()


class NoisyData(DataModule):
    def splits(self):
        return {"train": Noisy(), "val": Noisy(), "test": Noisy()}


def epoch(data: DataModule, number: int = 0) -> list:
    data.setup("fit")
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)
    return list(loader)


@pytest.mark.parametrize("workers", [0, 2])
def test_augmentation_is_a_function_of_seed_and_epoch(workers):
    one, two = epoch(NoisyData(batch_size=8, num_workers=workers)), epoch(NoisyData(batch_size=8, num_workers=0))
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(one, two, strict=True))
    other = epoch(NoisyData(batch_size=8, num_workers=workers), 1)
    assert not torch.equal(one[0][1], other[0][1])


def test_resumed_augmentation_equals_the_uninterrupted():
    whole = epoch(NoisyData(batch_size=8))
    data = NoisyData(batch_size=8)
    data.load_state_dict({"batches_done": 3})
    rest = epoch(data)
    assert len(rest) == 2
    assert all(torch.equal(a[1], b[1]) for a, b in zip(rest, whole[3:], strict=True))


def test_tensor_set_indexes_whole_batches():
    x, y = torch.arange(10.0), torch.arange(10)
    data = BatchTensorDataset(x, y)
    assert len(data) == 10
    assert data[3] == (x[3], y[3])
    bx, by = data.batch(torch.tensor([1, 5]))
    assert torch.equal(bx, x[[1, 5]])
    assert torch.equal(by, y[[1, 5]])
    with pytest.raises(ValueError, match="one length"):
        BatchTensorDataset(x, y[:5])


@pytest.mark.parametrize("data", [Digits(), Quadrants(), SignOfSum()], ids=lambda d: type(d).__name__)
def test_splits_are_disjoint_seeded_and_stratified(data):
    again = type(data)()
    total = sum(len(s) for s in data.datasets.values())
    assert total == {"Digits": 1797, "Quadrants": 1000, "SignOfSum": 2000}[type(data).__name__]
    for name, part in data.datasets.items():
        assert all(torch.equal(a, b) for a, b in zip(part.tensors, again.datasets[name].tensors, strict=True))
        shares = part.tensors[1].bincount(minlength=data.num_classes) / len(part)
        whole = torch.cat([s.tensors[1] for s in data.datasets.values()]).bincount() / total
        assert (shares - whole).abs().max() < 0.03
    other = type(data)(seed=1)
    assert not torch.equal(other.datasets["train"].tensors[0][:20], data.datasets["train"].tensors[0][:20])


def test_digits_are_standardised_by_the_training_pixels_only():
    data = Digits()
    x = data.datasets["train"].tensors[0]
    assert x.shape[1:] == (1, 8, 8)
    assert abs(x.mean()) < 1e-5
    assert abs(x.std() - 1) < 1e-5
    assert abs(data.datasets["test"].tensors[0].mean()) > 1e-5
    assert Digits(flat=True).datasets["val"].tensors[0].shape[1:] == (64,)


def test_labels_of_the_synthetic_problems():
    x, y = Quadrants().datasets["train"].tensors
    assert torch.equal(y, (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long())
    x, y = SignOfSum().datasets["train"].tensors
    assert torch.equal(y.bool(), x.sum(1) > 0)


def test_split_indices():
    parts = split_indices(100, [0.5, 0.3, 0.2], seed=0)
    assert [len(p) for p in parts] == [50, 30, 20]
    assert torch.cat(parts).sort().values.tolist() == list(range(100))
    with pytest.raises(ValueError, match="add up to 1"):
        split_indices(10, [0.5, 0.6], 0)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"batch_size": 0}, "batch sizes start at 1"), ({"num_workers": -1}, "num_workers must be 0 or more")],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Digits(**kwargs)


def test_overfit_batches_repeats_the_same_batch(tmp_path):
    seen = []

    class Look(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.p = torch.nn.Parameter(torch.zeros(1))

        def training_step(self, batch, _):
            seen.append(batch[1])
            return self.p.sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    trainer = L.Trainer(
        max_epochs=3, overfit_batches=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        default_root_dir=tmp_path, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Look(), Digits())
    assert len(seen) == 3
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])
