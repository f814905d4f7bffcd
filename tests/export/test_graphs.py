"""Every classifier, regressor, tagger, forecaster and embedder as a graph that predicts what the module does."""

import inspect
import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

import zoo.models
from tests.export import checkpoints
from zoo.errors import UserError
from zoo.export import images, tables
from zoo.export.export import build_export, export_graph
from zoo.export.files import TOLERANCE, compare
from zoo.export.graph import Graph
from zoo.export.heads import HEADS, REFUSED, EmbeddingHead, head_of
from zoo.export.onnx_digest import verify_onnx
from zoo.export.recurrent import ScannedRNN, replace_recurrent
from zoo.prediction import load_with_data
from zoo.tasks import MetricLearner

# Networks that take many seconds to trace; and one of each task of those whose translation to ONNX is quick.
SLOW = {"Airbench", "ConvNeXt", "EfficientNet", "GRU forecaster", "LSTM", "ResNet", "VGG"}
QUICK_ONNX = {"SmallCNN", "MLP of a table", "MLP regression", "VanillaRNN tagger", "LSTM of words"}


def cases(quick) -> list:
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in checkpoints.CASES]


@pytest.mark.parametrize("name", cases(checkpoints.CASES.keys() - SLOW))
def test_a_pt2_file_predicts_what_the_module_does(name, here):
    path = checkpoints.checkpoint(name, here)
    report = export_graph(path, Path("a.pt2"), "torch_export")
    assert report.difference <= 1e-5
    extra = {"metadata.json": ""}
    loaded = torch.export.load("a.pt2", extra_files=extra).module()
    metadata = json.loads(extra["metadata.json"])
    assert list(metadata["inputs"]) == list(report.inputs)
    module, data = load_with_data(path)
    if hasattr(module, "class_names"):
        assert metadata["class_names"] == module.class_names
    export = build_export(head_of(module), data, None)
    found = loaded(*export.arguments())
    assert found.keys() == metadata["outputs"].keys() == export.expected.keys()


@pytest.mark.parametrize("name", cases(QUICK_ONNX))
def test_an_onnx_file_predicts_what_the_module_does(name, here):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = checkpoints.checkpoint(name, here)
    report = export_graph(path, Path("a.onnx"), "onnx")
    assert report.difference <= 1e-5
    assert verify_onnx(Path("a.onnx"))
    session = onnxruntime.InferenceSession("a.onnx")
    metadata = session.get_modelmeta().custom_metadata_map
    assert {item.name for item in session.get_inputs()} <= json.loads(metadata["inputs"]).keys()
    assert {item.name for item in session.get_outputs()} == json.loads(metadata["outputs"]).keys()
    assert json.loads(metadata["versions"])["torch"] == torch.__version__


def test_every_module_with_a_prediction_has_a_case():
    covered = {cls for cls, *_ in checkpoints.CASES.values()}
    for name in zoo.models.__all__:
        cls = getattr(zoo.models, name)
        if inspect.isclass(cls) and issubclass(cls, tuple(HEADS)):
            assert cls in covered, f"{name} has no case in {checkpoints.__file__}"


@pytest.mark.parametrize("name", ["GRU", "VanillaRNN"])
def test_a_sequence_may_have_another_length_and_number(name, here):
    path = checkpoints.checkpoint(name, here)
    assert export_graph(path, Path("a.pt2"), "torch_export").any_length
    loaded = torch.export.load("a.pt2").module()
    module, _ = load_with_data(path)
    x = torch.randn(3, 9, 16)
    lengths = torch.tensor([9, 2, 5])
    inputs = (x,) if name == "GRU" else (x, lengths)  # the sequences of that case have no lengths
    with torch.no_grad():
        expected = module(*inputs).softmax(1)
        assert torch.allclose(loaded(*inputs)["probabilities"], expected, atol=1e-6)


def test_embeddings_are_exported(here):
    from zoo.data import Digits

    data = Digits(flat=True)
    module = MetricLearner(nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 4))).eval()
    head = head_of(module)
    assert isinstance(head, EmbeddingHead)
    export = build_export(head, data, None)
    found = export.graph(*export.arguments())["embedding"]
    assert found.shape == (8, 4)
    assert torch.allclose(found, export.expected["embedding"], atol=1e-6)


def test_an_mlp_takes_one_length_and_the_report_says_so(here):
    path = checkpoints.checkpoint("MLP of sequences", here)
    assert export_graph(path, Path("a.pt2"), "torch_export").any_length is False


# Faults ---------------------------------------------------------------------------------------------------------------


def test_a_planted_wrong_normalisation_is_caught_and_nothing_is_left(here, monkeypatch):
    path = checkpoints.checkpoint("SmallCNN", here)
    right = images.normalizations
    monkeypatch.setattr(
        images, "normalizations", lambda data: [([m + 0.05 for m in mean], std) for mean, std in right(data)]
    )
    before = set(os.listdir())
    with pytest.raises(UserError, match=r"predicts otherwise than the module: largest .* nothing is written"):
        export_graph(path, Path("a.pt2"), "torch_export")
    assert set(os.listdir()) == before


