"""Tables as people have them: separators, decimal signs, encodings, odd cells, rows and headers."""

import pytest
import torch

from zoo.data import Tabular
from zoo.data.csv_numbers import DecimalSigns, number, numbers
from zoo.data.csv_tables import read_table
from zoo.data.table_columns import Column, fit_column

ROWS = [(f"{1.5 + i / 100:.2f}", f"{50 + i / 10:.1f}", "high" if i % 3 else "low") for i in range(60)]
PLAIN = "height,weight,grade\n" + "".join(",".join(row) + "\n" for row in ROWS)
SEMICOLONS = PLAIN.replace(",", ";")
DECIMAL_COMMAS = SEMICOLONS.replace(".", ",")


def train_inputs(path, content: bytes, **kwargs) -> torch.Tensor:
    path.write_bytes(content)
    return Tabular(file=str(path), target="grade", **kwargs).datasets["train"].tensors[0]


@pytest.mark.parametrize(
    ("text", "encoding", "kwargs"),
    [
        (SEMICOLONS, "utf-8", {}),
        (DECIMAL_COMMAS, "utf-8", {}),
        (DECIMAL_COMMAS, "utf-8", {"separator": ";", "decimal": ","}),
        (PLAIN.replace(",", "\t"), "utf-8-sig", {"separator": "tab"}),
        (DECIMAL_COMMAS.replace(";", "\t").replace("\n", "\r\n"), "utf-16", {}),
        ("sep=;\n" + DECIMAL_COMMAS, "latin-1", {"encoding": "latin-1"}),
        (PLAIN.replace(",", " , ").replace("\n", " \n"), "utf-8", {}),
        (PLAIN.replace(",", ",  ") + "\n\n\n", "utf-8", {}),
        (PLAIN.replace("\n", ",\n"), "utf-8", {}),
        ("".join(f"{i or ''},{line}\n" for i, line in enumerate(PLAIN.splitlines())), "utf-8", {}),
    ],
)
def test_one_table_in_many_spellings(tmp_path, text, encoding, kwargs):
    plain = train_inputs(tmp_path / "plain.csv", PLAIN.encode())
    assert torch.equal(train_inputs(tmp_path / "other.csv", text.encode(encoding), **kwargs), plain)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("size,size,y\n1,2,3\n", "has 2 columns named 'size'"),
        ("a,y\n1,2\n1\n1,2,3\n", r"row 3: 1 values for 2 columns \(and 1 more such rows\)"),
        ('a,y\n1,2\n"3,4\n5,6\n', "row 3: a quotation mark opens a cell there and is never closed"),
        ("a;b,c;d\n1;2,3;4\n", "may be separated by a comma or a semicolon, all rows fit both: give --data.separator"),
        ("a b\n1 2\n", "has no column 'y'; it has a b; if that is several columns, give --data.separator"),
        ("\n\n", "has no rows"),
        ("1,2\n", "has no rows below its header"),
    ],
)
def test_tables_that_are_refused(tmp_path, text, message):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_table(path).require("y")
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_rows_are_counted_as_in_the_file(tmp_path, capfd):
    path = tmp_path / "t.csv"
    path.write_text('a,y\n1,2\n\n,\n"x\nz",4\n\n')
    table = read_table(path)
    assert (table.rows, table.columns) == ([2, 5], {"a": ["1", "x\nz"], "y": ["2", "4"]})
    assert table.cell(1, "a") == f"{path}, row 5, column 'a'"
    assert "2 empty rows are left out (the first is row 3)" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("cell", "point", "comma"),
    [
        ("1.5", 1.5, None),
        ("1,5", None, 1.5),
        ("1,234", 1234, 1.234),
        ("1.234", 1.234, 1234),
        ("1,234.5", 1234.5, None),
        ("1.234.567,8", None, 1234567.8),
        ("1 234", 1234, 1234),
        ("1'234.5", 1234.5, None),
        ("\u22123", -3, -3),
        ("1e5", 1e5, 1e5),
        ("12,34,567", None, None),
        ("1_000", None, None),
        ("inf", None, None),
        ("nan", None, None),
        ("12.5 kg", None, None),
    ],
)
def test_numbers(cell, point, comma):
    for decimal, expected in ((".", point), (",", comma)):
        for value in (number(cell, decimal), numbers([cell], decimal)[0]):
            assert (value != value) if expected is None else value == expected


