"""LoRA layers in any network: what is adapted, that merging changes nothing, and what is refused."""

import pytest
import torch
from torch import Tensor, nn

from zoo.adapters import (
    AdapterRecord,
    adapter_of,
    add_adapter,
    choose_layers,
    find_modules,
    frozen_params,
    merge_adapter,
)
from zoo.adapters.layers import LoRALayer
from zoo.errors import UserError
from zoo.models import BERT, GPT, LLaMA

TOLERANCES = {torch.float32: 1e-6, torch.float64: 1e-12}


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1, padding_mode="reflect")
        self.grouped = nn.Conv2d(8, 8, 3, groups=4)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.grouped(self.conv(x)))
        return self.head(x.relu().mean((2, 3)))


def gpt(**options):
    torch.manual_seed(0)
    return GPT(20, 8, dim=16, depth=2, heads=2, **options).eval()


def adapted(net, target, scale=0.1, **options):
    """Return a network with an adapter that changes its output."""
    record = AdapterRecord(rank=2, alpha=4.0, layers=choose_layers(net, target), **options)
    add_adapter(net, record)
    for parameter in net.parameters():
        if parameter.requires_grad:
            parameter.data += scale * torch.randn_like(parameter)
    return net


NETS = {
    "whole fused projection": (gpt, "qkv"),
    "queries and values": (gpt, "q|v"),
    "all linear": (gpt, "all-linear"),
    "keys, and one layer of the MLP": (gpt, ["k", "mlp.fc"]),
    "untied embedding": (lambda: gpt(tied=False), "wte"),
    "convolution": (ConvNet, "conv"),
}


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_merged_equals_unmerged(name, dora, dtype):
    build, target = NETS[name]
    if dora and name == "untied embedding":
        return  # refused, see below
    net = build().to(dtype).eval()
    x = torch.randn(4, 3, 8, 8, dtype=dtype) if name == "convolution" else torch.arange(8).view(1, 8)
    classes = [type(module) for module in net.modules()]
    keys = list(net.state_dict())
    with torch.no_grad():
        base = net(x)
        unmerged = adapted(net, target, dora=dora)(x)
        assert (unmerged - base).abs().max() > 1e-4
        merge_adapter(net)
        assert (net(x) - unmerged).abs().max() < TOLERANCES[dtype]
    assert [type(module) for module in net.modules()] == classes
    assert list(net.state_dict()) == keys


@pytest.mark.parametrize("dora", [False, True])
def test_a_new_adapter_changes_nothing(dora):
    net = gpt().double()
    ids = torch.arange(8).view(1, 8)
    before = net(ids)
    adapted(net, "q|v", scale=0.0, dora=dora)
    assert (net(ids) - before).abs().max() < 1e-14


def test_parts_of_a_fused_projection_leave_the_others_as_they_are():
    net = gpt()
    x = torch.randn(1, 8, 16)
    layer = net.blocks[0].attn.qkv
    before = layer(x)
    adapted(net, "q|v")
    changed = (layer(x) != before).any(0).any(0)
    assert changed.tolist() == [True] * 16 + [False] * 16 + [True] * 16


def test_parts_with_grouped_heads_and_names_of_other_libraries():
    net = LLaMA(20, 8, dim=16, depth=1, heads=4, kv_heads=2, hidden_dim=24)
    ours = choose_layers(net, "q|v|gate")
    assert ours == choose_layers(net, ["q_proj", "v_proj", "gate_proj"])
    assert {tuple(parts) for parts in ours.values()} == {("q", "v"), ("gate",)}
    adapted(net, "q|v|gate")
    layers = [module for module in net.modules() if isinstance(module, LoRALayer)]
    assert sorted(layer.lora.parts for layer in layers) == [(("gate", 0, 24),), (("q", 0, 16), ("v", 24, 32))]


def test_parts_of_bert():
    net = BERT(20, dim=16, depth=1, heads=2, hidden=32, max_length=8)
    (parts,) = choose_layers(net, "query|value").values()
    assert parts == ["q", "v"]


