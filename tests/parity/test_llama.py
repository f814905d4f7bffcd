"""LLaMA is transformers', in numbers and in files; and Meta's own files are read."""

import filecmp
import json
import math

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama

from tests.parity.compare import assert_near, on_meta, randomize, shapes
from zoo.models import LLaMA, LLaMALanguageModel
from zoo.models.llama import PRESETS

SMALL = {
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 100,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
SCALED = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16,
    "beta_fast": 2.0, "beta_slow": 0.25,
}  # fmt: skip
KINDS = {
    "plain": {},
    "grouped": {"num_key_value_heads": 2},
    "one key": {"num_key_value_heads": 1, "head_dim": 16, "tie_word_embeddings": True},
    "scaled": {"num_key_value_heads": 2, "rope_parameters": SCALED},
    "linear": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
    "yarn": {"num_key_value_heads": 2, "rope_parameters": YARN},
    "yarn with options": {"rope_parameters": {**YARN, "truncate": False, "mscale": 0.7, "mscale_all_dim": 1.3}},
    "yarn with a factor": {"rope_parameters": {**YARN, "attention_factor": 0.8}},
}


def reference(**kwargs) -> LlamaForCausalLM:
    config = LlamaConfig(
        **{**SMALL, "max_position_embeddings": 64, "bos_token_id": None, "eos_token_id": None, **kwargs}
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    randomize(model)
    return model


def tokens(b: int = 3, t: int = 40) -> Tensor:
    return torch.randint(61, (b, t), generator=torch.Generator().manual_seed(0))


def without_rounding(monkeypatch) -> None:
    """transformers computes norms and rotary tables in float32 whatever the model has; here in float64."""

    def norm(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    def tables(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        rope, d = self.config.rope_parameters, self.config.head_dim
        frequencies = rope["rope_theta"] ** -(torch.arange(0, d, 2, dtype=torch.float64) / d)
        if rope["rope_type"] == "linear":
            frequencies = frequencies / rope["factor"]
        if rope["rope_type"] == "llama3":
            length, low, high = (
                rope[k] for k in (*("original_max_position_embeddings", "low_freq_factor"), "high_freq_factor")
            )
            waves = 2 * torch.pi / frequencies
            smooth = (length / waves - low) / (high - low)
            middle = (1 - smooth) * frequencies / rope["factor"] + smooth * frequencies
            frequencies = torch.where(
                waves > length / low,
                frequencies / rope["factor"],
                torch.where(waves < length / high, frequencies, middle),
            )
        scale = 1.0
        if rope["rope_type"] == "yarn":
            # channel whose waves fit so many times into the original context, from the paper's formula
            ends = [
                d / 2 * math.log(rope["original_max_position_embeddings"] / (2 * math.pi * rope[k]), rope["rope_theta"])
                for k in ("beta_fast", "beta_slow")
            ]
            if rope.get("truncate", True):
                ends = [math.floor(ends[0]), math.ceil(ends[1])]
            low, high = max(ends[0], 0), min(ends[1], d - 1)
            ramp = ((torch.arange(d // 2).double() - low) / (high - low)).clamp(0, 1)
            assert ramp.min() < ramp.max()
            frequencies = ramp * frequencies / rope["factor"] + (1 - ramp) * frequencies
            grown = [1 + 0.1 * rope.get(k, v) * math.log(rope["factor"]) for k, v in
                     (("mscale", 1.0), ("mscale_all_dim", 0.0))]  # fmt: skip
            scale = rope.get("attention_factor") or grown[0] / grown[1]
        angles = position_ids[..., None].double() * frequencies
        angles = torch.cat([angles, angles], -1)
        return angles.cos() * scale, angles.sin() * scale

    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", norm)
    monkeypatch.setattr(modeling_llama.LlamaRotaryEmbedding, "forward", tables)


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_as_transformers_rounds(kind, tmp_path):
    model = reference(**KINDS[kind])
    model.save_pretrained(tmp_path)
    net = LLaMA.from_pretrained(tmp_path, torch.float64)
    expected = model.double()(tokens()).logits
    assert (net(tokens()) - expected).abs().max() < 1e-6 * max(1.0, expected.abs().max().item())


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients(kind, tmp_path, monkeypatch):
    model = reference(**KINDS[kind])
    model.save_pretrained(tmp_path)
    net = LLaMA.from_pretrained(tmp_path, torch.float64)
    without_rounding(monkeypatch)
    model, x, y = model.double(), tokens(), tokens().roll(-1, 1)
    assert_near("output", net(x), model(x).logits, torch.float64)
    for logits in (net(x), model(x).logits):
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten()).backward()
    theirs, ours = dict(model.named_parameters()), dict(net.named_parameters())
    seen = set()
    for entry in net.weights_format.entries(net):
        for name, grad in zip(entry.names, entry.pieces(ours[entry.param].grad), strict=True):
            assert grad.abs().max() > 1e-6
            assert_near(f"gradient of {name}", grad, theirs[name].grad, torch.float64)
            seen.add(name)
    assert seen == theirs.keys()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shard", [None, 20_000], ids=["whole", "shards"])
def test_a_round_trip_gives_the_same_bytes(kind, shard, tmp_path):
    reference(**KINDS[kind]).save_pretrained(tmp_path / "theirs", **({"max_shard_size": shard} if shard else {}))
    net = LLaMA.from_pretrained(tmp_path / "theirs")
    net.save_pretrained(tmp_path / "ours", **({"max_shard_size": shard} if shard else {}))
    names = sorted(p.name for p in (tmp_path / "theirs").iterdir() if p.name != "generation_config.json")
    assert (len(names) > 5) == bool(shard)
    assert names == sorted(p.name for p in (tmp_path / "ours").iterdir())
    assert filecmp.cmpfiles(tmp_path / "theirs", tmp_path / "ours", names, shallow=False)[0] == names


@pytest.mark.parametrize(
    "kwargs", [{}, {"rope_scaling": {k: SCALED[k] for k in list(SCALED)[2:]}, "theta": 5e5, "tied": True}]
)
def test_transformers_reads_what_a_fresh_llama_writes(kwargs, tmp_path):
    net = LLaMA(61, 64, 48, 3, 4, 2, **kwargs).eval()
    net.save_pretrained(tmp_path)
    model = LlamaForCausalLM.from_pretrained(tmp_path).double().eval()
    assert (net.double()(tokens()) - model(tokens()).logits).abs().max() < 1e-6


@pytest.mark.parametrize("kind", ["scaled", "linear", "yarn"])
def test_config_from_before_transformers_5(kind, tmp_path):
    model = reference(**KINDS[kind])
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = rope
    (tmp_path / "config.json").write_text(json.dumps(config))
    net = LLaMA.from_pretrained(tmp_path, torch.float64)
    assert (net(tokens()) - model.double()(tokens()).logits).abs().max() < 1e-5
    net.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again/config.json").read_text())
    assert (again["rope_theta"], again["rope_scaling"]) == (config["rope_theta"], rope)


def test_generation_with_yarn_equals_that_of_transformers(tmp_path):
    """Greedy generation with a KV cache, from 5 tokens to three times the original context."""
    model = reference(**KINDS["yarn"]).double()
    model.save_pretrained(tmp_path)
    module = LLaMALanguageModel(weights=str(tmp_path), vocab_size=61, block_size=64).double()
    expected = model.generate(tokens(2, 5), max_new_tokens=43, do_sample=False)[:, 5:]
    assert module.generate(tokens(2, 5), max_new_tokens=43, temperature=0) == expected.tolist()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_attention_heads": None}, "does not state num_attention_heads"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "'llama3' without low_freq_factor, high"),
    ],
)
def test_half_a_config(change, said, tmp_path):
    reference().save_pretrained(tmp_path)
    config = {**json.loads((tmp_path / "config.json").read_text()), **change}
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    with pytest.raises(ValueError, match=said):
        LLaMA.from_pretrained(tmp_path)


def test_the_body_alone_is_no_language_model(tmp_path):
    reference().model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lacks model\.embed_tokens\.weight"):
        LLaMA.from_pretrained(tmp_path)


def meta_logits(state: dict[str, Tensor], ids: Tensor, heads: int, kv_heads: int, eps: float, theta: float) -> Tensor:
    """Meta's formulas, written out: neighbours are turned as complex numbers, keys repeated, scores masked."""
    t, depth = ids.shape[1], 1 + max(int(k.split(".")[1]) for k in state if k.startswith("layers."))
    x = state["tok_embeddings.weight"][ids]
    dim = x.shape[2] // heads
    angles = torch.outer(torch.arange(t).double(), theta ** -(torch.arange(0, dim, 2).double() / dim))
    turns = torch.polar(torch.ones_like(angles), angles).unsqueeze(1)

    def norm(x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * state[f"{name}.weight"]

    def turned(x: Tensor) -> Tensor:
        return torch.view_as_real(torch.view_as_complex(x.unflatten(3, (-1, 2))) * turns).flatten(3)

    for i in range(depth):
        w = {k.removeprefix(f"layers.{i}."): v for k, v in state.items() if k.startswith(f"layers.{i}.")}
        y = norm(x, f"layers.{i}.attention_norm")
        q, k, v = ((y @ w[f"attention.w{n}.weight"].T).unflatten(2, (-1, dim)) for n in "qkv")
        q, k = turned(q), turned(k)
        k, v = (z.repeat_interleave(heads // kv_heads, 2) for z in (k, v))
        scores = torch.einsum("bqhc,bkhc->bhqk", q, k) / dim**0.5 + torch.full((t, t), -torch.inf).double().triu(1)
        x = x + torch.einsum("bhqk,bkhc->bqhc", scores.softmax(-1), v).flatten(2) @ w["attention.wo.weight"].T
        y = norm(x, f"layers.{i}.ffn_norm")
        gate = torch.nn.functional.silu(y @ w["feed_forward.w1.weight"].T)
        x = x + (gate * (y @ w["feed_forward.w3.weight"].T)) @ w["feed_forward.w2.weight"].T
    return norm(x, "norm") @ state["output.weight"].T


@pytest.mark.parametrize("files", [1, 2])
@pytest.mark.parametrize("by_width", [True, False], ids=["LLaMA 2", "LLaMA 3"])
def test_files_of_meta(files, by_width, tmp_path):
    generator = torch.Generator().manual_seed(0)
    dim, heads, kv_heads, hidden = 48, 4, 2, 64
    square = {"wq": (dim, dim), "wk": (dim // 2, dim), "wv": (dim // 2, dim), "wo": (dim, dim)}
    layer = {f"attention.{k}": v for k, v in square.items()}
    layer |= {"feed_forward.w1": (hidden, dim), "feed_forward.w2": (dim, hidden), "feed_forward.w3": (hidden, dim)}
    sizes = {f"layers.{i}.{k}.weight": v for i in range(2) for k, v in layer.items()}
    sizes |= {"tok_embeddings.weight": (60, dim), "output.weight": (60, dim)}
    state = {k: 0.2 * torch.randn(*v, generator=generator) for k, v in sizes.items()}
    norms = ["norm", *(f"layers.{i}.{k}_norm" for i in range(2) for k in ("attention", "ffn"))]
    state |= {f"{k}.weight": 1 + 0.2 * torch.randn(dim, generator=generator) for k in norms}
    for i in range(files):
        part = {"rope.freqs": torch.zeros(6)}
        for name, tensor in state.items():
            narrow = ".wo." in name or ".w2." in name or ("tok_" in name and by_width)
            part[name] = tensor if tensor.ndim == 1 else tensor.chunk(files, 1 if narrow else 0)[i].clone()
        torch.save(part, tmp_path / f"consolidated.{i:02d}.pth")
    theta = 10_000.0 if by_width else 500_000.0
    params = {"dim": dim, "n_layers": 2, "n_heads": heads, "n_kv_heads": kv_heads, "norm_eps": 1e-5, "vocab_size": -1}
    (tmp_path / "params.json").write_text(json.dumps({**params, **({} if by_width else {"rope_theta": theta})}))
    net = LLaMA.from_pretrained(tmp_path, torch.float64)
    assert net.block_size == (4096 if by_width else 8192)
    ids = tokens(2, 10) % 60
    expected = meta_logits({k: v.double() for k, v in state.items()}, ids, heads, kv_heads, 1e-5, theta)
    assert_near("output", net(ids), expected, torch.float64)
    net.save_pretrained(tmp_path / "huggingface")
    model = LlamaForCausalLM.from_pretrained(tmp_path / "huggingface").double().eval()
    assert (model(ids).logits - expected).abs().max() < 1e-6 * max(1.0, expected.abs().max().item())


@pytest.mark.parametrize(
    ("name", "vocab_size", "billions"),
    [
        ("llama-7b", 32000, 6.74), ("llama-13b", 32000, 13.02), ("llama-33b", 32000, 32.53),
        ("llama-65b", 32000, 65.29),
        ("llama-2-7b", 32000, 6.74), ("llama-2-13b", 32000, 13.02), ("llama-2-70b", 32000, 68.98),
        ("llama-3-8b", 128256, 8.03), ("llama-3-70b", 128256, 70.55), ("llama-3.1-8b", 128256, 8.03),
        ("llama-3.1-70b", 128256, 70.55), ("llama-3.1-405b", 128256, 405.85), ("llama-3.2-1b", 128256, 1.24),
        ("llama-3.2-3b", 128256, 3.21), ("llama-3.3-70b", 128256, 70.55),
    ],
)  # fmt: skip
def test_presets_have_the_published_sizes(name, vocab_size, billions):
    net = on_meta(lambda: LLaMA(vocab_size, 8192, **PRESETS[name]))
    assert sum(p.numel() for p in net.parameters()) / 1e9 == pytest.approx(billions, abs=0.006)
    a = net.arguments
    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=a["dim"], intermediate_size=a["hidden_dim"], num_hidden_layers=a["depth"],
        num_attention_heads=a["heads"], num_key_value_heads=a["kv_heads"], tie_word_embeddings=a["tied"],
    )  # fmt: skip
    theirs, own = shapes(on_meta(lambda: LlamaForCausalLM(config))), dict(net.named_parameters())
    for entry in net.weights_format.entries(net):
        for file, piece in zip(entry.names, entry.pieces(own[entry.param]), strict=True):
            assert tuple(piece.shape) == theirs[file]


def test_presets_are_all_tested_and_offered():
    from typing import get_args

    from zoo.models.llama import Preset

    tested = {args[0] for args in test_presets_have_the_published_sizes.pytestmark[0].args[1]}
    assert set(get_args(Preset)) == PRESETS.keys() == tested | {"baby"}


def test_a_module_starts_from_a_folder(tmp_path):
    model = reference(**KINDS["scaled"])
    model.save_pretrained(tmp_path)
    module = LLaMALanguageModel(weights=str(tmp_path), vocab_size=61, block_size=40).eval().double()
    assert (module(tokens()) - model.double()(tokens()).logits).abs().max() < 1e-5
    assert module.hparams["rope_scaling"] == {k: v for k, v in SCALED.items() if not k.startswith("rope")}
