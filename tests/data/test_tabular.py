from pathlib import Path

import pytest
import torch

from zoo.data import Tabular
from zoo.data.table_columns import Column, fit_column


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("name", "rows", "width", "classes"),
    [("breast_cancer", 569, 30, 2), ("wine", 178, 13, 3), ("iris", 150, 4, 3), ("diabetes", 442, 10, None)],
)
def test_bundled_tables(name, rows, width, classes):
    data = Tabular(name=name)
    assert sum(len(s) for s in data.datasets.values()) == rows
    spec = data.spec()
    assert (spec.input_dim, spec.num_classes) == (width, classes)
    x, y = data.datasets["train"].tensors
    assert x.mean(0).abs().max() < 1e-5, "standardised by the training rows"
    assert (x.std(0, correction=0) - 1).abs().max() < 1e-5
    if classes is None:
        assert spec.output_dim == 1
        assert spec.target_mean == pytest.approx(float(y.mean()), rel=1e-5)
        assert spec.target_std == pytest.approx(float(y.std()), rel=1e-5)
    else:
        assert len(spec.class_names) == classes
        assert spec.task == ("binary" if classes == 2 else "multiclass")


def test_csv_types_missing_values_and_classes(tmp_path, capfd):
    lines = ["id,size,colour,kind"]
    for i in range(40):
        size = "" if i == 7 else f"{i / 3:.3f}"
        lines.append(f"{i},{size},{'red' if i % 3 else 'blue'},{'cat' if i % 2 else 'dog'}")
    data = Tabular(file=write(tmp_path / "t.csv", "\n".join(lines)), target="kind", ignore=["id"])
    assert data.class_names == ["cat", "dog"]
    _ = data.datasets
    assert data.spec().input_dim == 2 + 2, "the number, that it was missing, and two colours"
    assert "column 'size': 1 missing numbers filled with the training mean" in capfd.readouterr().err


def encode(cells, train, **kwargs):
    column = Column.of("c", cells)
    return fit_column(column, torch.tensor(train), **kwargs).encode(column)


def test_unseen_category_is_none_of_the_known(capfd):
    column = fit_column(Column.of("c", ["a", "b", "a", "z"]), torch.tensor([0, 1, 2]))
    assert column.encode(Column.of("c", ["a", "b", "z", ""])).tolist() == [[1, 0], [0, 1], [0, 0], [0, 0]]
    err = capfd.readouterr().err
    assert "zoo: column 'c': z not seen in training; 1 rows have no category\n" in err
    assert "zoo: column 'c': 1 missing values are no category\n" in err


def test_statistics_come_from_training_rows_only():
    block = encode(["1", "3", "1000"], [0, 1])
    assert block.flatten().tolist() == [-1.0, 1.0, 998.0]


