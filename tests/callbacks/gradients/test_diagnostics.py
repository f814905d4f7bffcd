"""Tests of ``GradientDiagnostics``: metrics against references, warnings about injected faults, unchanged training."""

import csv
import math
import os
import socket
import warnings
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, TensorDataset

from zoo.callbacks.gradients.analysis import GradientStats, find_problems, group_into_blocks, noise_scale_terms
from zoo.callbacks.gradients.diagnostics import GradientDiagnostics


class Net(pl.LightningModule):
    def __init__(self, net, lr=0.1, make=torch.optim.SGD):
        super().__init__()
        self.net, self.lr, self.make = net, lr, make

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]).float(), batch[1])

    def configure_optimizers(self):
        return self.make(self.parameters(), lr=self.lr)


def mlp(seed=0, activation=nn.ReLU):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(8, 16), activation(), nn.Dropout(0.1), nn.Linear(16, 12), activation(), nn.Linear(12, 3)
    )


def plain(seed=0, activation=nn.Tanh):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), activation(), nn.Linear(16, 12), activation(), nn.Linear(12, 3))


def data(n=64, shape=(8,)):
    g = torch.Generator().manual_seed(3)
    x = torch.randn(n, *shape, generator=g)
    return TensorDataset(x, torch.randint(0, 3, (n,), generator=g))


