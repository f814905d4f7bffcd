"""Stable Diffusion's files at tiny size: diffusers' folders and single files, in and out, and what is no such file."""

import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKL as DiffusersVAE
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel, UNet2DModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from tests.parity.compare import on_meta, randomize
from tests.prompt_files import save_tokenizer
from zoo.models import AutoencoderKL, CLIPTextEncoder, UNet
from zoo.text.prompts import PromptTokenizer
from zoo.weights.formats.diffusers import parameters_of, save_pipeline, save_single_file, scheduler_config
from zoo.weights.formats.ldm import to_ldm

UNET = {"in_channels": 4, "channels": (32, 64), "blocks": 1, "attention": (True, False), "text_dim": 128}
VAE = {"in_channels": 3, "channels": (32, 64), "blocks": 1, "latent_channels": 4, "scale": 0.31}
TEXT = {"dim": 128, "depth": 2, "heads": 2, "hidden": 48}
VERSIONS = {
    "1": ({"heads": 8}, {"activation": "quick_gelu"}),
    "2": ({"head_dim": 8, "linear_projection": True}, {"activation": "gelu"}),
}


def networks(version: str, vocab_size: int) -> dict:
    unet, text = VERSIONS[version]
    made = {
        "unet": UNet(**UNET, **unet),
        "vae": AutoencoderKL(**VAE),
        "text_encoder": CLIPTextEncoder(vocab_size, **TEXT, **text),
    }
    for net in made.values():
        scale = getattr(net, "scale", None) is not None
        randomize(net)
        if scale:
            net.scale.fill_(VAE["scale"])
    return made


@pytest.fixture(scope="module", params=["1", "2"])
def version(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def pipeline(version, tmp_path_factory):
    """A folder that zoo wrote, and the networks in it."""
    folder = tmp_path_factory.mktemp("files")
    size = save_tokenizer(folder / "tokenizer")
    made = networks(version, size)
    save_pipeline(folder / "sd", made, folder / "tokenizer", {"prediction_type": "v_prediction"})
    return folder / "sd", made


def same(net, other) -> bool:
    ours, theirs = net.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def inputs(made):
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(2, 4, 8, 8, generator=generator),
        torch.tensor([7, 900]),
        torch.randn(2, 5, 128, generator=generator),
    )


def test_diffusers_loads_what_zoo_wrote(pipeline):
    folder, made = pipeline
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    x, t, text = inputs(made)
    with torch.no_grad():
        torch.testing.assert_close(made["unet"](x, t, text=text), pipe.unet(x, t, text).sample)
        torch.testing.assert_close(made["vae"].decode(x), pipe.vae.decode(x).sample)
        ids = PromptTokenizer.load(folder)(["a photo of a cat", "2 cats"])
        theirs = pipe.tokenizer(
            ["a photo of a cat", "2 cats"], padding="max_length", truncation=True, return_tensors="pt"
        )
        assert torch.equal(ids, theirs.input_ids)
        torch.testing.assert_close(made["text_encoder"](ids), pipe.text_encoder(ids).last_hidden_state)
    assert pipe.vae.config.scaling_factor == pytest.approx(0.31)
    assert pipe.scheduler.config.prediction_type == "v_prediction"


def test_zoo_loads_what_zoo_wrote(pipeline, tmp_path):
    folder, made = pipeline
    save_single_file(tmp_path / "sd.safetensors", made, "v_prediction")
    for part, net in made.items():
        own = tmp_path / f"{part}.safetensors"
        net.save_pretrained(own, "zoo")
        for path in (folder, folder / part, own, tmp_path / "sd.safetensors"):
            again = type(net).from_pretrained(path)
            assert same(net, again), path
            assert not again.training
            fresh = type(net)(**net.arguments)
            assert same(net, fresh.load_pretrained(path)), path
    assert scheduler_config(folder)["prediction_type"] == "v_prediction"
    assert scheduler_config(tmp_path / "sd.safetensors")["prediction_type"] == "v_prediction"


