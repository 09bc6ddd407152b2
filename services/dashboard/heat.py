"""Matrices of shares as tables whose cells are coloured: a heat map that screens of every size, keyboards and screen readers can read."""

from __future__ import annotations

from collections.abc import Sequence

from services.dashboard.frame import Text, box, set_attribute
from services.dashboard.words import scrollable


def heat_map(
    label: str, rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float | None]], corner: str = ""
) -> None:
    """A table of shares in 0..1: those above one half are blue, those below it orange, the stronger the farther away.

    Args:
        label: what it shows; its caption.
        rows: a heading for each row.
        columns: a heading for each column.
        values: row by row; None: not measured, or the diagonal. Rows that are missing are left out.
        corner: what the headings are.
    """
    with scrollable(label), box("table", "heat"):
        Text("caption", label)
        with box("thead"), box("tr"):
            Text("th", corner)
            for column in columns:
                set_attribute(Text("th", column), "scope", "col")
        with box("tbody"):
            for row, shares in zip(rows, values, strict=False):
                with box("tr"):
                    set_attribute(Text("th", row), "scope", "row")
                    for share in shares:
                        _cell(share)


def _cell(share: float | None) -> None:
    cell = Text("td", "" if share is None else f"{share:.0%}", "number")
    if share is not None:
        colour = "59, 125, 216" if share >= 0.5 else "224, 123, 0"
        set_attribute(cell, "style", f"background: rgba({colour}, {abs(share - 0.5) * 1.4:.2f})")