def fit(module, tmp_path, *callbacks, loader=None, **kwargs):
    options = dict(max_steps=4, accelerator="cpu", logger=False, enable_checkpointing=False) | kwargs
    trainer = pl.Trainer(
        default_root_dir=tmp_path,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    torch.manual_seed(1)
    trainer.fit(module, loader or DataLoader(data(), batch_size=16))
    return trainer


def watch(**kwargs):
    return GradientDiagnostics(**(dict(every_n_steps=1, heatmap=False) | kwargs))


# --- numbers -------------------------------------------------------------------------------------------------------


def reference(module, batch):
    """Norms, updates and so on of one SGD step, computed directly."""
    module.zero_grad()
    nn.functional.cross_entropy(module.net(batch[0]), batch[1]).backward()
    norms = {name: p.grad.norm().item() for name, p in module.named_parameters()}
    ratios = {}
    for i in (0, 2, 4):
        weight = torch.cat([p.detach().flatten() for p in module.net[i].parameters()])
        grad = torch.cat([p.grad.flatten() for p in module.net[i].parameters()])
        ratios[f"net.{i}"] = (module.lr * grad.norm() / weight.norm()).item()
    return norms, ratios


def test_norms_and_update_ratios(tmp_path):
    spy = watch()
    fit(Net(plain()), tmp_path, spy, max_steps=1)
    norms, ratios = reference(Net(plain()), data()[:16])
    assert spy.metrics["gradients/norm"] == pytest.approx(math.hypot(*norms.values()), rel=1e-5)
    for block, ratio in ratios.items():
        norm = math.hypot(norms[f"{block}.weight"], norms[f"{block}.bias"])
        assert spy.metrics[f"gradients/norm/{block}"] == pytest.approx(norm, rel=1e-5)
        assert spy.metrics[f"gradients/update_ratio/{block}"] == pytest.approx(ratio, rel=1e-3)
    assert len(spy.metrics) == 1 + 3 + 3 + 1


@pytest.mark.parametrize("options", [{}, {"precision": "bf16-mixed"}, {"gradient_clip_val": 1e-3}], ids=str)
def test_accumulation_equals_the_big_batch(tmp_path, options):
    small, big = watch(), watch()
    fit(Net(plain()), tmp_path, small, max_steps=1, accumulate_grad_batches=4, **options)
    fit(Net(plain()), tmp_path, big, max_steps=1, loader=DataLoader(data(), batch_size=64))
    rel = 0.02 if options.get("precision") else 1e-5
    assert small.metrics["gradients/norm"] == pytest.approx(big.metrics["gradients/norm"], rel=rel)
    if not options:
        assert small.stats.layers == pytest.approx(big.stats.layers, rel=1e-5)


class Scaled(MixedPrecision):
    """Loss scaling as fp16 has it, on a CPU, where autocast supports only bfloat16."""

    def forward_context(self):
        return torch.autocast("cpu", dtype=torch.bfloat16)


def test_gradients_are_unscaled(tmp_path):
    scaled, free = watch(), watch()
    plugin = Scaled("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=4096.0))
    options = dict(max_steps=1, accumulate_grad_batches=4)
    fit(Net(plain()), tmp_path, scaled, plugins=[plugin], **options)
    fit(Net(plain()), tmp_path, free, precision="bf16-mixed", **options)
    assert scaled.metrics == pytest.approx(free.metrics, rel=1e-2)
    assert scaled._noise.mean == pytest.approx(free._noise.mean, rel=1e-2)


def test_dead_and_saturated_units(tmp_path):
    net = plain(activation=nn.ReLU)
    with torch.no_grad():
        net[0].bias[:5] = -100.0
    outputs = net[1](net[0](data()[:16][0]))
    spy = watch()
    fit(Net(net), tmp_path, spy, max_steps=1)
    assert spy.stats.dead["net.1"] == pytest.approx((outputs.amax(0) == 0).float().mean().item())
    assert spy.stats.dead["net.1"] >= 5 / 16
    share = (spy.stats.dead["net.1"] * 16 + spy.stats.dead["net.3"] * 12) / 28
    assert spy.metrics["gradients/dead"] == pytest.approx(share)
    assert "gradients/saturated" not in spy.metrics

    net = plain(activation=nn.Sigmoid)
    with torch.no_grad():
        net[0].bias[:4], net[0].bias[4:6] = 50.0, -50.0
    fit(Net(net), tmp_path, spy, max_steps=1)
    assert spy.stats.saturated["net.1"] == pytest.approx(6 / 16)
    assert "gradients/dead" not in spy.metrics


def test_a_shared_relu_is_judged_call_by_call_over_all_micro_batches(tmp_path):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.relu, self.head = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Linear(4, 3)
            with torch.no_grad():
                self.a.bias[:] = torch.tensor([-9.0, -9.0, 9.0, -2.5])
                self.b.bias[:] = 99.0

        def forward(self, x):
            return self.head(self.relu(self.b(self.relu(self.a(x)))).mean((2, 3)))

    x = torch.zeros(8, 1, 4, 4)
    torch.manual_seed(0)
    net = Shared()
    with torch.no_grad():
        net.a.weight[3] = 1.0
    x[6, 0, 0, 0] = 5.0  # wakes the last channel, in the second micro-batch alone
    loader = DataLoader(TensorDataset(x, torch.zeros(8, dtype=torch.long)), batch_size=4)
    spy = watch()
    fit(Net(net), tmp_path, spy, max_steps=1, accumulate_grad_batches=2, loader=loader)
    assert spy.stats.dead["net.relu"] == pytest.approx((0.5 + 0.0) / 2)


def test_clipped_share(tmp_path):
    norms = watch()
    fit(Net(plain()), tmp_path, norms, max_steps=8, max_epochs=-1)
    totals = [math.hypot(*row) for row in norms.history]
    limit = sorted(totals)[3]
    each, seldom = watch(), watch(every_n_steps=4)
    fit(Net(plain(), lr=0.0), tmp_path, each, max_steps=8, max_epochs=-1, gradient_clip_val=limit)
    fit(Net(plain(), lr=0.0), tmp_path, seldom, max_steps=5, max_epochs=-1, gradient_clip_val=limit)
    totals = [math.hypot(*row) for row in each.history]
    assert 0 < sum(total > limit for total in totals[1:5]) < 4
    assert seldom.metrics["gradients/clipped"] == sum(total > limit for total in totals[1:5]) / 4
    assert each.metrics["gradients/clipped"] == float(totals[-1] > limit)
    assert "gradients/clipped" not in norms.metrics


def test_noise_scale_of_known_gradients(tmp_path):
    class Mean(pl.LightningModule):
        """The gradient of a sample is `sample`, so signal and noise are those of the data."""

        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(40))

        def training_step(self, batch, batch_idx):
            return (batch[0] @ self.w).mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    g = torch.Generator().manual_seed(0)
    samples = 0.3 + 2.0 * torch.randn(64 * 60, 40, generator=g)
    spy = watch()
    loader = DataLoader(TensorDataset(samples), batch_size=16)
    fit(Mean(), tmp_path, spy, max_steps=60, accumulate_grad_batches=4, loader=loader)
    # trace of the covariance over the squared mean: 40 * 4 / (40 * 0.09) = 44
    assert spy.metrics["gradients/noise_scale"] == pytest.approx(44, rel=0.25)
    fit(Mean(), tmp_path, spy, max_steps=1, loader=loader)
    assert "gradients/noise_scale" not in spy.metrics


def test_noise_parts_recover_signal_and_noise():
    signal, noise = 3.0, 70.0
    found = noise_scale_terms(signal + noise / 8, signal + noise / 32, 8, 32)
    assert found == pytest.approx((signal, noise))


# --- blocks --------------------------------------------------------------------------------------------------------


def bert_names():
    from transformers import BertConfig, BertModel

    with torch.device("meta"):
        return [name for name, _ in BertModel(BertConfig()).named_parameters()]


def test_bert_base_has_a_dozen_blocks_at_most():
    names = bert_names()
    assert list(group_into_blocks(names, 6)) == [
        "embeddings",
        "encoder.layer.0-3",
        "encoder.layer.4-7",
        "encoder.layer.8-9",
        "encoder.layer.10-11",
        "pooler",
    ]
    assert len(group_into_blocks(names, 12)) <= 12


@pytest.mark.parametrize("at_most", [1, 2, 3, 5, 12, 1000])
def test_blocks_are_a_partition_in_order(at_most):
    for names in (bert_names(), ["w", "a.w", "a.b.w", "a.b.c.w", "d.w"], ["only.weight"]):
        groups = group_into_blocks(names, at_most)
        assert len(groups) <= at_most
        assert [name for members in groups.values() for name in members] == names


def test_a_wrapper_is_opened_and_small_neighbours_joined():
    names = ["net.stem.w", "net.norm.w", *[f"net.layer{i}.{j}.w" for i in (1, 2) for j in range(6)], "net.fc.w"]
    assert list(group_into_blocks(names, 4)) == ["net.stem-norm", "net.layer1", "net.layer2", "net.fc"]


# --- training does not notice --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}, {"precision": "bf16-mixed"}],
    ids=str,
)
def test_training_is_bit_identical(tmp_path, options):
    nets = []
    for callbacks in ([], [watch(every_n_steps=2, heatmap=True)]):
        module = Net(mlp(), 0.01, torch.optim.AdamW)
        fit(module, tmp_path, *callbacks, max_steps=6, max_epochs=-1, **options)
        nets.append(module)
        assert not any(part._forward_hooks for part in module.modules())
        assert not any(p._backward_hooks for p in module.parameters())
    for a, b in zip(*(net.parameters() for net in nets), strict=True):
        assert torch.equal(a, b)


