"""Latent diffusion through the command line: an autoencoder, then diffusion of its latents; a user's mistakes."""

from pathlib import Path

import pytest
import torch

from tests.small_autoencoders import trained_autoencoders


@pytest.fixture(scope="module")
def autoencoders(tmp_path_factory):
    return trained_autoencoders(tmp_path_factory.mktemp("autoencoders"))


SHORT = ["--trainer.max_epochs", 1, "--trainer.limit_train_batches", 3, "--trainer.limit_val_batches", 1]
CONFIG = ["-c", "configs/latent_diffusion_digits.yaml", "--model.channels", "[16,32]", "--model.head_dim", 16, *SHORT]


@pytest.mark.slow
def test_two_stages_and_samples_of_the_second_alone(zoo, here):
    first = ["fit", "-c", "configs/autoencoder_digits.yaml", "--model.channels", "[16,16]", "--run_dir", "a", *SHORT]
    assert zoo(*first)[0] == 0
    one = Path("a/checkpoints/best.ckpt")
    scale = torch.load(one, weights_only=True)["state_dict"]["net.scale"]
    assert float(scale) != 1
    options = [*CONFIG, "--model.autoencoder", one, "--data.cache_dir", "c"]
    code, _, err = zoo("fit", *options, "--run_dir", "b")
    assert (code, err) == (0, "")
    two = Path("b/checkpoints/last.ckpt")
    assert torch.equal(torch.load(two, weights_only=True)["frozen"]["autoencoder"]["scale"], scale)
    one.unlink()
    code, measured, _ = zoo("validate", "--ckpt_path", two)
    assert code == 0
    code, other, _ = zoo("validate", "--ckpt_path", two, "--data", "Digits", "--data.image_size", 16,
                         "--data.mean", "[0.5]", "--data.std", "[0.5]")  # fmt: skip
    assert (code, other) == (0, measured), "of the images"
    assert zoo("sample", "--ckpt_path", two, "--n", 2, "--steps", 2, "--out", "pictures")[0] == 0
    from PIL import Image

    assert Image.open("pictures/000.png").size == (16, 16)


# Mistakes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "this LatentDiffusion has none: give it one (--model.autoencoder), or take Digits itself as data"),
        (["--model.autoencoder", "nowhere.ckpt"], "no autoencoder nowhere.ckpt: a checkpoint or a diffusers folder"),
        (["--model.autoencoder", "nowhere"], "no autoencoder nowhere: a checkpoint or a diffusers folder"),
        (["--model.autoencoder", "half.ckpt"], "half.ckpt is not a whole checkpoint"),
        (["--model.autoencoder", "scaled.ckpt"], "was trained on images with mean [0.3] and std [0.4]"),
        (
            ["--model.autoencoder", "A", "--data.data.image_size", 18],
            "image_size 18 gives the U-Net 9 positions per side",
        ),
        (["--model.autoencoder", "A", "--data.data.image_size", 17], "for this autoencoder, got images of 17x17"),
        (["--model.autoencoder", "A", "--data.data.channels", 3], "takes images with 1 channels, got in_channels=3"),
        (["--model.autoencoder", "A", "--data.data.mean", "[0.3]"], "diffusion needs images in [-1, 1]"),
        (["--model.autoencoder", "A", "--data.data.augment", "[RandomHorizontalFlip]"], "take augment (RandomHor"),
        (["--model.autoencoder", "A", "--data.cache_dir", "half.ckpt"], "latents cannot be written to half.ckpt"),
        (["--model.autoencoder", "A", "--data.data", "Quadrants"], "data.data: unknown class 'Quadrants'"),
        (["--model.autoencoder", "A", "--data.data.flat", "true"], "takes images (b, c, h, w), got (64, 256)"),
    ],
)
def test_mistakes_of_a_user(options, said, autoencoders, zoo, here):
    whole = Path(autoencoders[0])
    Path("half.ckpt").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    torch.save({**torch.load(whole, weights_only=True), "datamodule_hyper_parameters": {"mean": [0.3], "std": [0.4]}},
               "scaled.ckpt")  # fmt: skip
    options = [whole if o == "A" else o for o in options]
    options += [] if "--data.cache_dir" in options else ["--data.cache_dir", "c"]
    code, _, err = zoo("fit", *CONFIG, *options)
    assert code == 2
    assert err.startswith("zoo: error: ")
    assert len(err.splitlines()) == 1
    assert said in err
    assert {p.name for p in here.iterdir()} - {"c"} == {"configs", "half.ckpt", "scaled.ckpt"}, "no run is left"


def test_what_data_and_model_cannot_do_is_told_before_a_run_folder_is_made(zoo, here, monkeypatch):
    made = []
    monkeypatch.setattr("zoo.runs.record.folder", lambda *args: made.append(args))
    code, _, err = zoo("fit", *CONFIG, "--data.cache_dir", "c")
    assert (code, made) == (2, [])
    assert "this LatentDiffusion has none: give it one (--model.autoencoder)" in err


def test_going_on_with_another_autoencoder_is_refused(autoencoders, zoo, here):
    options = [*CONFIG, "--data.cache_dir", "c", "--data.data.image_size", 8]
    assert zoo("fit", *options, "--model.autoencoder", autoencoders[0], "--run_dir", "r")[0] == 0
    going_on = ["--ckpt_path", "r/checkpoints/last.ckpt", "--trainer.max_epochs", 2]
    code, _, err = zoo("fit", *options, "--model.autoencoder", autoencoders[1], *going_on)
    assert code == 2
    assert err.startswith("zoo: error: the checkpoint was trained on the latents of another autoencoder than that of")
    assert len(err.splitlines()) == 1


def test_show_data_draws_the_images(autoencoders, zoo, here):
    options = ["-c", "configs/latent_diffusion_digits.yaml", "--model.autoencoder", autoencoders[0], "--out", "d.png"]
    code, out, err = zoo("show-data", *options)
    assert (code, err) == (0, "")
    assert "Digits: 1,258 train, 270 val, 269 test, 10 classes" in out
    assert "the network gets 1 x 16 x 16" in out
    assert {p.name for p in here.iterdir()} == {"configs", "d.png"}, "nothing is encoded"
