"""Tests of ``MisclassifiedImages``: ranking by loss, location of the files, and inputs that are not images."""

from pathlib import Path

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from zoo.callbacks import MisclassifiedImages
from zoo.callbacks.plots.figures import save_figure
from zoo.callbacks.plots.image_grid import denormalize, plot_image_grid
from zoo.callbacks.plots.misclassified_images import (
    Misclassified,
    find_misclassified,
    plot_confusion_matrix,
    run_folder_of,
)
from zoo.data import Digits, Quadrants
from zoo.models import MLPClassifier, SmallCNNClassifier


def test_misclassified_images_are_ranked_by_loss():
    generator = torch.Generator().manual_seed(0)
    x, logits = torch.rand(40, 1, 4, 4, generator=generator), torch.randn(40, 5, generator=generator)
    y = torch.randint(0, 5, (40,), generator=generator)
    losses, predicted = F.cross_entropy(logits, y, reduction="none"), logits.argmax(1)
    wrong = [i for i in losses.argsort(descending=True).tolist() if predicted[i] != y[i]]
    result = find_misclassified(x, logits, y, 7)
    assert torch.equal(result.images, x[wrong[:7]])
    assert torch.equal(result.losses, losses[wrong[:7]])
    assert torch.equal(result.target, y[wrong[:7]])
    assert torch.equal(result.predicted, predicted[wrong[:7]])
    assert torch.allclose(result.confidence, logits.softmax(1)[wrong[:7]].amax(1))
    halves = (
        find_misclassified(x[:20], logits[:20], y[:20], 7)
        .merge(find_misclassified(x[20:], logits[20:], y[20:], 7))
        .worst(7)
    )
    assert torch.equal(halves.images, result.images), "the split into batches does not matter"
    assert len(find_misclassified(x, logits, predicted, 7).losses) == 0


def test_single_logit_is_the_logit_of_class_1():
    x, logit, y = torch.rand(4, 3, 2, 2), torch.tensor([[2.0], [-3.0], [1.0], [-1.0]]), torch.tensor([0, 1, 1, 0])
    result = find_misclassified(x, logit, y, 9)
    assert result.target.tolist() == [1, 0]
    assert result.predicted.tolist() == [0, 1]
    assert result.losses.tolist() == pytest.approx(F.softplus(torch.tensor([3.0, 2.0])).tolist())


def test_denormalize():
    x = torch.rand(3, 3, 4, 4)
    data = type("Data", (), {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]})
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (data.mean, data.std))
    assert torch.allclose(denormalize((x - mean) / std, data), x, atol=1e-6)
    stretched = denormalize(7 * x - 3)
    assert (float(stretched.amin()), float(stretched.amax())) == (0, 1)


def test_confusion_matrix_shows_fractions_and_counts():
    figure = plot_confusion_matrix(torch.tensor([[8, 2], [0, 0]]), ["cat", "dog"])
    axes = figure.axes[0]
    assert axes.get_title() == "accuracy 80.0% on 10 samples"
    assert axes.images[0].get_array().tolist() == [[pytest.approx(0.8), pytest.approx(0.2)], [0, 0]]
    assert [t.get_text() for t in axes.texts] == ["8", "2", "0", "0"]
    many = plot_confusion_matrix(torch.eye(130, dtype=torch.long), [f"class {i}" for i in range(130)])
    assert len(many.axes[0].get_xticks()) == 44
    assert not many.axes[0].texts


def test_image_grid_shows_every_image(tmp_path):
    figure = plot_image_grid(torch.rand(11, 3, 6, 6), [f"number {i}\nof all" for i in range(11)])
    drawn = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in drawn] == [f"number {i}\nof all" for i in range(11)]
    save_figure(figure, tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").size[0] > 500
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"], "no temporary file is left"


def test_run_folder_of_a_checkpoint():
    assert run_folder_of("runs/x/1/checkpoints/best.ckpt") == Path("runs/x/1")
    assert run_folder_of("some/where.ckpt") == Path("some")
    assert run_folder_of(None) is None
    assert run_folder_of("https://example.org/a.ckpt") is None


def run_test(module, data, folder, callback, **kwargs) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, callbacks=[callback],
        enable_model_summary=False, default_root_dir=folder, **kwargs,
    )  # fmt: skip
    trainer.test(module, data, verbose=False)
    return trainer


def test_plots_agree_with_a_direct_evaluation(tmp_path, monkeypatch):
    kept = {}
    monkeypatch.setattr(
        "zoo.callbacks.plots.misclassified_images.plot_confusion_matrix", lambda m, names: kept.update(m=m, names=names)
    )
    monkeypatch.setattr(
        "zoo.callbacks.plots.misclassified_images.plot_misclassified", lambda f, *_: kept.update(result=f)
    )
    monkeypatch.setattr("zoo.callbacks.plots.misclassified_images.save_figure", lambda figure, path: None)
    torch.manual_seed(0)
    data, module = Digits(eval_batch_size=64), SmallCNNClassifier([[8]], in_channels=1, num_classes=10)
    run_test(module, data, tmp_path, MisclassifiedImages(num_images=25))
    x, y = data.datasets["test"].tensors
    with torch.no_grad():
        logits = module.eval()(x)
    expected = torch.zeros(10, 10, dtype=torch.long).index_put_((y, logits.argmax(1)), torch.tensor(1), accumulate=True)
    assert torch.equal(kept["m"], expected)
    whole = find_misclassified(x, logits, y, 25)
    assert isinstance(kept["result"], Misclassified)
    assert torch.allclose(kept["result"].losses, whole.losses, atol=1e-5)
    assert module._forward_hooks == {}


@pytest.mark.parametrize(
    ("module", "data"),
    [
        (lambda: MLPClassifier(input_dim=2, num_classes=4), Quadrants),
        (lambda: MLPClassifier(input_dim=64, num_classes=10), lambda: Digits(flat=True)),
    ],
)
def test_other_inputs_than_images_are_not_plotted(tmp_path, module, data):
    callback = MisclassifiedImages()
    run_test(module(), data(), tmp_path, callback)
    assert callback.written == []
    assert not list(tmp_path.glob("*.png"))


def test_unwritable_folder_does_not_lose_metrics(tmp_path):
    (tmp_path / "file").write_text("")
    callback = MisclassifiedImages(dirpath=str(tmp_path / "file" / "x"))
    with pytest.warns(UserWarning, match="no plots in .*: Not a directory"):
        trainer = run_test(SmallCNNClassifier([[4]], in_channels=1, num_classes=10), Digits(), tmp_path, callback)
    assert "test/accuracy" in trainer.callback_metrics
    with pytest.raises(ValueError, match="num_images=0: a plot needs at least 1"):
        MisclassifiedImages(num_images=0)


def test_command_line_writes_to_the_run_folder(zoo):
    code, *_ = zoo("fit", "-c", "configs/small_cnn_digits.yaml", "--model.stages", "[[8]]", "--trainer.max_epochs", 1)
    assert code == 0
    last = "runs/small_cnn_digits/1/checkpoints/last.ckpt"
    code, out, err = zoo("test", "--ckpt_path", last, "--plots", "false")
    assert (code, err) == (0, "")
    assert not list(Path("runs").rglob("*.png"))
    code, out, err = zoo("test", "--ckpt_path", last)
    assert (code, err) == (0, "")
    assert out.endswith(
        "plots: runs/small_cnn_digits/1/confusion_matrix.png, runs/small_cnn_digits/1/misclassified.png\n"
    )
    for name in ("confusion_matrix", "misclassified"):
        assert Image.open(f"runs/small_cnn_digits/1/{name}.png").getextrema()[0][0] < 255
