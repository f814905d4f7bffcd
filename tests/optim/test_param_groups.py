"""Rules for parameter groups, layer-wise rates, and the table of three architectures."""

from functools import partial

import pytest
import torch
import torchvision
from torch import nn
from torch.optim import LBFGS, SGD, Adam, AdamW, Muon, Rprop

from zoo.optim import Lion, MultiOptimizer, OneCycle, ParamGroupRule, build_optimizer, describe_groups, fused_by_default
from zoo.optim.param_kinds import hidden_matrices, layer_ids, output_head, param_names, repeated_blocks


class LanguageModel(nn.Module):
    """Embedding and head tied, positions as a loose parameter, torch's own blocks."""

    def __init__(self, dim=8, depth=2, vocab=11):
        super().__init__()
        self.embed = nn.Embedding(vocab, dim)
        self.positions = nn.Parameter(torch.zeros(4, dim))
        block = nn.TransformerEncoderLayer(dim, 2, 4 * dim, batch_first=True)
        self.encoder = nn.TransformerEncoder(block, depth, nn.LayerNorm(dim), enable_nested_tensor=False)
        self.head = nn.Linear(dim, vocab, bias=False)
        self.head.weight = self.embed.weight


def resnet():
    return torchvision.models.resnet18(num_classes=10)


def vit(depth=3):
    return torchvision.models.VisionTransformer(8, 4, depth, 2, 16, 32, num_classes=10)


def table(optimizer):
    columns = ("name", "optimizer", "tensors", "parameters", "lr", "weight_decay")
    rows = [[row[c] for c in columns] for row in describe_groups(optimizer)]
    return [" | ".join(f"{c:.6g}" if isinstance(c, float) else str(c) for c in row) for row in rows]


def in_exactly_one_group(net, optimizer):
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    return sorted(grouped) == sorted(id(p) for p in net.parameters())


def test_table_of_a_resnet_with_differential_rates():
    net = resnet()
    rules = [
        ParamGroupRule("layer4", 0.1),
        ParamGroupRule("layer3", 0.05),
        ParamGroupRule("^fc"),
        ParamGroupRule("", 0.01),
    ]
    optimizer = build_optimizer(net, partial(SGD, momentum=0.9, weight_decay=1e-4), 1e-3, rules)
    assert in_exactly_one_group(net, optimizer)
    assert table(optimizer) == [
        "* | SGD | 10 | 681152 | 1e-05 | 0.0001",
        "*, no decay | SGD | 20 | 1920 | 1e-05 | 0",
        "layer3 | SGD | 5 | 2097152 | 5e-05 | 0.0001",
        "layer3, no decay | SGD | 10 | 2560 | 5e-05 | 0",
        "layer4 | SGD | 5 | 8388608 | 0.0001 | 0.0001",
        "layer4, no decay | SGD | 10 | 5120 | 0.0001 | 0",
        "^fc | SGD | 1 | 5120 | 0.001 | 0.0001",
        "^fc, no decay | SGD | 1 | 10 | 0.001 | 0",
    ]


def test_table_of_a_vision_transformer_with_layer_decay_and_a_rule():
    net = vit()
    optimizer = build_optimizer(
        net, partial(AdamW, weight_decay=0.05), 1.0, [ParamGroupRule("^heads", 2.0)], layer_decay=0.5
    )
    assert in_exactly_one_group(net, optimizer)
    assert table(optimizer) == [
        "rest, layer 0, no decay | AdamW | 3 | 112 | 0.0625 | 0",  # class token, bias of the patches, positions
        "rest, layer 0 | AdamW | 1 | 768 | 0.0625 | 0.05",
        "rest, layer 1, no decay | AdamW | 8 | 176 | 0.125 | 0",
        "rest, layer 1 | AdamW | 4 | 2048 | 0.125 | 0.05",
        "rest, layer 2, no decay | AdamW | 8 | 176 | 0.25 | 0",
        "rest, layer 2 | AdamW | 4 | 2048 | 0.25 | 0.05",
        "rest, layer 3, no decay | AdamW | 8 | 176 | 0.5 | 0",
        "rest, layer 3 | AdamW | 4 | 2048 | 0.5 | 0.05",
        "rest, layer 4, no decay | AdamW | 2 | 32 | 1 | 0",
        "^heads, layer 4 | AdamW | 1 | 160 | 2 | 0.05",
        "^heads, layer 4, no decay | AdamW | 1 | 10 | 2 | 0",
    ]


def test_table_of_a_language_model_with_muon_for_its_matrices():
    net = LanguageModel()
    muon = partial(Muon, weight_decay=0.2)
    optimizer = build_optimizer(net, Lion, 1e-3, [ParamGroupRule("encoder", 20.0, optimizer=muon, matrices=True)])
    assert isinstance(optimizer, MultiOptimizer)
    assert in_exactly_one_group(net, optimizer)
    assert table(optimizer) == [
        "rest | Lion | 20 | 344 | 0.001 | 0",
        "encoder (matrices) | Muon | 8 | 1536 | 0.02 | 0.2",
    ]


