"""Decoders without memory: divided first, then drawn or read part by part, they are the same; so are their files."""

import copy
import ctypes
import filecmp
import gc
import os
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from tests.processes import Fork
from zoo.distributed import full_tensor
from zoo.layers import InitRule
from zoo.models import GPT, GPTLanguageModel, LLaMA, LLaMALanguageModel
from zoo.tasks import decoder
from zoo.tasks.decoder import materialize_and_init, shard
from zoo.weights.sharded import materialize

SIZES = {"dim": 32, "depth": 2, "heads": 4, "vocab_size": 11, "block_size": 12}
RULES = [InitRule("mlp.proj$", weight="kaiming_normal"), InitRule("qkv", weight="xavier_uniform", bias="ones")]
KINDS = {
    "GPT": lambda **kw: GPTLanguageModel(**SIZES, **kw),
    "GPT by rules": lambda **kw: GPTLanguageModel(**SIZES, positions="rotary", qk_norm=True, init=RULES, **kw),
    "LLaMA": lambda **kw: LLaMALanguageModel(**SIZES, kv_heads=2, hidden_dim=65, tied=True, **kw),
}


def build(kind: str, **kwargs) -> torch.nn.Module:
    torch.set_num_threads(1)
    torch.manual_seed(3)
    return KINDS[kind](**kwargs)


def state(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {k: full_tensor(p).clone() for k, p in net.named_parameters(remove_duplicate=False)}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# One process ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_without_memory_first_it_is_the_same(kind):
    """Drawn later, and what is drawn after it too."""
    expected, next_number = build(kind), torch.rand(1)
    module = build(kind, meta_device=True)
    assert torch.equal(torch.rand(1), next_number)
    assert all(p.is_meta for p in module.parameters())
    assert module.hparams == expected.hparams
    before = torch.get_rng_state()
    module.configure_model()
    assert torch.equal(torch.get_rng_state(), before)
    assert same(state(module.net), state(expected.net))
    tied = module.net.arguments["tied"]
    assert len(list(module.net.parameters())) == len(list(expected.net.parameters()))
    assert tied == (module.net.lm_head.weight is next(module.net.parameters()))
    module.configure_model()  # as by a later stage of the same run
    assert same(state(module.net), state(expected.net))


def test_without_memory_weights_are_read_later(tmp_path):
    net = build("LLaMA").net
    net.save_pretrained(tmp_path / "llama")
    module = LLaMALanguageModel(weights=str(tmp_path / "llama"), meta_device=True, vocab_size=11, block_size=12)
    assert all(p.is_meta for p in module.parameters())
    module.configure_model()
    assert same(state(module.net), state(net))
    with pytest.raises(ValueError, match="vocab_size=11 instead of 12"):
        LLaMALanguageModel(weights=str(tmp_path / "llama"), meta_device=True, vocab_size=12, block_size=12)


@pytest.mark.parametrize("weight", ["orthogonal", "trunc_normal"])
def test_weights_that_cannot_be_drawn_in_parts_are_drawn_at_once(weight):
    rules = [InitRule("proj", weight=weight)]
    a, b = (build("GPT", meta_device=meta, init=rules) for meta in (True, False))
    assert same(state(a.net), state(b.net))


def test_a_parameter_without_a_place_in_files_is_said(tmp_path):
    net = GPT(**SIZES)
    net.blocks[0].attn.gain = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match=r"no place for blocks\.0\.attn\.gain: write this network with format zoo"):
        net.save_pretrained(tmp_path / "gpt")
    assert os.listdir(tmp_path) == []


# Two processes --------------------------------------------------------------------------------------------------------


def losses(module, tokens: torch.Tensor) -> list[torch.Tensor]:
    optimizer, found = torch.optim.SGD(module.parameters(), 0.1), []  # Adam makes steps of rounding errors
    for _ in range(2):
        loss = F.cross_entropy(module(tokens).flatten(0, 1), (tokens * 3 % 11).flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.detach())
    return found


