"""Configs for pictures of one's own, on small folders in the true format, with networks as small."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests import fake_data
from tests.conftest import CONFIGS, ROOT
from tests.prompt_files import save_tokenizer
from tests.test_configs import of_ones_own
from zoo.cli.image_sampling import load_diffusion
from zoo.diffusion import make_schedule
from zoo.models import LatentDiffusion

TINY = ["--model.channels", "[32, 64]", "--model.blocks", 1, "--data.image_size", 16]
FINE_TUNING = ROOT / "configs" / "stable_diffusion_15.yaml"


@pytest.fixture
def pictures(here) -> Path:
    """Pictures in folders by class, and beside these folders what they show."""
    root = fake_data.image_folder(here / "pictures", side=24, suffix=".png", n=20)
    files = sorted(str(p.relative_to(root)) for p in root.rglob("*.png"))
    rows = [{"file_name": file, "text": f"a photo of a {Path(file).parent}"} for file in files]
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A pipeline of Stable Diffusion's form that diffusers and transformers wrote, tiny and with random weights."""
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("sd")
    size = save_tokenizer(folder / "words")
    torch.manual_seed(0)
    text = {"vocab_size": size, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    sizes = {"block_out_channels": (32, 64), "layers_per_block": 1}
    pipeline = diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **sizes
        ),
        text_encoder=CLIPTextModel(CLIPTextConfig(num_attention_heads=2, **text)),
        tokenizer=CLIPTokenizer(vocab=str(folder / "words/vocab.json"), merges=str(folder / "words/merges.txt")),
        unet=diffusers.UNet2DConditionModel(
            sample_size=8, cross_attention_dim=32, attention_head_dim=8, **sizes,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        ),
        scheduler=diffusers.PNDMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
        ),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder / "stable-diffusion")
    return folder / "stable-diffusion"


def losses(run: str) -> list[float]:
    with open(Path(run) / "metrics.csv", newline="") as file:
        return [float(row["val/loss"]) for row in csv.DictReader(file) if row.get("val/loss")]


def pixels(path: str) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_there_are_such_configs():
    names = {"autoencoder_imagefolder", "latent_diffusion_imagefolder", "stable_diffusion_15"}
    assert {config.stem for config in CONFIGS if of_ones_own(config)} == names


@pytest.mark.slow
def test_two_stages_on_a_folder_of_pictures(zoo, pictures):
    fit = [*TINY, "--data.batch_size", 16, "--trainer.max_epochs", 4]
    code, _, err = zoo("fit", "-c", "configs/autoencoder_imagefolder.yaml", *fit)
    assert (code, err) == (0, "")
    first = losses("runs/autoencoder_imagefolder/1")
    assert first[-1] < 0.8 * first[0]
    second = ["-c", "configs/latent_diffusion_imagefolder.yaml", *fit, "--model.attention", "[false, true]"]
    code, _, err = zoo("fit", *second, "--model.head_dim", 32)
    assert (code, err) == (0, "")
    made = losses("runs/latent_diffusion_imagefolder/1")
    assert made[-1] < made[0]
    trained = ["--ckpt_path", "runs/latent_diffusion_imagefolder/1/checkpoints/last.ckpt"]
    code, _, err = zoo(
        "sample", *trained, "--class", "bee", "--n", 3, "--steps", 2, "--guidance_scale", 2, "--out", "bees"
    )
    assert (code, err) == (0, "")
    picture = Image.open("bees/002.png")
    assert (picture.size, picture.mode, picture.text["class"]) == ((16, 16), "RGB", "bee")
    code, _, err = zoo("sample", *trained, "--class", "wasp", "--n", 3, "--out", "wasps")
    assert (code, err) == (2, "zoo: error: --class wasp: no such class; there are ant, bee, cat\n")
    assert zoo("predict", *trained, "--out", "p.csv")[0] == 0
    with open("p.csv", newline="") as file:
        assert all(Path("pictures", row["file"]).is_file() for row in csv.DictReader(file))


@pytest.mark.slow
def test_fine_tuning_of_stable_diffusion(zoo, pictures, weights):
    """The loss falls, prompts make pictures, and diffusers reads what was trained."""
    from diffusers import UNet2DConditionModel

    rates = ["--model.lr", 1e-3, "--ema.decay", 0.5, "--trainer.accumulate_grad_batches", 1]
    sizes = [*TINY, "--model.attention", "[true, false]", "--model.heads", 8]
    fit = ["fit", "-c", FINE_TUNING, "--model.weights", weights, *sizes]
    code, _, err = zoo(*fit, *rates, "--trainer.max_epochs", 4, "--run_dir", "r")
    assert (code, err) == (0, "")
    assert losses("r")[-1] < 0.9 * losses("r")[0]
    trained = ["--ckpt_path", "r/checkpoints/last.ckpt", "--n", 2, "--steps", 2]
    for prompt in ("a photo of a cat", "a bee"):
        code, _, err = zoo("sample", *trained, "--prompt", prompt, "--guidance_scale", 3, "--out", prompt.split()[-1])
        assert (code, err) == (0, "")
    assert Image.open("cat/000.png").text.items() >= {"texts": "a photo of a cat", "guidance_scale": "3.0"}.items()
    assert "class" not in Image.open("cat/000.png").text
    assert not np.array_equal(pixels("cat/000.png"), pixels("bee/000.png"))
    module = load_diffusion(Path("r/checkpoints/last.ckpt"))
    assert isinstance(module, LatentDiffusion)
    module.net.save_pretrained("unet")
    before, theirs = (UNet2DConditionModel.from_pretrained(path) for path in (weights / "unet", "unet"))
    x, t, text = torch.randn(2, 4, 8, 8), torch.tensor([7, 900]), torch.randn(2, 5, 32)
    with torch.no_grad():
        torch.testing.assert_close(module.net(x, t, text=text), theirs(x, t, text).sample, atol=1e-5, rtol=1e-4)
        assert (before(x, t, text).sample - theirs(x, t, text).sample).abs().max() > 1e-2


