"""GPT and LLaMA as language models: what an untrained one knows, what it may see, what it keeps, what it refuses."""

import json
import math
import os
import struct
import weakref

import pytest
import torch
import torch.nn.functional as F

from zoo.models import GPT, GPTLanguageModel, LLaMA, LLaMALanguageModel
from zoo.text.tokenizer import Tokenizer
from zoo.weights.formats.llama import SCALING
from zoo.weights.pretrained import PretrainedNet
from zoo.weights.tensors import LazyTensors

MODERN = {
    "positions": "rotary",
    "norm": "rmsnorm",
    "activation": "relu_squared",
    "qk_norm": True,
    "token_shift": 2,
    "logit_softcap": 15.0,
}
NETS = {
    "GPT": lambda **kw: GPT(61, 32, 48, 3, 4, **kw),
    "modern GPT": lambda **kw: GPT(61, 32, 48, 3, 4, **{**MODERN, **kw}),
    "gated GPT": lambda **kw: GPT(61, 32, 48, 3, 4, **{"activation": "swiglu", "tied": False, **kw}),
    "LLaMA": lambda **kw: LLaMA(61, 32, 48, 3, 4, **kw),
    "grouped LLaMA": lambda **kw: LLaMA(61, 32, 48, 3, 4, **{"kv_heads": 2, "tied": True, **kw}),
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}
SCALED = dict(zip(SCALING, (8.0, 1.0, 4.0, 32), strict=True))
every_net = pytest.mark.parametrize("kind", NETS)


def make(kind: str, **kwargs) -> PretrainedNet:
    torch.manual_seed(0)
    return NETS[kind](**kwargs)


def tokens(b: int = 3, t: int = 20) -> torch.Tensor:
    return torch.randint(61, (b, t), generator=torch.Generator().manual_seed(0))


