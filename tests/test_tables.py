"""Aligned tables, character by character."""

import pytest

from utils.tables import console_table, markdown_table

ROWS = [("name", "n", "why"), ("a", "1,000", ""), ("longer", "7", "because")]


def test_console_table() -> None:
    assert console_table(ROWS, right=(1,)).splitlines() == [
        "name        n  why",
        "a       1,000",
        "longer      7  because",
    ]


def test_markdown_table() -> None:
    assert markdown_table(ROWS, right=(1,)).splitlines() == [
        "| name   |     n | why     |",
        "| ------ | ----- | ------- |",
        "| a      | 1,000 |         |",
        "| longer |     7 | because |",
    ]


def test_a_row_with_a_cell_too_few_is_an_error() -> None:
    with pytest.raises(ValueError, match="shorter"):
        console_table([*ROWS, ("a", "b")])
