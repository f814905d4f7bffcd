"""Each key of a ``config.json`` that changes what is computed is followed or refused, before tensors are read."""

import json
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import save_file

from zoo.errors import UserError
from zoo.models import (
    BERT,
    GPT,
    AutoencoderKL,
    BERTForSequenceClassification,
    CLIPTextEncoder,
    LLaMA,
    UNet,
)
from zoo.weights.formats import autoencoder_kl, unet

BERT_SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
GPT_SIZES = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 8, "vocab_size": 20}
LLAMA_SIZES = {**BERT_SIZES, "vocab_size": 20, "max_position_embeddings": 8}
CLIP_SIZES = {**BERT_SIZES, "vocab_size": 20, "max_position_embeddings": 8}
UNET = {
    "in_channels": 4, "out_channels": 4, "block_out_channels": [32, 32], "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "cross_attention_dim": 8, "attention_head_dim": 2,
}  # fmt: skip
VAE = {
    "in_channels": 3, "out_channels": 3, "block_out_channels": [32, 32], "layers_per_block": 1, "latent_channels": 4,
}  # fmt: skip


def folder_of(path: Path, config: dict, stem: str = "model") -> Path:
    """Write a folder whose tensors nobody has to read."""
    path.mkdir(exist_ok=True)
    save_file({"nothing": torch.zeros(1)}, path / f"{stem}.safetensors")
    (path / "config.json").write_text(json.dumps(config))
    return path


def change(folder: Path, **values: object) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))
    return folder


def refused(cls: type, folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        cls.from_pretrained(folder)
    assert str(caught.value).startswith(str(folder))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Language models ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {"position_embedding_type": "relative_key"},
        {"is_decoder": True},
        {"add_cross_attention": True},
        {"feed_forward_type": "geglu"},
        {"hidden_act": "silu"},
        {"model_type": "roberta"},
    ],
    ids=lambda values: next(iter(values)),
)
def test_bert(values, tmp_path):
    hf.BertModel(hf.BertConfig(**BERT_SIZES, vocab_size=20)).save_pretrained(tmp_path)
    ((name, value),) = values.items()
    assert str(value) in refused(BERT, change(tmp_path, **values)), name


def test_bert_with_only_the_sizes_that_differ_from_the_defaults(tmp_path):
    """As old files leave out what transformers takes for granted."""
    model = hf.DistilBertModel(hf.DistilBertConfig(vocab_size=20, dim=24, n_layers=6, hidden_dim=32)).eval()
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "distilbert", "dim": 24, "hidden_dim": 32}))
    net = BERT.from_pretrained(tmp_path)
    assert (net.arguments["depth"], net.arguments["heads"]) == (6, 12)
    ids = torch.randint(20, (2, 5))
    with torch.no_grad():
        assert torch.allclose(net(ids), model(ids).last_hidden_state, atol=1e-5)


def test_bert_compares_the_poolers_activation(tmp_path):
    sizes = {"dim": 16, "depth": 1, "heads": 2}
    BERTForSequenceClassification(20, 2, pooler="relu", **sizes).save_pretrained(tmp_path / "a.safetensors", "zoo")
    net = BERTForSequenceClassification(20, 2, **sizes)
    with pytest.raises(UserError, match="it has pooler=relu instead of tanh"):
        net.load_pretrained(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "values",
    [
        {"activation_function": "relu"},
        {"scale_attn_by_inverse_layer_idx": True},
        {"scale_attn_weights": False},
        {"add_cross_attention": True},
        {"layer_norm_epsilon": 1e-6},
        {"n_inner": 40},
    ],
    ids=lambda values: next(iter(values)),
)
def test_gpt(values, tmp_path):
    hf.GPT2LMHeadModel(hf.GPT2Config(**GPT_SIZES)).save_pretrained(tmp_path)
    ((name, value),) = values.items()
    assert f"{name}={value}" in refused(GPT, change(tmp_path, **values))


def test_gpt_takes_another_spelling_of_the_same_function(tmp_path):
    model = hf.GPT2LMHeadModel(hf.GPT2Config(**GPT_SIZES, activation_function="gelu_pytorch_tanh")).eval()
    model.save_pretrained(tmp_path)
    ids = torch.randint(20, (2, 5))
    with torch.no_grad():
        assert torch.allclose(GPT.from_pretrained(tmp_path)(ids), model(ids).logits, atol=1e-5)


@pytest.mark.parametrize(
    "values",
    [
        {"hidden_act": "gelu"},
        {"attention_bias": True},
        {"mlp_bias": True},
        {"partial_rotary_factor": 0.5},
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}},
        {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}},
        {"model_type": "mistral"},
    ],
    ids=lambda values: "-".join(map(str, next(iter(values.items()))))[:40],
)
def test_llama(values, tmp_path):
    hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA_SIZES)).save_pretrained(tmp_path)
    ((name, value),) = values.items()
    line = refused(LLaMA, change(tmp_path, **values))
    if isinstance(value, dict):
        name, value = list(value.items())[-1] if "partial_rotary_factor" in value else ("rope_type", "yarn")
    assert str(value) in line, name