def test_zoo_loads_what_diffusers_wrote(tmp_path):
    shared = {"block_out_channels": (32, 64), "layers_per_block": 1}
    kinds = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    unet = UNet2DConditionModel(**shared, **kinds, cross_attention_dim=24, attention_head_dim=(4, 8))
    plain = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    pixels = UNet2DModel(**shared, **plain, attention_head_dim=8, num_class_embeds=5)
    coders = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = DiffusersVAE(**shared, **coders, scaling_factor=0.5)
    unet.save_pretrained(tmp_path / "sd" / "unet")
    vae.save_pretrained(tmp_path / "sd" / "vae", safe_serialization=False)
    pixels.save_pretrained(tmp_path / "pixels", max_shard_size="1MB")
    DDIMScheduler(prediction_type="v_prediction").save_pretrained(tmp_path / "sd" / "scheduler")
    ours = UNet.from_pretrained(tmp_path / "sd", dropout=0.1)
    assert (ours.arguments["head_dim"], ours.arguments["dropout"]) == (8, 0.1)
    assert same(ours, unet)
    assert (tmp_path / "pixels" / "diffusion_pytorch_model.safetensors.index.json").exists()
    digits = UNet.from_pretrained(tmp_path / "pixels")
    assert digits.num_classes == 4  # and one for none
    assert same(digits, pixels)
    again = AutoencoderKL.from_pretrained(tmp_path / "sd")
    assert float(again.scale) == 0.5
    assert same(vae, again) or again.state_dict().keys() - vae.state_dict().keys() == {"scale"}
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in vae.state_dict().items())
    assert scheduler_config(tmp_path / "sd")["prediction_type"] == "v_prediction"
    digits.save_pretrained(tmp_path / "again")
    assert same(UNet2DModel.from_pretrained(tmp_path / "again"), pixels)


def test_old_names_of_attention_and_of_the_text_encoder_are_known(tmp_path):
    vae, text = AutoencoderKL(**VAE), CLIPTextEncoder(300, **TEXT)
    vae.save_pretrained(tmp_path / "vae")
    text.save_pretrained(tmp_path / "text_encoder")
    file = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(file)
    for new, name in old.items():
        state = {k.replace(f"attentions.0.{new}.", f"attentions.0.{name}."): v for k, v in state.items()}
    assert any(".query." in k for k in state)
    save_file(state, file)
    file = tmp_path / "text_encoder" / "model.safetensors"
    state = load_file(file)
    assert all(k.startswith("text_model.") for k in state)
    save_file({**state, "text_model.embeddings.position_ids": torch.arange(77)[None]}, file)
    assert same(AutoencoderKL.from_pretrained(tmp_path), vae)
    assert same(CLIPTextEncoder.from_pretrained(tmp_path), text)


def test_transformers_own_file_is_known(tmp_path):
    config = CLIPTextConfig(
        vocab_size=300, hidden_size=128, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2
    )
    theirs = CLIPTextModel(config)
    theirs.save_pretrained(tmp_path / "text_encoder")
    assert same(CLIPTextEncoder.from_pretrained(tmp_path), theirs)


def test_a_divided_file_is_replaced_by_the_whole_one(tmp_path):
    """Its index would be read before the new file."""
    net = UNet(1, (32, 32), blocks=1, attention=(False, False))
    net.save_pretrained(tmp_path)
    UNet2DModel.from_pretrained(tmp_path).save_pretrained(tmp_path / "divided", max_shard_size="300KB")
    assert (tmp_path / "divided" / "diffusion_pytorch_model.safetensors.index.json").exists()
    randomize(net)
    net.save_pretrained(tmp_path / "divided")
    assert same(UNet.from_pretrained(tmp_path / "divided"), net)
    files = ["config.json", "diffusion_pytorch_model.safetensors"]
    assert sorted(p.name for p in (tmp_path / "divided").iterdir()) == files


# Single files ---------------------------------------------------------------------------------------------------------


def test_names_of_single_files_are_those_that_diffusers_knows(pipeline):
    _, made = pipeline
    a = made["unet"].arguments
    config = {"layers_per_block": a["blocks"], "class_embed_type": None, "addition_embed_type": None}
    unet = convert_ldm_unet_checkpoint(to_ldm("unet", parameters_of(made["unet"]), a), config)
    vae = convert_ldm_vae_checkpoint(
        to_ldm("vae", parameters_of(made["vae"]), made["vae"].arguments),
        {"down_block_types": ("x",) * 2, "up_block_types": ("x",) * 2},
    )
    for theirs, net in ((unet, made["unet"]), (vae, made["vae"])):
        ours = parameters_of(net)
        assert theirs.keys() == ours.keys()
        assert all(torch.equal(theirs[k], ours[k]) for k in ours)