def tokens() -> torch.Tensor:
    return torch.randint(1, 11, (8, 12), generator=torch.Generator().manual_seed(0))


def peak() -> int:
    """Memory that this process has had at most, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


class Watch(threading.Thread):
    """The most memory of its own, without that of files mapped into it, which can be had again."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.before = self.most = self.now()
        self.done = False

    def now(self) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    def run(self) -> None:
        while not self.done:
            self.most = max(self.most, self.now())
            time.sleep(0.0005)


def forget_peak() -> int:
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def divided(kind: str, mesh, folder: Path | None = None) -> torch.nn.Module:
    module = build(kind, meta_device=True)
    shard(module.net, mesh)
    materialize_and_init(module.net, weights=str(folder) if folder else None, init=module._init)
    return module


def work(rank: int, folder: str) -> None:
    path = Path(folder)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    found = {}
    for kind in KINDS:
        module = divided(kind, mesh)
        found[kind] = state(module.net)
        sizes = [(p.to_local().numel(), p.numel()) for p in module.parameters()]
        assert sum(here for here, _ in sizes) < 0.52 * sum(everywhere for _, everywhere in sizes)
        if kind != "GPT by rules":
            module = divided(kind, mesh, path / kind)
            found[f"{kind} read"] = state(module.net)
        module.net.save_pretrained(path / f"{kind} zoo.safetensors", format="zoo")
    with torch.no_grad():
        module.eval()(tokens())  # after which the whole weights of the ends are kept
    module.train().net.save_pretrained(path / "llama", max_shard_size=20_000)
    assert (path / "llama" / "config.json").is_file(), "all wait for the one that writes"
    expected = state(module.net)
    module.net.load_pretrained(path / "llama")
    assert same(state(module.net), expected)
    mistakes(module.net, path, rank)
    found["losses"] = losses(module, tokens().chunk(2)[rank])
    for loss in found["losses"]:
        dist.all_reduce(loss)
    found["after"] = state(module.net)
    found["memory"] = memory(mesh, path)
    torch.save(found, path / f"found{rank}.pt")
    dist.destroy_process_group()


def mistakes(net, path: Path, rank: int) -> None:
    """One that only the first process can meet ends all of them, and leaves nothing."""
    (path / "file").write_text("")
    kind, said = (ValueError, "file is a file") if rank == 0 else (OSError, "process 0 could not write.* is a file")
    with pytest.raises(kind, match=said):
        net.save_pretrained(path / "file")


