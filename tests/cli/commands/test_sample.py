"""`zoo sample`: pictures with how they were made in their text, whole, the same for a seed; a user's mistakes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import ROOT
from tests.prompt_files import save_tokenizer
from tests.weights.formats.test_diffusers import networks
from zoo.cli import main
from zoo.cli.image_sampling import SamplingProgress, load_diffusion
from zoo.models import LatentDiffusion
from zoo.weights.files import write
from zoo.weights.formats.diffusers import save_pipeline, save_single_file

SHORT = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "4", "--trainer.limit_val_batches", "1"]
SMALL = ["--model.channels", "[16,32]", "--model.head_dim", "16"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Checkpoints of a diffusion model and of a classifier, hardly trained."""
    folder, found = tmp_path_factory.mktemp("runs"), {}
    for name, more in (("diffusion_digits", SMALL), ("mlp_digits", [])):
        run = folder / name
        assert main(["fit", "-c", str(ROOT / f"configs/{name}.yaml"), "--run_dir", str(run), *SHORT, *more]) == 0
        found[name] = str(run / "checkpoints" / "last.ckpt")
    return found


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_pictures_and_their_text(checkpoints, zoo, here):
    made_by = checkpoints["diffusion_digits"]
    command = ["sample", "--ckpt_path", made_by, "--n", 12, "--steps", 3, "--guidance_scale", 2]
    code, out, err = zoo(*command, "--out", "a")
    assert (code, err) == (0, "")
    assert "12 images and grid.png in a" in out
    assert sorted(p.name for p in (here / "a").iterdir()) == [*(f"{i:03d}.png" for i in range(12)), "grid.png"]
    picture = Image.open("a/011.png")
    assert (picture.size, picture.mode) == ((8, 8), "L")
    told = {"class": "1", "number": "11", "sampler": "dpm++", "steps": "3", "guidance_scale": "2.0", "seed": "0"}
    assert told.items() <= picture.text.items()
    assert picture.text["ckpt_path"] == made_by
    assert Image.open("a/grid.png").size == (10 * 50 + 2, 2 * 50 + 2)
    zoo(*command, "--out", "b", "--batch_size", 5)
    assert all(np.array_equal(pixels(f"a/{i:03d}.png"), pixels(f"b/{i:03d}.png")) for i in range(12))
    zoo(*command, "--out", "c", "--seed", 1)
    assert not np.array_equal(pixels("a/000.png"), pixels("c/000.png"))


def test_pictures_are_the_modules_samples(checkpoints, zoo, here):
    (here / "out").mkdir()
    options = ["--n", 2, "--class", 7, "--sampler", "ddim", "--eta", 0.5, "--steps", 3, "--spacing", "leading"]
    code, _, _ = zoo("sample", "--ckpt_path", checkpoints["diffusion_digits"], *options, "--out", "out")
    assert code == 0
    module = load_diffusion(Path(checkpoints["diffusion_digits"]))
    assert isinstance(module, LatentDiffusion)
    own = module.sample(2, "ddim", 3, labels=7, eta=0.5, spacing="leading")
    for i, picture in enumerate((own * 255).round().byte()):
        assert np.array_equal(pixels(f"out/{i:03d}.png"), picture[0].numpy())
        assert Image.open(f"out/{i:03d}.png").text["class"] == "7"


def test_averages_or_raw_weights(checkpoints, zoo, here):
    saved = torch.load(Path(checkpoints["diffusion_digits"]), weights_only=True)
    chosen = {
        weights: load_diffusion(Path(checkpoints["diffusion_digits"]), weights).state_dict()
        for weights in ("auto", "raw")
    }
    name = "net.conv_out.weight"
    assert torch.equal(chosen["auto"][name], saved["ema_params"][name])
    assert torch.equal(chosen["raw"][name], saved["raw_params"][name])
    assert not torch.equal(chosen["auto"][name], chosen["raw"][name])


def test_half_precision(checkpoints, zoo, here):
    base = ["sample", "--ckpt_path", checkpoints["diffusion_digits"], "--n", 4, "--steps", 3]
    for name, more in (("full", []), ("half", ["--precision", "bf16"])):
        assert zoo(*base, *more, "--out", name)[0] == 0
    apart = np.abs(pixels("full/002.png").astype(float) - pixels("half/002.png"))
    assert 0 < apart.mean() < 12


def test_lines_of_progress_tell_the_time_left(capsys, monkeypatch):
    now = iter([0.0, *range(61, 1000, 61)])
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    with SamplingProgress(num_images=10, batch_size=5, steps=2) as progress:
        for start in (0, 5):
            for step in (1, 2):
                progress.update(start, step)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"sampling: {share}%, {left} min left" for share, left in ((25, 3), (50, 2), (75, 1), (100, 0))]