def test_hooks_go_when_training_fails(tmp_path):
    class Fails(Net):
        def training_step(self, batch, batch_idx):
            super().training_step(batch, batch_idx)
            raise RuntimeError("no")

    module = Fails(mlp())
    with pytest.raises(RuntimeError, match="no"):
        fit(module, tmp_path, watch(), accumulate_grad_batches=2)
    assert not any(part._forward_hooks for part in module.modules())
    assert not any(p._backward_hooks for p in module.parameters())


@pytest.mark.parametrize("place", ["measurement._is_measured", "measurement.norms", "diagnostics.heat_map"])
def test_an_error_of_its_own_switches_it_off_and_training_continues(place, tmp_path, monkeypatch):
    def broken(*args):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(f"zoo.callbacks.gradients.{place}", broken)
    net = mlp()
    diagnostics = GradientDiagnostics(every_n_steps=1)
    with pytest.warns(UserWarning, match="GradientDiagnostics is off .* RuntimeError: out of luck"):
        trainer = fit(Net(net), tmp_path, diagnostics)
    assert trainer.global_step > 1
    assert diagnostics.switched_off
    assert not any(m._forward_hooks for m in net.modules())


def test_resumed_run_goes_on_with_picture_and_means(tmp_path):
    spy = watch()
    options = dict(accumulate_grad_batches=2, max_epochs=-1)
    trainer = fit(Net(plain()), tmp_path, spy, max_steps=3, **options)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    whole, again = watch(), watch()
    fit(Net(plain()), tmp_path, whole, max_steps=4, **options)
    trainer = pl.Trainer(
        default_root_dir=tmp_path, callbacks=[again], max_steps=4, logger=False, enable_progress_bar=False, **options
    )
    trainer.fit(Net(plain()), DataLoader(data(), batch_size=16), ckpt_path=str(tmp_path / "half.ckpt"))
    assert again.steps == whole.steps == [0, 1, 2, 3]
    assert again.history[:3] == spy.history
    assert again._noise.weight == whole._noise.weight


