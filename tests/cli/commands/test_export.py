"""``zoo export``: a folder from a checkpoint is what transformers and diffusers load, and says and cuts the same."""

import os
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import fake_data
from zoo.cli import export_weights
from zoo.cli.commands import export
from zoo.models import (
    GPT,
    BERTClassifier,
    BERTMaskedLM,
    GPTLanguageModel,
    LatentDiffusion,
    LLaMALanguageModel,
    MLPClassifier,
    UNet,
    ViTClassifier,
)
from zoo.text import Tokenizer

LINES = [
    "the cat sat on the mat, naïve\n",
    "Über den Wolken: 1 + 1 = 2 ...\n",
    "ein\ttab  und \u4e2d\u6587 \U0001f600\n",
]
SMALL = {"dim": 32, "depth": 2, "heads": 4, "block_size": 64}


def checkpoint(module, path: Path, **more) -> Path:
    """As ``zoo fit`` writes it, the model untrained."""
    kept = {"_class_path": f"{type(module).__module__}.{type(module).__name__}", **module.hparams}
    content = {"state_dict": module.state_dict(), "hyper_parameters": kept, **more}
    module.on_save_checkpoint(content)
    torch.save(content, path)
    return path


def tokenizer(level: str, folder: Path) -> Tokenizer:
    if level == "sentencepiece":
        return Tokenizer.load(fake_data.llama_tokenizer(folder / "sp", LINES, 340) / "tokenizer.model")
    size = {"bpe": 300, "wordpiece": 120}.get(level)
    specials = {"eos": "<eos>"} if level == "characters with an end" else None
    return Tokenizer.train(level.split()[0], LINES, vocab_size=size, specials=specials)  # type: ignore[arg-type]


def language_model(level: str, folder: Path, cls=GPTLanguageModel, **kwargs):
    torch.manual_seed(0)
    found = tokenizer(level, folder)
    module = cls(**{**SMALL, **kwargs}, vocab_size=len(found))
    module.tokenizer = found
    for p in module.parameters():
        p.data *= 3  # so that what it says differs from token to token
    return module.eval()


def quietly(load, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load(*args, **kwargs)


def same_tokens(ours: Tokenizer, folder: Path) -> None:
    from transformers import AutoTokenizer

    theirs = quietly(AutoTokenizer.from_pretrained, folder)
    for text in LINES:
        ids = theirs.encode(text, add_special_tokens=False)
        assert ids == ours.encode(text)
        assert theirs.decode(ids) == ours.decode(ids)
    for role in ("bos", "eos", "pad", "unknown", "cls", "sep", "mask"):
        given = getattr(theirs, f"{'unk' if role == 'unknown' else role}_token_id")
        assert given == getattr(ours, f"{role}_id"), role
    assert len(theirs) == len(ours)
    again = Tokenizer.load(folder)
    if ours.level == "characters":
        for more in ({}, {"parse_special": True}, {"add_special_tokens": True}):
            with pytest.raises(ValueError, match="a character that it does not know: WordLevel error: Missing"):
                again.encode("\u4f60", **more)
    assert [again.encode(text) for text in LINES] == [ours.encode(text) for text in LINES]
    assert again.specials == ours.specials


# Language models ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "level"),
    [
        (GPTLanguageModel, "characters"),
        (GPTLanguageModel, "bytes"),
        (GPTLanguageModel, "bpe"),
        (LLaMALanguageModel, "bpe"),
        (LLaMALanguageModel, "characters with an end"),
        (LLaMALanguageModel, "sentencepiece"),
    ],
)
def test_transformers_loads_language_models_and_says_the_same(zoo, here, cls, level):
    from transformers import AutoModelForCausalLM

    module = language_model(level, here, cls)
    path = checkpoint(module, here / "a.ckpt")
    code, out, err = zoo("export", "--ckpt_path", path, "--out", "folder", "--max_shard_size", "30KB")
    assert (code, err) == (0, "")
    assert f"{', '.join(sorted(os.listdir('folder')))} in folder" in out
    assert len(list(Path("folder").glob("model-*.safetensors"))) > 2
    same_tokens(module.tokenizer, here / "folder")
    theirs = AutoModelForCausalLM.from_pretrained("folder").eval()
    ids = torch.tensor([module.tokenizer.encode(LINES[0])])
    options = {"attention_mask": torch.ones_like(ids), "pad_token_id": 0}  # for 0 is a character, too
    with torch.inference_mode():
        assert torch.allclose(theirs(ids).logits, module(ids), rtol=0, atol=1e-4)
        greedy = theirs.generate(ids, max_new_tokens=12, do_sample=False, **options)[0, ids.shape[1] :].tolist()
    eos = module.tokenizer.eos_id
    assert theirs.config.eos_token_id == eos
    (expected,) = module.generate(ids, max_new_tokens=12, temperature=0)
    assert [i for i in greedy if i != eos] == expected
    again = type(module.net).from_pretrained(here / "folder")
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), module.net.parameters(), strict=True))


