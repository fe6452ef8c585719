"""Tables: rows under named columns, as text, in notebooks, as pandas data frames and as CSV."""

from __future__ import annotations

import csv
import io
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from shaprune.errors import InputError
from shaprune.storage.atomic_files import check_replaceable, write_text

if TYPE_CHECKING:
    import pandas

Cell = str | float | bool | None
MAX_HTML_ROWS = 100


@dataclass(frozen=True)
class Table:
    """Rows under named columns; printing it shows all of them.

    Attributes:
        columns: name -> format of its numbers, such as ``",.0f"``; ``""`` = as they are.
        rows: one cell per column; None = unknown.
        notes: lines below the rows.
    """

    columns: Mapping[str, str]
    rows: Sequence[tuple[Cell, ...]]
    notes: tuple[str, ...] = ()

    def cells(self) -> list[list[str]]:
        """All rows as text, without the header."""
        return [[_text(cell, form) for cell, form in zip(row, self.columns.values(), strict=True)] for row in self.rows]

    def __str__(self) -> str:
        lines = [list(self.columns), *self.cells()]
        texts = [all(isinstance(row[i], str) for row in self.rows) for i in range(len(self.columns))]
        wide = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        shown = [
            "  ".join(c.ljust(w) if left else c.rjust(w) for c, w, left in zip(line, wide, texts, strict=True)).rstrip()
            for line in lines
        ]
        return "\n".join([*shown, *self.notes])

    def html(self, caption: str = "") -> str:
        """An HTML table of the first `MAX_HTML_ROWS` rows; everything in it is escaped."""
        head = "".join(f"<th>{escape(name)}</th>" for name in self.columns)
        lines = ("".join(f"<td>{escape(cell)}</td>" for cell in cells) for cells in self.cells()[:MAX_HTML_ROWS])
        rows = "".join(f"<tr>{line}</tr>" for line in lines)
        more = len(self.rows) - MAX_HTML_ROWS
        notes = [*([f"{more:,} more rows"] if more > 0 else []), *self.notes]
        return (
            f"<table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
            + "".join(f"<div>{escape(note)}</div>" for note in notes)
        )

    def to_dataframe(self) -> pandas.DataFrame:
        """The rows as a pandas data frame, numbers as numbers.

        Raises:
            InputError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise InputError("a data frame needs pandas: pip install 'shaprune[pandas]'") from error
        return pandas.DataFrame([*self.rows], columns=[*self.columns])

    def csv(self) -> str:
        """The rows as CSV with a header; numbers in full, nothing where they are unknown."""
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerows([tuple(self.columns), *self.rows])
        return text.getvalue()


class Tabular(ABC):
    """A result that is shown as a table, in text and in notebooks, and exported as a data frame or CSV."""

    @abstractmethod
    def headline(self) -> str:
        """The most important numbers in one line."""

    @abstractmethod
    def table(self) -> Table:
        """What to look at: one row per group, network or trial."""

    def records(self) -> Table:
        """What to compute with: one row per player or point."""
        return self.table()

    def summary(self) -> str:
        """The table as text."""
        return str(self.table())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.headline()})"

    def _repr_html_(self) -> str:
        return self.table().html(repr(self))

    def to_dataframe(self) -> pandas.DataFrame:
        """`records` as a pandas data frame.

        Returns:
            One row per player or point; columns are named as in `records`.

        Raises:
            InputError: pandas is not installed.
        """
        return self.records().to_dataframe()

    def to_csv(self, path: str | Path) -> None:
        """Write `records` as CSV in one step.

        Args:
            path: the file, such as ``"values.csv"``; one that is there is replaced where it has the same columns.

        Raises:
            InputError: another file is there, or it cannot be written.
        """
        text = self.records().csv()
        if not _begins_with(Path(path), text.partition("\r\n")[0]):
            check_replaceable(path)
        write_text(path, text)


def _text(cell: Cell, form: str) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    return cell if isinstance(cell, str) else format(cell, form)


def _begins_with(path: Path, header: str) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.readline().strip() == header.encode()