# --- output --------------------------------------------------------------------------------------------------------


def test_keys_reach_the_logger_and_the_picture_the_folder(tmp_path):
    logger = CSVLogger(tmp_path, name=None, version="run")
    spy = watch(every_n_steps=2, heatmap=True)
    fit(Net(plain()), tmp_path, spy, logger=logger)
    rows = list(csv.DictReader(Path(logger.log_dir, "metrics.csv").read_text().splitlines()))
    assert [row["step"] for row in rows] == ["0", "2"]
    assert float(rows[1]["gradients/norm"]) == spy.metrics["gradients/norm"]
    assert set(spy.metrics) | {"step"} == set(rows[0])
    assert Path(logger.log_dir, "gradients.png").read_bytes().startswith(b"\x89PNG")


def test_tensorboard_gets_the_picture(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, name=None, version="run")
    fit(Net(plain()), tmp_path, watch(heatmap=True), logger=logger)
    events = EventAccumulator(logger.log_dir).Reload()
    assert events.Tags()["images"] == ["gradients"]
    assert "gradients/norm" in events.Tags()["scalars"]


# --- warnings ------------------------------------------------------------------------------------------------------


def warnings_of(net, tmp_path, **kwargs):
    spy = watch()
    module = net if isinstance(net, pl.LightningModule) else Net(net, 0.01)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(module, tmp_path, spy, **kwargs)
    messages = [str(w.message) for w in caught if "GradientDiagnostics" in str(w.message)]
    return [line.split(": ", 1)[1] for line in messages]


def deep(activation, depth=12):
    torch.manual_seed(0)
    parts = [part for _ in range(depth) for part in (nn.Linear(16, 16), activation())]
    return nn.Sequential(nn.Linear(8, 16), activation(), *parts, nn.Linear(16, 3))


def test_deep_sigmoid_net_vanishes(tmp_path):
    (verdict,) = warnings_of(deep(nn.Sigmoid), tmp_path)
    kind, _, layer = verdict.partition(" below net.")
    assert kind == "vanishing"
    assert 8 <= int(layer) <= 24


class Recurrent(nn.Module):
    def __init__(self, gain):
        super().__init__()
        self.embed = nn.Linear(8, 16)
        self.rnn = nn.ModuleDict({"cell": nn.RNNCell(16, 32)})
        self.head = nn.Linear(32, 3)
        nn.init.normal_(self.rnn["cell"].weight_hh, std=gain / math.sqrt(32))

    def forward(self, x):
        h = None
        for _ in range(30):
            h = self.rnn["cell"](self.embed(x), h)
        return self.head(h)


