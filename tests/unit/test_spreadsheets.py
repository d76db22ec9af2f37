"""Tables as files: what people wrote is text in them, whatever it looks like, and numbers are numbers."""

import csv
import io
import zipfile
from datetime import UTC, datetime
from typing import Any

import openpyxl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.spreadsheets import Cell, Table, file_name, write_csv, write_xlsx

AT = datetime(2026, 11, 24, 9, tzinfo=UTC)
FORMULAS = (
    "=1+1",
    '=HYPERLINK("http://evil.example","Ann")',
    "+1",
    "-1",
    "@SUM(A1)",
    "\t=1+1",
    "\r=1+1",
    "\n=1+1",
    "＝1+1",  # noqa: RUF001
    "＋1",  # noqa: RUF001
    "－1",  # noqa: RUF001
    "＠A1",  # noqa: RUF001
)
TEXTS = (
    *FORMULAS,
    "{=1+1}",
    "http://example.org",
    "mailto:ann@example.org",
    "internal:A1",
    "12",
    "1e5",
    "TRUE",
    "'a",
    " a ",
    "Zoë",
)


def table(*rows: tuple[Cell, ...], columns: tuple[str, ...] = ("a", "b", "c")) -> Table:
    return Table(title="Roll", columns=columns, rows=rows)


def sheet(written: Table) -> Any:
    return openpyxl.load_workbook(io.BytesIO(write_xlsx(written, AT))).active


def only_cell(text: str) -> Any:
    """What a reader finds where this text was written."""
    return sheet(table((text,), columns=("a",)))["A2"]


# CSV


def test_csv_is_utf_8_with_a_header_and_ends_each_line_with_crlf() -> None:
    assert write_csv(table(("Zoë", 1, None), ("Bo", 2.5, True))) == "a,b,c\r\nZoë,1,\r\nBo,2.5,true\r\n".encode()
    assert write_csv(table()) == b"a,b,c\r\n"


def test_csv_quotes_what_would_end_a_cell_or_a_line() -> None:
    written = write_csv(table(('Lee, "Ann"', "a\r\nb", "a\nb")))

    assert written == b'a,b,c\r\n"Lee, ""Ann""","a\r\nb","a\nb"\r\n'


@pytest.mark.parametrize("text", FORMULAS)
def test_csv_keeps_a_spreadsheet_from_calculating(text: str) -> None:
    _, row = csv.reader(io.StringIO(write_csv(table((text, "x", 1))).decode(), newline=""))

    assert row == [f"'{text}", "x", "1"]


def test_csv_keeps_numbers_numbers() -> None:
    assert write_csv(table((-1, -2.5, 0))) == b"a,b,c\r\n-1,-2.5,0\r\n"


@given(st.lists(st.tuples(st.text(), st.integers(), st.none())))
def test_csv_is_read_back_as_it_was(rows: list[tuple[str, int, None]]) -> None:
    read = list(csv.reader(io.StringIO(write_csv(table(*rows)).decode(), newline="")))

    assert [row[0].removeprefix("'") for row in read[1:]] == [row[0].removeprefix("'") for row in rows]
    assert [(int(row[1]), row[2]) for row in read[1:]] == [(row[1], "") for row in rows]


# XLSX


@pytest.mark.parametrize("text", TEXTS)
def test_a_workbook_keeps_text_text(text: str) -> None:
    cell = only_cell(text)

    assert (cell.value.replace("_x000D_", "\r"), cell.data_type, cell.hyperlink) == (text, "s", None)


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff"), min_size=1))
@example("<r><t>x</t></r>")
@example("<r></r>")
@example("<r><unclosed</r>")
@example("]]>")
@settings(max_examples=30, deadline=None)
def test_a_workbook_holds_whatever_people_write(text: str) -> None:
    assert only_cell(text).value == text


def test_a_workbook_stands_also_with_letters_that_xml_has_not() -> None:
    assert only_cell("a\0b\x1f\ufffe").value == "a_x0000_b_x001F__xFFFE_"


def test_a_workbook_has_numbers_truths_and_empty_cells() -> None:
    cells = sheet(table((1, 66.67, None), (True, False, "x")))

    assert [[cell.value for cell in row] for row in cells.iter_rows(min_row=2)] == [[1, 66.67, None], [True, False, "x"]]
    assert [cell.data_type for cell in cells[2]] == ["n", "n", "n"]
    assert [cell.data_type for cell in cells[3]] == ["b", "b", "s"]


def test_a_workbook_has_a_bold_header_that_stays_in_view() -> None:
    cells = sheet(table(("x", 1, None)))

    assert [(cell.value, cell.font.b) for cell in cells[1]] == [("a", True), ("b", True), ("c", True)]
    assert not cells["A2"].font.b
    assert cells.freeze_panes == "A2"
    assert cells.title == "Roll"


def test_columns_are_as_wide_as_what_they_hold_within_reason() -> None:
    cells = sheet(table(("x", "x" * 20, "x" * 1000)))

    widths = [cells.column_dimensions[letter].width for letter in "ABC"]
    assert widths == sorted(widths)
    assert 8 <= widths[0] < 20 < widths[1] < widths[2] < 60


def test_a_workbook_is_the_same_for_the_same_time() -> None:
    def parts(written: bytes) -> dict[str, bytes]:
        archive = zipfile.ZipFile(io.BytesIO(written))
        return {name: archive.read(name) for name in archive.namelist()}

    assert parts(write_xlsx(table(("x", 1, None)), AT)) == parts(write_xlsx(table(("x", 1, None)), AT))
    assert not any("Formula" in name or "external" in name for name in parts(write_xlsx(table(*((t,) * 3 for t in TEXTS)), AT)))


def test_a_workbook_without_rows_is_one() -> None:
    assert [[cell.value for cell in row] for row in sheet(table()).iter_rows()] == [["a", "b", "c"]]


# Names


def test_a_file_is_named_so_that_every_system_takes_it() -> None:
    assert file_name("attendance", "math:101.a_b-c", "csv") == "attendance-math_101.a_b-c.csv"
    assert file_name("summary", 'a"\r\n/\\é', "xlsx") == "summary-a______.xlsx"