@pytest.mark.parametrize(
    "values",
    [{"layer_norm_eps": 1e-6}, {"hidden_act": "gelu_new"}, {"model_type": "clip_vision_model"}],
    ids=lambda values: next(iter(values)),
)
def test_clip_text(values, tmp_path):
    hf.CLIPTextModel(hf.CLIPTextConfig(**CLIP_SIZES)).save_pretrained(tmp_path)
    ((_, value),) = values.items()
    assert str(value) in refused(CLIPTextEncoder, change(tmp_path, **values))


# Diffusion ------------------------------------------------------------------------------------------------------------


def another(allowed: object) -> object:
    """Return a value that is not allowed."""
    if isinstance(allowed, bool):
        return not allowed
    if isinstance(allowed, (int, float)):
        return allowed + 2
    return "other"


@pytest.mark.parametrize("key", unet.FIXED)
def test_unet(key, tmp_path):
    allowed = unet.FIXED[key]
    value = another(allowed)
    folder = folder_of(tmp_path, {**UNET, key: value}, "diffusion_pytorch_model")
    assert f"{key}={value}" in refused(UNet, folder)


@pytest.mark.parametrize(
    "values",
    [
        {"mid_block_type": None},
        {"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"},
        {"cross_attention_dim": [8, 8]},
        {"layers_per_block": [1, 2]},
        {"norm_num_groups": "none"},
    ],
    ids=lambda values: "-".join(map(str, next(iter(values.items())))),
)
def test_unet_with_other_parts(values, tmp_path):
    ((key, value),) = values.items()
    assert f"{key}={value}" in refused(UNet, folder_of(tmp_path, {**UNET, **values}, "diffusion_pytorch_model"))


@pytest.mark.parametrize("key", autoencoder_kl.FIXED)
def test_autoencoder(key, tmp_path):
    allowed = autoencoder_kl.FIXED[key]
    value = another(allowed)
    folder = folder_of(tmp_path, {**VAE, key: value}, "diffusion_pytorch_model")
    assert f"{key}={value}" in refused(AutoencoderKL, folder)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"out_channels": 1}, "out_channels=1"),
        ({"down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]}, "a stage of AttnDownEncoderBlock2D"),
        ({"up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"]}, "a stage of AttnUpDecoderBlock2D"),
    ],
)
def test_autoencoder_with_other_parts(values, reason, tmp_path):
    assert reason in refused(AutoencoderKL, folder_of(tmp_path, {**VAE, **values}, "diffusion_pytorch_model"))


def test_every_argument_of_diffusers_networks_is_known():
    """Read, fixed, or without an effect on the output of inference."""
    import inspect

    import diffusers

    read = {
        "self", "in_channels", "out_channels", "down_block_types", "up_block_types", "block_out_channels",
        "layers_per_block", "dropout", "norm_num_groups", "cross_attention_dim", "attention_head_dim",
        "num_attention_heads", "use_linear_projection", "num_class_embeds", "mid_block_type", "latent_channels",
        "scaling_factor",
    }  # fmt: skip
    without_effect = {
        "sample_size", "upcast_attention", "force_upcast", "num_train_timesteps", "addition_time_embed_dim",
        "addition_embed_type_num_heads", "projection_class_embeddings_input_dim",
    }  # fmt: skip
    for cls, fixed in (
        (diffusers.UNet2DConditionModel, unet.FIXED),
        (diffusers.UNet2DModel, unet.FIXED),
        (diffusers.AutoencoderKL, autoencoder_kl.FIXED),
    ):
        arguments = inspect.signature(cls.__init__).parameters
        assert arguments.keys() - read - without_effect - fixed.keys() == set(), cls.__name__
        for name in arguments.keys() & fixed.keys():
            allowed = fixed[name] if isinstance(fixed[name], tuple) else (fixed[name],)
            assert arguments[name].default in allowed, name


# Wrong files ----------------------------------------------------------------------------------------------------------

TEXT_NETWORKS = {
    "BERT": lambda: BERT(20, 16, 1, 2),
    "GPT": lambda: GPT(20, 8, 16, 1, 2),
    "LLaMA": lambda: LLaMA(20, 8, 16, 1, 2, hidden_dim=32),
    "CLIPTextEncoder": lambda: CLIPTextEncoder(20, 8, 16, 1, 2, 32),
    "AutoencoderKL": lambda: AutoencoderKL(1, (32, 32)),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    written = {}
    for name, build in TEXT_NETWORKS.items():
        build().save_pretrained(folder / f"{name}.safetensors", "zoo")
        build().save_pretrained(folder / name)
        written[f"{name} file"] = folder / f"{name}.safetensors"
        written[f"{name} folder"] = folder / name
    torch.save({"a.weight": torch.zeros(2, 2, dtype=torch.long)}, folder / "integers.pth")
    written["integers"] = folder / "integers.pth"
    return written


@pytest.mark.parametrize("name", TEXT_NETWORKS)
def test_files_of_other_networks_are_one_line(name, files):
    net = TEXT_NETWORKS[name]()
    for kind, path in files.items():
        if kind.startswith(f"{name} "):
            continue
        for read in (type(net).from_pretrained, net.load_pretrained):
            with pytest.raises(UserError) as caught:
                read(path)
            assert "\n" not in str(caught.value), kind


def test_a_config_that_is_no_object_is_one_line(tmp_path):
    hf.GPT2LMHeadModel(hf.GPT2Config(**GPT_SIZES)).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("[1, 2]")
    with pytest.raises(UserError, match=r"config\.json holds a JSON list, not an object"):
        GPT.from_pretrained(tmp_path)