def test_recurrent_net_with_huge_weights_explodes(tmp_path):
    torch.manual_seed(0)
    assert "exploding from net.rnn.cell" in warnings_of(Recurrent(5.0), tmp_path)
    torch.manual_seed(0)
    assert warnings_of(Recurrent(0.9), tmp_path) == []


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x):
        x = self.fc1(x).tanh()
        return self.fc3(x + self.fc2(x).detach())


def test_detached_layer_receives_no_gradient(tmp_path):
    torch.manual_seed(0)
    assert warnings_of(Detached(), tmp_path) == ["layer net.fc2 receives no gradient"]


def test_dead_and_saturated_layers_are_named(tmp_path):
    net = plain(activation=nn.ReLU)
    with torch.no_grad():
        net[2].bias.fill_(-100.0)
    messages = warnings_of(net, tmp_path)
    assert "nearly all units of net.3 are dead" in messages
    net = plain(activation=nn.Tanh)
    with torch.no_grad():
        net[0].weight.mul_(1e4)
    assert "nearly all of net.1 is saturated" in warnings_of(net, tmp_path)


def test_non_finite_gradient_is_an_explosion(tmp_path):
    net = plain(activation=nn.ReLU)
    with torch.no_grad():
        net[0].weight.fill_(1e30)
        net[2].weight.fill_(1e30)
    assert "exploding from net.4, whose gradient is not finite" in warnings_of(net, tmp_path)


