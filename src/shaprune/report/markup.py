"""Pieces of HTML. Everything that comes in is text and gets escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from shaprune.report.comparison import Row


def note(text: str) -> str:
    """A paragraph of small print."""
    return f'<p class="note">{escape(text)}</p>'


def table(rows: Sequence[Row], kind: str = "") -> str:
    """A header and rows; ``kind`` is a CSS class. On a narrow screen the table scrolls, not the page."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in rows[0])
    lines = [
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in row[1:])}</tr>'
        for row in rows[1:]
    ]
    name = f' class="{kind}"' if kind else ""
    return (
        f'<div class="table"><table{name}><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
    )
