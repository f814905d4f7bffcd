"""The diffusion task: its loss is what a plain loop computes, conditions, validation that can be compared, resuming."""

import json

import lightning as L
import pytest
import torch
from torch import nn

from tests.parity.compare import randomize
from tests.prompt_files import save_tokenizer
from zoo.callbacks import EMA, ImageSamples
from zoo.data import Digits
from zoo.diffusion import Noise
from zoo.models import AutoencoderKL, AutoencoderKLModule, CLIPTextEncoder, LatentDiffusion, UNet
from zoo.tasks import Diffusion
from zoo.weights.formats.diffusers import save_pipeline, save_single_file

DATA_SPEC = {"in_channels": 1, "image_size": 8, "num_classes": 10}
SMALL = {"preset": "pixels-8", "channels": [16, 32], "head_dim": 16}


def small(**kwargs) -> LatentDiffusion:
    torch.manual_seed(0)
    module = LatentDiffusion(**{**DATA_SPEC, **SMALL, **kwargs})
    for p in module.parameters():  # the last layer begins at zero
        p.data.add_(0.05 * torch.randn_like(p))
    return module


def images(n: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.rand(n, 1, 8, 8, generator=g) * 2 - 1, torch.randint(0, 10, (n,), generator=g)


def trainer(folder, epochs: int = 1, **kwargs) -> L.Trainer:
    return L.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=folder,
        enable_model_summary=False, **{"enable_checkpointing": False, **kwargs},
    )  # fmt: skip


# The loss -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "flow_prediction"])
def test_loss_equals_diffusers(prediction_type):
    """Times and noise are drawn in this order; what is predicted is as diffusers' schedulers have it."""
    import diffusers

    module, (x, y) = small(prediction_type=prediction_type, cond_drop_prob=0.0), images()
    torch.manual_seed(5)
    loss = module.step((x, y), "train")
    torch.manual_seed(5)
    u, eps = torch.rand(len(x)), torch.randn_like(x)
    if prediction_type == "flow_prediction":
        t = u.view(-1, 1, 1, 1)
        prediction = module.net((1 - t) * x + t * eps, 1000 * u, y)
        target = eps - x
    else:
        other = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
        t = (1000 * u).long()
        prediction = module.net(other.add_noise(x, eps, t), t, y)
        target = eps if prediction_type == "epsilon" else other.get_velocity(x, eps, t)
    assert torch.allclose(loss, (prediction - target).square().mean(), atol=1e-5)


def test_min_snr_weights_the_loss():
    plain, weighted = small(prediction_type="epsilon"), small(prediction_type="epsilon", min_snr_gamma=5.0)
    losses = [module.losses(images(), "val").detach() for module in (plain, weighted)]
    ratio = losses[1] / losses[0]
    assert float(ratio.max()) <= 1 + 1e-6
    assert float(ratio.min()) < 0.5


def test_learns_digits(tmp_path):
    module = small(lr=5e-3)
    data = Digits(mean=[0.5], std=[0.5], batch_size=64)
    run = trainer(tmp_path, 2, limit_train_batches=12, num_sanity_val_steps=0)
    before = run.validate(module, data, verbose=False)[0]
    run.fit(module, data)
    after = run.validate(module, data, verbose=False)[0]
    assert set(after) == {"val/loss", *(f"val/loss_t{i}" for i in range(4))}
    assert after["val/loss"] < 0.6 * before["val/loss"]
    assert after["val/loss_t0"] > after["val/loss_t1"] > after["val/loss_t2"], "v is the harder the less noise"


# Conditions -----------------------------------------------------------------------------------------------------------


