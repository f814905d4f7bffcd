"""Tables of text."""

from zoo.cli.tables import confusion_table, key_value_table, number_table, shorten, text_table


def test_a_table_breaks_lines_between_words_and_leaves_out_empty_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "36")
    rows = [("Name", "a long line of short words", "", "unbroken_word"), ("B", "", "", "x")]
    assert text_table(("n", "text", "none", "last"), rows, indent=1).splitlines() == [
        " n     text            last",
        " Name  a long line of  unbroken_word",
        "       short words",
        " B                     x",
    ]
    assert text_table(("n", "text"), []) == ""


def test_numbers_are_short_and_aligned_to_the_right():
    rows = [{"name": "all", "n": 12345, "lr": 0.00123456, "on": True, "none": None}, {"name": "b", "n": 1, "lr": 1.0,
            "on": False, "none": 2}]  # fmt: skip
    assert number_table(rows).splitlines() == [
        "  name       n        lr   on  none",
        "   all  12,345  0.001235  yes",
        "     b       1         1   no     2",
    ]


def test_keys_and_values():
    assert key_value_table([("val/loss", 0.5), ("run", "runs/a/1")]) == "  val/loss  0.5000\n  run       runs/a/1"


def test_a_confusion_matrix():
    assert confusion_table([[10, 2], [0, 123]], ["ant", "bumblebee"]).splitlines() == [
        "  true           ant bumblebe  (predicted)",
        "  ant             10        2",
        "  bumblebee        0      123",
    ]


def test_names_that_do_not_fit_are_left_out():
    assert shorten([]) == ""
    assert shorten(["a" * 40]) == "a" * 40
    assert shorten(["hidden", "activation"], 20) == "hidden, activation"
    assert shorten(["hidden", "activation"], 10) == "hidden, ..."
