"""Tests of ``EmbeddingPlot``: the PCA projection against its definition, and the plot of a validation or test."""

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader

from zoo.callbacks.plots.embedding_plot import EmbeddingPlot, plot_embeddings, project_to_2d
from zoo.data.base import BatchTensorDataset


def test_projection_keeps_the_first_two_principal_components():
    torch.manual_seed(0)
    x = torch.randn(300, 5) * torch.tensor([1.0, 7.0, 0.1, 3.0, 0.5]) + 20
    xy, ratios = project_to_2d(x)
    # Sorted by scale, the axes of x are nearly the principal components.
    assert torch.corrcoef(torch.stack([xy[:, 0], x[:, 1]]))[0, 1].abs() > 0.999
    assert torch.corrcoef(torch.stack([xy[:, 1], x[:, 3]]))[0, 1].abs() > 0.99
    assert ratios == pytest.approx((xy.var(0) / x.var(0).sum()).tolist(), rel=1e-4)
    rotation, _ = torch.linalg.qr(torch.randn(5, 5))
    again, _ = project_to_2d(x @ rotation)
    torch.testing.assert_close(torch.cdist(again, again), torch.cdist(xy, xy), rtol=1e-3, atol=1e-2)


def test_sign_does_not_flip_between_epochs():
    x = torch.randn(50, 4) * torch.tensor([4.0, 2.0, 1.0, 1.0])
    torch.testing.assert_close(project_to_2d(x)[0], project_to_2d(x.flip(0))[0].flip(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(20, 1), (1, 6), (2, 3), (20, 2)])
def test_few_dimensions_and_few_samples(shape):
    xy, ratios = project_to_2d(torch.randn(shape))
    assert xy.shape == (shape[0], 2)
    assert xy.isfinite().all()
    assert len(ratios) == 2


def test_every_class_has_a_colour_and_a_name():
    points, labels = torch.randn(60, 4), torch.arange(60) % 3
    points[7] = float("nan")
    axes = plot_embeddings(points, labels, ["cat", "dog", "eel"]).axes[0]
    assert [c.get_label() for c in axes.collections] == ["cat", "dog", "eel"]
    assert [len(c.get_offsets()) for c in axes.collections] == [20, 19, 20]
    assert len({tuple(c.get_facecolor()[0]) for c in axes.collections}) == 3
    many = plot_embeddings(points, torch.arange(60), None)
    assert len({tuple(c.get_facecolor()[0]) for c in many.axes[0].collections}) == 59
    assert not many.legends


class Plain(L.LightningModule):
    """A module from outside zoo whose validation step returns a loss instead of logits."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.body(x).relu())

    def validation_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    test_step = validation_step


def trainer(folder, *callbacks, **flags) -> L.Trainer:
    return L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=list(callbacks),
                     default_root_dir=folder, **flags)  # fmt: skip


@pytest.fixture
def loader() -> DataLoader:
    return DataLoader(BatchTensorDataset(torch.randn(100, 6), torch.arange(100) // 50), batch_size=8)


@pytest.mark.parametrize("layer", [None, "body"])
@pytest.mark.parametrize("stage", ["validate", "test"])
def test_plot_samples_all_batches(layer, stage, tmp_path, loader, monkeypatch):
    plotted = []
    monkeypatch.setattr(
        "zoo.callbacks.plots.embedding_plot.plot_embeddings",
        lambda *args: (plotted.append(args), plot_embeddings(*args))[1],
    )
    module = Plain()
    getattr(trainer(tmp_path, EmbeddingPlot(layer, num_samples=30)), stage)(module, loader, verbose=False)
    (points, labels, names) = plotted[0]
    x = torch.cat([batch[0][:2] for batch in loader])  # 13 batches, 2 of each
    expected = module.body(x) if layer else module(x)
    torch.testing.assert_close(points, expected)
    assert labels.tolist() == [0] * 14 + [1] * 12
    assert names is None
    assert (tmp_path / "embeddings.png").read_bytes().startswith(b"\x89PNG")
    assert not module._forward_hooks
    assert not module.body._forward_hooks


def test_figure_is_logged(tmp_path, loader):
    logger, logged = TensorBoardLogger(tmp_path), []
    logger.experiment.add_figure = lambda *args: logged.append(args)
    runner = trainer(tmp_path, EmbeddingPlot())
    runner.loggers = [logger]
    runner.validate(Plain(), loader, verbose=False)
    assert [(name, step) for name, _, step in logged] == [("embeddings", 0)]


def test_error_messages(tmp_path, loader):
    with pytest.raises(ValueError, match="num_samples=2: a plot needs at least 3"):
        EmbeddingPlot(num_samples=2)
    with pytest.raises(ValueError, match="there is no layer 'boddy'; there are body, head"):
        trainer(tmp_path, EmbeddingPlot("boddy")).validate(Plain(), loader)
    module = Plain()
    module.validation_step = lambda batch, batch_idx: module.body(batch[0]).mean()  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"batches of \(inputs, labels\) and a row of Plain for each label"):
        trainer(tmp_path, EmbeddingPlot()).validate(module, loader)
    assert not module._forward_hooks