def test_the_decimal_sign_of_a_column():
    signs = DecimalSigns({"a": ["1,5", "1,234"], "b": ["1,234"], "c": ["1.234"], "d": ["12"]})
    assert (signs.of("a"), signs.of("b"), signs.of("d")) == (",", ",", ".")
    with pytest.raises(ValueError, match=r"'c' has numbers such as 1.234, which may be 1234 or 1.234"):
        signs.of("c")
    with pytest.raises(ValueError, match=r"which may be 5000 or 5.000: give --data.decimal"):
        DecimalSigns({"a": ["5,000"]}).of("a")
    assert DecimalSigns({"a": ["5,000"]}, default=",").of("a") == ","
    assert DecimalSigns({"a": ["5.000"]}).of("a") == "."


def fit(cells, **kwargs):
    return fit_column(Column.of("c", cells), torch.arange(len(cells)), **kwargs)


@pytest.mark.parametrize("odd", ["12.5 kg", "inf", "1e999", "twelve"])
def test_one_odd_cell_among_numbers_is_named(odd):
    cells = [str(i / 7) for i in range(119)]
    with pytest.raises(ValueError, match=f"row 6, column 'c': '{odd}' is not a number, as all others are"):
        fit([*cells[:5], odd, *cells[5:]])
    assert fit([*cells, odd], categorical=True).kind == "category"
    for missing in ("-", "#DIV/0!", "NaN", "", "?"):
        assert fit([*cells, missing]).kind == "number"


def test_columns_of_names_stay_as_they_are():
    for cells in (["1", "2", "3", "K"] * 15, ["P1", "P2"] * 30, ["12", "12a", "14b"] * 20, ["yes", "no"] * 30):
        assert fit(cells).kind == "category"
    with pytest.raises(ValueError, match=r"'\$0.00' is a number with '\$'"):
        fit([f"${i:.2f}" for i in range(60)])
    with pytest.raises(ValueError, match=r"'0.5 %' is a number with '%'"):
        fit([f"{i}.5 %" for i in range(60)])


def test_dates_are_parts():
    cells = [f"2023-{1 + i % 12:02}-{1 + i % 28:02}" for i in range(60)]
    german = [f"{int(cell[8:])}.{int(cell[5:7])}.{cell[:4]}" for cell in cells]
    american = [f"{int(cell[5:7])}/{int(cell[8:])}/{cell[:4]}" for cell in cells]
    blocks = [fit(some).encode(Column.of("c", some)) for some in (cells, german, american)]
    assert blocks[0].shape == (60, 5)
    assert torch.equal(blocks[0], blocks[1])
    assert torch.equal(blocks[0], blocks[2])
    with pytest.raises(ValueError, match="dates such as 1/2/2023, of which day and month cannot be told apart"):
        fit(["1/2/2023", "3/4/2023"])
    encoding = fit(cells)
    with pytest.raises(ValueError, match="row 1, column 'c': '2023-02-30' is not a date"):
        encoding.encode(Column.of("c", ["2023-02-30"]))
    with_time = fit([f"{cell} 06:00" for cell in cells]).encode(Column.of("c", ["2023-01-02T06:00:00", ""]))
    assert with_time[0, 3:].tolist() == pytest.approx([0, 1, 1, 0], abs=1e-6), "a Monday, at a quarter of the day"
    assert with_time[1].tolist() == [0] * 7


def test_identifiers_are_named(tmp_path, capfd):
    rows = "".join(f"{1580661436132757505 + 7919 * i},{i % 5},{i % 2}\n" for i in range(60))
    (tmp_path / "t.csv").write_text("user,a,y\n" + rows)
    assert Tabular(file=str(tmp_path / "t.csv"), target="y").input_dim == 2
    err = capfd.readouterr().err
    assert "column 'user' looks like an identifier (another whole number in each row, some beyond 2^53" in err
    data = Tabular(file=str(tmp_path / "t.csv"), target="y", id="user")
    assert data.input_dim == 1
    assert set(data.predict_columns()["user"]) < {str(1580661436132757505 + 7919 * i) for i in range(60)}
    assert len(data.predict_targets()) == len(data.datasets["test"])


def test_a_target_of_numbers_with_an_odd_cell(tmp_path):
    for odd, message in (("sold", "row 4, column 'y': the target 'sold' is not a number"), ("", "target is missing")):
        rows = "".join(f"{i},{odd if i == 2 else 1000 + 7 * i}\n" for i in range(60))
        (tmp_path / "t.csv").write_text("a,y\n" + rows)
        with pytest.raises(ValueError, match=message):
            Tabular(file=str(tmp_path / "t.csv"), target="y").spec()
