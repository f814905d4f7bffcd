"""Decoders too large for one device: weights divided among processes give what one process gives."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch.distributed.fsdp import FSDPModule

from zoo.models import GPTLanguageModel, LLaMALanguageModel
from zoo.tasks.decoder import shard

KINDS = {
    "GPT": lambda: GPTLanguageModel(dim=32, depth=2, heads=4, vocab_size=11, block_size=12),
    "LLaMA": lambda: LLaMALanguageModel(
        dim=32, depth=2, heads=4, kv_heads=2, hidden_dim=64, tied=True, activation_checkpointing=True, vocab_size=11,
        block_size=12,
    ),
}  # fmt: skip


def losses(module, tokens: torch.Tensor) -> list[torch.Tensor]:
    """Of three steps of AdamW, and then the weights."""
    optimizer, found = torch.optim.AdamW(module.parameters(), 0.01), []
    for _ in range(3):
        loss = F.cross_entropy(module(tokens).flatten(0, 1), (tokens * 3 % 11).flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.detach())
    return found + [p.full_tensor() if hasattr(p, "full_tensor") else p for p in module.net.parameters()]


def build(kind: str) -> tuple[torch.nn.Module, torch.Tensor]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return KINDS[kind]().double(), torch.randint(1, 11, (8, 12))


def work(rank: int, folder: str, kind: str) -> None:
    """Half of the batch on each of two processes."""
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    module, tokens = build(kind)
    whole = sum(p.numel() for p in module.parameters())
    shard(module.net, dist.device_mesh.init_device_mesh("cpu", (2,)))
    assert all(isinstance(part, FSDPModule) for part in (module.net, *module.net.blocks))
    assert sum(p.to_local().numel() for p in module.parameters()) < 0.51 * whole
    found = losses(module, tokens.chunk(2)[rank])
    for loss in found[:3]:
        dist.all_reduce(loss)
    if rank == 0:
        torch.save([*(loss / 2 for loss in found[:3]), *(p.detach() for p in found[3:])], f"{folder}/found.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", KINDS)
def test_divided_among_two_processes(kind, tmp_path: Path):
    mp.start_processes(work, (str(tmp_path), kind), nprocs=2, start_method="fork")
    found, expected = torch.load(tmp_path / "found.pt", weights_only=True), losses(*build(kind))
    assert len(found) == len(expected) > 10
    assert expected[2] < expected[0]
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-10)


@pytest.mark.slow
def test_through_the_command_line(zoo_process, here):
    """The strategy's YAML, and a whole file of weights that a plain module loads."""
    strategy = [
        "--trainer.strategy", "ModelParallelStrategy", "--trainer.strategy.data_parallel_size", "2",
        "--trainer.strategy.tensor_parallel_size", "1", "--trainer.strategy.save_distributed_checkpoint", "false",
        "--trainer.strategy.process_group_backend", "gloo", "--trainer.devices", "2",
    ]  # fmt: skip
    common = [
        "fit", "--model", "GPTLanguageModel", "--model.dim", "32", "--model.depth", "2", "--model.heads", "2",
        "--data", "PythonDocs", "--data.block_size", "16", "--trainer.max_steps", "6",
        "--trainer.limit_val_batches", "2", "--trainer.accelerator", "cpu",
    ]  # fmt: skip
    one = zoo_process(*common, "--run_dir", "one", "--data.batch_size", "8")
    two = zoo_process(*common, "--run_dir", "two", "--data.batch_size", "4", *strategy)
    assert one.returncode == 0, one.stderr
    assert two.returncode == 0, two.stderr
    a, b = (torch.load(here / run / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for run in ("one", "two"))
    assert a.keys() == b.keys()
    assert max(float((a[k] - b[k]).abs().max()) for k in a) < 1e-4
    module = GPTLanguageModel.load_from_checkpoint(here / "two/checkpoints/last.ckpt", weights_only=True)
    assert torch.equal(module.net.wte.weight, b["net.wte.weight"])
