"""Texts for users keep to the field's terms: a short list of phrases that puzzled readers stays out."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Each with the term that readers of PyTorch, timm, Lightning and Hugging Face expect.
BANNED = {
    r"\btells? (\w+ ){0,4}apart\b": "classifies",
    r"\bbeside a shortcut\b": "residual (skip) connection",
    r"\bshare (is )?dropped\b": "dropout probability",
    r"\bwrites on\b": "generates",
    r"\bby heart\b": "overfit one batch",
    r"\bthe way back\b": "backward pass",
    r"\bmakes images of noise\b": "generates images, denoises",
    r"\bwidth of the tokens\b": "embedding dimension",
    r"\bfacts of the data\b": "data spec",
    r"\bdivided weights\b": "sharded weights",
}


def texts(path: Path) -> str:
    """Return the strings and docstrings of a Python file, or the whole text of another file."""
    source = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return source
    strings = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
    return "\n".join(text for text in strings if isinstance(text, str))


def test_phrases_are_found(tmp_path):
    file = tmp_path / "x.py"
    file.write_text('def f():\n    """A network that tells images apart."""\n')
    assert re.search(next(iter(BANNED)), texts(file))


FILES = [
    *sorted((ROOT / "zoo").rglob("*.py")),
    *sorted((ROOT / "configs").glob("*.yaml")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
]


@pytest.mark.parametrize("phrase", BANNED)
def test_no_banned_phrase(phrase):
    found = [path.relative_to(ROOT).as_posix() for path in FILES if re.search(phrase, " ".join(texts(path).split()))]
    assert not found, f"instead of {phrase!r} write {BANNED[phrase]!r}"