def memory(mesh, path: Path) -> dict[str, float]:
    """Peaks of large ones, as shares of all weights: drawn, and read and written."""
    large = {"dim": 512, "depth": 10, "heads": 8, "vocab_size": 300, "block_size": 16}
    found = {}
    for name in ("drawn", "read"):
        gc.collect()  # what went before must not make room in the middle of a measurement,
        ctypes.CDLL(None).malloc_trim(0)  # or leave some that is had again unseen
        before, watch = forget_peak(), Watch()
        watch.start()
        module = GPTLanguageModel(**large, meta_device=True)
        shard(module.net, mesh)
        materialize_and_init(module.net, weights=str(path / "large") if name == "read" else None)
        size = sum(p.nbytes for p in module.parameters())
        watch.done = True
        found[name] = (peak() - before if name == "drawn" else watch.most - watch.before) / size
        if name == "drawn":
            before = forget_peak()
            module.net.save_pretrained(path / "large", max_shard_size=size // 10)
            found["written"] = (peak() - before) / size
        del module
    return found


@pytest.mark.slow
def test_divided_among_two_processes(tmp_path: Path):
    for kind in ("GPT", "LLaMA"):
        net = copy.deepcopy(build(kind).net)
        for p in net.parameters():
            p.data += 1
        net.save_pretrained(tmp_path / kind)
    mp.start_processes(work, (str(tmp_path),), nprocs=2, start_method="spawn")
    found = [torch.load(tmp_path / f"found{rank}.pt", weights_only=True) for rank in (0, 1)]
    for kind in KINDS:
        assert all(same(one[kind], state(build(kind).net)) for one in found), kind
    for kind, cls in (("GPT", GPT), ("LLaMA", LLaMA)):
        net = cls.from_pretrained(tmp_path / kind)
        assert all(same(one[f"{kind} read"], state(net)) for one in found), kind
        assert same(state(cls.from_pretrained(tmp_path / f"{kind} zoo.safetensors")), state(net))
    # Written in parts as by one process, to the byte, and gone through the same training.
    net.save_pretrained(tmp_path / "whole", max_shard_size=20_000)
    names = sorted(os.listdir(tmp_path / "whole"))
    assert len(names) > 4
    assert names == sorted(os.listdir(tmp_path / "llama"))
    assert filecmp.cmpfiles(tmp_path / "whole", tmp_path / "llama", names, shallow=False)[0] == names
    module = LLaMALanguageModel(weights=str(tmp_path / "whole"), vocab_size=11, block_size=12)
    for one, other in zip(found[0]["losses"], losses(module, tokens()), strict=True):
        assert float(one) / 2 == pytest.approx(float(other), abs=1e-6)
    for name, weight in state(module.net).items():
        assert torch.allclose(found[0]["after"][name], weight, rtol=0, atol=1e-6), name
    for one in found:  # half of the weights, and a parameter at a time; a file at a time where they are written
        assert 0.4 < one["memory"]["drawn"] < 0.8
        assert 0.4 < one["memory"]["read"] < 0.8
        assert one["memory"]["written"] < 0.75
    assert not list(tmp_path.glob("*new*"))


STRATEGY = [
    "--trainer.strategy", "ModelParallelStrategy", "--trainer.strategy.data_parallel_size", "1",
    "--trainer.strategy.tensor_parallel_size", "1", "--trainer.strategy.save_distributed_checkpoint", "false",
    "--trainer.strategy.process_group_backend", "gloo", "--trainer.devices", "1",
]  # fmt: skip


def test_the_command_line_starts_without_memory_where_weights_are_divided(here):
    """By itself, and trains the same; what is saved says nothing of it."""
    common = [
        "fit", "--model", "LLaMALanguageModel", "--model.dim", "16", "--model.depth", "1", "--model.heads", "2",
        "--data", "PythonDocs", "--data.block_size", "16", "--trainer.max_steps", "2", "--data.batch_size", "2",
        "--trainer.limit_val_batches", "1", "--trainer.accelerator", "cpu",
    ]  # fmt: skip

    def spy() -> None:
        original = decoder.materialize_and_init
        decoder.materialize_and_init = lambda net, *args: (
            Path("filled").write_text(type(net).__name__),
            original(net, *args),
        )

    for name, more in (("one", []), ("divided", STRATEGY)):
        done = Fork(*common, "--run_dir", name, *more, folder=here, before=spy).wait()
        assert done.code == 0, done.err
        assert Path("filled").exists() == (name == "divided")
    a, b = (torch.load(f"{name}/checkpoints/last.ckpt", weights_only=True) for name in ("one", "divided"))
    for name, weight in a["state_dict"].items():
        assert torch.allclose(weight, b["state_dict"][name], rtol=0, atol=1e-6), name
    assert Path("filled").read_text() == "FSDPLLaMA"
    assert b["hyper_parameters"]["meta_device"] is None
    assert "meta_device: null" in Path("divided/config.yaml").read_text()


def test_memory_is_given_once():
    """Tied parameters stay one."""
    with torch.device("meta"):
        net = GPT(**SIZES)
    materialize(net, dtype=torch.float64)
    assert net.lm_head.weight is net.wte.weight
    assert {p.dtype for p in net.parameters()} == {torch.float64}