class LabelRecorder(nn.Module):
    """A network that records the labels of each call."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.labels: list[torch.Tensor | None] = []

    def forward(self, x, t, labels=None, text=None):
        self.labels.append(labels)
        shown = torch.zeros(len(x)) if labels is None else labels.to(x)
        return self.weight * x + shown.view(-1, 1, 1, 1)


class Pixels(Diffusion):
    shape = (1, 2, 2)


@pytest.mark.parametrize("drop", [0.0, 0.25])
def test_cond_drop_prob_is_the_fraction_of_dropped_conditions(drop):
    module = Pixels(LabelRecorder(), num_classes=3, cond_drop_prob=drop)
    torch.manual_seed(0)
    x, y = torch.rand(4000, 1, 2, 2) - 0.5, torch.arange(4000) % 3
    module.step((x, y), "train")
    labels = module.net.labels[-1]
    assert float((labels == 3).float().mean()) == pytest.approx(drop, abs=0.03)
    assert torch.equal(labels[labels != 3], y[labels != 3])
    module.step((x, y), "val")
    assert torch.equal(module.net.labels[-1], y), "nothing is dropped where losses are compared"


def test_unconditional_network_gets_no_labels():
    module = Pixels(LabelRecorder(), condition="none")
    module.step((torch.rand(4, 1, 2, 2) - 0.5, torch.arange(4)), "train")
    module.step(torch.rand(4, 1, 2, 2) - 0.5, "train")
    module.step([torch.rand(4, 1, 2, 2) - 0.5], "train")  # as of a TensorDataset
    module.sample(2, steps=2)
    assert module.net.labels == [None] * 5


def test_guidance_1_is_conditional_and_0_unconditional():
    module = small()
    options = {"n": 4, "steps": 4, "labels": 7, "seed": 1}
    plain, without, far = (module.sample(guidance_scale=g, **options) for g in (1.0, 0.0, 4.0))
    by_hand = module.sample(4, steps=4, labels=[7, 7, 7, 7], seed=1)
    assert torch.equal(plain, by_hand)
    with torch.no_grad():
        module.net.class_embedding.weight[7] = module.net.class_embedding.weight[10]  # no class
    assert torch.equal(module.sample(guidance_scale=1.0, **options), without)
    assert not torch.allclose(plain, without, atol=1e-3)
    assert not torch.allclose(plain, far, atol=1e-3)


@pytest.mark.parametrize("sampler", ["ddpm", "dpm++"])
def test_samples_depend_on_the_seed_and_not_on_the_batch_size(sampler):
    module = small().double()
    found = [module.sample(8, sampler=sampler, steps=5, seed=3, batch_size=size) for size in (1, 8, 3)]
    assert torch.allclose(found[0], found[1], atol=1e-6)
    assert torch.allclose(found[2], found[1], atol=1e-6)
    assert torch.allclose(module.sample(3, sampler=sampler, steps=5, seed=3), found[1][:3], atol=1e-6)
    assert not torch.allclose(module.sample(3, sampler=sampler, steps=5, seed=4), found[1][:3], atol=1e-2)


def test_sampling_leaves_the_random_state_and_the_mode_alone():
    module = small().train()
    before = torch.get_rng_state()
    module.sample(3, sampler="ddpm", steps=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert module.net.training


def test_half_precision_changes_samples_little():
    module = small()
    full = module.sample(4, steps=4, seed=2)
    assert (module.to(torch.bfloat16).sample(4, steps=4, seed=2) - full).abs().mean() < 0.02


def test_samples_that_overflow_raise_an_error():
    module = small()
    with torch.no_grad():
        module.net.conv_out.weight.fill_(float("inf"))
    with pytest.raises(ValueError, match="samples are not finite: the network overflows"):
        module.sample(2, steps=2)


# Validation, resuming -------------------------------------------------------------------------------------------------


def test_validation_is_the_same_each_time_and_at_any_batch_size(tmp_path):
    module, found = small(), []
    for size in (32, 32, 7):
        data = Digits(mean=[0.5], std=[0.5], eval_batch_size=size)
        torch.manual_seed(len(found))
        found.append(trainer(tmp_path).validate(module, data, verbose=False)[0])
    assert found[0] == found[1]
    for name, value in found[0].items():
        assert found[2][name] == pytest.approx(value, rel=1e-4)


def test_losses_by_noise_level_average_to_the_loss(tmp_path):
    found = trainer(tmp_path).validate(small(), Digits(mean=[0.5], std=[0.5]), verbose=False)[0]
    assert found["val/loss"] == pytest.approx(sum(found[f"val/loss_t{i}"] for i in range(4)) / 4, rel=0.02)


def test_predictions_are_losses(tmp_path):
    module, data = small(), Digits(mean=[0.5], std=[0.5])
    rows = trainer(tmp_path).predict(module, data)
    losses = [loss for row in rows for loss in row["loss"]]
    assert len(losses) == len(data.datasets["test"])
    assert min(losses) > 0


def weights_of(module: L.LightningModule) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def test_image_samples_leave_training_unchanged(tmp_path):
    found = []
    for callbacks in ([], [ImageSamples(n=10, steps=2, sampler="ddpm", dirpath=str(tmp_path))]):
        module = small(lr=3e-3, dropout=0.1)
        L.seed_everything(0)
        limits = {"limit_train_batches": 4, "limit_val_batches": 1}
        trainer(tmp_path, 2, callbacks=[*callbacks, EMA(0.5)], **limits).fit(module, Digits(mean=[0.5], std=[0.5]))
        found.append(weights_of(module))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    from PIL import Image

    picture = Image.open(tmp_path / "samples.png")
    assert picture.size == (10 * 50 + 2, 50 + 2)


def test_image_samples_use_ema_weights(tmp_path, monkeypatch):
    seen = []

    def sample(self, n, **_):
        seen.append(weights_of(self))
        return torch.rand(n, 1, 8, 8)

    monkeypatch.setattr(LatentDiffusion, "sample", sample)
    module, average = small(lr=3e-3), EMA(0.9, warmup=False)
    limits = {"limit_train_batches": 4, "limit_val_batches": 1, "num_sanity_val_steps": 0}
    trainer(tmp_path, callbacks=[average, ImageSamples(n=2, dirpath=str(tmp_path))], **limits).fit(
        module, Digits(mean=[0.5], std=[0.5])
    )
    (drawn,) = seen
    names = [names[0] for names in average._param_names.values()]
    assert all(torch.allclose(drawn[n], a) for n, a in zip(names, average.ema_weights, strict=True))
    assert not all(torch.equal(drawn[n], r) for n, r in zip(names, average._raw_weights, strict=True))


def test_resumed_equals_uninterrupted(tmp_path):
    from zoo.callbacks import DeterministicSteps

    def run(epochs: int, **kwargs) -> LatentDiffusion:
        module = small(lr=3e-3, dropout=0.1)
        L.seed_everything(7)
        ckpt = kwargs.pop("ckpt_path", None)
        run = trainer(
            tmp_path, epochs, callbacks=[DeterministicSteps()], limit_train_batches=3, limit_val_batches=1, **kwargs
        )
        run.fit(module, Digits(mean=[0.5], std=[0.5]), ckpt_path=ckpt, weights_only=True if ckpt else None)
        run.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return module

    whole = weights_of(run(2))
    run(1)
    resumed = weights_of(run(2, ckpt_path=tmp_path / "1.ckpt"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


# Latents --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def autoencoders(tmp_path_factory):
    """Two checkpoints of autoencoders for digits, hardly trained."""
    folder, paths = tmp_path_factory.mktemp("autoencoders"), []
    for seed in (0, 1):
        torch.manual_seed(seed)
        module = AutoencoderKLModule(channels=[16, 16], in_channels=1, image_size=8)
        run = trainer(folder, limit_train_batches=2, limit_val_batches=1)
        run.fit(module, Digits(mean=[0.5], std=[0.5]))
        paths.append(str(folder / f"{seed}.ckpt"))
        run.save_checkpoint(paths[-1])
    return paths


def test_latents_of_an_autoencoder(autoencoders, tmp_path):
    module = small(autoencoder=autoencoders[0])
    assert module.shape == (4, 4, 4)
    assert not any("autoencoder" in name for name, _ in module.named_parameters())
    x, _ = images()
    latents = module.encode(x, "val")
    own = module.autoencoder
    assert torch.equal(latents, own.encode(x).mean * own.scale)
    assert torch.allclose(module.decode(latents), own.decode(own.encode(x).mean), atol=1e-5)
    before = {k: v.clone() for k, v in own.state_dict().items()}
    run = trainer(tmp_path, limit_train_batches=2, limit_val_batches=1)
    run.fit(module, Digits(mean=[0.5], std=[0.5]))
    assert all(torch.equal(v, before[k]) for k, v in own.state_dict().items()), "it is not trained"
    run.save_checkpoint(tmp_path / "a.ckpt")
    again = LatentDiffusion.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert torch.equal(again.sample(2, steps=2), module.sample(2, steps=2)), "the checkpoint needs nothing else"


def test_another_autoencoder_is_refused(autoencoders, tmp_path):
    run, module = trainer(tmp_path, limit_train_batches=1, limit_val_batches=0), small(autoencoder=autoencoders[0])
    run.fit(module, Digits(mean=[0.5], std=[0.5]))
    run.save_checkpoint(tmp_path / "a.ckpt")
    same, other = small(autoencoder=autoencoders[0]), small(autoencoder=autoencoders[1])
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    same.on_load_checkpoint(dict(checkpoint))
    with pytest.raises(ValueError, match="latents of another autoencoder"):
        other.on_load_checkpoint(dict(checkpoint))
    with pytest.raises(ValueError, match="autoencoder: the checkpoint has one, this model has none"):
        small().on_load_checkpoint(dict(checkpoint))


# Texts ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """Stable Diffusion at a tiny size with random weights, in diffusers' folder."""
    folder = tmp_path_factory.mktemp("sd")
    size = save_tokenizer(folder / "tokenizer")
    torch.manual_seed(0)
    made = {
        "unet": UNet(4, (32, 64), blocks=1, attention=(True, False), heads=8, text_dim=64),
        "vae": AutoencoderKL(3, (32, 64), scale=0.31),
        "text_encoder": CLIPTextEncoder(size, dim=64, depth=1, heads=2, hidden=48),
    }
    randomize(made["unet"])
    made["unet"].config = {"sample_size": 8}
    save_pipeline(folder / "sd", made, folder / "tokenizer")
    return folder / "sd"