def test_bert_with_classes_and_its_tokenizer(zoo, here):
    from transformers import AutoModelForSequenceClassification

    found = tokenizer("wordpiece", here)
    module = BERTClassifier(dim=32, depth=1, heads=2, num_classes=3, class_names=["no", "maybe", "yes"],
                            vocab_size=len(found), pad_id=found.pad_id, max_length=48).eval()  # fmt: skip
    module.tokenizer = found
    path = checkpoint(module, here / "a.ckpt")
    assert zoo("export", "--ckpt_path", path, "--out", "folder")[0] == 0
    same_tokens(found, here / "folder")
    theirs = AutoModelForSequenceClassification.from_pretrained("folder").eval()
    assert theirs.config.id2label == {0: "no", 1: "maybe", 2: "yes"}
    ids = torch.tensor([found.encode(LINES[0], add_special_tokens=True)])
    assert torch.allclose(theirs(ids).logits, module(ids), rtol=0, atol=1e-5)


def test_weights_and_dtype_are_chosen(zoo, here):
    module = language_model("bytes", here)
    averages = {k: v + 1 for k, v in module.state_dict().items()}
    path = checkpoint(module, here / "a.ckpt", ema_params=averages)
    for name, chosen, dtype in (("ema", averages, "bf16"), ("raw", module.state_dict(), "float16")):
        assert zoo("export", "--ckpt_path", path, "--out", name, "--weights", name, "--dtype", dtype)[0] == 0
        kind = getattr(torch, export.DTYPES[dtype])
        found = load_file(here / name / "model.safetensors")
        assert torch.equal(found["transformer.ln_f.weight"], chosen["net.ln_f.weight"].to(kind))
        assert {v.dtype for v in found.values()} == {kind}
        assert f'"dtype": "{str(kind).removeprefix("torch.")}"' in (here / name / "config.json").read_text()
    assert zoo("export", "--ckpt_path", path, "--out", "b.safetensors", "--dtype", "bf16")[0] == 0
    assert {v.dtype for v in load_file("b.safetensors").values()} == {torch.bfloat16}


def test_one_file_holds_any_options(zoo, here):
    """Of today, which GPT-2's files have no place for; the file says what they are."""
    module = language_model("bytes", here, positions="rotary", qk_norm=True, activation="swiglu", logit_softcap=20.0)
    path = checkpoint(module, here / "a.ckpt")
    assert zoo("export", "--ckpt_path", path, "--out", "a.safetensors")[0] == 0
    again, ids = GPT.from_pretrained("a.safetensors"), torch.arange(20)[None]
    assert torch.equal(again(ids), module(ids))


# Others ---------------------------------------------------------------------------------------------------------------


