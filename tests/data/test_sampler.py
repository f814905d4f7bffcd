from itertools import product

import pytest
import torch

from zoo.data.sampler import ResumableBatchSampler, ShardedBatchSampler, batch_bounds, mix_seeds


def drawn(sampler) -> list[list[int]]:
    return [indices.tolist() for _, indices in sampler]


@pytest.mark.parametrize(("n", "batch", "world"), product([7, 8, 9, 33, 64, 100], [1, 4, 8], [1, 2, 3]))
def test_every_sample_once_in_an_epoch(n, batch, world):
    parts = [ResumableBatchSampler(n, batch, shuffle=True, seed=3, rank=r, world=world) for r in range(world)]
    batches = [drawn(p) for p in parts]
    assert sorted(i for part in batches for b in part for i in b) == list(range(n))
    assert len({len(part) for part in batches}) == 1, "every process takes the same number of steps"
    assert all(b for part in batches for b in part), "no process is without work"


@pytest.mark.parametrize("world", [1, 2, 4])
def test_global_batches_do_not_depend_on_the_number_of_processes(world):
    whole = drawn(ResumableBatchSampler(96, 16, shuffle=True, seed=1))
    parts = [
        drawn(ResumableBatchSampler(96, 16 // world, shuffle=True, seed=1, rank=r, world=world)) for r in range(world)
    ]
    assert [sorted(b) for b in whole] == [sorted(i for part in step for i in part) for step in zip(*parts, strict=True)]


def test_small_tail_joins_the_batch_before():
    assert batch_bounds(65, 64, 1) == [(0, 65)]
    assert batch_bounds(66, 64, 1) == [(0, 64), (64, 66)]
    assert batch_bounds(130, 32, 2) == [(0, 64), (64, 130)]
    assert batch_bounds(130, 64, 1, drop_last=True) == [(0, 64), (64, 128)]
    assert batch_bounds(3, 64, 1, drop_last=True) == [(0, 3)]


def test_order_follows_seed_and_epoch():
    a, b = ResumableBatchSampler(50, 5, shuffle=True, seed=0), ResumableBatchSampler(50, 5, shuffle=True, seed=0)
    assert drawn(a) == drawn(b)
    first = drawn(a)
    a.set_epoch(1)
    assert drawn(a) != first
    assert drawn(ResumableBatchSampler(50, 5, shuffle=True, seed=1)) != first


def test_goes_on_behind_what_was_done():
    whole = list(ResumableBatchSampler(50, 5, shuffle=True, seed=0))
    rest = list(ResumableBatchSampler(50, 5, shuffle=True, seed=0, skip=lambda: 4))
    assert [s for s, _ in rest] == [s for s, _ in whole[4:]]
    assert all(torch.equal(x, y) for (_, x), (_, y) in zip(rest, whole[4:], strict=True))


def test_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    list(ResumableBatchSampler(50, 5, shuffle=True))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("world", [1, 2, 3])
def test_shards_cover_the_data_in_order(world):
    parts = [torch.cat([i for _, i in ShardedBatchSampler(10, 4, r, world)]).tolist() for r in range(world)]
    assert [parts[i % world][i // world] for i in range(10)] == list(range(10))


@pytest.mark.parametrize(("n", "size", "world"), product([3, 9, 10, 17], [1, 4, 8], [1, 2, 3]))
def test_all_processes_have_the_same_number_of_batches(n, size, world):
    parts = [drawn(ShardedBatchSampler(n, size, rank, world)) for rank in range(world)]
    assert len({len(part) for part in parts}) == 1
    assert len(parts[0]) == len(ShardedBatchSampler(n, size, 0, world))
    assert all(1 <= len(batch) <= size + 1 for part in parts for batch in part)
    assert sorted(i for part in parts for batch in part for i in batch) == list(range(n))


def test_too_few_samples():
    with pytest.raises(ValueError, match="3 samples cannot be shared among 4 processes"):
        ResumableBatchSampler(3, 1, world=4)
    with pytest.raises(ValueError, match="3 samples cannot be shared among 4 processes"):
        ShardedBatchSampler(3, 1, world=4)


def test_mixed_seeds_differ():
    seeds = {mix_seeds(seed, epoch, i) for seed, epoch, i in product(range(10), range(10), range(100))}
    assert len(seeds) == 10_000
