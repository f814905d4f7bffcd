"""Weights of the vision networks: found, fetched, checked, fitted to the task, written; and every mistake in a line."""

import hashlib
import http.server
import pickle
import threading
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import torchvision.models as theirs
from sklearn.datasets import load_sample_images

from zoo.errors import UserError
from zoo.models import VGG, EfficientNet, EfficientNetClassifier, ResNet, ResNetClassifier, VGGClassifier, ViT
from zoo.models import ViTClassifier as ViTModule
from zoo.weights import fetch, preprocessing_of, read, transform, write

SMALL = {"stem": "cifar", "width": 8}
PREPROCESSING = {"image_size": 32, "mean": [0.5], "std": [0.25], "interpolation": "bilinear", "crop_pct": 0.875}


class Server(http.server.BaseHTTPRequestHandler):
    """A server of one file that can break off, and that continues where it is asked to."""

    content: ClassVar[bytes] = b""
    breaks_after: ClassVar[list[int]] = []  # bytes of the answers to come, then whole ones
    ranges: ClassVar[bool] = True
    asked: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        wanted = self.headers["Range"]
        self.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.ranges else 0
        if start >= len(self.content):
            self.send_error(416)
            return
        body = self.content[start:]
        self.send_response(206 if wanted and self.ranges else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.breaks_after.pop(0)] if self.breaks_after else body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """torch.hub's cache, empty."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def served(hub, monkeypatch):
    """The URL of a file on this machine, named by its hash as torchvision's are."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    Server.content = bytes(range(256)) * 1000
    Server.breaks_after, Server.ranges, Server.asked = [], True, []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    digest = hashlib.sha256(Server.content).hexdigest()
    yield f"http://127.0.0.1:{server.server_port}/models/net-{digest[:8]}.pth"
    server.shutdown()
    server.server_close()


def test_fetch_once(served, hub, capfd):
    path = fetch(served)
    assert path.parent == hub
    assert path.read_bytes() == Server.content
    assert capfd.readouterr().err.startswith("zoo: fetching http://127.0.0.1")
    assert fetch(served) == path
    assert Server.asked == [None]
    assert [p.name for p in hub.iterdir()] == [path.name]


def test_fetch_goes_on_where_it_broke_off(served):
    Server.breaks_after = [1000, 70_000]
    assert fetch(served).read_bytes() == Server.content
    assert Server.asked == [None, "bytes=1000-", "bytes=71000-"]


def test_fetch_goes_on_in_a_later_run(served, hub):
    Server.breaks_after = [1000, 0, 0]
    with pytest.raises(ValueError, match=r"broke off after 1,000 of 256,000 bytes"):
        fetch(served)
    assert [p.suffix for p in hub.iterdir()] == [".partial"]
    assert fetch(served).read_bytes() == Server.content
    assert Server.asked[-1] == "bytes=1000-"


def test_fetch_from_a_server_that_cannot_continue(served, hub):
    hub.mkdir(parents=True)
    (hub / f"{served.rpartition('/')[2]}.partial").write_bytes(Server.content[:5000])
    Server.ranges = False
    assert fetch(served).read_bytes() == Server.content


def test_fetch_where_only_the_renaming_was_missing(served, hub):
    hub.mkdir(parents=True)
    (hub / f"{served.rpartition('/')[2]}.partial").write_bytes(Server.content)
    assert fetch(served).read_bytes() == Server.content


def test_fetch_keeps_nothing_that_is_not_the_published_file(served, hub):
    Server.content = b"something else"
    with pytest.raises(ValueError, match=r"SHA-256 does not begin with [0-9a-f]{8}; nothing was kept"):
        fetch(served)
    assert list(hub.iterdir()) == []
    (hub / served.rpartition("/")[2]).write_bytes(b"half of it")
    with pytest.raises(ValueError, match=r"is not the published file, whose SHA-256 begins with .*: delete it"):
        fetch(served)


def test_fetch_without_a_network_says_what_to_do(served, hub):
    name = served.rpartition("/")[2]
    url = f"http://127.0.0.1:1/{name}"
    with pytest.raises(ValueError) as caught:
        fetch(url)
    line = str(caught.value)
    assert "\n" not in line
    for part in (f"cannot fetch {name}", str(hub / name), name[4:12], f"curl -L -C - -o {hub / name} {url}"):
        assert part in line


# By name --------------------------------------------------------------------------------------------------------------