@pytest.mark.parametrize("preset", ["sd-1.5", "sd-2.1"])
def test_full_size_single_files_have_the_names_that_diffusers_knows(preset):
    unet, vae = on_meta(lambda: UNet.preset(preset)), on_meta(lambda: AutoencoderKL.preset("sd"))
    file = to_ldm("unet", parameters_of(unet), unet.arguments)
    config = {"layers_per_block": 2, "class_embed_type": None, "addition_embed_type": None}
    theirs = convert_ldm_unet_checkpoint(file, config)
    assert {k: v.shape for k, v in theirs.items()} == {k: v.shape for k, v in parameters_of(unet).items()}
    # the last of the names by which diffusers itself tells these two versions
    assert "model.diffusion_model.output_blocks.11.0.skip_connection.weight" in file
    key = "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"
    assert file[key].shape[-1] == {"sd-1.5": 768, "sd-2.1": 1024}[preset]
    file = to_ldm("vae", parameters_of(vae), vae.arguments)
    theirs = convert_ldm_vae_checkpoint(file, {"down_block_types": ("x",) * 4, "up_block_types": ("x",) * 4})
    assert {k: v.shape[:2] for k, v in theirs.items()} == {k: v.shape[:2] for k, v in parameters_of(vae).items()}


def test_the_text_tower_of_a_second_version_is_that_of_diffusers(tmp_path):
    text = CLIPTextEncoder(300, **TEXT, activation="gelu")
    randomize(text)
    file = to_ldm("text_encoder", parameters_of(text), text.arguments)
    config = CLIPTextConfig(
        vocab_size=300, hidden_size=128, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2
    )
    theirs = convert_open_clip_checkpoint(CLIPTextModel(config), dict(file), prefix="cond_stage_model.model.")
    theirs = {k.removeprefix("text_model."): v for k, v in theirs.items() if "position_ids" not in k}
    assert theirs.keys() == parameters_of(text).keys()
    assert all(torch.equal(theirs[k], v) for k, v in parameters_of(text).items())


def test_published_single_files_have_more_in_them(tmp_path):
    """No arguments of zoo, a last layer that is left out, and buffers."""
    made = networks("2", 300)
    # heads of width 64, which shapes do not tell
    made["unet"] = UNet(
        4, (64, 128), blocks=1, attention=(True, False), text_dim=128, head_dim=64, linear_projection=True
    )
    state = {}
    for part, net in made.items():
        state |= to_ldm(part, parameters_of(net), net.arguments)
    last = {k.replace("resblocks.1.", "resblocks.2."): v for k, v in state.items() if "resblocks.1." in k}
    buffers = {"cond_stage_model.model.logit_scale": torch.ones(()), "alphas_cumprod": torch.ones(1000)}
    buffers["cond_stage_model.model.text_projection"] = torch.ones(128, 128)
    buffers["model_ema.decay"] = torch.ones(())
    clones = {k: v.clone().contiguous() for k, v in {**state, **last, **buffers}.items()}
    save_file(clones, tmp_path / "v2.safetensors")
    assert same(UNet.from_pretrained(tmp_path / "v2.safetensors"), made["unet"])
    assert same(CLIPTextEncoder.from_pretrained(tmp_path / "v2.safetensors"), made["text_encoder"])
    vae = AutoencoderKL.from_pretrained(tmp_path / "v2.safetensors")
    assert float(vae.scale) == pytest.approx(0.18215)
    assert all(torch.equal(v, parameters_of(vae)[k]) for k, v in parameters_of(made["vae"]).items())
    assert scheduler_config(tmp_path / "v2.safetensors")["prediction_type"] == "epsilon"  # by the width of its text


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        ({}, "v_prediction"),
        ({"global_step": torch.tensor(875000)}, "epsilon"),
        ({"global_step": torch.tensor(140000)}, "v_prediction"),
    ],
)
def test_prediction_of_a_second_version_is_noticed(tmp_path, extra, told, capsys):
    unet = UNet(4, (32, 32), blocks=1, attention=(True, False), text_dim=1024, head_dim=32, linear_projection=True)
    state = to_ldm("unet", parameters_of(unet), unet.arguments)
    save_file({k: v.contiguous() for k, v in {**state, **extra}.items()}, tmp_path / "v.safetensors")
    assert scheduler_config(tmp_path / "v.safetensors")["prediction_type"] == told
    assert ("taken to predict v" in capsys.readouterr().err) == (told == "v_prediction")


# Mistakes -------------------------------------------------------------------------------------------------------------