@pytest.mark.parametrize("name", ["MLP of a table", "MLP regression"])
def test_a_planted_wrong_mean_of_a_column_is_caught(name, here, monkeypatch):
    path = checkpoints.checkpoint(name, here)
    right = tables._encode_numbers
    monkeypatch.setattr(tables, "_encode_numbers", lambda encoding, values: right(encoding, values + 5))
    with pytest.raises(UserError, match="predicts otherwise"):
        export_graph(path, Path("a.pt2"), "torch_export")


def test_what_is_not_finite_only_in_the_file_differs(here):
    module, data = load_with_data(checkpoints.checkpoint("MLP regression", here))
    export = build_export(head_of(module), data, None)

    def broken(inputs):
        return {"prediction": torch.full((len(inputs["number"]),), torch.nan)}

    with pytest.raises(UserError, match=r"largest difference inf .*allowed 1e-04"):
        compare(export, broken, any_length=False)
    assert TOLERANCE == 1e-4


def test_a_module_that_predicts_nan_is_not_exported(here):
    path = checkpoints.checkpoint("MLP regression", here)
    content = torch.load(path, weights_only=True)
    for tensor in content["state_dict"].values():
        tensor.fill_(torch.nan)
    torch.save(content, path)
    with pytest.raises(UserError, match="predicts NaN for all samples"):
        export_graph(path, Path("a.pt2"), "torch_export")


def test_one_flipped_bit_of_an_onnx_file_is_found(here):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    export_graph(checkpoints.checkpoint("MLP of images", here), Path("a.onnx"), "onnx")
    content = bytearray(Path("a.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    Path("a.onnx").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.onnx is damaged"):
        verify_onnx(Path("a.onnx"))


# Refusals -------------------------------------------------------------------------------------------------------------


def test_tasks_with_a_loop_are_refused_by_name(here):
    from zoo.data import DateTranslation

    path = checkpoints.write(here / "a.ckpt", zoo.models.Seq2SeqTranslator, DateTranslation(samples=60), dim=8)
    with pytest.raises(UserError, match="Seq2SeqTranslator generates its output in a loop"):
        export_graph(path, Path("a.pt2"), "torch_export")
    assert not Path("a.pt2").exists()


@pytest.mark.parametrize("task", REFUSED, ids=lambda task: task.__name__)
def test_a_task_has_either_a_head_or_a_reason(task):
    assert not issubclass(task, tuple(HEADS))


def test_a_network_that_looks_at_its_values_is_refused_in_one_line(here):
    class Looks(nn.Module):
        def forward(self, x):
            if x.sum() > 0:
                return x
            return -x

    module, data = load_with_data(checkpoints.checkpoint("ScratchMLP", here))
    export = build_export(head_of(module), data, None)
    export.graph.module.net = Looks()
    from zoo.export.files import traced

    with pytest.raises(UserError, match="Looks cannot be exported as a graph: ") as caught:
        traced(export)
    assert "\n" not in str(caught.value)


# Recurrent layers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_scanned_layer_is_the_layer_of_torch(kind, bidirectional):
    torch.manual_seed(0)
    layer = kind(3, 4, 2, batch_first=True, bidirectional=bidirectional).double().eval()
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    first = torch.randn(2 * (1 + bidirectional), 2, 4, dtype=torch.float64)
    start = (first, first.flip(0)) if kind is nn.LSTM else first
    for states in (None, start):
        expected, ends = layer(x, states)
        found, last = ScannedRNN(layer)(x, states)
        assert torch.allclose(found, expected, rtol=0, atol=1e-12)
        for ours, theirs in zip(last, ends, strict=True):
            assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)


def test_layers_are_replaced_wherever_they_are():
    net = nn.Sequential(nn.ModuleList([nn.GRU(2, 2)]), nn.LSTM(2, 2))
    replace_recurrent(net)
    assert isinstance(net[0][0], ScannedRNN)
    assert isinstance(net[1], ScannedRNN)


# The calendar ---------------------------------------------------------------------------------------------------------


def test_the_calendar_is_that_of_numpy():
    import numpy as np

    from zoo.data.series.time_grid import calendar
    from zoo.export.series import features

    times = np.arange("1890-01-01", "2110-01-01", np.timedelta64(1_000_003, "s"), dtype="M8[s]")
    names = ["hour_of_day", "day_of_week", "day_of_month", "day_of_year"]
    expected = torch.from_numpy(calendar(times, names))
    found = features(torch.from_numpy(times.astype(np.int64))[None], names)[0]
    assert torch.allclose(found, expected, rtol=0, atol=1e-9)


def test_losses_and_metrics_stay_out_of_the_file(here):
    module, data = load_with_data(checkpoints.checkpoint("MLP, two classes", here))
    export = build_export(head_of(module), data, None)
    assert isinstance(export.graph, Graph)
    assert all("metrics" not in name for name in export.graph.state_dict())