def publish(monkeypatch, entry, state: dict, folder: Path) -> None:
    """Let a name of torchvision stand for a file on this machine."""
    folder.mkdir(exist_ok=True)
    torch.save(state, folder / "net.pth")
    digest = hashlib.sha256((folder / "net.pth").read_bytes()).hexdigest()
    file = (folder / "net.pth").rename(folder / f"net-{digest[:8]}.pth")
    monkeypatch.setattr(entry.value, "url", file.as_uri())


@pytest.fixture
def resnet18(hub, tmp_path, monkeypatch):
    """ResNet18_Weights.IMAGENET1K_V1 with random weights in the true format, on this machine."""
    torch.manual_seed(3)
    model = theirs.resnet18()
    publish(monkeypatch, theirs.ResNet18_Weights.IMAGENET1K_V1, model.state_dict(), tmp_path / "published")
    return model.eval()


def test_by_name_the_network(resnet18, capfd):
    net = ResNet.from_pretrained("ResNet18_Weights.IMAGENET1K_V1")
    assert not net.training
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(net(x), resnet18(x))
    assert net.preprocessing == {
        "image_size": 224, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "interpolation": "bilinear",
        "crop_pct": 0.875,
    }  # fmt: skip
    assert "replaced" not in capfd.readouterr().err


def test_by_name_the_module_with_another_head_and_its_checkpoint(resnet18, tmp_path, capfd):
    module = ResNetClassifier(depth=18, head="mlp", in_channels=3, num_classes=7, weights="IMAGENET1K_V1")
    said = capfd.readouterr().err
    assert said.count("its head of 1000 classes is replaced by a fresh one of 7") == 1
    assert [type(layer).__name__ for layer in module.net.fc] == ["Linear", "ReLU", "Dropout", "Linear"]
    assert (module.net.fc[0].out_features, module.net.fc[2].p) == (256, 0.5)
    own, published = module.net.state_dict(), resnet18.state_dict()
    assert all(torch.equal(own[k], published[k]) for k in published if not k.startswith("fc."))
    assert module.preprocessing["image_size"] == 224

    hparams = dict(module.hparams)
    assert hparams["weights"] is None, "the checkpoint holds the weights itself"
    saved = {"state_dict": module.state_dict(), "hyper_parameters": hparams, "pytorch-lightning_version": "2.6.6"}
    torch.save(saved, tmp_path / "a.ckpt")
    for file in (*tmp_path.glob("published/*"), *tmp_path.glob("hub/checkpoints/*")):
        file.unlink()
    again = ResNetClassifier.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert again.preprocessing == module.preprocessing
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in module.state_dict().items())


def test_name_of_another_network_is_told_before_anything_is_fetched(hub):
    with pytest.raises(ValueError, match=r"ResNet50_Weights.IMAGENET1K_V2 is of another network: .*ResNet18_Weights"):
        ResNetClassifier(depth=18, in_channels=3, num_classes=10, weights="ResNet50_Weights.IMAGENET1K_V2")
    with pytest.raises(ValueError, match=r"there are no weights 'IMAGENET1K_V3': known are ResNet18_Weights"):
        ResNetClassifier(depth=18, in_channels=3, num_classes=10, weights="IMAGENET1K_V3")
    with pytest.raises(ValueError, match=r"known are ViT_B_16_Weights\.IMAGENET1K_V1"):
        ViT.from_pretrained("ViT_B_16_Weights.IMAGENET1K_V2")
    with pytest.raises(ValueError, match="known are none by name, or give a file"):
        ViTModule(size="Ti", image_size=32, patch_size=8, in_channels=3, num_classes=10, weights="DEFAULT")
    assert not hub.exists()


def test_names_of_all_published_weights_are_known_and_fit():
    for net in (ResNet, VGG, EfficientNet, ViT):
        for group in net.weights_format.enums:
            if "Lite" not in group:
                assert issubclass(getattr(theirs, group), theirs.WeightsEnum)
    assert EfficientNet.weights_format.enum({"variant": "lite0"}) == "EfficientNet_Lite0_Weights"
    assert VGG.weights_format.enum({"depth": 11, "batch_norm": True}) == "VGG11_BN_Weights"


