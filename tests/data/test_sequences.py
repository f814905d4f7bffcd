"""Sequences as padded batches, buckets by length, and the problems that ask for memory."""

from itertools import product

import pytest
import torch

from zoo.data import AddingProblem, CopyTask, SequenceDataset, SyntheticSequences
from zoo.data.sampler import BucketBatchSampler, ResumableBatchSampler

LENGTHS = torch.randint(1, 200, (500,), generator=torch.Generator().manual_seed(0))


def drawn(sampler) -> list[list[int]]:
    return [indices.tolist() for _, indices in sampler]


@pytest.mark.parametrize(("n", "batch", "world"), product([7, 9, 33, 65, 100, 500], [1, 4, 8], [1, 2, 3]))
def test_buckets_lose_and_repeat_nothing(n, batch, world):
    parts = [BucketBatchSampler(LENGTHS[:n], n, batch, shuffle=True, seed=3, rank=r, world=world) for r in range(world)]
    batches = [drawn(part) for part in parts]
    assert sorted(i for part in batches for b in part for i in b) == list(range(n))
    plain = [len(b) for b in drawn(ResumableBatchSampler(n, batch, shuffle=True, seed=3, world=world))]
    assert [len(b) for b in batches[0]] == plain, "as many and as large as without buckets"


def test_buckets_hold_similar_lengths_and_are_shuffled():
    def padding(sampler) -> int:
        return sum(int(LENGTHS[b].max() * len(b) - LENGTHS[b].sum()) for b in drawn(sampler))

    buckets = BucketBatchSampler(LENGTHS, 500, 16, shuffle=True, seed=0)
    assert padding(buckets) < padding(ResumableBatchSampler(500, 16, shuffle=True, seed=0)) / 10
    first = drawn(buckets)
    means = [float(LENGTHS[b].float().mean()) for b in first]
    assert means != sorted(means)
    assert means != sorted(means, reverse=True)
    assert drawn(BucketBatchSampler(LENGTHS, 500, 16, shuffle=True, seed=0)) == first
    buckets.set_epoch(1)
    assert drawn(buckets) != first
    assert drawn(BucketBatchSampler(LENGTHS, 500, 16, shuffle=True, seed=1)) != first


def test_buckets_go_on_behind_what_was_done():
    whole = list(BucketBatchSampler(LENGTHS, 500, 16, shuffle=True, seed=0))
    rest = list(BucketBatchSampler(LENGTHS, 500, 16, shuffle=True, seed=0, skip=lambda: 4))
    assert [seed for seed, _ in rest] == [seed for seed, _ in whole[4:]]
    assert all(torch.equal(x, y) for (_, x), (_, y) in zip(rest, whole[4:], strict=True))


