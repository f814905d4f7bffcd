"""GPT is transformers' GPT-2, in numbers and in files."""

import filecmp
import json

import pytest
import torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

from tests.parity.compare import assert_near, on_meta, randomize, shapes
from zoo.models import GPT, GPTLanguageModel
from zoo.models.gpt import PRESETS

SMALL = {"vocab_size": 61, "n_positions": 24, "n_embd": 48, "n_layer": 3, "n_head": 4}


def reference(**kwargs) -> GPT2LMHeadModel:
    no_ends = {"bos_token_id": None, "eos_token_id": None}
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**{**SMALL, **no_ends, **kwargs})).eval()
    randomize(model)
    return model


def tokens(b: int = 3, t: int = 20) -> torch.Tensor:
    return torch.randint(61, (b, t), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folder(tmp_path):
    reference().save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_outputs_and_gradients(dtype, tied, tmp_path):
    model = reference(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    net = GPT.from_pretrained(tmp_path, dtype)
    model, x, y = model.to(dtype), tokens(), tokens().roll(-1, 1)
    loss = [
        torch.nn.functional.cross_entropy(f(x).flatten(0, 1), y.flatten()) for f in (net, lambda x: model(x).logits)
    ]
    assert_near("output", net(x), model(x).logits, dtype)
    assert_near("loss", *loss, dtype)
    [part.backward() for part in loss]
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in model.parameters())
    theirs, ours = dict(model.named_parameters()), dict(net.named_parameters())
    for entry in net.weights_format.entries(net):
        grad = ours[entry.param].grad
        assert grad.abs().max() > 1e-6 or entry.param.endswith("qkv.bias")
        assert_near(
            f"gradient of {entry.param}", grad.T if entry.transpose else grad, theirs[entry.names[0]].grad, dtype
        )


def test_dropout_is_where_transformers_has_it(folder, monkeypatch):
    """Without chance in it, as the two lay tokens out in memory in different orders, and so draw other ones."""
    monkeypatch.setattr(torch.nn.functional, "dropout", lambda x, p, training, inplace=False: x * (1 - p * x.sin()))

    def attend(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, **kwargs):
        scores = q @ k.mT / q.shape[-1] ** 0.5
        weights = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf).softmax(-1)
        return torch.nn.functional.dropout(weights, dropout_p, True) @ v

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend)
    x, model = tokens(), reference(resid_pdrop=0.3, attn_pdrop=0.3, embd_pdrop=0.3).double().train()
    for dropout, same in ((0.3, True), (0.2, False)):
        net = GPT.from_pretrained(folder, torch.float64, dropout=dropout).train()
        assert torch.allclose(net(x), model(x).logits, rtol=0, atol=1e-10) == same


def test_a_round_trip_gives_the_same_bytes(folder, tmp_path):
    GPT.from_pretrained(folder).save_pretrained(tmp_path / "ours")
    for name in ("model.safetensors", "config.json"):
        assert filecmp.cmp(folder / name, tmp_path / "ours" / name, shallow=False), name


def test_transformers_reads_what_a_fresh_gpt_writes(tmp_path):
    net = GPT(61, 24, 48, 3, 4, dropout=0.1).eval()
    net.save_pretrained(tmp_path / "ours")
    model = GPT2LMHeadModel.from_pretrained(tmp_path / "ours").eval()
    assert model.config.resid_pdrop == 0.1
    assert_near("output", net.double()(tokens()), model.double()(tokens()).logits, torch.float64)


def test_bfloat16_stays(folder, tmp_path):
    model = reference().bfloat16()
    model.save_pretrained(tmp_path / "theirs16")
    net = GPT.from_pretrained(tmp_path / "theirs16")
    assert {p.dtype for p in net.parameters()} == {torch.bfloat16}
    net.save_pretrained(tmp_path / "ours16")
    assert filecmp.cmp(tmp_path / "theirs16/model.safetensors", tmp_path / "ours16/model.safetensors", shallow=False)
    ours, theirs = (f.float().log_softmax(-1) for f in (net(tokens()), model(tokens()).logits))
    assert (ours.exp() * (ours - theirs)).sum(-1).mean() < 1e-3


def test_files_of_the_body_alone_and_the_oldest(tmp_path):
    """They have no ``transformer.`` before their names, the oldest also the mask among the weights, in a .bin file."""
    model = reference()
    body = GPT2Model(model.config)
    body.load_state_dict(model.transformer.state_dict())
    body.save_pretrained(tmp_path / "body")
    old = {
        **body.state_dict(),
        "h.0.attn.bias": torch.ones(1, 1, 24, 24).tril(),
        "h.1.attn.masked_bias": torch.ones(()),
    }
    (tmp_path / "old").mkdir()
    torch.save(old, tmp_path / "old/pytorch_model.bin", _use_new_zipfile_serialization=False)
    (tmp_path / "old/config.json").write_text(json.dumps(model.config.to_dict()))
    masked = {f"transformer.{k}": v.contiguous() for k, v in body.state_dict().items()}
    masked["transformer.h.0.attn.bias"] = torch.ones(1, 1, 24, 24, dtype=torch.uint8).tril()
    (tmp_path / "bytes").mkdir()
    save_file(masked, tmp_path / "bytes/model.safetensors", {"format": "pt"})  # the first by name is the mask
    (tmp_path / "bytes/config.json").write_text(json.dumps(model.config.to_dict()))
    assert GPT.from_pretrained(tmp_path / "bytes").wte.weight.dtype == torch.float32
    for name in ("body", "old", "bytes"):
        net = GPT.from_pretrained(tmp_path / name, torch.float64)
        assert_near("output", net(tokens()), model.double()(tokens()).logits, torch.float64)


def test_shards_are_those_of_transformers(tmp_path):
    model = reference()
    model.save_pretrained(tmp_path / "theirs", max_shard_size="50KB")
    net = GPT.from_pretrained(tmp_path / "theirs")
    net.save_pretrained(tmp_path / "ours", max_shard_size=50_000)
    names = sorted(p.name for p in (tmp_path / "theirs").iterdir() if p.name != "generation_config.json")
    assert len(names) > 5
    assert names == sorted(p.name for p in (tmp_path / "ours").iterdir())
    assert filecmp.cmpfiles(tmp_path / "theirs", tmp_path / "ours", names, shallow=False)[0] == names


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "baby"])
def test_presets_have_the_sizes_of_transformers(name):
    p = PRESETS[name]
    net = on_meta(lambda: GPT(50257, 1024, **p))
    config = GPT2Config(n_embd=p["dim"], n_layer=p["depth"], n_head=p["heads"])
    theirs = shapes(on_meta(lambda: GPT2LMHeadModel(config)))
    millions = {"gpt2": 124, "gpt2-medium": 355, "gpt2-large": 774, "gpt2-xl": 1558}
    assert sum(p.numel() for p in net.parameters()) // 10**6 in (millions[name], millions[name] - 1)
    own = shapes(net)
    for entry in net.weights_format.entries(net):
        shape = own[entry.param][::-1] if entry.transpose else own[entry.param]
        assert shape == theirs[entry.names[0]]


def test_a_module_starts_from_a_folder(folder):
    module = GPTLanguageModel(weights=str(folder), vocab_size=61, block_size=16).eval()
    expected = reference().double()(tokens()).logits
    assert_near("output", module.double()(tokens()), expected, torch.float64)
    assert module.hparams["weights"] is None
    assert {k: module.hparams[k] for k in ("dim", "depth", "heads", "context", "block_size")} == {
        "dim": 48, "depth": 3, "heads": 4, "context": 24, "block_size": 16,
    }  # fmt: skip