class ZeroInit(nn.Module):
    """A residual net whose branches begin at zero: at the first step nothing behind those zeros has a gradient."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Linear(8, 16), nn.Linear(16, 3)
        self.branches = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)) for _ in range(6)
        )
        for branch in self.branches:
            nn.init.zeros_(branch[-1].weight)

    def forward(self, x):
        x = self.stem(x)
        for branch in self.branches:
            x = x + branch(x)
        return self.head(x)


def small_resnet():
    import timm

    torch.manual_seed(0)
    return timm.create_model("resnet10t", num_classes=3)


def small_bert():
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64, num_labels=3
    )

    class Bert(nn.Module):
        def __init__(self):
            super().__init__()
            self.bert = BertForSequenceClassification(config)

        def forward(self, x):
            return self.bert(input_ids=(x.abs() * 20).long().clamp(max=99)).logits

    return Bert()


HEALTHY = {
    "mlp": mlp,
    "tanh": lambda: deep(nn.Tanh, 4),
    "relu": lambda: deep(nn.ReLU, 4),
    "zero_init": ZeroInit,
    "resnet": small_resnet,
    "bert": small_bert,
}


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_net_says_nothing(tmp_path, name):
    shape = (3, 32, 32) if name == "resnet" else (8,)
    loader = DataLoader(data(32, shape), batch_size=8)
    make = torch.optim.AdamW if name == "bert" else torch.optim.SGD
    assert warnings_of(Net(HEALTHY[name](), 0.01, make), tmp_path, loader=loader) == []


def test_verdicts_is_a_pure_function_of_the_numbers():
    slopes = {"a.weight": 1e-9, "b.weight": 1e-7, "c.weight": 0.1, "d.weight": 0.2}
    assert find_problems(GradientStats(rms=slopes)) == ["vanishing below c"]
    assert find_problems(GradientStats(rms={**slopes, "b.weight": 0.1})) == []
    assert find_problems(GradientStats(rms={"a.weight": 900.0, "b.weight": 500.0, "c.weight": 0.2})) == [
        "exploding from b"
    ]
    assert find_problems(GradientStats()) == []


# --- several processes ---------------------------------------------------------------------------------------------


class Tell(pl.Callback):
    def __init__(self, spy, folder):
        self.spy, self.folder = spy, folder

    def on_train_end(self, trainer, pl_module):
        torch.save(
            {"metrics": self.spy.metrics, "layers": self.spy.stats.layers}, self.folder / f"{trainer.global_rank}.pt"
        )


def on_two(module, tmp_path, strategy, **kwargs):
    spy = watch()
    fit(module, tmp_path, spy, Tell(spy, tmp_path), strategy=strategy, devices=2, **kwargs)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_equal_the_big_batch(tmp_path, accumulate):
    loader = DataLoader(data(), batch_size=32 // accumulate)
    on_two(Net(plain()), tmp_path, "ddp_fork", accumulate_grad_batches=accumulate, loader=loader, max_steps=1)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    big = watch()
    fit(Net(plain()), tmp_path, big, max_steps=1, loader=DataLoader(data(), batch_size=64))
    assert first["layers"] == second["layers"]
    assert first["layers"] == pytest.approx(big.stats.layers, rel=1e-5)
    norm = big.metrics["gradients/norm"]
    assert first["metrics"]["gradients/norm"] == pytest.approx(norm, rel=1e-5)
    assert first["metrics"].get("gradients/noise_scale") == second["metrics"].get("gradients/noise_scale")


class Sharded(Net):
    def configure_model(self):
        if self.trainer.world_size > 1:
            for layer in (self.net[0], self.net[2], self.net[4], self.net):
                fully_shard(layer, mesh=self.device_mesh["data_parallel"])


def odd_sizes():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 15), nn.Tanh(), nn.Linear(15, 7), nn.Tanh(), nn.Linear(7, 3))


def one_of_two(rank, folder, port):
    places = dict(RANK=rank, LOCAL_RANK=rank, GROUP_RANK=0, WORLD_SIZE=2, LOCAL_WORLD_SIZE=2, TORCHELASTIC_RUN_ID=1)
    address = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    os.environ.update({key: str(value) for key, value in (places | address).items()})
    strategy = ModelParallelStrategy(2, 1, process_group_backend="gloo")
    on_two(Sharded(odd_sizes()), folder, strategy, loader=DataLoader(data(), batch_size=32), max_steps=2)


def test_sharded_norms_are_those_of_the_whole(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(one_of_two, (tmp_path, port), nprocs=2, start_method="fork")
    whole = watch()
    fit(Net(odd_sizes()), tmp_path, whole, max_steps=2, loader=DataLoader(data(), batch_size=64))
    for rank in range(2):
        metrics = torch.load(tmp_path / f"{rank}.pt")["metrics"]
        assert metrics == pytest.approx(whole.metrics, rel=1e-4)


def test_noise_scale_is_that_of_accumulation_however_the_batch_is_parted(tmp_path):
    def parts(spy):
        return spy._signal.mean, spy._noise.mean

    class Parts(Tell):
        def on_train_end(self, trainer, pl_module):
            torch.save(parts(self.spy), self.folder / f"{trainer.global_rank}.pt")

    one, two = watch(), watch()
    # process r reads every second sample of Lightning's shuffled order: the same two halves, one after the other
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    halves = torch.cat([order[0::2], order[1::2]])
    ordered = torch.utils.data.Subset(data(), halves.tolist())
    fit(Net(plain()), tmp_path, one, max_steps=1, accumulate_grad_batches=2, loader=DataLoader(ordered, batch_size=32))
    fit(
        Net(plain()), tmp_path, two, Parts(two, tmp_path), max_steps=1, strategy="ddp_fork", devices=2,
        loader=DataLoader(data(), batch_size=32),
    )  # fmt: skip
    assert torch.load(tmp_path / "0.pt") == pytest.approx(parts(one), rel=1e-4)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="every_n_steps=0"):
        GradientDiagnostics(every_n_steps=0)
    with pytest.raises(ValueError, match="max_blocks=0"):
        GradientDiagnostics(max_blocks=0)
