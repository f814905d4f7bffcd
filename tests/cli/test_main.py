"""``zoo --help``, dispatch, exit codes, and commands of other packages."""

import importlib
import json
import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from zoo.cli import main
from zoo.cli.commands import COMMANDS, load_command
from zoo.errors import UserError

HEAVY = "('torch', 'lightning', 'numpy', 'jsonargparse')"
HELLO = """
name = "hello"
help = "greet somebody"


def add_arguments(parser):
    parser.add_argument("who")
    parser.add_argument("--times", type=int, default=1)


def run(args):
    print("hello", *[args.who] * args.times)
    return 5
"""
COUNT = """
name = "count"
help = "count the parameters of a model"
needs_trainer = True


def add_arguments(parser):
    parser.add_argument("--unit", type=int, default=1)


def run(cli):
    print(sum(p.numel() for p in cli.model.parameters()) // cli.config.unit, type(cli.datamodule).__name__)
"""


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    """Packages with commands, found by entry points: two that work, and one that cannot be imported."""
    (tmp_path / "hello_command.py").write_text(HELLO)
    (tmp_path / "count_command.py").write_text(COUNT)
    (tmp_path / "broken_command.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = [EntryPoint(name, f"{name}_command", "zoo.commands") for name in ("hello", "count", "broken")]
    found.append(EntryPoint("fit", "hello_command", "zoo.commands"))
    monkeypatch.setattr("zoo.cli.commands.entry_points", lambda group: found if group == "zoo.commands" else [])
    yield
    for name in ("hello", "count", "broken"):
        sys.modules.pop(f"{name}_command", None)


# The table of commands ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [[], ["--help"], ["--version"], ["list"], ["list", "--json"], ["list", "optimizers"], ["list", "commands"],
     ["show", "GPT"], ["generate", "--help"], ["export", "--help"], ["verify", "--help"]],
)  # fmt: skip
def test_answers_without_torch(args):
    code = (
        "import sys; from zoo.cli import main; code = main(sys.argv[1:]);"
        f"sys.exit(code or [m for m in {HEAVY} if m in sys.modules] or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_importing_the_commands_imports_no_torch():
    code = (
        "import sys; from zoo.cli.commands import all_commands; list(all_commands());"
        f"sys.exit([m for m in {HEAVY} if m in sys.modules] or 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_follows_the_protocol(name):
    command = load_command(name)
    assert command.name == name
    assert command.help
    assert "\n" not in command.help
    assert callable(command.add_arguments)
    assert callable(command.run)


def test_help_names_every_command(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    assert main(["-h"]) == 0
    assert capsys.readouterr().out == text
    for name in COMMANDS:
        assert f"  {name} " in text
        assert load_command(name).help in text


def test_list_of_the_commands(capsys):
    assert main(["list", "commands", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == list(COMMANDS)


# Commands of other packages -------------------------------------------------------------------------------------------


def test_a_command_of_another_package_is_listed_and_runs(plugins, capsys):
    assert main(["--help"]) == 0
    assert "  hello      greet somebody\n" in capsys.readouterr().out
    assert main(["list", "commands"]) == 0
    assert "greet somebody" in capsys.readouterr().out
    assert main(["hello", "you", "--times", "2"]) == 5
    assert capsys.readouterr().out == "hello you you\n"
    assert main(["hello", "you", "--tmies", "2"]) == 2
    assert "hello: there is no option --tmies; did you mean --times?" in capsys.readouterr().err
    assert main(["helo"]) == 2
    assert capsys.readouterr().err == "zoo: error: unknown command 'helo'; did you mean hello?\n"


def test_a_command_of_another_package_gets_model_and_data(plugins, zoo):
    code, out, err = zoo("count", "-c", "configs/mlp_digits.yaml", "--unit", 2)
    assert (code, out, err) == (0, f"{8970 // 2} Digits\n", "")


def test_a_package_that_cannot_be_imported_takes_no_other_command_with_it(plugins, capsys):
    assert main(["--help"]) == 0
    assert "cannot be loaded from broken_command: No module named 'no_such_package'" in capsys.readouterr().out
    with pytest.raises(ModuleNotFoundError):
        main(["broken"])


def test_zoos_own_commands_take_precedence(plugins):
    assert load_command("fit") is importlib.import_module("zoo.cli.commands.fit")


# Exit codes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["fitt"], "unknown command 'fitt'; did you mean fit?"),
        (["qqqq"], "unknown command 'qqqq'; see `zoo --help`"),
        (["--versoin"], "unknown option '--versoin' before the command; did you mean --version?"),
        (["list", "optimisers"], "unknown kind 'optimisers'; did you mean optimizers?"),
        (["list", "--jsn"], "list: there is no option --jsn; did you mean --json?; see zoo list --help"),
        (["show", "adamw"], "there is no 'adamw'; did you mean AdamW?"),
        (["show", "Adamm"], "there is no 'Adamm'; did you mean Adam or RAdam or NAdam?"),
        (["show"], "zoo show needs a name; `zoo list` lists them"),
    ],
)
def test_a_users_mistake_is_one_line(args, message, capsys):
    assert main(args) == 2
    assert capsys.readouterr() == ("", f"zoo: error: {message}\n")


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (KeyboardInterrupt(), 130, ""),
        (SystemExit(), 0, ""),
        (SystemExit(7), 7, ""),
        (SystemExit("enough"), 1, "enough\n"),
        (UserError("not so"), 2, "zoo: error: not so\n"),
        (ValueError("not so"), 2, "zoo: error: not so\n"),
    ],
    ids=lambda value: repr(value),
)
def test_exit_codes(error, code, text, monkeypatch, capsys):
    def fail(args):
        raise error

    monkeypatch.setattr("zoo.cli.commands.show.run", fail)
    assert main(["show", "GPT"]) == code
    assert capsys.readouterr() == ("", text)


def test_a_bug_keeps_its_traceback(monkeypatch):
    def fail(args):
        raise TypeError("a bug")

    monkeypatch.setattr("zoo.cli.commands.show.run", fail)
    with pytest.raises(TypeError, match="a bug"):
        main(["show", "GPT"])


def test_a_reader_that_leaves_is_no_error():
    command = [sys.executable, "-m", "zoo", "list", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 141
