"""Tables as files that spreadsheets open, CSV and XLSX: what people wrote stays text there, never a formula. Pure."""

import csv
import io
import re
from datetime import datetime
from typing import Any, Final, TypeAlias

import xlsxwriter
from msgspec import Struct

Cell: TypeAlias = str | int | float | bool | None

CSV_TYPE: Final = "text/csv"
XLSX_TYPE: Final = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"

_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # noqa: RUF001
"""With these a spreadsheet takes a cell of a CSV for a formula; the full-width ones are read as the others in Japan."""
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_.-]")
_WIDTHS: Final = (8, 48)
_LOOKED_AT: Final = 1000


class Table(Struct, frozen=True, kw_only=True):
    """A table with one header row; every row has a cell for each column."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def write_csv(table: Table) -> bytes:
    """Write a table as RFC 4180 has it, UTF-8 without a mark; None is an empty cell, and numbers are numbers."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(table.columns)
    writer.writerows(map(_csv_cell, row) for row in table.rows)
    return text.getvalue().encode()


def write_xlsx(table: Table, at: datetime) -> bytes:
    """Write a table as a workbook made `at` a time: one sheet, its header bold and always in view, its columns wide enough.

    This takes its time (0.3 s for 10,000 rows) and wants a thread of its own.
    """
    file = io.BytesIO()
    # In memory: the image's file system is read-only.
    with xlsxwriter.Workbook(file, {"in_memory": True}) as book:
        book.set_properties({"title": table.title, "created": at})
        sheet = book.add_worksheet(table.title)
        bold = book.add_format({"bold": True})
        for column, name in enumerate(table.columns):
            sheet.write_string(0, column, name, bold)
            sheet.set_column(column, column, _width(table, column))
        for number, row in enumerate(table.rows, 1):
            for column, cell in enumerate(row):
                _write_cell(sheet, number, column, cell)
        sheet.freeze_panes(1, 0)
        sheet.autofilter(0, 0, len(table.rows), len(table.columns) - 1)
    return file.getvalue()


def file_name(kind: str, about: str, ending: str) -> str:
    """Name a file so that every system takes the name: ids may hold a colon, which Windows does not."""
    return f"{kind}-{_UNSAFE.sub('_', about)}.{ending}"


def _csv_cell(cell: Cell) -> Cell:
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if isinstance(cell, str) and cell.startswith(_FORMULA):
        return f"'{cell}"
    return cell


def _write_cell(sheet: Any, row: int, column: int, cell: Cell) -> None:
    """Write by the value's own type: the library's own `write` would make formulas and links of strings."""
    match cell:
        case None:
            pass
        case bool():
            sheet.write_boolean(row, column, cell)
        case str() if cell.startswith("<r>") and cell.endswith("</r>"):
            # The library would take it for markup of its own and write it unescaped; in runs (three at least) it is text.
            sheet.write_rich_string(row, column, cell[:1], cell[1:2], cell[2:])
        case str():
            sheet.write_string(row, column, cell)
        case _:
            sheet.write_number(row, column, cell)


def _width(table: Table, column: int) -> int:
    """Tell how wide a column is, from its name and its first cells."""
    cells = [table.columns[column], *(row[column] for row in table.rows[:_LOOKED_AT])]
    least, most = _WIDTHS
    return min(max(least, *(len(str(cell)) + 2 for cell in cells if cell is not None)), most)