def test_missing_numbers_outside_of_training_add_no_input():
    assert encode(["1", "3", ""], [0, 1]).tolist() == [[-1.0], [1.0], [0.0]]
    assert encode(["1", "3", ""], [0, 1, 2]).tolist() == [[-1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]


@pytest.mark.parametrize("value", ["5", "14.62", "0.1", "37.7", "-1e6", "0"])
@pytest.mark.parametrize("n", [2, 3, 210, 300])
def test_constant_column_becomes_zero(value, n):
    """Also where the mean of equal numbers is off by a rounding, as for 14.62; another value keeps its distance."""
    cells = [value] * n + [str(float(value) + 0.15)]
    block = encode(cells, list(range(n)))
    assert block[:n].abs().max() == 0
    assert block[n].item() == pytest.approx(0.15, rel=1e-4)


def test_small_deviations_are_none_of_rounding():
    """Seconds since 1970 of one minute, and thousandths around 1."""
    for cells in ([str(1.7e9 + i % 60) for i in range(300)], [str(1 + 1e-6 * (i % 2)) for i in range(300)]):
        block = encode(cells, list(range(300)))
        assert float(block.std(correction=0)) == pytest.approx(1, rel=1e-3)


def test_targets_numbers_of_many_values_are_regression(tmp_path):
    file = write(tmp_path / "t.csv", "a,y\n" + "\n".join(f"{i},{i * 1.5}" for i in range(40)))
    assert Tabular(file=file, target="y").class_names is None
    assert Tabular(file=file, target="y").spec().output_dim == 1
    labels = write(tmp_path / "l.csv", "a,y\n" + "\n".join(f"{i},{10 + i % 3}" for i in range(40)))
    assert Tabular(file=labels, target="y").class_names == ["10", "11", "12"]
    assert Tabular(file=labels, target="y", kind="regression").class_names is None


def test_new_rows_are_encoded_as_the_training_rows_say(tmp_path):
    file = write(tmp_path / "t.csv", "a,c,y\n" + "\n".join(f"{i},{'uv'[i % 2]},{i % 2}" for i in range(40)))
    new = write(tmp_path / "new.csv", "c,a\nu,3\nw,5\n")
    data = Tabular(file=file, target="y", predict_file=new)
    known = Tabular(file=file, target="y")
    assert torch.equal(data.datasets["train"].tensors[0], known.datasets["train"].tensors[0])
    (x,) = data.dataset("predict").tensors
    assert x.shape == (2, 3)
    assert x[1, 1:].tolist() == [0, 0]


def test_new_rows_do_not_change_the_encoding(tmp_path, capfd):
    file = write(tmp_path / "t.csv", "a,y\n" + "\n".join(f"{i},{i % 2}" for i in range(40)))
    new = write(tmp_path / "new.csv", "a\n3\n?\n")
    data = Tabular(file=file, target="y", predict_file=new)
    assert data.spec().input_dim == 1
    (x,) = data.dataset("predict").tensors
    assert x.shape == (2, 1), "a missing number adds no column that training has not"
    assert x[1].item() == 0
    assert "column 'a': 1 missing numbers (such as '?') filled with the training mean" in capfd.readouterr().err
    data = Tabular(file=file, target="y", predict_file=write(tmp_path / "new.csv", "a\n3\nred\n"))
    with pytest.raises(
        ValueError, match=r"new\.csv, row 3, column 'a': 'red' is not a number, as the training rows have"
    ):
        data.predict_dataloader()
    data = Tabular(file=file, target="y", predict_file=write(tmp_path / "new.csv", "b\n3\n"))
    with pytest.raises(ValueError, match=r"new\.csv has no column 'a'; it has b"):
        data.predict_dataloader()


@pytest.mark.parametrize(
    ("text", "kwargs", "message"),
    [
        ("a,b\n1,2\n", {"target": "c"}, "has no column 'c'; it has a, b"),
        ("a,b\n1,2\n3\n", {"target": "b"}, "row 3: 1 values for 2 columns"),
        ("a,b\n", {"target": "b"}, "has no rows below its header"),
        ("", {"target": "b"}, "has no rows"),
        ("a,b\n1,\n2,x\n", {"target": "b"}, "row 2, column 'b': the target is missing, as in 1 rows"),
        ("a,b\n1,x\n2,x\n", {"target": "b"}, "has one value only, 'x'"),
        ("a,b\n1,x\n2,y\n", {"target": "b", "kind": "regression"}, "row 2, column 'b': the target 'x' is not a number"),
        ("a,b\n1,2\n", {}, "which column"),
    ],
)
def test_mistakes_in_a_csv(tmp_path, text, kwargs, message):
    with pytest.raises(ValueError, match=message):
        _ = Tabular(file=write(tmp_path / "t.csv", text), **kwargs).datasets


def test_name_or_file(tmp_path):
    with pytest.raises(ValueError, match="either a name"):
        Tabular()
    with pytest.raises(ValueError, match="no file"):
        _ = Tabular(file=str(tmp_path / "absent.csv"), target="y").datasets
    with pytest.raises(ValueError, match="it is a folder"):
        _ = Tabular(file=str(tmp_path), target="y").datasets
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00a,b\n")
    with pytest.raises(ValueError, match="not text in UTF-16"):
        _ = Tabular(file=str(tmp_path / "b.csv"), target="y").datasets
