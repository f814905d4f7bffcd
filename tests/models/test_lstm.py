"""LSTM and GRU: what they learn, how they start, and what diagnose says of them."""

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from zoo.data import CopyTask, DataModule, SequenceDataset, SyntheticSequences
from zoo.diagnosis import diagnose
from zoo.layers.recurrent import initialize_recurrent
from zoo.models import GRU, LSTM, GRUClassifier, LSTMClassifier, LSTMRegressor, LSTMTagger
from zoo.tasks import Classifier
from zoo.tasks.base import inputs_of

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


def test_initialisation_gate_by_gate():
    lstm = nn.LSTM(3, 8, 2, bidirectional=True)
    initialize_recurrent(lstm)
    for name, p in lstm.named_parameters():
        gates = p.detach().split(8)
        assert len(gates) == 4
        if "weight_hh" in name:
            assert all(torch.allclose(gate @ gate.T, torch.eye(8), atol=1e-5) for gate in gates)
        elif "bias_ih" in name:
            assert [float(gate.mean()) for gate in gates] == [0, 1, 0, 0]
        elif "bias_hh" in name:
            assert not p.any()
    gru = nn.GRU(3, 8)
    initialize_recurrent(gru)
    assert not gru.bias_ih_l0.any()
    assert len(gru.weight_hh_l0.split(8)) == 3


@pytest.mark.parametrize("cls", [LSTM, GRU])
def test_initialisation_is_an_option(cls):
    assert cls(2, 8, input_dim=3, init_recurrent=True).rnn.bias_hh_l0.abs().max() == 0
    assert cls(2, 8, input_dim=3).rnn.bias_hh_l0.abs().max() > 0


@pytest.mark.parametrize("cls", [LSTM, GRU])
def test_dropout_between_layers_needs_two(cls, recwarn):
    assert cls(2, 8, dropout=0.3, input_dim=3).rnn.dropout == 0
    assert cls(2, 8, depth=2, dropout=0.3, input_dim=3).rnn.dropout == 0.3
    assert not recwarn.list


def test_the_head_of_the_notes():
    net = LSTM(2, 8, bidirectional=True, hidden=8, dropout=0.3, input_dim=3)
    assert [type(m).__name__ for m in net.head] == ["Linear", "ReLU", "Dropout", "Linear"]
    assert net.head[0].in_features == 16


def test_every_sub_network_is_called_as_a_module():
    """Hooks fire, also where each direction runs by itself."""
    net, called = LSTM(2, 4, depth=2, bidirectional=True, pooling="attention", input_dim=3), []
    for name, module in net.named_modules():
        module.register_forward_hook(lambda *_, name=name: called.append(name))
    net(torch.randn(2, 5, 3), torch.tensor([5, 2]))
    assert set(called) >= {"", "input", "rnn", "pool", "pool.score.0", "head.1"}


def fit(module: L.LightningModule, data: L.LightningDataModule, folder, epochs: int) -> L.Trainer:
    trainer = L.Trainer(max_epochs=epochs, accelerator="cpu", gradient_clip_val=1.0, default_root_dir=folder, **QUIET)
    trainer.fit(module, data)
    return trainer


@pytest.mark.parametrize("cls", [LSTMClassifier, GRUClassifier])
def test_learns_an_order_in_time_from_sequences_of_different_lengths(cls, tmp_path):
    L.seed_everything(0)
    data = SyntheticSequences(samples=600, difficulty="easy", min_steps=15, steps=25)
    module = cls(dim=32, bidirectional=True, lr=1e-2, input_dim=16, num_classes=2)
    trainer = fit(module, data, tmp_path, 12)
    assert trainer.test(module, data, verbose=False)[0]["test/accuracy"] > 0.9