@every_net
def test_untrained_knows_nothing(kind):
    """Each token is as probable as any other: the loss is ln V, and the perplexity V."""
    x = tokens(32, 32)
    loss = F.cross_entropy(make(kind).eval()(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(61), abs=0.03)


@every_net
def test_no_look_into_the_future(kind):
    """By gradient: of each output in the embeddings of all inputs."""
    net = make(kind).double().eval()
    seen = []
    table = next(m for m in net.modules() if isinstance(m, torch.nn.Embedding))
    table.register_forward_hook(lambda module, args, out: seen.append(out.detach().requires_grad_()) or seen[-1])
    logits = net(tokens(1, 12))
    for t in range(12):
        (grad,) = torch.autograd.grad(logits[0, t].square().sum(), seen[0], retain_graph=True)
        moved = grad[0].abs().sum(1)
        assert (moved[: t + 1] > 0).all()
        assert (moved[t + 1 :] == 0).all()


@every_net
@pytest.mark.parametrize("parts", [[20], [7, *[1] * 13], [1] * 20, [5, 6, 1, 8]], ids=str)
def test_cached_is_uncached(kind, parts):
    net = make(kind).double().eval()
    x, cache = tokens(), net.make_cache(3, 24)
    with torch.inference_mode():
        expected = net(x)
        found = torch.cat([net(part, cache=cache) for part in x.split(parts, 1)], 1)
        assert cache.position == 20
        assert (found - expected).abs().max() < 1e-12
        cache.rewind(12)
        again = net(x[:, 12:], cache=cache)
    assert (again - expected[:, 12:]).abs().max() < 1e-12
    assert cache.keys[0].shape == (3, net.arguments.get("kv_heads", 4), 24, 12)


def test_a_cache_is_reordered_by_rows():
    net = make("GPT").double().eval()
    x, cache, rows = tokens(), net.make_cache(3, 24), torch.tensor([2, 0])
    with torch.inference_mode():
        net(x[:, :10], cache=cache)
        cache.reorder(rows)
        assert torch.allclose(net(x[rows, 10:], cache=cache), net(x[rows])[:, 10:], rtol=0, atol=1e-12)


@every_net
def test_rotary_tables_made_in_inference_mode_serve_training(kind):
    net = make(kind)
    with torch.inference_mode():
        net.eval()(tokens())
    net.train()(tokens()).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@every_net
def test_activation_checkpointing_changes_no_number(kind):
    net, x = make(kind).double().train(), tokens()
    found = []
    for checkpointed in (False, True):
        net.zero_grad()
        net.activation_checkpointing = checkpointed
        calls = []
        hook = net.blocks[0].register_forward_pre_hook(lambda *args, calls=calls: calls.append(1))
        loss = F.cross_entropy(net(x).flatten(0, 1), x.flatten())
        loss.backward()
        hook.remove()
        assert len(calls) == (2 if checkpointed else 1)
        found.append([loss.detach(), *(p.grad.clone() for p in net.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_initialisation_is_that_of_gpt2():
    net = GPT(500, 64, 256, 4, 4)
    for name, p in net.named_parameters():
        if p.ndim > 1:
            assert p.std().item() == pytest.approx(0.02 / (8**0.5 if ".proj." in name else 1), rel=0.05), name
        else:
            assert (p == ("weight" in name)).all(), name


def test_zero_initialised_projections_are_one_line():
    """With the rules that every task has, blocks begin as the identity."""
    from zoo.layers import InitRule

    rule = InitRule(match=r"(attn|mlp)\.proj$", weight="zeros")
    module = GPTLanguageModel(dim=48, depth=3, heads=4, vocab_size=61, block_size=32, init=[rule])
    x = torch.randn(2, 5, 48)
    assert torch.equal(module.net.blocks[1](x, None, None, 0), x)


def test_qk_norm_and_softcap_bound_what_they_should():
    net = make("modern GPT").eval()
    with torch.no_grad():
        net.lm_head.weight.mul_(1e4)
        net.blocks[0].attn.qkv.weight.mul_(1e4)
    scores = []
    original = F.scaled_dot_product_attention

    def spy(q, k, *args, **kwargs):
        scores.append((q @ k.mT / q.shape[-1] ** 0.5).abs().max().item())
        return original(q, k, *args, **kwargs)

    F.scaled_dot_product_attention = spy
    try:
        logits = net(tokens())
    finally:
        F.scaled_dot_product_attention = original
    assert max(scores) <= 12**0.5 + 1e-4
    assert 14.9 < logits.abs().max() <= 15.0


@torch.no_grad()
@pytest.mark.parametrize("n", [1, 2, 3])
def test_token_shift_adds_what_was_before(n):
    """Shares of the embeddings of tokens before; also of those that only the cache knows."""
    net = GPT(61, 32, 48, 2, 4, token_shift=n).double().eval()
    torch.nn.init.normal_(net.token_shift)
    plain, ids = GPT(61, 32, 48, 2, 4).double().eval(), tokens()
    plain.load_state_dict({k: v for k, v in net.state_dict().items() if k != "token_shift"})
    shifts = torch.nn.functional.pad(net.wte(ids), (0, 0, n, 0)).unfold(1, 20, 1)  # (b, n + 1, d, t), farthest first
    added = torch.einsum("bndt,nd->btd", shifts[:, :n], net.token_shift.flip(0))
    plain.wte.register_forward_hook(lambda module, args, out: out + added)
    whole, cache = net(ids), net.make_cache(3, 20)
    torch.testing.assert_close(whole, plain(ids), rtol=0, atol=1e-12)
    parts = [net(part, cache=cache) for part in ids.split([1, 1, 7, 1, 10], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-12)


def test_rotary_scores_depend_on_distance_alone():
    from zoo.layers.rotary import RotaryEmbedding, apply_rotary

    rotary, q, k = RotaryEmbedding(16), *torch.randn(2, 1, 1, 1, 16, dtype=torch.float64)
    q, k = (x.expand(1, 40, 1, 16) for x in (q, k))
    tables = rotary(0, q.flatten(2))
    scores = (apply_rotary(q, *tables).squeeze() @ apply_rotary(k, *tables).squeeze().T).detach()
    for distance in range(-20, 20):
        diagonal = scores.diagonal(distance)
        assert (diagonal - diagonal[0]).abs().max() < 1e-12
    assert scores[0].std() > 0.01


def test_reading_goes_tensor_by_tensor(tmp_path, monkeypatch):
    """So the weights are in memory once: no more than one tensor of the file is alive at a time."""
    make("grouped LLaMA").save_pretrained(tmp_path / "a", max_shard_size=20_000)
    alive, most = weakref.WeakSet(), []
    original = LazyTensors.__getitem__

    def spy(self, name):
        most.append(len(alive))
        tensor = original(self, name)
        alive.add(tensor)
        return tensor

    monkeypatch.setattr(LazyTensors, "__getitem__", spy)
    LLaMA.from_pretrained(tmp_path / "a")
    assert len(most) > 20
    assert max(most) <= 1


def test_writing_leaves_a_tokenizer_alone_and_no_old_shard(tmp_path):
    net = make("GPT")
    net.save_pretrained(tmp_path / "a", max_shard_size=50_000)
    assert len(list((tmp_path / "a").glob("model-*"))) > 3
    (tmp_path / "a" / "tokenizer.json").write_text("{}")
    net.save_pretrained(tmp_path / "a")
    assert sorted(os.listdir(tmp_path / "a")) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert os.listdir(tmp_path) == ["a"]


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    import safetensors.torch

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        make("GPT").save_pretrained(tmp_path / "a")
    assert os.listdir(tmp_path) == []


@every_net
def test_files_of_zoo_hold_any_network(kind, tmp_path):
    net = make(kind)
    net.save_pretrained(tmp_path / "a.safetensors", format="zoo")
    again = type(net).from_pretrained(tmp_path / "a.safetensors")
    assert again.arguments == net.arguments
    assert torch.equal(again(tokens()), net.eval()(tokens()))


def test_a_module_starts_from_a_checkpoint_of_another(tmp_path):
    module = GPTLanguageModel(dim=48, depth=2, heads=4, qk_norm=True, vocab_size=61, block_size=32)
    hparams = dict(module.hparams)
    torch.save({"state_dict": module.state_dict(), "hyper_parameters": hparams}, tmp_path / "a.ckpt")
    again = GPTLanguageModel(weights=str(tmp_path / "a.ckpt"), vocab_size=61, block_size=16)
    assert again.net.arguments == module.net.arguments
    assert torch.equal(again(tokens()), module(tokens()))


def test_what_weights_do_not_have_is_not_taken_from_a_preset_later(tmp_path):
    make("LLaMA").save_pretrained(tmp_path)
    given = {"vocab_size": 61, "block_size": 32}
    module = LLaMALanguageModel(preset="llama-3.2-1b", weights=str(tmp_path), **given)
    again = LLaMALanguageModel(**module.hparams)
    assert again.net.arguments == module.net.arguments
    assert again.net.arguments["rope_scaling"] is None


# Mistakes -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    make("GPT").save_pretrained(tmp_path / "model", max_shard_size=50_000)
    return tmp_path / "model"


def load(folder, **kwargs) -> GPTLanguageModel:
    return GPTLanguageModel(weights=str(folder), **{"vocab_size": 61, "block_size": 32, **kwargs})


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: GPT(61, 32, 48, 3, 5), "dim=48 is not divisible by heads=5"),
        (lambda: GPT(61, 32, 48, 3, 0), "dim=48 is not divisible by heads=0"),
        (lambda: LLaMA(61, 32, 48, 3, 0), "dim=48 is not divisible by heads=0"),
        (lambda: LLaMA(61, 32, 48, 3, 4, rope_scaling={"faktor": 2}), "rope_scaling is factor, .*: got {'faktor': 2}"),
        (lambda: LLaMA(61, 32, 48, 3, 4, rope_scaling={"rope_type": "yarn", "factor": 4}), "rope_scaling is .* 'yarn'"),
        (lambda: LLaMA(61, 32, 48, 3, 4, rope_scaling={**YARN, "truncate": "no"}), "rope_scaling is .* 'no'"),
        (lambda: LLaMA(61, 32, 48, 3, 4, rope_scaling={**YARN, "beta_fats": 32}), "beta_fast, .* 'beta_fats'"),
        (lambda: LLaMA(61, 32, 48, 3, 4, rope_scaling={"factor": 0}), "all above 0"),
        (lambda: LLaMA(61, 32, 48, 3, 4, rope_scaling={**SCALED, "low_freq_factor": 4.0}), "low below high"),
        (lambda: GPT(61, 32, 48, 3, 4, token_shift=-1), "token_shift must be 0 or more.*got -1"),
        (lambda: GPT(61, 32, 48, 3, 4, activation="relu"), "activation must be gelu_tanh, .*, got 'relu'"),
        (lambda: LLaMA(61, 32, 48, 3, 5), "dim=48 is not divisible by heads=5"),
        (lambda: LLaMA(61, 32, 48, 3, 4, 3), "heads=4 is not a multiple of kv_heads=3"),
        (lambda: LLaMA(61, 32, 36, 3, 4), "head_dim must be even, got 9"),
        (lambda: make("GPT")(tokens(1, 33)), "33 tokens exceed the context of 32"),
        (lambda: make("LLaMA")(tokens(1, 33)), "33 tokens exceed the context of 32"),
        (lambda: make("GPT")(tokens(1, 20), cache=make("GPT").make_cache(1, 19)), "20 tokens do not fit.* length 19"),
        (lambda: make("modern GPT").save_pretrained("a"), "GPT-2 has no positions=rotary, norm=rmsnorm.*format zoo"),
        (lambda: make("GPT").save_pretrained("a", format="timm"), "written as huggingface or zoo, not as 'timm'"),
        (lambda: GPTLanguageModel(block_size=32), "GPTLanguageModel needs vocab_size"),
        (lambda: LLaMALanguageModel(vocab_size=5, block_size=64, context=32), "block_size=64 is above .* of 32"),
    ],
)  # fmt: skip
def test_mistakes_in_sizes(build, said):
    with pytest.raises(ValueError, match=said):
        build()


def shards(folder) -> list:
    return sorted(folder.glob("model-*.safetensors"))


def test_a_missing_shard(folder):
    (gone := shards(folder)[1]).unlink()
    with pytest.raises(ValueError, match=f"index.json names {gone.name}, not there"):
        load(folder)


def test_half_a_file(folder):
    half = shards(folder)[0]
    half.write_bytes(half.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=f"{half.name} is no whole file of weights"):
        load(folder)


def test_a_header_that_promises_too_much(folder):
    file = shards(folder)[0]
    file.write_bytes(struct.pack("<Q", 10**9) + file.read_bytes()[8:])
    with pytest.raises(ValueError, match=f"{file.name} is no whole file of weights"):
        load(folder)


def test_an_index_that_lies(folder):
    index, first = folder / "model.safetensors.index.json", shards(folder)[0].name
    said = json.loads(index.read_text())
    said["weight_map"]["transformer.ln_f.bias"] = first
    index.write_text(json.dumps(said))
    with pytest.raises(ValueError, match=rf"{first} holds transformer\.ln_f\.bias, but it does not"):
        load(folder)


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"vocab_size": 70}, "vocab_size=61 instead of 70"),
        ({"dim": 64}, "dim=48 instead of 64"),
        ({"positions": "rotary"}, "positions=learned instead of rotary"),
        ({"block_size": 64}, "the data's block_size=64 is above the model's context of 32"),
        ({"weights": "nowhere/at/all"}, "there is no file nowhere/at/all"),
    ],
)
def test_what_does_not_fit_the_weights(folder, kwargs, said):
    with pytest.raises(ValueError, match=said):
        load(folder, **kwargs) if "weights" not in kwargs else load(kwargs["weights"])