def test_samples_equal_those_of_a_diffusers_pipeline(pipeline):
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    ours = LatentDiffusion.from_pretrained(pipeline)
    assert (ours.prediction_type, ours.schedule.steps, ours.shape, ours.condition) == (
        "epsilon",
        1000,
        (4, 8, 8),
        "text",
    )
    theirs = StableDiffusionPipeline.from_pretrained(pipeline)
    config = {**theirs.scheduler.config, "timestep_spacing": "trailing"}
    theirs.scheduler = DPMSolverMultistepScheduler.from_config(config)
    theirs.set_progress_bar_config(disable=True)
    noise = torch.cat([Noise(3, [i]).normal(4, 8, 8) for i in range(2)])
    texts = ["a photo of a cat", "2 cats"]
    image = theirs(texts, num_inference_steps=4, guidance_scale=3.0, latents=noise, output_type="pt").images
    own = ours.sample(2, steps=4, guidance_scale=3.0, texts=texts, seed=3)
    assert own.std() > 0.05
    assert torch.allclose(own, image, atol=2e-3)


@pytest.fixture
def edit_scheduler_config(pipeline):
    """Change entries of the pipeline's scheduler config, for one test."""
    path = pipeline / "scheduler" / "scheduler_config.json"
    before = path.read_text()
    yield lambda **entries: path.write_text(json.dumps({**json.loads(before), **entries}))
    path.write_text(before)


