"""The entropy of attention weights, of every network that computes some, without a trace in the training."""

import math

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from zoo.callbacks import AttentionEntropy
from zoo.callbacks.attention_entropy import attention_entropy
from zoo.layers.attention import attention
from zoo.layers.attention_weights import observe_attention
from zoo.models import GPT, BERTForMaskedLM, Seq2Seq, UNet, ViT
from zoo.models.clip_text import CLIPTextEncoder


def test_entropy_of_known_weights():
    weights = torch.tensor([[[1.0, 0.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]], [[0.5, 0.5, 0.0, 0.0], [1.0, 0, 0, 0]]])
    expected = (0 + math.log(4) + math.log(2) + 0) / 4
    assert float(attention_entropy(weights)) == pytest.approx(expected, rel=1e-6)


def qkv(heads, kv_heads, queries, keys):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, heads, queries, 8, generator=generator, dtype=torch.float64)
    k, v = torch.randn(2, 2, kv_heads, keys, 8, generator=generator, dtype=torch.float64)
    return q, k, v


MASK = torch.tensor([[True] * 6, [True] * 2 + [False] * 4])[:, None, None]


@pytest.mark.parametrize(
    ("heads", "kv_heads", "queries", "options"),
    [
        (4, 4, 6, {}),
        (4, 2, 6, {"causal": True}),
        (4, 4, 3, {"causal": True}),
        (4, 4, 1, {"causal": True}),
        (4, 4, 6, {"mask": MASK}),
        (4, 4, 6, {"dropout": 0.5}),
    ],
)
def test_observed_weights_are_those_of_the_output(heads, kv_heads, queries, options):
    """Also with grouped heads, and with fewer queries than keys as behind a cache."""
    q, k, v = qkv(heads, kv_heads, queries, 6)
    seen = []

    class Net(nn.Module):
        def forward(self):
            return attention(q, k, v, **options)

    net = Net()
    with observe_attention(net, lambda name, weights: seen.append((name, weights))):
        state = torch.get_rng_state()
        out = net()
    torch.set_rng_state(state)
    assert torch.equal(out, net())
    ((name, weights),) = seen
    assert name == ""
    if "dropout" not in options:
        torch.testing.assert_close(weights @ v.repeat_interleave(heads // kv_heads, 1), out, rtol=0, atol=1e-12)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, heads, queries, dtype=torch.float64))


IDS = torch.randint(1, 20, (2, 6), generator=torch.Generator().manual_seed(1))
IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))


class TorchTransformer(nn.Module):
    """A user's own network."""

    def __init__(self, need_weights=None):
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.attention = nn.MultiheadAttention(16, 2, dropout=0.1)

    def forward(self, ids):
        x = self.encoder(self.embedding(ids)).transpose(0, 1)
        return self.attention(x, x, x, need_weights=False)[0].transpose(0, 1)


NETS = {
    "GPT": (lambda: GPT(20, 8, dim=16, depth=2, heads=2), (IDS,), ["blocks.0.attn", "blocks.1.attn"], 6),
    "checkpointed GPT": (lambda: checkpointed(), (IDS,), ["blocks.0.attn", "blocks.1.attn"], 6),
    "ViT": (
        lambda: ViT(3, 5, 8, 4, dim=16, depth=1, heads=2),
        (IMAGES,),
        ["encoder.layers.encoder_layer_0.self_attention"],
        5,
    ),
    "BERT": (lambda: BERTForMaskedLM(20, dim=16, depth=1, heads=2), (IDS,), ["blocks.0.attention"], 6),
    "CLIP": (
        lambda: CLIPTextEncoder(20, 8, 16, 1, 2, 32),
        (IDS,),
        ["encoder.layers.0.self_attn"],
        6,
    ),
    "U-Net": (
        lambda: UNet(3, channels=[32, 32], blocks=1, attention=[False, False]),
        (IMAGES, torch.tensor([1, 2])),
        ["mid_block.attentions.0"],
        16,
    ),
    "Bahdanau": (lambda: Seq2Seq(20, 20, 0, 8, attention="additive"), (IDS, IDS), ["decoder.attention"], 6),
    "Luong": (lambda: Seq2Seq(20, 20, 0, 8, attention="dot"), (IDS, IDS), ["decoder.attention"], 6),
    "torch": (TorchTransformer, (IDS,), ["encoder.self_attn", "attention"], 6),
}  # fmt: skip


