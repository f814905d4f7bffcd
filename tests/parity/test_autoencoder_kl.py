"""AutoencoderKL against diffusers: outputs and gradients with its weights, names and shapes at full size."""

import pytest
import torch
from diffusers import AutoencoderKL as Reference

from tests.parity.compare import assert_near, on_meta, randomize, shapes
from zoo.models import AutoencoderKL


def reference(channels, blocks, groups, latent_channels=4) -> Reference:
    n = len(channels)
    return Reference(
        in_channels=3, out_channels=3, down_block_types=("DownEncoderBlock2D",) * n,
        up_block_types=("UpDecoderBlock2D",) * n, block_out_channels=channels, layers_per_block=blocks,
        latent_channels=latent_channels, norm_num_groups=groups,
    )  # fmt: skip


def run(net, encode, decode):
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)).double().requires_grad_()
    latents = encode(x)
    z = latents.mean + latents.logvar
    out = decode(z)
    (
        out.square().mean() + (z * torch.linspace(-1, 1, z.numel()).double().view_as(z)).sum() + latents.kl().sum()
    ).backward()
    grads = {k: p.grad for k, p in net.named_parameters()} | {"x": x.grad}
    return {"mean": latents.mean, "logvar": latents.logvar, "kl": latents.kl(), "image": out}, grads


@pytest.mark.parametrize(("channels", "factor"), [((8, 16), 2), ((8, 8, 16), 4), ((8, 8, 16, 16), 8)])
def test_equals_diffusers(channels, factor):
    expected, net = reference(channels, 1, 4), AutoencoderKL(3, channels, 1, 4, 4)
    assert net.factor == factor
    randomize(expected)
    net.load_state_dict({**expected.state_dict(), "scale": torch.tensor(0.5)})
    net.double(), expected.double()
    results = (
        run(net, net.encode, net.decode),
        run(expected, lambda x: expected.encode(x).latent_dist, lambda z: expected.decode(z).sample),
    )
    for ours, theirs in zip(*results, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert theirs[name].abs().max() > 1e-9 or name.endswith("to_k.bias"), name  # which the softmax takes out
            assert_near(name, ours[name], theirs[name], torch.float64)


def test_samples_equal_diffusers_with_the_same_noise():
    expected, net = reference((8, 16), 1, 4), AutoencoderKL(3, (8, 16), 1, 4, 4)
    randomize(expected)
    net.load_state_dict({**expected.state_dict(), "scale": torch.tensor(1.0)})
    x = torch.randn(2, 3, 8, 8)
    ours = net.encode(x).sample(torch.Generator().manual_seed(3))
    theirs = expected.encode(x).latent_dist.sample(torch.Generator().manual_seed(3))
    torch.testing.assert_close(ours, theirs)


def test_stable_diffusion_has_the_same_names_and_shapes():
    expected = on_meta(lambda: reference((128, 256, 512, 512), 2, 32))
    net = on_meta(lambda: AutoencoderKL.preset("sd"))
    ours = shapes(net)
    assert ours.pop("scale") == ()
    assert ours == shapes(expected)
    assert sum(p.numel() for p in net.parameters()) == 83_653_863