def test_features_without_a_classifier(hub, tmp_path, monkeypatch, capfd):
    """torchvision's file of VGG's features alone has NaN in the perceptron."""
    net = VGG(3, 1000, 16, width=64, pool=1, hidden=8)
    state = {k: v if k.startswith("features") else torch.full_like(v, torch.nan) for k, v in net.state_dict().items()}
    publish(monkeypatch, theirs.VGG16_Weights.IMAGENET1K_FEATURES, state, tmp_path / "published")
    module = VGGClassifier(
        depth=16, batch_norm=False, pool=1, hidden=4, in_channels=3, num_classes=10, weights="IMAGENET1K_FEATURES"
    )
    assert "it has no head, so one of 10 classes starts fresh" in capfd.readouterr().err
    assert torch.equal(module.net.features[0].weight, net.features[0].weight)
    assert not any(p.isnan().any() for p in module.parameters())
    assert module.preprocessing["std"] == [1 / 255] * 3


# Preprocessing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["ResNet50_Weights.IMAGENET1K_V2", "EfficientNet_B3_Weights.IMAGENET1K_V1", "ViT_L_16_Weights.DEFAULT"]
)
def test_preprocessing_is_torchvisions_and_needs_no_download(name, hub):
    groups = [name.partition(".")[0]]
    photo = torch.from_numpy(load_sample_images().images[0].copy()).permute(2, 0, 1)
    entry = theirs.get_weight(name.replace("DEFAULT", "IMAGENET1K_V1"))
    assert torch.equal(transform(preprocessing_of(name, groups))(photo), entry.transforms()(photo))
    assert not hub.exists()


# Files ----------------------------------------------------------------------------------------------------------------

NETS = {
    "ResNet": lambda: ResNet(1, 3, 50, **SMALL, head="mlp"),
    "VGG": lambda: VGG(1, 3, 13, batch_norm=True, width=8, pool=2, hidden=16),
    "EfficientNet": lambda: EfficientNet(1, 3, "b1", width_mult=0.25, depth_mult=0.3),
    "ViT": lambda: ViT(1, 3, 24, 8, 32, 2, 4, pool="mean"),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_written_and_read_again(name, suffix, tmp_path):
    torch.manual_seed(0)
    net = NETS[name]().eval().to(memory_format=torch.channels_last)
    net.preprocessing = PREPROCESSING
    net.save_pretrained(tmp_path / f"net{suffix}")
    # a .pth has no header: what shapes do not tell is told here
    told = {"EfficientNet": {"variant": "b1", "width_mult": 0.25, "depth_mult": 0.3}, "ViT": {"heads": 4}}.get(name, {})
    again = type(net).from_pretrained(str(tmp_path / f"net{suffix}"), **({} if suffix == ".safetensors" else told))
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in net.state_dict().items())
    x = torch.randn(2, 1, 24, 24) if name == "ViT" else torch.randn(2, 1, 64, 64)
    assert torch.allclose(again(x), net(x), atol=1e-5)
    assert [p.name for p in tmp_path.iterdir()] == [f"net{suffix}"]
    if suffix == ".safetensors":
        assert again.preprocessing == PREPROCESSING
        assert again.arguments == net.arguments


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    net = NETS["ViT"]()
    net.save_pretrained(tmp_path / "net.pth")
    before = (tmp_path / "net.pth").read_bytes()

    def full(state, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"cannot write .*net\.pth: No space left"):
        net.save_pretrained(tmp_path / "net.pth")
    assert (tmp_path / "net.pth").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["net.pth"]


def test_formats_and_suffixes_that_do_not_exist(tmp_path):
    with pytest.raises(ValueError, match="ResNet is written as torchvision or timm, not as 'huggingface'"):
        NETS["ResNet"]().save_pretrained(tmp_path / "x", format="huggingface")
    with pytest.raises(ValueError, match=r"written to a .safetensors, .pth, .pt file, not to 'net.txt'"):
        NETS["ResNet"]().save_pretrained(tmp_path / "net.txt")
    with pytest.raises(ValueError, match="has a class token and a linear head"):
        NETS["ViT"]().save_pretrained(tmp_path / "x", format="huggingface")
    assert list(tmp_path.iterdir()) == []