def checkpointed():
    net = GPT(20, 8, dim=16, depth=2, heads=2, dropout=0.1)
    net.activation_checkpointing = True
    return net


class Module(L.LightningModule):
    def __init__(self, net, inputs):
        super().__init__()
        self.net = net
        self.inputs = inputs

    def training_step(self, batch, batch_idx):
        return self.net(*self.inputs).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), 0.1)


def fit(net, inputs, folder, *callbacks, steps=3, **options):
    torch.manual_seed(0)
    trainer = L.Trainer(
        max_steps=steps, logger=options.pop("logger", False), callbacks=list(callbacks), default_root_dir=folder,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu", **options,
    )  # fmt: skip
    trainer.fit(Module(net, inputs), DataLoader(range(8)))


def build(name):
    torch.manual_seed(0)
    make, inputs, layers, keys = NETS[name]
    return make(), inputs, layers, keys


@pytest.mark.parametrize("name", NETS)
def test_every_network_with_attention(name, tmp_path, capsys):
    net, inputs, layers, keys = build(name)
    callback = AttentionEntropy(every_n_steps=2)
    fit(net, inputs, tmp_path, callback)
    kinds = ("attention_entropy", "attention_entropy_relative")
    assert set(callback.metrics) == {f"{kind}/{layer}" for kind in kinds for layer in layers}
    for layer in layers:
        nats = float(callback.metrics[f"attention_entropy/{layer}"])
        relative = float(callback.metrics[f"attention_entropy_relative/{layer}"])
        assert 0 < nats <= math.log(keys) + 1e-6
        assert relative == pytest.approx(nats / math.log(keys))
    assert "no attention" not in capsys.readouterr().err

    other, *_ = build(name)
    fit(other, inputs, tmp_path)
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)  # observing changes nothing
    for module in net.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_uniform_causal_attention(tmp_path):
    """With queries of 0 each token attends equally to itself and those before it."""
    net, inputs, *_ = build("GPT")
    for block in net.blocks:
        nn.init.zeros_(block.attn.qkv.weight)
        nn.init.zeros_(block.attn.qkv.bias)
    callback = AttentionEntropy()
    fit(net, inputs, tmp_path, callback, steps=1)
    expected = sum(math.log(visible) for visible in range(1, 7)) / 6
    for layer in ("blocks.0.attn", "blocks.1.attn"):
        assert float(callback.metrics[f"attention_entropy/{layer}"]) == pytest.approx(expected, rel=1e-5)


def test_compiled_network(tmp_path):
    net, inputs, layers, _ = build("GPT")
    net.compile(backend="eager")
    callback = AttentionEntropy()
    fit(net, inputs, tmp_path, callback, steps=2)
    assert f"attention_entropy/{layers[1]}" in callback.metrics


def test_interval_accumulation_and_logger(tmp_path):
    """Measured are the first micro-batches of steps 0 and 2; the logger gets them at their own steps."""
    rows = []

    class Logger(L.pytorch.loggers.CSVLogger):
        def log_metrics(self, metrics, step=None):
            rows.append((step, sorted(metrics)))

    net, inputs, *_ = build("BERT")
    callback = AttentionEntropy(every_n_steps=2)
    fit(net, inputs, tmp_path, callback, logger=Logger(tmp_path), accumulate_grad_batches=2)
    keys = ["attention_entropy/blocks.0.attention", "attention_entropy_relative/blocks.0.attention"]
    assert [names for _, names in rows if names[0].startswith("attention")] == [keys, keys]


def test_no_attention_is_one_line(tmp_path, capsys):
    net = nn.Linear(3, 2)
    callback = AttentionEntropy(every_n_steps=1)
    fit(net, (torch.ones(1, 3),), tmp_path, callback)
    assert callback.metrics == {}
    assert capsys.readouterr().err.count("AttentionEntropy: no attention found in Module;") == 1


def test_refused_interval():
    with pytest.raises(ValueError, match="every_n_steps must be at least 1, got 0"):
        AttentionEntropy(every_n_steps=0)
