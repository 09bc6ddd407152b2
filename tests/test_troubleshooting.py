"""What the guides quote as Sparring's messages, Sparring says: each quotation's fixed words stand in one text of the sources."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GAP = "…"
"""In a guide: what differs. In the sources: a value that a message is made with."""


def quotations(guide: str) -> list[str]:
    """The messages in a guide's tables: in the column of that name, between backticks."""
    found: list[str] = []
    column: int | None = None
    for line in (ROOT / "docs" / guide).read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if "message" in cells:
            column = cells.index("message")
        elif not line.startswith("|"):
            column = None
        elif column is not None:
            found += [quoted for quoted in re.findall(r"`([^`]+)`", cells[column]) if " " in quoted]
    return found


@cache
def said() -> str:
    """Every text in the sources, one in a line; those that are made with values have gaps."""
    files = [path for folder in ("services", "workers", "learner", "scripts") for path in (ROOT / folder).rglob("*.py")]
    return "\n".join(" ".join(text.split()) for path in files for text in _texts(ast.parse(path.read_text())))


def _texts(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else GAP for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.sub(r"\{\w*\}", GAP, node.value)


def is_said(message: str) -> bool:
    """Whether the fixed words of a message stand in one text, in their order."""
    return re.search(".*".join(re.escape(part.strip()) for part in message.split(GAP)), said()) is not None


@pytest.mark.parametrize("guide", ["troubleshooting.md", "chat.md"])
def test_every_quoted_message_is_one_of_sparrings(guide: str) -> None:
    quoted = quotations(guide)
    assert len(quoted) > 10
    assert [message for message in quoted if not is_said(message)] == []


def test_words_of_two_messages_are_none() -> None:
    assert is_said("the key … stands twice in one mapping; keep one")
    assert not is_said("the key … in one mapping stands twice") and not is_said("the key … is larger than … bytes")