def test_a_tagger_counts_the_steps_that_are_asked_for(tmp_path):
    L.seed_everything(0)
    data = CopyTask(samples=200, symbols=2, kinds=3, pause=2, batch_size=50)
    module = LSTMTagger(dim=32, embed_dim=8, lr=2e-2, vocab_size=5, num_classes=3)
    batch = next(iter(data.train_dataloader()))
    assert module.num_items(batch) == 100, "two of seven steps in each of 50 samples"
    x, y = batch
    logits = module(x)
    assert logits.shape == (50, 7, 3)
    expected = F.cross_entropy(logits[:, 5:].flatten(0, 1), y[:, 5:].flatten())
    assert torch.allclose(module.step(batch, "train"), expected)
    assert module.step((x, torch.full_like(y, -100)), "train") == 0
    with pytest.raises(ValueError, match="one class per step"):
        module.step((x, y[:, 0]), "train")
    trainer = fit(module, data, tmp_path, 25)
    assert trainer.test(module, data, verbose=False)[0]["test/accuracy"] > 0.95


def test_predictions_of_a_tagger_end_with_the_sequence():
    module = LSTMTagger(dim=8, embed_dim=4, vocab_size=9, num_classes=3, class_names=["a", "b", "c"])
    x, lengths = torch.randint(0, 9, (2, 6)), torch.tensor([6, 2])
    rows = module.eval().predict_step(((x, lengths),), 0)
    assert [len(r) for r in rows["class"]] == [6, 2]
    assert rows["class"][1] == module(x, lengths)[1, :2].argmax(1).tolist()
    assert rows["name"][1] == [["a", "b", "c"][i] for i in rows["class"][1]]
    assert [len(r) for r in module.predict_step((x,), 0)["class"]] == [6, 6]


def test_a_batch_with_lengths_goes_through_step_count_and_predict():
    x, lengths, y = torch.randn(4, 6, 3), torch.tensor([6, 1, 3, 2]), torch.tensor([0, 1, 1, 0])
    module = LSTMClassifier(dim=8, input_dim=3, num_classes=2).eval()
    assert inputs_of(((x, lengths), y)) == (x, lengths)
    assert module.num_items(((x, lengths), y)) == 4
    assert torch.allclose(module.step(((x, lengths), y), "val"), F.cross_entropy(module(x, lengths), y))
    assert module.predict_step(((x, lengths),), 0)["class"] == module(x, lengths).argmax(1).tolist()
    regressor = LSTMRegressor(dim=8, input_dim=3, output_dim=1, target_mean=5.0, target_std=2.0).eval()
    expected = F.mse_loss(regressor.net(x, lengths)[:, 0], (y - 5.0) / 2)
    assert torch.allclose(regressor.step(((x, lengths), y.float()), "val"), expected)
    assert regressor.predict_step(((x, lengths), y), 0)["prediction"] == regressor(x, lengths)[:, 0].tolist()


class IgnoresLengths(nn.Module):
    """As the notes do, with what stands in the last column."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(4, 16, batch_first=True), nn.Linear(16, 2)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class Ragged(DataModule):
    def splits(self):
        generator = torch.Generator().manual_seed(0)
        lengths = torch.randint(3, 9, (64,), generator=generator)
        values, y = torch.randn(int(lengths.sum()), 4, generator=generator), torch.arange(64) % 2
        return {name: SequenceDataset(values + i, lengths, y) for i, name in enumerate(("train", "val", "test"))}


def test_diagnose_understands_lengths(tmp_path):
    good = diagnose(
        LSTMClassifier(dim=16, input_dim=4, num_classes=2, lr=1e-2), Ragged(batch_size=16), overfit_steps=60
    )
    assert {f.name: f.status for f in good.findings}["padding"] == "ok"
    assert good.ok
    bad = diagnose(Classifier(IgnoresLengths(), num_classes=2, lr=1e-2), Ragged(batch_size=16), overfit_steps=60)
    found = next(f for f in bad.findings if f.name == "padding")
    assert found.status == "error"
    assert "the content of the padding changes the outputs" in found.message