def spoiled(pipeline, tmp_path, how: str):
    folder = shutil.copytree(pipeline, tmp_path / "sd")
    unet = folder / "unet" / "diffusion_pytorch_model.safetensors"
    config = json.loads((folder / "unet" / "config.json").read_text())
    if how == "no text encoder":
        shutil.rmtree(folder / "text_encoder")
    elif how == "half a file":
        unet.write_bytes(unet.read_bytes()[:10000])
    elif how == "no file":
        unet.unlink()
    elif how == "a tensor less":
        state = load_file(unet)
        del state["conv_out.bias"]
        save_file(state, unet)
    elif how == "XL":
        (folder / "unet" / "config.json").write_text(json.dumps({**config, "addition_embed_type": "text_time"}))
    elif how == "other blocks":
        config["up_block_types"][0] = "ResnetUpsampleBlock2D"
        (folder / "unet" / "config.json").write_text(json.dumps(config))
    elif how == "no JSON":
        (folder / "unet" / "config.json").write_text("{")
    return folder


@pytest.mark.parametrize(
    ("how", "cls", "said"),
    [
        ("no text encoder", CLIPTextEncoder, "holds no text_encoder .*, only unet, vae"),
        ("half a file", UNet, "is no whole file of weights"),
        ("no file", UNet, "holds neither diffusion_pytorch_model.safetensors nor"),
        ("a tensor less", UNet, r"it lacks 1 tensors \(conv_out.bias\)"),
        ("XL", UNet, "another kind .Stable Diffusion XL."),
        ("other blocks", UNet, "no stages of ResnetUpsampleBlock2D"),
        ("no JSON", UNet, "is not JSON"),
    ],
)
def test_a_spoiled_folder_gives_one_line(pipeline, tmp_path, how, cls, said):
    folder = spoiled(pipeline[0], tmp_path, how)
    with pytest.raises(ValueError, match=said) as error:
        cls.from_pretrained(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["conditioner.embedders.0.x", "model.diffusion_model.x"], "a checkpoint of Stable Diffusion XL"),
        (["model.diffusion_model.joint_blocks.0.x"], "a checkpoint of Stable Diffusion 3"),
        (["first_stage_model.encoder.conv_in.weight"], "holds no unet, only vae"),
        (["model.diffusion_model.input_blocks.0.0.weight"], "no whole unet .* lacks 'out.2.bias'"),
        (["encoder.weight"], "is no UNet of this kind|it lacks"),
    ],
)
def test_another_checkpoint_gives_one_line(tmp_path, names, said):
    save_file({name: torch.zeros(2, 2, 1, 1) for name in names}, tmp_path / "other.safetensors")
    net = UNet(**UNET)
    with pytest.raises(ValueError, match=said) as error:
        net.load_pretrained(tmp_path / "other.safetensors")
    assert "\n" not in str(error.value)


def test_other_mistakes_give_one_line(pipeline, tmp_path):
    folder, made = pipeline
    with pytest.raises(ValueError, match="there is no file"):
        UNet.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is there already"):
        save_pipeline(folder, made)
    with pytest.raises(ValueError, match=r"has channels=\[32, 64\] instead of \[32, 32\]"):
        UNet(**{**UNET, "channels": (32, 32)}, heads=8).load_pretrained(folder)
    with pytest.raises(ValueError, match=r"is no AutoencoderKL: its config.json has no 'latent_channels'"):
        AutoencoderKL.from_pretrained(folder / "unet")
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((folder / "vae" / "diffusion_pytorch_model.safetensors").read_bytes())
    with pytest.raises(ValueError, match="does not state in_channels of a AutoencoderKL: it is of another network"):
        AutoencoderKL.from_pretrained(alone)
    assert AutoencoderKL.from_pretrained(folder / "vae" / "diffusion_pytorch_model.safetensors").factor == 2
    with pytest.raises(ValueError, match="reads none"):
        save_single_file(tmp_path / "x.safetensors", {"unet": UNet(1, (32, 32), attention=(False, True))})
    assert not (tmp_path / "x.safetensors").exists()
    with pytest.raises(ValueError, match="head_dim, not heads=2"):
        UNet(1, (32, 32), attention=(False, True), heads=2).save_pretrained(tmp_path / "u")
    with pytest.raises(ValueError, match="diffusers or zoo, not as 'onnx'"):
        made["vae"].save_pretrained(tmp_path / "v", "onnx")