@pytest.mark.parametrize("kind", ["folder", "checkpoint"])
def test_another_tokenizer_than_that_of_the_weights(folder, kind, tmp_path):
    """Of as many tokens, so that nothing else would say so."""
    own, other = (Tokenizer.train("characters", [text]) for text in ("abcdef", "abcdeF"))
    weights = folder
    if kind == "folder":
        own, other = (Tokenizer.train("bpe", [text * 9], vocab_size=262) for text in ("the cat. ", "a dog! "))
        (folder / "tokenizer.json").write_text(own.source)
    else:
        module = load(folder)
        module.tokenizer, weights = own, tmp_path / "a.ckpt"
        saved = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
        module.on_save_checkpoint(saved)
        torch.save(saved, weights)
    module = load(weights)
    module.set_tokenizer(own)
    with pytest.raises(ValueError, match="the tokenizer of the data differs from that of the weights"):
        module.set_tokenizer(other)
    assert module.tokenizer is own


def test_weights_of_something_else(folder, tmp_path):
    make("LLaMA").save_pretrained(tmp_path / "llama")
    with pytest.raises(ValueError, match="is no GPT-2, but llama"):
        load(tmp_path / "llama")
    with pytest.raises(ValueError, match="is no LLaMA, but gpt2"):
        LLaMA.from_pretrained(folder)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(ValueError, match=r"holds neither model\.safetensors nor pytorch_model\.bin, nor the index"):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        load(folder)
