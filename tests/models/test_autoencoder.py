"""The autoencoder and its training: what latents are, the scale that is measured and saved, mistakes."""

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from zoo.callbacks import EMA
from zoo.models import AutoencoderKL, AutoencoderKLModule
from zoo.models.autoencoder_kl import DiagonalGaussian

TINY = {"channels": [8, 16], "groups": 4, "in_channels": 1}


def images(n: int = 40) -> torch.Tensor:
    return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(0)).cumsum(2).cumsum(3) / 8


def fit(module, folder, callbacks=(), val: bool = True, epochs: int = 2) -> L.Trainer:
    x = images()
    loaders = [DataLoader(TensorDataset(x[:32], torch.zeros(32)), batch_size=8)]
    loaders += [DataLoader(TensorDataset(x[32:], torch.zeros(8)), batch_size=8)] if val else []
    trainer = L.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, callbacks=list(callbacks), num_sanity_val_steps=1,
    )  # fmt: skip
    trainer.fit(module, *loaders)
    return trainer


def test_kl_is_that_of_torch():
    mean, logvar = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    normal = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum((1, 2, 3))
    torch.testing.assert_close(DiagonalGaussian(mean, logvar).kl(), expected)


def test_samples_have_the_mean_and_deviation():
    latents = DiagonalGaussian(torch.full((20000, 1, 1, 1), 3.0), torch.full((20000, 1, 1, 1), -1.0))
    drawn = latents.sample(torch.Generator().manual_seed(0))
    assert drawn.mean() == pytest.approx(3, abs=0.02)
    assert drawn.std() == pytest.approx(0.6065, abs=0.02)
    assert torch.equal(drawn, latents.sample(torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.parametrize("val", [False, True])
def test_scale_is_that_of_the_training_images_and_is_saved(tmp_path, ema, val):
    torch.manual_seed(0)
    module = AutoencoderKLModule(**TINY, lr=1e-2)
    trainer = fit(module, tmp_path, [EMA(decay=0.9)] if ema else [], val)
    with torch.no_grad():
        latents = module.eval().net.encode(images()[:32])
        drawn = torch.cat([latents.sample() for _ in range(200)])
    # without validation it is measured before the averages are put in place
    assert float(module.net.scale * drawn.std()) == pytest.approx(1, abs=0.2 if ema and not val else 0.01)
    assert float(module.net.scale) != 1
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = AutoencoderKL.from_pretrained(tmp_path / "a.ckpt")
    assert float(again.scale) == pytest.approx(float(module.net.scale))
    x = images()[:4]
    with torch.no_grad():
        torch.testing.assert_close(again(x)[0], module.eval()(x))


def test_it_logs_loss_reconstruction_and_kl(tmp_path):
    module = AutoencoderKLModule(**TINY, kl_weight=0.1)
    metrics = fit(module, tmp_path).callback_metrics
    for stage in ("train", "val"):
        parts = [float(metrics[f"{stage}/{name}"]) for name in ("loss", "reconstruction", "kl")]
        assert parts[0] == pytest.approx(parts[1] + 0.1 * parts[2], rel=1e-4)


def test_kl_weight_brings_latents_closer_to_normal(tmp_path):
    found = []
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        module = AutoencoderKLModule(**TINY, kl_weight=weight, lr=1e-2)
        found.append(float(fit(module, tmp_path, epochs=10).callback_metrics["val/kl"]))
    assert found[1] < found[0] / 2


@pytest.mark.parametrize(("reconstruction", "distance"), [("l1", torch.nn.L1Loss()), ("l2", torch.nn.MSELoss())])
def test_reconstruction_loss(reconstruction, distance):
    module, x = AutoencoderKLModule(**TINY, reconstruction=reconstruction, kl_weight=0).eval(), images(4)
    with torch.no_grad():
        assert float(module.step((x, None), "val")) == pytest.approx(float(distance(module(x), x)))
        columns = module.predict_step((x, None), 0)
        assert len(columns["reconstruction"]) == 4
        assert sum(columns["reconstruction"]) / 4 == pytest.approx(float(distance(module(x), x)))


def test_a_decoder_that_overflows_continues_in_float32(capsys):
    net = AutoencoderKL(1, (8, 16), groups=4).half()
    with torch.no_grad():
        net.decoder.conv_in.weight.fill_(600.0)
        net.decoder.conv_in.bias.fill_(60000.0)
        z = torch.full((1, 4, 4, 4), 50.0).half()
        out = net.decode(z)
    assert out.isfinite().all()
    assert out.dtype == torch.float32
    assert "continues in float32" in capsys.readouterr().err
    with torch.no_grad():
        assert net.decode(z).isfinite().all()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 9}, "divisible by 2 for this autoencoder, got images of 9x9"),
        ({"groups": 3}, "groups=3 does not divide the 8 channels"),
        ({"reconstruction": "l3"}, "l1 or l2, got 'l3'"),
        ({"kl_weight": -1.0}, "kl_weight must be 0 or more"),
        ({"in_channels": None}, "AutoencoderKLModule needs in_channels"),
    ],
)
def test_mistakes_give_one_line(arguments, message):
    with pytest.raises(ValueError, match=message):
        AutoencoderKLModule(**{**TINY, **arguments})


def test_images_of_another_size_give_one_line():
    with pytest.raises(ValueError, match="divisible by 2 for this autoencoder, got images of 8x7"):
        AutoencoderKL(1, (8, 16), groups=4).encode(torch.zeros(1, 1, 8, 7))


def test_unknown_preset():
    with pytest.raises(ValueError, match="take small-2, small-4, sd"):
        AutoencoderKL.preset("sd-3")
