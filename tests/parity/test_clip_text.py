"""CLIP's text tower against transformers: states and gradients with its weights, names and shapes at full size."""

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel

from tests.parity.compare import assert_near, on_meta, randomize, shapes
from zoo.models import CLIPTextEncoder

SMALL = {"vocab_size": 50, "dim": 32, "depth": 3, "heads": 4, "hidden": 48, "max_length": 11}


def reference(dim, depth, heads, hidden, activation, vocab_size=49408, max_length=77) -> CLIPTextModel:
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0} if vocab_size < 100 else {}
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocab_size,
            hidden_size=dim,
            intermediate_size=hidden,
            num_hidden_layers=depth,
            num_attention_heads=heads,
            hidden_act=activation,
            max_position_embeddings=max_length,
            **ends,
        )
    )


def run(net, states):
    ids = torch.randint(0, 50, (3, 9), generator=torch.Generator().manual_seed(1))
    out = states(net, ids)
    (out.square() + torch.linspace(-1, 1, out.numel()).double().view_as(out) * out).mean().backward()
    return out.detach(), {k: p.grad for k, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("clip_skip", [0, 1])
def test_equals_transformers(activation, clip_skip):
    expected, net = (
        reference(activation=activation, **SMALL),
        CLIPTextEncoder(activation=activation, clip_skip=clip_skip, **SMALL),
    )
    randomize(expected)
    net.load_state_dict(expected.state_dict())

    def states(model, ids):
        if not clip_skip:
            return model(ids).last_hidden_state
        hidden = model(ids, output_hidden_states=True).hidden_states[-1 - clip_skip]
        return model.final_layer_norm(hidden)

    (out, grads), (right, theirs) = run(net.double(), lambda m, ids: m(ids)), run(expected.double(), states)
    assert_near("states", out, right, torch.float64)
    assert grads.keys() == theirs.keys()
    assert len(grads) == len(dict(net.named_parameters())) - 16 * clip_skip  # what is skipped is not trained
    for name in grads:
        assert_near(name, grads[name], theirs[name], torch.float64)


@pytest.mark.parametrize("preset", ["sd-1.5", "sd-2.1"])
def test_stable_diffusion_has_the_same_names_and_shapes(preset):
    net = on_meta(lambda: CLIPTextEncoder.preset(preset))
    told = {k: net.arguments[k] for k in ("dim", "depth", "heads", "hidden", "activation")}
    assert shapes(net) == shapes(on_meta(lambda: reference(**told)))
    assert sum(p.numel() for p in net.parameters()) in (123_060_480, 340_387_840)


def test_later_tokens_do_not_matter():
    net = CLIPTextEncoder(**SMALL).eval()
    ids = torch.randint(0, 50, (1, 9))
    changed = torch.cat([ids[:, :5], (ids[:, 5:] + 1) % 50], 1)
    same = (net(ids) - net(changed)).abs().amax(2)[0] < 1e-6
    assert same.tolist() == [True] * 5 + [False] * 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"heads": 5}, "dim=32 is not divisible by heads=5"),
        ({"activation": "relu"}, "gelu or quick_gelu"),
        ({"clip_skip": 3}, "clip_skip must be 0 to 2 for 3 layers"),
    ],
)
def test_mistakes_give_one_line(arguments, said):
    with pytest.raises(ValueError, match=said):
        CLIPTextEncoder(**{**SMALL, **arguments})
    with pytest.raises(ValueError, match="at most 11 tokens, got 12"):
        CLIPTextEncoder(**SMALL)(torch.zeros(1, 12, dtype=torch.long))
