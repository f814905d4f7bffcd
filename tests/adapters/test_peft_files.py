"""Adapters in the files of PEFT: written here and loaded there, and the other way round."""

import json

import pytest
import torch
from torch import Tensor, nn

from zoo.adapters import (
    AdapterRecord,
    add_adapter,
    choose_layers,
    find_modules,
    load_adapter,
    merge_adapter,
    save_peft,
)
from zoo.errors import UserError
from zoo.models import BERT, GPT, LLaMA

IDS = torch.arange(8).view(1, 8)
FAMILIES = {"gpt2": GPT, "llama": LLaMA}


def reference(family):
    """Return a tiny model of transformers, in double precision."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if family == "gpt2":
        config = transformers.GPT2Config(vocab_size=20, n_positions=8, n_embd=16, n_layer=2, n_head=2)
        return transformers.GPT2LMHeadModel(config).double().eval()
    config = transformers.LlamaConfig(
        vocab_size=20,
        max_position_embeddings=8,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return transformers.LlamaForCausalLM(config).double().eval()


def ours(family, folder):
    reference(family).save_pretrained(folder / "base")
    return FAMILIES[family].from_pretrained(folder / "base", dtype=torch.float64)


def perturb(net, words=("lora_",)):
    generator = torch.Generator().manual_seed(1)
    for name, parameter in net.named_parameters():
        if any(word in name for word in words):
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


def logits(model):
    with torch.no_grad():
        output = model(IDS)
    return getattr(output, "logits", output)


def tolerance(family):
    return 1e-6 if family == "llama" else 1e-10  # transformers' LLaMA rounds to float32 within


def check_nothing_changed_but(peft_model, expected, family):
    assert (logits(peft_model) - expected).abs().max() < tolerance(family)


CASES = [
    ("gpt2", "qkv", {}),
    ("gpt2", "q|v", {}),
    ("gpt2", "q|v", {"rslora": True}),
    ("gpt2", "q|v", {"dora": True}),
    ("gpt2", "all-linear", {"dora": True}),
    ("llama", "q|v", {}),
    ("llama", "qkv", {}),
    ("llama", "all-linear", {"rslora": True}),
    ("llama", "k|up", {"dora": True}),
]


@pytest.mark.parametrize(("family", "target", "options"), CASES)
def test_peft_loads_what_is_written(tmp_path, family, target, options):
    peft = pytest.importorskip("peft")
    net = ours(family, tmp_path)
    base = logits(net)
    add_adapter(net, AdapterRecord(2, 6.0, choose_layers(net, target), **options))
    perturb(net)
    expected = logits(net)
    assert (expected - base).abs().max() > 1e-4
    save_peft(net, tmp_path / "adapter")
    model = peft.PeftModel.from_pretrained(reference(family), tmp_path / "adapter").double().eval()
    check_nothing_changed_but(model, expected, family)
    again = ours(family, tmp_path)
    load_adapter(again, tmp_path / "adapter")
    assert (logits(again) - expected).abs().max() < 1e-10
    other = ours(family, tmp_path)
    next(other.parameters()).data += 1e-3
    with pytest.raises(UserError, match="adapter of other base weights"):
        load_adapter(other, tmp_path / "adapter")


PEFT_CASES = [
    ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    ("gpt2", {"target_modules": ["c_fc"], "fan_in_fan_out": True, "use_dora": True}),
    ("llama", {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"v_proj": 3}, "alpha_pattern": {"v_proj": 7}}),
    ("llama", {"target_modules": "all-linear", "use_rslora": True, "use_dora": True}),
    ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
]


@pytest.mark.parametrize(("family", "options"), PEFT_CASES)
def test_adapters_of_peft_load_here(tmp_path, family, options):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, lora_alpha=6, lora_dropout=0.1, init_lora_weights=False, **options)
    model = peft.get_peft_model(reference(family), config).double().eval()
    perturb(model, ("lora_", "modules_to_save"))
    model.save_pretrained(tmp_path / "adapter")
    net = ours(family, tmp_path)
    base = logits(net)
    load_adapter(net, tmp_path / "adapter", merge=False)
    assert (logits(net) - base).abs().max() > 1e-4
    assert (logits(net) - logits(model)).abs().max() < tolerance(family)
    merge_adapter(net)
    assert (logits(net) - logits(model)).abs().max() < tolerance(family)


class Mixed(nn.Module):
    """A network of nobody's library."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(20, 6)
        self.conv = nn.Conv1d(6, 5, 3, padding=1)
        self.body = nn.Sequential(nn.Linear(5, 4), nn.GELU())
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.conv(self.embedding(ids).mT)
        return self.head(self.norm(self.body(x.mT)[:, 0]))


@pytest.mark.parametrize("dora", [False, True])
def test_a_network_of_nobodys_library(tmp_path, dora):
    peft = pytest.importorskip("peft")
    net = Mixed().double().eval()
    target = ["conv", "body.0"] if dora else ["embedding", "conv", "body.0"]
    layers = choose_layers(net, target)
    record = AdapterRecord(2, 6.0, layers, dora=dora, modules_to_save=find_modules(net, "head|norm"))
    add_adapter(net, record)
    perturb(net, ("lora_", "head", "norm"))
    net.norm.running_mean += 0.5
    save_peft(net, tmp_path / "adapter")
    model = peft.PeftModel.from_pretrained(Mixed().double(), tmp_path / "adapter").double().eval()
    again = Mixed().double().eval()
    load_adapter(again, tmp_path / "adapter")
    assert (logits(model) - logits(net)).abs().max() < 1e-10
    assert (logits(again) - logits(net)).abs().max() < 1e-10


def written(folder, **changes):
    """Write the adapter of a small network, with changes of its config."""
    net = Mixed()
    add_adapter(net, AdapterRecord(2, 6.0, choose_layers(net, "body.0")))
    save_peft(net, folder)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return folder


MISTAKES = [
    ({"peft_type": "IA3"}, "this is IA3"),
    ({"bias": "all"}, "trained biases"),
    ({"lora_bias": True}, "no lora_bias"),
    ({"init_lora_weights": "pissa_niter_4"}, "changes the base weights"),
    ({"lora_alpha": "x"}, "no rank, alpha or dropout"),
    ({"rank_pattern": [2]}, "rank_pattern is a list"),
    ({"use_dora": True}, "is not whole"),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES)
def test_other_adapters_of_peft_are_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        load_adapter(Mixed(), written(tmp_path / "a", **changes))


def test_an_adapter_of_another_network_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"adapts body\.0, which this GPT does not have"):
        load_adapter(GPT(20, 8, dim=16, depth=1, heads=2), written(tmp_path / "a"))
    wider = Mixed()
    wider.body[0] = nn.Linear(7, 4)
    with pytest.raises(UserError, match="of another model than this"):
        load_adapter(wider, written(tmp_path / "b"))
    (tmp_path / "b" / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="holds no adapter_model"):
        load_adapter(Mixed(), tmp_path / "b")


def test_parts_of_bert_have_transformers_names(tmp_path):
    net = BERT(20, dim=16, depth=1, heads=2, hidden=32, max_length=8)
    add_adapter(net, AdapterRecord(2, 6.0, choose_layers(net, "query")))
    save_peft(net, tmp_path / "adapter")
    names = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["target_modules"]
    assert len(names) == 1
    assert names[0].endswith("encoder.layer.0.attention.self.query")