class Evil:
    def __reduce__(self):
        return (print, ("run",))


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Evil()))
    torch.save({"net": Evil()}, tmp_path / "evil.pt")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    (tmp_path / "broken.safetensors").write_bytes(b"12345678")
    write(tmp_path / "whole.pth", {"a": torch.ones(1000)})
    (tmp_path / "half.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:900])
    (tmp_path / "folder").mkdir()
    for name, text in {
        "evil.pt": "holds Python objects, which could run code; only plain tensors are read",
        "list.pth": "holds a list, not the state of a network",
        "empty.pth": "holds no state of a network",
        "broken.safetensors": "is no whole file of weights",
        "half.pth": "is no whole file of weights",
        "absent.pth": "there is no file",
        "folder": "holds neither model.safetensors nor pytorch_model.bin",
    }.items():
        with pytest.raises(ValueError, match=text) as caught:
            read(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_wrappings_of_training_scripts(tmp_path):
    net = ResNet(1, 3, 18, **SMALL).eval()
    state = net.state_dict()
    averages = {f"net.{k}": v + 1 for k, v in net.named_parameters()}
    wrapped = {
        "reference.pth": {"model": {f"module.{k}": v for k, v in state.items()}, "epoch": 3},
        "compiled.pt": {"state_dict": {f"_orig_mod.{k}": v for k, v in state.items()}},
        "zoo.ckpt": {"state_dict": {**{f"net.{k}": v for k, v in state.items()}, "loss.weight": torch.ones(3)}},
        "old.pth": {k: v for k, v in state.items() if "num_batches_tracked" not in k},
    }
    for name, content in wrapped.items():
        torch.save(content, tmp_path / name)
        again = ResNet.from_pretrained(str(tmp_path / name))
        assert all(torch.equal(v, again.state_dict()[k]) for k, v in state.items())
    torch.save({**wrapped["zoo.ckpt"], "ema_params": averages}, tmp_path / "ema.ckpt")
    assert torch.equal(ResNet.from_pretrained(str(tmp_path / "ema.ckpt")).fc.bias, net.fc.bias + 1)


# Fitting the ends to the task -----------------------------------------------------------------------------------------


def test_a_file_of_another_architecture_is_told_in_one_line(tmp_path):
    ResNet(3, 10, 34, **SMALL).save_pretrained(tmp_path / "r34.pth")
    ViT(3, 10, 32, 8, 48, 2, 3).save_pretrained(tmp_path / "vit.pth")
    with pytest.raises(ValueError, match=r"r34.pth does not fit this ResNet: it has depth=34 instead of 18$"):
        ResNet(3, 10, 18, **SMALL).load_pretrained(str(tmp_path / "r34.pth"))
    ResNet(3, 10, 18, **SMALL).save_pretrained(tmp_path / "r18.pth")
    with pytest.raises(ValueError, match=r"r18.pth does not fit this ResNet: it has depth=18 instead of 34$"):
        ResNet(3, 10, 34, **SMALL).load_pretrained(str(tmp_path / "r18.pth"))
    with pytest.raises(ValueError, match=r"it has \d+ missing \(conv1.weight, .*; \d+ unexpected \(class_token, "):
        ResNet(3, 10, 18, **SMALL).load_pretrained(str(tmp_path / "vit.pth"))
    with pytest.raises(ValueError, match=r"it has patch_size=8 instead of 4"):
        ViT(3, 10, 32, 4, 48, 2, 3).load_pretrained(str(tmp_path / "vit.pth"))
    with pytest.raises(ValueError, match="in_channels=3 instead of 2"):
        ResNet(2, 10, 34, **SMALL).load_pretrained(str(tmp_path / "r34.pth"))


def test_grey_images_see_what_a_colour_network_sees_in_them(tmp_path, capfd):
    colour = ResNet(3, 10, 18, **SMALL).eval()
    colour.save_pretrained(tmp_path / "rgb.safetensors")
    grey = ResNet(1, 10, 18, **SMALL).load_pretrained(str(tmp_path / "rgb.safetensors")).eval()
    assert capfd.readouterr().err.count("its colour channels are summed, as the images have one") == 1
    x = torch.randn(2, 1, 16, 16)
    assert torch.allclose(grey(x), colour(x.expand(2, 3, 16, 16)), atol=1e-5)


def test_positions_follow_the_size_of_the_images(tmp_path):
    from zoo.models.vit import resample

    net = ViT(3, 10, 32, 8, 48, 2, 3)
    net.save_pretrained(tmp_path / "vit.safetensors")
    larger = ViT(3, 10, 48, 8, 48, 2, 3).load_pretrained(str(tmp_path / "vit.safetensors"))
    assert torch.equal(larger.encoder.pos_embedding, resample(net.encoder.pos_embedding, 6, 6))
    x = torch.randn(2, 3, 48, 48)
    assert torch.allclose(larger.eval()(x), net.eval()(x), atol=1e-6), "as the small one interpolates by itself"


def test_a_perceptron_of_another_size_is_replaced_as_a_whole(tmp_path, capfd):
    net = VGG(3, 10, 11, width=8, pool=2, hidden=16)
    net.save_pretrained(tmp_path / "vgg.pth")
    VGG(3, 5, 11, width=8, pool=2, hidden=16).load_pretrained(str(tmp_path / "vgg.pth"))
    fitted = VGG(3, 5, 11, width=8, pool=1, hidden=16).load_pretrained(str(tmp_path / "vgg.pth"))
    assert capfd.readouterr().err.count("its head of 10 classes is replaced by a fresh one of 5") == 2
    assert torch.equal(fitted.features[0].weight, net.features[0].weight)


# Through the command line ---------------------------------------------------------------------------------------------


def test_transfer_through_the_command_line(zoo, tmp_path):
    """Train, start another run from its checkpoint with another head, and test that one without the first."""
    tiny = ["--model.stem", "cifar", "--model.width", 8]
    short = ["--trainer.max_steps", 2, "--trainer.limit_val_batches", 1]
    first = tmp_path / "first"
    fit = ["fit", "--model", "ResNetClassifier", "--data", "Digits", *tiny, *short]
    code, _, err = zoo(*fit, "--run_dir", first)
    assert (code, err) == (0, "")
    weights = first / "checkpoints" / "last.ckpt"
    plan = ["--fine_tuning.plan", "[{until: 1 steps, train: head}, {train: [layer3, layer4, fc]}]"]
    rules = ["--model.param_groups", "[{match: layer4, lr_scale: 0.1}, {match: layer3, lr_scale: 0.05}]"]
    second = [*fit, "--model.head", "mlp", "--model.weights", weights, *plan, *rules, "--run_dir", tmp_path / "second"]
    code, _, err = zoo(*second)
    assert code == 0
    assert err == f"zoo: {weights}: its head of 10 classes is replaced by a fresh one of 10\n"
    before = torch.load(weights, weights_only=True)["state_dict"]
    after = torch.load(tmp_path / "second" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    moved = {k for k, v in before.items() if k in after and not torch.equal(v, after[k]) and k.startswith("net.")}
    assert {k.split(".")[1] for k in moved} == {"layer3", "layer4"}, "and no statistic of a frozen layer"
    weights.unlink()
    code, _, err = zoo("test", "--ckpt_path", tmp_path / "second" / "checkpoints" / "last.ckpt")
    assert (code, err) == (0, "")


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["ResNetClassifier", "--model.weights", "absent.pth"], "weights: there is no file absent.pth"),
        (
            ["ResNetClassifier", "--model.depth", "50", "--model.weights", "ResNet18_Weights.DEFAULT"],
            "ResNet18_Weights.IMAGENET1K_V1 is of another network: this one takes ResNet50_Weights.IMAGENET1K_V1, "
            "ResNet50_Weights.IMAGENET1K_V2, or a file",
        ),
        (["ResNetClassifier", "--model.depth", "20"], "model.depth: expected one of 18, 34, 50, 101, 152, got '20'"),
        (["ResNetClassifier", "--model.in_channels", "2"], "--model.in_channels is 2, but Digits has in_channels 1"),
        (["VGGClassifier"], "VGG downsamples images by 32, so it needs 32 pixels or more, got image_size=8"),
        (
            ["ViTClassifier", "--model.patch_size", "3"],
            "image_size 8 is not divisible by patch_size 3: take images of 6 or 9 pixels, or a patch_size of 4, 2",
        ),
        (
            ["ViTClassifier", "--model.patch_size", "2", "--model.heads", "5"],
            "dim=192 is not divisible by heads=5",
        ),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(zoo, args, line):
    code, _, err = zoo("fit", "--data", "Digits", "--model", *args)
    assert (code, err) == (2, f"zoo: error: {line}\n")
    assert not Path("runs").exists()


def test_images_of_other_channels_are_told_in_python_too():
    module = EfficientNetClassifier(width_mult=0.25, depth_mult=0.3, in_channels=3, num_classes=2)
    with pytest.raises(ValueError, match=r"EfficientNetClassifier takes images \(b, 3, h, w\), got \(2, 1, 32, 32\)"):
        module(torch.zeros(2, 1, 32, 32))