def test_muon_for_a_whole_network_leaves_to_adamw_what_is_no_hidden_matrix():
    net = LanguageModel()
    factory = partial(Muon, weight_decay=0.2)
    optimizer = build_optimizer(
        net, factory, 1e-3, [ParamGroupRule("layers.1", 0.5), ParamGroupRule("embed", optimizer=SGD)]
    )
    assert in_exactly_one_group(net, optimizer)
    assert table(optimizer) == [
        "rest, no decay | AdamW | 11 | 152 | 0.001 | 0",
        "layers.1, no decay | AdamW | 8 | 104 | 0.0005 | 0",
        "embed | SGD | 1 | 88 | 0.001 | 0",
        "rest (matrices) | Muon | 4 | 768 | 0.001 | 0.2",
        "layers.1 (matrices) | Muon | 4 | 768 | 0.0005 | 0.2",
    ]
    head = build_optimizer(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), factory, 1e-3).param_groups[0]
    assert head["weight_decay"] == 0.2, "AdamW has Muon's"


def test_muon_by_rule_is_torchs_own_update():
    nets = [LanguageModel(), LanguageModel()]
    nets[1].load_state_dict(nets[0].state_dict())
    rules = [ParamGroupRule("encoder", optimizer=Muon, matrices=True)]
    ours = build_optimizer(nets[0], AdamW, 0.01, rules)
    matrices = [p for p in nets[1].encoder.parameters() if p.ndim == 2]
    theirs = [
        Muon(matrices, 0.01),
        AdamW([p for p in nets[1].encoder.parameters() if p.ndim != 2], 0.01, weight_decay=0),
    ]
    for _ in range(3):
        for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        for optimizer in [ours, *theirs]:
            optimizer.step()
    for p, q in zip(nets[0].encoder.parameters(), nets[1].encoder.parameters(), strict=True):
        assert torch.equal(p, q)


def test_no_decay_on_biases_norms_embeddings_and_layer_scales():
    net = nn.ModuleDict(
        {
            "embed": nn.Embedding(3, 4),
            "norm": nn.LayerNorm((2, 4)),
            "conv": nn.Conv2d(1, 2, 3),
            "out": nn.Linear(4, 1),
            "cnblock": torchvision.models.convnext.CNBlock(4, 1e-6, 0.0),
        }
    )
    optimizer = build_optimizer(net, AdamW, 1e-3)
    names = {id(p): name for name, p in net.named_parameters()}
    decayed = {names[id(p)] for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    expected = {"conv.weight", "out.weight", *(f"cnblock.block.{i}.weight" for i in (0, 3, 5))}
    assert decayed == expected
    assert len(build_optimizer(net, AdamW, 1e-3, decay_all=True).param_groups) == 1
    assert len(build_optimizer(net, SGD, 1e-3).param_groups) == 1  # its default is no decay at all


def test_a_rule_may_set_the_decay_of_what_decays():
    optimizer = build_optimizer(
        nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), SGD, 1.0, [ParamGroupRule("^1", weight_decay=0.5)]
    )
    assert table(optimizer) == [
        "rest | SGD | 2 | 6 | 1 | 0",
        "^1 | SGD | 1 | 4 | 1 | 0.5",
        "^1, no decay | SGD | 1 | 2 | 1 | 0",
    ]


def test_tied_parameters_count_once_and_match_by_any_name():
    net = LanguageModel()
    optimizer = build_optimizer(net, SGD, 1.0, [ParamGroupRule("^head", 0.5)])
    assert in_exactly_one_group(net, optimizer)
    assert [p for g in optimizer.param_groups if g["name"] == "^head" for p in g["params"]] == [net.embed.weight]


def test_frozen_parameters_have_their_group_but_stay_as_they_are():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[0].requires_grad_(False)
    before = net[0].weight.clone()
    optimizer = build_optimizer(net, AdamW, 0.1)
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert torch.equal(net[0].weight, before)
    assert sum(row["trainable"] for row in describe_groups(optimizer)) == 6
    net[0].requires_grad_(True)
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert not torch.equal(net[0].weight, before)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([ParamGroupRule("lay3r")], "'lay3r' matches no parameter; the nearest names are layer"),
        ([ParamGroupRule("layer3", matrices=True)], "'layer3' matches no hidden matrix"),
        ([ParamGroupRule("layer"), ParamGroupRule("layer4")], "'layer4' is never reached"),
        ([ParamGroupRule("fc", optimizer=LBFGS)], "LBFGS cannot share"),
        ([ParamGroupRule("fc", weight_decay=0.1, optimizer=Rprop)], "Rprop has no weight_decay"),
        (
            [ParamGroupRule("fc", optimizer=Muon)],
            r"rule 'fc': Muon is for hidden matrices, not for fc\.bias: add matrices: true",
        ),
    ],
)
def test_rules_that_make_no_sense(rules, message):
    with pytest.raises(ValueError, match=message):
        build_optimizer(resnet(), AdamW, 1e-3, rules)