def test_the_noise_is_that_of_stable_diffusion():
    from diffusers import DDPMScheduler

    given = yaml.safe_load(FINE_TUNING.read_text())["model"]["init_args"]
    ours = make_schedule(given["schedule"], 1000, False, given["beta_start"], given["beta_end"])
    theirs = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod
    alpha = ours.alpha_sigma(torch.arange(1000))[0]
    torch.testing.assert_close(alpha.double().square(), theirs.double(), atol=1e-5, rtol=1e-4)
    assert given["prediction_type"] == "epsilon"


# Mistakes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((), "this model is conditioned on text: give a prompt"),
        (("--prompt", "a", "--class", "cat"), "--class cat: this model has no classes (condition: text)"),
        (("--prompt", "a", "--steps", 1001), "steps must be 1 to 1000, the number of training timesteps, got 1001"),
        (("--prompt", "a", "--ckpt_path", "x.safetensors"), "no checkpoint x.safetensors"),
    ],
)
def test_mistakes_of_sampling_give_one_line(given, said, zoo, weights):
    code, _, err = zoo("sample", "--ckpt_path", weights, "--n", 1, *given, "--out", "x")
    assert (code, len(err.splitlines())) == (2, 1)
    assert err.startswith(f"zoo: error: {said}")
    assert not Path("x").exists()


def without_text_encoder(weights: Path, here: Path) -> list[object]:
    import shutil

    folder = shutil.copytree(weights, here / "half")
    shutil.rmtree(folder / "text_encoder")
    return ["--model.weights", folder]


def of_another_version(weights: Path, here: Path) -> list[object]:
    from safetensors.torch import save_file

    names = ("conditioner.embedders.0.x", "model.diffusion_model.x")
    save_file({name: torch.zeros(2) for name in names}, here / "xl.safetensors")
    return ["--model.weights", here / "xl.safetensors", "--model.autoencoder", weights, "--model.text_encoder", weights]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda w, _: [], "weights: there is no file or folder stable-diffusion-v1-5"),
        (lambda w, _: ["--model.weights", w, "--data.root", "none"], "none does not exist: --data.root names a folder"),
        (without_text_encoder, "condition: text needs a text_encoder: a diffusers folder"),
        (of_another_version, "xl.safetensors is a checkpoint of Stable Diffusion XL"),
        (lambda w, _: ["--model.weights", w, "--data.captions", "null"], "images and texts: set --data.captions"),
        (lambda w, _: ["--model.weights", w, "--data.captions", "a.csv"], "has no a.csv to read captions from"),
        (lambda w, _: ["--model.weights", w, "--data.image_size", 17], "got images of 17x17"),
        (
            lambda w, _: ["--model.weights", w, "--model.prediction_type", "v_prediction"],
            "was trained for epsilon: use --model.prediction_type",
        ),
        (
            lambda w, _: ["--model.weights", w, "--model.channels", "[32, 32]"],
            "has channels=[32, 64] instead of [32, 32]",
        ),
    ],
)
def test_mistakes_of_fine_tuning_give_one_line(given, said, zoo, here, pictures, weights):
    small = [*TINY, "--model.attention", "[true, false]", "--model.heads", 8]
    code, _, err = zoo("fit", "-c", FINE_TUNING, *small, *given(weights, here))
    assert (code, len(err.splitlines())) == (2, 1), err
    assert err.startswith("zoo: error: ")
    assert said in err
    assert not Path("runs").exists() or not any(Path("runs").rglob("*.yaml"))


@pytest.mark.slow
def test_captions_that_are_too_long_are_told_of_once(zoo, pictures, weights):
    """By one of two processes, in the first of two epochs."""
    rows = [json.loads(line) for line in (pictures / "metadata.jsonl").read_text().splitlines()]
    for i in (3, 11, 30):
        rows[i]["text"] = f"number {i} " + "cat " * 200
    (pictures / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = [*TINY, "--model.attention", "[true, false]", "--model.heads", 8, "--trainer.max_epochs", 2]
    small += ["--trainer.precision", "32-true", "--trainer.strategy", "ddp_fork", "--trainer.devices", 2]
    code, _, err = zoo("fit", "-c", FINE_TUNING, "--model.weights", weights, *small, "--run_dir", "r")
    assert code == 0
    assert err.startswith("zoo: 3 of 6 prompts are longer than the 75 tokens that are read: their ends are left out, ")
    assert err.count("\n") == 1
    prompt = ["--prompt", "cat " * 200, "--n", 3, "--batch_size", 1, "--steps", 2, "--out", "cats"]
    code, _, err = zoo("sample", "--ckpt_path", "r/checkpoints/last.ckpt", *prompt)
    assert code == 0
    assert err.startswith("zoo: the prompt has 200 tokens, of which 75 are read, without its end: 'cat cat ")
    assert err.count("\n") == 1