def test_only_updates_and_what_is_named_are_trained():
    net = ConvNet()
    record = AdapterRecord(2, 4.0, choose_layers(net, "conv"), modules_to_save=find_modules(net, "head"))
    add_adapter(net, record)
    trained = [name for name, parameter in net.named_parameters() if parameter.requires_grad]
    assert trained == ["conv.lora_A", "conv.lora_B", "head.weight", "head.bias"]
    assert {id(p) for p in frozen_params(net)} == {id(p) for p in net.parameters() if not p.requires_grad}
    assert adapter_of(net).frozen_norms == ("norm",)


def test_all_linear_leaves_the_output_layer_and_shared_weights_out():
    layers = choose_layers(gpt(), "all-linear")
    of_block = ["attn.qkv", "attn.proj", "mlp.fc", "mlp.proj"]
    assert list(layers) == [f"blocks.{i}.{name}" for i in range(2) for name in of_block]


def test_an_adapter_of_another_base_is_refused():
    record = AdapterRecord(2, 4.0, choose_layers(gpt(), "q"))
    add_adapter(gpt(), record)
    add_adapter(gpt().double(), AdapterRecord(**vars(record)))  # the same values in a wider dtype
    other = gpt()
    other.blocks[1].mlp.fc.weight.data[3, 4] += 1e-3
    with pytest.raises(UserError, match="adapter of other base weights"):
        add_adapter(other, record)
    assert not any(isinstance(module, LoRALayer) for module in other.modules())
    assert all(parameter.requires_grad for parameter in other.parameters())


def test_torch_encoder_calls_its_adapted_layers_in_evaluation():
    torch.manual_seed(0)
    net = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1).eval()
    before = torch.backends.mha.get_fastpath_enabled()
    try:
        with torch.no_grad():
            base = net(torch.ones(2, 3, 8))
            assert not torch.equal(adapted(net, "linear1")(torch.ones(2, 3, 8)), base)
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


MISTAKES = [
    (gpt, "x|y", "matches no layer of GPT; near are"),
    (gpt, "(", "is not a regular expression"),
    (gpt, "", "is empty"),
    (gpt, "lm_head", "shares its weight with wte"),
    (ConvNet, "grouped", "is a grouped convolution"),
    (lambda: nn.TransformerEncoderLayer(8, 2), "out_proj", "MultiheadAttention, which reads its weight"),
    (nn.Flatten, "all-linear", "no linear layers"),
]


@pytest.mark.parametrize(("build", "target", "message"), MISTAKES)
def test_mistakes_in_the_target(build, target, message):
    with pytest.raises(ValueError, match=message):
        choose_layers(build(), target)


def test_other_mistakes():
    net = gpt(tied=False)
    with pytest.raises(UserError, match="is an embedding"):
        add_adapter(net, AdapterRecord(2, 4.0, {"wte": []}, dora=True))
    with pytest.raises(UserError, match="which GPT does not have"):
        add_adapter(net, AdapterRecord(2, 4.0, {"blocks.9.attn.qkv": []}))
    with pytest.raises(UserError, match="has no such parts"):
        add_adapter(net, AdapterRecord(2, 4.0, {"blocks.0.mlp.fc": ["q"]}))
    with pytest.raises(ValueError, match="nearest names are"):
        find_modules(net, "hed")
    with pytest.raises(UserError, match="trained whole"):
        add_adapter(net, AdapterRecord(2, 4.0, {"blocks.0.mlp.fc": []}, modules_to_save=["blocks.0.mlp"]))


GOOD = AdapterRecord(2, 4.0, {"fc": []}).to_dict()
DAMAGED = [
    [],
    {**GOOD, "format": 9},
    {**GOOD, "rank": True},
    {**GOOD, "rank": 0},
    {**GOOD, "rank": 10**9},
    {**GOOD, "alpha": float("nan")},
    {**GOOD, "layers": {"fc": "q"}},
    {**GOOD, "layers": {3: []}},
    {**GOOD, "layers": {"fc": [3]}},
    {**GOOD, "modules_to_save": [None]},
    {key: value for key, value in GOOD.items() if key != "dora"},
]


def test_a_record_is_read_back():
    assert AdapterRecord.from_dict(GOOD, "x.ckpt") == AdapterRecord(2, 4.0, {"fc": []})


@pytest.mark.parametrize("values", DAMAGED)
def test_a_damaged_record_is_refused(values):
    with pytest.raises(UserError, match=r"x\.ckpt"):
        AdapterRecord.from_dict(values, "x.ckpt")