def test_other_mistakes():
    with pytest.raises(ValueError, match="not a regular expression"):
        ParamGroupRule("layer[")
    with pytest.raises(ValueError, match="lr_scale is -1"):
        ParamGroupRule("layer", -1)
    with pytest.raises(ValueError, match="no parameters"):
        build_optimizer(nn.ReLU(), AdamW, 1e-3)
    with pytest.raises(ValueError, match=r"layer_decay is 1\.5"):
        build_optimizer(resnet(), AdamW, 1e-3, layer_decay=1.5)
    with pytest.raises(ValueError, match="Muon is for hidden matrices, of which ResNet has none: take AdamW"):
        build_optimizer(resnet(), Muon, 1e-3)
    with pytest.raises(ValueError, match="an optimizer is built from parameters and a learning rate, but"):
        build_optimizer(resnet(), MultiOptimizer, 1e-3)
    with pytest.raises(ValueError, match="needs numbered blocks"):
        build_optimizer(nn.Linear(2, 2), AdamW, 1e-3, layer_decay=0.5)
    with pytest.raises(ValueError, match="neither param_groups nor layer_decay"):
        build_optimizer(resnet(), LBFGS, 1e-3, [ParamGroupRule("fc")])


def test_the_table_shows_the_peak_of_a_schedule_not_where_it_starts():
    optimizer = build_optimizer(nn.Linear(2, 2), SGD, 0.5)
    OneCycle(optimizer, 10)
    assert optimizer.param_groups[0]["lr"] == 0.5 / 25
    assert describe_groups(optimizer)[0]["lr"] == 0.5


def test_lbfgs_is_one_group_of_everything():
    optimizer = build_optimizer(nn.Linear(2, 2), LBFGS, 0.5)
    assert describe_groups(optimizer)[0]["lr"] == 0.5
    assert len(optimizer.param_groups) == 1


def stack(net, first, last, count, head):
    members = repeated_blocks(net)
    return (members[0], members[-1], len(members), output_head(net)) == (first, last, count, head)


def test_stacks_are_found():
    with torch.device("meta"):  # names are all that is looked at
        models = torchvision.models
        assert stack(models.resnet101(), "layer1", "layer4", 4, "fc")
        assert stack(models.vgg11(), "features.0", "features.18", 8, "classifier.6")
        assert stack(models.efficientnet_b0(), "features.0", "features.8", 9, "classifier.1")
        assert stack(models.convnext_tiny(), "features.0", "features.7", 8, "classifier.2")
        assert stack(vit(), "encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_2", 3, "heads.head")
        wrapped = nn.Sequential(vit(), nn.Linear(10, 2))
        assert stack(wrapped, "0.encoder.layers.encoder_layer_0", "0.encoder.layers.encoder_layer_2", 3, "1")
        assert repeated_blocks(models.googlenet(init_weights=False)) == []
        bare = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 8), 2, enable_nested_tensor=False)
        assert stack(bare, "layers.0", "layers.1", 2, None)


def test_layer_ids_go_from_stem_to_head():
    ids = layer_ids(torchvision.models.densenet121())
    assert ids["features.conv0.weight"] == 0
    assert ids["features.transition2.conv.weight"] == 2  # between two stages: with the one before
    assert ids["features.norm5.weight"] == ids["classifier.weight"] == 5
    mlp = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    rates = [group["lr"] for group in build_optimizer(mlp, SGD, 1.0, layer_decay=0.5).param_groups]
    assert rates == [0.25, 0.5, 1.0]  # no head outside of the stack: its last layer is the head


def test_hidden_matrices():
    net = LanguageModel()
    names = {param_names(net)[p][0] for p in hidden_matrices(net)}
    of_a_block = {"self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight"}
    assert names == {f"encoder.layers.{i}.{name}" for i in range(2) for name in of_a_block}
    assert len(hidden_matrices(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3), nn.Linear(3, 2)))) == 2


@pytest.mark.parametrize("cls", [Adam, AdamW])
def test_fused_by_default_equals_plain_to_rounding(cls):
    nets = [vit(1), vit(1)]
    nets[1].load_state_dict(nets[0].state_dict())
    fused = build_optimizer(nets[0], fused_by_default(cls), 1e-3)
    plain = build_optimizer(nets[1], cls, 1e-3)
    assert all(group["fused"] for group in fused.param_groups)
    for _ in range(3):
        for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        fused.step()
        plain.step()
    for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)
    plain.load_state_dict(fused.state_dict())
    fused.load_state_dict(plain.state_dict())
    fused.step()


def test_fused_by_default_respects_choices_and_what_is_not_adam():
    p = nn.Parameter(torch.ones(2))
    for options in ({"fused": False}, {"foreach": True}, {"foreach": False}, {"capturable": True}):
        group = fused_by_default(partial(AdamW, **options))([p], 1e-3).param_groups[0]
        assert group["fused"] is options.get("fused")
    assert fused_by_default(partial(SGD, momentum=0.9))([p], 1e-3).param_groups[0]["fused"] is None
    # or Lightning would refuse to clip fp16 gradients
    assert not hasattr(fused_by_default(AdamW)([p], 1e-3), "_step_supports_amp_scaling")