def test_noise_schedule_is_that_of_the_pipeline(pipeline, edit_scheduler_config):
    from diffusers import DDIMScheduler

    edit_scheduler_config(beta_schedule="squaredcos_cap_v2", num_train_timesteps=500)
    ours = LatentDiffusion.from_pretrained(pipeline)
    theirs = DDIMScheduler.from_pretrained(pipeline / "scheduler")
    assert torch.allclose(ours.schedule.alphas_cumprod.float(), theirs.alphas_cumprod, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("entry", [{"beta_schedule": "sigmoid"}, {"prediction_type": "sample"}])
def test_unsupported_schedulers_raise_an_error(pipeline, edit_scheduler_config, entry):
    edit_scheduler_config(**entry)
    ((key, value),) = entry.items()
    with pytest.raises(ValueError, match=f"its scheduler has {key} {value}, which is not supported; zoo has "):
        LatentDiffusion.from_pretrained(pipeline)


def test_training_with_texts_and_its_checkpoint(pipeline, tmp_path):
    module = LatentDiffusion.from_pretrained(pipeline, cond_drop_prob=0.5)
    x, texts = torch.rand(4, 3, 16, 16) * 2 - 1, ["a cat", "a photo", "", "cats"]
    loss = module.train().step((x, texts), "train")
    loss.backward()
    assert all(p.grad is not None for p in module.parameters())
    run = trainer(tmp_path, limit_train_batches=1, limit_val_batches=0)
    run.fit(module, torch.utils.data.DataLoader([(x, texts)], batch_size=None))
    run.save_checkpoint(tmp_path / "a.ckpt")
    again = LatentDiffusion.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    options = {"steps": 2, "texts": "a cat", "guidance_scale": 2.0}
    assert torch.equal(again.sample(2, **options), module.sample(2, **options))


def test_weights_of_another_prediction_type_raise_an_error(pipeline):
    with pytest.raises(ValueError, match="was trained for epsilon: use"):
        LatentDiffusion.from_pretrained(pipeline, prediction_type="v_prediction")


def test_weights_of_another_noise_schedule_are_reported(pipeline, capsys):
    LatentDiffusion.from_pretrained(pipeline)
    assert capsys.readouterr().err == ""
    LatentDiffusion.from_pretrained(pipeline, schedule="cosine", beta_start=None, beta_end=None)
    assert capsys.readouterr().err == (
        f"zoo: {pipeline} was trained with schedule=scaled_linear, beta_start=0.00085, beta_end=0.012, "
        "timesteps=1000, zero_snr=False; another noise schedule is used here\n"
    )


def test_a_single_file_with_a_tokenizer_is_the_same_pipeline(pipeline, tmp_path):
    nets = {"unet": UNet, "vae": AutoencoderKL, "text_encoder": CLIPTextEncoder}
    path, folder = tmp_path / "sd.safetensors", str(pipeline)
    save_single_file(path, {part: cls.from_pretrained(pipeline) for part, cls in nets.items()})
    facts = {"condition": "text", "prediction_type": "epsilon", "in_channels": 3, "image_size": 16}
    sizes = {"channels": [32, 64], "blocks": 1, "attention": [True, False], "heads": 8, "groups": 32}
    tuned = LatentDiffusion(**facts, **sizes, weights=str(path), tokenizer=folder)
    whole = LatentDiffusion.from_pretrained(pipeline)
    for module in (tuned, LatentDiffusion.from_pretrained(path, tokenizer=folder, image_size=16)):
        assert torch.equal(module.encode_text(["a cat"]), whole.encode_text(["a cat"]))
        assert torch.equal(module.net.conv_in.weight, whole.net.conv_in.weight)
        assert torch.equal(module.autoencoder.scale, whole.autoencoder.scale)
        assert (module.hparams.weights, module.hparams.tokenizer) == (None, None), "checkpoints need neither"
    with pytest.raises(ValueError, match="is a file and so holds no tokenizer: give a folder that holds a tokenizer"):
        LatentDiffusion.from_pretrained(path)
    small_one = CLIPTextEncoder(20, dim=64, depth=1, heads=2, hidden=48)
    small_one.save_pretrained(tmp_path / "text_encoder")
    with pytest.raises(ValueError, match="tokens, and the text encoder 20"):
        LatentDiffusion.from_pretrained(pipeline, text_encoder=str(tmp_path), tokenizer=folder)


# Mistakes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: small(schedule="linear", prediction_type="flow_prediction"),
            "prediction_type flow_prediction and schedule flow go together",
        ),
        (lambda: small(zero_snr=True, prediction_type="epsilon"), "prediction_type epsilon does not go with zero_snr"),
        (lambda: small(cond_drop_prob=1.0), "cond_drop_prob must be a probability"),
        (lambda: small(min_snr_gamma=0.0), "min_snr_gamma must be above 0"),
        (lambda: small(image_size=9), "image_size 9 gives the U-Net 9 positions per side, .* divisible by 2"),
        (lambda: small(preset="huge"), "there is no UNet preset 'huge'"),
        (lambda: small(class_names=["a"]), "1 class_names for num_classes=10"),
        (lambda: small(condition="text"), "condition: text needs a text_encoder"),
        (lambda: small(text_encoder="x"), "text_encoder is for condition: text, .* condition: class"),
        (lambda: small(tokenizer="x"), "tokenizer is for condition: text, .* condition: class"),
        (lambda: small(condition="text", text_encoder="nowhere"), "no text encoder nowhere: a diffusers folder"),
        (lambda: small(autoencoder="nowhere.ckpt"), "no autoencoder nowhere.ckpt"),
        (lambda: small().sample(4, labels=10), "unknown class 10: class indices are 0 to 9"),
        (lambda: small().sample(4, labels=[1, 2]), "2 conditions for n=4"),
        (
            lambda: small().sample(4, texts="a dog"),
            "texts need a text-conditional model; this one has condition: class",
        ),
        (lambda: small().sample(4, steps=1001), "steps must be 1 to 1000, the number of training timesteps, got 1001"),
        (lambda: small().sample(4, sampler="magic"), "sampler must be one of ddpm, .* got 'magic'"),
        (lambda: small().sample(4, eta=0.5), "eta is for the sampler ddim, got dpm"),
        (lambda: small().sample(4, guidance_scale=-1), "guidance_scale must be a finite number from 0 up"),
        (
            lambda: small().sample(4, guidance_scale=float("nan")),
            "guidance_scale must be a finite number from 0 up, got nan",
        ),
        (
            lambda: small().sample(4, guidance_scale=float("inf")),
            "guidance_scale must be a finite number from 0 up, got inf",
        ),
        (
            lambda: small(cond_drop_prob=0.0).sample(4, guidance_scale=3),
            "needs a model trained with cond_drop_prob above 0",
        ),
        (
            lambda: small(condition="none").sample(4, guidance_scale=3),
            "needs a conditional model, and this one has no condition",
        ),
        (lambda: small(condition="none").sample(4, labels=1), "labels need a class-conditional model"),
        (
            lambda: small().step((4 * images()[0], images()[1]), "train"),
            "got values from -",
        ),
        (lambda: small().step((images()[0], images()[1] + 9), "train"), "is out of range: num_classes=10"),
        (lambda: small().step((images()[0], torch.tensor([1, 2, 3, -3, 5, 6])), "train"), "class -3 is out of range"),
        (lambda: small().step(images()[0], "train"), "class indices .*, got NoneType"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_other_normalization_raises_an_error(tmp_path):
    data = Digits(mean=[0.3], std=[0.4])
    with pytest.raises(ValueError, match=r"diffusion needs images in \[-1, 1\]: set --data.mean \[0.5\]"):
        trainer(tmp_path).validate(small(), data)


def test_data_is_normalized_to_minus_one_to_one_by_default(tmp_path):
    data, module = Digits(), small()
    trainer(tmp_path, limit_train_batches=1, limit_val_batches=1).fit(module, data)
    x, _ = data.datasets["train"].batch(torch.arange(200))
    assert (float(x.min()), float(x.max())) == (-1, 1)


def test_images_in_0_to_1_give_a_warning():
    with pytest.warns(UserWarning, match="needs images in \[-1, 1\], got values from 0.0"):
        small().step((images()[0].abs(), images()[1]), "train")