def test_vit(zoo, here):
    from transformers import AutoModelForImageClassification

    torch.manual_seed(0)
    module = ViTClassifier(size="Ti", patch_size=4, num_classes=5, in_channels=3, image_size=16).eval()
    assert zoo("export", "--ckpt_path", checkpoint(module, here / "a.ckpt"), "--out", "folder")[0] == 0
    theirs, x = AutoModelForImageClassification.from_pretrained("folder").eval(), torch.randn(2, 3, 16, 16)
    assert torch.allclose(theirs(x).logits, module(x), rtol=0, atol=1e-4)


def test_diffusion_of_pixels(zoo, here):
    from diffusers import DDIMScheduler, UNet2DModel

    torch.manual_seed(0)
    module = LatentDiffusion("pixels-8", in_channels=1, image_size=8, num_classes=3, zero_snr=True).eval()
    assert zoo("export", "--ckpt_path", checkpoint(module, here / "a.ckpt"), "--out", "folder")[0] == 0
    theirs, noise = UNet2DModel.from_pretrained("folder/unet").eval(), DDIMScheduler.from_pretrained("folder/scheduler")
    assert torch.allclose(noise.betas.double(), module.schedule.betas, rtol=0, atol=1e-5)
    x, t, labels = torch.randn(2, 1, 8, 8), torch.tensor([3, 700]), torch.tensor([0, 2])
    with torch.inference_mode():
        assert torch.allclose(theirs(x, t, class_labels=labels).sample, module(x, t, labels), rtol=0, atol=1e-4)


def test_weights_of_diffusion_are_taken_with_their_target_and_sizes(zoo, here):
    torch.manual_seed(0)
    options = {"preset": "pixels-8", "channels": [16, 32], "in_channels": 1, "image_size": 8, "num_classes": 3}
    module = LatentDiffusion(**options, head_dim=16).eval()
    checkpoint(module, here / "a.ckpt")
    assert zoo("export", "--ckpt_path", "a.ckpt", "--out", "a.safetensors")[0] == 0
    module.net.save_pretrained(here / "net.safetensors", "zoo")
    state = module.state_dict()
    for path in ("a.ckpt", "a.safetensors", "net.safetensors"):
        again = LatentDiffusion(**options, head_dim=16, weights=path)
        assert all(torch.equal(v, state[k]) for k, v in again.state_dict().items()), path
        found = UNet.from_pretrained(path).arguments
        assert {**found, "attention": tuple(found["attention"])} == module.net.arguments, path
        with pytest.raises(ValueError, match="head_dim=16 instead of 8"):
            LatentDiffusion(**options, head_dim=8, weights=path)
    for path in ("a.ckpt", "a.safetensors"):  # of a network alone nobody knows
        with pytest.raises(
            ValueError, match=r"was trained for v_prediction: use --model.prediction_type v_prediction, not epsilon"
        ):
            LatentDiffusion(**options, head_dim=16, weights=path, prediction_type="epsilon")


def test_diffusion_by_texts_is_a_pipeline(zoo, here):
    from diffusers import StableDiffusionPipeline

    from tests.prompt_files import save_tokenizer
    from tests.weights.formats.test_diffusers import networks
    from zoo.weights.formats.diffusers import save_pipeline

    made = networks("1", save_tokenizer(here / "tokenizer"))
    save_pipeline(here / "sd", made, here / "tokenizer", {"prediction_type": "v_prediction"})
    module = LatentDiffusion.from_pretrained(here / "sd")
    path = checkpoint(module, here / "a.ckpt")
    assert zoo("export", "--ckpt_path", path, "--out", "file.safetensors")[0] == 0
    assert UNet.from_pretrained("file.safetensors").arguments == module.net.arguments
    code, out, err = zoo("export", "--ckpt_path", path, "--out", "folder")
    assert (code, err) == (0, "")
    assert out == "model_index.json, scheduler, text_encoder, tokenizer, unet, vae in folder\n"
    pipe, again = quietly(StableDiffusionPipeline.from_pretrained, "folder"), LatentDiffusion.from_pretrained("folder")
    texts, x, t = ["a photo of a cat", "2 cats"], torch.randn(2, 4, 8, 8), torch.tensor([7, 900])
    ids = pipe.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    assert torch.equal(ids, module.prompts(texts))
    assert torch.equal(again.prompts(texts), module.prompts(texts))
    with torch.inference_mode():
        text = module.encode_text(texts)
        torch.testing.assert_close(pipe.text_encoder(ids).last_hidden_state, text)
        torch.testing.assert_close(pipe.unet(x, t, text).sample, module(x, t, text=text))
        torch.testing.assert_close(pipe.vae.decode(x / pipe.vae.config.scaling_factor).sample, module.decode(x))
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    torch.testing.assert_close(pipe.scheduler.betas.double(), module.schedule.betas, rtol=1e-4, atol=0)