@pytest.mark.parametrize("world", [2, 4])
def test_buckets_do_not_depend_on_the_number_of_processes(world):
    whole = drawn(BucketBatchSampler(LENGTHS[:96], 96, 16, shuffle=True, seed=1))
    sizes = {"shuffle": True, "seed": 1, "world": world}
    parts = [drawn(BucketBatchSampler(LENGTHS[:96], 96, 16 // world, rank=r, **sizes)) for r in range(world)]
    assert [sorted(b) for b in whole] == [sorted(i for part in step for i in part) for step in zip(*parts, strict=True)]


def test_what_drop_last_leaves_out_is_not_chosen_by_length():
    left = []
    for seed in range(60):
        kept = {
            i for b in drawn(BucketBatchSampler(LENGTHS, 500, 64, shuffle=True, seed=seed, drop_last=True)) for i in b
        }
        assert len(kept) == 448
        left += [i for i in range(500) if i not in kept]
    assert abs(LENGTHS[left].float().mean() - LENGTHS.float().mean()) < 5


def test_buckets_need_a_length_for_each_sample():
    with pytest.raises(ValueError, match="500 lengths for 400 samples"):
        BucketBatchSampler(LENGTHS, 400, 8)


def test_a_batch_is_padded_to_its_own_longest():
    values, lengths = torch.arange(1, 11), torch.tensor([3, 1, 4, 2])
    data = SequenceDataset(values, lengths, torch.tensor([0, 1, 0, 1]), padding=-1)
    (x, n), y = data.batch(torch.tensor([3, 0]))
    assert x.tolist() == [[9, 10, -1], [1, 2, 3]]
    assert (n.tolist(), y.tolist()) == ([2, 3], [1, 0])
    (row, length), label = data[2]
    assert (row.tolist(), int(length), int(label)) == ([5, 6, 7, 8], 4, 0)
    vectors = SequenceDataset(torch.randn(10, 3), lengths)
    ((x, n),) = vectors.batch(torch.tensor([1, 2]))
    assert x.shape == (2, 4, 3)
    assert not x[0, 1:].any()
    assert torch.equal(x[1], vectors.values[4:8])


def test_lengths_must_fit():
    with pytest.raises(ValueError, match="got 10 values, 2 lengths that add up to 9"):
        SequenceDataset(torch.arange(10), torch.tensor([4, 5]))
    with pytest.raises(ValueError, match="2 lengths that add up to 10, 3 targets"):
        SequenceDataset(torch.arange(10), torch.tensor([4, 6]), torch.arange(3))
    with pytest.raises(ValueError, match="sequence 1 is empty"):
        SequenceDataset(torch.arange(4), torch.tensor([4, 0]))


def test_the_adding_problem():
    x, y = AddingProblem(samples=200, steps=30).datasets["train"].tensors
    numbers, marks = x.unbind(2)
    assert x.shape == (160, 30, 2)
    assert torch.equal(marks[:, :15].sum(1), torch.ones(160))
    assert torch.equal(marks[:, 15:].sum(1), torch.ones(160))
    assert torch.allclose((numbers * marks).sum(1), y)
    assert numbers.min() >= 0
    assert numbers.max() <= 1
    y = AddingProblem(samples=5000, steps=4).datasets["train"].tensors[1]
    assert abs(float(y.mean()) - AddingProblem.target_mean) < 0.03
    assert abs(float(y.std()) - AddingProblem.target_std) < 0.02


def test_the_copy_task():
    data = CopyTask(samples=50, symbols=3, kinds=5, pause=7)
    x, y = data.datasets["train"].tensors
    assert x.shape == y.shape == (40, 14)
    assert torch.equal(x[:, :3] - 1, y[:, 11:])
    assert set(x[:, 3:10].flatten().tolist()) == set(x[:, 11:].flatten().tolist()) == {0}
    assert (x[:, 10] == 6).all()
    assert (y[:, :11] == -100).all()
    assert (data.num_classes, data.vocab_size) == (5, 7)
    assert int(x.max()) < data.vocab_size
    assert set(y[:, 11:].flatten().tolist()) == set(range(5))


@pytest.mark.parametrize("min_steps", [None, 12])
def test_the_order_of_two_events_is_the_class(min_steps):
    """It is found by looking for both, and not in the mean over time."""
    data = SyntheticSequences(samples=2000, difficulty="easy", min_steps=min_steps, seed=3)
    train = data.datasets["train"]
    (x, lengths), y = train.batch(torch.arange(1600)) if min_steps else ((train.tensors[0], None), train.tensors[1])
    assert x.shape[2] == 16
    if lengths is None:
        assert x.shape[1] == 50
    else:
        assert int(lengths.min()) == 12
        assert int(lengths.max()) == 50
    generator = torch.Generator().manual_seed(3)
    torch.randn(2000, 50, 16, generator=generator)
    torch.randint(min_steps or 50, 51, (2000,), generator=generator)
    events = torch.nn.functional.normalize(torch.randn(2, 16, generator=generator), dim=1)
    loudness = (x @ events.T).unfold(1, 3, 1).sum(3)  # of either event in three steps
    when = loudness.argmax(1)
    assert ((when[:, 0] > when[:, 1]).long() == y).float().mean() > 0.95
    means = x.sum(1)
    weights = torch.linalg.lstsq(means[:800], y[:800, None] - 0.5).solution
    found = (means[800:] @ weights)[:, 0] > 0
    assert abs((found.long() == y[800:]).float().mean() - 0.5) < 0.08


def test_difficulty_is_loudness():
    values = [SyntheticSequences(difficulty=d).datasets["train"].tensors[0].var() for d in ("easy", "medium", "hard")]
    assert values[0] > values[1] > values[2] > 1


@pytest.mark.parametrize(
    ("cls", "kwargs", "message"),
    [
        (SyntheticSequences, {"difficulty": "awful"}, "difficulty must be easy, medium, hard, got 'awful'"),
        (SyntheticSequences, {"min_steps": 60}, "8 steps or more, got steps=50, min_steps=60"),
        (SyntheticSequences, {"steps": 5}, "8 steps or more, got steps=5"),
        (AddingProblem, {"steps": 1}, "2 steps or more, got steps=1"),
        (AddingProblem, {"samples": 3}, "samples must be 10 or more, got 3"),
        (CopyTask, {"kinds": 1}, "at least symbols=1, kinds=2, pause=1, got symbols=10, kinds=1, pause=30"),
    ],
)
def test_mistakes(cls, kwargs, message):
    with pytest.raises(ValueError, match=message):
        cls(**kwargs)