def test_nothing_is_left_of_what_fails(checkpoints, zoo, here, monkeypatch):
    def broken(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("zoo.cli.image_sampling.tile_images", broken)
    code, _, err = zoo("sample", "--ckpt_path", checkpoints["diffusion_digits"], "--n", 2, "--steps", 2, "--out", "x")
    assert code == 2
    assert "No space left on device" in err
    assert [p.name for p in here.iterdir()] == ["configs"]


def test_stable_diffusion_as_a_folder_and_as_a_single_file(zoo, here, monkeypatch):
    made = networks("1", save_tokenizer(here / "tokenizer"))
    save_pipeline("sd", made, "tokenizer")
    save_single_file("sd.safetensors", made)
    write("net.safetensors", {"a": torch.ones(1)})
    Path("a.ckpt").touch()
    write("xl.safetensors", {"conditioner.embedders.0": torch.ones(1)})
    base = ["sample", "--n", 1, "--steps", 1, "--prompt", "a cat"]
    assert zoo(*base, "--ckpt_path", "sd.safetensors", "--tokenizer", "tokenizer", "--out", "a")[0] == 0
    whole = load_diffusion(Path("sd")).sample(1, steps=1, texts="a cat")[0]
    assert np.array_equal(pixels("a/000.png"), (whole * 255).round().byte().permute(1, 2, 0).numpy())
    for command, said in {
        "sd.safetensors": "sd.safetensors holds no tokenizer: give the folder of Stable Diffusion's with --tokenizer",
        "sd.safetensors --tokenizer configs": "configs holds no tokenizer: neither tokenizer.json nor vocab.json and",
        "net.safetensors": "net.safetensors holds the weights of a network alone: give a checkpoint of `zoo fit`",
        "xl.safetensors --tokenizer sd": "xl.safetensors is a checkpoint of Stable Diffusion XL; zoo reads",
        "sd --weights ema": "sd holds no EMA weights",
        "a.ckpt --tokenizer sd": "--tokenizer is for a file or folder of Stable Diffusion, which a.ckpt is not",
        "none.safetensors --tokenizer sd": "no checkpoint none.safetensors",
    }.items():
        code, out, err = zoo(*base, "--out", "x", "--ckpt_path", *command.split())
        assert (code, out, len(err.splitlines())) == (2, "", 1), command
        assert err.startswith(f"zoo: error: {said}")
    (here / "empty").mkdir()
    monkeypatch.chdir(here / "empty")
    code, _, err = zoo(*base, "--ckpt_path", "../sd", "--out", ".")
    assert (code, err) == (2, "zoo: error: --out . is the working directory: name a new folder\n")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("--out x", "sample: the following arguments are required: --ckpt_path"),
        ("--ckpt-path diffusion_digits --out x", "sample: there is no option --ckpt-path; did you mean --ckpt_path?"),
        ("--ckpt_path diffusion_digits --out x --promt cat", "there is no option --promt; did you mean --prompt"),
        ("--ckpt_path nowhere.ckpt --out x", "no checkpoint nowhere.ckpt"),
        ("--ckpt_path mlp_digits --out x", "holds a MLPClassifier, which is not a diffusion model"),
        ("--ckpt_path diffusion_digits --out x --class cat", "--class cat: no such class; there are 0, 1, 2"),
        ("--ckpt_path diffusion_digits --out x --class 10", "--class 10: no such class; did you mean"),
        ("--ckpt_path diffusion_digits --out x --prompt cat", "texts need a text-conditional model"),
        ("--ckpt_path diffusion_digits --out x --steps 2000", "steps must be 1 to 1000"),
        ("--ckpt_path diffusion_digits --out x --sampler plms", "argument --sampler: invalid choice: 'plms'"),
        ("--ckpt_path diffusion_digits --out x --n 0", "--n must be at least 1, got 0"),
        ("--ckpt_path diffusion_digits --out x --eta 1", "eta is for the sampler ddim, got dpm++"),
        ("--ckpt_path diffusion_digits --out x --device nowhere", "--device nowhere: "),
        ("--ckpt_path diffusion_digits --out configs", "--out configs exists already"),
        ("--ckpt_path diffusion_digits --out no/where", "no folder 'no' to write where into"),
    ],
)
def test_mistakes_of_a_user(command, said, checkpoints, zoo, here):
    code, out, err = zoo("sample", *[checkpoints.get(word, word) for word in command.split()])
    assert (code, out) == (2, "")
    assert err.startswith("zoo: error: ")
    assert len(err.splitlines()) == 1
    assert said in err
    assert not (here / "x").exists()


def test_help_names_its_options(zoo):
    code, out, _ = zoo("sample", "--help")
    assert code == 0
    assert all(
        option in out for option in ("--class", "--prompt", "--guidance_scale", "--sampler", "--steps", "--seed")
    )


def test_listed_among_the_commands(here):
    done = subprocess.run([sys.executable, "-m", "zoo", "--help"], capture_output=True, text=True, cwd=here,
                          env={"PYTHONPATH": str(ROOT)})  # fmt: skip
    assert "sample" in done.stdout