# Mistakes -------------------------------------------------------------------------------------------------------------


def test_mistakes_are_one_line_and_write_nothing(zoo, here, monkeypatch):
    modern = language_model("bytes", here, positions="rotary", norm="rmsnorm")
    checkpoint(modern, here / "modern.ckpt")
    checkpoint(MLPClassifier(hidden=[4], input_dim=3, num_classes=2), here / "mlp.ckpt")
    words = language_model("words", here)
    checkpoint(words, here / "words.ckpt")
    masked = BERTMaskedLM(dim=32, depth=1, heads=2, vocab_size=20, pad_id=0)
    checkpoint(masked, here / "bert.ckpt")
    (here / "there").mkdir()
    (here / "there" / "notes.txt").write_text("mine")
    (here / "empty").mkdir()
    before = sorted(os.listdir(here))
    for words, command in {
        "no checkpoint no.ckpt": "no.ckpt --out x",
        "modern.ckpt: Hugging Face's GPT-2 has no positions=rotary, norm=rmsnorm; --out FILE.safetensors":
            "modern.ckpt --out x",
        "mlp.ckpt holds a MLPClassifier, which has no folder format (there is one for": "mlp.ckpt --out x",
        "ViT): --out FILE.safetensors": "mlp.ckpt --out x",
        "a tokenizer of words has no tokenizer.json": "words.ckpt --out x",
        "--out there exists already": "bert.ckpt --out there",
        "--out a.bin must end in .onnx, .pt2, .safetensors, or name a folder": "bert.ckpt --out a.bin",
        "no folder 'nowhere'": "bert.ckpt --out nowhere/x",
        "--max_shard_size is a number of bytes, or a number with KB, MB or GB: got '5XB'":
            "bert.ckpt --out x --max_shard_size 5XB",
        "invalid choice: 'int8'": "bert.ckpt --out x --dtype int8",
        "holds no EMA weights": "bert.ckpt --out x --weights ema",
    }.items():  # fmt: skip
        code, out, err = zoo("export", "--ckpt_path", *command.split())
        assert (code, out) == (2, ""), words
        assert len(err.splitlines()) == 1
        assert err.startswith("zoo: error: ")
        assert words in err, err
        assert sorted(os.listdir(here)) == before
    assert os.listdir(here / "there") == ["notes.txt"]
    monkeypatch.chdir(here / "empty")
    code, _, err = zoo("export", "--ckpt_path", "../bert.ckpt", "--out", ".")
    assert (code, err) == (2, "zoo: error: --out . is the working directory: name a new folder\n")


def test_a_failed_write_leaves_nothing(zoo, here, monkeypatch):
    path = checkpoint(language_model("bytes", here), here / "a.ckpt")

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(export_weights, "save_tokenizer", fail)
    with pytest.raises(OSError, match="disk full"):
        export_weights.export_folder(path, here / "folder")
    assert sorted(os.listdir(here)) == ["a.ckpt", "configs"]


@pytest.mark.parametrize(("text", "bytes_"), [("1000", 1000), ("5GB", 5 * 10**9), ("1.5 mb", 1_500_000), ("2KB", 2000)])
def test_sizes(text, bytes_):
    assert export.parse_size(text) == bytes_
